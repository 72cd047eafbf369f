"""Sends the parts of a new version to the nodes they belong to, until each has its quorum of durable copies.

A part's segment is made in memory, or as files in $TMPDIR if it is large, sent to all of its homes at the same time and
forgotten. A node that refuses, stalls or goes away is left out from then on, and the next one that would have the part
takes its place. When the quorum is there, the slower copies get a little time; what is missing then nodes fetch from
each other.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path
from typing import TYPE_CHECKING

from zkd.client import copies
from zkd.client.race import Pace
from zkd.errors import DataDamaged, DataUnavailable, ZooKeeperError

if TYPE_CHECKING:
    import aiohttp

    from zkd.client.copies import Homes, Scene
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
SLOW_S = 5.0  # a copy that takes longer, and longer than others do, is sent to another node, too
LATE_S = 1.0  # after the quorum, and twice the time that the quorum took


@dataclass(frozen=True)
class Progress:
    """How far a `put` is. While rows are read nobody knows how many there are."""

    rows: int  # read so far
    parts: int  # of the dataset that have rows
    parts_done: int  # with their quorum
    bytes_done: int  # of one copy of these


Tell = Callable[[Progress], None]


def quorum(replicas: int) -> int:
    """How many copies have to be durable before a version becomes visible: more than half."""
    return (replicas + 2) // 2


class Sending:
    def __init__(
        self,
        name: str,
        partition: Partition,
        replicas: int,
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
        """`here` asks which nodes are here now, `merging` has the segments that the rows are appended to."""
        self._name = name
        self._partition = partition
        self._replicas = replicas
        self._scene = scene
        self._http = http
        self._token = token
        self._directory = directory
        self._tell = tell
        self._remote = remote  # instead of all nodes
        self._ask_here = here
        self._merging = merging
        self._pace = Pace()
        self._out: dict[NodeId, str] = {}  # nodes that failed, and how
        self._slow: set[NodeId] = set()  # nodes that are asked last
        self._homes: tuple[tuple[frozenset[NodeId], ...], Homes] | None = None
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
            self._tell(Progress(self._partition.rows, filled, self._parts_done, self._bytes_done))

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
        return await self._send(part, source, ref)

    # --- Copies -------------------------------------------------------------------------------------------

    async def _send(self, part: int, source: Path | Packed, ref: SegmentRef) -> bool:
        wanted = quorum(self._replicas)
        now = time.monotonic
        began = now()
        answers: asyncio.Queue[tuple[NodeId, str | None]] = asyncio.Queue()
        asked: set[NodeId] = set()
        good = in_flight = 0
        is_over = True  # for all whom it was sent to: what was cut short may lie in a socket's queue

        async def one(node: NodeId) -> None:
            answers.put_nowait((node, await self._copy(node, source, ref)))

        async with asyncio.TaskGroup() as tasks:
            running: dict[NodeId, asyncio.Task[None]] = {}
            more = 0  # copies to try beyond those that should be, for those that are slow
            while True:
                for node in await self._next(part, asked, self._replicas + more - good - in_flight):
                    asked.add(node)
                    running[node] = tasks.create_task(one(node))
                    in_flight += 1
                if not in_flight:
                    break
                took = now() - began
                patience = max(SLOW_S, 4 * self._pace.delay_s(ref.size)) if good < wanted else LATE_S + 2 * took
                try:
                    async with asyncio.timeout(patience):
                        node, fault = await answers.get()
                except TimeoutError:
                    if good >= wanted:
                        break
                    more += 1
                    self._slow |= running.keys()
                    here = await self._here()
                    for gone in running.keys() - set(
                        here
                    ):  # frozen, say: its session is over, and others count on that
                        running.pop(gone).cancel()
                        in_flight -= 1
                        is_over = False
                        self._out[gone] = "it is gone"
                    continue
                if node not in running:
                    continue  # it went while it answered
                in_flight -= 1
                del running[node]
                if fault is None:
                    good += 1
                    self._slow.discard(node)
                    self._pace.took(ref.size, now() - began)
                    if good >= self._replicas:
                        break
                else:
                    self._out[node] = fault
                    is_over = False
            is_over = is_over and not running
            for task in running.values():
                task.cancel()
        if good < wanted:
            told = "; ".join(f"{node}: {fault}" for node, fault in self._out.items()) or "there are no other nodes"
            raise DataUnavailable(
                f"{self._name}: part {part} has {good} durable cop{'y' if good == 1 else 'ies'} of the {wanted} that "
                f"it needs to be seen: {told}"
            )
        return is_over

    async def _here(self) -> Collection[NodeId]:
        try:
            return await self._ask_here()
        except ZooKeeperError:
            return self._scene.nodes  # nobody knows better

    async def _next(self, part: int, asked: set[NodeId], count: int) -> list[NodeId]:
        """The next nodes to have this part, when those that failed are not counted."""
        if count <= 0:
            return []
        without = frozenset(self._out), frozenset(self._slow)
        if self._homes is None or self._homes[0] != without:
            left = [keeper for keeper in self._scene.keepers if keeper.node not in self._out]
            quick = [keeper for keeper in left if keeper.node not in self._slow]
            orders = [
                await copies.homes(self._name, self._partition.parts, replicas, keepers)
                for keepers in (quick, left)
                for replicas in (self._replicas, self._replicas + 1)  # one more, for when one is slow
            ]
            self._homes = (without, [tuple(dict.fromkeys(chain(*each))) for each in zip(*orders, strict=True)])
        return [node for node in self._homes[1][part] if node not in asked][:count]

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
