"""Files named by their digest over HTTP, to other nodes and clients. All of it asks for the cluster's token.

    GET  <prefix>/<id>    the bytes, compared with the digest that the id is: the last of them are not sent of others
    HEAD <prefix>/<id>    how many they are, compared if nobody has since they were written
    PUT  <prefix>/<id>    201 when they are durable here, 200 if they were, 400 if they are others or none that we take

Who waits for `100 Continue` sends nothing that is refused. A file that nothing in the tree names is removed after a
time of grace, so whoever sends one names it soon.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from aiohttp import web

from zkd.errors import BadModel, DataDamaged, DataUnavailable
from zkd.net.bodies import MIB_S, Stopped, cut, pieces, turns
from zkd.store.digest_files import DigestFiles, is_id

TRANSFERS = 8  # each has some MiB in memory

Refusal = Callable[[bytes, int], str | None]  # the first bytes and the size of a file -> why it is not taken


def file_routes(
    prefix: str,
    files_of: Callable[[web.Request], DigestFiles | None],
    expect_token: Callable[[web.Request], None],
    refusal: Refusal = lambda head, size: None,
    head_bytes: int = 0,
) -> list[web.RouteDef]:
    """`files_of` says where the files that a request is about lie, `expect_token` raises if the request does not have
    it; `refusal` is shown the first `head_bytes` that come."""
    turn = turns(TRANSFERS)

    def asked(request: web.Request) -> tuple[DigestFiles, str]:
        expect_token(request)
        store, file_id = files_of(request), request.match_info["id"]
        if store is None or not is_id(file_id):
            raise web.HTTPNotFound(text="expected a name, where there is one, and the 64 hex digits of a file\n")
        return store, file_id

    async def size_of(store: DigestFiles, file_id: str) -> int:
        size = store.size(file_id)
        if size is not None:
            return size
        try:
            return await store.verify(file_id)
        except (DataUnavailable, DataDamaged):
            raise web.HTTPNotFound(text="no such file on this node\n") from None

    async def head(request: web.Request) -> web.StreamResponse:
        store, file_id = asked(request)
        async with turn():
            return web.Response(headers={"Content-Length": str(await size_of(store, file_id))})

    async def get(request: web.Request) -> web.StreamResponse:
        store, file_id = asked(request)
        async with turn():
            response = web.StreamResponse()
            response.content_type = "application/octet-stream"
            response.content_length = await size_of(store, file_id)
            async with aclosing(store.blocks(file_id)) as blocks:
                try:
                    first = await anext(blocks, b"")  # what is bad at once is not here
                    async with asyncio.timeout(MIB_S):
                        await response.prepare(request)
                        await response.write(first)
                    async for block in blocks:
                        async with asyncio.timeout(MIB_S):
                            await response.write(block)
                except (DataDamaged, DataUnavailable, TimeoutError):
                    if response.prepared:
                        return cut(request, response)
                    raise web.HTTPNotFound(text="no such file on this node\n") from None
            return response

    async def put(request: web.Request) -> web.StreamResponse:
        store, file_id = asked(request)
        size = request.content_length
        if size is None:
            raise web.HTTPLengthRequired(text="expected a Content-Length\n")
        room = store.room_bytes()
        if size > room:
            raise web.HTTPInsufficientStorage(text=f"expected at most {room} bytes, got {size}\n")
        async with turn():
            try:
                is_new = await store.receive(file_id, size, _body(request, size, refusal, head_bytes))
            except (DataDamaged, BadModel, Stopped) as error:
                raise web.HTTPBadRequest(text=f"{error}\n") from None
            except ConnectionError:
                raise
            except OSError as error:
                raise web.HTTPInsufficientStorage(text=f"the node cannot write it: {error.strerror}\n") from None
        return web.Response(status=201 if is_new else 200)

    return [
        web.head(f"{prefix}/{{id}}", head),
        web.get(f"{prefix}/{{id}}", get, allow_head=False),
        web.put(f"{prefix}/{{id}}", put, expect_handler=_expect_later),
    ]


async def _expect_later(_: web.Request) -> None:
    """`100 Continue` is said by whoever wants the body."""


async def _body(request: web.Request, size: int, refusal: Refusal, head_bytes: int) -> AsyncIterator[bytes]:
    """The body, when it is wanted. Raises `BadModel` when its beginning is that of no file we take."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer to come, as in aiohttp's own handler
    head = b""
    async for chunk in pieces(request.content, size):
        if head_bytes == 0 or len(head) >= min(head_bytes, size):
            yield chunk
            continue
        head += chunk
        if len(head) >= min(head_bytes, size):
            why = refusal(head[:head_bytes], size)
            if why is not None:
                raise BadModel(why)
            yield head
