"""Bodies of HTTP messages, bounded in size and in time: a peer moves each MiB in so many seconds or is cut off.

Also how a client opens a range of something, when it knows how much that may be.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp

from zkd.errors import ZkdError

if TYPE_CHECKING:
    from aiohttp import web

MIB_S = 60.0  # 17 kB/s: who is slower would hold a place here for hours
MIB = 1 << 20
TURN_S = 30.0  # to wait for a place
WORDS_BYTES_MAX = 1 << 16  # of answers that are short

CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})\Z", re.ASCII)


class Stopped(ZkdError):
    """The peer went away, or is too slow, or its message is not as long as it said."""


class Refused(Stopped):
    """Another answer than the bytes that were asked for. Asking this node again will not help."""


def words_for(error: BaseException) -> str:
    """What went wrong between us and a node, in words for people."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return f"no encrypted connection: {error.os_error if hasattr(error, 'os_error') else error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect: {error.os_error.strerror or error.os_error}"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | ConnectionResetError):
        return "it closed the connection in the middle"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return str(error) or type(error).__name__


def turns(count: int) -> Callable[[], AbstractAsyncContextManager[None]]:
    """Places for so many transfers at once. Who gets none in time is answered 503."""
    places = asyncio.Semaphore(count)

    @asynccontextmanager
    async def turn() -> AsyncIterator[None]:
        from aiohttp import web

        try:
            async with asyncio.timeout(TURN_S):
                await places.acquire()
        except TimeoutError:
            raise web.HTTPServiceUnavailable(text="too many transfers at once, try later\n") from None
        try:
            yield
        finally:
            places.release()

    return turn


async def pieces(content: aiohttp.StreamReader, size: int) -> AsyncIterator[bytes]:
    """The `size` bytes of a body as they come. Raises `Stopped` when they do not, never gives more.

    Only the time spent waiting for the peer counts, not what the caller does with the bytes.
    """
    now = asyncio.get_running_loop().time
    came, left_s = 0, MIB_S
    while came < size:
        began = now()
        try:
            async with asyncio.timeout(left_s):
                # As it came: `readany` joins, and copies all once more.
                chunk, is_end_of_one = await content.readchunk()
        except TimeoutError:
            raise Stopped(f"expected a MiB in {MIB_S:g} s, after {came} bytes of {size}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Stopped(f"{error or type(error).__name__}, after {came} bytes of {size}") from None
        if not chunk and is_end_of_one:  # of those that the peer cut it into
            continue
        if not chunk:
            raise Stopped(f"expected {size} bytes, got {came}")
        if came + len(chunk) > size:
            raise Stopped(f"expected {size} bytes, got more")
        left_s = MIB_S if came // MIB < (came + len(chunk)) // MIB else left_s - (now() - began)
        came += len(chunk)
        yield chunk


@asynccontextmanager
async def answered(
    http: aiohttp.ClientSession, url: str, headers: Mapping[str, str], within_s: float | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer to a GET, when its head is here. Raises `Stopped`, also for what goes wrong in the block."""
    within_s = MIB_S if within_s is None else within_s
    try:
        # aiohttp's own bound ends with the first line of any kind that comes, such as `100 Continue`.
        async with asyncio.timeout(within_s):
            answer = await http.get(url, headers=headers, allow_redirects=False)
        async with answer:
            yield answer
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        raise Stopped(words_for(error) if str(error) else f"no answer within {within_s:g} s") from None


@asynccontextmanager
async def opened(
    http: aiohttp.ClientSession, url: str, token: str, start: int, stop: int | None, within_s: float | None = None
) -> AsyncIterator[tuple[aiohttp.StreamReader, int, int]]:
    """The body with these bytes of what is at this URL, how many they are, and how many it has in all.

    Raises `Refused`, `Stopped`.
    """
    headers = bearer(token) | {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
    async with answered(http, url, headers, within_s) as answer:
        if answer.status not in (200, 206):
            raise Refused(f"HTTP {answer.status}: {await words_of(answer)}")
        match = CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
        if answer.status == 206 and match:
            first, last, total = map(int, match.groups())
        elif answer.status == 200 and answer.content_length is not None:
            first, last, total = 0, answer.content_length - 1, answer.content_length
        else:
            raise Refused("expected a Content-Range or a Content-Length")
        if first != start or last != (total if stop is None else min(stop, total)) - 1 or last < first:
            raise Refused(f"expected the bytes from {start} on, got {first} to {last} of {total}")
        yield answer.content, last + 1 - first, total


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def words_of(answer: aiohttp.ClientResponse) -> str:
    """The body of an answer that is meant for people, or short."""
    data = bytearray()
    async with asyncio.timeout(MIB_S):
        while len(data) < WORDS_BYTES_MAX and (chunk := await answer.content.readany()):
            data += chunk
    return data[:WORDS_BYTES_MAX].decode(errors="replace").strip()


def cut(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """End an answer so that nobody takes it for a whole one."""
    response.force_close()
    if request.transport is not None:
        request.transport.abort()
    return response
