"""The rounds of a training job, live, at the node that coordinates it. Asks for the cluster's token.

GET /v1/jobs/<id>/rounds?after=N    a JSON line a round (`zkd.jobs.Round`), those after round N, as they come. The last
                                    line says how the job ended; a stream that ends without is to be asked for again,
                                    of the node that coordinates the job then. 404 at any other node
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

from aiohttp import web

from zkd import codec
from zkd.jobs import Round
from zkd.net.bodies import MIB_S
from zkd.paths import JobId

FOLLOWERS = 256  # at a time

Follow = Callable[[JobId, int], AsyncGenerator[list[Round]] | None]


def job_routes(follow: Follow, expect_token: Callable[[web.Request], None]) -> list[web.RouteDef]:
    """`follow` gives the rounds of a job after some number, None for one that is not coordinated here."""
    followers = 0

    async def rounds(request: web.Request) -> web.StreamResponse:
        nonlocal followers
        expect_token(request)
        after = request.query.get("after", "0")
        if not (after.isascii() and after.isdigit() and len(after) <= 18):
            raise web.HTTPBadRequest(text=f"after: expected the number of a round, got {after[:40]!r}\n")
        if followers >= FOLLOWERS:
            raise web.HTTPServiceUnavailable(text="too many look on, try later\n")
        lines = follow(request.match_info["job"], int(after))
        if lines is None:
            raise web.HTTPNotFound(text="this job is not coordinated here; see control/coordinators\n")
        followers += 1
        try:
            response = web.StreamResponse(headers={"Content-Type": "application/jsonlines"})
            async with asyncio.timeout(MIB_S):
                await response.prepare(request)
            await _stream(response, lines)
        finally:
            followers -= 1
        return response

    return [web.get("/v1/jobs/{job}/rounds", rounds, allow_head=False)]


async def _stream(response: web.StreamResponse, lines: AsyncGenerator[list[Round]]) -> None:
    async with aclosing(lines):
        with suppress(ConnectionError, TimeoutError):  # who has gone, or does not read, is let go
            async for some in lines:
                async with asyncio.timeout(MIB_S):
                    await response.write(b"".join(codec.encode(line) + b"\n" for line in some))
