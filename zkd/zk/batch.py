"""Group commit: many small writes or reads share a transaction while another one is on its way.

A server's cost is by the packet, so a burst of creates in packets of a hundred is worth ten times the same
burst one by one; yet nothing may wait for company that never comes. The rule: send at once while fewer than
`in_flight` transactions are out, collect while they are. Idle costs no latency, busy fills the packets.

Nothing is retried here but one case: a group whose transaction was rolled back, or not sent, because of
*another* group was not applied, has done nothing wrong, and is sent again without that other group.
What a lost connection means is for the caller to find out, who knows what reading back would prove.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from zkd.errors import MultiFailed, OutcomeUnknown, ServerError, TooLarge, ZooKeeperError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from zkd.zk.session import Session
    from zkd.zk.values import Created, Op, Stat, Znode

Done: TypeAlias = "list[Created | Stat | None]"

# A transaction of this many callers says that many more are coming; then waiting a little fills the next one.
BUSY_GROUPS = 3
OP_OVERHEAD_BYTES = 64  # header, flags, ACL and lengths of one operation in a multi, rounded up

_T = TypeVar("_T")


class _Flights(Generic[_T]):
    """The transactions that are out: at most `limit`, each ends within the session's request timeout.

    They are tasks of their own, not their callers', because a caller that is cancelled must not take the
    others in its packet with it. Every outcome, also a bug's, is handed to the callers in the packet.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._tasks: set[asyncio.Task[_T]] = set()

    @property
    def has_room(self) -> bool:
        return len(self._tasks) < self.limit

    def start(self, sending: Coroutine[object, object, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(sending)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Group:
    """One caller's operations: applied together or not at all."""

    __slots__ = ("future", "ops", "size", "within")

    def __init__(self, ops: Sequence[Op], within: int | None, future: asyncio.Future[Done]) -> None:
        self.ops = ops
        self.within = within
        self.future = future
        self.size = sum(len(op.path) + len(getattr(op, "data", b"")) + OP_OVERHEAD_BYTES for op in ops)


class Batch:
    """Writes that share transactions. `commit` is one future; no task and no timer a call.

    `linger_s`: how long a commit may wait for company while there is much of it. One that comes alone never waits.
    """

    def __init__(
        self,
        session: Session,
        *,
        limit_ops: int = 100,
        limit_bytes: int = 400_000,
        in_flight: int = 2,
        linger_s: float = 0.0,
    ) -> None:
        self._session = session
        self._limit_ops = limit_ops
        self._limit_bytes = limit_bytes
        # Groups a transaction may hold now. It shrinks when groups fail, so that a queue full of failing
        # ones costs a few transactions each and not a full packet each, and grows back with every success.
        self._groups_max = limit_ops
        self._queue: deque[_Group] = deque()
        self._flights: _Flights[Done] = _Flights(in_flight)
        self._linger_s = linger_s
        self._last_groups = 0  # in the last transaction
        self._is_due = False

    async def commit(self, ops: Sequence[Op], within: int | None = None) -> Done:
        """Apply these operations together, or none of them; what each gave, in their order.

        Raises `MultiFailed` with the index among `ops`, or what `Session.multi` raises. A caller that is
        cancelled before its operations were sent withdraws them; afterwards it does not know their outcome.
        """
        return await self.send(ops, within)

    def send(self, ops: Sequence[Op], within: int | None = None) -> asyncio.Future[Done]:
        """`commit` for those who have something else to send in the same turn, and await this later."""
        loop = asyncio.get_running_loop()
        group = _Group(ops, within, loop.create_future())
        self._queue.append(group)
        self._flush_soon()
        return group.future

    def _flush_soon(self) -> None:
        if self._is_due or not self._queue or not self._flights.has_room:
            return
        self._is_due = True
        loop = asyncio.get_running_loop()
        if self._linger_s and self._last_groups >= BUSY_GROUPS and len(self._queue) < self._groups_max:
            loop.call_later(self._linger_s, self._flush)
        else:
            # Once this turn is over, so that all commits of one turn go out together.
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_due = False
        while self._queue and self._flights.has_room:
            groups = self._take()
            if groups:
                self._last_groups = len(groups)
                ops = [op for group in groups for op in group.ops]
                task = self._flights.start(self._session.multi(ops, within=groups[0].within))
                task.add_done_callback(lambda task, groups=groups: self._settle(groups, task))  # type: ignore[misc]

    def _take(self) -> list[_Group]:
        """The next groups that fit into one transaction and were meant for one session."""
        groups: list[_Group] = []
        count = size = 0
        while self._queue and len(groups) < self._groups_max:
            group = self._queue[0]
            if group.future.done():  # its caller was cancelled
                self._queue.popleft()
                continue
            count += len(group.ops)
            size += group.size
            if groups and (count > self._limit_ops or size > self._limit_bytes or group.within != groups[0].within):
                break
            groups.append(self._queue.popleft())
        return groups

    def _settle(self, groups: list[_Group], task: asyncio.Task[Done]) -> None:
        error = _error_of(task)
        if error is None:
            self._groups_max = min(self._limit_ops, self._groups_max * 2)
            done = task.result()
            start = 0
            for group in groups:
                if not group.future.done():
                    group.future.set_result(done[start : start + len(group.ops)])
                start += len(group.ops)
        elif isinstance(error, MultiFailed):
            self._groups_max = max(1, len(groups) // 4)
            self._isolate(groups, error)
        elif isinstance(error, TooLarge) and len(groups) > 1:
            # Together only, or one of them is: each is sent again by itself, and answers for itself.
            self._groups_max = 1
            self._queue.extendleft(reversed(groups))
        else:
            for group in groups:
                if not group.future.done():
                    group.future.set_exception(_copy(error))
        self._flush_soon()

    def _isolate(self, groups: list[_Group], error: MultiFailed) -> None:
        start = 0
        innocent = []
        for group in groups:
            if start <= error.index < start + len(group.ops):
                if not group.future.done():
                    group.future.set_exception(MultiFailed(error.index - start, error.path or "", error.cause))
            else:
                innocent.append(group)
            start += len(group.ops)
        self._queue.extendleft(reversed(innocent))


class ReadBatch:
    """Reads that share a packet. A reply has no size limit at the server, so the number a packet is bounded."""

    def __init__(
        self,
        session: Session,
        *,
        limit: int = 100,
        limit_bytes: int = 2_000_000,
        in_flight: int = 2,
        linger_s: float = 0.0,
    ) -> None:
        """`linger_s`: how long a read may wait for company while there is much of it, as for a `Batch`."""
        self._session = session
        self._limit = limit
        self._linger_s = linger_s
        self._last_reads = 0  # in the last packet
        self._limit_bytes = limit_bytes
        self._limit_now = limit  # lower while the znodes that come back are large
        self._queue: deque[tuple[str, asyncio.Future[Znode]]] = deque()
        self._flights: _Flights[list[Znode | ZooKeeperError]] = _Flights(in_flight)
        self._is_due = False

    async def get(self, path: str) -> Znode:
        """What stands at `path`; raises `NoNode` and whatever else `Session.get` raises."""
        return await self.send(path)

    def send(self, path: str) -> asyncio.Future[Znode]:
        """`get` for those who await it later, or are called back."""
        future: asyncio.Future[Znode] = asyncio.get_running_loop().create_future()
        self._queue.append((path, future))
        self._flush_soon()
        return future

    def _flush_soon(self) -> None:
        if self._is_due or not self._queue or not self._flights.has_room:
            return
        self._is_due = True
        loop = asyncio.get_running_loop()
        if self._linger_s and self._last_reads >= BUSY_GROUPS and len(self._queue) < self._limit_now:
            loop.call_later(self._linger_s, self._flush)
        else:
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_due = False
        while self._queue and self._flights.has_room:
            reads: list[tuple[str, asyncio.Future[Znode]]] = []
            while self._queue and len(reads) < self._limit_now:
                path, future = self._queue.popleft()
                if not future.done():
                    reads.append((path, future))
            if reads:
                self._last_reads = len(reads)
                task = self._flights.start(self._session.get_many([path for path, _ in reads]))
                task.add_done_callback(lambda task, reads=reads: self._settle(reads, task))  # type: ignore[misc]

    def _settle(
        self, reads: list[tuple[str, asyncio.Future[Znode]]], task: asyncio.Task[list[Znode | ZooKeeperError]]
    ) -> None:
        error = _error_of(task)
        if error is None:
            size = 0
            for (_, future), got in zip(reads, task.result(), strict=True):
                if isinstance(got, ZooKeeperError):
                    if not future.done():
                        future.set_exception(got)
                else:
                    size += len(got.data)
                    if not future.done():
                        future.set_result(got)
            mean = max(1, size // len(reads))
            self._limit_now = max(1, min(self._limit, self._limit_bytes // mean))
        else:
            for _, future in reads:
                if not future.done():
                    future.set_exception(_copy(error))
        self._flush_soon()


def _error_of(task: asyncio.Task[_T]) -> BaseException | None:
    """What the transaction ended with. One that the closing loop cancelled was sent: nobody knows."""
    return OutcomeUnknown(detail="the program is ending") if task.cancelled() else task.exception()


def _copy(error: BaseException) -> BaseException:
    """An exception of its own for each caller: a shared one would collect all their tracebacks."""
    if isinstance(error, ZooKeeperError) and not isinstance(error, (ServerError, MultiFailed)):
        return type(error)(error.path, error.detail)
    return error
