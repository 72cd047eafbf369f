"""Promises of a node's counters: real processes over a real segment store."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.shelf import Caller, Problem, ask, counting, shelved, visit
from zkd.models.answers import answers_in
from zkd.models.exchange import Split, context_in
from zkd.models.picks import Local
from zkd.net.round_frames import Ask, Context, Overtaken, Term
from zkd.training import counters as of_counters
from zkd.training import counting as of_counting
from zkd.training.answers import ASKS_MAX
from zkd.training.counters import Counters

Parts = list[list[dict[str, np.ndarray]]]


def parts_of(count: int, rows: int = 300, wide: int = 4, seed: int = 0) -> Parts:
    dice = np.random.default_rng(seed)
    return [[segment_of(rows + 17 * part, wide, dice)] for part in range(count)]


def segment_of(rows: int, wide: int, dice: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x": dice.normal(size=(rows, wide)), "y": dice.integers(0, 2, rows).astype("i1")}


def pids(counters: Counters) -> list[int]:
    return [counter.pid for counter in counters._counters if counter.pid is not None]


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(is_true: Any, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not is_true():
            await asyncio.sleep(0.005)


def flip(path: Path) -> None:
    """Another last byte, in place."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 0x40]))


# --- What is counted ------------------------------------------------------------------------------------------


async def test_partials_are_those_of_one_process_whoever_counts(tmp_path: Path) -> None:
    parts = parts_of(7)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf:
        await shelf.put("d", parts)
        for workers, memory in ((1, 1 << 28), (3, 0)):
            async with counting(shelf, workers, memory) as (_, answers):
                link, caller = visit(answers, problem)
                for number, wants in enumerate(("gradient", "hessian", "loss")):
                    ask(link, number, range(7), problem.question(number, wants=wants))
                    partials = await caller.partials(number)
                    assert len(partials) == workers
                    problem.check(partials, range(7), number, wants=wants)
                ask(link, 9, [2, 5], problem.question(9))
                both = await caller.partials(9)
                ask(link, 10, [0, 1, 3, 4, 6], problem.question(9))
                problem.check([*both, *await caller.partials(10)], range(7), 9)
                link.close()


async def test_columns_of_all_kinds_parts_of_several_segments_and_empty_ones(tmp_path: Path) -> None:
    dice = np.random.default_rng(3)

    def segment(rows: int) -> dict[str, np.ndarray]:
        return {
            "a": dice.normal(size=rows).astype("f4"),
            "b": dice.integers(-5, 5, (rows, 3)).astype("i2"),
            "c": dice.integers(0, 2, rows).astype(bool),
            "k": np.array([f"key {number}" for number in dice.integers(0, 10**6, rows)], "<U12"),
            "y": np.array(["no", "yes", "maybe"])[dice.integers(0, 3, rows)],
        }

    parts = [[segment(100), segment(0), segment(31)], [segment(0)], [segment(9000)], [segment(1)] * 2]
    problem = Problem(parts, features=("a", "b", "c"), kind="softmax")
    held = Problem(parts, features=("a", "b", "c"), kind="softmax", split=Split(0.3, 7, "k"))
    async with shelved(tmp_path) as shelf:
        await shelf.put("d", [*parts, []])  # no segment at all
        for memory in (1 << 28, 0):
            async with counting(shelf, 2, memory) as (_, answers):
                link, caller = visit(answers, problem)
                for number in range(2):
                    ask(link, number, range(4), problem.question(number))
                    problem.check(await caller.partials(number), range(4), number)
                ask(link, 2, [1, 4], problem.question(0))
                assert len(await caller.partials(2)) == 2
                link.close()
                link, caller = visit(answers, held)
                ask(link, 0, range(4), held.question(0))
                read = answers_in(await caller.partials(0), "round", 4, context_in(held.context))
                sums = np.sum([each.partial.sums.value()[:4] for each in read if each.partial], axis=0)
                rows = sum(len(segment["y"]) for part in parts for segment in part)
                assert sums[0] + sums[2] == rows
                assert 0.25 < sums[2] / rows < 0.35
                link.close()


