"""Keeps on this node's disk what belongs here: does what `zkd.core.keeping` decides.

Decides anew when the picture of the datasets changed, when a segment came or went, and now and then while something
waits for its time. Fetches come from whoever holds the segment, a few at once, within a budget of bytes a second;
what is thrown away lies in the trash first, and is deleted only after those it belongs to have read theirs.

Nothing is thrown away while there is no connection, while the picture is not complete, or in a tree that is not the
one we kept data for: an ensemble that lost its disks, or another one by mistake, lists none of our segments.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import deque
from collections.abc import Callable, Set
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.atlas import Atlas
from zkd.core.keeping import Bucket, Command, Fetch, Keeping, Purge, Restore, Survey, Trash, Witnesses, survey
from zkd.errors import BadRecord, DataDamaged, DataUnavailable, ZooKeeperError
from zkd.manifests import SegmentRef
from zkd.paths import NodeId, Paths
from zkd.records import Node
from zkd.settings import Data
from zkd.store import SegmentStore
from zkd.store.segment_files import sync_directory
from zkd.zk import Session, State

if TYPE_CHECKING:
    import ssl

    import aiohttp

FETCHES_AT_ONCE = 4
PURGES_AT_ONCE = 2
TRASHES_AT_ONCE = 100  # each syncs two directories
GATHER_S = 0.05  # changes come in swarms
IDLE_S = 30.0  # between looks when nothing is known to have changed and nothing waits for its time
PEERS_S = 1.0  # between reads of who is here, while that matters; a large cluster takes longer
PEERS_A_SECOND = 200
TIDY_S = 3600.0
VERIFY_S = 600.0  # for another node to read a segment
DISK_S = 5.0  # before the next try when the disk takes no more
PARTS_INLINE = 5_000  # more to survey go to a thread,
TOUCHED_INLINE = 20_000  # and so do more segments to decide about, times the nodes that may have them
DECIDING_SHARE = 0.1  # of the time, at most
REMEMBERED = "segments.tree"


class Keeper:
    def __init__(
        self,
        session: Session,
        paths: Paths,
        node: NodeId,
        store: SegmentStore,
        atlas: Atlas,
        is_settled: Callable[[], bool],
        tree: Callable[[], str],
        token: Callable[[], str | None],
        settings: Callable[[], Data],
        data_dir: Path,
        log: Log,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._session = session
        self._paths = paths
        self._node = node
        self._store = store
        self._atlas = atlas
        self._is_settled = is_settled
        self._tree = tree
        self._token = token
        self._settings = settings
        self._remembered = data_dir / REMEMBERED
        self._log = log
        self._tls = tls
        self._wake = asyncio.Event()
        self._keeping = Keeping(node)
        self._budget = Bucket(0.0)
        self._survey: tuple[object, Survey] | None = None
        self._peers: dict[NodeId, Node] = {}
        self._peers_at = -math.inf
        self._trashed: set[str] = set()
        self._fetching: set[str] = set()
        self._purging: set[str] = set()
        self._failed: list[str] = []
        self._refused: list[str] = []
        self._disk_waits_until = 0.0
        self._is_stranger = False
        self._known_tree: str | None = None
        self._is_disk_full = False
        self._fetches: deque[tuple[Fetch, SegmentRef]] = deque()  # what was decided, and is not begun
        self._purges: deque[Purge] = deque()
        self.repaired = 0
        self.repaired_bytes = 0
        self.purged = 0

    def counts(self) -> dict[str, int]:
        """How many segments are in which state, for people."""
        here = self._store.ids()
        wanted: Set[str] = self._survey[1].wanted.keys() if self._survey is not None else set()
        return {
            "here": len(here),
            "missing": len(wanted - here),
            "repairing": len(self._fetching),
            "surplus": len(here - wanted),
            "trashed": len(self._trashed),
        }

    @property
    def kept_bytes(self) -> int:
        """Of the segments here that belong here."""
        if self._survey is None:
            return 0
        wanted = self._survey[1].wanted
        return sum(wanted[each].ref.size for each in self._store.ids() if each in wanted)

    def look(self) -> None:
        """Something changed: the picture, or what lies here."""
        self._wake.set()

    async def run(self) -> None:
        """Ends only by cancellation."""
        from zkd.net.fetch import session

        self._trashed = set(await self._store.trashed())
        async with session(self._tls) as http, asyncio.TaskGroup() as group:
            group.create_task(self._tidy())
            while True:
                began = self._now()
                wait_s = await self._round(group, http)
                took_s = self._now() - began
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
                await asyncio.sleep(max(GATHER_S, took_s / DECIDING_SHARE))
                self._wake.clear()

    async def _tidy(self) -> None:
        """Remove now and then what nobody will ask for: what was damaged long ago, arrivals that nobody ended."""
        while True:
            try:
                await self._store.purge(math.inf)
            except OSError as error:
                self._log.warning("segments.not_tidied", error=str(error))
            await asyncio.sleep(TIDY_S)

    async def _round(self, group: asyncio.TaskGroup, http: aiohttp.ClientSession) -> float:
        """Decide once, and begin to do it; the seconds until there may be more to decide."""
        survey = await self._surveyed()
        here = self._store.ids()
        if self._is_settled() and self._known_tree != self._tree() != "":
            # Before anything lies here: later it would be too late to tell another tree from ours.
            self._known_tree = await asyncio.to_thread(self._known, self._tree(), not here and not self._trashed)
        touched = len(survey.wanted.keys() ^ here) + len(self._trashed)
        if not touched:
            self._keeping.rest()
            return IDLE_S
        try:
            await self._meet()
            is_sure = self._is_sure()
        except ZooKeeperError as error:
            self._log.info("keeper.interrupted", error=str(error))
            is_sure = False
        survey = await self._surveyed()  # as it is now: most often the same
        here = self._store.ids()
        witnesses = Witnesses(self._atlas.holdings, {name: peer.incarnation for name, peer in self._peers.items()})
        now = self._now()
        for each in self._failed:
            self._keeping.fetch_failed(each, survey, witnesses, now)
        for each in self._refused:
            self._keeping.purge_refused(each)
        self._failed, self._refused = [], []
        grace_s = self._settings().grace_s
        trashed = frozenset(self._trashed)
        if touched * len(self._peers) < TOUCHED_INLINE:
            commands = self._keeping.decide(survey, here, trashed, witnesses, now, grace_s, is_sure=is_sure)
        else:
            commands = await asyncio.to_thread(
                self._keeping.decide, survey, here, trashed, witnesses, now, grace_s, is_sure=is_sure
            )
        await self._carry_out(commands, survey, group, http)
        return min(5.0, max(0.1, grace_s / 20))

    # --- Knowing ----------------------------------------------------------------------------------------

    async def _surveyed(self) -> Survey:
        """What is asked of this node. Made anew when a version, the map, or who writes changed."""
        atlas = self._atlas
        mark = (  # of the very objects, so that most are equal at a glance
            [(name, dataset.writers > 0, dataset.is_readable) for name, dataset in atlas.datasets.items()],
            [edition for dataset in atlas.datasets.values() for edition in dataset.editions.values()],
            list(atlas.placed.values()),
        )
        if self._survey is None or self._survey[0] != mark:
            parts = sum(len(each.parts) for dataset in atlas.datasets.values() for each in dataset.editions.values())
            if parts < PARTS_INLINE:
                self._survey = mark, survey(atlas, self._node)
            else:
                self._survey = mark, await asyncio.to_thread(survey, atlas, self._node)
        return self._survey[1]

    async def _meet(self) -> None:
        """Read who is here, unless we just did."""
        if self._now() - self._peers_at < max(PEERS_S, len(self._peers) / PEERS_A_SECOND):
            return
        names = await self._session.children(self._paths.nodes)
        peers: dict[NodeId, Node] = {}
        for name, got in zip(
            names, await self._session.get_many([self._paths.node(name) for name in names]), strict=True
        ):
            if not isinstance(got, ZooKeeperError):
                with suppress(BadRecord):
                    peers[name] = codec.decode(got.data, Node)
        self._peers = peers
        self._peers_at = self._now()

    def _is_sure(self) -> bool:
        """Whether what we see is the tree as it is, and the one that we keep data for."""
        if self._session.state is not State.CONNECTED or not self._is_settled() or not self._atlas.ring.keepers:
            return False
        return self._node in self._peers and self._tree() != "" and self._known_tree == self._tree()

    def _known(self, tree: str, is_empty: bool) -> str | None:
        """The tree whose datasets lie here; this one, if nothing does."""
        try:
            known = self._remembered.read_text() if self._remembered.exists() and not is_empty else None
            if known is None:
                half_written = self._remembered.with_suffix(".tmp")
                with half_written.open("w") as file:
                    file.write(tree)
                    file.flush()
                    os.fsync(file.fileno())  # half of a name would be another tree's, for ever
                os.replace(half_written, self._remembered)
                sync_directory(self._remembered.parent)
                return tree
        except OSError as error:
            self._log.warning("tree.not_remembered", error=str(error))
            return None
        if known != tree and not self._is_stranger:
            self._is_stranger = True
            hint = f"nothing is thrown away; if this is right, stop, remove {self._remembered}, and start again"
            self._log.error("tree.changed", expected=known, found=tree, hint=hint)
        return known

    # --- Acting -----------------------------------------------------------------------------------------

    async def _carry_out(
        self, commands: list[Command], survey: Survey, group: asyncio.TaskGroup, http: aiohttp.ClientSession
    ) -> None:
        restores = [each for each in commands if isinstance(each, Restore)]
        moves: list[Restore | Trash] = [
            *restores,
            *[each for each in commands if isinstance(each, Trash)][:TRASHES_AT_ONCE],
        ]
        for command in moves:
            try:
                if isinstance(command, Restore):
                    self._log.info("segment.restored", segment=command.segment)
                    self._trashed.discard(command.segment)
                    if self._store.has(command.segment):  # somebody has brought it anew
                        await self._store.remove(command.segment)
                    elif await self._store.restore(command.segment):
                        await self._store.verify(command.segment)  # nobody has looked at it while it lay there
                else:
                    self._log.info("segment.trashed", segment=command.segment)
                    await self._store.trash(command.segment)
                    self._trashed.add(command.segment)
            except (OSError, DataUnavailable) as error:
                self._log.warning("segment.not_moved", segment=command.segment, error=str(error))
        self._fetches = deque((each, survey.wanted[each.segment].ref) for each in commands if isinstance(each, Fetch))
        self._purges = deque(each for each in commands if isinstance(each, Purge))
        self._go_on(group, http)

    def _go_on(self, group: asyncio.TaskGroup, http: aiohttp.ClientSession) -> None:
        """Begin what was decided, as much as may be under way at a time."""
        while self._fetches and len(self._fetching) < FETCHES_AT_ONCE and self._now() >= self._disk_waits_until:
            fetch, ref = self._fetches.popleft()
            if fetch.segment not in self._fetching and not self._store.has(fetch.segment):
                self._fetching.add(fetch.segment)
                group.create_task(self._fetch(fetch, ref, group, http))
        while self._purges and len(self._purging) < PURGES_AT_ONCE:
            purge = self._purges.popleft()
            if purge.segment not in self._purging and purge.segment in self._trashed:
                self._purging.add(purge.segment)
                group.create_task(self._purge(purge, group, http))

    def _ended(self, group: asyncio.TaskGroup, http: aiohttp.ClientSession) -> None:
        self._go_on(group, http)
        if not self._fetches and not self._purges:
            self._wake.set()

    async def _fetch(
        self, fetch: Fetch, ref: SegmentRef, group: asyncio.TaskGroup, http: aiohttp.ClientSession
    ) -> None:
        from zkd.net.segments import fetch as fetch_segment

        began = self._now()
        urls = [address for name in fetch.sources if (address := self._address(name)) is not None]
        try:
            await fetch_segment(http, urls, self._token() or "", ref, self._store, self._paced)
        except (DataUnavailable, DataDamaged, TimeoutError) as error:
            self._failed.append(fetch.segment)
            self._log.info("segment.not_fetched", segment=fetch.segment, sources=fetch.sources, error=str(error))
        except OSError as error:
            self._failed.append(fetch.segment)
            if not self._is_disk_full:
                self._is_disk_full = True
                self._log.error("segments.not_written", error=str(error), retry_s=DISK_S)
            self._disk_waits_until = self._now() + DISK_S
        else:
            self._is_disk_full = False
            self.repaired += 1
            self.repaired_bytes += fetch.size
            self._log.info(
                "segment.fetched", segment=fetch.segment, copies=fetch.copies, took_s=round(self._now() - began, 3)
            )
        finally:
            self._fetching.discard(fetch.segment)
        self._ended(group, http)

    async def _paced(self, size: int) -> None:
        await asyncio.sleep(self._budget.spend(size, self._settings().repair_bytes_s, self._now()))

    async def _purge(self, purge: Purge, group: asyncio.TaskGroup, http: aiohttp.ClientSession) -> None:
        """Delete it, if everybody who should have it has just read it whole."""
        from zkd.net.segments import verify

        try:
            for name in purge.witnesses:
                address = self._address(name)
                token = self._token() or ""
                if address is None or not await verify(http, address, token, purge.segment, VERIFY_S):
                    self._refused.append(purge.segment)
                    self._log.warning("segment.not_vouched_for", segment=purge.segment, node=name)
                    break
            else:
                await self._forget(purge.segment)
        except (DataUnavailable, OSError, TimeoutError) as error:
            self._refused.append(purge.segment)
            self._log.info("segment.not_purged", segment=purge.segment, error=str(error))
        finally:
            self._purging.discard(purge.segment)
        self._ended(group, http)

    async def _forget(self, segment_id: str) -> None:
        """Delete it from the trash, unless it was taken back meanwhile."""
        if segment_id in self._trashed:
            await self._store.remove(segment_id)
            self._trashed.discard(segment_id)
            self.purged += 1
            self._log.info("segment.purged", segment=segment_id)

    def _address(self, node: NodeId) -> str | None:
        peer = self._peers.get(node)
        return None if peer is None else peer.address

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
