"""A kernel may do what it likes to its process: one task pays, and the pool is whole again at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.workers.running import Log, descriptors, is_alive, open_pool, run, until
from zkd.workers import Died, Failed, Finished, Pool, TimedOut


@pytest.mark.parametrize(
    ("kernel", "args", "how"),
    [
        ("exit_process", [0], "exited with status 0"),
        ("exit_process", [3], "exited with status 3"),
        ("exit_python", [4], "exited with status 4"),
        ("abort", [], "killed by signal 6 (SIGABRT)"),
        ("segfault", [], "killed by signal 11 (SIGSEGV)"),
        ("kill_itself", [9], "killed by signal 9 (out of memory?)"),
        ("kill_itself", [15], "killed by signal 15 (SIGTERM)"),
        ("close_everything", [], "closed its own socket"),
    ],
)
async def test_a_crash_costs_one_task_and_says_how(pool: Pool, kernel: str, args: list[Any], how: str) -> None:
    bystander = asyncio.ensure_future(run(pool, "nap", 0.3))
    await until(lambda: pool.warm == 3)
    crash = await run(pool, kernel, *args)
    assert isinstance(crash, Died)
    assert crash.how == how
    assert pool.idle >= 1  # at once: the spare has taken over
    assert isinstance(await run(pool, "plus", 1), Finished)
    assert isinstance(await bystander, Finished)


async def test_twenty_crashes_in_a_row_leave_a_whole_pool(pool: Pool) -> None:
    kernels = ["exit_process", "plus"] * 20
    outcomes = await asyncio.gather(*(run(pool, kernel, 1) for kernel in kernels))
    assert sum(isinstance(outcome, Died) for outcome in outcomes) == 20
    assert sum(isinstance(outcome, Finished) for outcome in outcomes) == 20
    await until(lambda: pool.idle == 2, 5.0)
    assert not pool.degraded


async def test_the_stack_of_a_segmentation_fault_is_logged(pool: Pool, log: Log) -> None:
    await run(pool, "segfault", task_id="t-7")
    printed = [fields for event, fields in log.events if event == "kernel.printed"]
    assert any("Segmentation fault" in fields["line"] for fields in printed)
    assert any("unruly.py" in fields["line"] for fields in printed)
    assert {fields["task"] for fields in printed} == {"t-7"}


@pytest.mark.parametrize(
    "garbage",
    ["\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\xff\xff\xff\x7f\x03\x02\x00\x00\x00", "HTTP/1.1 200 OK\r\n\r\n"],
)
async def test_garbage_ends_the_worker_that_sent_it(pool: Pool, garbage: str) -> None:
    outcome = await run(pool, "send_garbage", garbage)
    assert isinstance(outcome, Died)
    assert outcome.how.startswith("sent something that is no frame: ")
    assert isinstance(await run(pool, "plus", 1), Finished)


@pytest.mark.parametrize("part", [3, 1000])
async def test_a_second_answer_is_not_taken_for_the_next_task(tmp_path: Path, part: int) -> None:
    async with open_pool(tmp_path, 1) as pool:
        forger, innocent = await asyncio.gather(run(pool, "answer_twice", part), run(pool, "plus", 40, 2))
        assert isinstance(forger, Finished | Died)
        assert isinstance(innocent, Finished)
        assert innocent.value == b"42"


@pytest.mark.parametrize("seconds", [0, 600])
async def test_what_a_kernel_has_started_dies_with_it(pool: Pool, tmp_path: Path, seconds: float) -> None:
    mark = tmp_path / "pids"
    outcome = await run(pool, "start_child", str(mark), seconds, timeout_s=1.0)
    assert isinstance(outcome, TimedOut if seconds else Died)
    pids = json.loads(mark.read_text())
    await until(lambda: not any(map(is_alive, pids)), 5.0)


async def test_an_exception_is_told_and_the_worker_lives_on(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        before = list(pool.pids)
        outcome = await run(pool, "raise_value_error", "too odd")
        assert isinstance(outcome, Failed)
        assert outcome.kind == "ValueError"
        assert outcome.message == "too odd"
        assert outcome.traceback.startswith("Traceback (most recent call last):\n  File ")
        assert "unruly.py" in outcome.traceback.splitlines()[1]  # not zkd's own frames
        assert set(before) <= set(pool.pids)  # the spare may have come meanwhile


async def test_unprintable_and_endless_messages_are_bounded(pool: Pool) -> None:
    unprintable = await run(pool, "raise_unprintable")
    assert isinstance(unprintable, Failed)
    assert unprintable.message == "(its message cannot be shown: RuntimeError)"
    odd = await run(pool, "raise_odd")
    assert isinstance(odd, Failed)
    assert odd.message == "odd \\ud800 text"
    long = await run(pool, "raise_long")
    assert isinstance(long, Failed)
    assert len(long.message) < 5_000
    assert len(long.traceback) < 20_000


async def test_500_tasks_with_kills_leak_no_descriptor_and_no_process(tmp_path: Path) -> None:
    async with open_pool(tmp_path) as pool:
        await asyncio.gather(*(run(pool, "plus", n) for n in range(20)))
        await until(lambda: pool.warm == 3 and pool.idle == 2)
        before = descriptors()
        for round_number in range(10):
            tasks = [asyncio.ensure_future(run(pool, "plus", n)) for n in range(46)]
            tasks += [asyncio.ensure_future(run(pool, "exit_process", 1)) for _ in range(2)]
            tasks.append(asyncio.ensure_future(run(pool, "loop", timeout_s=0.02)))
            cancelled = asyncio.ensure_future(run(pool, "loop", task_id=f"c-{round_number}"))
            await asyncio.wait(tasks)
            cancelled.cancel()
            await asyncio.wait([cancelled])
        await until(lambda: pool.warm == 3 and pool.idle == 2)
        assert descriptors() == before
        pids = pool.pids
        server = pool.server_pid
    assert server is not None
    await until(lambda: not any(map(is_alive, [*pids, server])), 5.0)


async def test_signals_that_a_worker_shrugs_off(pool: Pool) -> None:
    assert isinstance(await run(pool, "kill_itself", int(signal.SIGINT)), Finished)
    assert isinstance(await run(pool, "kill_itself", int(signal.SIGPIPE)), Finished)


async def test_a_forked_child_that_returns_answers_nobody(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        forked = await run(pool, "fork_and_return")
        assert isinstance(forked, Finished)
        assert forked.value == b'"parent"'
        for number in range(20):
            outcome = await run(pool, "plus", number)
            assert isinstance(outcome, Finished)
            assert outcome.value == str(number).encode()


async def test_an_alarm_left_behind_ends_nobody(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        assert isinstance(await run(pool, "leave_an_alarm"), Finished)
        assert isinstance(await run(pool, "nap", 0.1), Finished)


async def test_a_grandchild_that_escapes_delays_nobody(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        mark = tmp_path / "mark"
        began = time.monotonic()
        assert isinstance(await run(pool, "start_a_daemon", str(mark)), Died)
        assert time.monotonic() - began < 4.0
        os.kill(int(mark.read_text()), signal.SIGKILL)


def test_all_of_it_holds_on_uvloop(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_pool(tmp_path) as pool:
            assert isinstance(await run(pool, "segfault"), Died)
            assert await run(pool, "loop", timeout_s=0.1) == TimedOut(0.1)
            assert isinstance(await run(pool, "zeros", 2_000_000), Finished)
            assert isinstance(await run(pool, "total", list(range(300_000))), Finished)
            assert isinstance(await run(pool, "say", "hello", 100), Finished)
            assert pool.server_pid is not None
            os.kill(pool.server_pid, signal.SIGKILL)
            outcomes = await asyncio.gather(*(run(pool, "plus", number) for number in range(300)))
            assert sum(isinstance(outcome, Finished) for outcome in outcomes) >= 298
            running = asyncio.ensure_future(run(pool, "loop"))
            await until(lambda: pool.idle == 1)
            running.cancel()
            await asyncio.wait([running])
            await until(lambda: pool.idle == 2)

    uvloop.run(scenario())
