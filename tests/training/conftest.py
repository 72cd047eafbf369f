"""Three nodes with a dataset on them, and jobs that can be followed and disturbed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sklearn.datasets import load_digits

from tests.cluster.conftest import Grid, open_grid
from tests.node.submitter import until
from zkd import codec
from zkd.client import Client
from zkd.errors import NoNode
from zkd.jobs import DONE, Coordinator, JobState
from zkd.manifests import Ring
from zkd.paths import JobId
from zkd.zk.apache import ApacheServer

X, Y = load_digits(return_X_y=True)
PARTS = 16
SETTINGS = {
    "ZKD_WORKERS__MODULES": "",
    "ZKD_TRAINING__CHECKPOINT_S": "0.3",
    "ZKD_DATA__GRACE_S": "60",
    "ZKD_NODE__DRAIN_TIMEOUT_S": "5",
}
# Some hundred rounds of some milliseconds each, so that there is time to disturb them.
LONG = {"model": "softmax", "dataset": "digits", "target": "y", "optimizer": "gd", "max_rounds": 160}
SHORT = {"model": "linear", "dataset": "digits", "target": "y", "l2": 1.0}


@dataclass
class School:
    grid: Grid
    client: Client

    async def drop(self, job_id: JobId, **terms: Any) -> None:
        text = json.dumps(terms).encode()
        await self.client.session.create(self.client.paths.job(job_id), text)

    async def want(self, job_id: JobId, desired: str) -> None:
        path = self.client.paths.job(job_id)
        words = json.loads((await self.client.session.get(path)).data)
        await self.client.session.set(path, json.dumps(words | {"desired": desired}).encode(), -1)

    async def delete(self, job_id: JobId) -> None:
        await self.client.session.delete(self.client.paths.job(job_id), -1)

    async def state(self, job_id: JobId) -> JobState | None:
        try:
            return codec.decode((await self.client.session.get(self.client.paths.job_state(job_id))).data, JobState)
        except NoNode:
            return None

    async def holder(self, job_id: JobId) -> Coordinator | None:
        try:
            found = await self.client.session.get(self.client.paths.coordinator(job_id))
        except NoNode:
            return None
        return codec.decode(found.data, Coordinator)

    async def reached(self, job_id: JobId, number: int, within_s: float = 30.0) -> JobState:
        """Wait for a round to be told in the tree."""

        async def is_so() -> JobState | None:
            state = await self.state(job_id)
            return state if state is not None and state.progress.round >= number else None

        state = await until(is_so, within_s, f"{job_id} is at round {number}")
        assert state.phase not in DONE, "it was over before it could be disturbed"
        return state

    async def phase(self, job_id: JobId, phase: str, within_s: float = 60.0) -> JobState:
        async def is_so() -> JobState | None:
            state = await self.state(job_id)
            if state is not None and state.phase in DONE and state.phase != phase:
                raise AssertionError(f"{job_id} is {state.phase}: {state.error}")
            return state if state is not None and state.phase == phase else None

        return await until(is_so, within_s, f"{job_id} is {phase}")

    async def coordinator(self, job_id: JobId, other_than: str | None = None, within_s: float = 20.0) -> str:
        async def who() -> str | None:
            found = await self.holder(job_id)
            return found.node if found is not None and found.node != other_than else None

        return await until(who, within_s, f"{job_id} has a coordinator other than {other_than}")

    async def files(self, job_id: JobId) -> dict[str, set[str]]:
        """Node -> what lies on its disk for a job."""
        return {
            name: {path.name for path in (node.data_dir / "checkpoints" / job_id).glob("*")}
            for name, node in self.grid.nodes.items()
            if (node.data_dir / "checkpoints" / job_id).exists()
        }

    async def rounds(self, job_id: JobId, number: int, within_s: float = 30.0) -> str:
        """Wait for a round, as the coordinator tells it; who that is."""
        job = await self.client.jobs.get(job_id)
        async with asyncio.timeout(within_s), aclosing(job.rounds(number - 1)) as told:
            async for each in told:
                assert each.number >= number
                break
        return await self.coordinator(job_id)

    async def heal(self) -> None:
        """Start the nodes that are not there."""
        for node in self.grid.nodes.values():
            if node.process.poll() is not None:
                node.start()
        for name in self.grid.nodes:
            await self.grid.joined(name)

    def children(self, node: str, named: str) -> list[int]:
        """The processes of this name that a node's daemon has started."""
        parent = self.grid.nodes[node].process.pid
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                head, _, rest = stat.read_text().rpartition(")")
            except OSError:
                continue
            if int(rest.split()[1]) == parent and head.partition("(")[2].startswith(named):
                found.append(int(stat.parent.name))
        return found

    def kill_brains(self, node: str, number: signal.Signals = signal.SIGKILL) -> int:
        brains = self.children(node, "zkd-brain")
        for pid in brains:
            os.kill(pid, number)
        return len(brains)


async def in_the_ring(grid: Grid, count: int) -> None:
    async def are_in() -> bool:
        if await grid.user.session.exists(grid.user.paths.ring) is None:
            return False
        ring = codec.decode((await grid.user.session.get(grid.user.paths.ring)).data, Ring)
        return len(ring.keepers) == count

    await until(are_in, 20.0, f"{count} nodes keep data")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def school(apache: ApacheServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[School]:
    """One cluster for the tests of a module; each leaves all of its nodes there."""
    root = f"/test-{uuid.uuid4().hex}"
    async with open_grid(apache.connect_string, root, tmp_path_factory.mktemp("school")) as grid:
        await grid.start("a", "b", "c", slots=1, **SETTINGS)
        await in_the_ring(grid, 3)
        async with Client(apache.connect_string, root) as client:
            await client.datasets.put("digits", {"x": X, "y": Y}, parts=PARTS, replicas=2)
            yield School(grid, client)
