"""The client on a real Apache ZooKeeper that is killed and comes back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.client.conftest import KERNELS
from tests.client.standin import StandIn
from zkd.client import Client
from zkd.zk.apache import ApacheServer

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_burst_survives_the_death_of_the_server(tmp_path: Path) -> None:
    with ApacheServer(tmp_path) as server:
        async with (
            StandIn(server.connect_string, "/zkd", dict(KERNELS)) as cluster,
            Client(server.connect_string) as client,
        ):
            first = await client.run("square", 2)
            calls = [asyncio.create_task(client.run("square", number)) for number in range(400)]
            await cluster.wait_for(100)
            server.kill()
            calls += [asyncio.create_task(client.run("square", number)) for number in range(400, 500)]
            await asyncio.sleep(0)
            server.restart()
            values = await asyncio.gather(*calls)
        assert [first, *values] == [4, *(number * number for number in range(500))]
        assert len(cluster.seen) == len(set(cluster.seen)) == 501


async def test_map_and_handles_on_a_real_server(apache: ApacheServer, zk_root: str) -> None:
    async with (
        StandIn(apache.connect_string, zk_root, dict(KERNELS)) as cluster,
        Client(apache.connect_string, zk_root) as client,
    ):
        assert await client.map("square", range(3000)) == [number * number for number in range(3000)]
        cluster.hold.add("square")
        handles = await asyncio.gather(*(client.submit("square", number) for number in range(100)))
        assert await handles[0].cancel() is True
        await cluster.release()
        assert await asyncio.gather(*(handle.result(20) for handle in handles[1:])) == [n * n for n in range(1, 100)]
