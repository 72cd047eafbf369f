"""Sends checkpoints and models to nodes, and fetches them from whichever node has them whole.

Who fetches knows the digest and the size from the tree; nothing longer is read, and nothing else is believed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import aiohttp
from blake3 import blake3

from zkd.errors import DataUnavailable
from zkd.jobs import FileRef
from zkd.net.bodies import MIB, Stopped, bearer, opened, pieces, words_of
from zkd.paths import JobId

SEND_S = 10.0  # for one file to one node, and a second more for each
SEND_BYTES = 4 * MIB
FETCHED_MAX = 4 * 2**30


async def send(http: aiohttp.ClientSession, address: str, token: str, job: JobId, file_id: str, data: bytes) -> None:
    """Have a node keep these bytes; durable there when this returns. Raises `DataUnavailable`."""
    headers = bearer(token) | {"Content-Type": "application/octet-stream", "Content-Length": str(len(data))}
    try:
        async with (
            asyncio.timeout(SEND_S + len(data) / SEND_BYTES),
            http.put(f"{address}/v1/checkpoints/{job}/{file_id}", data=_body(data), headers=headers) as answer,
        ):
            if answer.status not in (200, 201):
                raise DataUnavailable(f"{address}: HTTP {answer.status}: {await words_of(answer)}")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise DataUnavailable(f"{address}: {str(error) or type(error).__name__}") from None


async def fetch(http: aiohttp.ClientSession, addresses: Sequence[str], token: str, job: JobId, ref: FileRef) -> bytes:
    """The bytes of a file, from the first of these that has them. Raises `DataUnavailable` with what each says."""
    faults = []
    for address in addresses:
        try:
            async with opened(http, f"{address}/v1/checkpoints/{job}/{ref.id}", token, 0, None) as (content, size, _):
                if size != ref.size or size > FETCHED_MAX:
                    raise Stopped(f"expected {ref.size} bytes, got {size}")
                data = b"".join([piece async for piece in pieces(content, size)])
            if (await asyncio.to_thread(blake3, data)).hexdigest() == ref.id:
                return data
            faults.append(f"{address}: other bytes than {ref.id[:12]}")
        except Stopped as error:
            faults.append(f"{address}: {error}")
    raise DataUnavailable(f"file {ref.id[:12]} of {job} cannot be fetched: {'; '.join(faults) or 'no node has it'}")


async def _body(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]
