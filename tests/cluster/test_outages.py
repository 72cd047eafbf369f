"""ZooKeeper goes away, in part or as a whole: nothing is lost, nothing is done twice, it goes on by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster.conftest import TIMEOUT_S, Grid, open_grid
from zkd.zk.apache import ApacheServer, Ensemble, Flags, ensemble

# Elections and the detection of dead peers follow these; the defaults are made for slower networks.
FAST = Flags(config={"syncLimit": "10", "initLimit": "25"})


@pytest.fixture
def server(tmp_path: Path) -> AsyncIterator[ApacheServer]:
    (tmp_path / "zookeeper").mkdir()
    with ApacheServer(tmp_path / "zookeeper") as server:
        yield server


@pytest.fixture
def three(tmp_path: Path) -> AsyncIterator[Ensemble]:
    with ensemble(3, tmp_path, flags=FAST) as servers:
        yield servers


async def steady_load(grid: Grid, prefix: str, until_done: asyncio.Event, run_s: float = 0.05) -> list[str]:
    """Drop tasks all the time, whatever happens; their ids."""
    ids: list[str] = []
    while not until_done.is_set():
        ids.append(f"{prefix}-{len(ids)}")
        await grid.user.drop_for_sure({"kernel": "nap", "args": [run_s]}, ids[-1])
        await asyncio.sleep(0.02)
    return ids


async def all_done_once(grid: Grid, ids: list[str], within_s: float = 25.0) -> None:
    results = await grid.user.results(ids, within_s)
    assert {result.status for result in results} == {"done"}
    assert {attempt.cause for result in results for attempt in result.attempts} <= {"node_loss"}
    twice = [task_id for task_id in grid.witness.created if grid.witness.created.count(task_id) > 1]
    assert twice == []
    assert all(node.process.poll() is None for node in grid.nodes.values())


async def test_work_goes_on_by_itself_after_a_restart_of_zookeeper(server: ApacheServer, tmp_path: Path) -> None:
    async with open_grid(server.connect_string, "/zkd", tmp_path) as grid:
        await grid.start("a", "b")
        trace = tmp_path / "trace"
        ids = [await grid.user.drop({"kernel": "nap", "args": [1.0, str(trace)]}) for _ in range(4)]
        ids += [await grid.user.drop({"kernel": "nap", "args": [0.05]}) for _ in range(40)]
        for name in ("a", "b"):
            await grid.running_on(name)
        server.kill()
        await asyncio.sleep(0.5)
        server.start()
        await asyncio.to_thread(server.wait_until_serving)
        await all_done_once(grid, ids)
        results = await grid.user.results(ids)
        assert [result.attempts for result in results] == [[]] * len(ids)  # the sessions survived, and so did the work
        assert len(trace.read_text().split()) == 4


async def test_work_goes_on_by_itself_after_a_long_outage(server: ApacheServer, tmp_path: Path) -> None:
    async with open_grid(server.connect_string, "/zkd", tmp_path) as grid:
        await grid.start("a", "b")
        ids = [await grid.user.drop({"kernel": "nap", "args": [0.3]}) for _ in range(30)]
        await grid.running_on("a")
        server.pause()
        await asyncio.sleep(2 * TIMEOUT_S)
        server.resume()
        ids += [f"after-{n}" for n in range(5)]
        for task_id in ids[-5:]:
            await grid.user.drop_for_sure({"kernel": "nap", "args": [0]}, task_id)
        await all_done_once(grid, ids)
        for name in ("a", "b"):
            await grid.user.result(await grid.user.drop({"kernel": "nap", "args": [0], "node": name}))


async def test_cancelling_during_an_outage_takes_effect_after_it(server: ApacheServer, tmp_path: Path) -> None:
    """The daemons hear of it only when they are back: by the picture before and the one after."""
    async with open_grid(server.connect_string, "/zkd", tmp_path) as grid:
        await grid.start("a", slots=1)
        trace = tmp_path / "trace"
        running = await grid.user.drop({"kernel": "nap", "args": [60, str(trace)]})
        queued = await grid.user.drop({"kernel": "nap", "args": [60]})
        await grid.running_on("a")
        while not trace.exists():
            await asyncio.sleep(0.02)
        grid.nodes["a"].pause()
        for task_id in (running, queued):
            assert await grid.user.cancel(task_id)
        server.kill()
        grid.nodes["a"].resume()
        server.start()
        await asyncio.to_thread(server.wait_until_serving)
        results = await grid.user.results([running, queued])
        assert [result.status for result in results] == ["cancelled", "cancelled"]
        assert (await grid.user.do("nap", 0)).status == "done"


async def test_each_server_of_three_can_be_restarted_killed_and_frozen(three: Ensemble, tmp_path: Path) -> None:
    async with open_grid(three.connect_string, "/zkd", tmp_path) as grid:
        await grid.start("a", "b", "c", slots=1, timeout_s=3.0)
        done = asyncio.Event()
        load = asyncio.create_task(steady_load(grid, "s", done))
        for server in three.servers:  # one after the other, so that every daemon loses its connection
            await asyncio.to_thread(server.restart)
        leader = three.leader()
        leader.kill()
        await asyncio.to_thread(three.leader)
        leader.start()
        await asyncio.to_thread(leader.wait_until_serving)
        follower = three.followers()[0]
        follower.pause()
        await asyncio.sleep(2.0)
        follower.resume()
        await asyncio.sleep(0.5)
        done.set()
        ids = await load
        assert len(ids) > 50
        await all_done_once(grid, ids)


async def test_without_a_quorum_nothing_happens_and_then_everything(three: Ensemble, tmp_path: Path) -> None:
    async with open_grid(three.connect_string, "/zkd", tmp_path) as grid:
        await grid.start("a", "b", timeout_s=3.0)
        trace = tmp_path / "trace"
        ids = [await grid.user.drop({"kernel": "note", "args": [str(trace), f"{n}"]}) for n in range(20)]
        ids += [await grid.user.drop({"kernel": "nap", "args": [0.5]}) for _ in range(8)]
        lost = three.servers[:2]
        for server in lost:
            server.kill()
        started = time.monotonic()
        await asyncio.sleep(1.5)
        for server in lost:
            server.start()
        for server in three.servers:
            await asyncio.to_thread(server.wait_until_serving)
        await all_done_once(grid, ids)
        assert time.monotonic() - started < 25.0
        assert set(trace.read_text().split()) == {f"{n}" for n in range(20)}
