"""A real brain, and what can go wrong between it and its nodes: the model stays the same, or the job says why not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.models.courses import Counters, Table, job, real
from zkd import log
from zkd.core.clock import ServerClock
from zkd.jobs import Job, JobState, Summary
from zkd.models.course import begin
from zkd.models.trained import Trained
from zkd.training import lesson
from zkd.training.account import Account, JobFailed
from zkd.training.gathering import GivenUp
from zkd.training.lesson import Lesson

STATE = JobState(czxid=1, terms="0" * 64, fence=1, phase="preparing")


class Kept:
    """What is saved, in memory."""

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.rounds: list[int] = []

    def is_due(self) -> bool:
        return True

    async def last(self) -> bytes | None:
        return self.data

    def keep_beside(self, group: asyncio.TaskGroup, data: bytes, number: int) -> None:
        self.data = data
        self.rounds.append(number)

    async def keep(self, data: bytes, number: int) -> None:
        self.data = data
        self.rounds.append(number)


class School:
    """Nodes, as a lesson sees them: `before` each round something may happen."""

    def __init__(self, own: Job, kept: Table) -> None:
        self.job = own
        self.table = kept
        self.edition = self
        self.manifest = kept.manifest
        self.dataset = "d@3"
        self.counters = Counters(kept)
        self.saves = Kept()
        self.account = Account(STATE, ServerClock(), list)
        self.counts: Counter[str] = Counter()
        self.rounds = 0
        self.before: Callable[[int], Awaitable[None]] | None = None
        self.context = b""
        self.brains: list[int] = []

    def tell(self, context: Any, body: bytes) -> None:
        assert context.dataset == "d@3"
        self.context = body

    def faults(self) -> list[str]:
        return []

    def waits_for(self) -> list[str]:
        return []

    async def gather(self, fence: int, question: bytes) -> list[bytes]:
        self.rounds += 1
        if self.before is not None:
            await self.before(self.rounds)

        class Asked:
            pass

        asked: Any = Asked()
        asked.question, asked.context = question, self.context
        return self.counters.answers(asked)

    def lesson(self, group: asyncio.TaskGroup) -> Lesson:
        own: Any = self
        return Lesson(self.job, self.account, own.saves, own, own, lambda: 1, group, self.counts, log.get())

    async def taught(self) -> tuple[Summary, bytes]:
        own: Any = self
        failed: JobFailed | None = None
        async with asyncio.timeout(30.0), asyncio.TaskGroup() as group:
            taught = self.lesson(group)
            try:
                return await taught.run(own)
            except JobFailed as error:  # a group would wrap it
                failed = error
            finally:
                await taught.close()
        assert failed is not None
        raise failed


def undisturbed(school: School) -> bytes:
    return Counters(school.table).run(begin(school.job, school.manifest)).trained().write()


@pytest.fixture
def school() -> School:
    return School(job("logistic", optimizer="lbfgs", max_rounds=20), real("breast_cancer"))


def brain_of(school: School) -> int:
    """The process of the brain that runs now."""
    me = os.getpid()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    head, _, rest = file.read().rpartition(")")
            except OSError:
                continue
            if int(rest.split()[1]) == me and "zkd-brain" in head and rest.split()[0] != "Z":
                return int(name)
    raise AssertionError("there is no brain")


async def test_a_lesson_ends_in_the_bytes_of_its_course(school: School) -> None:
    summary, model = await school.taught()
    assert model == undisturbed(school)
    assert Trained.read(model).summary == summary
    assert [each.number for each in school.account.telling.rounds] == [
        each.number for each in Trained.read(model).rounds
    ]
    assert school.saves.rounds[0] == 0, "the first checkpoint comes with the first round"
    assert school.saves.rounds == sorted(school.saves.rounds)


async def test_a_frozen_brain_is_replaced(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "BRAIN_STILL_S", 0.5)

    async def freeze(number: int) -> None:
        if number == 9:
            os.kill(brain_of(school), signal.SIGSTOP)

    school.before = freeze
    _, model = await school.taught()
    assert model == undisturbed(school)
    assert school.counts["brains_lost"] == 1


async def test_a_brain_that_spins_is_replaced(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "BRAIN", "tests.training.spinner")
    monkeypatch.setattr(lesson, "BRAIN_STILL_S", 0.5)
    monkeypatch.setattr(lesson, "BRAIN_CPU_MAX_S", 1.0)  # more than it takes to start
    _, model = await school.taught()
    assert model == undisturbed(school)
    assert school.counts["brains_lost"] >= 1


async def test_killed_brains_cost_rounds_and_no_bits(school: School) -> None:
    async def kill(number: int) -> None:
        if number in (1, 4, 9, 10):
            os.kill(brain_of(school), signal.SIGKILL)

    school.before = kill
    _, model = await school.taught()
    assert model == undisturbed(school)
    assert school.counts["brains_lost"] == 4


async def test_a_brain_that_dies_again_and_again_fails_the_job(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "BRAIN", "zkd.training.no_brain")
    with pytest.raises(JobFailed, match=r"4 times without a round.*no_brain"):
        await school.taught()


async def test_a_round_that_fails_for_a_while_is_asked_again(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "GIVEN_UP_PAUSES_S", (0.01, 0.01))

    async def fail(number: int) -> None:
        if number in (3, 4, 9):
            raise GivenUp("part 5 failed on a, b")

    school.before = fail
    _, model = await school.taught()
    assert model == undisturbed(school)

    async def always(number: int) -> None:
        raise GivenUp("part 5 failed on a, b")

    school.before, school.saves.data = always, None
    with pytest.raises(JobFailed, match="part 5"):
        await school.taught()


async def test_a_model_that_cannot_be_explained_is_a_model_all_the_same(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesson, "GIVEN_UP_PAUSES_S", (0.01,))

    async def fail(number: int) -> None:
        if school.account.phase == "explaining":
            raise GivenUp("part 5 failed on a, b")

    school.before = fail
    summary, model = await school.taught()
    assert "part 5 failed on a, b before standard errors and importance could be told" in summary.notes[-1]
    whole = Trained.read(undisturbed(school))
    assert Trained.read(model).w.tobytes() == whole.w.tobytes()
    assert [line.raw for line in Trained.read(model).table()] == [line.raw for line in whole.table()]


async def test_a_refusal_of_the_brain_fails_the_job_with_its_words() -> None:
    school = School(job("poisson"), real("breast_cancer", labels=[-1.0, 3.0]))
    with pytest.raises(JobFailed, match="count"):
        await school.taught()


async def test_a_stopped_lesson_ends_with_what_there_is(school: School) -> None:
    own: Any = school
    reached = asyncio.Event()

    async def wait(number: int) -> None:
        if number == 9:
            reached.set()
            await asyncio.sleep(60.0)

    school.before = wait
    async with asyncio.timeout(30.0), asyncio.TaskGroup() as group:
        taught = school.lesson(group)
        running = group.create_task(taught.run(own))
        await reached.wait()
        running.cancel()
        await asyncio.wait({running})
        school.before = None
        summary, model = await taught.stop(own)
        await taught.close()
    assert summary.reason == "stopped"
    assert summary.rounds == 6, "two rounds before the first, and one that was not answered"
    assert [each.number for each in Trained.read(model).rounds] == [
        each.number for each in school.account.telling.rounds
    ]


async def test_an_interrupted_lesson_goes_on_to_the_same_bytes(school: School) -> None:
    own: Any = school
    reached = asyncio.Event()

    async def wait(number: int) -> None:
        if number == 9:
            reached.set()
            await asyncio.sleep(60.0)

    school.before = wait
    async with asyncio.timeout(30.0), asyncio.TaskGroup() as group:
        taught = school.lesson(group)
        running = group.create_task(taught.run(own))
        await reached.wait()
        running.cancel()
        await asyncio.wait({running})
        await taught.save()
        assert school.saves.rounds[-1] == 6
        _, model = await taught.run(own)
        await taught.close()
    assert model == undisturbed(school)
