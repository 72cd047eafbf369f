"""One version of a dataset, from outside: where its parts are, their rows, how it stands.

A version never changes, so neither does what is read of it, wherever the copies move meanwhile. Rows come in the
order in which they were written. Whatever is read was compared with its checksums; what no node can give is a
`DataUnavailable`, never a guess.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zkd.client import at_url, copies
from zkd.client.copies import Stat, Verified
from zkd.client.race import Pace, first_good
from zkd.core.datasets import mark_of
from zkd.core.extents import row_bytes
from zkd.core.placement import hash_key, part_of
from zkd.errors import BadRecord, BadRows, DataDamaged, DatasetNotFound, DataUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from zkd.client.copies import Homes, Scene
    from zkd.client.plane import Plane
    from zkd.core.datasets import Parts
    from zkd.manifests import Column, Manifest, SegmentRef
    from zkd.net.segment_reads import Room
    from zkd.paths import NodeId
    from zkd.tables.arena import Arena
    from zkd.tables.columns import Columns
    from zkd.tables.partition import Numbers

# Nodes come and go: who asks one that went asks the next, and looks anew when none has it.
SCENE_KNOWN_S = 30.0
SAID_S = 2.0
ANSWER_S = 10.0  # for the rows of a key
ANSWER_BYTES_MAX = 256 * 2**20
VERIFY_S = 600.0  # for one segment, read from a disk that has other things to do


@dataclass(frozen=True)
class Location:
    """Where the rows of a key are."""

    part: int
    nodes: tuple[NodeId, ...]  # that the part belongs to, the primary first


@dataclass(frozen=True)
class Part:
    """The rows of one part, in written order. Arrays may be memory maps, which cannot be written to."""

    number: int
    rows: Numbers  # the number of each row in the dataset
    columns: Columns

    def __getitem__(self, column: str) -> Any:
        return self.columns[column]


class Dataset:
    """`client.datasets.open(name)` gives one. `manifest` says what it is made of."""

    def __init__(self, plane: Plane, manifest: Manifest, parts: Parts) -> None:
        self.manifest = manifest
        self.segments = parts
        self._plane = plane
        self._pace = Pace()
        self._scene: tuple[float, Scene, Homes] | None = None

    def __repr__(self) -> str:
        names = ", ".join(column.name for column in self.manifest.columns)
        return f"<Dataset {self.name}@{self.version}: {self.rows} rows, {names}>"

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def rows(self) -> int:
        return self.manifest.rows

    @property
    def parts(self) -> int:
        return self.manifest.parts

    @property
    def columns(self) -> list[Column]:
        return self.manifest.columns

    @property
    def key_dtype(self) -> str:
        """Of the column by which rows are found, or of the numbers of rows."""
        return next((column.dtype for column in self.columns if column.name == self.manifest.key), "<i8")

    # --- By key -------------------------------------------------------------------------------------------

    async def locate(self, key: Any) -> Location:
        """The part of the rows with this key, and the nodes that it belongs to. Every node computes the same."""
        part = part_of(hash_key(self._as_key(key)), self.parts)
        if self.manifest.store is not None:
            return Location(part, ())
        _, homes = await self._look()
        return Location(part, homes[part])

    async def get(self, key: Any, *, columns: Sequence[str] | None = None) -> Columns:
        """The rows with this key, in written order: one question to a node that has its part.

        Raises `DatasetNotFound` if there is none, `BadRows` if the key cannot be one or too many rows have it,
        `DataUnavailable`.
        """
        chosen = [column for _, column in self._chosen(columns)]
        plain = self._as_key(key)
        part = part_of(hash_key(plain), self.parts)
        if not self.segments[part]:
            raise self._no_key(key)
        if self.manifest.store is not None:
            return await self._get_here(part, plain, key, [column.name for column in chosen])
        try:
            found = await self._ask_all(part, plain, chosen, await self._look())
        except DataUnavailable:
            found = await self._ask_all(part, plain, chosen, await self._look(anew=True))
        if isinstance(found, BadRows):
            raise found
        if not len(next(iter(found.values()))):
            raise self._no_key(key)
        return found

    async def _get_here(self, part: int, plain: Any, key: Any, columns: list[str]) -> Columns:
        """No node has the part ready: it is read whole, and looked through in this program."""
        from zkd.tables.keys import has_key

        by = self.manifest.key
        read = await self.part(part, columns=list(dict.fromkeys([*columns, *([] if by is None else [by])])))
        found = has_key(read.rows if by is None else read.columns[by], plain)
        if not found.any():
            raise self._no_key(key)
        return {name: read.columns[name][found] for name in columns}

    def _as_key(self, key: Any) -> int | str | bytes | float:
        from zkd.tables.keys import as_key

        return as_key(key, self.key_dtype)

    def _no_key(self, key: Any) -> DatasetNotFound:
        return DatasetNotFound(f"{self.name}@{self.version} has no row with the key {key!r}")

    async def _ask_all(
        self, part: int, key: int | str | bytes | float, columns: list[Column], look: tuple[Scene, Homes]
    ) -> Columns | BadRows:
        scene, homes = look
        sources = scene.sources(self.version, part, homes[part])
        what = f"the rows of key {key!r}"
        return await first_good(sources, lambda node: self._ask(scene, node, key, columns), self._pace, 0, what)

    async def _ask(
        self, scene: Scene, node: NodeId, key: int | str | bytes | float, columns: list[Column]
    ) -> Columns | BadRows:
        import aiohttp

        from zkd.arrays import from_json
        from zkd.net.bodies import words_for
        from zkd.tables.columns import typed

        url = f"{scene.address(node)}/v1/datasets/{self.name}/{self.version}/rows"
        text = key.hex() if isinstance(key, bytes) else str(key)
        query = [("key", text), ("type", type(key).__name__), ("of", mark_of(self.manifest))]
        query += [("columns", column.name) for column in columns]
        http, headers = self._plane.http, await self._plane.headers()
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        try:
            async with http.get(url, params=query, headers=headers, allow_redirects=False, timeout=timeout) as answer:
                body = bytearray()
                async for piece in answer.content.iter_any():
                    body += piece
                    if len(body) > ANSWER_BYTES_MAX:
                        raise DataUnavailable(f"expected at most {ANSWER_BYTES_MAX} bytes of answer")
            words = body[:400].decode(errors="replace").strip()
            if answer.status == 400:
                return BadRows("key", words)
            if answer.status != 200:  # 421 and 503: another one may have it
                raise DataUnavailable(f"HTTP {answer.status}: {words}")
            value = from_json(bytes(body))
            return typed(value.get("columns") if isinstance(value, dict) else value, columns)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise DataUnavailable(words_for(error)) from None
        except (BadRecord, BadRows, MemoryError) as error:
            raise DataDamaged(f"the answer is not rows of {self.name}: {error}") from None

    # --- Rows ---------------------------------------------------------------------------------------------

    async def part(self, number: int, *, columns: Sequence[str] | None = None) -> Part:
        """The rows of one part. On a node's own machine and of one segment: memory maps, without a copy."""
        from zkd.tables.assemble import merged

        self._expect_part(number)
        chosen = self._chosen(columns)
        pieces = [await self._segment(number, ref, chosen, None) for ref in self.segments[number]]
        rows, arrays = await asyncio.to_thread(merged, [column for _, column in chosen], pieces)
        return Part(number, rows, arrays)

    async def pieces(self, part: int, refs: Sequence[SegmentRef]) -> list[tuple[Numbers, Columns]]:
        """The rows of some segments of a part, each by itself, in memory."""
        from zkd.tables.arena import Arena

        arena, chosen = Arena(sum(ref.size for ref in refs)), self._chosen(None)
        return [await self._segment(part, ref, chosen, arena.take) for ref in refs]

    async def read(self, *, columns: Sequence[str] | None = None, parts: Iterable[int] | None = None) -> Columns:
        """All rows in the order in which they were written, or those of some parts, of all or some columns."""
        from zkd.tables.arena import Arena
        from zkd.tables.assemble import Assembly, merged

        chosen = self._chosen(columns)
        plain = [column for _, column in chosen]
        if parts is not None:
            numbers = sorted(set(parts))
            for number in numbers:
                self._expect_part(number)
            found: list[tuple[Numbers, Columns]] = []

            async def keep(piece: tuple[Numbers, Columns]) -> None:
                found.append(piece)

            await self._all(numbers, chosen, Arena(), keep)
            return (await asyncio.to_thread(merged, plain, found))[1]
        try:
            table = await asyncio.to_thread(Assembly, self.rows, plain)
        except (MemoryError, ValueError):
            raise await self._too_large(plain) from None

        async def add(piece: tuple[Numbers, Columns]) -> None:
            if table.add(piece):
                await asyncio.to_thread(table.place)

        await self._all(range(self.parts), chosen, Arena(self.manifest.size), add)
        return await asyncio.to_thread(table.finish)

    async def _all(
        self,
        parts: Iterable[int],
        chosen: list[tuple[int, Column]],
        arena: Arena,
        take: Callable[[tuple[Numbers, Columns]], Awaitable[None]],
    ) -> None:
        """Every segment of these parts, as they come."""
        turns = asyncio.Semaphore(2 * self._plane.reads_at_once)  # tasks; the reading itself is bounded by less

        async def one(part: int, ref: SegmentRef) -> None:
            try:
                await take(await self._segment(part, ref, chosen, arena.take))
            finally:
                turns.release()

        await self._look()
        try:
            async with asyncio.TaskGroup() as tasks:
                for part in parts:
                    for ref in self.segments[part]:
                        await turns.acquire()
                        tasks.create_task(one(part, ref))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _segment(
        self, part: int, ref: SegmentRef, columns: list[tuple[int, Column]], room: Room | None
    ) -> tuple[Numbers, Columns]:
        reading = self._plane.reading
        if self.manifest.store is not None:
            return await reading.segment_at(self._plane.remote(self.manifest.store), ref, columns, room)
        is_whole = len(columns) == len(self.columns)
        scene, homes = await self._look()
        sources = scene.sources(self.version, part, homes[part])
        try:
            return await reading.segment(scene, sources, ref, columns, room=room, is_whole=is_whole)
        except DataUnavailable:
            scene, homes = await self._look(anew=True)  # copies may have moved since we looked
            sources = scene.sources(self.version, part, homes[part])
            return await reading.segment(scene, sources, ref, columns, room=room, is_whole=is_whole)

    def _chosen(self, names: Sequence[str] | None) -> list[tuple[int, Column]]:
        """These columns, each with the number of its file."""
        if isinstance(names, str):  # which is a sequence of texts, too
            raise BadRows("columns", f"expected a list of names, got the text {names!r}")
        there = {column.name: (number, column) for number, column in enumerate(self.columns, 1)}
        wanted = list(there) if names is None else list(names)
        for name in wanted:
            if name not in there:
                raise DatasetNotFound(f"{self.name} has no column {name!r}; it has {', '.join(map(repr, there))}")
        return [there[name] for name in dict.fromkeys(wanted)]

    async def _too_large(self, columns: Sequence[Column]) -> Exception:
        """Why there is no memory for these columns: they are too large, or said to be what they are not."""
        size = self.rows * sum(map(row_bytes, columns))
        part, largest = max(
            ((part, ref) for part, refs in enumerate(self.segments) for ref in refs), key=lambda each: each[1].size
        )
        try:
            await self._segment(part, largest, [], None)
        except DataDamaged as error:
            return error
        except DataUnavailable:
            pass
        return DataUnavailable(f"{self.name}: there is no memory for {size} bytes; read some columns, or some parts")

    def _expect_part(self, number: int) -> None:
        if not isinstance(number, int) or not 0 <= number < self.parts:
            raise DatasetNotFound(f"{self.name}@{self.version} has the parts 0 to {self.parts - 1}, not {number!r}")

    # --- How it stands --------------------------------------------------------------------------------------

    async def stat(self) -> Stat:
        """Health and copies, by what the nodes that are here say now.

        Before a part is called lost, nodes have SAID_S to say otherwise: they report a little later than they hold.
        """
        if self.manifest.store is not None:
            return await at_url.stat(self._plane.remote(self.manifest.store), self.manifest, self.segments)
        sure_at = time.monotonic() + SAID_S
        while True:
            scene, homes = await self._look(anew=True)
            stat = copies.judge(self.manifest, self.segments, scene, homes)
            if not stat.lost or time.monotonic() > sure_at:
                return stat
            await asyncio.sleep(SAID_S / 20)

    async def holders(self) -> list[tuple[list[NodeId], tuple[NodeId, ...]]]:
        """For each part the nodes that say they hold it, and those that it belongs to."""
        if self.manifest.store is not None:
            return [([], ())] * self.parts
        scene, homes = await self._look(anew=True)
        return [(scene.holders(self.version, part), homes[part]) for part in range(self.parts)]

    async def verify(self) -> Verified:
        """Have every node read its copies from disk and compare them. Bad ones are out of service from then on."""
        from zkd.net.segments import verify

        if self.manifest.store is not None:
            good, bad_parts = await at_url.verify(self._plane.remote(self.manifest.store), self.segments)
            return Verified(good, [(self.manifest.store, part) for part in bad_parts])
        scene, homes = await self._look(anew=True)
        token = await self._plane.token()

        async def ask(address: str, ref: SegmentRef) -> bool:
            return await verify(self._plane.http, address, token, ref.id, VERIFY_S)

        return await copies.verify(self.version, self.segments, scene, homes, ask)

    async def _look(self, *, anew: bool = False) -> tuple[Scene, Homes]:
        if self._scene is None or anew or time.monotonic() - self._scene[0] > SCENE_KNOWN_S:
            scene = await copies.look(self._plane.client, self.name)
            manifest = self.manifest
            homes = await copies.homes(self.name, self.parts, manifest.replicas, scene.ring.keepers)
            self._scene = (time.monotonic(), scene, homes)
        return self._scene[1], self._scene[2]
