"""Brings segments to a program: mapped where they lie on this machine, else from any node that has them.

Either way each byte is compared with its checksum before anybody gets it. A copy that is damaged, missing or slow
costs a try at the next one, never a wrong number.
"""

from __future__ import annotations

import asyncio
import os
from mmap import PROT_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING

from zkd.client.race import Pace, first_good
from zkd.errors import BadRecord, DataContradicts, DataDamaged

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    import aiohttp

    from zkd.client.copies import Scene
    from zkd.manifests import Column, Segment, SegmentRef
    from zkd.net.remote import Remote
    from zkd.net.segment_reads import Room
    from zkd.paths import NodeId
    from zkd.store.segment_checks import SegmentReader
    from zkd.tables.columns import Columns
    from zkd.tables.partition import Numbers

READS_AT_ONCE = 6  # segments; each is in memory while it comes


class Reading:
    """`http` and `token` are those of the cluster's data plane."""

    def __init__(self, http: aiohttp.ClientSession, token: Callable[[], Awaitable[str]]) -> None:
        self._http = http
        self._token = token
        self._pace = Pace()
        self._turns = asyncio.Semaphore(READS_AT_ONCE)
        self._good: set[tuple[Path, int, int, int]] = set()  # local files that were checked, as they were then

    async def segment(
        self,
        scene: Scene,
        sources: Sequence[NodeId],
        ref: SegmentRef,
        columns: Sequence[tuple[int, Column]],
        *,
        room: Room | None,
        is_whole: bool,
    ) -> tuple[Numbers, Columns]:
        """The numbers of the segment's rows and these of its columns, each with the number of its file, from 1.

        They are read into `room`; without, what lies here is mapped, which costs a file descriptor for each.
        `is_whole`: these are all columns.
        Raises `DataUnavailable` if nobody has them.
        """
        async with self._turns:
            for node in sources:
                directory = scene.local(node)
                if directory is not None:
                    found = await asyncio.to_thread(self._local, directory / ref.id, ref, columns, room)
                    if found is not None:
                        return found
            return await self._fetched(scene, sources, ref, columns, room, is_whole)

    async def segment_at(
        self, remote: Remote, ref: SegmentRef, columns: Sequence[tuple[int, Column]], room: Room | None
    ) -> tuple[Numbers, Columns]:
        """`segment`, of one that lies at a URL. Raises `DataUnavailable`, and `DataDamaged`: there is no other copy."""
        from zkd.net.segment_reads import own_room

        async with self._turns:
            segment, read = await remote.read_files(ref, _numbers(columns), room or own_room)
            return await asyncio.to_thread(_arrays, segment, read, columns)

    # --- Here ---------------------------------------------------------------------------------------------

    def _local(
        self, directory: Path, ref: SegmentRef, columns: Sequence[tuple[int, Column]], room: Room | None
    ) -> tuple[Numbers, Columns] | None:
        """From a node's own files; None if they are not there, not for us to read, or not good."""
        from zkd.net.segment_reads import expected
        from zkd.store.segment_checks import SegmentReader, read_json

        try:
            segment = expected(read_json(directory, ref.id), ref)
            _expect(segment, columns)  # before anything is reserved
            with SegmentReader(directory, ref.id, segment) as reader:
                files: dict[int, memoryview | mmap] = {}
                for number in _numbers(columns):
                    if room is None:
                        files[number] = self._mapped(reader, directory, segment, number)
                    else:
                        files[number] = into = room(segment.files[number].size)
                        reader.fill(number, into)
            return _arrays(segment, files, columns)
        except DataContradicts:
            raise
        except (DataDamaged, OSError, MemoryError):
            return None

    def _mapped(self, reader: SegmentReader, directory: Path, segment: Segment, number: int) -> mmap:
        """A map of a file, after its bytes were compared since it last changed."""
        from zkd.store.segment_files import file_name

        path = directory / file_name(number)
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            mark = (path, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
            if mark not in self._good:
                for block in range(len(segment.files[number].blocks)):
                    reader.block(number, block)
                self._good.add(mark)
            return mmap(file.fileno(), 0, prot=PROT_READ)

    # --- From afar ----------------------------------------------------------------------------------------

    async def _fetched(
        self,
        scene: Scene,
        sources: Sequence[NodeId],
        ref: SegmentRef,
        columns: Sequence[tuple[int, Column]],
        room: Room | None,
        is_whole: bool,
    ) -> tuple[Numbers, Columns]:
        from zkd.net.segment_reads import own_room, read_files

        token = await self._token()
        files = _numbers(columns)

        async def ask(node: NodeId) -> tuple[Numbers, Columns]:
            address = scene.address(node)
            assert address is not None, "sources have one"
            segment, read = await read_files(
                self._http, [address], token, ref, files, is_whole=is_whole, room=room or own_room
            )
            return _arrays(segment, read, columns)

        return await first_good(sources, ask, self._pace, ref.size, f"segment {ref.id[:12]} of {ref.rows} rows")


def _numbers(columns: Sequence[tuple[int, Column]]) -> list[int]:
    """The files that have them, and the one that has the numbers of the rows."""
    return [0, *(number for number, _ in columns)]


def _arrays(
    segment: Segment, files: Mapping[int, memoryview | mmap], columns: Sequence[tuple[int, Column]]
) -> tuple[Numbers, Columns]:
    """The arrays in these files, whose bytes were compared."""
    from zkd.arrays import from_octets
    from zkd.store.segment_files import header_of

    _expect(segment, columns)
    try:
        rows = from_octets(files[0], "<i8", (segment.rows,), len(header_of(segment, 0)))
        arrays = {}
        for number, column in columns:
            shape, start = (segment.rows, *column.shape), len(header_of(segment, number))
            arrays[column.name] = from_octets(files[number], segment.columns[number - 1].dtype, shape, start)
    except BadRecord as error:  # such as truth values of 7
        raise DataDamaged(f"a segment has bytes that are no values: {error}") from None
    return rows, arrays


def _expect(segment: Segment, columns: Sequence[tuple[int, Column]]) -> None:
    """`DataContradicts` unless these files of the segment are the columns that the manifest says."""
    for number, column in columns:
        found = segment.columns[number - 1] if number <= len(segment.columns) else None
        # Text may have grown wider in later segments; all else is as it was.
        is_same = found is not None and (found.dtype == column.dtype or _is_narrower(found.dtype, column.dtype))
        if found is None or not is_same or (found.name, found.shape) != (column.name, column.shape):
            raise DataContradicts(f"file {number} of a segment is not the column {column.name!r} of its dataset")


def _is_narrower(text: str, other: str) -> bool:
    return text[1] in "US" and text[1] == other[1] and int(text[2:]) <= int(other[2:])
