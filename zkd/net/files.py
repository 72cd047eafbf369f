"""Sends files named by their digest to nodes, and fetches them from whichever node has them whole.

Who fetches knows the digest and the size from the tree; nothing longer is read, and nothing else is believed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import aiohttp
from blake3 import blake3

from zkd.errors import DataDamaged, DataUnavailable
from zkd.net.bodies import MIB, Stopped, bearer, opened, pieces, words_for, words_of
from zkd.store.digest_files import DigestFiles

SENDS_S = 30.0  # for one file to one node; larger ones get a second a MiB on top
ASKS_S = 5.0
ANSWERS_S = (2.0, 20.0)  # to begin an answer, at first and when all were asked: one is frozen, or all are busy


async def send(http: aiohttp.ClientSession, url: str, token: str, data: bytes) -> None:
    """Have a node keep these bytes at `url`, which ends in their digest; durable there when this returns.

    Raises `DataUnavailable` with what it says.
    """
    headers = bearer(token) | {"Content-Type": "application/octet-stream", "Content-Length": str(len(data))}
    try:
        async with (
            asyncio.timeout(SENDS_S + len(data) / MIB),
            http.put(url, data=_body(data), headers=headers, expect100=True, allow_redirects=False) as answer,
        ):
            if answer.status not in (200, 201):
                raise DataUnavailable(f"HTTP {answer.status}: {await words_of(answer)}")
    except (aiohttp.ClientError, TimeoutError, OSError, Stopped) as error:
        raise DataUnavailable(words_for(error)) from None


async def fetch(http: aiohttp.ClientSession, urls: Sequence[str], token: str, file_id: str, size: int) -> bytes:
    """The bytes of a file, from the first of these that has them. Raises `DataUnavailable` with what each says."""
    faults = []
    for url, within_s in _tries(urls):
        try:
            async with opened(http, url, token, 0, None, within_s) as (content, _, total):
                if total != size:
                    raise Stopped(f"expected {size} bytes, got {total}")
                data = b"".join([piece async for piece in pieces(content, size)])
            if (await asyncio.to_thread(blake3, data)).hexdigest() == file_id:
                return data
            faults.append(f"{url}: other bytes than its name says")
        except Stopped as error:
            faults.append(f"{url}: {error}")
    raise DataUnavailable(f"file {file_id[:12]} cannot be fetched: {'; '.join(faults[-8:]) or 'no node has it'}")


async def fetch_into(
    store: DigestFiles, http: aiohttp.ClientSession, urls: Sequence[str], token: str, file_id: str, size: int
) -> None:
    """Bring a file into a store, verified and durable. Raises `DataUnavailable` with what each says, and `OSError`."""
    faults = []
    for url, within_s in _tries(urls):
        try:
            async with opened(http, url, token, 0, None, within_s) as (content, _, total):
                if total != size:
                    raise Stopped(f"expected {size} bytes, got {total}")
                await store.receive(file_id, size, pieces(content, size))
                return
        except (Stopped, DataDamaged) as error:
            faults.append(f"{url}: {error}")
    raise DataUnavailable(f"file {file_id[:12]} cannot be fetched: {'; '.join(faults[-8:]) or 'no node has it'}")


async def has(http: aiohttp.ClientSession, url: str, token: str, size: int) -> bool:
    """Whether a node says that it has this file. Raises `DataUnavailable` if it does not say."""
    try:
        async with (
            asyncio.timeout(ASKS_S),
            http.head(url, headers=bearer(token), allow_redirects=False) as answer,
        ):
            return answer.status == 200 and answer.headers.get("Content-Length") == str(size)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise DataUnavailable(words_for(error)) from None


def _tries(urls: Sequence[str]) -> list[tuple[str, float]]:
    return [(url, within_s) for within_s in ANSWERS_S for url in urls]


async def _body(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]
