"""How the end of a task gets into the tree: exactly once, whatever happens on the way.

One transaction deletes the task at the version its holder was given and creates the result; a leader's also
checks its epoch. Every operation names a version or an absence, so after a lost answer the same transaction
is sent again, and what it says then tells how it went. Holder and leader share these rules; which of them
acts, and why, is theirs to know.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from enum import Enum
from functools import lru_cache

import msgspec
from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.errors import (
    BadVersion,
    MultiFailed,
    NoAuth,
    NodeExists,
    NoNode,
    NotEmpty,
    OutcomeUnknown,
    SessionExpired,
    Throttled,
    TooLarge,
    Unavailable,
    ZooKeeperError,
)
from zkd.paths import Paths, TaskId, parent
from zkd.records import Attempt, Dead, Fault, Result, Task
from zkd.zk import Check, Create, Delete, Session, SetData, State, ensure_path
from zkd.zk.batch import Batch, Done

TRIES = 8  # each for another reason; more than that is a fault to report, not to fight
# How long to wait before the next try where ZooKeeper forbids it: a quota is used up, an ACL is wrong. What has
# ended waits meanwhile, its line stays in assign/, and so a node is given no more than it can get rid of.
REFUSED_FIRST_S = 0.2
REFUSED_MAX_S = 15.0

Op = Check | Create | Delete | SetData


class Ending(Enum):
    """How an attempt to change a task's outcome went."""

    WRITTEN = "written"
    ANSWERED = "answered"  # a result of this id was there already; it answers, and the task is gone
    GONE = "gone"  # the task is no longer there
    MOVED_ON = "moved on"  # the task has another version: somebody else has it
    DEPOSED = "deposed"  # another leader's epoch has begun
    SESSION_OVER = "session over"
    STUCK = "stuck"  # it cannot be ended; people have to look


