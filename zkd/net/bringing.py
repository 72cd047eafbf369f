"""Segments that nodes bring to themselves because they are told to: nothing of them passes through who tells.

    POST /v1/segments/<id>/bring    {"size": n, "from": [node, ...]}; 201 when it is here, verified and durable, 200 if
                                    it was, 404 if no worker here made it and nobody else is named, 502 if none of the
                                    nodes gives it, 507 if the disk does not take it

What a worker of the node itself made is taken in first. Nodes are named and not addressed: where they are says the
tree, so nobody is made to knock at other doors. Both ends of it are here; it asks for the cluster's token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Annotated

import aiohttp
import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from zkd.errors import DataDamaged, DataUnavailable
from zkd.manifests import SegmentRef
from zkd.net.bodies import Stopped, bearer, pieces, words_for, words_of
from zkd.paths import NodeId
from zkd.store import SegmentStore
from zkd.store.segment_files import is_id

BODY_BYTES_MAX = 64 * 1024
BRING_S = 60.0  # for a node to bring one; a silent source is given up before
ANSWER_S = BRING_S + 10.0

Fetch = Callable[[SegmentRef, Sequence[NodeId]], Awaitable[None]]  # from one of these nodes


class Wish(Struct, frozen=True, rename={"sources": "from"}):
    size: Annotated[int, Meta(ge=0)]  # as a `SegmentRef` says it
    sources: Annotated[list[NodeId], Meta(max_length=64)] = []


class SourceLost(DataUnavailable):
    """The node cannot get the segment: it is not to blame, who should have it is."""


def bring_routes(store: SegmentStore, fetch: Fetch, expect_token: Callable[[web.Request], None]) -> list[web.RouteDef]:
    """`expect_token` raises if the request does not have it."""

    async def bring(request: web.Request) -> web.StreamResponse:
        expect_token(request)
        segment_id = request.match_info["id"]
        if not is_id(segment_id):
            raise web.HTTPNotFound(text="expected the 64 hex digits of a segment\n")
        size = request.content_length
        if size is None:
            raise web.HTTPLengthRequired(text="expected a Content-Length\n")
        if size > BODY_BYTES_MAX:
            raise web.HTTPRequestEntityTooLarge(BODY_BYTES_MAX, size)
        try:
            wish = msgspec.json.decode(b"".join([piece async for piece in pieces(request.content, size)]), type=Wish)
        except (Stopped, msgspec.DecodeError, RecursionError) as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        try:
            async with asyncio.timeout(BRING_S):
                return web.Response(status=await _bring(segment_id, wish))
        except (DataUnavailable, DataDamaged, TimeoutError) as error:
            raise web.HTTPBadGateway(text=f"{str(error) or f'it did not come within {BRING_S:g} s'}\n") from None
        except OSError as error:
            raise web.HTTPInsufficientStorage(text=f"the node cannot write it: {error.strerror}\n") from None

    async def _bring(segment_id: str, wish: Wish) -> int:
        with suppress(DataUnavailable, DataDamaged):  # what has rotted here meanwhile is brought anew
            await store.verified(segment_id)  # who tells us counts on it
            return 200
        if await store.adopt(segment_id):
            return 201
        if not wish.sources:
            raise web.HTTPNotFound(text="no worker of this node made this segment\n")
        await fetch(SegmentRef(segment_id, 0, wish.size), wish.sources)
        return 201

    return [web.post("/v1/segments/{id}/bring", bring)]


async def bring(
    http: aiohttp.ClientSession, address: str, token: str, ref: SegmentRef, sources: Sequence[NodeId]
) -> None:
    """Have the node keep this segment, which a worker of it made or one of these nodes has: durable when this returns.

    Raises `SourceLost` if it cannot be had from there, `DataUnavailable` with what else the node says.
    """
    body = msgspec.json.encode(Wish(ref.size, list(sources)))
    url = f"{address}/v1/segments/{ref.id}/bring"
    timeout = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=http.timeout.sock_connect)
    try:
        async with http.post(url, data=body, headers=bearer(token), allow_redirects=False, timeout=timeout) as answer:
            words = await words_of(answer)
    except (aiohttp.ClientError, TimeoutError, OSError, Stopped) as error:
        raise DataUnavailable(f"{address}: {words_for(error)}") from None
    if answer.status in (404, 502):
        raise SourceLost(f"{address}: {words}")
    if answer.status not in (200, 201):
        raise DataUnavailable(f"{address}: HTTP {answer.status}: {words}")
