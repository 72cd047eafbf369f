"""A session that ends again before it was ever established: the next one follows, and nobody falls over it."""

from __future__ import annotations

import asyncio

from zkd.zk import Session
from zkd.zk.server import EmbeddedServer
from zkd.zk.server.wire import Op


async def test_a_session_that_ends_before_it_was_established_is_followed_by_another(embedded: EmbeddedServer) -> None:
    sessions = embedded.core.sessions.by_id
    async with Session(embedded.connect_string, timeout_s=4.0) as session:
        await session.connected(5.0)
        await session.add_watch("/", lambda _: None)
        first = session.session_id
        embedded.cut_before(Op.SET_WATCHES2)  # the second session's connection ends between greeting and watches
        embedded.expire(first)
        async with asyncio.timeout(5.0):
            while not sessions:
                await asyncio.sleep(0.001)
            (second,) = sessions
            while session.session_id != second or embedded.connections:
                await asyncio.sleep(0.001)
        embedded.expire(second)
        await session.connected(5.0)
        assert session.session_id not in (first, second)
