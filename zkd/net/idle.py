"""Ends connections on which no request is under way: heads that come letter by letter, and those that never come.

Whoever connects needs no token, and each connection takes one of those that there are. aiohttp bounds the time between
two requests, and nothing before the first one; so all connections are looked at now and then. A request that is under
way is its route's affair, however long it takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from aiohttp.typedefs import Handler

IDLE_S = 30.0  # twice as long as our clients keep a connection that they do not use
LOOK_S = 5.0


class IdleConnections:
    """Those of a server. `heard` is a middleware of its application, which notes who says something."""

    def __init__(self) -> None:
        self._since: dict[web.RequestHandler, float] = {}  # when it last said or did something

    @web.middleware
    async def heard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._since[request.protocol] = asyncio.get_running_loop().time()
        return await handler(request)

    @contextmanager
    def ended(self, server: web.Server) -> Iterator[None]:
        """While the block runs, connections of this server that are idle for IDLE_S are cut."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            now, before = loop.time(), self._since
            self._since = {each: now if _is_busy(each) else before.get(each, now) for each in server.connections}
            for connection, since in self._since.items():
                if now - since >= IDLE_S:
                    _cut(connection)
            timers.append(loop.call_later(LOOK_S, look))
            del timers[0]

        timers = [loop.call_later(LOOK_S, look)]
        try:
            yield
        finally:
            timers[-1].cancel()


def _is_busy(connection: web.RequestHandler) -> bool:
    # Its own, and not promised by aiohttp: if it goes, nobody is cut, and a test says so.
    return getattr(connection, "_current_request", connection) is not None


def _cut(connection: web.RequestHandler) -> None:
    transport = connection.transport
    connection.force_close()
    if transport is not None:
        transport.abort()  # to close it would wait for a peer that does not read
