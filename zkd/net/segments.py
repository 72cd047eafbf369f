"""Sends segments to nodes and fetches them, in as many goes as it takes, over as many nodes as have them.

Who fetches says what he expects: the id and the size, as the manifest lists them. Nothing longer is read, nothing
else is believed, and a peer that stalls, lies or goes away is left for the next one, which goes on where it
stopped. Addresses are the nodes' own, such as ``http://10.0.0.1:8080``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import aiohttp
import msgspec

from zkd.errors import DataDamaged, DataUnavailable
from zkd.manifests import Segment, SegmentRef
from zkd.net.bodies import Refused, Stopped, answered, bearer, opened, pieces, words_for, words_of
from zkd.store import SegmentStore
from zkd.store.packing import Packed
from zkd.store.segment_checks import SegmentReader, read_json
from zkd.store.segment_files import (
    HEAD_BYTES,
    SEGMENT_JSON_BYTES_MAX,
    Block,
    blocks,
    packed_head,
    parse,
    short,
    size_of,
)
from zkd.store.segments import OutOfStep
from zkd.store.threads import one_ahead

GOES = 4  # without a byte more than before
PAUSE_S = 0.2  # after the first of them, and twice as long after each
ANSWER_S = 150.0  # for a node that syncs what it was sent, or waits for its turn

Pace = Callable[[int], Awaitable[None]]


class _Received(msgspec.Struct):
    received: int


class _Good(msgspec.Struct):
    good: bool


# --- Sending ----------------------------------------------------------------------------------------------


async def push(
    http: aiohttp.ClientSession,
    address: str,
    token: str,
    source: Path | Packed,
    ref: SegmentRef,
    pace: Pace | None = None,
) -> bool:
    """Have the node keep this segment: it is there, verified and durable, when this returns. False: it was before.

    `source` is its directory, or where it lies in memory. Raises `DataUnavailable` with what the node says;
    `DataDamaged` if what lies in the directory is not the segment. `pace` is awaited with the bytes of each block
    before it is sent.
    """
    if isinstance(source, Packed):
        text, segment = source.text, source.segment
    else:
        text, segment = await asyncio.to_thread(_described, source, ref)
    head = packed_head(text)
    total = len(head) + size_of(segment)
    url = f"{address}/v1/segments/{ref.id}"
    start = idle = 0
    while True:
        sending = _Sending(source, ref.id, segment, head, start, total, pace)
        try:
            status, words = await _put(http, url, token, sending)
        except (aiohttp.ClientError, TimeoutError, OSError, Stopped) as error:
            status, words = 0, words_for(error)
        if sending.fault is not None:
            raise sending.fault
        if status in (200, 201):
            return status == 201
        if status not in (0, 202, 400, 409, 500, 503):
            raise DataUnavailable(f"{address}: HTTP {status}: {words}")
        idle += 1
        if status == 409 and (known := _received(words)) is not None:
            received = known
        else:
            if idle >= GOES:
                raise DataUnavailable(f"{address}: {f'HTTP {status}: ' if status else ''}{words}")
            await asyncio.sleep(PAUSE_S * 2 ** (idle - 1))
            received = await _received_there(http, url, token)
        if received > start:
            idle = 0
        elif idle >= GOES:
            raise DataUnavailable(f"{address}: nothing more than {received} bytes of {total} arrives: {words}")
        start = min(received, total)


def _described(directory: Path, ref: SegmentRef) -> tuple[bytes, Segment]:
    text = read_json(directory, ref.id)
    return text, parse(text, ref.id)


class _Sending:
    """A body: the packed segment from some byte on. Keeps what went wrong with our own files."""

    def __init__(
        self,
        source: Path | Packed,
        segment_id: str,
        segment: Segment,
        head: bytes,
        start: int,
        total: int,
        pace: Pace | None,
    ) -> None:
        self.start = start
        self.total = total
        self.fault: DataDamaged | None = None
        self.patience: asyncio.Timeout | None = None  # with the node; each block that it takes renews it
        self._head = head
        self._segment = segment
        self._pace = pace
        self._source = source
        self._id = segment_id

    async def body(self) -> AsyncGenerator[bytes | memoryview]:
        """Owned by aiohttp, which closes it in a task of its own if that was not read to the end."""
        if self.start < len(self._head):
            yield self._head[self.start :]
        wanted = blocks(self._segment, len(self._head), self.start, self.total)
        if isinstance(self._source, Packed):
            for place in wanted:
                yield await self._next(place, self._source.read(place))
            return
        try:
            with SegmentReader(self._source, self._id, self._segment) as reader:
                async with aclosing(one_ahead(None, wanted, reader.read)) as read:
                    async for place, data in read:
                        yield await self._next(place, memoryview(data))
        except DataDamaged as error:
            self.fault = error
            raise

    async def _next(self, place: Block, data: memoryview) -> memoryview:
        """What of this block is to be sent, when it may be."""
        if self._pace is not None:
            await self._pace(place.size)
        if self.patience is not None and not self.patience.expired():
            self.patience.reschedule(asyncio.get_running_loop().time() + ANSWER_S)
        return data[max(0, self.start - place.start) :]


async def _put(http: aiohttp.ClientSession, url: str, token: str, sending: _Sending) -> tuple[int, str]:
    """Send it; the status and the words of the answer. `TimeoutError` if the node does not take it."""
    start, total = sending.start, sending.total
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Length": str(total - start),
        "Content-Type": "application/octet-stream",
    }
    if start and start < total:
        headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=http.timeout.sock_connect, sock_read=ANSWER_S)

    # aiohttp bounds no body that the other side does not read.
    async with (
        asyncio.timeout(ANSWER_S) as sending.patience,
        aclosing(sending.body()) as body,
        http.put(url, data=body, headers=headers, expect100=True, allow_redirects=False, timeout=timeout) as answer,
    ):
        return answer.status, await words_of(answer)


async def _received_there(http: aiohttp.ClientSession, url: str, token: str) -> int:
    """How far the node got; 0 if it does not say."""
    try:
        async with answered(http, f"{url}/incoming", bearer(token), ANSWER_S) as answer:
            return _received(await words_of(answer)) or 0 if answer.status == 200 else 0
    except Stopped:
        return 0


def _received(text: str) -> int | None:
    try:
        return max(0, msgspec.json.decode(text.encode(), type=_Received).received)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


# --- Fetching ---------------------------------------------------------------------------------------------


async def fetch(
    http: aiohttp.ClientSession,
    addresses: Sequence[str],
    token: str,
    ref: SegmentRef,
    store: SegmentStore,
    pace: Pace | None = None,
) -> None:
    """Bring a segment into a store, verified and durable, from whichever of the nodes has it.

    What had arrived before is not fetched again. `pace` is awaited with the bytes of each piece after it came.
    Raises `DataUnavailable` with what each node says, and `OSError` if the store cannot keep it.
    """
    faults: list[str] = []
    for address in addresses:
        while not store.has(ref.id):
            start = await store.received(ref.id)
            if store.has(ref.id):
                return
            try:
                await _fetch_from(http, address, token, ref, store, start, pace)
            except OutOfStep:
                pass  # somebody else brings it, too
            except (DataDamaged, Stopped) as error:
                faults.append(f"{address}: {error}")
                if not isinstance(error, Stopped) or isinstance(error, Refused):
                    break
            if not store.has(ref.id) and await store.received(ref.id) <= start:
                break
        if store.has(ref.id):
            return
    raise DataUnavailable(f"{short(ref.id)} cannot be fetched: {'; '.join(faults[-8:]) or 'no node has it'}")


async def _fetch_from(
    http: aiohttp.ClientSession,
    address: str,
    token: str,
    ref: SegmentRef,
    store: SegmentStore,
    start: int,
    pace: Pace | None,
) -> None:
    async with opened(http, f"{address}/v1/segments/{ref.id}", token, start, None) as (content, size, total):
        files = total - HEAD_BYTES - ref.size
        if not 0 < files <= SEGMENT_JSON_BYTES_MAX:
            raise Refused(f"expected a segment of {ref.size} bytes, got one of {total} with its manifest")
        await store.receive(ref.id, start, total, _paced(pieces(content, size), pace))


async def _paced(chunks: AsyncIterator[bytes], pace: Pace | None) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk
        if pace is not None:
            await pace(len(chunk))


# --- Verifying --------------------------------------------------------------------------------------------


async def verify(http: aiohttp.ClientSession, address: str, token: str, segment_id: str, timeout_s: float) -> bool:
    """Whether the node's copy is good, read from its disk anew; False also if it has none.

    Raises `DataUnavailable` if it does not say within `timeout_s`.
    """
    url = f"{address}/v1/segments/{segment_id}/verify"
    timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=http.timeout.sock_connect)
    try:
        async with http.post(url, headers=bearer(token), allow_redirects=False, timeout=timeout) as answer:
            words = await words_of(answer)
            if answer.status == 404:
                return False
            if answer.status != 200:
                raise DataUnavailable(f"{address}: HTTP {answer.status}: {words}")
            return msgspec.json.decode(words.encode(), type=_Good).good
    except (aiohttp.ClientError, TimeoutError, OSError, Stopped, msgspec.DecodeError) as error:
        raise DataUnavailable(f"{address}: {words_for(error)}") from None
