"""Brings segments to a program: mapped where they lie on this machine, else from any node that has them.

Either way each byte is compared with its checksum before anybody gets it. A copy that is damaged, missing or slow
costs a try at the next one, never a wrong number.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zkd.client.race import Pace, first_good
from zkd.errors import BadRecord, DataDamaged

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import aiohttp

    from zkd.client.copies import Scene
    from zkd.manifests import Column, Segment, SegmentRef
    from zkd.paths import NodeId
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
        self._good: set[tuple[Path, int, int]] = set()  # local files that were checked, and when they last changed

    async def segment(
        self, scene: Scene, sources: Sequence[NodeId], ref: SegmentRef, columns: Sequence[tuple[int, Column]]
    ) -> tuple[Numbers, Columns]:
        """The numbers of the segment's rows and these of its columns, each with the number of its file, from 1.

        Raises `DataUnavailable` if nobody has them.
        """
        async with self._turns:
            for node in sources:
                directory = scene.local(node)
                if directory is not None:
                    found = await asyncio.to_thread(self._mapped, directory / ref.id, ref, columns)
                    if found is not None:
                        return found
            return await self._fetched(scene, sources, ref, columns)

    # --- Here ---------------------------------------------------------------------------------------------

    def _mapped(
        self, directory: Path, ref: SegmentRef, columns: Sequence[tuple[int, Column]]
    ) -> tuple[Numbers, Columns] | None:
        """Memory maps of a node's own files; None if they are not there, not for us to read, or not good."""
        from zkd.arrays import open_npy
        from zkd.store.segment_checks import SegmentReader, read_segment
        from zkd.store.segment_files import file_name

        try:
            segment = read_segment(directory, ref.id)
            _expect(segment, columns)
            with SegmentReader(directory, ref.id, segment) as reader:
                for number in (0, *(number for number, _ in columns)):
                    stat = os.stat(directory / file_name(number))
                    mark = (directory / file_name(number), stat.st_mtime_ns, stat.st_ctime_ns)
                    if mark not in self._good:
                        for block in range(len(segment.files[number].blocks)):
                            reader.block(number, block)
                        self._good.add(mark)
            rows = open_npy(directory / file_name(0))
            return rows, {column.name: open_npy(directory / file_name(number)) for number, column in columns}
        except (DataDamaged, BadRecord, OSError):
            return None

    # --- From afar ----------------------------------------------------------------------------------------

    async def _fetched(
        self, scene: Scene, sources: Sequence[NodeId], ref: SegmentRef, columns: Sequence[tuple[int, Column]]
    ) -> tuple[Numbers, Columns]:
        from zkd.net.segment_reads import read_files

        token = await self._token()
        files = [0, *(number for number, _ in columns)]

        async def ask(node: NodeId) -> tuple[Numbers, Columns]:
            address = scene.address(node)
            assert address is not None, "sources have one"
            segment, read = await read_files(self._http, [address], token, ref, files)
            return _arrays(segment, read, columns)

        return await first_good(sources, ask, self._pace, ref.size, f"segment {ref.id[:12]} of {ref.rows} rows")


def _arrays(
    segment: Segment, files: dict[int, bytearray], columns: Sequence[tuple[int, Column]]
) -> tuple[Numbers, Columns]:
    from zkd.arrays import read_npy

    _expect(segment, columns)
    try:
        return read_npy(files[0]), {column.name: read_npy(files[number]) for number, column in columns}
    except BadRecord as error:  # such as truth values of 7
        raise DataDamaged(f"a segment has bytes that are no values: {error}") from None


def _expect(segment: Segment, columns: Sequence[tuple[int, Column]]) -> None:
    """`DataDamaged` unless these files of the segment are the columns that the manifest says."""
    for number, column in columns:
        found = segment.columns[number - 1] if number <= len(segment.columns) else None
        # Text may have grown wider in later segments; all else is as it was.
        is_same = found is not None and (
            found.dtype == column.dtype or (found.dtype[1] in "US" and found.dtype[1] == column.dtype[1])
        )
        if found is None or not is_same or (found.name, found.shape) != (column.name, column.shape):
            raise DataDamaged(f"file {number} of a segment is not the column {column.name!r} of its dataset")