class Endings:
    """Writes endings within one session at a time; `within` names it."""

    def __init__(self, session: Session, paths: Paths, writes: Batch, log: Log) -> None:
        self._session = session
        self._paths = paths
        self._writes = writes
        self._log = log

    def send(self, task_id: TaskId, version: int, result: Result, *, within: int) -> asyncio.Future[Done]:
        """A first try of `end`, without a coroutine: it is written if this comes true. Else call `end`."""
        paths = self._paths
        ops = (Delete(paths.task(task_id), version), Create(paths.result(task_id), codec.encode(result)))
        return self._writes.send(ops, within)

    async def end(
        self,
        task_id: TaskId,
        version: int,
        result: Result,
        dead: Dead | None,
        *,
        within: int,
        guard: Check | None = None,
    ) -> Ending:
        """Delete the task at `version` and publish `result`, with `dead` beside it."""
        paths = self._paths
        head: list[Op] = [] if guard is None else [guard]
        deletion = Delete(paths.task(task_id), version)
        creations: list[Op] = [Create(paths.result(task_id), codec.encode(result))]
        if dead is not None:
            creations.append(Create(paths.dead_task(task_id), codec.encode(dead)))
        is_reduced = False
        refused_s = REFUSED_FIRST_S
        tries = 0
        while tries < TRIES:
            tries += 1
            try:
                refusal = await self._commit([*head, deletion, *creations], within)
            except TooLarge as error:
                # A second time it is the id: not even the two paths fit, so nothing of that name can be answered.
                reduced = Create(paths.result(task_id), codec.encode(_too_large(result, error)))
                creations = [] if is_reduced else [reduced]
                is_reduced = True
                continue
            except SessionExpired:
                return Ending.SESSION_OVER
            if refusal is None:
                return Ending.WRITTEN if creations else Ending.ANSWERED
            index = refusal.index - len(head)
            if index < 0:
                return Ending.DEPOSED
            if index == 0 and isinstance(refusal.cause, NoNode):
                return Ending.GONE
            if index == 0 and isinstance(refusal.cause, NotEmpty):
                if not await self._clear(deletion.path):
                    return await self._end_in_place(task_id, version, creations[:1], within, guard)
            elif index == 1 and isinstance(refusal.cause, NodeExists):
                creations = []
            elif index == 2 and isinstance(refusal.cause, NodeExists):
                assert dead is not None
                creations[1] = SetData(paths.dead_task(task_id), codec.encode(dead), -1)
            elif index == 0 and isinstance(refusal.cause, BadVersion):
                return Ending.MOVED_ON
            else:
                tries = 0
                refused_s = await self._wait_until_allowed(task_id, refusal, refused_s)
        self._log.error("task.not_ended", id=task_id[:140], status=result.status)
        return Ending.STUCK

    async def _end_in_place(
        self, task_id: TaskId, version: int, creations: list[Op], within: int, guard: Check | None
    ) -> Ending:
        """Answer a task whose znode we cannot remove: somebody put children there that we may not touch.

        A holder empties it too, so that the leader sees it move on, and that nobody runs it again.
        """
        path = self._paths.task(task_id)
        self._log.error("task.not_removable", path=path[:200], next="an administrator has to remove it")
        empty: list[Op] = [SetData(path, b"", version)] if guard is None else [guard]
        try:
            for ops in ([*empty, *creations], empty, creations):
                refusal = await self._commit(ops, within)
                if refusal is None:
                    return Ending.WRITTEN if ops is not empty else Ending.ANSWERED
                if guard is not None and refusal.index == 0:
                    return Ending.DEPOSED
                if not isinstance(refusal.cause, (NodeExists, NoAuth)):
                    return Ending.MOVED_ON
        except SessionExpired:
            return Ending.SESSION_OVER
        return Ending.STUCK

    async def end_deleted(self, task_id: TaskId, result: Result, *, within: int, guard: Check | None = None) -> Ending:
        """Publish `result` for a task whose znode somebody deleted, unless it has a result."""
        ops: list[Op] = [*([] if guard is None else [guard]), Create(self._paths.result(task_id), codec.encode(result))]
        refused_s = REFUSED_FIRST_S
        while True:
            try:
                refusal = await self._commit(ops, within)
            except TooLarge:  # its id alone fills a packet
                self._log.error("task.not_answered", id=task_id[:140], status=result.status)
                return Ending.STUCK
            except SessionExpired:
                return Ending.SESSION_OVER
            if refusal is None:
                return Ending.WRITTEN
            if guard is not None and refusal.index == 0:
                return Ending.DEPOSED
            if isinstance(refusal.cause, NodeExists):
                return Ending.ANSWERED
            refused_s = await self._wait_until_allowed(task_id, refusal, refused_s)

    async def record_attempts(
        self,
        task_id: TaskId,
        version: int,
        task: Task,
        attempts: list[Attempt],
        *,
        within: int,
        guard: Check | None = None,
    ) -> Ending:
        """Write `attempts` into the task at `version`. The version moves on, which ends the present hold on it.

        STUCK: we may not write it, so that it can only be ended.
        """
        moved = codec.encode(msgspec.structs.replace(task, attempts=attempts))
        ops: list[Op] = [*([] if guard is None else [guard]), SetData(self._paths.task(task_id), moved, version)]
        try:
            refusal = await self._commit(ops, within)
        except SessionExpired:
            return Ending.SESSION_OVER
        if refusal is None:
            return Ending.WRITTEN
        if guard is not None and refusal.index == 0:
            return Ending.DEPOSED
        if isinstance(refusal.cause, NoNode):
            return Ending.GONE
        return Ending.MOVED_ON if isinstance(refusal.cause, BadVersion) else Ending.STUCK

    async def reconnected(self, session_id: int) -> bool:
        """Wait for the connection to come back; False if the session did not survive."""
        session = self._session
        while session.session_id == session_id and session.state not in (State.EXPIRED, State.CLOSED):
            try:
                await session.connected(session.timeout_s)
                return session.session_id == session_id
            except Unavailable:
                continue  # the server's word on the session ends this
        return False

    async def _commit(self, ops: list[Op], within: int) -> MultiFailed | None:
        """None when committed, else the refusal."""
        while True:
            try:
                await self._writes.commit(ops, within=within)
                return None
            except MultiFailed as refusal:
                return refusal
            except (Unavailable, OutcomeUnknown):
                if not await self.reconnected(within):
                    raise SessionExpired from None
            except Throttled:
                await asyncio.sleep(REFUSED_FIRST_S)

    async def _wait_until_allowed(self, task_id: TaskId, refusal: MultiFailed, refused_s: float) -> float:
        """Wait a little, and longer the next time; a directory that somebody deleted is made again at once."""
        if isinstance(refusal.cause, NoNode):
            with suppress(ZooKeeperError):
                await ensure_path(self._session, parent(refusal.path or self._paths.results))
                return refused_s
        self._log.error("task.end_refused", id=task_id[:140], error=str(refusal.cause), again_s=refused_s)
        await asyncio.sleep(refused_s)
        return min(REFUSED_MAX_S, 2 * refused_s)

    async def _clear(self, path: str) -> bool:
        """Remove what somebody put below a task: a znode with children cannot be deleted. False if it stays."""
        try:
            for child in await self._session.children(path):
                try:
                    await self._session.delete(f"{path}/{child}", -1)
                except NotEmpty:
                    if not await self._clear(f"{path}/{child}"):
                        return False
                    await self._session.delete(f"{path}/{child}", -1)
                self._log.warning("task.child_removed", path=f"{path}/{child}"[:200])
        except (NoAuth, NotEmpty) as error:
            self._log.warning("task.child_not_removed", path=path[:200], error=str(error))
            return False
        except ZooKeeperError as error:
            self._log.info("task.child_not_removed", path=path[:200], error=str(error))
        return True


def timestamp() -> str:
    """Now, in UTC, for people; nothing is decided by it."""
    now = time.time()
    return f"{_to_seconds(int(now))}.{int(now * 1000) % 1000:03d}+00:00"


@lru_cache(maxsize=2)
def _to_seconds(now: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))


def cancelled(owner: str, czxid: int, attempt: int, task: Task | None = None, node: str | None = None) -> Result:
    """The result of a task that was deleted before it ended."""
    return Result(
        status="cancelled",
        node=node,
        attempt=attempt,
        error=Fault("cancelled", "the task was deleted before it ended"),
        kernel=None if task is None else task.kernel,
        owner=owner,
        czxid=czxid,
        finished_at=timestamp(),
        ttl_s=None if task is None else task.ttl_s,
        traceparent=None if task is None else task.traceparent,
    )


def _too_large(result: Result, error: TooLarge) -> Result:
    fault = Fault("too_large", f"the outcome does not fit into a transaction: {error}")
    return msgspec.structs.replace(result, status="failed", value=msgspec.UNSET, ref=None, error=fault, attempts=[])
