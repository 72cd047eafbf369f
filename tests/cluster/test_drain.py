"""An orderly stop takes no new work, loses nothing and charges nobody."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.cluster.conftest import Grid
from tests.cluster.processes import DaemonProcess
from tests.node.submitter import until
from zkd.records import CHARGED


async def test_sigterm_under_load_loses_nothing_and_charges_nothing(grid: Grid) -> None:
    await grid.start("a")
    await grid.start("b")
    ids = [await grid.user.drop({"kernel": "nap", "args": [0.15]}) for _ in range(60)]
    await grid.running_on("b")
    assert await grid.leader() == "a"
    for name in ("b", "a"):  # a follower, then the leader, whose place is taken within a second
        node = grid.nodes[name]
        node.signal(signal.SIGTERM)
        for n in range(10):
            ids.append(await grid.user.drop({"kernel": "nap", "args": [0]}, f"while-{name}-leaves-{n}"))
        assert await asyncio.to_thread(node.wait, 8.0) == 0
        if name == "b":
            await grid.start("c")
        else:
            left = time.monotonic()
            assert await grid.leader(other_than="a") == "c"
            assert time.monotonic() - left < 1.0
    results = await grid.user.results(ids)
    assert {result.status for result in results} == {"done"}
    causes = {attempt.cause for result in results for attempt in result.attempts}
    assert causes <= {"drain"}, causes
    assert {result.attempt for result in results} == {1}
    assert sorted(grid.witness.created) == sorted(ids)
    assert await grid.user.session.children(grid.user.paths.nodes) == ["c"]
    assert await grid.user.session.children(grid.user.paths.statuses) in ([], ["c"])


async def test_what_still_runs_at_the_end_of_the_drain_is_handed_back(grid: Grid) -> None:
    await grid.start("a", ZKD_NODE__DRAIN_TIMEOUT_S="0.5")
    task_id, _ = await interrupted(grid, 1)
    result = await grid.user.result(task_id)
    assert (result.status, result.node, result.attempt) == ("done", "b", 1)
    assert [attempt.cause for attempt in result.attempts] == ["drain"]


async def test_a_second_sigterm_cuts_the_drain_short(grid: Grid) -> None:
    await grid.start("a", ZKD_NODE__DRAIN_TIMEOUT_S="60")
    task_id, took_s = await interrupted(grid, 2)
    assert took_s < 4.0
    result = await grid.user.result(task_id)
    assert (result.status, result.node) == ("done", "b")
    assert not any(attempt.cause in CHARGED for attempt in result.attempts)


async def interrupted(grid: Grid, signals: int) -> tuple[str, float]:
    """A kernel runs on `a` for half a minute, `b` is there, `a` is told to stop; how long that took."""
    trace = grid.directory / "trace"
    task_id = await grid.user.drop({"kernel": "unlucky_nap", "args": [str(trace), 30.0, 0.1]})

    async def is_running() -> bool:
        return trace.exists()

    await until(is_running, 8.0, "the kernel runs")
    await grid.start("b")
    node = grid.nodes["a"]
    started = time.monotonic()
    for _ in range(signals):
        node.signal(signal.SIGTERM)
        await until_log(grid, "a", "daemon.draining")
    assert await asyncio.to_thread(node.wait, 10.0) == 0
    return task_id, time.monotonic() - started


async def test_sigterm_before_zookeeper_is_there_ends_the_daemon_at_once(grid: Grid) -> None:
    node = DaemonProcess("127.0.0.1:1", grid.root, "early", grid.directory, slots=1, timeout_s=2.0)
    grid.nodes["early"] = node
    node.start()
    await until_log(grid, "early", "zookeeper.awaited")
    node.signal(signal.SIGTERM)
    assert await asyncio.to_thread(node.wait, 3.0) == 0


async def until_log(grid: Grid, name: str, words: str) -> None:
    async def is_logged() -> bool:
        return words in grid.nodes[name].log()

    await until(is_logged, 8.0, f"{name} logs {words}")
