"""TLS to a real server: both sides show certificates, on every connection, and a refusal says why."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.faults.certificates import Authority
from zkd.errors import Unavailable
from zkd.zk import Session

if TYPE_CHECKING:
    from pathlib import Path

    from zkd.zk.apache import ApacheServer

pytestmark = pytest.mark.xdist_group("tls")  # shares that group's server with TLS


@pytest.mark.parametrize("new_event_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_client_certificate_is_who_we_are(
    tls_apache: ApacheServer, authority: Authority, new_event_loop: object, zk_root: str
) -> None:
    async def work() -> None:
        tls = authority.client_context("ann")
        async with Session(f"127.0.0.1:{tls_apache.tls_port}", tls=tls) as session:
            await session.connected(10)
            assert ("x509", "CN=ann") in await session.who_am_i()
            await session.create(zk_root, bytes(200_000))
            assert len((await session.get(zk_root)).data) == 200_000

    with asyncio.Runner(loop_factory=new_event_loop) as runner:  # type: ignore[arg-type]
        runner.run(work())


async def test_a_server_of_another_authority_is_not_trusted(
    tls_apache: ApacheServer, authority: Authority, tmp_path: Path
) -> None:
    tls = authority.client_context("bob", trusts=Authority(tmp_path, "another"))
    async with Session(f"127.0.0.1:{tls_apache.tls_port}", tls=tls) as session:
        with pytest.raises(Unavailable, match="certificate verify failed"):
            await session.connected(1)


async def test_a_client_without_a_certificate_is_refused(tls_apache: ApacheServer, authority: Authority) -> None:
    tls = ssl.create_default_context(cafile=str(authority.directory / "authority.pem"))
    async with Session(f"127.0.0.1:{tls_apache.tls_port}", tls=tls) as session:
        with pytest.raises(Unavailable, match=str(tls_apache.tls_port)):
            await session.connected(1)
