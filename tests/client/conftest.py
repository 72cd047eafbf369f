"""A client, and a stand-in for the cluster, on an embedded server of the test's own with all its fault switches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.client.standin import StandIn
from zkd.client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zkd.zk.server import EmbeddedServer


def _unlucky(number: int) -> int:
    if number == 13:
        raise ValueError("unlucky")
    return number


KERNELS = {
    "square": lambda x: x * x,
    "add": lambda x, y=0: np.add(x, y),
    "eye": lambda n: np.eye(n),
    "unlucky": _unlucky,
    "same": lambda x: x,
    "nan": lambda: float("nan"),
}


@pytest.fixture
async def cluster(embedded: EmbeddedServer) -> AsyncIterator[StandIn]:
    async with StandIn(embedded.connect_string, "/zkd", dict(KERNELS)) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results go soon after they were read. No node here sends a commit twice, which is what the wait is for."""
    monkeypatch.setattr("zkd.client.dropbox.FORGET_AFTER_S", 0.02)
    monkeypatch.setattr("zkd.client.dropbox.FORGET_AFTER_TIMEOUT_S", -60.0)
    monkeypatch.setattr("zkd.client.dropbox.FORGET_TOGETHER_S", 0.01)


@pytest.fixture
async def client(embedded: EmbeddedServer, cluster: StandIn) -> AsyncIterator[Client]:
    async with Client(embedded.connect_string, connect_timeout_s=5) as client:
        yield client
