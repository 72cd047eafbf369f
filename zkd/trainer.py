"""Composes what a node does with training jobs: taking and coordinating them, and keeping their files.

office (which jobs are ours) --- coordinators (one a job) --- links --- nodes that hold parts
   upkeep (checkpoints, models)        \\-- brains
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger as Log

from zkd.core.clock import ServerClock
from zkd.core.jobs import Words
from zkd.jobs import Round
from zkd.node.view import View
from zkd.paths import JobId, NodeId, Paths
from zkd.settings import Training
from zkd.store.checkpoints import CheckpointStore
from zkd.training.answers import Answers
from zkd.training.coordinator import JobCoordinator, Means
from zkd.training.copies import Copies
from zkd.training.links import Here
from zkd.training.office import Office
from zkd.training.peers import Peers
from zkd.training.seat import Seat
from zkd.training.telling import Telling
from zkd.training.upkeep import Upkeep
from zkd.zk import Session

if TYPE_CHECKING:
    import ssl

TOLD_MAX = 20  # jobs that are coordinated here no more, and whose rounds can still be heard


class Trainer:
    def __init__(
        self,
        session: Session,
        paths: Paths,
        node: NodeId,
        view: View,
        store: CheckpointStore,
        answers: Answers,
        clock: ServerClock,
        token: Callable[[], str | None],
        settings: Callable[[], Training],
        is_active: Callable[[], bool],
        joined: asyncio.Event,
        log: Log,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._node = node
        self._view = view
        self._store = store
        self._answers = answers
        self._clock = clock
        self._token = token
        self._settings = settings
        self._joined = joined
        self._log = log
        self._tls = tls
        self._counts: Counter[str] = Counter()
        self._told: dict[JobId, Telling] = {}
        self._means: Means | None = None
        self._upkeep: Upkeep | None = None
        self._session, self._paths = session, paths
        self.peers = Peers(session, paths, log)
        self.office = Office(session, paths, node, clock, settings, is_active, self._begin, self._state_changed, log)

    async def run(self) -> None:
        """Ends only by cancellation."""
        from zkd.net.fetch import session as http_session

        await self._joined.wait()  # bounded by the daemon's own start; until then there may be no directories
        async with http_session(self._tls, connections=0) as http, asyncio.TaskGroup() as group:
            copies = Copies(self._node, self._store, self.peers, http, self._token, self._log)
            self._means = Means(
                Here(self._node, self._answers),
                self._view.atlas,
                self._view.look,
                self._view.subscribe,
                self.peers,
                copies,
                http,
                self._token,
                self._settings,
                self._clock,
                self._log,
            )
            self._upkeep = Upkeep(
                self._session,
                self._paths,
                self._node,
                self.peers,
                copies,
                self.office.is_held,
                lambda: self._settings().replicas,
                self._log,
            )
            for part in (self.peers, self._upkeep, self.office):
                group.create_task(part.run())

    async def drain(self) -> None:
        """Hand over the jobs of this node, in bounded time."""
        await self.office.drain()

    def follow(self, job_id: JobId, after: int) -> AsyncGenerator[list[Round]] | None:
        """The rounds of a job that is coordinated here, or was until shortly."""
        told = self._told.get(job_id)
        return None if told is None else told.follow(after)

    def told(self) -> dict[JobId, list[Round]]:
        """The rounds of the jobs that are coordinated here, or were until shortly."""
        return {job_id: telling.rounds for job_id, telling in self._told.items()}

    def _begin(self, seat: Seat, words: Words) -> JobCoordinator:
        assert self._means is not None
        began = JobCoordinator(self._means, seat, words, self._counts)
        self._told.pop(seat.job_id, None)
        self._told[seat.job_id] = began.telling
        for over in [job_id for job_id in self._told if job_id not in self.office.held][:-TOLD_MAX]:
            del self._told[over]
        return began

    def _state_changed(self, job_id: JobId) -> None:
        if self._upkeep is not None:
            self._upkeep.changed(job_id)

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        yield "zkd_jobs", {}, len(self.office.jobs())
        yield "zkd_jobs_coordinated", {}, len(self.office.held)
        yield "zkd_jobs_taken_total", {}, self.office.taken
        yield "zkd_jobs_deposed_total", {}, self.office.deposed
        for what in ("rounds", "checkpoints", "checkpoint_bytes", "brains_lost"):
            yield f"zkd_training_{what}_total", {}, self._counts[what]
        for outcome in ("asked", "answered", "failed"):
            yield "zkd_training_asks_total", {"outcome": outcome}, self._counts[outcome]
        if self._upkeep is not None:
            yield "zkd_training_files_pulled_total", {}, self._upkeep.pulled
            yield "zkd_training_files_removed_total", {}, self._upkeep.removed
