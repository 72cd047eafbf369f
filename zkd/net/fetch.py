"""Fetches blobs from the nodes that hold them, bounded in size and checked against their digest.

The bytes are checked as they arrive; whoever sent them, and whatever they claim, only the right bytes get
through. Imported lazily: an HTTP client is the largest thing a small program would load.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp

from zkd.errors import ResultLost

if TYPE_CHECKING:
    import ssl

    from aiohttp.abc import ResolveResult

CHUNK = 1 << 18
CONNECT_S = 5.0
STALL_S = 30.0  # no byte for so long: try another node
READ_BYTES = 1 << 18  # come in while what came before is hashed and written
PATIENT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=STALL_S)


class _Resolver(aiohttp.ThreadedResolver):
    """A name that is none is a host that is not there; else it would be an error of ours."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            return await super().resolve(host, port, family)
        except UnicodeError as error:  # "a..b", or a label of more than 63 letters
            raise OSError(f"{host[:80]!r} is no name of a host: {error}") from None


def session(
    tls: ssl.SSLContext | None = None, timeout: aiohttp.ClientTimeout = PATIENT, *, connections: int = 100
) -> aiohttp.ClientSession:
    """An HTTP client of nodes: patient with much data, not with silent nodes. 0 `connections`: as many as are needed.

    With `tls` it speaks nothing else: no address in the tree makes it send the token in the open.
    """
    connector = aiohttp.TCPConnector(ssl=True if tls is None else tls, resolver=_Resolver(), limit=connections)
    if tls is not None:
        connector.allowed_protocol_schema_set = frozenset({"https"})
    return aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False, read_bufsize=READ_BYTES)


@asynccontextmanager
async def opened(http: aiohttp.ClientSession, url: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body at this URL, in chunks, for the caller to count and check; `ResultLost` with what went wrong."""
    try:
        async with asyncio.timeout(STALL_S):  # aiohttp's own bound ends with any line that comes
            response = await http.get(url, allow_redirects=False)
        async with response:
            if response.status != 200:
                raise ResultLost(f"HTTP {response.status}")
            yield response.content.iter_chunked(CHUNK)
    except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError, OSError) as error:  # a full disk, too
        raise ResultLost(str(error) or type(error).__name__) from error
