"""Sends the parts of a new version to the nodes they belong to, until each has its quorum of durable copies.

A part's segment is made in memory, or as files in $TMPDIR if it is large, sent to all of its homes at the same time and
forgotten. `zkd.client.quorums` says to whom.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path
from typing import TYPE_CHECKING

from zkd.client.quorums import Quorums
from zkd.errors import DataDamaged, DataUnavailable

if TYPE_CHECKING:
    import aiohttp

    from zkd.client.copies import Scene
    from zkd.client.merging import Merging
    from zkd.core.datasets import Parts
    from zkd.manifests import SegmentRef
    from zkd.net.remote import Remote
    from zkd.paths import NodeId
    from zkd.store.packing import Packed
    from zkd.tables.assemble import Piece
    from zkd.tables.partition import Partition

# Parts on their way at the same time: a node syncs many together at the price of one.
PARTS_AT_ONCE = 16
PARTS_AT_ONCE_MIN = 2
IN_FLIGHT_BYTES = 64 * 2**20  # of all of them together, as long as two are less


@dataclass(frozen=True)
class Progress:
    """How far a `put` is. While rows are read nobody knows how many there are."""

    rows: int  # read so far
    parts: int  # of the dataset that have rows
    parts_done: int  # with their quorum
    bytes_done: int  # of one copy of these
    missing: int = 0  # copies of each part that there are no nodes for now; they are made when some come


Tell = Callable[[Progress], None]


class Sending:
    def __init__(
        self,
        name: str,
        partition: Partition,
        replicas: int,
        wanted: int,
        scene: Scene,
        http: aiohttp.ClientSession,
        token: str,
        directory: Path,
        tell: Tell | None,
        remote: Remote | None = None,
        *,
        here: Callable[[], Awaitable[Collection[NodeId]]],
        merging: Merging | None = None,
    ) -> None:
        """`wanted` copies of each part have to be durable. `here` asks which nodes are here now, `merging` has the
        segments that the rows are appended to."""
        self._partition = partition
        self._quorums = Quorums(name, partition.parts, replicas, scene, here, wanted)
        self._missing = max(0, replicas - len(scene.keepers)) if remote is None else 0
        self._scene = scene
        self._http = http
        self._token = token
        self._directory = directory
        self._tell = tell
        self._remote = remote  # instead of all nodes
        self._merging = merging
        self._rooms: Rooms | None = None  # None: parts are too large to lie in memory
        self._parts_done = self._bytes_done = 0

    async def run(self) -> Parts:
        """Send all parts; their segments. `DataUnavailable` when one cannot have its quorum."""
        from zkd.store.packing import room_bytes

        partition = self._partition
        refs: list[tuple[SegmentRef, ...]] = [()] * partition.parts
        largest = room_bytes(int(partition.counts.max()), partition.columns)
        at_once = max(PARTS_AT_ONCE_MIN, min(PARTS_AT_ONCE, IN_FLIGHT_BYTES // largest))
        if at_once * largest <= 2 * IN_FLIGHT_BYTES:
            self._rooms = Rooms(largest)
        turns = asyncio.Semaphore(at_once)

        async def one(part: int, directory: Path) -> None:
            try:
                refs[part] = (await self._part(part, directory),)
            finally:
                turns.release()

        try:
            with tempfile.TemporaryDirectory(prefix="zkd-", dir=self._directory) as temporary:
                async with asyncio.TaskGroup() as tasks:
                    for part in range(partition.parts):
                        if partition.counts[part]:
                            await turns.acquire()
                            tasks.create_task(one(part, Path(temporary) / str(part)))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        return tuple(refs)

    def tell(self) -> None:
        if self._tell is not None:
            filled = int((self._partition.counts > 0).sum())
            self._tell(Progress(self._partition.rows, filled, self._parts_done, self._bytes_done, self._missing))

    async def _part(self, part: int, directory: Path) -> SegmentRef:
        ref = await self._merged(part)
        if ref is not None:
            pass
        elif self._rooms is not None:
            room = self._rooms.take()
            packed = await asyncio.to_thread(self._pack, part, room, ())
            ref = packed.ref
            if await self._bring(part, packed, ref):
                self._rooms.give_back(room)
        else:
            try:
                ref = await asyncio.to_thread(self._write, part, directory)
                await self._bring(part, directory, ref)
            finally:
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        self._parts_done += 1
        self._bytes_done += ref.size
        self.tell()
        return ref

    async def _merged(self, part: int) -> SegmentRef | None:
        """Send the new rows of a part in one segment with some that it has.

        None: it has few, or they cannot be read now.
        """
        from zkd.store.packing import room_bytes

        columns, rows = self._partition.columns, int(self._partition.counts[part])
        if self._merging is None or not (count := self._merging.count(part, room_bytes(rows, columns))):
            return None
        async with self._merging.turns:
            pieces = await self._merging.read(part, count)
            if not pieces:
                return None
            room = memoryview(bytearray(room_bytes(rows + sum(len(numbers) for numbers, _ in pieces), columns)))
            packed = await asyncio.to_thread(self._pack, part, room, pieces)
            await self._bring(part, packed, packed.ref)
        return packed.ref

    def _pack(self, part: int, room: memoryview, after: Sequence[Piece]) -> Packed:
        from zkd.store.packing import pack

        partition = self._partition
        rows = int(partition.counts[part]) + sum(len(numbers) for numbers, _ in after)
        return pack(room, rows, partition.columns, partial(partition.fill, part, after=after))

    def _write(self, part: int, directory: Path) -> SegmentRef:
        from zkd.store.segment_files import write

        partition = self._partition
        return write(directory, int(partition.counts[part]), partition.columns, partition.buffers(part))

    async def _bring(self, part: int, source: Path | Packed, ref: SegmentRef) -> bool:
        """Bring it to where it belongs; whether nobody reads `source` any more."""
        if self._remote is not None:
            await self._remote.put(source, ref)
            return True
        return await self._quorums.reach(part, ref.size, lambda node: self._copy(node, source, ref))

    async def _copy(self, node: NodeId, source: Path | Packed, ref: SegmentRef) -> str | None:
        """Why this node has no copy, or None when it has."""
        from zkd.net.segments import push

        address = self._scene.address(node)
        if address is None:
            return "it serves no data"
        try:
            await push(self._http, address, self._token, source, ref)
        except (DataUnavailable, DataDamaged) as error:
            return str(error)
        return None


class Rooms:
    """Memory for segments on their way, used again and again: to have it for the first time costs as much as to fill it
    thrice."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        if self._free:
            return self._free.pop()
        room = mmap(-1, self._size, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without
            room.madvise(MADV_HUGEPAGE)
        return memoryview(room)

    def give_back(self, room: memoryview) -> None:
        self._free.append(room)
