"""Sees to it that every job has one coordinator: looks at the jobs, takes those that have none, loses them in time.

Recursive watches on jobs/, control/jobs and control/coordinators say where to look; `zkd.core.jobs` says what a job
needs. Office is taken in one transaction within our session: the check of the words as they were read, the ephemeral
znode, the state with the next fence at the version read. So two nodes never hold one job, and a node that has lost its
session holds none. What a running job's state says is not read here: only its coordinator writes it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import structs
from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.clock import ServerClock
from zkd.core.jobs import RANK_S, Duty, Step, Words, duty, next_fence, rank
from zkd.errors import BadVersion, MultiFailed, NodeExists, NoNode, Unavailable, ZooKeeperError
from zkd.jobs import Coordinator, JobState, Phase
from zkd.leading import Deposed, lead
from zkd.paths import JobId, NodeId, Paths
from zkd.settings import Training
from zkd.training.docket import REFUSED_S, Docket, Entry, by_age
from zkd.training.seat import Seat, now_ms
from zkd.training.telling import Telling
from zkd.zk import Check, Create, Delete, Event, EventType, Session, SetData, State, StateChange

RANK_MAX = 30  # the rest of a large cluster tries together
NODES_S = 1.0  # between reads of who is here, while that decides who takes a job
RECONCILE_S = 60.0  # for what a watch missed
TAKING_S = 1.0  # for the answer to a write that takes a job, when this node is about to leave
DRAIN_S = 15.0  # for all jobs to be saved and handed over


class Running(Protocol):
    """The coordinator of one job. `run` ends when the office has been left, or by `Deposed`."""

    @property
    def telling(self) -> Telling: ...
    async def run(self) -> None: ...
    def told(self, words: Words | None) -> None:
        """The words are these now."""

    def hand_over(self) -> None:
        """Save what there is, and leave the office to somebody else."""


Begin = Callable[[Seat, Words], Running]


@dataclass(slots=True)
class Held:
    """A job that this node coordinates."""

    seat: Seat
    running: Running
    task: asyncio.Task[None] | None = field(default=None)


class Office:
    def __init__(
        self,
        session: Session,
        paths: Paths,
        node: NodeId,
        clock: ServerClock,
        settings: Callable[[], Training],
        is_active: Callable[[], bool],
        begin: Begin,
        state_changed: Callable[[JobId], None],
        log: Log,
    ) -> None:
        self._session = session
        self._paths = paths
        self._node = node
        self._clock = clock
        self._settings = settings
        self._is_active = is_active
        self._begin = begin
        self._log = log
        self._wake = asyncio.Event()
        self._docket = Docket(session, paths, self._seat_of, self._told, self._depose, state_changed, log)
        self._nodes: list[NodeId] = []
        self._nodes_at = -math.inf
        self._session_id = 0
        self._is_closed = False
        self._taking = asyncio.Lock()  # while a job is, until its task is there
        self._group: asyncio.TaskGroup | None = None
        self.held: dict[JobId, Held] = {}
        self.taken = 0
        self.deposed = 0

    # --- What others see --------------------------------------------------------------------------------

    def jobs(self) -> set[JobId]:
        """All whose words stand in the tree, as far as we know."""
        return {job_id for job_id, entry in self._docket.jobs.items() if entry.words is not None}

    def is_held(self, job_id: JobId) -> bool:
        """Whether some node coordinates it, as far as we know."""
        return job_id in self._docket.jobs and self._docket.jobs[job_id].is_held

    def look(self) -> None:
        """We may take more, or less, than before."""
        self._wake.set()

    def hand_over(self) -> None:
        """Begin to give up what is held; who may hold nothing takes nothing anew."""
        for held in self.held.values():
            held.running.hand_over()

    async def drain(self) -> None:
        """Take no more jobs, hand over those that are held; in bounded time."""
        self._is_closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(TAKING_S), self._taking:
                pass
        self.hand_over()
        tasks = {held.task for held in self.held.values() if held.task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN_S)

    # --- Watching ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ends only by cancellation, or with the session."""
        paths = self._paths
        unsubscribe = self._session.subscribe(self._session_changed)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                while True:
                    watched = [paths.jobs, paths.job_states, paths.coordinators]
                    await lead(
                        self._serve,
                        self._session,
                        self._log,
                        "office",
                        watched=watched,
                        saw=self._saw,
                        woken=self._wake.set,
                        directories=watched,
                    )
                    self._depose_all("the session is over")
        finally:
            unsubscribe()

    def _session_changed(self, change: StateChange) -> None:
        if change.state in (State.EXPIRED, State.CLOSED):
            self._depose_all("the session is over")

    def _saw(self, event: Event) -> None:
        directory, _, job_id = event.path.rpartition("/")
        if event.type is EventType.CHILDREN:
            return
        if directory == self._paths.jobs:
            self._docket.mark_words(job_id)
        elif directory == self._paths.coordinators:
            self._docket.mark_holder(job_id)
        elif directory == self._paths.job_states:
            if self._docket.mark_state(job_id) and event.type is not EventType.DELETED:
                return
        elif event.path in (self._paths.jobs, self._paths.job_states, self._paths.coordinators):
            self._session_id = 0 if event.type is EventType.DELETED else self._session_id
        else:
            return
        self._wake.set()

    async def _serve(self) -> None:
        """Look after jobs over one unbroken connection."""
        connection = self._session.epoch
        if self._session.session_id != self._session_id:
            self._depose_all("this is another session")
            self._session_id = self._session.session_id
        reconcile_at = -math.inf
        while True:
            self._wake.clear()
            if self._session.epoch != connection or self._session.state is not State.CONNECTED:
                raise Unavailable(self._paths.jobs, "the connection changed")
            if self._session_id != self._session.session_id:
                raise NoNode(self._paths.jobs, "a directory was deleted")
            if self._now() >= reconcile_at:
                await self._docket.list_all(is_first=reconcile_at == -math.inf)
                reconcile_at = self._now() + RECONCILE_S
            await self._docket.look_again(self._session_id)
            wait_s = min(await self._act(), reconcile_at - self._now())
            try:
                async with asyncio.timeout(max(0.0, wait_s)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    # --- Acting -----------------------------------------------------------------------------------------

    async def _act(self) -> float:
        """Do what is due now; the seconds until something else may be."""
        free = {
            job_id: entry
            for job_id, entry in self._docket.jobs.items()
            if not entry.is_held and job_id not in self.held
        }
        await self._docket.read_states([job_id for job_id, entry in free.items() if not entry.is_read])
        next_s, older = math.inf, 0  # of those that we would take: not due yet, but before any younger one
        for job_id, entry in sorted(free.items(), key=by_age):
            needed = self._needed(entry)
            if needed.step is Step.REST:
                if entry.words is None and entry.version < 0:
                    self._docket.jobs.pop(job_id, None)
                continue
            if needed.step is Step.TAKE and not self._has_room_for(older):
                continue
            ranked = min(rank(job_id, self._node, await self._here()), RANK_MAX)
            due = max(entry.free_since + RANK_S * ranked, entry.not_before)
            if due > self._now():
                next_s = min(next_s, due - self._now())
                older += needed.step is Step.TAKE and entry.not_before < self._now()
                continue
            await self._do(job_id, entry, needed)
        if self._docket.is_behind or any(not each.is_read and not each.is_held for each in free.values()):
            next_s = 0.0
        return next_s

    def _needed(self, entry: Entry) -> Duty:
        if entry.words is None and entry.state is None and entry.version >= 0:
            return Duty(Step.REMOVE)  # what nobody can read, of a job that is gone
        return duty(entry.words, entry.state)

    def _has_room_for(self, older: int) -> bool:
        """One more than these."""
        settings = self._settings()
        is_willing = settings.coordinate and self._is_active() and not self._is_closed
        return is_willing and len(self.held) + older < settings.jobs_max

    async def _here(self) -> list[NodeId]:
        if self._now() - self._nodes_at >= NODES_S:
            self._nodes = await self._session.children(self._paths.nodes)
            self._nodes_at = self._now()
        return self._nodes

    async def _do(self, job_id: JobId, entry: Entry, needed: Duty) -> None:
        path, words = self._paths.job_state(job_id), entry.words
        entry.is_read = False  # whatever comes of it
        if words is None:
            assert needed.step is Step.REMOVE, needed
            # Asked once more, after the state was read: this may be the state of another life that has just begun.
            if await self._session.exists(self._paths.job(job_id)) is not None:
                self._docket.mark_words(job_id)
                return
            if await self._write(job_id, entry, [Delete(path, entry.version)]):
                self._log.info("job.removed", id=job_id)
            return
        state = self._state(words, entry.state, needed)
        text = codec.encode(state)
        ops: list[Check | Create | SetData | Delete] = [Check(self._paths.job(job_id), words.version)]
        ops.append(Create(path, text) if entry.version < 0 else SetData(path, text, entry.version))
        if needed.step is not Step.TAKE:
            if await self._write(job_id, entry, ops):
                self._log.info("job.noted", id=job_id, phase=state.phase, error=state.error)
            return
        holder = codec.encode(Coordinator(self._node, state.fence))
        ops.append(Create(self._paths.coordinator(job_id), holder, ephemeral=True))
        async with self._taking:
            is_taken = await self._write(job_id, entry, ops)
        if is_taken:
            entry.is_held = True
            self.taken += 1
            self._log.info("job.taken", id=job_id, fence=state.fence, phase=state.phase)
            assert self._group is not None
            seat = Seat(
                self._session, self._paths, self._clock, self._log, job_id, state, entry.version + 1, self._session_id
            )
            held = Held(seat, self._begin(seat, words))
            self.held[job_id] = held
            held.task = self._group.create_task(self._run(job_id, held))
            if self._is_closed:  # meanwhile; whoever drains waits for this one, too
                held.running.hand_over()

    def _state(self, words: Words, former: JobState | None, needed: Duty) -> JobState:
        """What stands at control/jobs from this office on."""
        fence = next_fence(words, former)
        now = now_ms(self._clock)
        if former is None or former.czxid != words.czxid:
            state = JobState(czxid=words.czxid, terms=words.terms, fence=fence, phase="waiting")
        else:
            state = structs.replace(former, fence=fence)
        if needed.step is Step.FAIL:
            return structs.replace(state, phase="failed", error=needed.why, ended_ms=now)
        if needed.step is Step.PAUSE:
            return structs.replace(state, phase="paused")
        phase: Phase = "preparing" if state.checkpoint is None else "training"
        started_ms = now if state.started_ms is None else state.started_ms
        return structs.replace(state, phase=phase, coordinator=self._node, started_ms=started_ms)

    async def _write(self, job_id: JobId, entry: Entry, ops: list[Check | Create | SetData | Delete]) -> bool:
        """Whether it was written; if not, what has to be read again is marked."""
        try:
            await self._session.multi(ops, within=self._session_id)
        except MultiFailed as refusal:
            culprit, cause = ops[refusal.index], refusal.cause
            self._docket.mark_words(job_id)
            self._docket.mark_holder(job_id)
            if not isinstance(cause, BadVersion | NodeExists | NoNode):
                self._log.warning("job.not_written", id=job_id, path=culprit.path, error=str(cause))
                entry.not_before = self._now() + REFUSED_S
            elif isinstance(culprit, Create) and isinstance(cause, NoNode):
                raise cause from None  # the directory itself is gone
            return False
        return True

    async def _run(self, job_id: JobId, held: Held) -> None:
        try:
            with suppress(ZooKeeperError):  # a node that has just come has not seen the servers' time yet
                stat = await self._session.exists(self._paths.coordinator(job_id))
                if stat is not None:
                    self._clock.observe(stat.mtime, self._now(), stat.mzxid)
            await held.running.run()
        except Deposed:
            self.deposed += 1
            self._log.info("job.deposed", id=job_id, fence=held.seat.fence)
        finally:
            if self.held.get(job_id) is held:
                del self.held[job_id]
            self._docket.mark_holder(job_id)
            self._wake.set()

    def _seat_of(self, job_id: JobId) -> Seat | None:
        return self.held[job_id].seat if job_id in self.held else None

    def _told(self, job_id: JobId, words: Words | None) -> None:
        if job_id in self.held:
            self.held[job_id].running.told(words)

    def _depose(self, job_id: JobId, why: str) -> None:
        held = self.held.pop(job_id)
        self._log.info("job.lost", id=job_id, fence=held.seat.fence, why=why)
        self.deposed += 1
        if held.task is not None:
            held.task.cancel()

    def _depose_all(self, why: str) -> None:
        for job_id in list(self.held):
            self._depose(job_id, why)
        self._docket.mark_states()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
