"""Keepers as processes over a real ZooKeeper: killed, without ZooKeeper, without room, and all copies come back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.disks import fill, free, mounted
from tests.cluster.conftest import Grid, open_grid
from tests.node.datasets import remove
from tests.node.depot import Depot
from tests.node.submitter import until
from zkd.zk.apache import ApacheServer

SLOWLY = "2MiB"  # a second, so that a repair takes seconds


@pytest.fixture
def server(tmp_path: Path) -> AsyncIterator[ApacheServer]:
    (tmp_path / "zookeeper").mkdir()
    with ApacheServer(tmp_path / "zookeeper") as server:
        yield server


def depot_of(grid: Grid) -> Depot:
    return Depot(grid.user, grid.directory, lambda node: grid.directory / f"{node}-data")


async def start(grid: Grid, *names: str, grace_s: float = 2.0, repair: str = "100MiB") -> None:
    await grid.start(*names, slots=1, ZKD_DATA__GRACE_S=str(grace_s), ZKD_DATA__REPAIR_BYTES_S=repair)


async def begun(depot: Depot, node: str, *, count: int = 1) -> None:
    """Wait until a node has some of its segments, and not all of them."""

    async def is_so() -> bool:
        here = depot.lying(node)
        return count <= len(here & await depot.on(node))

    await until(is_so, 20.0, f"{node} has begun")


async def test_a_keeper_that_is_killed_is_replaced_and_may_come_back(grid: Grid) -> None:
    depot = depot_of(grid)
    await start(grid, "a", "b", "c", "d")
    await depot.ringed("a", "b", "c", "d")
    await depot.put(parts=16, rows=5_000)
    await depot.put(version=2, parts=16, rows=5_000)
    await depot.settled("a", "b", "c", "d", is_tidy=True)
    grid.nodes["d"].kill()
    await depot.ringed("a", "b", "c", "d", lost=("d",))
    await depot.ringed("a", "b", "c")
    await depot.settled("a", "b", "c", within_s=30.0)
    await start(grid, "d")
    await depot.ringed("a", "b", "c", "d")
    await depot.settled("a", "b", "c", "d", is_tidy=True, within_s=40.0)
    assert "segment.fetched" not in grid.nodes["d"].log()  # what it had kept was still good


async def test_kill_9_in_the_middle_of_a_repair_costs_time_alone(grid: Grid) -> None:
    depot = depot_of(grid)
    await start(grid, "a", "b", "c", grace_s=60.0)
    await depot.ringed("a", "b", "c")
    await depot.put(parts=16, rows=40_000)
    await depot.settled("a", "b", "c")
    dice = random.Random(4)
    for cycle in range(4):
        await start(grid, "d", grace_s=60.0, repair=SLOWLY)
        await depot.ringed("a", "b", "c", "d")
        await begun(depot, "d", count=cycle)
        await asyncio.sleep(dice.uniform(0, 1))
        grid.nodes["d"].kill()
        whole = {each for each in depot.lying("d") if "d" in depot.copies(each, "d")}
        assert whole == depot.lying("d")  # what has its name is complete, whenever we look
    await start(grid, "d", grace_s=60.0)
    await depot.ringed("a", "b", "c", "d")
    await depot.settled("a", "b", "c", "d", within_s=30.0)
    assert depot.lying("d", "segments.incoming") == set()
    assert depot.lying("d", "segments.bad") == set()


async def test_both_ends_of_a_repair_are_killed_again_and_again(grid: Grid) -> None:
    """Sources, too: whoever is left has every byte, and all copies come back."""
    depot = depot_of(grid)
    await start(grid, "a", "b", "c", repair=SLOWLY)
    await depot.ringed("a", "b", "c")
    await depot.put(parts=8, rows=20_000, replicas=2)
    await depot.settled("a", "b", "c")
    dice = random.Random(9)
    await start(grid, "d", repair=SLOWLY)
    for _ in range(4):
        victim = dice.choice("abcd")
        grid.nodes[victim].kill()
        await asyncio.sleep(dice.uniform(0, 3.0))  # at times longer than the grace
        for made in depot.made.values():
            assert depot.copies(made.id, "abcd"), "no good copy is left"
        await start(grid, victim, repair=SLOWLY)
        await asyncio.sleep(dice.uniform(0, 2.0))
    await depot.ringed("a", "b", "c", "d")
    await depot.settled("a", "b", "c", "d", is_tidy=True, within_s=60.0)


async def test_zookeeper_may_go_away_in_the_middle(server: ApacheServer, tmp_path: Path) -> None:
    async with open_grid(server.connect_string, "/zkd", tmp_path) as grid:
        depot = depot_of(grid)
        await start(grid, "a", "b", "c")
        await depot.ringed("a", "b", "c")
        await depot.put(parts=16, rows=20_000)
        await depot.settled("a", "b", "c")
        await start(grid, "d", repair=SLOWLY)
        await depot.ringed("a", "b", "c", "d")
        await begun(depot, "d")
        server.kill()
        there = {node: depot.lying(node) | depot.lying(node, "segments.trash") for node in "abc"}
        await asyncio.sleep(8.0)  # longer than sessions, and than both times of grace
        assert {node: depot.lying(node) | depot.lying(node, "segments.trash") for node in "abc"} == there
        server.start()
        await asyncio.to_thread(server.wait_until_serving)
        await depot.settled("a", "b", "c", "d", is_tidy=True, within_s=60.0)


async def test_a_keeper_without_room_says_so_and_goes_on_when_there_is(grid: Grid) -> None:
    depot = depot_of(grid)
    await start(grid, "a", "b")
    await depot.ringed("a", "b")
    await depot.put(parts=16, rows=20_000)
    await depot.settled("a", "b")
    disk = grid.directory / "c-data"
    with mounted(disk, megabytes=64, is_durable=False) as is_there:
        assert is_there, "this needs root and mount, as the chaos tests do"
        await start(grid, "c")
        fill(disk)
        await depot.ringed("a", "b", "c")

        async def is_said() -> bool:
            return "segments.not_written" in grid.nodes["c"].log()

        await until(is_said, 15.0, "c says that it has no room")
        await asyncio.sleep(5.0)
        for made in depot.made.values():
            assert depot.copies(made.id, "ab") == {"a", "b"}  # nobody lets go for its sake
        free(disk)
        await depot.settled("a", "b", "c", is_tidy=True, within_s=40.0)
        grid.nodes["c"].kill()


async def test_drain_and_rm_over_processes(grid: Grid) -> None:
    depot = depot_of(grid)
    await start(grid, "a", "b", "c", "d", grace_s=1.0)
    await depot.ringed("a", "b", "c", "d")
    await depot.put(parts=16, rows=5_000)
    await depot.settled("a", "b", "c", "d")
    await grid.user.set_state("c", "draining")
    await depot.ringed("a", "b", "d")
    await depot.settled("a", "b", "c", "d", is_tidy=True, within_s=30.0)

    async def is_empty() -> bool:
        return not depot.lying("c") and not depot.lying("c", "segments.trash")

    await until(is_empty, 15.0, "c is empty")
    del depot.parts["d", 1]
    await remove(grid.user.session, grid.user.paths.dataset("d"))
    await grid.user.gone(f"{grid.user.paths.holdings}/d")
    assert set(depot.made) == depot.lying("a") | depot.lying("b") | depot.lying("d")  # for an hour
