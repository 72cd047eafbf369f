"""A node's data plane alone, and peers that are none."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from zkd.net.checkpoint_routes import checkpoint_routes
from zkd.net.server import ExpectToken, serve
from zkd.store import BlobStore, CheckpointStore, SegmentStore

TOKEN = "secret"

Peer = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Serving:
    store: SegmentStore
    address: str


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Serving]:
    store = SegmentStore(directory)

    async def rows(*_: object) -> bytes:
        raise AssertionError("nobody asks for rows here")

    async def why(_: str) -> tuple[str | None, str | None]:
        return "", None

    blobs, checkpoints = BlobStore(directory), CheckpointStore(directory)

    def more(expect: ExpectToken) -> list[web.RouteDef]:
        return checkpoint_routes(checkpoints, expect)

    async with serve("127.0.0.1", 0, blobs, lambda: TOKEN, lambda: None, list, why, store, rows, None, more) as port:
        yield Serving(store, f"http://127.0.0.1:{port}")


@asynccontextmanager
async def peer(answer: Peer, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Something that listens and does what `answer` does with the head of each request; gives its address."""
    tasks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await answer(head, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
