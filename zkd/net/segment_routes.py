"""Segments over HTTP, to other nodes and clients. All of it asks for the cluster's token.

    GET  /v1/segments/<id>            packed, or one range of it; each block is checked before it is sent, and a bad
                                      one ends the answer: the connection is cut, and from then on it is 404
    HEAD /v1/segments/<id>            how large that is
    GET  /v1/segments/<id>/manifest   its segment.json
    GET  /v1/segments/<id>/incoming   {"received": n}: from which byte on to send the rest
    PUT  /v1/segments/<id>            packed; `Content-Range: bytes a-b/total` for a rest. 201 when it is whole,
                                      verified and durable, 200 if it was, 202 if more is to come; 409 and
                                      {"received": n} if it does not go on there; 507 if the disk does not take it
    POST /v1/segments/<id>/verify     {"good": bool}: all of it, read from the disk anew

Who waits for `100 Continue` sends nothing that is refused. Both directions are bounded: a peer has to move each
MiB in `MIB_S`, or is cut off, and no more than `TRANSFERS` go on at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress

from aiohttp import web

from zkd.errors import DataDamaged, DataUnavailable
from zkd.net.bodies import CONTENT_RANGE, MIB_S, Stopped, cut, pieces, turns
from zkd.store import SegmentStore
from zkd.store.segment_files import is_id, packed_head, size_of
from zkd.store.segments import OutOfStep

TRANSFERS = 64  # each has a few MiB in memory


def segment_routes(store: SegmentStore, expect_token: Callable[[web.Request], None]) -> list[web.RouteDef]:
    """`expect_token` raises if the request does not have it."""
    turn = turns(TRANSFERS)

    def asked(request: web.Request) -> str:
        """The id of a segment, which may be here."""
        expect_token(request)
        segment_id = request.match_info["id"]
        if not is_id(segment_id):
            raise web.HTTPNotFound(text="expected the 64 hex digits of a segment\n")
        return segment_id

    async def describe(segment_id: str) -> tuple[bytes, int]:
        """segment.json and the length of the packed form."""
        try:
            text, segment = await store.describe(segment_id)
        except (DataUnavailable, DataDamaged):
            raise web.HTTPNotFound(text="no such segment on this node\n") from None
        except OSError as error:
            raise _unreadable(error) from None
        return text, len(packed_head(text)) + size_of(segment)

    async def head(request: web.Request) -> web.StreamResponse:
        _, total = await describe(asked(request))
        return web.Response(headers={"Content-Length": str(total), "Accept-Ranges": "bytes"})

    async def manifest(request: web.Request) -> web.StreamResponse:
        text, _ = await describe(asked(request))
        return web.Response(body=text, content_type="application/json")

    async def get(request: web.Request) -> web.StreamResponse:
        segment_id = asked(request)
        async with turn():
            _, total = await describe(segment_id)
            start, stop = _range(request, total)
            response = web.StreamResponse(status=200 if (start, stop) == (0, total) else 206)
            response.content_type = "application/octet-stream"
            response.content_length = stop - start
            response.headers["Accept-Ranges"] = "bytes"
            if response.status == 206:
                response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
            async with aclosing(store.read(segment_id, start, stop)) as blocks:
                try:
                    first = await anext(blocks)  # what is bad at once is not here
                    async with asyncio.timeout(MIB_S):
                        await response.prepare(request)
                        await response.write(first)
                    async for block in blocks:
                        async with asyncio.timeout(MIB_S):
                            await response.write(block)
                except (DataDamaged, DataUnavailable, TimeoutError, OSError) as error:
                    if isinstance(error, ConnectionError):
                        raise
                    if response.prepared:
                        return cut(request, response)
                    if isinstance(error, OSError):
                        raise _unreadable(error) from None
                    raise web.HTTPNotFound(text="no such segment on this node\n") from None
            return response

    async def incoming(request: web.Request) -> web.StreamResponse:
        segment_id = asked(request)
        if store.has(segment_id):
            return web.json_response({"received": (await describe(segment_id))[1]})
        try:
            return web.json_response({"received": await store.received(segment_id)})
        except OSError as error:
            raise _full(error) from None

    async def put(request: web.Request) -> web.StreamResponse:
        segment_id = asked(request)
        start, stop, total = _content_range(request)
        async with turn():
            try:
                if await _is_good(store, segment_id):
                    return web.Response(status=200)
                whole = await store.receive(segment_id, start, total, _body(request, stop - start))
            except OutOfStep as error:
                return web.json_response({"received": error.received}, status=409)
            except (DataDamaged, Stopped) as error:
                raise web.HTTPBadRequest(text=f"{error}\n") from None
            except ConnectionError:
                raise
            except OSError as error:
                raise _full(error) from None
            return web.Response(status=201 if whole else 202)

    async def verify(request: web.Request) -> web.StreamResponse:
        segment_id = asked(request)
        async with turn():
            try:
                return web.json_response({"good": await store.verify(segment_id)})
            except DataUnavailable:
                raise web.HTTPNotFound(text="no such segment on this node\n") from None
            except OSError as error:
                raise _unreadable(error) from None

    return [
        web.head("/v1/segments/{id}", head),
        web.get("/v1/segments/{id}", get, allow_head=False),
        web.get("/v1/segments/{id}/manifest", manifest, allow_head=False),
        web.get("/v1/segments/{id}/incoming", incoming, allow_head=False),
        web.put("/v1/segments/{id}", put, expect_handler=_expect_later),
        web.post("/v1/segments/{id}/verify", verify),
    ]


async def _is_good(store: SegmentStore, segment_id: str) -> bool:
    """Whether we have it already. Who sends it counts on it: what has rotted here meanwhile is taken anew."""
    with suppress(DataUnavailable):
        return store.has(segment_id) and await store.verify(segment_id)
    return False


async def _expect_later(_: web.Request) -> None:
    """`100 Continue` is said by whoever wants the body."""


async def _body(request: web.Request, size: int) -> AsyncIterator[bytes]:
    """The body, when it is wanted: nothing before stands against it."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer to come, as in aiohttp's own handler
    async for piece in pieces(request.content, size):
        yield piece


