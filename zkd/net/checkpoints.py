"""Sends checkpoints and models of jobs to nodes, and fetches them, as `zkd.net.files` does with any file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zkd.errors import DataUnavailable
from zkd.net import files

if TYPE_CHECKING:
    import aiohttp

    from zkd.jobs import FileRef
    from zkd.paths import JobId


async def send(http: aiohttp.ClientSession, address: str, token: str, job: JobId, file_id: str, data: bytes) -> None:
    """Have a node keep these bytes; durable there when this returns. Raises `DataUnavailable`."""
    try:
        await files.send(http, _url(address, job, file_id), token, data)
    except DataUnavailable as error:
        raise DataUnavailable(f"{address}: {error}") from None


async def fetch(http: aiohttp.ClientSession, addresses: Sequence[str], token: str, job: JobId, ref: FileRef) -> bytes:
    """The bytes of a file, from the first of these nodes that has them. Raises `DataUnavailable`."""
    return await files.fetch(http, [_url(each, job, ref.id) for each in addresses], token, ref.id, ref.size)


def _url(address: str, job: JobId, file_id: str) -> str:
    return f"{address}/v1/checkpoints/{job}/{file_id}"
