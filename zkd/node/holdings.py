"""Says at ``holdings/<name>/<node>`` which parts lie on this node, whole.

What should stand there follows from what lies here; what stands there is seen by the view like everybody else's. Where
they differ it is written, many changes at a time, so that all keepers together write no more than a few dozen a second.
A holding goes with the last part, and with its dataset.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.atlas import Atlas
from zkd.core.datasets import Held, holding
from zkd.core.keeping import report
from zkd.errors import NoAuth, NodeExists, NoNode, NotEmpty, OutcomeUnknown, SessionExpired, Unavailable, ZooKeeperError
from zkd.paths import NodeId, Paths, parent
from zkd.store import SegmentStore
from zkd.zk import Session, State, ensure_path

GATHER_S = 0.2  # changes come in swarms
WRITES_A_SECOND = 50  # of all keepers together
SEEN_S = 5.0  # within this what we wrote is in the view; if not, it was undone by somebody
SWEEP_S = 60.0  # between looks for what nodes that are gone for good have left
PARTS_INLINE = 5_000  # more to look through go to a thread


class Holdings:
    def __init__(
        self,
        session: Session,
        paths: Paths,
        node: NodeId,
        store: SegmentStore,
        atlas: Atlas,
        is_complete: Callable[[], bool],
        incarnation: Callable[[], str | None],
        log: Log,
    ) -> None:
        self._session = session
        self._paths = paths
        self._node = node
        self._store = store
        self._atlas = atlas
        self._is_complete = is_complete
        self._incarnation = incarnation
        self._log = log
        self._wake = asyncio.Event()
        self._changes = 1
        self._said: tuple[int, dict[str, dict[int, int]]] = 0, {}  # after which change, and what should be said
        self._written: dict[str, tuple[Held | None, float]] = {}  # what, and when

    def look(self) -> None:
        """Something changed: the picture, or what lies here."""
        self._changes += 1
        self._wake.set()

    async def run(self) -> None:
        """Ends only by cancellation."""
        loop = asyncio.get_running_loop()
        swept_at = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(SEEN_S):
                    await self._wake.wait()
            await asyncio.sleep(max(GATHER_S, len(self._atlas.ring.keepers) / WRITES_A_SECOND))
            self._wake.clear()
            incarnation = self._incarnation()
            if incarnation is None or not self._is_complete() or self._session.state is not State.CONNECTED:
                continue
            try:
                await self._say(incarnation)
                if loop.time() - swept_at > SWEEP_S:
                    swept_at = loop.time()
                    await self._sweep()
            except (Unavailable, OutcomeUnknown, SessionExpired) as error:
                self._written.clear()
                self._wake.set()
                self._log.info("holdings.delayed", error=str(error))
            except ZooKeeperError as error:
                self._log.warning("holdings.not_written", error=str(error))

    async def _say(self, incarnation: str) -> None:
        if self._said[0] != self._changes:
            self._said = self._changes, await self._reported()
        said = self._said[1]
        known = {name for name, held in self._atlas.holdings.items() if self._node in held}
        for name in sorted(said.keys() | known | self._written.keys()):
            wanted = Held(incarnation, said[name]) if name in said else None
            if self._stands(name) == wanted:
                continue
            try:
                await self._write(name, wanted)
            except (NoAuth, NotEmpty, NodeExists) as error:  # somebody's ACL or child; the others go on
                self._log.warning("holding.not_written", name=name, error=str(error))

    async def _reported(self) -> dict[str, dict[int, int]]:
        here = self._store.ids()
        datasets = self._atlas.datasets.values()
        if sum(len(edition.parts) for dataset in datasets for edition in dataset.editions.values()) < PARTS_INLINE:
            return report(self._atlas, self._node, here)
        return await asyncio.to_thread(report, self._atlas, self._node, here)

    def _stands(self, name: str) -> Held | None:
        """What stands there, or what we have just written and not seen yet."""
        seen = self._atlas.holdings.get(name, {}).get(self._node)
        written = self._written.get(name)
        if written is None:
            return seen
        if written[0] == seen or asyncio.get_running_loop().time() - written[1] > SEEN_S:
            del self._written[name]
            return seen
        return written[0]

    async def _write(self, name: str, held: Held | None) -> None:
        path = self._paths.holding(name, self._node)
        if held is None:
            await self._remove(path)
        else:
            data = codec.encode(holding(held.incarnation, held.parts))
            try:
                await self._session.set(path, data, -1)
            except NoNode:
                await ensure_path(self._session, parent(path))
                with suppress(NodeExists, NoNode):  # of an answer that was lost; or the dataset goes this very moment
                    await self._session.create(path, data)
        self._written[name] = held, asyncio.get_running_loop().time()
        count = 0 if held is None else sum(bits.bit_count() for bits in held.parts.values())
        self._log.info("holding.written", name=name, parts=count)

    async def _remove(self, path: str) -> None:
        with suppress(NoNode):
            await self._session.delete(path, -1)
        with suppress(NoNode, NotEmpty):
            await self._session.delete(parent(path), -1)

    async def _sweep(self) -> None:
        """Remove what was said by nodes that are neither here nor awaited: by the first of us who are here."""
        here = set(await self._session.children(self._paths.nodes))
        keepers = {keeper.node for keeper in self._atlas.ring.keepers}
        if self._node != min(here & keepers, default=None):
            return
        for name, held in list(self._atlas.holdings.items()):
            for node in held.keys() - here - keepers:
                self._log.info("holding.removed", name=name, node=node)
                await self._remove(self._paths.holding(name, node))
