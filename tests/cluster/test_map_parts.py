"""Tasks over all parts of a dataset while nodes and leaders are killed: each part counts once, as numpy says."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from tests.cluster.conftest import Grid
from tests.node.submitter import until
from zkd import codec
from zkd.arrays import to_json
from zkd.client import Client
from zkd.client.dataset import Dataset
from zkd.manifests import Ring

X, Y = load_digits(return_X_y=True)


async def kept(grid: Grid, client: Client, parts: int = 32, replicas: int = 2) -> Dataset:
    await grid.start("a", "b", "c", ZKD_WORKERS__MODULES="mischief,parted", ZKD_DATA__GRACE_S="60")

    async def are_in_the_ring() -> bool:
        if await grid.user.session.exists(grid.user.paths.ring) is None:
            return False
        ring = codec.decode((await grid.user.session.get(grid.user.paths.ring)).data, Ring)
        return len(ring.keepers) == 3

    await until(are_in_the_ring, 20.0, "all nodes keep data")
    return await client.datasets.put("digits", {"x": X, "y": Y}, parts=parts, replicas=replicas)


async def no_task_is_left(client: Client) -> bool:
    return await client.tasks() == []


async def test_a_killed_node_costs_no_part(grid: Grid) -> None:
    async with Client(grid.hosts, grid.root) as client:
        made = await kept(grid, client)
        calm = await client.map_parts("slow_sum", made, 0.0, columns=["x"])
        asked = asyncio.create_task(client.map_parts("slow_sum", made, 0.2, columns=["x"]))
        leader = await grid.leader()
        other = next(name for name in grid.nodes if name != leader)
        await grid.running_on(other)
        grid.nodes[other].kill()
        assert to_json(await asked) == to_json(calm), "not a bit is another"
        assert sum(calm) == X.sum()


async def test_a_killed_leader_has_its_parts_taken_over(grid: Grid) -> None:
    async with Client(grid.hosts, grid.root) as client:
        made = await kept(grid, client, parts=64)
        for moment_s in (0.0, 0.03, 0.1, 0.5):
            leader = await grid.leader()
            asked = asyncio.create_task(client.map_parts("slow_sum", made, 0.05, columns=["x"], combine="numpy.sum"))
            await asyncio.sleep(moment_s)
            grid.nodes[leader].kill()
            assert await asked == X.sum()
            grid.nodes[leader].start()
            await grid.joined(leader)
            await until(lambda: no_task_is_left(client), 10.0, "no task is left")


async def test_results_do_not_depend_on_what_happens_meanwhile(grid: Grid) -> None:
    """Nodes are killed and frozen at random while summaries are made: each equals that of quiet times, bit for bit."""
    rng = random.Random(7)
    calls: list[tuple[str, tuple[str, ...], str, dict[str, Any]]] = [
        ("moments", ("x", "y"), "combine_moments", {"cross": True}),
        ("quantile_sketch", ("x",), "combine_quantile_sketches", {"size": 64}),
        ("group_sums", ("y", "y"), "combine_group_sums", {}),
        ("much", ("rows",), "add_all", {}),
    ]
    async with Client(grid.hosts, grid.root) as client:
        made = await kept(grid, client)
        calls_of = {
            kernel: lambda kernel=kernel, columns=columns, combine=combine, options=options: client.map_parts(  # type: ignore[misc]
                kernel, made, columns=columns, combine=combine, **options
            )
            for kernel, columns, combine, options in calls
        }
        calm = {kernel: to_json(await call()) for kernel, call in calls_of.items()}
        moments = await calls_of["moments"]()
        np.testing.assert_allclose(moments["mean"], np.column_stack([X, Y]).mean(axis=0), rtol=1e-12, atol=1e-15)
        until_s = time.monotonic() + 14.0
        rounds = 0

        async def work() -> None:
            nonlocal rounds
            while time.monotonic() < until_s:
                for kernel, call in calls_of.items():
                    assert to_json(await call()) == calm[kernel], kernel
                    rounds += 1

        async def break_things() -> None:
            while time.monotonic() < until_s - 5.0:
                await asyncio.sleep(rng.uniform(0.2, 1.0))
                name = rng.choice(sorted(grid.nodes))
                if rng.random() < 0.5:
                    grid.nodes[name].kill()
                    grid.nodes[name].start()
                    await grid.joined(name)
                else:
                    grid.nodes[name].signal(signal.SIGSTOP)
                    await asyncio.sleep(rng.uniform(0.1, 3.0))
                    grid.nodes[name].signal(signal.SIGCONT)

        async with asyncio.timeout(120.0), asyncio.TaskGroup() as group:
            group.create_task(work())
            group.create_task(break_things())
        assert rounds >= 4
        await until(lambda: no_task_is_left(client), 20.0, "no task is left")
