"""Every confirmed fault of plain aiozk: our session does not have it, and the test for it bites on aiozk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.clients import Ours
from tests.faults.scenarios import SCENARIOS, world_of

if TYPE_CHECKING:
    from tests.faults.certificates import Authority
    from zkd.zk.apache import ApacheServer

# One worker runs all of these, so that it alone starts the server with TLS.
pytestmark = pytest.mark.xdist_group("tls")


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_ours_survives(scenario: str, tls_apache: ApacheServer, authority: Authority) -> None:
    assert tls_apache.tls_port
    tls = authority.client_context("ann")
    async with world_of(Ours, tls_apache.port, tls_apache.tls_port, tls) as world:
        try:
            await SCENARIOS[scenario](world)
        finally:
            for client in world.clients:
                await client.close()


def test_plain_aiozk_has_every_one_of_the_faults(tls_apache: ApacheServer) -> None:
    """All of them at once, in one process of their own: a client that hangs cannot be closed."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.faults.plain_aiozk", str(tls_apache.port), str(tls_apache.tls_port)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == SCENARIOS.keys()
    shows_nothing = [scenario for scenario, what_went_wrong in found.items() if what_went_wrong is None]
    assert shows_nothing == [], "plain aiozk passes these: they test nothing"
