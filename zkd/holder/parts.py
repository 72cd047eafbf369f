"""The parts of datasets as files on this node: where the columns of a part lie, and whether they are still believed.

A part is used only while every byte of it is what its segment says: it is compared before it is read, unless nobody has
touched it since it was last, and looked at again after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from zkd.core.atlas import Atlas
from zkd.core.datasets import split_name
from zkd.core.partwork import ROWS
from zkd.errors import BadRecord, DataDamaged, DataUnavailable, ZooKeeperError
from zkd.manifests import Column, Manifest, Segment, SegmentRef
from zkd.net.places import is_within
from zkd.paths import NodeId
from zkd.store import SegmentCache, SegmentStore
from zkd.store.segment_files import file_name
from zkd.workers import ColumnFiles

if TYPE_CHECKING:
    from zkd.net.remote import Remote

# So long anybody waits for what is still on its way here; then it is tried elsewhere.
FETCH_S = 20.0
ROWS_FILE = Column(ROWS, "<i8")

Lives = dict[str, tuple[SegmentStore, object | None]]  # segment -> where it lies, and which of its lives there
Fetch = Callable[[SegmentRef, Sequence[NodeId]], Awaitable[None]]  # from one of these nodes


class Laid(NamedTuple):
    """A part as it lies here."""

    columns: list[ColumnFiles]
    lives: Lives  # of its segments
    rows: int
    numbers: ColumnFiles  # which row of the dataset each is


class Parts:
    """`look_up` reads a dataset from the tree into `atlas`.

    What lies at a URL comes through `cache`, if the URL is one of `stores`, or below.
    """

    def __init__(
        self,
        atlas: Atlas,
        store: SegmentStore,
        look_up: Callable[[str], Awaitable[None]],
        cache: SegmentCache,
        stores: Callable[[], Sequence[str]],
    ) -> None:
        self.atlas = atlas
        self._store = store
        self._look_up = look_up
        self._cache = cache
        self._stores = stores
        self._remotes: dict[str, Remote] = {}

    async def manifest(self, dataset: str) -> Manifest:
        """Of ``NAME@V``. Raises `DataUnavailable`."""
        name, version = split_name(dataset)
        manifest = self.atlas.manifest(name, version)
        if manifest is None:
            try:
                await self._look_up(name)
            except ZooKeeperError as error:
                raise DataUnavailable(f"{dataset} cannot be read: {error}") from error
            manifest = self.atlas.manifest(name, version)
        if manifest is None:
            raise DataUnavailable(f"{dataset} is not there")
        return manifest

    def segments(self, manifest: Manifest, part: int) -> tuple[SegmentRef, ...]:
        """What a part is made of. Raises `DataUnavailable` if there is no such part: no rows are something else."""
        refs = self.atlas.segments(manifest.name, manifest.version, part)
        if refs is None:
            raise DataUnavailable(f"{manifest.name}@{manifest.version} has no part {part}")
        return refs

    async def lay(self, manifest: Manifest, part: int, columns: Sequence[str], fetch: Fetch | None) -> Laid:
        """The files of these columns, all compared with their segments; all columns if none are named.

        What is not here is brought from its URL, or by `fetch` from other nodes. Raises `DataUnavailable`,
        `DataDamaged`.
        """
        store = self._store if manifest.store is None else self._cache.store
        lives: Lives = {}
        segments: list[tuple[Segment, SegmentRef]] = []
        for ref in self.segments(manifest, part):
            if manifest.store is not None:
                self._cache.use(ref.id)
            if not store.has(ref.id):
                await self._bring(manifest, part, ref, fetch)
            lives[ref.id] = store, store.life(ref.id)
            segments.append((await store.verified(ref.id), ref))
        names = columns or [column.name for column in manifest.columns]
        files = [_files(name, manifest, store, segments) for name in names]
        numbers = ColumnFiles(
            ROWS, ROWS_FILE.dtype, [], [str(store.path(ref.id) / file_name(0)) for _, ref in segments]
        )
        return Laid(files, lives, sum(ref.rows for _, ref in segments), numbers)

    def is_unchanged(self, lives: Lives) -> bool:
        """Whether all of these are here as they were. What was let go of for want of room was good to its end."""
        for segment_id, (store, life) in lives.items():
            if store is self._cache.store:
                self._cache.use(segment_id)
            if store.life(segment_id) is not life and not self._cache.was_let_go(life):
                return False
        return True

    async def doubt(self, lives: Lives) -> str | None:
        """Why what has read these cannot be believed, if so."""
        try:
            for segment_id, (store, life) in lives.items():
                if self._cache.was_let_go(life):
                    continue  # good to its end
                await store.verified(segment_id)
                if store.life(segment_id) is not life:  # another one is here, and nobody knows what was read
                    return f"segment {segment_id[:12]} was replaced while it was worked on"
        except (DataDamaged, DataUnavailable) as error:  # found damaged by somebody else, perhaps
            return str(error)
        return None

    async def _bring(self, manifest: Manifest, part: int, ref: SegmentRef, fetch: Fetch | None) -> None:
        name, version = manifest.name, manifest.version
        here = f"part {part} of {name}@{version}"
        try:
            async with asyncio.timeout(FETCH_S):
                if manifest.store is not None:
                    await self._bring_from(manifest.store, ref)
                    return
                if fetch is None:
                    raise DataUnavailable(f"{here} is not on this node")
                holders, homes = self.atlas.holders(name, version, part), self.atlas.homes(name, version, part)
                await fetch(ref, list(dict.fromkeys((*holders, *homes))))
        except TimeoutError:
            raise DataUnavailable(f"{here} is still on its way here") from None
        except OSError as error:
            raise DataUnavailable(f"{here} cannot be kept here: {error}") from error

    async def _bring_from(self, url: str, ref: SegmentRef) -> None:
        from zkd.net.remote import Remote

        if not is_within(url, self._stores()):
            raise DataUnavailable(f"{url} is not in data.stores of this node")
        if url not in self._remotes:
            try:
                self._remotes[url] = Remote(url)
            except BadRecord as error:
                raise DataUnavailable(str(error)) from None
        await self._cache.make_room(ref)
        await self._remotes[url].fetch(ref, self._cache.store)


def _files(
    name: str, manifest: Manifest, store: SegmentStore, segments: Sequence[tuple[Segment, SegmentRef]]
) -> ColumnFiles:
    column = next((each for each in manifest.columns if each.name == name), ROWS_FILE)
    files = []
    for segment, ref in segments:
        names = [each.name for each in segment.columns]
        if column is not ROWS_FILE and name not in names:
            raise DataDamaged(f"segment {ref.id[:12]} has no column {name!r}, as its manifest says")
        number = "rows" if column is ROWS_FILE else str(names.index(name))
        files.append(str(store.path(ref.id) / f"{number}.npy"))
    return ColumnFiles(name, column.dtype, column.shape, files)
