"""Asks nodes over HTTP for what only they know: their last runs and the last lines of their logs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from zkd.overview.seen import Recent

if TYPE_CHECKING:
    import aiohttp

ANSWERS_S = 1.0
ANSWER_BYTES_MAX = 4 << 20

_decoder = msgspec.json.Decoder(Recent)


class NotTold(Exception):
    """The node did not say, and why."""


async def ask(
    http: aiohttp.ClientSession,
    address: str,
    token: str,
    *,
    runs: int = 0,
    lines: int = 0,
    task: str | None = None,
    timeout_s: float = ANSWERS_S,
) -> Recent:
    """What the node at this address has beyond these numbers; `NotTold` if it gives no answer that is one."""
    url = f"{address}/v1/recent?runs={runs}&lines={lines}" + (f"&task={quote(task, safe='')}" if task else "")
    text = await body(http, url, token, timeout_s)
    try:
        return _decoder.decode(text)
    except msgspec.DecodeError as error:
        raise NotTold(f"{address} answers what is none: {error}") from None


async def body(http: aiohttp.ClientSession, url: str, token: str, timeout_s: float = ANSWERS_S) -> bytes:
    """What stands at this URL of a node; `NotTold` if there is no answer soon, or too long a one."""
    import aiohttp

    data = bytearray()
    try:
        async with (
            asyncio.timeout(timeout_s),
            http.get(url, headers={"Authorization": f"Bearer {token}"}, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise NotTold(f"{url} says HTTP {answer.status}")
            async for piece in answer.content.iter_any():
                data += piece
                if len(data) > ANSWER_BYTES_MAX:
                    raise NotTold(f"{url} sends more than {ANSWER_BYTES_MAX} bytes")
    except TimeoutError:
        raise NotTold(f"{url} does not answer within {timeout_s:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise NotTold(f"{url}: {str(error) or type(error).__name__}") from None
    return bytes(data)
