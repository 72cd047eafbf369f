"""What a node knows of all jobs: their words, who holds each, and the states of those that nobody holds.

Events mark what changed, and what is marked is read: many at a time, so that a thousand jobs dropped at once cost some
replies. A job's state is read while it is free only, since nobody but its coordinator writes it else.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.jobs import JOB_BYTES_MAX, Words, read_words
from zkd.errors import BadRecord, NoNode, ZooKeeperError
from zkd.jobs import DONE, JobState
from zkd.paths import JobId, Paths
from zkd.training.seat import Seat
from zkd.zk import Session

READ_BYTES = 4 * 2**20  # of words in one reply, which has no limit at the server
READ_AT_ONCE = READ_BYTES // JOB_BYTES_MAX
STATES_AT_ONCE = 64
REFUSED_S = 15.0  # so long a job waits whose state may not be read or written
NAME_MAX = 140  # one that is somewhat too long is told at control/jobs, too


@dataclass(slots=True)
class Entry:
    words: Words | None = None
    is_held: bool = False  # its ephemeral znode is there
    state: JobState | None = None
    version: int = -1  # of the state's znode; -1: there is none
    is_read: bool = False  # the state, since it last changed
    free_since: float = -math.inf  # when we saw that nobody holds it
    not_before: float = -math.inf


class Docket:
    """`seat_of` gives this node's seat at a job; `told` hears of words that were read, `lost` of a lost seat."""

    def __init__(
        self,
        session: Session,
        paths: Paths,
        seat_of: Callable[[JobId], Seat | None],
        told: Callable[[JobId, Words | None], None],
        lost: Callable[[JobId, str], None],
        state_changed: Callable[[JobId], None],
        log: Log,
    ) -> None:
        self._session = session
        self._paths = paths
        self._seat_of = seat_of
        self._told = told
        self._lost = lost
        self._state_changed = state_changed
        self._log = log
        self._dirty_words: dict[JobId, None] = {}
        self._dirty_holders: dict[JobId, None] = {}
        self.jobs: dict[JobId, Entry] = {}

    # --- What has changed -------------------------------------------------------------------------------

    def mark_words(self, job_id: JobId) -> None:
        self._dirty_words[job_id] = None

    def mark_holder(self, job_id: JobId) -> None:
        self._dirty_holders[job_id] = None

    def mark_state(self, job_id: JobId) -> bool:
        """Whether somebody holds the job: then it is how far it is, many a second, and nothing for us to do."""
        entry = self.jobs.get(job_id)
        if entry is not None:
            entry.is_read = False
        self._state_changed(job_id)
        return entry is not None and entry.is_held

    def mark_states(self) -> None:
        for entry in self.jobs.values():
            entry.is_read = False

    @property
    def is_behind(self) -> bool:
        """Whether there is something to read."""
        return bool(self._dirty_words or self._dirty_holders)

    # --- Reading ---------------------------------------------------------------------------------------

    async def list_all(self, *, is_first: bool) -> None:
        """Mark what there is: all of it on a new connection, which replays nothing; else what watches have missed."""
        words = set(await self._session.children(self._paths.jobs))
        states = set(await self._session.children(self._paths.job_states))
        holders = set(await self._session.children(self._paths.coordinators))
        for job_id in self.jobs.keys() | states | words:
            entry = self.jobs.get(job_id)
            is_over = entry is not None and entry.is_read and entry.state is not None and entry.state.phase in DONE
            if len(job_id) <= NAME_MAX and (is_first or not is_over or job_id not in words):
                self._entry(job_id).is_read = False
                self._dirty_words[job_id] = None
                self._dirty_holders[job_id] = None
                self._state_changed(job_id)
        self._dirty_holders.update(dict.fromkeys(holders))

    def _entry(self, job_id: JobId) -> Entry:
        if job_id not in self.jobs:
            self.jobs[job_id] = Entry(free_since=self._now())
        return self.jobs[job_id]

    async def look_again(self, session_id: int) -> None:
        """Read what was marked; `session_id` is the session that we serve in."""
        words, self._dirty_words = list(self._dirty_words), {}
        try:
            for start in range(0, len(words), READ_AT_ONCE):
                some = [job_id for job_id in words[start : start + READ_AT_ONCE] if len(job_id) <= NAME_MAX]
                found = await self._session.get_many([self._paths.job(job_id) for job_id in some])
                for job_id, got in zip(some, found, strict=True):
                    if isinstance(got, NoNode):
                        self._words_read(job_id, None)
                    elif isinstance(got, ZooKeeperError):  # an ACL, say: it is there, and stays what it was for us
                        self._log.warning("job.not_read", id=job_id[:NAME_MAX], error=str(got))
                    else:
                        self._words_read(job_id, read_words(job_id, got.data, got.stat.czxid, got.stat.version))
            holders, self._dirty_holders = list(self._dirty_holders), {}
        except ZooKeeperError:
            self._dirty_words.update(dict.fromkeys(words))
            raise
        try:
            for job_id in holders:
                if len(job_id) <= NAME_MAX:
                    await self._read_holder(job_id, session_id)
        except ZooKeeperError:
            self._dirty_holders.update(dict.fromkeys(holders))
            raise

    def _words_read(self, job_id: JobId, words: Words | None) -> None:
        entry = self._entry(job_id)
        if words is not None and words.job is None and (entry.words is None or entry.words.version != words.version):
            self._log.warning("job.refused", id=job_id, error=words.fault)
        entry.words = words
        self._told(job_id, words)

    async def _read_holder(self, job_id: JobId, session_id: int) -> None:
        path = self._paths.coordinator(job_id)
        stat = await self._session.exists(path)
        entry = self._entry(job_id)
        is_ours = stat is not None and stat.ephemeral_owner == session_id
        seat = self._seat_of(job_id)
        if seat is not None and not is_ours and not seat.is_left:
            self._lost(job_id, "its znode is gone" if stat is None else "another node holds it")
        elif is_ours and seat is None:
            # Made by a request whose answer was lost, or left by a coordinator that could not.
            self._log.info("job.office_given_up", id=job_id)
            await self._delete(path, session_id)
            stat = None
        elif stat is not None and not stat.ephemeral_owner:
            # No node's: somebody put it there by hand, or from a backup, and nobody would ever hold the job.
            self._log.warning("job.office_of_nobody", id=job_id)
            await self._delete(path, session_id)
            stat = None
        if stat is None and entry.is_held:
            entry.free_since, entry.is_read = self._now(), False
        entry.is_held = stat is not None

    async def _delete(self, path: str, session_id: int) -> None:
        try:
            await self._session.delete(path, -1, within=session_id)
        except NoNode:
            return

    async def read_states(self, job_ids: list[JobId]) -> None:
        for start in range(0, len(job_ids), STATES_AT_ONCE):
            some = job_ids[start : start + STATES_AT_ONCE]
            for job_id in some:
                self._entry(job_id).is_read = True  # an event that comes meanwhile says otherwise
            found = await self._session.get_many([self._paths.job_state(job_id) for job_id in some])
            for job_id, got in zip(some, found, strict=True):
                entry = self._entry(job_id)
                if isinstance(got, ZooKeeperError):
                    if isinstance(got, NoNode):
                        entry.state, entry.version = None, -1
                    else:
                        self._log.warning("job.state_not_read", id=job_id, error=str(got))
                        entry.not_before = self._now() + REFUSED_S
                    continue
                entry.state = None
                entry.version = got.stat.version
                try:
                    entry.state = codec.decode(got.data, JobState)
                except BadRecord as error:
                    self._log.warning("job.state_unreadable", id=job_id, error=str(error))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def by_age(item: tuple[JobId, Entry]) -> tuple[int, JobId]:
    job_id, entry = item
    return (0 if entry.words is None else entry.words.czxid), job_id
