"""Composes what a node does with data: the parts of `zkd.node` that keep datasets, and what people see of them.

view (what there is, where it belongs) --- keeper (fetches, throws away) --- scrubber (reads for rot)
                                      \\-- holdings (says what is here)  \\-- lookup (rows by key)
registry (models: their versions and aliases) --- model_keeper (their files)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger as Log

from zkd.core.placement import place
from zkd.core.registry import live
from zkd.node.holdings import Holdings
from zkd.node.keeper import Keeper
from zkd.node.lookup import Lookup
from zkd.node.model_keeper import ModelKeeper
from zkd.node.registry_view import RegistryView
from zkd.node.scrubber import Scrubber
from zkd.node.view import View
from zkd.paths import NodeId, Paths
from zkd.settings import Data
from zkd.store import DigestFiles, SegmentStore
from zkd.workers.indexer import make_indexes
from zkd.zk import Session

if TYPE_CHECKING:
    import ssl

TIDY_S = 600.0  # between looks for what transfers and removals have left that were not finished


class Keeping:
    """`store` tells nobody of its changes before this is made."""

    def __init__(
        self,
        session: Session,
        paths: Paths,
        node: NodeId,
        store: SegmentStore,
        model_files: DigestFiles,
        data_dir: Path,
        boot: str,
        incarnation: Callable[[], str | None],
        token: Callable[[], str | None],
        settings: Callable[[], Data],
        log: Log,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._store = store
        self._log = log
        self._quarantined = 0
        self.view = view = View(session, paths, place, log)
        self.keeper = Keeper(
            session,
            paths,
            node,
            store,
            view.atlas,
            lambda: view.is_settled,
            lambda: view.tree,
            token,
            settings,
            data_dir,
            log,
            tls,
        )
        self.holdings = Holdings(session, paths, node, store, view.atlas, lambda: view.is_complete, incarnation, log)
        self.scrubber = Scrubber(store, lambda: settings().scrub_bytes_s, boot, log)
        self.lookup = Lookup(node, store, view.atlas, view.look, data_dir, make_indexes, log)
        self.registry = RegistryView(session, paths, log)
        self.model_keeper = ModelKeeper(
            session,
            paths,
            node,
            model_files,
            lambda: self.registry.models,
            lambda: self.registry.is_complete,
            lambda: live(view.atlas.ring),
            token,
            log,
            tls,
        )
        self.registry.subscribe(self.model_keeper.look)
        view.subscribe(self.model_keeper.look)
        view.subscribe(self.keeper.look)
        view.subscribe(self.holdings.look)
        store.changed = self._changed
        store.damaged = self._damaged

    async def run(self) -> None:
        """Ends only by cancellation."""
        async with asyncio.TaskGroup() as group:
            for part in (
                self.view,
                self.keeper,
                self.holdings,
                self.scrubber,
                self.registry,
                self.model_keeper,
            ):
                group.create_task(part.run())
            group.create_task(self._tidy())

    async def _tidy(self) -> None:
        while True:
            try:
                await self._store.tidy()
            except OSError as error:
                self._log.warning("segments.not_tidied", error=str(error))
            await asyncio.sleep(TIDY_S)

    async def rows(self, name: str, version: int, of: str | None, key: str, kind: str, columns: Sequence[str]) -> bytes:
        return await self.lookup.rows(name, version, key, kind, columns, of=of)

    def _changed(self, segment_id: str) -> None:
        """A segment came or went."""
        self.holdings.look()
        if not self._store.has(segment_id):
            self.keeper.look()
            self.lookup.forget(segment_id)

    def _damaged(self, segment_id: str, why: str) -> None:
        self._quarantined += 1
        self._log.warning("segment.quarantined", segment=segment_id, error=why)

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        keeper, datasets = self.keeper, self.view.atlas.datasets
        yield "zkd_datasets", {}, len(datasets)
        yield "zkd_manifests_refused", {}, sum(len(each.refused) for each in datasets.values())
        for state, count in keeper.counts().items():
            yield "zkd_segments", {"state": state}, count
        yield "zkd_segment_bytes", {}, keeper.kept_bytes
        yield "zkd_segments_repaired_total", {}, keeper.repaired
        yield "zkd_segments_repaired_bytes_total", {}, keeper.repaired_bytes
        yield "zkd_segments_purged_total", {}, keeper.purged
        yield "zkd_segments_quarantined_total", {}, self._quarantined
        yield "zkd_segments_scrubbed_total", {}, self.scrubber.scrubbed
        yield "zkd_segments_scrubbed_bytes_total", {}, self.scrubber.scrubbed_bytes
        yield from self.registry.samples()
        yield from self.model_keeper.samples()
