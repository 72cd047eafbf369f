"""Short runs lie ready on a worker's line: quicker, and what happens to one is still that one's affair alone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from functools import partial
from pathlib import Path

import pytest

from tests.workers.running import Log, call, open_pool, run, until
from zkd.workers import Cancelled, Died, Finished, Outcome, Pool, TimedOut, frames
from zkd.workers.brevity import DEPTH_MAX, KERNELS_MAX, LEAD_S, TRUSTED_AFTER, Brevity
from zkd.workers.run import Run
from zkd.workers.worker import State, Worker


async def trusted(pool: Pool) -> None:
    """Let the kernel `short` show that it is."""
    for _ in range(500):
        await run(pool, "short")
        if pool.depth("short") >= 4:
            return
    raise AssertionError("it was never short")


async def test_a_crash_costs_the_one_that_ran_and_the_others_run_elsewhere(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        for place in (0, 2, 3):
            await trusted(pool)
            words = ["exit" if number == place else "" for number in range(4)]
            outcomes = await asyncio.gather(*(run(pool, "short", word) for word in words))
            assert [isinstance(outcome, Died) for outcome in outcomes] == [word == "exit" for word in words]
            assert sum(isinstance(outcome, Finished) for outcome in outcomes) == 3


async def test_who_lies_behind_a_long_run_is_taken_back(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 2) as pool:
        await trusted(pool)
        began = time.monotonic()
        long = [asyncio.ensure_future(run(pool, "short", word)) for word in ("sleep", "")]
        behind = [asyncio.ensure_future(run(pool, "short")) for _ in range(6)]
        await asyncio.wait(behind)
        assert time.monotonic() - began < 0.4
        assert isinstance(await long[0], Finished)
        assert pool.depth("short") < DEPTH_MAX


async def test_one_that_has_not_begun_is_cancelled_without_a_kill(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        await trusted(pool)
        before = set(pool.pids)
        ran: list[int] = []
        runs = [pool.submit(call("short", "sleep"), lambda _: None)]
        runs += [pool.submit(call("short", task_id=f"t-{n}"), lambda _, n=n: ran.append(n)) for n in range(3)]  # type: ignore[misc]
        pool.withdraw(runs[2])
        assert pool.cancel("t-2")
        await until(lambda: pool.idle == 1)
        assert ran in ([2, 0], [0, 2])  # the third was told that it is cancelled
        assert before <= set(pool.pids)


async def test_cancelling_the_one_that_runs_leaves_those_behind(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        await trusted(pool)
        running = asyncio.ensure_future(run(pool, "short", "loop", task_id="stop"))
        behind = [asyncio.ensure_future(run(pool, "short")) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert pool.cancel("stop")
        assert isinstance(await running, Cancelled)
        assert all([isinstance(await one, Finished) for one in behind])


async def test_each_has_its_own_deadline_from_its_own_begin(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        await trusted(pool)
        outcomes = await asyncio.gather(
            run(pool, "short", "sleep", timeout_s=5.0),
            run(pool, "short", timeout_s=0.1),  # waits longer than that
            run(pool, "short", "loop", timeout_s=0.1),
            run(pool, "short", timeout_s=0.1),
        )
        assert [type(outcome) for outcome in outcomes] == [Finished, Finished, TimedOut, Finished]


async def test_what_is_printed_is_told_of_the_right_task(tmp_path: Path, log: Log) -> None:
    async with open_pool(tmp_path, 1, log=log) as pool:
        await trusted(pool)
        await asyncio.gather(*(run(pool, "short", f"print {n}", task_id=f"t-{n}") for n in range(12)))
        printed = [fields for event, fields in log.events if event == "kernel.printed"]
        assert [(fields["task"], fields["line"]) for fields in printed] == [(f"t-{n}", f"print {n}") for n in range(12)]


async def test_large_calls_and_answers_find_their_way_among_small_ones(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 2) as pool:
        for _ in range(200):
            await run(pool, "identity", 1)
        sizes = [10, 30_000, 100_000, 10, 200_000, 10, 10, 70_000] * 20
        outcomes = await asyncio.gather(*(run(pool, "identity", "x" * size) for size in sizes))
        for size, outcome in zip(sizes, outcomes, strict=True):
            assert isinstance(outcome, Finished)
            assert outcome.value is not None
            assert len(outcome.value) == size + 2


@pytest.mark.parametrize("size", [1, 3])
async def test_a_stream_of_short_runs_ends_each_once(tmp_path: Path, size: int) -> None:
    async with open_pool(tmp_path, size, recycle_tasks=300) as pool:
        outcomes = await asyncio.gather(*(run(pool, "plus", number, 1) for number in range(3000)))
        values = [outcome.value for outcome in outcomes if isinstance(outcome, Finished)]
        assert values == [str(number + 1).encode() for number in range(3000)]
        await until(lambda: pool.idle == size)


def test_trust_is_earned_and_lost() -> None:
    brevity = Brevity()
    for _ in range(TRUSTED_AFTER):
        assert brevity.depth("k") == 1
        brevity.ran("k", 1e-5)
    assert brevity.depth("k") == DEPTH_MAX
    brevity.ran("k", LEAD_S / 2)
    assert brevity.depth("k") == 2
    brevity.ran("k", LEAD_S)
    assert brevity.depth("k") == 1
    brevity.ran("k", 1e-5)
    assert brevity.depth("k") == 1  # from the beginning


def test_names_without_end_are_not_all_remembered() -> None:
    brevity = Brevity()
    for number in range(KERNELS_MAX + 10):
        for _ in range(TRUSTED_AFTER):
            brevity.ran(str(number), 1e-5)
    assert brevity.depth("1") > 1
    assert brevity.depth(str(KERNELS_MAX + 5)) == 1


async def test_a_worker_that_ends_before_it_has_taken_anything_leaves_all_of_it_to_others(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        await trusted(pool)
        pid = pool._idle[-1].pid
        os.kill(pid, signal.SIGSTOP)
        runs = [asyncio.ensure_future(run(pool, "short")) for _ in range(4)]
        await until(lambda: any(len(worker.on_line) == 4 for worker in pool._busy))
        os.kill(pid, signal.SIGKILL)
        assert [type(await each) for each in runs] == [Finished] * 4


class Hasty:
    """The daemon's copy of the worker's end; the worker takes a call between two of those that are taken back."""

    def __init__(self, untaken: socket.socket, theirs: socket.socket) -> None:
        self._untaken = untaken
        self._theirs = theirs
        self.packet = b""

    def recv(self, size: int, flags: int) -> bytes:
        packet = self._untaken.recv(size, flags)
        if not self.packet:
            self.packet = self._theirs.recv(frames.PACKET_BYTES_MAX)
        return packet

    def close(self) -> None:
        self._untaken.close()


async def test_what_the_worker_takes_while_others_are_taken_back_keeps_its_own_answer(tmp_path: Path) -> None:
    """Packets come out in their order: the worker may get one from the middle, and its answer is that one's."""
    output, theirs_output = os.pipe()
    outcomes: dict[str, Outcome] = {}
    returned: list[str] = []
    worker = Worker(
        1,
        output,
        blob_path=lambda worker, run: tmp_path / f"{worker}-{run}",
        grace_s=1.0,
        send_signal=lambda number, signal: None,
        ready=lambda worker: None,
        answered=lambda worker, run, outcome, has_output: run.end(outcome),
        freed=lambda worker: None,
        returned=lambda worker, runs: returned.extend(run.call.task_id for run in runs),
        leaving=lambda worker: None,
        gone=lambda worker, how: None,
        stuck=lambda: None,
        printed=lambda worker, line: None,
    )
    calls, answers = (socket.socket(fileno=fd) for fd in worker.line.give_away())
    try:
        answers.sendall(frames.encode(frames.READY, frames.ReadyHeader(os.getpid(), 0)))
        await until(lambda: worker.state is State.IDLE)
        runs = {}
        for name in "abc":
            asked = call("short", name, task_id=name)
            runs[name] = Run(asked, frames.encode_call(asked), 20.0, None, partial(outcomes.__setitem__, name))
            assert worker.start(runs[name])
        hasty = worker.line._untaken = Hasty(worker.line._untaken, calls)  # type: ignore[assignment]
        assert worker.withdraw(runs["c"])
        assert frames.is_same(hasty.packet, runs["b"].frame)
        assert returned == ["a"]
        answers.sendall(frames.encode(frames.VALUE, frames.ValueHeader(0, 0.001, 0, False), b'"b"'))
        await until(lambda: worker.look() or outcomes)
        assert {name: outcome.value for name, outcome in outcomes.items() if isinstance(outcome, Finished)} == {
            "b": b'"b"'
        }
    finally:
        worker.exited("the test is over")
        for end in (calls, answers):
            end.close()
        os.close(theirs_output)