async def test_what_is_known_of_the_data_may_grow_on_one_link(tmp_path: Path) -> None:
    parts = parts_of(3)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf) as (_, answers):
        await shelf.put("d", parts)
        link, caller = visit(answers, problem)
        link.context(*problem.said(problem.early))
        ask(link, 0, range(3), problem.survey())
        link.context(*problem.said())
        ask(link, 1, range(3), problem.question(1))
        assert len(answers_in(await caller.partials(0), "survey", 3, context_in(problem.early))) == 1
        problem.check(await caller.partials(1), range(3), 1)
        ask(link, 2, range(3), problem.survey())
        assert "is asked about" in await caller.words(2)
        link.close()


async def test_each_part_stays_with_its_counter_and_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(6)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf, 2) as (_, answers):
        await shelf.put("d", parts)
        link, caller = visit(answers, problem)
        ask(link, 0, range(6), problem.question(0))
        await caller.partials(0)
        await asyncio.sleep(1.1)  # until no change of a file could go unseen
        ask(link, 1, range(6), problem.question(0))
        first = answers_in(await caller.partials(1), "round", 6, context_in(problem.context))

        async def nobody(*_: Any) -> Any:
            raise AssertionError("a file was looked at")

        monkeypatch.setattr(shelf.files, "doubt", nobody)
        monkeypatch.setattr(shelf.files, "lay", nobody)
        ask(link, 2, range(6), problem.question(0))
        again = answers_in(await caller.partials(2), "round", 6, context_in(problem.context))
        assert [each.parts.tolist() for each in again] == [each.parts.tolist() for each in first]
        link.close()


# --- What goes wrong ------------------------------------------------------------------------------------------


async def test_a_part_that_is_not_here_is_said_to_be_missing(tmp_path: Path) -> None:
    parts = parts_of(2)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf) as (_, answers):
        await shelf.put("d", parts)
        link, caller = visit(answers, problem)
        await shelf.store.trash(shelf.made[1][0].id)
        ask(link, 0, [0, 1], problem.question(0))
        assert await caller.words(0) == "part 1 of d@1 is not on this node"
        ask(link, 1, [0], problem.question(0))
        assert len(await caller.partials(1)) == 1
        ask(link, 2, [2], problem.question(0))
        assert await caller.words(2) == "d@1 has no part 2"
        await shelf.store.restore(shelf.made[1][0].id)
        ask(link, 3, [0, 1], problem.question(3))
        problem.check(await caller.partials(3), [0, 1], 3)
        await shelf.store.trash(shelf.made[0][0].id)
        ask(link, 4, [0, 1], problem.question(0))
        assert await caller.words(4) == "part 0 of d@1 is not on this node"
        for number, (dataset, columns, words) in enumerate(
            (("other@1", ["x", "y"], "other@1 is not there"), ("d@1", ["x", "z"], "d@1 has no column 'z'")), 5
        ):
            link.context(Context(dataset, columns), problem.context)
            ask(link, number, [1], problem.question(0))
            assert await caller.words(number) == words
        link.close()


async def test_flipped_bits_are_never_counted(tmp_path: Path) -> None:
    parts = parts_of(3, rows=3000)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf:
        await shelf.put("d", parts)
        async with counting(shelf, 1, memory=0) as (_, answers):  # rows stay in files
            link, caller = visit(answers, problem)
            flip(shelf.file(0, 0))
            ask(link, 0, [0, 1], problem.question(0))
            assert "0.npy" in await caller.words(0)
            assert not shelf.store.has(shelf.made[0][0].id), "it is quarantined"
            ask(link, 1, [1], problem.question(1))
            assert len(await caller.partials(1)) == 1
            flip(shelf.file(1, 0))  # under a counter that has it open
            ask(link, 2, [1], problem.question(2))
            assert "0.npy" in await caller.words(2)
            ask(link, 3, [1], problem.question(3))
            assert await caller.words(3) == "part 1 of d@1 is not on this node"
            link.close()
        async with counting(shelf, 1) as (_, answers):  # rows are kept
            link, caller = visit(answers, problem)
            ask(link, 0, [2], problem.question(0))
            first = await caller.partials(0)
            flip(shelf.file(2, 0))
            ask(link, 1, [2], problem.question(0))
            assert await caller.partials(1) == first, "what was read before is good"
            assert not await shelf.store.verify(shelf.made[2][0].id)
            ask(link, 2, [2], problem.question(0))
            assert await caller.words(2) == "part 2 of d@1 is not on this node"
            link.close()


