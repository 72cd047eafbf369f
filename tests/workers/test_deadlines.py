"""A run ends when its time is over or when it is cancelled, whatever it is doing; nothing else does."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.workers.running import call, is_alive, open_pool, run, until
from zkd.workers import Cancelled, Died, Finished, Pool, TimedOut


@pytest.mark.parametrize("kernel", ["loop", "stick_in_c"])
async def test_a_run_ends_at_its_deadline(tmp_path: Path, kernel: str) -> None:
    async with open_pool(tmp_path, grace_s=60) as pool:
        bystander = asyncio.ensure_future(run(pool, "nap", 0.5))
        began = time.monotonic()
        assert await run(pool, kernel, timeout_s=0.3) == TimedOut(0.3)
        assert 0.29 <= time.monotonic() - began < 5
        assert isinstance(await run(pool, "plus", 1), Finished)
        assert isinstance(await bystander, Finished)


async def test_a_kernel_that_ignores_sigterm_is_killed_after_the_grace(pool: Pool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    began = time.monotonic()
    assert await run(pool, "ignore_sigterm", str(mark), timeout_s=0.3) == TimedOut(0.3)
    assert 0.5 <= time.monotonic() - began < 5
    assert not is_alive(int(mark.read_text()))


async def test_time_in_the_queue_does_not_count(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        outcomes = await asyncio.gather(*(run(pool, "nap", 0.15, timeout_s=0.3) for _ in range(4)))
        assert all(isinstance(outcome, Finished) for outcome in outcomes)


async def test_runs_with_different_deadlines_on_one_worker_keep_their_own(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        assert isinstance(await run(pool, "plus", 1, timeout_s=30), Finished)
        assert await run(pool, "loop", timeout_s=0.1) == TimedOut(0.1)
        assert isinstance(await run(pool, "plus", 1, timeout_s=0.2), Finished)
        assert isinstance(await run(pool, "nap", 0.4, timeout_s=30), Finished)  # outlives the timer before it
        assert isinstance(await run(pool, "nap", 0.4, timeout_s=None), Finished)


async def test_cancel_stops_a_running_kernel_and_says_so(pool: Pool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    running = asyncio.ensure_future(run(pool, "stick_in_c", str(mark), task_id="t-1"))
    bystander = asyncio.ensure_future(run(pool, "nap", 0.3))
    await until(mark.exists)
    assert pool.cancel("t-1")
    outcome = await running
    assert isinstance(outcome, Cancelled)
    assert outcome.run_s > 0
    assert not pool.cancel("t-1")
    assert isinstance(await bystander, Finished)
    assert isinstance(await run(pool, "plus", 1), Finished)


async def test_cancel_takes_a_waiting_run_out_of_the_queue(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        first = asyncio.ensure_future(run(pool, "nap", 0.2))
        second = asyncio.ensure_future(run(pool, "plus", 1, task_id="t-2"))
        third = asyncio.ensure_future(run(pool, "plus", 5))
        await asyncio.sleep(0)
        assert pool.cancel("t-2")
        assert await second == Cancelled(0.0)
        assert isinstance(await first, Finished)
        assert isinstance(await third, Finished)


async def test_cancelling_the_awaiting_task_kills_exactly_its_worker(tmp_path: Path) -> None:
    async with open_pool(tmp_path) as pool:
        mark = tmp_path / "mark"
        running = asyncio.ensure_future(run(pool, "stick_in_c", str(mark)))
        other = asyncio.ensure_future(run(pool, "nap", 0.3))
        await until(mark.exists)
        before = set(pool.pids)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: pool.idle == 1 and len(pool.pids) == 3)
        assert len(before - set(pool.pids)) == 1
        assert isinstance(await other, Finished)


async def test_a_cancelled_waiter_never_runs(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        first = asyncio.ensure_future(run(pool, "nap", 0.1))
        waiter = asyncio.ensure_future(run(pool, "exit_process", 1))
        await asyncio.sleep(0.02)
        before = list(pool.pids)
        waiter.cancel()
        assert isinstance(await first, Finished)
        assert isinstance(await run(pool, "plus", 1), Finished)
        assert pool.pids == before


async def test_first_come_first_served(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        order: list[int] = []

        async def one(number: int) -> None:
            await run(pool, "plus", number)
            order.append(number)

        await asyncio.gather(*(one(number) for number in range(50)))
        assert order == list(range(50))


async def test_never_more_runs_at_a_time_than_the_size(pool: Pool) -> None:
    began = time.monotonic()
    await asyncio.gather(*(run(pool, "nap", 0.1) for _ in range(6)))  # on three warm processes
    assert time.monotonic() - began >= 0.3


async def test_progress_is_told_and_rate_limited(pool: Pool) -> None:
    told: list[tuple[float | None, str | None]] = []
    outcome = await pool.run(call("report", 3000), timeout_s=20, on_progress=lambda *said: told.append(said))
    assert isinstance(outcome, Finished)
    assert told[0] == (0.0, "step 0")
    assert told[-1] == (1.0, "done")
    assert 3 <= len(told) <= outcome.run_s / 0.1 + 3


async def test_the_end_is_reported_once(pool: Pool) -> None:
    told: list[object] = []
    await pool.run(call("report_the_end", 1000), timeout_s=20, on_progress=lambda *said: told.append(said))
    assert len(told) <= 2


async def test_a_thread_that_goes_on_reporting_spoils_nothing(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        told: list[object] = []
        await pool.run(call("report_after_the_end"), timeout_s=20)
        outcomes = [
            await pool.run(call("nap", 0.01), timeout_s=5, on_progress=lambda *s: told.append(s)) for _ in range(30)
        ]
        assert all(isinstance(outcome, Finished) for outcome in outcomes)
        assert told == []


async def test_closing_ends_what_runs_and_what_waits_in_bounded_time(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        stuck = asyncio.ensure_future(run(pool, "ignore_sigterm", str(tmp_path / "mark"), timeout_s=None))
        waiting = asyncio.ensure_future(run(pool, "plus", 1))
        await until((tmp_path / "mark").exists)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert isinstance(await stuck, Cancelled | Died)
    assert await waiting == Cancelled(0.0)
