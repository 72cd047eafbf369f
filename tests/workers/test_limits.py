"""What a worker's process is allowed, and what surrounds it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from tests.workers.running import Log, open_pool, run
from zkd.workers import Died, Failed, Finished, Pool


async def test_a_worker_is_confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    async with open_pool(tmp_path) as pool:
        outcome = await run(pool, "surroundings")
        assert isinstance(outcome, Finished)
        assert outcome.value is not None
        seen = json.loads(outcome.value)
    assert seen["blas"] == ["1"] * 4
    assert seen["threads"] == 1
    assert seen["nice"] >= os.nice(0) + 5 or seen["nice"] == 19
    assert seen["oom_score"] >= 500
    assert seen["is_group_leader"]
    assert seen["core"] == 0
    assert seen["files"] <= 4096
    assert seen["stdin"] == "/dev/null"
    assert seen["notify"] is None
    assert seen["inheritable"] == []
    # Its own two sockets, its output twice, and where it reads its memory; nothing of the pool's or the fork server's.
    assert [name if name[0] != "/" or name == "/dev/null" else "statm" for name in seen["fds"]] == [
        "/dev/null",
        "statm",
        "pipe",
        "pipe",
        "socket",
        "socket",
    ]


async def test_blas_threads_are_a_setting(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1, blas_threads=2) as pool:
        outcome = await run(pool, "surroundings")
        assert isinstance(outcome, Finished)
        assert outcome.value is not None
        assert json.loads(outcome.value)["blas"] == ["2"] * 4


async def test_workers_do_not_share_their_random_numbers(pool: Pool) -> None:
    outcomes = await asyncio.gather(run(pool, "surroundings"), run(pool, "surroundings"))
    values = [json.loads(outcome.value or b"") for outcome in outcomes if isinstance(outcome, Finished)]
    assert values[0]["random"] != values[1]["random"]


async def test_a_memory_hog_fails_and_its_worker_lives_on(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        before = list(pool.pids)
        assert isinstance(await run(pool, "allocate", 32, memory=64 * 2**20), Finished)
        hog = await run(pool, "allocate", 128, memory=64 * 2**20)
        assert isinstance(hog, Failed)
        assert hog.kind == "MemoryError"
        assert "128. MiB" in hog.message
        assert hog.message.endswith("(this attempt may allocate 67108864 bytes)")
        # The limit was that run's alone.
        assert isinstance(await run(pool, "allocate", 128), Finished)
        assert pool.pids == before


async def test_the_pools_limit_holds_where_a_call_has_none(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1, memory=64 * 2**20) as pool:
        hog = await run(pool, "allocate", 128)
        assert isinstance(hog, Failed | Died)
        assert isinstance(await run(pool, "allocate", 128, memory=256 * 2**20), Finished)


async def test_a_memory_map_is_not_counted(tmp_path: Path) -> None:
    import numpy

    numpy.save(tmp_path / "big.npy", numpy.ones(32 * 2**20 // 8))
    sha256 = "0" * 64
    reference = {"blob": sha256, "size": (tmp_path / "big.npy").stat().st_size, "format": "npy"}
    async with open_pool(tmp_path, 1) as pool:
        outcome = await run(pool, "total", reference, files={sha256: str(tmp_path / "big.npy")}, memory=8 * 2**20)
        assert isinstance(outcome, Finished), outcome
        assert json.loads(outcome.value or b"") == 32 * 2**20 // 8


async def test_what_a_kernel_prints_is_logged_with_its_task(pool: Pool, log: Log) -> None:
    await run(pool, "say", "hello", 2, task_id="t-1")
    assert log.lines("kernel.printed") == ["hello", "hello", "from C"]
    assert {fields["task"] for event, fields in log.events if event == "kernel.printed"} == {"t-1"}


async def test_endless_printing_is_bounded_and_stops_nobody(pool: Pool, log: Log) -> None:
    outcome = await run(pool, "say", "x" * 1000, 3000)
    assert isinstance(outcome, Finished)
    lines = log.lines("kernel.printed")
    assert sum(map(len, lines)) < 70_000
    assert lines[-1].endswith("the rest is dropped)")
    await run(pool, "say", "again", 1)
    assert log.lines("kernel.printed")[-2:] == ["again", "from C"]