async def test_bits_that_flip_under_rows_that_stay_in_files_are_never_counted(tmp_path: Path) -> None:
    parts = parts_of(1, rows=3000)
    parts[0][0]["x"] += 1000.0  # so far from 0 that each block is standardised anew: a copy would gain nothing
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf) as (_, answers):
        await shelf.put("d", parts)
        link, caller = visit(answers, problem)
        ask(link, 0, [0], problem.question(0))
        await caller.partials(0)
        await asyncio.sleep(1.1)  # until no change of a file could go unseen
        for number in (1, 2):
            ask(link, number, [0], problem.question(number))
            problem.check(await caller.partials(number), [0], number)
        flip(shelf.file(0, 0))
        ask(link, 3, [0], problem.question(0))
        assert "0.npy" in await caller.words(3)
        link.close()


@pytest.mark.parametrize("rows", [100, 3000], ids=["copied", "mapped"])
async def test_bits_that_flip_just_before_they_are_read_are_never_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    parts = parts_of(1, rows=rows)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf) as (_, answers):
        await shelf.put("d", parts)
        lay = shelf.files.lay

        async def lay_and_flip(*asked: Any) -> Any:
            laid = await lay(*asked)
            flip(shelf.file(0, 0))
            return laid

        monkeypatch.setattr(shelf.files, "lay", lay_and_flip)
        link, caller = visit(answers, problem)
        ask(link, 0, [0], problem.question(0))
        assert "0.npy" in await caller.words(0)
        ask(link, 1, [0], problem.question(0))
        assert await caller.words(1) == "part 0 of d@1 is not on this node"
        link.close()


async def test_a_part_that_goes_while_it_is_counted_does_not_count(tmp_path: Path) -> None:
    parts = parts_of(2, rows=3000)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf) as (_, answers):
        await shelf.put("d", parts)
        link, caller = visit(answers, problem)
        ask(link, 0, [0, 1], problem.question(0))
        await caller.partials(0)
        ask(link, 1, [0, 1], problem.question(0))  # it is on its way to the counter when this returns
        await shelf.store.trash(shelf.made[1][0].id)
        assert await caller.words(1) == "part 1 of d@1 is not on this node any more"
        link.close()


async def test_a_file_that_was_touched_and_is_good_still_counts(tmp_path: Path) -> None:
    parts = parts_of(1, rows=3000)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf) as (_, answers):
        await shelf.put("d", parts)
        link, caller = visit(answers, problem)
        for number in range(3):
            os.utime(shelf.file(0, 0))
            ask(link, number, [0], problem.question(number))
            problem.check(await caller.partials(number), [0], number)
        link.close()


async def test_a_killed_counter_costs_no_ask(tmp_path: Path) -> None:
    parts = parts_of(4, rows=20_000)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf, 2) as (counters, answers):
        await shelf.put("d", parts)
        link, caller = visit(answers, problem)
        ask(link, 0, range(4), problem.question(0))
        await caller.partials(0)
        for number in range(1, 4):
            if number == 1:
                os.kill(pids(counters)[0], signal.SIGKILL)  # before
            ask(link, number, range(4), problem.question(number))
            if number > 1:
                await until(lambda: pids(counters))
                os.kill(pids(counters)[-1], signal.SIGKILL)  # meanwhile, or just after
            problem.check(await caller.partials(number), range(4), number)
            await until(lambda dead=number: sum(counter.died for counter in counters._counters) == dead)
        link.close()


