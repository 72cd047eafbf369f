"""What a task on a dataset is called with on this node: the files of its part, or what all of its parts gave.

A part is used only while every byte of it is what its segment says: it is compared before the run, unless nobody has
touched it since it was last, and looked at again after. What is not here yet is fetched at once, for a while; what
cannot be had sends the task back to the leader, free of charge, and it goes to another home of the part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from zkd import children, codec
from zkd.core.atlas import Atlas
from zkd.core.datasets import split_name
from zkd.core.partwork import ROWS
from zkd.core.spreads import GATHER, family, gathered, inline_max, parts_of
from zkd.errors import BadRecord, DataDamaged, DataUnavailable, ZooKeeperError
from zkd.manifests import Column, Manifest, Segment, SegmentRef
from zkd.net.places import is_within
from zkd.paths import NodeId, Paths, TaskId
from zkd.records import Assigned, BlobRef, Task
from zkd.store import SegmentCache, SegmentStore
from zkd.workers import Call, ColumnFiles, PartFiles
from zkd.zk import Session

if TYPE_CHECKING:
    from zkd.net.remote import Remote

# So long a task waits, in its slot, for what is still on its way here; then it is tried elsewhere.
FETCH_S = 20.0
ROWS_FILE = Column(ROWS, "<i8")

Lives = dict[str, tuple[SegmentStore, object | None]]  # segment -> where it lies, and which of its lives there
Fetch = Callable[[SegmentRef, Sequence[NodeId]], Awaitable[None]]


class Provided(NamedTuple):
    """What a task on a part is called with."""

    call: Call
    lives: Lives  # of the segments that it is about to read


class Gathered(NamedTuple):
    """What a task on all parts is called with, once its parts are done."""

    call: Call
    refs: dict[TaskId, BlobRef]  # of the values that lie in files


class Provision:
    """`look_up` reads a dataset from the tree into `atlas`, `fetch` brings a segment from one of these nodes.

    What lies at a URL comes through `cache`, if the URL is one of `stores`, or below.
    """

    def __init__(
        self,
        session: Session,
        paths: Paths,
        atlas: Atlas,
        store: SegmentStore,
        look_up: Callable[[str], Awaitable[None]],
        fetch: Fetch,
        cache: SegmentCache,
        stores: Callable[[], Sequence[str]],
    ) -> None:
        self._session = session
        self._paths = paths
        self._atlas = atlas
        self._store = store
        self._look_up = look_up
        self._fetch = fetch
        self._cache = cache
        self._stores = stores
        self._remotes: dict[str, Remote] = {}

    async def of_part(self, task: Task, call: Call) -> Provided:
        """The call, with the part's files in it. Raises `DataUnavailable`, `DataDamaged`."""
        manifest = await self._manifest(task)
        store = self._store if manifest.store is None else self._cache.store
        lives: Lives = {}
        segments: list[tuple[Segment, SegmentRef]] = []
        for ref in self._segments(manifest, task):
            if manifest.store is not None:
                self._cache.use(ref.id)
            if not store.has(ref.id):
                await self._bring(task, manifest, ref)
            lives[ref.id] = store, store.life(ref.id)
            segments.append((await store.verified(ref.id), ref))
        columns = [self._column(name, manifest, store, segments) for name in task.columns or _names(manifest)]
        most = call.inline_max if task.parent is None else inline_max(manifest.parts, call.inline_max)
        part = PartFiles(columns, is_table=not task.columns)
        return Provided(structs.replace(call, part=part, inline_max=most), lives)

    async def doubt(self, lives: Lives) -> str | None:
        """Why a run that has read these cannot be believed, if so."""
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

    async def of_all(self, task: Task, line: Assigned, call: Call) -> Gathered:
        """The call that puts together what all parts gave. Raises `DataUnavailable` if one's result is not there."""
        manifest = await self._manifest(task)
        stem = family(line.id, line.czxid, task, manifest)
        try:
            values = await children.values(self._session, self._paths, stem, parts_of(task, manifest.parts))
        except ZooKeeperError as error:
            raise DataUnavailable(f"the results of the parts cannot be read: {error}") from error
        refs: dict[TaskId, BlobRef] = {}
        texts: list[bytes] = []
        for task_id, value in values.items():
            if value is None:
                raise DataUnavailable(f"the result of {task_id} is not there")
            if isinstance(value, BlobRef):
                refs[task_id] = value
            texts.append(codec.encode(value) if isinstance(value, BlobRef) else value)
        kernel = task.combine or GATHER
        return Gathered(structs.replace(call, kernel=kernel, args=gathered(texts), kwargs=b"{}"), refs)

    async def forget(self, child: TaskId) -> None:
        """The value of this part cannot be had any more: without its result the leader has it done again."""
        try:
            await self._session.delete(self._paths.result(child), -1)
        except ZooKeeperError:
            return  # it is found missing, or tried again, the next time

    # --- Parts ------------------------------------------------------------------------------------------

    async def _manifest(self, task: Task) -> Manifest:
        name, version = split_name(task.dataset or "")
        manifest = self._atlas.manifest(name, version)
        if manifest is None:
            try:
                await self._look_up(name)
            except ZooKeeperError as error:
                raise DataUnavailable(f"{task.dataset} cannot be read: {error}") from error
            manifest = self._atlas.manifest(name, version)
        if manifest is None:
            raise DataUnavailable(f"{task.dataset} is not there")
        return manifest

    def _segments(self, manifest: Manifest, task: Task) -> tuple[SegmentRef, ...]:
        assert task.partition is not None
        refs = self._atlas.segments(manifest.name, manifest.version, task.partition)
        if refs is None:  # no rows are something else
            raise DataUnavailable(f"{task.dataset} has no part {task.partition}")
        return refs

    async def _bring(self, task: Task, manifest: Manifest, ref: SegmentRef) -> None:
        name, version = split_name(task.dataset or "")
        assert version is not None
        assert task.partition is not None
        holders = self._atlas.holders(name, version, task.partition)
        homes = self._atlas.homes(name, version, task.partition)
        try:
            async with asyncio.timeout(FETCH_S):
                if manifest.store is not None:
                    await self._bring_from(manifest.store, ref)
                    return
                await self._fetch(ref, list(dict.fromkeys((*holders, *homes))))
        except TimeoutError:
            raise DataUnavailable(f"part {task.partition} of {task.dataset} is still on its way here") from None
        except OSError as error:
            raise DataUnavailable(f"part {task.partition} of {task.dataset} cannot be kept here: {error}") from error

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

    def _column(
        self, name: str, manifest: Manifest, store: SegmentStore, segments: list[tuple[Segment, SegmentRef]]
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


def _names(manifest: Manifest) -> list[str]:
    return [column.name for column in manifest.columns]
