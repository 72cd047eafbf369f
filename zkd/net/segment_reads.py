"""Reads some columns of a segment from the nodes that have it, into memory, for who does not want to keep it.

The digest of segment.json is the segment's id, so nothing is believed but that; each block is compared with its
checksum as it comes and each file with its digest at its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import aiohttp
from blake3 import blake3
from xxhash import xxh3_64_intdigest

from zkd.errors import DataContradicts, DataDamaged, DataUnavailable
from zkd.manifests import BLOCK_BYTES, Segment, SegmentRef
from zkd.net.bodies import MIB, Refused, Stopped, answered, bearer, opened, pieces, words_of
from zkd.store.segment_files import (
    HEAD_BYTES,
    SEGMENT_JSON_BYTES_MAX,
    file_name,
    header_of,
    json_bytes,
    parse,
    short,
    size_of,
)

Room = Callable[[int], memoryview]


def own_room(size: int) -> memoryview:
    """Of which the kernel gives no more than is written to."""
    return memoryview(bytearray(size))


async def manifest(http: aiohttp.ClientSession, address: str, token: str, ref: SegmentRef) -> tuple[Segment, int]:
    """What segment.json of this segment says, and its length. Raises `Stopped`, `DataDamaged`."""
    url = f"{address}/v1/segments/{ref.id}/manifest"
    async with answered(http, url, bearer(token)) as answer:
        if answer.status != 200:
            raise Refused(f"HTTP {answer.status}: {await words_of(answer)}")
        size = answer.content_length
        if size is None or size > SEGMENT_JSON_BYTES_MAX:
            raise Refused(f"expected at most {SEGMENT_JSON_BYTES_MAX} bytes, got {size}")
        text = b"".join([piece async for piece in pieces(answer.content, size)])
    return expected(text, ref), len(text)


def expected(text: bytes, ref: SegmentRef) -> Segment:
    """The segment that segment.json describes, if it is the one that the manifest lists."""
    segment = parse(text, ref.id)
    if size_of(segment) != ref.size or segment.rows != ref.rows:
        raise DataContradicts(f"{short(ref.id)}: expected {ref.rows} rows in {ref.size} bytes, it has other ones")
    return segment


async def _head(chunks: AsyncIterator[bytes], ref: SegmentRef, total: int) -> tuple[bytes, bytes] | None:
    """segment.json at the beginning of a packed segment, and what came with it. None: its files have another size."""
    length = total - HEAD_BYTES - ref.size  # by its size, as it says itself in its head
    if not 0 < length <= SEGMENT_JSON_BYTES_MAX:
        return None
    head = b""
    while len(head) < HEAD_BYTES:
        head += await anext(chunks)
    if json_bytes(head[:HEAD_BYTES]) != length:
        return None
    while len(head) < HEAD_BYTES + length:
        head += await anext(chunks)
    return head[HEAD_BYTES : HEAD_BYTES + length], head[HEAD_BYTES + length :]


async def _after(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in chunks:
        yield chunk


async def read_files(
    http: aiohttp.ClientSession,
    addresses: Sequence[str],
    token: str,
    ref: SegmentRef,
    files: Sequence[int],
    *,
    is_whole: bool = False,
    room: Room = own_room,
) -> tuple[Segment, dict[int, memoryview]]:
    """Some .npy files of a segment, by number (0: the rows' numbers, n: column n - 1), verified, in memory.

    Goes on at another node where one stops. Raises `DataUnavailable` with what each says. An address may be given
    more than once to be asked more than once. `is_whole` says that these are all its files, as far as is known: then
    one question is enough. They lie in what `room` gives for the size of each.
    """
    faults: list[str] = []
    reading: FilesReading | None = None
    for address in addresses:
        try:
            url = f"{address}/v1/segments/{ref.id}"
            if reading is None and is_whole:
                async with opened(http, url, token, 0, None) as (content, size, total):
                    chunks = pieces(content, size)
                    head = await _head(chunks, ref, total)
                    if head is not None:
                        text, rest = head
                        reading = FilesReading(ref.id, expected(text, ref), HEAD_BYTES + len(text), files, room)
                        if len(files) == len(reading.segment.files):
                            await reading.take(_after(rest, chunks))
            if reading is None:  # or it does not fit, and its segment.json says who lies
                segment, json_size = await manifest(http, address, token, ref)
                reading = FilesReading(ref.id, segment, HEAD_BYTES + json_size, files, room)
            while (run := reading.missing()) is not None:
                async with opened(http, url, token, *run) as (content, size, _):
                    await reading.take(pieces(content, size))
            return reading.segment, reading.done
        except DataContradicts:
            raise
        except (DataDamaged, Stopped) as error:
            faults.append(f"{address}: {error}")
    raise DataUnavailable(f"{short(ref.id)} cannot be read: {'; '.join(faults[-8:]) or 'no node has it'}")


def _had(room: Room, size: int) -> memoryview:
    try:
        return room(size)
    except (MemoryError, OverflowError, ValueError):
        raise DataUnavailable(f"there is no memory for a file of {size} bytes") from None


class FilesReading:
    """The files of a segment that are wanted, those that are here, and how far the one is that comes now."""

    def __init__(
        self, segment_id: str, segment: Segment, head_bytes: int, files: Sequence[int], room: Room = own_room
    ) -> None:
        self.segment = segment
        self.done: dict[int, memoryview] = {}
        self._room = room
        self._id = segment_id
        self._wanted = sorted(set(files))
        if self._wanted and self._wanted[-1] >= len(segment.files):
            raise DataContradicts(f"{short(segment_id)} has {len(segment.files)} files, not {self._wanted[-1] + 1}")
        self._starts = [head_bytes]
        for file in segment.files:
            self._starts.append(self._starts[-1] + file.size)
        self._begin()

    def _begin(self) -> None:
        """Turn to the next file."""
        self._data: memoryview | None = None
        self._came = 0  # bytes of it,
        self._good = 0  # and of those that are right
        self._digest = blake3()

    def missing(self) -> tuple[int, int] | None:
        """The next run of bytes that has to be fetched, None if there is no more: neighbours come together."""
        left = self._wanted[len(self.done) :]
        if not left:
            return None
        last = 0
        while last + 1 < len(left) and left[last + 1] == left[last] + 1:
            last += 1
        return self._starts[left[0]] + self._good, self._starts[left[last] + 1]

    async def take(self, chunks: AsyncIterator[bytes]) -> None:
        """Take the bytes of `missing`. Raises `DataDamaged`, and what `chunks` does: what was right before stays."""
        self._came = self._good
        pending: list[bytes] = []
        size = 0
        async for chunk in chunks:
            pending.append(chunk)
            size += len(chunk)
            if size >= MIB:
                await asyncio.to_thread(self._add, pending)
                pending, size = [], 0
        await asyncio.to_thread(self._add, pending)

    def _add(self, chunks: Sequence[bytes]) -> None:
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = self._add_to_file(self._wanted[len(self.done)], rest)

    def _add_to_file(self, number: int, data: memoryview) -> memoryview:
        """Take what belongs to this file; what does not."""
        file = self.segment.files[number]
        if self._data is None:
            self._data = _had(self._room, file.size)
        taken = data[: file.size - self._came]
        self._data[self._came : self._came + len(taken)] = taken
        self._came += len(taken)
        self._check(number, self._data)
        if self._good == file.size:
            if self._digest.hexdigest() != file.blake3:
                self._begin()
                raise DataDamaged(f"{short(self._id)}: {file_name(number)} has another digest")
            self.done[number] = self._data
            self._begin()
        return data[len(taken) :]

    def _check(self, number: int, data: memoryview) -> None:
        """Check the blocks that are complete."""
        file = self.segment.files[number]
        while self._good < file.size:
            stop = min(self._good + BLOCK_BYTES, file.size)
            if stop > self._came:
                return
            block = data[self._good : stop]
            if xxh3_64_intdigest(block) != file.blocks[self._good // BLOCK_BYTES]:
                raise DataDamaged(f"{short(self._id)}: {file_name(number)} has another checksum")
            if not self._good and block[: len(header := header_of(self.segment, number))] != header:
                raise DataDamaged(f"{short(self._id)}: {file_name(number)}: expected its .npy header")
            self._digest.update(block)
            self._good = stop
