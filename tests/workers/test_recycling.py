"""Workers are replaced before they are worn out, and nobody waits for it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

from tests.workers.running import open_pool, run, until
from zkd.workers import Finished, Outcome


def pid_of(outcome: Outcome) -> int:
    assert isinstance(outcome, Finished)
    pid = json.loads(outcome.value or b"")
    assert isinstance(pid, int)
    return pid


async def test_after_so_many_tasks(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1, recycle_tasks=3) as pool:
        pids = []
        for _ in range(10):
            await until(lambda: pool.warm == 2)  # a worker goes on beyond its time until a fresh one stands by
            pids.append(pid_of(await run(pool, "pid")))
        assert max(pids.count(pid) for pid in pids) == 3


async def test_after_so_long(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1, recycle_age_s=0.0) as pool:
        await until(lambda: pool.warm == 2)
        first = pid_of(await run(pool, "pid"))
        await until(lambda: first not in pool.pids and len(pool.pids) == 2)


async def test_when_memory_stays_behind(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1, recycle_growth=50 * 2**20) as pool:
        await until(lambda: pool.warm == 2)
        first = pid_of(await run(pool, "leak", 20))
        assert pid_of(await run(pool, "leak", 20)) == first
        assert pid_of(await run(pool, "leak", 20)) == first
        await until(lambda: first not in pool.pids)
        assert pid_of(await run(pool, "pid")) != first


async def test_memory_that_is_given_back_is_no_reason(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1, recycle_growth=50 * 2**20) as pool:
        first = pid_of(await run(pool, "pid"))
        assert isinstance(await run(pool, "allocate", 200), Finished)
        assert pid_of(await run(pool, "pid")) == first


async def test_under_load_nothing_is_lost_and_the_size_holds(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 2, recycle_tasks=20) as pool:
        outcomes = await asyncio.gather(*(run(pool, "plus", number, 1) for number in range(1000)))
        values = [outcome.value for outcome in outcomes if isinstance(outcome, Finished)]
        assert values == [str(number + 1).encode() for number in range(1000)]
        await until(lambda: pool.warm == 3 and pool.idle == 2)


async def test_no_worker_goes_before_a_fresh_one_has_come(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1, recycle_tasks=1) as pool:
        await until(lambda: pool.warm == 2)
        assert pool.server_pid is not None
        os.kill(pool.server_pid, signal.SIGSTOP)  # none will come now
        async with asyncio.timeout(2.5):
            for number in range(5):
                assert isinstance(await run(pool, "plus", number), Finished)
        os.kill(pool.server_pid, signal.SIGCONT)
        await until(lambda: pool.warm == 2)
