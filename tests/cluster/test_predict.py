"""Predictions of a whole dataset while nodes are killed and frozen: a dataset with the bits of quiet times, or none."""

from __future__ import annotations

import asyncio
import signal

import numpy as np

from tests.cluster.conftest import Grid
from tests.node.submitter import until
from tests.node.test_predict import MODELS, TABLE
from zkd import codec
from zkd.client import Client
from zkd.client.sending import Progress
from zkd.manifests import Ring


async def test_nodes_killed_and_frozen_in_the_middle_change_no_bit(grid: Grid) -> None:
    model = MODELS["mlp"]
    async with Client(grid.hosts, grid.root) as client:
        await grid.start("a", "b", "c", ZKD_DATA__GRACE_S="60")

        async def are_in_the_ring() -> bool:
            if await grid.user.session.exists(grid.user.paths.ring) is None:
                return False
            return len(codec.decode((await grid.user.session.get(grid.user.paths.ring)).data, Ring).keepers) == 3

        await until(are_in_the_ring, 20.0, "all nodes keep data")
        await client.datasets.put("flowers", TABLE, key="id", parts=32, replicas=2)
        calm = await client.predict(model, "flowers", out="calm")
        for number, victim in enumerate(("a", "leader")):
            name = await grid.leader() if victim == "leader" else victim
            middle = asyncio.Event()

            def tell(now: Progress, middle: asyncio.Event = middle, after: int = 4 + 12 * number) -> None:
                if now.parts_done >= after:
                    middle.set()

            asked = asyncio.create_task(client.predict(model, "flowers", out=f"stormy-{number}", progress=tell))
            await asyncio.wait_for(middle.wait(), 20.0)
            assert not asked.done()
            if victim == "leader":
                grid.nodes[name].signal(signal.SIGSTOP)
            else:
                grid.nodes[name].kill()
            stormy = await asyncio.wait_for(asked, 60.0)
            assert stormy.segments == calm.segments, "the same segments: not a bit is another"
            read = await stormy.read()
            np.testing.assert_array_equal(read["id"], TABLE["id"])
            np.testing.assert_allclose(read["probabilities"], model.probabilities(TABLE), rtol=1e-9)
            if victim == "leader":
                grid.nodes[name].signal(signal.SIGCONT)
            else:
                grid.nodes[name].start()
                await grid.joined(name)
        assert await client.tasks() == []
