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
from zkd.records import BlobRef

CHUNK = 1 << 18
CONNECT_S = 5.0
STALL_S = 30.0  # no byte for so long: try another node


@asynccontextmanager
async def opened(http: aiohttp.ClientSession, url: str, ref: BlobRef) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body at this URL, in chunks; `ResultLost` if it is not to be had or of another size."""
    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=STALL_S)
    try:
        async with http.get(url, timeout=timeout, allow_redirects=False) as response:
            if response.status != 200:
                raise ResultLost(f"{url}: expected status 200, got {response.status}")
            if response.content_length not in (None, ref.size):
                raise ResultLost(f"{url}: expected {ref.size} bytes, got {response.content_length}")
            yield response.content.iter_chunked(CHUNK)
    except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError, OSError) as error:
        raise ResultLost(f"{url}: {type(error).__name__}: {error}") from error
