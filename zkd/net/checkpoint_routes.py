"""Checkpoints and models over HTTP, to other nodes and clients. All of it asks for the cluster's token.

    GET  /v1/checkpoints/<job>/<id>    the bytes, compared with the digest that the id is before they are sent
    HEAD /v1/checkpoints/<job>/<id>    how many they are
    PUT  /v1/checkpoints/<job>/<id>    201 when they are durable here, 200 if they were, 400 if they are others

A file that no state of a job points to is removed after a time of grace, so whoever sends one points to it soon.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from zkd.errors import DataDamaged, DataUnavailable
from zkd.net.bodies import MIB, MIB_S, Stopped, pieces
from zkd.paths import is_name
from zkd.store.checkpoints import CheckpointStore
from zkd.store.segment_files import is_id

TRANSFERS = 8  # each of those that read has a whole file in memory
TURN_S = 30.0  # to wait for one of them


def checkpoint_routes(store: CheckpointStore, expect_token: Callable[[web.Request], None]) -> list[web.RouteDef]:
    """`expect_token` raises if the request does not have it."""
    turns = asyncio.Semaphore(TRANSFERS)

    @asynccontextmanager
    async def turn() -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(TURN_S):
                await turns.acquire()
        except TimeoutError:
            raise web.HTTPServiceUnavailable(text="too many transfers at once, try later\n") from None
        try:
            yield
        finally:
            turns.release()

    def asked(request: web.Request) -> tuple[str, str]:
        expect_token(request)
        job, file_id = request.match_info["job"], request.match_info["id"]
        if not is_name(job) or not is_id(file_id):
            raise web.HTTPNotFound(text="expected the id of a job and the 64 hex digits of a file\n")
        return job, file_id

    async def head(request: web.Request) -> web.StreamResponse:
        size = store.size(*asked(request))
        if size is None:
            raise web.HTTPNotFound
        return web.Response(headers={"Content-Length": str(size)})

    async def get(request: web.Request) -> web.StreamResponse:
        job, file_id = asked(request)
        async with turn():
            try:
                data = await store.read(job, file_id)
            except (DataUnavailable, DataDamaged):
                raise web.HTTPNotFound(text="no such file on this node\n") from None
            response = web.StreamResponse()
            response.content_type = "application/octet-stream"
            response.content_length = len(data)
            async with asyncio.timeout(MIB_S):
                await response.prepare(request)
            for start in range(0, len(data), MIB):
                async with asyncio.timeout(MIB_S):
                    await response.write(data[start : start + MIB])
            return response

    async def put(request: web.Request) -> web.StreamResponse:
        job, file_id = asked(request)
        size = request.content_length
        if size is None:
            raise web.HTTPLengthRequired(text="expected a Content-Length\n")
        room = store.room_bytes()
        if size > room:
            raise web.HTTPInsufficientStorage(text=f"expected at most {room} bytes, got {size}\n")
        async with turn():
            try:
                is_new = await store.receive(job, file_id, size, pieces(request.content, size))
            except (DataDamaged, Stopped) as error:
                raise web.HTTPBadRequest(text=f"{error}\n") from None
            except ConnectionError:
                raise
            except OSError as error:
                raise web.HTTPInsufficientStorage(text=f"the node cannot write it: {error.strerror}\n") from None
        return web.Response(status=201 if is_new else 200)

    return [
        web.head("/v1/checkpoints/{job}/{id}", head),
        web.get("/v1/checkpoints/{job}/{id}", get, allow_head=False),
        web.put("/v1/checkpoints/{job}/{id}", put),
    ]
