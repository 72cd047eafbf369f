"""Short runs lie ready on a worker's line: quicker, and what happens to one is still that one's affair alone."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.workers.running import Log, call, open_pool, run, until
from zkd.workers import Cancelled, Died, Finished, Pool, TimedOut
from zkd.workers.brevity import DEPTH_MAX, KERNELS_MAX, LEAD_S, TRUSTED_AFTER, Brevity


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
