"""What tests of several rooms share: a real ZooKeeper, the embedded one, and a root of one's own in either.

A missing Java or ZooKeeper is an error of the run, never a skip: a promise that was not tested is not kept.
"""

from __future__ import annotations

import uuid
import zlib
from typing import TYPE_CHECKING

import pytest

from zkd.zk.apache import ApacheServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from zkd.zk.server import EmbeddedServer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--both-servers", action="store_true", help="run tests of nodes on both ZooKeeper servers")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of nodes run on one of the two servers, always the same one, half of them on each.

    That both servers answer alike is for the tests of the servers themselves, which run on both.
    """
    if not config.getoption("--both-servers"):
        left = [item for item in items if not _is_spared(item)]
        config.hook.pytest_deselected(items=[item for item in items if _is_spared(item)])
        items[:] = left


def _is_spared(item: pytest.Item) -> bool:
    if not item.nodeid.startswith("tests/node/") or not isinstance(item, pytest.Function):
        return False
    server = item.callspec.params.get("zookeeper") if hasattr(item, "callspec") else None
    if server is None or any("zookeeper" in marker.args[0] for marker in item.iter_markers("parametrize")):
        return False
    chosen = ("embedded", "apache")[zlib.crc32(item.originalname.encode()) % 2]
    return bool(server != chosen)


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