async def test_who_dies_of_an_ask_three_times_has_failed(tmp_path: Path) -> None:
    parts = parts_of(2)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf, 1) as (counters, answers):
        await shelf.put("d", parts)
        link, caller = visit(answers, problem)
        killed: set[int] = set()

        async def kill() -> None:
            while True:
                for pid in pids(counters):
                    if pid not in killed:
                        killed.add(pid)
                        os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as group:
            killer = group.create_task(kill())
            ask(link, 0, range(2), problem.question(0))
            words = await caller.words(0)
            killer.cancel()
        assert words.startswith("its counter died 3 times: killed by signal 9"), words
        assert len(killed) == 3
        ask(link, 1, range(2), problem.question(1))
        problem.check(await caller.partials(1), range(2), 1)
        link.close()


async def test_a_counter_that_is_stopped_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_counting, "STILL_S", 0.3)
    monkeypatch.setattr(of_counters, "LOOK_S", 0.05)
    parts = parts_of(2)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf) as (counters, answers):
        await shelf.put("d", parts)
        link, caller = visit(answers, problem)
        ask(link, 0, range(2), problem.question(0))
        await caller.partials(0)
        frozen = pids(counters)[0]
        os.kill(frozen, signal.SIGSTOP)
        await asyncio.sleep(0.6)
        assert is_there(frozen), "who has nothing to do may sleep"
        ask(link, 1, range(2), problem.question(1))
        problem.check(await caller.partials(1), range(2), 1)
        assert not is_there(frozen)
        link.close()


async def test_a_stopped_counter_does_not_hold_up_the_end(tmp_path: Path) -> None:
    parts = parts_of(2)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf:
        await shelf.put("d", parts)
        async with counting(shelf, 2) as (counters, answers):
            link, caller = visit(answers, problem)
            ask(link, 0, range(2), problem.question(0))
            await caller.partials(0)
            there = pids(counters)
            os.kill(there[1], signal.SIGSTOP)
            ask(link, 1, range(2), problem.question(1))
            answers.close("the node stops")
            assert caller.why == "the node stops"
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 2.5
        assert not any(map(is_there, there))
        assert (1, 0) not in caller.said, "nobody is there to hear it"


async def test_counters_go_when_there_is_nothing_to_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_counters, "IDLE_S", 0.2)
    monkeypatch.setattr(of_counters, "LOOK_S", 0.05)
    parts = parts_of(3)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf) as (counters, answers):
        assert pids(counters) == []
        await shelf.put("d", parts)
        link, caller = visit(answers, problem)
        for number in range(2):
            ask(link, number, range(3), problem.question(number))
            problem.check(await caller.partials(number), range(3), number)
            there = pids(counters)
            assert len(there) == 1
            await until(lambda: not pids(counters))
            assert not any(map(is_there, there))
        assert sum(counter.died for counter in counters._counters) == 0
        link.close()


async def test_what_is_forgotten_stops_after_the_part_it_is_at(tmp_path: Path) -> None:
    parts = parts_of(1, rows=20_000, wide=30)
    problem = Problem(parts)
    many = 32
    async with shelved(tmp_path) as shelf, counting(shelf, 1) as (counters, answers):
        await shelf.put("d", parts * many)
        link, caller = visit(answers, problem)
        loop = asyncio.get_running_loop()
        ask(link, 0, range(many), problem.question(0))
        await caller.partials(0)
        began = loop.time()
        ask(link, 1, range(many), problem.question(0, wants="hessian"))
        await caller.partials(1)
        whole_s = loop.time() - began
        began = loop.time()
        ask(link, 2, range(many), problem.question(0, wants="hessian"))
        await asyncio.sleep(whole_s / 20)
        link.forget(2, 0)
        ask(link, 3, [0], problem.question(3))
        problem.check(await caller.partials(3), [0], 3)
        assert loop.time() - began < whole_s / 2
        assert (2, 0) not in caller.said
        link.forget(2, 0)  # nothing left to forget
        assert counters.answered == 3
        link.close()


