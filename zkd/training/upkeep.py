"""The files of jobs that lie on this node, checkpoints and models: removes what no state points to, mends what it does.

    nothing points to it any more     removed at once
    nothing points to it yet          removed after a time of grace: a pointer may be on its way
    its job is gone                   removed at once
    too few of its nodes are here     pulled by those that come next in its rendezvous, who add themselves to its nodes
    is said to lie here, and does not pulled again

A state that is older than one we saw, of a server that lags behind, is not believed. A running job's files change every
few seconds and are its coordinator's own concern.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass

from msgspec import structs
from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.jobs import rank
from zkd.errors import (
    AuthFailed,
    BadRecord,
    BadVersion,
    DataDamaged,
    DataUnavailable,
    NoNode,
    SessionClosed,
    ZooKeeperError,
)
from zkd.jobs import FileRef, JobState
from zkd.paths import JobId, NodeId, Paths
from zkd.training.copies import Copies
from zkd.training.peers import Peers
from zkd.zk import Session, State

LOOK_S = 1.0  # between looks while something is about to change: files of running jobs, copies that are missing
IDLE_S = 30.0  # and while nothing is known to
GATHER_S = 0.2  # changes come in swarms
HERE_S = 5.0  # between reads of who is here; a large cluster takes longer
HERE_A_SECOND = 50
ORPHAN_S = 60.0  # a file without a pointer may be one whose pointer is on its way
MISSED_S = 10.0  # so long a node may be away before what it has is copied elsewhere
FAILED_S = 10.0  # before the next try at a file that nobody gave
VERIFY_S = 3600.0  # between readings of a file
ADDS_MAX = 10  # tries to be added to the nodes of a file
STATES_AT_ONCE = 64

Key = tuple[JobId, str]


@dataclass(slots=True)
class Known:
    """The state of a job as we read it last."""

    mzxid: int
    state: JobState | None
    pointed: set[str]  # files that it pointed to, now or before
    is_readable: bool = True

    def refs(self) -> list[FileRef]:
        files = () if self.state is None else (self.state.checkpoint, self.state.model)
        return [ref for ref in files if ref is not None]


class Upkeep:
    def __init__(
        self,
        session: Session,
        paths: Paths,
        node: NodeId,
        peers: Peers,
        copies: Copies,
        is_held: Callable[[JobId], bool],
        replicas: Callable[[], int],
        log: Log,
    ) -> None:
        self._session = session
        self._paths = paths
        self._node = node
        self._peers = peers
        self._copies = copies
        self._is_held = is_held
        self._replicas = replicas
        self._log = log
        self._wake = asyncio.Event()
        self._dirty: set[JobId] = set()
        self._known: dict[JobId, Known] = {}
        self._gone: set[JobId] = set()  # without a doubt
        self._here: list[NodeId] = []
        self._here_at = -math.inf
        self._missed_since: dict[Key, float] = {}
        self._not_before: dict[Key, float] = {}
        self._verified_at: dict[Key, float] = {}
        self.pulled = 0
        self.removed = 0

    def changed(self, job_id: JobId) -> None:
        """The state of a job has changed, or is gone."""
        self._dirty.add(job_id)
        if not self._is_held(job_id):
            self._wake.set()

    async def run(self) -> None:
        """Ends only by cancellation."""
        wait_s = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            await asyncio.sleep(GATHER_S)
            self._wake.clear()
            wait_s = LOOK_S
            if self._session.state is not State.CONNECTED:
                continue
            try:
                wait_s = await self._look()
            except (SessionClosed, AuthFailed):
                raise
            except ZooKeeperError as error:
                self._log.info("checkpoints.not_looked_after", error=str(error))
            except OSError as error:
                self._log.warning("checkpoints.not_looked_after", error=str(error))

    async def _look(self) -> float:
        """The seconds until there may be more to do."""
        ages = await asyncio.to_thread(self._copies.store.ages)
        await self._read_states(ages.keys())
        is_busy = any(self._is_held(job_id) for job_id in ages)
        for job_id, files in ages.items():
            is_busy |= self._sweep(job_id, files)
        refs = {
            (job_id, ref.id): ref
            for job_id, known in self._known.items()
            if not self._is_held(job_id)
            for ref in known.refs()
        }
        for stale in self._missed_since.keys() - refs.keys():
            del self._missed_since[stale]
        for stale in self._not_before.keys() - refs.keys():
            del self._not_before[stale]
        if not refs:
            return LOOK_S if is_busy else IDLE_S
        await self._meet()
        for (job_id, _), ref in refs.items():
            if self._is_mine_to_pull(job_id, ref):
                await self._pull(job_id, ref)
        is_busy |= await self._verify_one(refs)
        return LOOK_S if is_busy or self._missed_since or self._not_before else max(HERE_S, self._meets_s())

    async def _read_states(self, local: Set[JobId]) -> None:
        """Those that changed, of jobs whose files lie here or that nobody coordinates."""
        asked = self._dirty | (local - self._known.keys())
        wanted = [job_id for job_id in asked if job_id in local or not self._is_held(job_id)]
        for start in range(0, len(wanted), STATES_AT_ONCE):
            some = wanted[start : start + STATES_AT_ONCE]
            self._dirty.difference_update(some)
            try:
                found = await self._session.get_many([self._paths.job_state(job_id) for job_id in some])
            except ZooKeeperError:
                self._dirty.update(some)
                raise
            for job_id, got in zip(some, found, strict=True):
                if isinstance(got, NoNode):
                    self._known.pop(job_id, None)
                    if job_id in local:
                        await self._doubt(job_id)
                elif not isinstance(got, ZooKeeperError):
                    self._state_read(job_id, got.data, got.stat.mzxid)

    def _state_read(self, job_id: JobId, text: bytes, mzxid: int) -> None:
        known = self._known.setdefault(job_id, Known(-1, None, set()))
        if mzxid < known.mzxid:
            self._dirty.add(job_id)
            return
        known.mzxid = mzxid
        try:
            known.state = codec.decode(text, JobState)
        except BadRecord:
            known.is_readable = False
        else:
            known.is_readable = True
            known.pointed |= {ref.id for ref in known.refs()}

    async def _doubt(self, job_id: JobId) -> None:
        """There seems to be no state. A file comes after the state that it is of, so one that is really not there any
        more, by a server that has caught up, is gone with all its files."""
        path = self._paths.job_state(job_id)
        await self._session.sync(path)
        try:
            got = await self._session.get(path)
        except NoNode:
            self._gone.add(job_id)
        else:
            self._state_read(job_id, got.data, got.stat.mzxid)

    def _sweep(self, job_id: JobId, files: dict[str, float]) -> bool:
        """Whether some files are left that will have to go, or be pointed to."""
        known = self._known.get(job_id)
        kept = set() if known is None else {ref.id for ref in known.refs()}
        left = False
        if known is not None and not known.is_readable:
            return False  # it may point to any of them
        for file_id in files.keys() - kept:
            was_pointed = known is not None and file_id in known.pointed
            if was_pointed or job_id in self._gone or files[file_id] > ORPHAN_S:
                self._copies.store.remove(job_id, file_id)
                self.removed += 1
                self._log.info("checkpoint.removed", id=job_id, file=file_id[:12])
            else:
                left = True
        self._gone.discard(job_id)
        if not files:
            self._copies.store.remove_empty(job_id)
        return left

    def _meets_s(self) -> float:
        return max(HERE_S, len(self._here) / HERE_A_SECOND)

    async def _meet(self) -> None:
        now = self._now()
        if now - self._here_at >= self._meets_s():
            self._here = await self._session.children(self._paths.nodes)
            self._here_at = now

    def _is_mine_to_pull(self, job_id: JobId, ref: FileRef) -> bool:
        key, now, here = (job_id, ref.id), self._now(), set(self._here)
        if now < self._not_before.get(key, -math.inf) or self._node not in here:
            return False
        if self._node in ref.nodes:
            return not self._copies.store.has(job_id, ref.id)
        missing = min(self._replicas(), len(here)) - len(here & set(ref.nodes))
        if missing <= 0:
            self._missed_since.pop(key, None)
            return False
        if now - self._missed_since.setdefault(key, now) < MISSED_S:
            return False
        others = here - set(ref.nodes)
        return rank(ref.id, self._node, others) < missing

    async def _pull(self, job_id: JobId, ref: FileRef) -> None:
        key = job_id, ref.id
        try:
            with self._peers.followed(lambda: None):
                await self._peers.known(self._session.timeout_s)
                await self._copies.read(job_id, ref)
            is_added = await self._add(job_id, ref)
        except (DataUnavailable, TimeoutError) as error:
            self._not_before[key] = self._now() + FAILED_S
            self._log.warning("checkpoint.not_pulled", id=job_id, file=ref.id[:12], error=str(error))
            return
        self._not_before.pop(key, None)
        self.pulled += 1
        self._log.info("checkpoint.pulled", id=job_id, file=ref.id[:12], is_added=is_added)

    async def _add(self, job_id: JobId, ref: FileRef) -> bool:
        """Say in the state that it lies here. False: nothing points to it any more."""
        path = self._paths.job_state(job_id)
        for _ in range(ADDS_MAX):
            try:
                got = await self._session.get(path)
                state = codec.decode(got.data, JobState)
                changed = structs.replace(
                    state, checkpoint=self._with_us(state.checkpoint, ref), model=self._with_us(state.model, ref)
                )
                if changed == state:
                    return any(each is not None and each.id == ref.id for each in (state.checkpoint, state.model))
                await self._session.set(path, codec.encode(changed), got.stat.version)
            except BadVersion:
                continue
            except (NoNode, BadRecord):
                return False
            else:
                return True
        return False

    def _with_us(self, there: FileRef | None, ref: FileRef) -> FileRef | None:
        if there is None or there.id != ref.id or self._node in there.nodes:
            return there
        return structs.replace(there, nodes=[*(node for node in there.nodes if node in self._here), self._node])

    async def _verify_one(self, refs: dict[Key, FileRef]) -> bool:
        """Read one of the files that lie here, if it is its turn: what is rotten is removed, and pulled again."""
        now = self._now()
        for key in self._verified_at.keys() - refs.keys():
            del self._verified_at[key]
        for job_id, file_id in refs:
            is_due = now - self._verified_at.get((job_id, file_id), -math.inf) >= VERIFY_S
            if is_due and self._copies.store.has(job_id, file_id):
                try:
                    await self._copies.store.read(job_id, file_id)
                except (DataDamaged, DataUnavailable) as error:
                    self._log.warning("checkpoint.damaged", id=job_id, error=str(error))
                self._verified_at[job_id, file_id] = now
                return True
        return False

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
