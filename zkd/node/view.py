"""Keeps a node's picture of the datasets (`zkd.core.atlas`) true.

Read from the tree over recursive watches, which only say where to look: a dataset that an event named is read again,
as far as it can have changed. Manifests and chunks are immutable, so they are read once; what lies is refused with a
line in the log, and is as if it were not there. Where parts belong follows from the ring (`zkd.core.placement`).

While there is no connection the picture stands as it was, and `is_complete` says that it may be old.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from structlog.typing import FilteringBoundLogger as Log

from zkd.core.atlas import Atlas, Dataset, Place
from zkd.core.datasets import (
    Edition,
    Parts,
    assemble,
    is_dataset_name,
    read_chunk,
    read_head,
    read_holding,
    read_manifest,
    read_ring,
    version_number,
)
from zkd.errors import BadRecord, NoAuth, NoNode, ZooKeeperError
from zkd.manifests import Manifest
from zkd.paths import NodeId, Paths
from zkd.picture import Picture
from zkd.zk import Event, EventType, Session, Znode, ensure_path

READ_AT_ONCE = 16  # manifests and chunks: some tens of kB each, and a reply has no limit at the server
# Computing where so many copies go, of parts times nodes, is a matter of milliseconds: more goes to a thread.
PLACED_INLINE = 2_000

K = TypeVar("K")


class View:
    def __init__(self, session: Session, paths: Paths, place: Place, log: Log) -> None:
        self._session = session
        self._paths = paths
        self._place = place
        self._log = log
        self._picture = Picture(
            session,
            log,
            "datasets",
            watched=[(paths.datasets, True), (paths.holdings, True), (paths.ring, False)],
            saw=self._saw,
            read=self._bring_up_to_date,
            size=self._size,
        )
        self._dirty: dict[str, None] = {}  # datasets to look at again
        self._dirty_holdings: dict[tuple[str, NodeId], None] = {}
        self._doubted: dict[str, set[int]] = {}  # versions that may be others than those we read
        self._is_ring_dirty = True
        self._is_tree_dirty = True
        self._chunks: dict[str, Parts] = {}  # by digest, as long as a version names it
        self.atlas = Atlas()
        self.tree = ""  # which one this is: by the transaction that made `datasets/`, and when

    @property
    def is_complete(self) -> bool:
        """Whether there is a connection, on which all of it was read."""
        return self._picture.is_complete

    @property
    def is_settled(self) -> bool:
        """Whether `homes` answers by the ring as it is now, for every version."""
        return self.is_complete and not self.atlas.unplaced()

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call back after each change of any of this, until the returned function is called."""
        return self._picture.subscribe(listener)

    async def look(self, name: str) -> None:
        """Read this dataset now: for whom it has to be as new as something that he has just seen.

        Raises what ZooKeeper answers when it cannot.
        """
        if is_dataset_name(name):
            async with self._picture.looking():
                await self._read_dataset(name)
                await self._compute()

    # --- Watching ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ends only by cancellation, or with the session."""
        await self._picture.run()

    def _saw(self, event: Event) -> None:
        path = event.path
        if path == self._paths.ring:
            self._is_ring_dirty = True
        elif path == self._paths.datasets:
            self._is_tree_dirty = True
        elif path.startswith(f"{self._paths.datasets}/"):
            name, _, rest = path.removeprefix(f"{self._paths.datasets}/").partition("/")
            if rest.startswith("chunks/") and not self._awaits_chunk(name):
                return  # it is read when a manifest names it
            if rest.startswith("versions/") and event.type is EventType.DELETED:
                self._doubt(name, rest.removeprefix("versions/"))
            self._dirty[name] = None
        elif path.startswith(f"{self._paths.holdings}/"):
            name, _, node = path.removeprefix(f"{self._paths.holdings}/").partition("/")
            if node:
                self._dirty_holdings[name, node] = None

    def _awaits_chunk(self, name: str) -> bool:
        dataset = self.atlas.datasets.get(name)
        return dataset is not None and bool(dataset.refused)

    def _doubt(self, name: str, leaf: str) -> None:
        """It may be made anew, and be another one, before we look."""
        version = version_number(leaf)
        if version is not None:
            self._doubted.setdefault(name, set()).add(version)

    async def _bring_up_to_date(self, is_due: bool) -> None:
        if is_due:
            await self._list_all(is_first=not self.is_complete)
        await self._look_again()
        await self._compute()

    def _size(self) -> dict[str, int]:
        versions = sum(len(dataset.editions) for dataset in self.atlas.datasets.values())
        return {"datasets": len(self.atlas.datasets), "versions": versions, "ring": self.atlas.ring.epoch}

    # --- Reading ----------------------------------------------------------------------------------------

    async def _list_all(self, *, is_first: bool) -> None:
        """Mark what has to be read: all of it on a new connection, which replays nothing."""
        self._is_ring_dirty = self._is_tree_dirty = True
        names = await self._children(self._paths.datasets)
        for name in self.atlas.datasets.keys() | names:
            known = self.atlas.datasets.get(name)
            if is_first or known is None or known.fault or name not in names:
                self._dirty[name] = None
        if is_first:  # any of them may have been removed and made anew while we were away
            for name, dataset in self.atlas.datasets.items():
                self._doubted[name] = set(dataset.editions)
        held = await self._children(self._paths.holdings)
        for name in held | self.atlas.holdings.keys():
            try:
                nodes = await self._children(f"{self._paths.holdings}/{name}") if name in held else set()
            except NoAuth:
                continue
            said = self.atlas.holdings.get(name, {}).keys()
            for node in said | nodes if is_first else said ^ nodes:
                self._dirty_holdings[name, node] = None

    async def _children(self, path: str) -> set[str]:
        try:
            return set(await self._session.children(path))
        except NoNode:
            return set()

    async def _look_again(self) -> None:
        if self._is_ring_dirty:
            self._is_ring_dirty = False
            await self._read_ring()
        if self._is_tree_dirty:
            self._is_tree_dirty = False
            stat = await self._session.exists(self._paths.datasets)
            if stat is None and self.is_complete:  # somebody has deleted it
                await ensure_path(self._session, self._paths.datasets)
                await ensure_path(self._session, self._paths.holdings)
            self.tree = "" if stat is None else f"{stat.czxid:x}.{stat.ctime:x}"
        names, self._dirty = list(self._dirty), {}
        for number, name in enumerate(names):
            try:
                await self._read_dataset(name)
            except ZooKeeperError:
                self._dirty.update(dict.fromkeys(names[number:]))
                raise
        holdings, self._dirty_holdings = list(self._dirty_holdings), {}
        try:
            await self._read_holdings(holdings)
        except ZooKeeperError:
            self._dirty_holdings.update(dict.fromkeys(holdings))
            raise

    async def _read_ring(self) -> None:
        try:
            ring = read_ring((await self._session.get(self._paths.ring)).data)
        except NoNode:
            return  # nobody has led since there are datasets; or it was deleted, and the leader will write it again
        except BadRecord as error:
            self._log.warning("ring.unreadable", error=str(error))
            return
        if ring != self.atlas.ring:
            self._log.info("ring.changed", epoch=ring.epoch, keepers=len(ring.keepers), lost=sorted(ring.lost))
        self.atlas.ring = ring

    async def _read_dataset(self, name: str) -> None:
        if not is_dataset_name(name):
            self._log.warning("dataset.name_refused", name=name[:150])
            return
        try:
            await self._read_all_of(name)
        except NoAuth as error:  # costs this one, until the next look at everything
            self._log.warning("dataset.forbidden", name=name, error=str(error))
            self.atlas.datasets.setdefault(name, Dataset()).fault = str(error)

    async def _read_all_of(self, name: str) -> None:
        try:
            text = (await self._session.get(self._paths.dataset(name))).data
        except NoNode:
            self.atlas.datasets.pop(name, None)
            return
        dataset = self.atlas.datasets.setdefault(name, Dataset())
        dataset.fault = None
        try:
            dataset.current = read_head(text).current
        except BadRecord as error:
            dataset.current = None  # of somebody who has begun, and made no version yet, or of a hostile one
            if text:
                self._log.warning("dataset.head_refused", name=name, error=str(error))
        dataset.writers = len(await self._children(self._paths.writers(name)))
        doubted = self._doubted.pop(name, set())
        try:
            leaves = await self._children(self._paths.versions(name))
            there = {number for leaf in leaves if (number := version_number(leaf))}
            kept = (dataset.editions.keys() & there) - doubted
            read = await self._read_versions(name, dataset, sorted(there - kept))
        except ZooKeeperError:
            self._doubted.setdefault(name, set()).update(doubted)
            raise
        dataset.editions = {version: dataset.editions[version] for version in kept} | read
        for version in dataset.refused.keys() - (there - kept - read.keys()):
            del dataset.refused[version]
        self._forget_chunks()

    async def _read_versions(self, name: str, dataset: Dataset, versions: list[int]) -> dict[int, Edition]:
        manifests: dict[int, Manifest] = {}
        for version, got in await self._read([(each, self._paths.version(name, each)) for each in versions]):
            try:
                if not isinstance(got, NoNode):  # deleted meanwhile; the event is on its way
                    manifests[version] = read_manifest(name, version, _data(got))
            except BadRecord as error:
                self._refuse(name, dataset, version, error)
        wanted = {digest for manifest in manifests.values() for digest in manifest.chunks} - self._chunks.keys()
        faults: dict[str, BadRecord] = {}
        for digest, got in await self._read([(each, self._paths.chunk(name, each)) for each in sorted(wanted)]):
            try:
                self._chunks[digest] = read_chunk(digest, _data(got))
            except BadRecord as error:
                faults[digest] = error
        editions: dict[int, Edition] = {}
        for version, manifest in manifests.items():
            try:
                for digest in manifest.chunks:
                    if digest in faults:
                        raise BadRecord(f"chunks/{digest}", str(faults[digest]))
                editions[version] = Edition(manifest, assemble(manifest, self._chunks))
            except BadRecord as error:
                self._refuse(name, dataset, version, error)
        return editions

    def _refuse(self, name: str, dataset: Dataset, version: int, error: BadRecord) -> None:
        if dataset.refused.get(version) != str(error):
            self._log.warning("manifest.refused", name=name, version=version, error=str(error))
        dataset.refused[version] = str(error)

    def _forget_chunks(self) -> None:
        named = {
            digest
            for dataset in self.atlas.datasets.values()
            for edition in dataset.editions.values()
            for digest in edition.manifest.chunks
        }
        for digest in self._chunks.keys() - named:
            del self._chunks[digest]

    async def _read_holdings(self, holdings: list[tuple[str, NodeId]]) -> None:
        for (name, node), got in await self._read([(each, self._paths.holding(*each)) for each in holdings]):
            of_name = self.atlas.holdings.setdefault(name, {})
            try:
                of_name[node] = read_holding(_data(got))
            except BadRecord as error:
                if not isinstance(got, NoNode):
                    self._log.warning("holding.refused", name=name[:150], node=node[:150], error=str(error))
                of_name.pop(node, None)
                if not of_name:
                    del self.atlas.holdings[name]

    async def _read(self, paths: list[tuple[K, str]]) -> list[tuple[K, Znode | ZooKeeperError]]:
        found: list[tuple[K, Znode | ZooKeeperError]] = []
        for start in range(0, len(paths), READ_AT_ONCE):
            some = paths[start : start + READ_AT_ONCE]
            got = await self._session.get_many([path for _, path in some])
            found += [(key, each) for (key, _), each in zip(some, got, strict=True)]
        return found

    # --- Placing ----------------------------------------------------------------------------------------

    async def _compute(self) -> None:
        """Place what is not placed by the present ring. What was placed by the former one answers meanwhile."""
        keepers = self.atlas.ring.keepers
        for layout in self.atlas.unplaced():
            if not keepers:
                placed: list[tuple[NodeId, ...]] = [()] * layout[1]
            elif layout[1] * len(keepers) <= PLACED_INLINE:
                placed = self._place(*layout, keepers)
            else:
                placed = await asyncio.to_thread(self._place, *layout, keepers)
            self.atlas.placed[layout] = (keepers, placed)
        for layout in self.atlas.placed.keys() - self.atlas.layouts():
            del self.atlas.placed[layout]


def _data(got: Znode | ZooKeeperError) -> bytes:
    if isinstance(got, ZooKeeperError):
        raise BadRecord("$", f"expected a znode that can be read: {got}")
    return got.data
