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

# One worker runs all of these, so that it alone starts the server with TLS and the process with aiozk.
pytestmark = pytest.mark.xdist_group("aiozk faults")


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


@pytest.fixture(scope="module")
def plain_aiozk(tls_apache: ApacheServer) -> dict[str, str | None]:
    """What went wrong in each scenario on plain aiozk; all of them at once, in one process of their own."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.faults.plain_aiozk", str(tls_apache.port), str(tls_apache.tls_port)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_plain_aiozk_has_the_fault(scenario: str, plain_aiozk: dict[str, str | None]) -> None:
    assert plain_aiozk[scenario] is not None, "plain aiozk passes: this scenario shows nothing"
