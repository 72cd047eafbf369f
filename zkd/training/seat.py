"""The office of one job, while this node holds it: the only way in which a coordinator writes the job's state.

Every write is a compare-and-set within the session that made the ephemeral znode. So a coordinator whose session is
over, or whose job another one has taken, writes nothing any more, however long it slept: it is `Deposed`. What others
may add meanwhile, themselves to the nodes that have a file, is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.clock import ServerClock
from zkd.core.jobs import merged
from zkd.errors import (
    AuthFailed,
    BadRecord,
    BadVersion,
    MultiFailed,
    NoNode,
    OutcomeUnknown,
    SessionClosed,
    SessionExpired,
    Unavailable,
    ZooKeeperError,
)
from zkd.jobs import JobState
from zkd.leading import Deposed
from zkd.paths import JobId, Paths
from zkd.zk import Delete, Session, SetData, Stat

AGAIN_S = 0.05
MEND_S = 1.0  # before the next try when something is wrong that another try may not change

Change = Callable[[JobState], JobState]


class Seat:
    def __init__(
        self,
        session: Session,
        paths: Paths,
        clock: ServerClock,
        log: Log,
        job_id: JobId,
        state: JobState,
        version: int,
        session_id: int,
    ) -> None:
        self.job_id = job_id
        self.state = state  # as we wrote it last
        self._version = version
        self._session = session
        self._session_id = session_id
        self._paths = paths
        self._clock = clock
        self._log = log
        self._turn = asyncio.Lock()  # writes of one coordinator, one after the other
        self.is_left = False  # by ourselves, in order

    @property
    def fence(self) -> int:
        return self.state.fence

    async def write(self, change: Change) -> None:
        """Write what `change` makes of the state. Takes as long as there is no connection; raises `Deposed`."""
        await self._write(change, [])

    async def leave(self, change: Change) -> None:
        """Write the last state of this office, and give it up, in one transaction. Raises `Deposed`."""
        await self._write(change, [Delete(self._paths.coordinator(self.job_id), -1)])

    async def remove(self) -> None:
        """Give the office up, and remove the state: the job is gone. Raises `Deposed`."""
        await self._write(None, [Delete(self._paths.coordinator(self.job_id), -1)])

    async def _write(self, change: Change | None, more: Sequence[Delete]) -> None:
        path = self._paths.job_state(self.job_id)
        async with self._turn:
            while True:
                if self.is_left:  # what was on its way when somebody else ended it all
                    raise Deposed
                wanted = None if change is None else change(self.state)
                if wanted == self.state and not more:
                    return
                first = (
                    Delete(path, self._version)
                    if wanted is None
                    else SetData(path, codec.encode(wanted), self._version)
                )
                try:
                    # Unbounded in sum: as long as the session may live nobody else takes the job.
                    await self._session.connected(self._session.timeout_s)
                    done = await self._session.multi([first, *more], within=self._session_id)
                except MultiFailed as refusal:
                    if refusal.index > 0 or not isinstance(refusal.cause, BadVersion):
                        await self._refused(refusal)
                    else:
                        await self._reread()
                except OutcomeUnknown:
                    if await self._has_happened(wanted, is_last=bool(more)):
                        self.is_left = bool(more)
                        return
                except Unavailable:
                    await asyncio.sleep(AGAIN_S)
                except SessionExpired:
                    raise Deposed from None
                else:
                    if wanted is not None:
                        assert isinstance(done[0], Stat)
                        self._clock.observe(done[0].mtime, asyncio.get_running_loop().time(), done[0].mzxid)
                        self.state, self._version = wanted, done[0].version
                    self.is_left = bool(more)
                    return

    async def _refused(self, refusal: MultiFailed) -> None:
        if isinstance(refusal.cause, NoNode):  # somebody has removed the state, or our ephemeral znode
            raise Deposed from None
        self._log.error("job.state_not_written", id=self.job_id, error=str(refusal.cause))
        await asyncio.sleep(MEND_S)

    async def _reread(self) -> None:
        """Take over what others added. `Deposed` if another coordinator wrote it."""
        found, version = await self._read()
        if found is None or (found.fence, found.czxid) != (self.state.fence, self.state.czxid):
            raise Deposed
        self.state, self._version = merged(self.state, found), version

    async def _has_happened(self, wanted: JobState | None, *, is_last: bool) -> bool:
        """Whether a write whose answer was lost was done; if not, it can be tried again."""
        found, version = await self._read()
        if found is None:
            if wanted is None:
                return True
            raise Deposed
        if wanted is not None and found == wanted:
            self.state, self._version = wanted, version
            return True
        if found.fence != self.state.fence:
            # Of a last write: another has taken the job since, or this session was over before.
            if is_last:
                return True
            raise Deposed
        self.state, self._version = merged(self.state, found), version
        return False

    async def _read(self) -> tuple[JobState | None, int]:
        while True:
            with suppress(Unavailable):
                await self._session.connected(self._session.timeout_s)
                try:
                    got = await self._session.get(self._paths.job_state(self.job_id), within=self._session_id)
                    return codec.decode(got.data, JobState), got.stat.version
                except NoNode:
                    return None, -1
                except BadRecord:  # somebody has written over it
                    return None, -1
                except SessionExpired:
                    raise Deposed from None
                except (SessionClosed, AuthFailed, Unavailable):
                    raise
                except ZooKeeperError as error:
                    self._log.error("job.state_not_read", id=self.job_id, error=str(error))
                    await asyncio.sleep(MEND_S)
            await asyncio.sleep(AGAIN_S)


def now_ms(clock: ServerClock) -> int | None:
    """By the servers' clock; None as long as nothing was written."""
    time = clock.time(asyncio.get_running_loop().time())
    return None if time is None else round(time * 1000)
