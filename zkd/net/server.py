"""What each node serves over HTTP: blobs to other nodes and clients, its health and figures to people.

    GET /v1/blobs/<sha256>    the bytes, with ranges; knowing the digest is the permission to read them
    PUT /v1/blobs/<sha256>    keep these bytes as an argument of a task to come; asks for the cluster's token
    ... /v1/segments/<id>     parts of datasets: zkd.net.segment_routes
    GET /v1/datasets/<name>/<version>/rows    rows by key: zkd.net.row_routes
    ... /v1/model-files/<id>  files of registered models: zkd.net.file_routes
    ... /v1/models/<ref>      what they say of rows: zkd.net.predict_routes
    ... /v1/checkpoints/<job>/<id>    files of training jobs: zkd.net.checkpoint_routes
    GET /v1/jobs/<id>/rounds  how a training job gets on, live: zkd.net.job_routes
    GET /v1/rounds/<job>      rounds of training, a WebSocket: zkd.net.round_routes
    GET /v1/why/<task>        what keeps a task waiting, in words, as the leader knows it; asks for the token, too.
                              409 and who leads, at another node; 404 of what it knows nothing of; 503 if it is busy
    GET /healthz              200 while the event loop turns
    GET /readyz               200 while this node can take work, else 503 and why
    GET /metrics              Prometheus text: zkd.net.metrics
    GET /                     the dashboard, and what it is drawn from: zkd.net.dashboard

What decides anything goes through ZooKeeper and its ACLs. The token lies there too, so that who may read it may
send data.
"""

from __future__ import annotations

import asyncio
import hmac
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.typedefs import Handler

from zkd.errors import ResultLost
from zkd.net.idle import IDLE_S, IdleConnections
from zkd.net.metrics import Sample, exposition
from zkd.net.row_routes import Rows, row_routes
from zkd.net.segment_routes import segment_routes
from zkd.store import BlobFormat, BlobStore, SegmentStore, is_digest

if TYPE_CHECKING:
    import ssl

CHUNK = 1 << 18
HANDSHAKE_S = 10.0  # of TLS; who is slower has a connection that nobody counts
READ_BYTES = 1 << 18  # of a body come in while what came before is hashed and written

ExpectToken = Callable[[web.Request], None]  # raises if the request does not have it


@asynccontextmanager
async def serve(
    host: str,
    port: int,
    store: BlobStore,
    token: Callable[[], str | None],
    not_ready: Callable[[], str | None],
    samples: Callable[[], Iterable[Sample]],
    why: Callable[[str], Awaitable[tuple[str | None, str | None]]],
    segments: SegmentStore,
    rows: Rows,
    tls: ssl.SSLContext | None = None,
    more: Callable[[ExpectToken], Iterable[web.RouteDef]] = lambda _: (),
) -> AsyncIterator[int]:
    """Serve while the block runs; gives the port. `not_ready` says why this node cannot take work, or None;
    `why` what is known of a task, None if there is no time for that, or who leads if this node does not; `more` the
    routes that others have."""

    def expect_token(request: web.Request) -> None:
        expected, given = token(), request.headers.get("Authorization", "")
        given_bytes = given.encode(errors="surrogateescape")  # as it came
        if expected is None or not hmac.compare_digest(given_bytes, f"Bearer {expected}".encode()):
            raise web.HTTPUnauthorized(text="expected `Authorization: Bearer` with the token in control/token\n")

    async def blob(request: web.Request) -> web.StreamResponse:
        path = store.find(request.match_info["sha"])
        if path is None:
            raise web.HTTPNotFound(text="no such blob on this node\n")
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    async def keep(request: web.Request) -> web.Response:
        expect_token(request)
        sha, size = request.match_info["sha"], request.content_length
        if not is_digest(sha) or size is None or request.query.get("format") not in ("npy", "json"):
            raise web.HTTPBadRequest(text="expected a sha256 in the path, a Content-Length, and ?format=npy or json\n")
        if size > store.room_bytes():
            raise web.HTTPInsufficientStorage(text=f"expected at most {store.room_bytes()} bytes, got {size}\n")
        blob_format: BlobFormat = "npy" if request.query["format"] == "npy" else "json"
        try:
            await store.receive(sha, size, blob_format, request.content.iter_chunked(CHUNK))
        except ResultLost as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        except OSError as error:
            raise web.HTTPInsufficientStorage(text=f"the node cannot write it: {error.strerror}\n") from None
        return web.Response(status=201)

    async def explain(request: web.Request) -> web.Response:
        expect_token(request)
        words, leader = await why(request.match_info["task"])
        if leader is not None:
            raise web.HTTPConflict(text=f"this node does not lead, {leader} does\n")
        if words is None:
            raise web.HTTPServiceUnavailable(text="the leader is busy; look at the tree\n")
        if not words:
            raise web.HTTPNotFound(text="the leader has nothing to say about this id\n")
        return web.Response(text=f"{words}\n")

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        why = not_ready()
        return web.Response(text="ready\n" if why is None else f"{why}\n", status=200 if why is None else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=exposition(samples()).encode(), headers={"Content-Type": "text/plain; version=0.0.4"})

    idle = IdleConnections()
    # No limit of its own: bodies are streamed, and bounded above.
    app = web.Application(client_max_size=0, middlewares=[idle.heard, unheard])
    app.add_routes(
        [
            web.get("/v1/blobs/{sha}", blob),
            web.put("/v1/blobs/{sha}", keep),
            web.get("/v1/why/{task}", explain),
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            *segment_routes(segments, expect_token),
            *row_routes(rows, expect_token),
            *more(expect_token),
        ]
    )
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=1.0, read_bufsize=READ_BYTES, keepalive_timeout=IDLE_S
    )
    await runner.setup()
    assert runner.server is not None
    most = connections_max()

    def accept() -> asyncio.Protocol:
        server = runner.server
        return server() if server is not None and len(server.connections) < most else _Refusal()

    listener: asyncio.Server | None = None
    try:
        listener = await asyncio.get_running_loop().create_server(
            accept, host, port, ssl=tls, ssl_handshake_timeout=None if tls is None else HANDSHAKE_S
        )
        with idle.ended(runner.server):
            yield listener.sockets[0].getsockname()[1]
    finally:
        if listener is not None:
            listener.close()
        await runner.cleanup()  # of the connections, too


@web.middleware
async def unheard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Who hangs up before he is answered misses nothing, and nothing of ours went wrong."""
    try:
        return await handler(request)
    except ConnectionError:
        if request.transport is not None and not request.transport.is_closing():
            raise
        return web.Response(status=499)  # nobody gets it


def connections_max() -> int:
    """Half of the files that this process may open: whoever connects needs no token, and the rest is for our work."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


class _Refusal(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
