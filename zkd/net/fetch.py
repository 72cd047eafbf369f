"""Fetches blobs from the nodes that hold them, bounded in size and checked against their digest.

The bytes are checked as they arrive; whoever sent them, and whatever they claim, only the right bytes get
through. Imported lazily: an HTTP client is the largest thing a small program would load.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from zkd.errors import ResultLost

CHUNK = 1 << 18
CONNECT_S = 5.0
STALL_S = 30.0  # no byte for so long: try another node


def session() -> aiohttp.ClientSession:
    """An HTTP client for blobs: patient with large ones, not with silent nodes."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=STALL_S)
    return aiohttp.ClientSession(timeout=timeout, auto_decompress=False)


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
