"""What tests of several rooms share: a real ZooKeeper, the embedded one, and a root of one's own in either.

A missing Java or ZooKeeper is an error of the run, never a skip: a promise that was not tested is not kept.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from zkd.zk.apache import ApacheServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from zkd.zk.server import EmbeddedServer


@pytest.fixture(scope="session")
def apache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheServer]:
    """A real Apache ZooKeeper, one for each worker of the run. Do not stop or pause this one: start your own."""
    with ApacheServer(tmp_path_factory.mktemp("apache")) as server:
        yield server


@pytest.fixture
async def embedded() -> AsyncIterator[EmbeddedServer]:
    """An embedded server in the test's own event loop: a fresh tree, and all fault switches at hand."""
    from zkd.zk.server import EmbeddedServer

    async with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="session")
def embedded_in_thread() -> Iterator[str]:
    """The connect string of an embedded server in a thread of its own, for clients that block."""
    from zkd.zk.server import serve_in_thread

    with serve_in_thread() as server:
        yield server.connect_string


@pytest.fixture(params=["embedded", "apache"])
def zookeeper(request: pytest.FixtureRequest) -> str:
    """The connect string of a server; the test runs on the embedded one and on the real one. Use `zk_root`."""
    if request.param == "apache":
        server: ApacheServer = request.getfixturevalue("apache")
        return server.connect_string
    connect_string: str = request.getfixturevalue("embedded_in_thread")
    return connect_string


@pytest.fixture
def zk_root() -> str:
    """A path that no other test uses. It does not exist yet."""
    return f"/test-{uuid.uuid4().hex}"
