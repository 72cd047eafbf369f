"""A job while its ensemble loses its leader: three real servers, a data plane with TLS, rows that lie at a URL."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.cluster.conftest import open_grid
from tests.faults.certificates import Authority
from tests.training.conftest import LONG, PARTS, SETTINGS, School, X, Y, in_the_ring
from zkd.client import Client
from zkd.zk.apache import Flags, ensemble

PATIENT = Flags(config={"syncLimit": "10", "initLimit": "25"})  # a loaded machine is no lost server


async def test_a_lost_leader_of_the_ensemble_changes_no_bit(tmp_path: Path) -> None:
    authority, store = Authority(tmp_path), tmp_path / "store"
    store.mkdir()
    with ensemble(3, tmp_path, flags=PATIENT) as three:
        async with open_grid(three.connect_string, "/zkd", tmp_path) as grid:
            authority.client_context("node")
            tls = {"CA": tmp_path / "authority.pem", "CERT": tmp_path / "node.pem"}
            settings = SETTINGS | {f"ZKD_NODE__TLS__{what}": str(path) for what, path in tls.items()}
            await grid.start("a", "b", slots=1, timeout_s=3.0, ZKD_DATA__STORES=f"file://{store}", **settings)
            await in_the_ring(grid, 2)
            secret = authority.client_context("me")
            async with Client(three.connect_string, "/zkd", connect_timeout_s=20.0, data_tls=secret) as client:
                school = School(grid, client)
                await client.datasets.put("digits", {"x": X, "y": Y}, parts=PARTS, store=f"file://{store}")
                files = []
                for job_id in ("quiet", "disturbed"):
                    await school.drop(job_id, **LONG | {"max_rounds": 100})
                    if job_id == "disturbed":
                        await school.rounds(job_id, 30)
                        leader = await asyncio.to_thread(three.leader)
                        leader.kill()
                    async with asyncio.timeout(60.0):
                        files.append(await (await client.jobs.get(job_id)).model_file())
                assert files[0] == files[1]