async def test_a_part_that_takes_for_ever_is_not_gone_on_with_when_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_counting, "UNHEARD_S", 0.3)
    monkeypatch.setattr(of_counters, "LOOK_S", 0.05)
    parts = parts_of(2, rows=2000)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf, 1) as (counters, answers):
        await shelf.put("d", parts)
        link, caller = visit(answers, problem)
        ask(link, 0, [0, 1], problem.question(0))
        await caller.partials(0)
        before = pids(counters)
        ask(link, 1, [0], problem.question(0, local=Local(0, 0, 100_000, 10, 1e-3, 0.0)))
        ask(link, 2, [0, 1], problem.question(0))
        await asyncio.sleep(0.1)
        link.forget(1, 0)
        problem.check(await caller.partials(2), [0, 1], 0)
        assert pids(counters) != before
        assert all(counter.died == 0 for counter in counters._counters)  # it is nobody's fault
        link.forget(2, 0)
        link.close()


async def test_a_node_without_memory_for_it_says_so(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    parts = [[segment_of(200, 700, dice)]]  # a Hessian of 701^2, and rows that fit
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf:
        await shelf.put("d", parts)
        async with counting(shelf, 1) as (counters, answers):
            link, caller = visit(answers, problem)
            ask(link, 0, [0], problem.question(0))
            await caller.partials(0)
            (pid,) = pids(counters)
            import resource

            resource.prlimit(pid, resource.RLIMIT_DATA, (1 << 20, resource.RLIM_INFINITY))
            ask(link, 1, [0], problem.question(0, wants="hessian"))
            assert "training.memory" in await caller.words(1)
            resource.prlimit(pid, resource.RLIMIT_DATA, (1 << 30, resource.RLIM_INFINITY))
            ask(link, 2, [0], problem.question(2))
            problem.check(await caller.partials(2), [0], 2)
            assert pids(counters) == [pid]
            link.close()


async def test_rows_that_are_kept_fit_the_memory_given(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)

    def columns(rows: int) -> dict[str, np.ndarray]:
        named = {f"x{number}": dice.normal(size=rows) for number in range(8)}
        return {**named, "y": dice.integers(0, 2, rows).astype("i1")}

    parts = [[columns(25_000), columns(25_000)] for _ in range(8)]  # 3 MB each, in one piece or two
    problem = Problem(parts, features=[f"x{number}" for number in range(8)])
    used = {}
    async with shelved(tmp_path) as shelf:
        await shelf.put("d", parts)
        for memory in (1 << 20, 8 << 20, 1 << 30):
            async with counting(shelf, 1, memory) as (counters, answers):
                link, caller = visit(answers, problem)
                for number in range(3):
                    ask(link, number, range(8), problem.question(number))
                    problem.check(await caller.partials(number), range(8), number)
                used[memory] = private(pids(counters)[0])
                link.close()
    assert used[8 << 20] - used[1 << 20] < 13 << 20, used
    assert used[1 << 30] - used[1 << 20] > 40 << 20, used


def private(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


# --- Who may ask ----------------------------------------------------------------------------------------------


async def test_a_lower_fence_is_not_answered_after_a_higher_one(tmp_path: Path) -> None:
    parts = parts_of(2, rows=50_000)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf) as (_, answers):
        await shelf.put("d", parts)
        old, old_caller = visit(answers, problem, fence=3)
        ask(old, 0, range(2), problem.question(0))
        new, new_caller = visit(answers, problem, fence=4)
        assert "a later coordinator" in old_caller.why
        ask(old, 1, range(2), problem.question(1))
        ask(new, 0, range(2), problem.question(2))
        problem.check(await new_caller.partials(0), range(2), 2)
        with pytest.raises(Overtaken, match="fence 4"):
            visit(answers, problem, fence=3)
        assert old_caller.said == {}
        old.close()  # as its link does, some time
        same, same_caller = visit(answers, problem, fence=4)  # it has lost its link
        assert new_caller.why
        ask(same, 0, range(2), problem.question(5))
        problem.check(await same_caller.partials(0), range(2), 5)
        other, _ = visit(answers, problem, fence=1, life=2)  # the job was dropped anew, and fences begin again
        with pytest.raises(Overtaken):
            visit(answers, problem, fence=9, life=1)
        for link in (new, same, other):
            link.close()


async def test_jobs_share_counters_and_sources(tmp_path: Path) -> None:
    parts = parts_of(4, rows=5000)
    problem, squared = Problem(parts), Problem(parts, kind="svm")
    async with shelved(tmp_path) as shelf, counting(shelf) as (counters, answers):
        await shelf.put("d", parts)
        one, one_caller = visit(answers, problem)
        other_caller = Caller()
        other = answers.receive(Term("other", 1, 1), other_caller)  # type: ignore[arg-type]
        other.context(*squared.said())
        for number in range(5):
            ask(one, number, range(4), problem.question(number))
            ask(other, number, range(4), squared.question(number))
        for number in range(5):
            problem.check(await one_caller.partials(number), range(4), number)
            squared.check(await other_caller.partials(number), range(4), number)
        assert len(counters._sources) == 1
        one.close()
        ask(other, 9, range(4), squared.question(9))
        squared.check(await other_caller.partials(9), range(4), 9)
        other.close()
        assert not counters._sources


async def test_who_asks_strangely_is_put_out_or_told_why(tmp_path: Path) -> None:
    parts = parts_of(2)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf) as (counters, answers):
        await shelf.put("d", parts)
        for context, body in (
            (Context("d", ["x", "y"]), b""),
            (Context("../d@1", ["x", "y"]), b""),
            (Context("d@1", ["x", "x"]), b""),
        ):
            link, caller = visit(answers, problem)
            link.context(context, body)
            assert caller.why
            ask(link, 0, [0], b"")
            assert caller.said == {}
        link = answers.receive(Term("j", 1, 1), caller := Caller())  # type: ignore[arg-type]
        ask(link, 0, [0], b"")
        assert "context" in caller.why
        link, caller = visit(answers, problem)
        questions: list[tuple[bytes, bytes, str]] = [
            (problem.context, b"", "$: "),
            (problem.context, b"\xff" * 100, "$: "),
            (b"nothing", problem.question(0), "$.context"),
            (problem.early, problem.question(0), "is asked about"),
            (problem.context, problem.question(0)[:-8], "$"),
        ]
        for number, (body, question, words) in enumerate(questions):
            link.context(*problem.said(body))
            ask(link, number, [0, 1], question)
            assert words in await caller.words(number)
        link.context(Context("d@1", ["y"]), problem.context)
        ask(link, 50, [0], problem.question(0))
        assert "expected x, too" in await caller.words(50)
        link.context(*problem.said())
        for number in range(ASKS_MAX + 1):
            ask(link, 100, [0], problem.question(0), number)
        assert str(ASKS_MAX) in await caller.words(100, ASKS_MAX)
        link.ask(Ask(100, 1, [0]), problem.question(0))
        assert "twice" in caller.why
        link, caller = visit(answers, problem)
        ask(link, 1, [0, 1], problem.question(1))
        problem.check(await caller.partials(1), [0, 1], 1)
        assert sum(counter.died for counter in counters._counters) == 0
        link.close()


async def test_bad_values_are_an_answer_that_ends_the_job(tmp_path: Path) -> None:
    parts = parts_of(2)
    problem = Problem(parts)
    other = parts_of(2)
    other[1][0]["y"] = np.full(len(other[1][0]["y"]), 7, "i1")
    async with shelved(tmp_path) as shelf, counting(shelf) as (_, answers):
        await shelf.put("d", other)
        link, caller = visit(answers, problem)
        ask(link, 0, [0, 1], problem.question(0))
        from zkd.errors import BadTraining

        with pytest.raises(BadTraining, match=r"target: row 0 has 7.*\(part 1\)"):
            answers_in(await caller.partials(0), "round", 2, context_in(problem.context))
        link.close()
