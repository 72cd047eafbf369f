"""Answers which rows have a key, in one hop: of the parts that lie on this node.

    key -> hash -> part -> its segments -> index of each -> the rows whose keys are equal -> their cells

The index of a segment is made on first use, by a process that has numpy, from files that were just compared with their
checksums; searching it and reading a few cells takes neither. Every cell that is answered comes out of a block that
was checked; what turns out to be damaged is taken out of the way, and others are named that have the part.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
from structlog.typing import FilteringBoundLogger as Log

from zkd.core.atlas import Atlas
from zkd.core.datasets import mark_of
from zkd.core.placement import hash_key, part_of
from zkd.errors import BadRecord, DataDamaged, DataElsewhere, DatasetNotFound, DataUnavailable
from zkd.manifests import Manifest, Segment, SegmentRef
from zkd.paths import NodeId
from zkd.store import SegmentStore
from zkd.store.cells import ROWS, Blocks, Key, cell, is_key, key_type, parse_key, widened
from zkd.store.key_index import KeyIndex, index_name
from zkd.store.segment_checks import SegmentReader
from zkd.store.segment_files import file_name, item_bytes

OPEN_MAX = 256  # indexes, each a file that is mapped
ROWS_MAX = 10_000  # of one key in one answer,
BYTES_MAX = 32 * 2**20  # and their bytes
INDEXES = "segments.index"

Make = Callable[[Sequence[tuple[Path, Path]]], Awaitable[None]]


class _Hit(msgspec.Struct, frozen=True):
    """A row that has the key: its number in the dataset, and where it lies."""

    number: bytes
    segment: Segment
    segment_id: str
    row: int


class Lookup:
    def __init__(
        self,
        node: NodeId,
        store: SegmentStore,
        atlas: Atlas,
        look: Callable[[str], Awaitable[None]],
        data_dir: Path,
        make: Make,
        log: Log,
    ) -> None:
        self._node = node
        self._store = store
        self._atlas = atlas
        self._look = look
        self._directory = data_dir / INDEXES
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._make = make
        self._log = log
        self._open: OrderedDict[str, tuple[Segment, KeyIndex]] = OrderedDict()
        self._making = asyncio.Lock()
        self._blocks = Blocks()
        self._thread = ThreadPoolExecutor(1, "zkd-rows")  # one: the blocks that were read last are its own
        for path in self._directory.iterdir():
            if path.suffix == ".tmp" or not store.has(path.name.partition(".")[0]):
                path.unlink(missing_ok=True)

    async def rows(
        self, name: str, version: int, text: str, kind: str, columns: Sequence[str], *, of: str | None = None
    ) -> bytes:
        """JSON of the rows with this key: their numbers and the cells of `columns`, or of all, in the written order.

        `of`: the mark of the version that is meant; versions of a tree that was made anew may have its number.

        Raises `BadRecord` if that was not said rightly, `DatasetNotFound`, `DataElsewhere` if the part is not here,
        and what ZooKeeper answers when the version is one that we have not heard of.
        """
        manifest = self._atlas.manifest(name, version)
        if manifest is None or of not in (None, mark_of(manifest)):
            await self._look(name)
            manifest = self._atlas.manifest(name, version)
        if manifest is None:
            why = self._atlas.refusal(name, version) or "no such version"
            raise DatasetNotFound(f"{name}@{version}: {why}")
        if of not in (None, mark_of(manifest)):
            raise DatasetNotFound(f"{name}@{version} was removed, and made anew")
        chosen = self._chosen(manifest, columns)
        key = self._key(manifest, text, kind)
        part = part_of(hash_key(key), manifest.parts)
        refs = self._atlas.segments(name, version, part) or ()
        for _ in range(2):  # one may turn out to be damaged, or to go, while we read
            self._expect_here(name, version, part, refs)
            try:
                indexes = await self._indexes(manifest, refs)
                loop = asyncio.get_running_loop()
                answer = partial(self._answer, manifest, part, refs, indexes, key, chosen)
                return await loop.run_in_executor(self._thread, answer)
            except _Damaged as error:
                self._log.warning("segment.damaged", segment=error.segment_id, error=str(error))
                with suppress(DataUnavailable):
                    await self._store.verify(error.segment_id)  # and takes it out of the way
            except DataDamaged as error:
                self._log.warning("segment.damaged", error=str(error))
        raise self._elsewhere(name, version, part)

    def forget(self, segment_id: str) -> None:
        """It is here no more."""
        self._thread.submit(self._blocks.forget, segment_id)
        for opened in [each for each in self._open if each.startswith(segment_id)]:
            del self._open[opened]
            with suppress(OSError):
                (self._directory / opened).unlink(missing_ok=True)

    # --- What is asked for ------------------------------------------------------------------------------

    @staticmethod
    def _chosen(manifest: Manifest, columns: Sequence[str]) -> list[int]:
        names = [column.name for column in manifest.columns]
        for column in columns:
            if column not in names:
                raise BadRecord("$.columns", f"expected some of {', '.join(names)[:500]}, got {column[:100]!r}")
        return [names.index(column) for column in columns] if columns else list(range(len(names)))

    @staticmethod
    def _key(manifest: Manifest, text: str, kind: str) -> Key:
        column = ROWS if manifest.key is None else next(c for c in manifest.columns if c.name == manifest.key)
        expected = key_type(column)
        if kind != expected:
            raise BadRecord(
                "$.type", f"expected {expected} for {manifest.key or 'the number of a row'}, got {kind[:20]!r}"
            )
        return parse_key(text, expected)

    def _expect_here(self, name: str, version: int, part: int, refs: Sequence[SegmentRef]) -> None:
        homes = self._atlas.homes(name, version, part)
        if not all(self._store.has(ref.id) for ref in refs) or not (refs or self._node in homes or not homes):
            raise self._elsewhere(name, version, part)

    def _elsewhere(self, name: str, version: int, part: int) -> DataElsewhere:
        holders = [node for node in self._atlas.holders(name, version, part) if node != self._node]
        homes = self._atlas.homes(name, version, part)
        return DataElsewhere(f"part {part} of {name}@{version} is not on {self._node}", part, holders, homes)

    # --- Indexes ----------------------------------------------------------------------------------------

    async def _indexes(self, manifest: Manifest, refs: Sequence[SegmentRef]) -> list[tuple[Segment, KeyIndex]]:
        file = 0 if manifest.key is None else 1 + [column.name for column in manifest.columns].index(manifest.key)
        found = [self._open.get(index_name(ref.id, file)) for ref in refs]
        if None in found:
            async with self._making:
                await self._make_missing(refs, file)
                found = [await self._opened(ref, file) for ref in refs]
        for ref in refs:
            self._open.move_to_end(index_name(ref.id, file))
        while len(self._open) > max(OPEN_MAX, len(refs)):
            self._open.popitem(last=False)
        return [each for each in found if each is not None]

    async def _make_missing(self, refs: Sequence[SegmentRef], file: int) -> None:
        jobs = []
        for ref in refs:
            if await self._opened(ref, file) is None:
                await self._store.verified(ref.id)  # an index of other bytes would hide rows
                column = self._store.path(ref.id) / file_name(file)
                jobs.append((column, self._directory / index_name(ref.id, file)))
        if jobs:
            began = asyncio.get_running_loop().time()
            await self._make(jobs)
            took_s = asyncio.get_running_loop().time() - began
            self._log.info("indexes.made", count=len(jobs), took_s=round(took_s, 3))

    async def _opened(self, ref: SegmentRef, file: int) -> tuple[Segment, KeyIndex] | None:
        """The index, if there is one that can be used."""
        name = index_name(ref.id, file)
        if name not in self._open:
            _, segment = await self._store.describe(ref.id)
            try:
                index = await asyncio.to_thread(KeyIndex, self._directory / name, segment.rows)
            except FileNotFoundError:
                return None
            except (DataDamaged, OSError) as error:
                self._log.warning("index.damaged", error=str(error))
                return None
            self._open[name] = segment, index
        return self._open[name]

    # --- Reading, in the thread -------------------------------------------------------------------------

    def _answer(
        self,
        manifest: Manifest,
        part: int,
        refs: Sequence[SegmentRef],
        indexes: Sequence[tuple[Segment, KeyIndex]],
        key: Key,
        chosen: Sequence[int],
    ) -> bytes:
        hashed = hash_key(key)
        readers = {
            ref.id: SegmentReader(self._store.path(ref.id), ref.id, segment)
            for ref, (segment, _) in zip(refs, indexes, strict=True)
        }
        try:
            hits = self._hits(manifest, refs, indexes, key, hashed, readers)
            sizes = [item_bytes(manifest.columns[number]) for number in chosen]
            if len(hits) > ROWS_MAX or len(hits) * sum(sizes) > BYTES_MAX:
                raise BadRecord("$.key", f"expected a key of fewer rows: {len(hits)} have it; read part {part} instead")
            columns = {}
            for number in chosen:
                column = manifest.columns[number]
                cells = (
                    widened(self._cell(hit, 1 + number, readers), hit.segment.columns[number], column) for hit in hits
                )
                shape = [len(hits), *column.shape]
                columns[column.name] = {"dtype": column.dtype, "shape": shape, "data": b"".join(cells)}
            numbers = {"dtype": "<i8", "shape": [len(hits)], "data": b"".join(hit.number for hit in hits)}
            return msgspec.json.encode({"part": part, "rows": numbers, "columns": columns})
        finally:
            for reader in readers.values():
                reader.close()

    def _hits(
        self,
        manifest: Manifest,
        refs: Sequence[SegmentRef],
        indexes: Sequence[tuple[Segment, KeyIndex]],
        key: Key,
        hashed: int,
        readers: dict[str, SegmentReader],
    ) -> list[_Hit]:
        names = [column.name for column in manifest.columns]
        file = 0 if manifest.key is None else 1 + names.index(manifest.key)
        hits = []
        for ref, (segment, index) in zip(refs, indexes, strict=True):
            if [each.name for each in segment.columns] != names:
                raise DataDamaged(f"segment {ref.id[:12]}: expected the columns of {manifest.name}@{manifest.version}")
            column = ROWS if file == 0 else segment.columns[file - 1]
            for row in index.rows(hashed)[: ROWS_MAX + 1]:
                hit = _Hit(b"", segment, ref.id, row)
                if is_key(self._cell(hit, file, readers), column, key):
                    hits.append(_Hit(self._cell(hit, 0, readers), segment, ref.id, row))
        hits.sort(key=lambda hit: int.from_bytes(hit.number, "little", signed=True))
        return hits

    def _cell(self, hit: _Hit, file: int, readers: dict[str, SegmentReader]) -> bytes:
        try:
            return cell(self._blocks, hit.segment_id, hit.segment, file, hit.row, readers[hit.segment_id].block)
        except DataDamaged as error:
            raise _Damaged(hit.segment_id, str(error)) from None


class _Damaged(DataDamaged):  # a signal inside this module
    def __init__(self, segment_id: str, why: str) -> None:
        super().__init__(why)
        self.segment_id = segment_id
