"""What the tests of the client share: a session on the run's real server, a place of its own, a fault proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.certificates import Authority
from tests.faults.proxy import Proxy
from zkd.zk import Session
from zkd.zk.apache import ApacheServer, Flags

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


@pytest.fixture
async def proxy(apache: ApacheServer) -> AsyncIterator[Proxy]:
    async with Proxy(apache.port) as proxy:
        yield proxy


@pytest.fixture
def session(apache: ApacheServer) -> Callable[[], Session]:
    """Make a session that goes straight to the server."""
    return lambda: Session(apache.connect_string, timeout_s=10)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def tls_apache(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheServer]:
    """A real server that speaks TLS on its `tls_port` and demands client certificates there."""
    with ApacheServer(tmp_path_factory.mktemp("tls"), flags=Flags(tls=authority.server_stores())) as server:
        yield server
