"""Real brains and counters in processes of their own: a job comes to the same bits, whoever is killed on the way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from tests.models.courses import Counters, Table, job, numbers, real, table
from zkd.arrays.tensors import pack
from zkd.jobs import Job, Round, Summary
from zkd.models.course import begin
from zkd.models.trained import Trained
from zkd.training.frames import Frame
from zkd.training.process import Process, ProcessEnded

BRAIN = "zkd.training.brain"


@contextlib.asynccontextmanager
async def brain(own: Job, kept: Table, checkpoint: bytes | None = None) -> AsyncIterator[Process]:
    async with asyncio.timeout(30), Process(BRAIN) as child:
        begin_with(child, own, kept, checkpoint)
        yield child


def begin_with(child: Process, own: Job, kept: Table, checkpoint: bytes | None = None) -> None:
    head = {"job": msgspec.to_builtins(own), "manifest": msgspec.to_builtins(kept.manifest)}
    child.send("start", head, *([] if checkpoint is None else [checkpoint]))


def answered(counters: Counters, frame: Frame) -> tuple[str, Any, list[bytes]]:
    """The frame that answers a question, in this process."""

    class Asked:
        question, context = frame.bodies

    return "answers", {"number": frame.head["number"]}, counters.answers(Asked)  # type: ignore[arg-type]


async def finish(child: Process, counters: Counters) -> tuple[Frame, list[int]]:
    """Answer all questions; the last frame, and the numbers of all rounds that were told."""
    told: list[int] = []
    while True:
        frame = await child.receive()
        told += [each["number"] for each in frame.head.get("rounds", ())]
        if frame.kind != "question":
            return frame, told
        kind, head, bodies = answered(counters, frame)
        child.send(kind, head, *bodies)


TERMS = {"importance": True, "validation": {"share": 0.2}, "max_rounds": 20, "epochs": 3}


def undisturbed(own: Job, kept: Table) -> bytes:
    return Counters(kept).run(begin(own, kept.manifest)).trained().write()


async def test_a_brain_comes_to_the_bytes_of_a_course_in_this_process() -> None:
    kept, own = real("breast_cancer"), job("logistic", **TERMS)
    async with brain(own, kept) as child:
        over, told = await finish(child, Counters(kept))
    assert over.kind == "over"
    assert bytes(over.bodies[0]) == undisturbed(own, kept)
    trained = Trained.read(over.bodies[0])
    assert told == [each.number for each in trained.rounds]
    assert msgspec.convert(over.head["summary"], Summary) == trained.summary
    assert child.ended.result() == "exited with status 0"


@pytest.mark.parametrize("optimizer", ["newton", "adam"])
async def test_a_brain_that_is_killed_at_any_time_goes_on_from_a_checkpoint_to_the_same_bytes(optimizer: str) -> None:
    kept, own = real("breast_cancer"), job("logistic", optimizer=optimizer, **TERMS)
    rng, counters, loop = random.Random(optimizer), Counters(kept), asyncio.get_running_loop()
    checkpoint, over, rounds, kills = b"", None, list[Round](), 0
    questions = len(Counters(kept).run(begin(own, kept.manifest)).trained().rounds)
    while over is None:
        async with brain(own, kept, checkpoint) as child:
            begun = await child.receive()
            again = msgspec.convert(begun.head["rounds"], list[Round])
            assert again == rounds[: len(again)]
            frame, rounds = begun, again
            fatal = rng.randint(0, questions // 2) if kills < 5 else -1
            try:
                while frame.kind == "question":
                    kind, head, bodies = answered(counters, frame)
                    child.send(kind, head, *bodies)
                    if fatal == 0:
                        loop.call_later(rng.uniform(0.0, 0.003), os.kill, child.pid, signal.SIGKILL)
                    fatal -= 1
                    frame = await child.receive()
                    rounds += msgspec.convert(frame.head["rounds"], list[Round])
                    if frame.kind == "question" and rng.random() < 0.5:
                        child.send("save")
                        checkpoint = bytes((await child.receive()).bodies[0])
                over = frame
            except ProcessEnded:
                kills += 1
    assert kills >= 3
    assert bytes(over.bodies[0]) == undisturbed(own, kept)
    assert rounds == list(Trained.read(over.bodies[0]).rounds)


async def test_counters_that_are_killed_are_asked_again_and_the_bytes_are_the_same() -> None:
    kept, own = real("breast_cancer"), job("logistic", optimizer="lbfgs", **TERMS)
    rng, kills = random.Random(4), 0

    def counter() -> Process:
        child = Process("tests.training.desk")
        child.send("data", None, *(pack(part) for part in kept.parts))
        return child

    async with brain(own, kept) as child:
        counters = [counter() for _ in range(2)]
        while (frame := await child.receive()).kind == "question":
            answers = []
            for place, parts in enumerate((range(3), range(3, 8))):
                if rng.random() < 0.2 and kills < 3:
                    kills += 1
                    asyncio.get_running_loop().call_later(rng.uniform(0, 0.01), counters[place].kill, "for a test")
                while True:
                    try:
                        answer = await counters[place].ask("question", list(parts), *frame.bodies)
                        break
                    except ProcessEnded:
                        await counters[place].close()
                        counters[place] = counter()
                answers.append(answer.bodies[0])
            child.send("answers", {"number": frame.head["number"]}, *answers)
        for each in counters:
            await each.close()
    assert kills == 3
    assert bytes(frame.bodies[0]) == undisturbed(own, kept)


async def test_a_stop_ends_the_rounds_and_explains_them() -> None:
    kept, own = real("breast_cancer"), job("logistic", optimizer="gd", importance=True)
    counters = Counters(kept)
    async with brain(own, kept) as child:
        for _ in range(6):
            frame = await child.receive()
            kind, head, bodies = answered(counters, frame)
            child.send(kind, head, *bodies)
        frame = await child.receive()
        child.send("stop", {"reason": "stopped"})
        child.send("answers", {"number": frame.head["number"]}, b"late: to a question that is not asked any more")
        over, _ = await finish(child, counters)
    summary = Trained.read(over.bodies[0]).summary
    assert (summary.reason, summary.rounds) == ("stopped", 4)
    assert Trained.read(over.bodies[0]).importance is not None


@pytest.mark.parametrize(
    ("own", "kept", "words"),
    [
        (job("logistic", target="nobody"), table(numbers()), "no column 'nobody'"),
        (job("softmax"), table(numbers() | {"y": numbers()["a"]}), "expected labels, got fractions"),
        (job("logistic", l2=0.0), table(numbers() | {"c": numbers()["a"]}), "a, c make up one another"),
    ],
)
async def test_what_cannot_be_trained_is_refused_in_the_words_of_who_found_it(
    own: Job, kept: Table, words: str
) -> None:
    async with brain(own, kept) as child:
        refused, _ = await finish(child, Counters(kept))
    assert refused.kind == "refused"
    assert words in refused.head["error"]


async def test_a_job_stopped_before_round_one_is_refused() -> None:
    kept = real("iris")
    async with brain(job("softmax"), kept) as child:
        await child.receive()
        child.send("stop", {"reason": "stopped"})
        assert (await child.receive()).head == {"error": "stopped before round one: there is no model"}


async def test_answers_that_do_not_add_up_are_asked_for_again_but_not_for_ever() -> None:
    kept = real("iris")
    counters = Counters(kept)
    async with brain(job("softmax"), kept) as child:
        frame = await child.receive()
        for doubts in range(1, 4):
            kind, head, bodies = answered(counters, frame)
            child.send(kind, head, *bodies[1:])
            child.send(kind, {"number": head["number"] + 7}, b"of no question")
            frame = await child.receive()
            if doubts < 3:
                assert (frame.kind, frame.head["number"]) == ("question", doubts + 1)
                assert "without" in frame.head["again"] or "got 0" in frame.head["again"]
    assert frame.kind == "refused"
    assert "3 times in a row" in frame.head["error"]


async def test_a_spoilt_checkpoint_costs_time_but_no_bit() -> None:
    kept, own = real("iris"), job("softmax")
    for spoilt in (b"no checkpoint", b"\0" * 100):
        lines: list[str] = []
        async with asyncio.timeout(20), Process(BRAIN, printed=lines.append) as child:
            begin_with(child, own, kept, spoilt)
            over, _ = await finish(child, Counters(kept))
        assert bytes(over.bodies[0]) == undisturbed(own, kept)
        assert "begins anew" in lines[0]


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("answers", {"number": 1}),
        ("start", {"job": 3}),
    ],
)
async def test_a_brain_that_is_told_what_nobody_says_ends_and_says_so(kind: str, head: Any) -> None:
    async with asyncio.timeout(20), Process(BRAIN) as child:
        child.send(kind, head)
        with pytest.raises(ProcessEnded, match="status 3; it printed: zkd-brain"):
            await child.receive()


@pytest.mark.parametrize(("kind", "head"), [("answers", {}), ("stop", {"reason": 3}), ("start", {})])
async def test_nor_does_it_go_on_with_nonsense_later(kind: str, head: Any) -> None:
    kept = real("iris")
    async with brain(job("softmax"), kept) as child:
        await child.receive()
        child.send(kind, head)
        with pytest.raises(ProcessEnded, match="status 3; it printed: zkd-brain"):
            await child.receive()
