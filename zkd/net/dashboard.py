"""The dashboard: a page, and what it shows, live. Read-only; whoever changes something uses ZooKeeper and its ACLs.

GET /                    the page; its files lie in page/, are plain HTML, CSS and JavaScript, and load nothing else
GET /v1/overview         what the page shows, as JSON
GET /v1/events/stream    the same as server-sent events: everything first, then what has changed, once a second
GET /v1/recent           the last runs and lines of the log of this node alone; always asks for the token

Like /metrics, the page is open to whoever reaches the port; it has ids, names, states and lines of logs, and never
arguments or results. `node.dashboard` makes it ask for the token ("token": by HTTP's basic authentication, with any
name, or as Bearer) or switches it off ("off"). A node that listens on this machine alone answers only who calls it by
an address or by localhost, so that no page from elsewhere can have its own name point here and read along.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Literal

from aiohttp import web

from zkd.paths import is_name

Access = Literal["open", "token", "off"]

VIEWERS_MAX = 32  # of the stream; each costs what has changed, once a second
WRITE_S = 10.0  # who does not read for so long is let go, and comes back by itself
PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/dashboard/style.css": ("style.css", "text/css"),
    "/dashboard/app.js": ("app.js", "text/javascript"),
    "/dashboard/draw.js": ("draw.js", "text/javascript"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
HEADERS = {
    # Whatever text should get into the page as markup after all: it runs nothing and loads nothing.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def dashboard_routes(
    latest: Callable[[], Awaitable[bytes]],
    follow: Callable[[], AsyncGenerator[bytes]],
    access: Callable[[], Access | None],
    token: Callable[[], str | None],
    *,
    is_local: bool,
) -> list[web.RouteDef]:
    """`latest` gives the overview as JSON, `follow` server-sent events. `access` is None while the node
    starts; `is_local`: we listen on loopback alone."""
    viewers = 0

    def expect_access(request: web.Request) -> None:
        if access() is None:
            raise web.HTTPServiceUnavailable(text="the node is starting\n")
        if access() == "off":
            raise web.HTTPNotFound(text='the dashboard of this node is switched off (node.dashboard = "off")\n')
        if is_local and not _is_own_name(request.host):
            raise web.HTTPForbidden(text="expected an address or localhost as host: this node serves this machine\n")
        if access() == "token" and not _has_token(request.headers.get("Authorization", ""), token()):
            raise web.HTTPUnauthorized(
                text="expected the token in control/token, as password or as Bearer\n",
                headers={"WWW-Authenticate": 'Basic realm="zkd: any name, the token as password", charset="UTF-8"'},
            )

    async def file(request: web.Request) -> web.Response:
        expect_access(request)
        name, kind = FILES[request.path]
        return web.Response(body=(PAGE / name).read_bytes(), content_type=kind, charset="utf-8", headers=HEADERS)

    async def overview(request: web.Request) -> web.Response:
        expect_access(request)
        return web.Response(body=await latest(), content_type="application/json", headers=HEADERS)

    async def stream(request: web.Request) -> web.StreamResponse:
        nonlocal viewers
        expect_access(request)
        if viewers >= VIEWERS_MAX:
            raise web.HTTPServiceUnavailable(text=f"{viewers} look on already; try another node\n")
        viewers += 1
        try:
            response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
            async with asyncio.timeout(WRITE_S):
                await response.prepare(request)
            async with aclosing(follow()) as events:
                with suppress(ConnectionError, TimeoutError):  # who has gone, or does not read
                    async for event in events:
                        async with asyncio.timeout(WRITE_S):
                            await response.write(event)
        finally:
            viewers -= 1
        return response

    return [
        *(web.get(path, file) for path in FILES),
        web.get("/v1/overview", overview),
        web.get("/v1/events/stream", stream, allow_head=False),
    ]


def recent_routes(
    recent: Callable[[int, int, str | None], bytes], expect_token: Callable[[web.Request], None]
) -> list[web.RouteDef]:
    """`recent` gives JSON of the runs and the lines after these numbers, of all tasks or of one."""

    async def answer(request: web.Request) -> web.Response:
        expect_token(request)
        task = request.query.get("task")
        if task is not None and not is_name(task):
            raise web.HTTPBadRequest(text=f"task: expected the id of a task, got {task[:140]!r}\n")
        body = recent(_number(request, "runs"), _number(request, "lines"), task)
        return web.Response(body=body, content_type="application/json")

    return [web.get("/v1/recent", answer)]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens here."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise web.HTTPBadRequest(text=f"{name}: expected a number, got {text[:40]!r}\n")
    return int(text)


def _has_token(authorization: str, expected: str | None) -> bool:
    kind, _, given = authorization.partition(" ")
    if kind.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode(errors="surrogateescape").partition(":")[2]
        except (binascii.Error, ValueError):
            return False
    elif kind != "Bearer":
        return False
    return expected is not None and hmac.compare_digest(given.encode(errors="surrogateescape"), expected.encode())


def _is_own_name(host: str) -> bool:
    """Whether this is an address, or a name that is this machine's everywhere."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    name = name.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
