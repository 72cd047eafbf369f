"""The drop box as a submitter uses it: put a task in, take it out again, hear what became of it.

Every write is one whose outcome can be found out by reading: ids are this client's own, so a task that stands
there is ours, and a create that was lost with its connection is either read back or sent again. Nothing that
was accepted is ever dropped twice, nothing that was not accepted is given up before OUTAGE_MAX_S.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from zkd.client.outstanding import NO_ANSWER, Outstanding, Pending, Sign
from zkd.client.room import Room
from zkd.codec import decode_result
from zkd.errors import (
    BadRecord,
    MultiFailed,
    NodeExists,
    NoNode,
    OutcomeUnknown,
    ResultLost,
    SessionClosed,
    TaskCancelled,
    ZooKeeperError,
)
from zkd.zk import Batch, Create, Delete, ReadBatch, ensure_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from zkd.paths import Paths, TaskId
    from zkd.records import Result
    from zkd.zk import Session, Znode
    from zkd.zk.batch import Done

T = TypeVar("T")

OUTAGE_MAX_S = 60.0  # so long a call goes on trying to reach ZooKeeper before it raises
# A result that was read is deleted this much later. A node whose commit was not answered sends it again, within
# its session timeout, and takes the result that it finds for the answer; without it, it would take the task for
# cancelled and publish that (docs/decisions/0006). So does a leader for what a node held that it lost, and both
# take longer where sessions do.
FORGET_AFTER_S = 10.0
FORGET_AFTER_TIMEOUT_S = 4.0
FORGET_TOGETHER_S = 1.0  # so many packets fewer
FORGET_AT_ONCE = 50
CLOSE_TIMEOUT_S = 2.0
# A result may wait so long to be read together with others, while there are many: a packet costs the server and us
# more than what is in it.
LINGER_S = 0.002
ANY_VERSION = -1


class DropBox:
    """``tasks/`` and ``results/`` of one root, through one session. Its tasks belong to the given group."""

    def __init__(self, session: Session, paths: Paths, tasks: asyncio.TaskGroup) -> None:
        self.session = session
        self.paths = paths
        self.writes = Batch(session)
        self.reads = ReadBatch(session, linger_s=LINGER_S)
        self.outstanding = Outstanding(session, paths, self.reads, tasks)
        self.room = Room(session, paths, tasks)
        self._tasks = tasks
        self._prefix = f"t-{os.urandom(8).hex()}"
        self._count = 0
        self._synced_epoch = -1
        self._sync: asyncio.Task[None] | None = None
        self._read: deque[tuple[float, TaskId]] = deque()  # results to forget, and when that is due
        self._forget_timer: asyncio.TimerHandle | None = None
        self._loose: set[asyncio.Future[Done]] = set()  # writes whose outcome nobody awaits

    def new_id(self) -> TaskId:
        self._count += 1
        return f"{self._prefix}-{self._count}"

    # --- in -----------------------------------------------------------------------------------------

    async def drop(self, task: TaskId, text: bytes, *, ephemeral: bool = False) -> Pending:
        """Create the task. It is accepted when this returns, across lost connections and sessions."""
        if not self.room.take():
            await self.room.wait()
        return await self._drop(task, text, ephemeral=ephemeral)

    async def _drop(self, task: TaskId, text: bytes, *, ephemeral: bool) -> Pending:
        pending = await self.outstanding.expect(task)
        create = Create(self.paths.task(task), text, ephemeral=ephemeral)
        created = self.writes.send([create])
        try:
            await self.outstanding.look_out(pending)
        except BaseException:
            self._let_go(created)
            raise
        await self._see_created(task, create, created)
        pending.is_dropped = True
        return pending

    async def run(self, task: TaskId, text: bytes, *, ephemeral: bool = False) -> Result:
        """Drop the task and wait for its end, however long that takes.

        With many in flight nobody waits for the answer to the drop: the result says that it was accepted.
        """
        if not self.room.take():
            await self.room.wait()
        pending = self.outstanding.expect_new(task)
        if pending is None:
            return await self.result_of(await self._drop(task, text, ephemeral=ephemeral))
        create = Create(self.paths.task(task), text, ephemeral=ephemeral)
        created = self.writes.send([create])
        created.add_done_callback(pending.was_sent)
        if await pending.arrival is Sign.UNSURE:
            await self._see_created(task, create, created)
            pending = await self.outstanding.expect(task, is_dropped=True)
            await self.outstanding.look_out(pending)
        return await self.result_of(pending)

    async def _see_created(self, task: TaskId, create: Create, created: asyncio.Future[Done]) -> None:
        give_up = time.monotonic() + OUTAGE_MAX_S
        while True:
            try:
                await created
                return
            except MultiFailed as error:
                if isinstance(error.cause, NodeExists):
                    return  # it is ours: nobody else makes our ids
                if not isinstance(error.cause, NoNode):
                    raise error.cause from None
                for path in self.paths.skeleton():  # the very first task of this root
                    await ensure_path(self.session, path)
            except NO_ANSWER as error:
                await self.catch_up(give_up, error)
                if isinstance(error, OutcomeUnknown) and await self._is_there(task, give_up):
                    return
            created = self.writes.send([create])

    async def catch_up(self, give_up: float, error: ZooKeeperError) -> None:
        """Be connected again, to a server that knows all that was committed before. Raises `error` at `give_up`.

        The server of a new connection may lag behind the one that took our write, hence the sync; it also
        queues behind whatever of ours the old connection still delivers. One sync serves all who wait.
        """
        while True:
            try:
                await self.session.connected(max(0.0, give_up - time.monotonic()))
            except NO_ANSWER:
                raise error from None
            if self._sync is None or self._synced_epoch != self.session.epoch:
                self._synced_epoch = self.session.epoch
                self._sync = self._tasks.create_task(self._sync_once())
            await asyncio.wait({self._sync})
            if self._synced_epoch == self.session.epoch:
                return
            if time.monotonic() >= give_up:
                raise error

    async def _sync_once(self) -> None:
        try:
            await self.session.sync(self.paths.tasks)
        except ZooKeeperError:
            self._synced_epoch = -1

    async def _is_there(self, task: TaskId, give_up: float) -> bool:
        """Whether the task was accepted: it stands in the box, or has its result already."""
        for path in (self.paths.task(task), self.paths.result(task)):
            try:
                await self.read(path, give_up)
                return True
            except NoNode:
                continue
        return False

    # --- out ----------------------------------------------------------------------------------------

    async def read(self, path: str, give_up: float | None = None) -> Znode:
        """What stands at `path`, waiting for a connection if need be."""
        return await self.again(lambda: self.reads.get(path), give_up)

    async def again(self, ask: Callable[[], Awaitable[T]], give_up: float | None = None) -> T:
        """The answer to what can be asked or said twice, over lost connections."""
        if give_up is None:
            give_up = time.monotonic() + OUTAGE_MAX_S
        while True:
            try:
                return await ask()
            except NO_ANSWER as error:
                await self.catch_up(give_up, error)

    async def children(self, path: str) -> list[str]:
        """The names below, of which there are none where nothing stands."""
        try:
            return await self.again(lambda: self.session.children(path))
        except NoNode:
            return []

    async def get_many(self, paths: Sequence[str], at_once: int | None = None) -> list[Znode | ZooKeeperError]:
        """What stands at each of these. A reply has no limit at the server: large ones are asked for `at_once`."""
        found: list[Znode | ZooKeeperError] = []
        for start in range(0, len(paths), at_once or max(1, len(paths))):
            some = paths[start : start + at_once] if at_once else paths
            found += await self.again(lambda some=some: self.session.get_many(some))  # type: ignore[misc]
        return found

    async def result_of(self, pending: Pending) -> Result:
        """Wait for the task's end, however long that takes, and read its result."""
        sign = await pending.arrival
        if sign is Sign.CLOSED:
            raise self.session.fault or SessionClosed(None, f"task {pending.id} goes on without this program")
        if sign is Sign.GONE:
            raise TaskCancelled(f"task {pending.id} was deleted", task_id=pending.id, kind="cancelled")
        try:
            znode = await self.read(self.paths.result(pending.id)) if sign is Sign.THERE else sign
        except NoNode:
            raise ResultLost(f"the result of {pending.id} came and was deleted before it could be read") from None
        assert not isinstance(znode, Sign)
        try:
            return decode_result(znode.data)
        except BadRecord as error:
            raise ResultLost(f"{self.paths.result(pending.id)} is not a result: {error}") from error

    async def withdraw(self, task: TaskId) -> bool:
        """Delete the task. True: it is cancelled. False: it had ended, and has another result."""
        give_up = time.monotonic() + OUTAGE_MAX_S
        is_sent_before = False
        while True:
            try:
                await self.writes.commit([Delete(self.paths.task(task), ANY_VERSION)])
                return True
            except MultiFailed as error:
                if not isinstance(error.cause, NoNode):
                    raise error.cause from None
                return is_sent_before and await self._is_cancelled(task, give_up)
            except NO_ANSWER as error:
                is_sent_before = is_sent_before or isinstance(error, OutcomeUnknown)
                await self.catch_up(give_up, error)

    async def _is_cancelled(self, task: TaskId, give_up: float) -> bool:
        """A delete of ours may have been the one that took the task away: then nobody published a value."""
        try:
            return decode_result((await self.read(self.paths.result(task), give_up)).data).status == "cancelled"
        except NoNode:
            return True

    def abandon(self, task: TaskId) -> None:
        """Withdraw the task of a caller who was cancelled and waits no more; best effort, nobody awaits it."""
        deleted = self.writes.send([Delete(self.paths.task(task), ANY_VERSION)])
        self._let_go(deleted)
        deleted.add_done_callback(lambda done: self._forget_ended(task, done))

    def take_back(self, path: str) -> None:
        """Delete what a caller who was cancelled may have created, and nobody else; best effort, as `abandon`."""
        self._let_go(self.writes.send([Delete(path, ANY_VERSION)]))

    def _forget_ended(self, task: TaskId, deleted: asyncio.Future[Done]) -> None:
        error = None if deleted.cancelled() else deleted.exception()
        if isinstance(error, MultiFailed) and isinstance(error.cause, NoNode):
            self.forget([task])

    # --- tidiness -----------------------------------------------------------------------------------

    def forget(self, tasks: Iterable[TaskId]) -> None:
        """Delete these results later and together. If that does not happen, their time to live ends them."""
        loop = asyncio.get_running_loop()
        due = loop.time() + max(FORGET_AFTER_S, self.session.timeout_s + FORGET_AFTER_TIMEOUT_S)
        self._read.extend((due, task) for task in tasks)
        if self._forget_timer is None:
            self._forget_timer = loop.call_at(due + FORGET_TOGETHER_S, self._forget_due)

    def _forget_due(self) -> None:
        loop = asyncio.get_running_loop()
        self._forget_timer = None
        some: list[TaskId] = []
        while self._read and self._read[0][0] <= loop.time():
            some.append(self._read.popleft()[1])
            if len(some) == FORGET_AT_ONCE or not self._read or self._read[0][0] > loop.time():
                self._delete_results(some)
                some = []
        if self._read:
            self._forget_timer = loop.call_at(self._read[0][0] + FORGET_TOGETHER_S, self._forget_due)

    def _delete_results(self, some: list[TaskId]) -> None:
        """Together, or each alone if one of them has gone already."""
        deleted = self.writes.send([Delete(self.paths.result(task), ANY_VERSION) for task in some])
        self._let_go(deleted)
        if len(some) > 1:
            deleted.add_done_callback(lambda done: self._delete_each(some, done))

    def _delete_each(self, some: list[TaskId], together: asyncio.Future[Done]) -> None:
        if not together.cancelled() and isinstance(together.exception(), MultiFailed):
            for task in some:
                self._delete_results([task])

    def _let_go(self, write: asyncio.Future[Done]) -> None:
        self._loose.add(write)
        write.add_done_callback(self._settled)

    def _settled(self, write: asyncio.Future[Done]) -> None:
        self._loose.discard(write)
        if not write.cancelled():
            write.exception()  # known now, and of no consequence

    async def close(self) -> None:
        """Forget what is due, as far as that takes no long time; what is too young is left to its time to live."""
        self.room.close()
        if self._forget_timer is not None:
            self._forget_timer.cancel()
            self._forget_due()
        if self._forget_timer is not None:
            self._forget_timer.cancel()
        if self._loose:
            await asyncio.wait(set(self._loose), timeout=CLOSE_TIMEOUT_S)