def _range(request: web.Request, total: int) -> tuple[int, int]:
    try:
        asked = request.http_range
    except ValueError:
        asked = None
    start, stop, _ = (0, 0, 1) if asked is None else asked.indices(total)
    if start >= stop:
        headers = {"Content-Range": f"bytes */{total}"}
        raise web.HTTPRequestRangeNotSatisfiable(headers=headers, text="expected one range of these bytes\n")
    return start, stop


def _content_range(request: web.Request) -> tuple[int, int, int]:
    """Which bytes are in the body: from, to before, and of how many."""
    size, text = request.content_length, request.headers.get("Content-Range")
    if size is None:
        raise web.HTTPLengthRequired(text="expected a Content-Length\n")
    if text is None:
        return 0, size, size
    match = CONTENT_RANGE.match(text)
    start, last, total = map(int, match.groups()) if match else (0, 0, 0)
    if match is None or last + 1 - start != size or last >= total:
        raise web.HTTPBadRequest(text=f"expected Content-Range: bytes a-b/total for {size} bytes, got {text[:100]!r}\n")
    return start, last + 1, total


def _full(error: OSError) -> web.HTTPException:
    if isinstance(error, TimeoutError):
        return web.HTTPServiceUnavailable(text="somebody else is sending this segment, try later\n")
    return web.HTTPInsufficientStorage(text=f"the node cannot write it: {error.strerror}\n")


def _unreadable(error: OSError) -> web.HTTPException:
    return web.HTTPServiceUnavailable(text=f"the node cannot read it now: {error.strerror}\n")
