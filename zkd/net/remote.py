"""Segments that lie at a URL instead of on nodes: the same bytes as nodes send, one object a segment, named by its id.

Reading believes a place no more than a node: the digest of segment.json is the id, each block is compared with its
checksum and each file with its digest. A place keeps and repairs its copies by itself; zkd removes nothing there,
since other datasets, of other clusters even, may share an object.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

from zkd.errors import DataDamaged, DataUnavailable
from zkd.manifests import Segment, SegmentRef
from zkd.net.places import place_of
from zkd.net.segment_reads import FilesReading, Room, expected, own_room
from zkd.store import SegmentStore
from zkd.store.packing import Packed
from zkd.store.segment_checks import SegmentReader, read_json
from zkd.store.segment_files import (
    HEAD_BYTES,
    SEGMENT_JSON_BYTES_MAX,
    blocks,
    json_bytes,
    packed_head,
    parse,
    short,
    size_of,
)
from zkd.store.threads import in_thread, one_ahead

THREADS = 8  # requests at once; each of them waits for a network
GET_BYTES = 4 * 2**20
HEAD_GUESS_BYTES = 1 << 16  # most segment.json are shorter: one request is enough
TRIES = 3
PAUSE_S = 0.3


class Remote:
    """The segments at this URL. Raises `BadRecord` if it is none, `DataUnavailable` if a package is missing."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._place = place_of(url)
        self._threads = ThreadPoolExecutor(THREADS, "zkd-remote")

    async def put(self, source: Path | Packed, ref: SegmentRef) -> None:
        """Put the segment in this directory, or in memory, there; it is there, whole, when this returns.

        Raises `DataDamaged` if it is not what it should be, `DataUnavailable` if the place does not take it.
        """
        for attempt in range(TRIES):
            try:
                await in_thread(self._threads, self._put, source, ref)
                return
            except OSError as error:
                if attempt == TRIES - 1:
                    raise self._away(ref, error) from None
                await asyncio.sleep(PAUSE_S * 2**attempt)

    def _put(self, source: Path | Packed, ref: SegmentRef) -> None:
        text = source.text if isinstance(source, Packed) else read_json(source, ref.id)
        segment = source.segment if isinstance(source, Packed) else parse(text, ref.id)
        head = packed_head(text)
        total = len(head) + size_of(segment)

        def pieces() -> Iterator[bytes | memoryview]:
            yield head
            places = blocks(segment, len(head), 0, total)
            if isinstance(source, Packed):
                yield from map(source.read, places)
                return
            with SegmentReader(source, ref.id, segment) as reader:
                yield from map(reader.read, places)

        self._place.put(ref.id, pieces())
        size = self._place.size(ref.id)
        if size != total:
            raise OSError(f"expected {total} bytes to lie there, got {size}")

    async def read_files(
        self, ref: SegmentRef, files: Sequence[int], room: Room = own_room
    ) -> tuple[Segment, dict[int, memoryview]]:
        """Some .npy files of a segment, as `zkd.net.segment_reads.read_files` gives them.

        Raises `DataUnavailable`, `DataDamaged`.
        """
        text, segment = await self._describe(ref)
        reading = FilesReading(ref.id, segment, HEAD_BYTES + len(text), files, room)
        while (run := reading.missing()) is not None:
            async with aclosing(self._range(ref, *run)) as pieces:
                await reading.take(pieces)
        return segment, reading.done

    async def fetch(self, ref: SegmentRef, store: SegmentStore) -> None:
        """Bring a segment into a store; what came before is not fetched again.

        Raises as `read_files`, and `OSError` if the store cannot keep it.
        """
        text, _ = await self._describe(ref)
        total = HEAD_BYTES + len(text) + ref.size
        start = await store.received(ref.id)
        async with aclosing(self._range(ref, start, total)) as pieces:
            await store.receive(ref.id, start, total, pieces)

    async def has(self, ref: SegmentRef) -> bool:
        """Whether an object of its size is there; what is in it is not looked at. Raises `DataUnavailable`."""
        try:
            size = await in_thread(self._threads, self._place.size, ref.id)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._away(ref, error) from None
        return HEAD_BYTES < size - ref.size <= HEAD_BYTES + SEGMENT_JSON_BYTES_MAX

    async def verify(self, ref: SegmentRef) -> bool:
        """Whether all of it is there and good. Raises `DataUnavailable` if that cannot be told."""
        try:
            _, segment = await self._describe(ref)
            for number in range(len(segment.files)):
                await self.read_files(ref, [number])
        except DataDamaged:
            return False
        return True

    async def _describe(self, ref: SegmentRef) -> tuple[bytes, Segment]:
        head = await self._get(ref, 0, HEAD_GUESS_BYTES)
        length = json_bytes(head[:HEAD_BYTES])
        if len(head) < HEAD_BYTES + length:
            head += await self._get(ref, len(head), HEAD_BYTES + length)
        text = head[HEAD_BYTES : HEAD_BYTES + length]
        return text, expected(text, ref)

    async def _range(self, ref: SegmentRef, start: int, stop: int) -> AsyncGenerator[bytes]:
        """These bytes, in pieces. `DataDamaged` if there are fewer."""
        steps = ((at, min(at + GET_BYTES, stop)) for at in range(start, stop, GET_BYTES))
        try:
            async with aclosing(one_ahead(self._threads, steps, lambda step: self._place.get(ref.id, *step))) as read:
                async for (at, end), data in read:
                    if len(data) != end - at:
                        raise DataDamaged(f"{short(ref.id)} at {self.url}: it ends at byte {at + len(data)}")
                    yield data
        except OSError as error:
            raise self._judged(ref, error) from None

    async def _get(self, ref: SegmentRef, start: int, stop: int) -> bytes:
        try:
            return await in_thread(self._threads, self._place.get, ref.id, start, stop)
        except OSError as error:
            raise self._judged(ref, error) from None

    def _judged(self, ref: SegmentRef, error: OSError) -> Exception:
        if isinstance(error, FileNotFoundError):
            return DataDamaged(f"{short(ref.id)} is not at {self.url}")
        return self._away(ref, error)

    def _away(self, ref: SegmentRef, error: OSError) -> DataUnavailable:
        return DataUnavailable(f"{short(ref.id)} at {self.url}: {error.strerror or error}")
