"""What each node serves over HTTP: blobs to other nodes and clients, its health and figures to people.

    GET /v1/blobs/<sha256>    the bytes, with ranges; knowing the digest is the permission to read them
    GET /healthz              200 while the event loop turns
    GET /readyz               200 while this node can take work, else 503 and why
    GET /metrics              Prometheus text

Read-only: whatever changes something goes through ZooKeeper and its ACLs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from aiohttp import web

from zkd.store import BlobStore

Sample = tuple[str, dict[str, str], float]  # name, labels, value


@asynccontextmanager
async def serve(
    host: str,
    port: int,
    store: BlobStore,
    not_ready: Callable[[], str | None],
    samples: Callable[[], Iterable[Sample]],
) -> AsyncIterator[int]:
    """Serve while the block runs; gives the port. `not_ready` says why this node cannot take work, or None."""

    async def blob(request: web.Request) -> web.StreamResponse:
        path = store.find(request.match_info["sha"])
        if path is None:
            raise web.HTTPNotFound(text="no such blob on this node\n")
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        why = not_ready()
        return web.Response(text="ready\n" if why is None else f"{why}\n", status=200 if why is None else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=exposition(samples()).encode(), headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.add_routes(
        [
            web.get("/v1/blobs/{sha}", blob),
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
        ]
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def exposition(samples: Iterable[Sample]) -> str:
    """Samples in Prometheus' text format; a name that ends in ``_total`` is a counter, others are gauges."""
    lines = []
    seen: set[str] = set()
    for name, labels, value in sorted(samples, key=lambda sample: sample[0]):
        if name not in seen:
            seen.add(name)
            lines.append(f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}")
        inner = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{inner}}} {value:g}" if inner else f"{name} {value:g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
