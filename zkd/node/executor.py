"""Works on what ``assign/<node>`` lists: reads the tasks, runs them in worker processes, publishes the outcome.

A task is held from the moment its line is seen until its outcome stands in the tree, in the states of
`zkd.core.lifecycle`. The outcome is one transaction: delete the task at the version we were given, create the
result. A stale version makes it fail, and then somebody else has the task and ours never happened.

The usual way, read, run, publish, goes from callback to callback, many tasks a turn; whatever leaves it (an end
that is refused, a cancellation, a retry) is a coroutine of its own.

Everything here belongs to one session. When that is over, the leader has given our tasks to others: what runs
is killed, what is finished is thrown away. While the connection is merely gone, kernels go on and outcomes wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.clock import ServerClock
from zkd.core.lifecycle import State, Step
from zkd.endings import Endings
from zkd.errors import (
    BadRecord,
    NoAuth,
    NoNode,
    OutcomeUnknown,
    SessionExpired,
    Unavailable,
    ZooKeeperError,
)
from zkd.holder.following import Following
from zkd.holder.held import Held, life
from zkd.holder.provision import Provision
from zkd.holder.runs import NOWHERE, Elsewhere, Runs
from zkd.holder.settling import Settling
from zkd.paths import NodeId, Paths, TaskId
from zkd.records import Assigned, Assignment, BlobRef, Running, Task
from zkd.store import BlobStore
from zkd.workers import Cancelled, Outcome, Pool
from zkd.zk import Session, Stat

DELETED_LOOK_S = 0.5  # between looks for deleted tasks while we drain
STOP_S = 5.0  # for what was told to stop: SIGTERM, grace, SIGKILL, and a write
READ_AT_ONCE_FIRST = 16  # tasks may be 512 KiB each,
READ_AT_ONCE = 100  # and mostly are not
REPLY_BYTES = 2_000_000
MISSED_MAX = 8  # told at once; the leader has most likely heard of older ones


class Executor:
    def __init__(
        self,
        session: Session,
        paths: Paths,
        node: NodeId,
        pool: Pool,
        slots: int,
        endings: Endings,
        store: BlobStore,
        clock: ServerClock,
        log: Log,
        fetch: Callable[[BlobRef], Awaitable[str]],
        timeout_s: Callable[[], float],
        address: Callable[[], str | None],
        told: Callable[[], None] = lambda: None,
        provision: Provision | None = None,
        elsewhere: Mapping[str, Elsewhere] = NOWHERE,
    ) -> None:
        """`told`: what our entry in nodes/ should say, of `missed` lists, has changed. `elsewhere` runs some kernels
        without a worker."""
        self._session = session
        self._paths = paths
        self._endings = endings
        self._clock = clock
        self._log = log
        self._settling = Settling(
            session,
            paths,
            node,
            endings,
            store,
            log,
            address,
            finish=self._finish,
            do=self._do,
            in_callback=self._in_callback,
        )
        self.tally = self._settling.tally
        self._following = Following(
            session,
            paths.assignment(node),
            log,
            take=lambda assignment: self._take(assignment, {}),
            has_joined=lambda: self._incarnation is not None,
            session_over=self.left,
            missed=self._missed,
        )
        self._told = told
        self.missed: deque[tuple[int, int]] = deque(maxlen=MISSED_MAX)
        self._held: dict[TaskId, Held] = {}
        self._wanted: dict[TaskId, Assigned] = {}  # the lines of the last assignment
        self._done: dict[TaskId, Assigned] = {}  # lines that still stand in assign/ although we are through with them
        self._runs = Runs(
            pool,
            slots,
            self._held,
            ended=partial(self._in_callback, self._ran),
            do=self._do,
            fetch=fetch,
            timeout_s=timeout_s,
            provision=provision,
            elsewhere=elsewhere,
        )
        self._read_at_once = READ_AT_ONCE_FIRST
        self._idle = asyncio.Event()
        self._idle.set()
        self._incarnation: str | None = None
        self._session_id = 0
        self._is_draining = False
        self._group: asyncio.TaskGroup | None = None

    # --- What others ask and tell -----------------------------------------------------------------------

    async def run(self) -> None:
        """Work for as long as the daemon lives."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._runs.is_stopped = self._settling.is_stopped = False
            try:
                await self._following.run()
            finally:
                self._group = None  # callbacks begin nothing any more
                self._runs.is_stopped = self._settling.is_stopped = True

    def joined(self, incarnation: str, session_id: int) -> None:
        """A session has begun, with our entry in nodes/. What we held in an older one is not ours any more."""
        self._wanted.clear()
        self._abandon()
        self._incarnation = self._runs.incarnation = self._settling.incarnation = incarnation
        self._session_id = self._settling.session_id = session_id
        self._done.clear()
        self.missed.clear()
        self._following.wake()

    def left(self) -> None:
        """The session is over."""
        self._incarnation = None
        self._wanted.clear()
        self._abandon()

    def feed(self, assignment: Assignment, fresh: Mapping[TaskId, tuple[Task, Stat]]) -> None:
        """Our share, from the dispatcher in this very process, which has just written it to assign/."""
        self._following.is_fed = True
        self._take(assignment, fresh)

    def _missed(self, read: int, then: int) -> None:
        """Lists came and went while we did not look. Our entry says so, and the leader mourns what we cannot."""
        self.missed.append((read, then))
        self._told()

    def unfed(self) -> None:
        """Our own dispatcher leads no longer; from here on assign/<node> is to be read."""
        self._following.is_fed = False
        self._following.wake()

    @property
    def slots_used(self) -> int:
        return self._runs.slots_used

    def queued(self) -> int:
        return sum(held.state in (State.READING, State.QUEUED) for held in self._held.values())

    def holds(self, task_id: TaskId) -> bool:
        """Whether this node still has to do with the task, if only to publish its outcome."""
        return task_id in self._held

    def running(self) -> list[Running]:
        now = self._now()
        return [held.shown(now) for held in self._held.values() if held.state is State.RUNNING]

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, hand back what has not begun, let the rest run, and hand back what still runs then."""
        self._is_draining = True
        for held in list(self._held.values()):
            if held.state in (State.READING, State.QUEUED) and held.work is None:
                held.stopped_for = "drain"  # one that is being read is handed back when that is done
                if held.state is State.QUEUED:
                    self._do(held, self._settling.hand_back(held))
        if not await self._runs_out(timeout_s):
            running = [held for held in self._held.values() if held.state is State.RUNNING]
            self._log.warning("drain.timed_out", handed_back=len(running))
            for held in running:
                self._stop(held, "drain")
            if not await self._is_idle_within(STOP_S):
                self._log.error("drain.not_finished", held=len(self._held))

    async def _runs_out(self, timeout_s: float) -> bool:
        """Wait for what runs. Perhaps nobody leads now, who would tell what was deleted: we look for ourselves."""
        until = self._now() + timeout_s
        while not await self._is_idle_within(min(DELETED_LOOK_S, max(0.0, until - self._now()))):
            if self._now() >= until:
                return False
            for held in [held for held in self._held.values() if held.state is State.RUNNING]:
                with suppress(ZooKeeperError):  # then it runs on, as it may
                    is_gone = await self._session.exists(self._paths.task(held.line.id)) is None
                    if is_gone and held.state is State.RUNNING:
                        self._stop(held, "cancelled")
        return True

    async def hand_back_strays(self) -> None:
        """What the leader gave us before it knew that we are leaving."""
        await self._following.read_once()
        await self._is_idle_within(STOP_S)

    async def _is_idle_within(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def resume(self) -> None:
        """Take work again."""
        self._is_draining = False
        self._following.wake()

    # --- Taking -----------------------------------------------------------------------------------------

    def _take(self, assignment: Assignment, fresh: Mapping[TaskId, tuple[Task, Stat]]) -> None:
        """Compare what we hold with what we should hold."""
        if assignment.incarnation != self._incarnation or self._group is None:
            return  # meant for a former life of ours, or we are ending
        before, wanted = self._wanted, {line.id: line for line in assignment.tasks}
        self._wanted = wanted
        self._done = {task_id: line for task_id, line in self._done.items() if wanted.get(task_id) == line}
        for held in list(self._held.values()):
            task_id = held.line.id
            if wanted.get(task_id) != held.line:
                # A later version may have been given and taken away again while we were still publishing this one.
                if task_id in before and before[task_id] not in (held.line, wanted.get(task_id)):
                    held.owed = before[task_id]
                self._stop(held, "cancelled")
        to_read: list[Held] = []
        now = self._now()
        for line in assignment.tasks:
            if line.id in self._held or line.id in self._done:
                continue
            held = self._hold(line, now)
            known = fresh.get(line.id)
            if known is not None and life(known[1]) == life(line):
                self._queue_up(held, known[0], known[1])
            else:
                to_read.append(held)
        while to_read:
            self._spawn(self._read(to_read[: self._read_at_once]))
            del to_read[: self._read_at_once]
        self._runs.start_what_fits()

    def _hold(self, line: Assigned, now: float) -> Held:
        held = self._held[line.id] = Held(line, since=now)
        if self._is_draining:
            held.stopped_for = "drain"
        self._idle.clear()
        return held

    async def _read(self, some: list[Held]) -> None:
        while True:
            try:
                found = await self._session.get_many([self._paths.task(held.line.id) for held in some])
                break
            except (Unavailable, OutcomeUnknown):
                if not await self._endings.reconnected(self._session_id):
                    return
            except SessionExpired:
                return
        size = sum(len(got.data) for got in found if not isinstance(got, ZooKeeperError))
        fitting = REPLY_BYTES // max(1, size // len(found))
        self._read_at_once = max(1, min(READ_AT_ONCE, fitting, 2 * self._read_at_once))
        for held, got in zip(some, found, strict=True):
            if self._held.get(held.line.id) is not held or held.work is not None:
                continue  # dropped meanwhile, or being let go
            if isinstance(got, NoNode):
                held.advance(Step.ENDED)
                self._do(held, self._settling.was_cancelled(held))
                continue
            if isinstance(got, NoAuth):
                # Hidden since the leader read it. A change of an ACL is no event: nobody else will notice.
                self._settling.refuse(held, BadRecord("$", f"expected a znode that zkd may read: {got}"))
                continue
            if isinstance(got, ZooKeeperError) or life(got.stat) != life(held.line):
                self._drop(held)  # it moved on: the leader hears of it by an event
                continue
            try:
                task = codec.decode_task(got.data)
            except BadRecord as error:
                self._settling.refuse(held, error)
                continue
            self._queue_up(held, task, got.stat)
        self._runs.start_what_fits()

    def _queue_up(self, held: Held, task: Task, stat: Stat) -> None:
        held.task = task
        held.advance(Step.READ)
        if task.not_after_s is not None:
            now = self._now()
            held.expires_at = now + task.not_after_s - self._clock.age_s(stat.ctime, now, stat.czxid)
        if held.stopped_for is not None:
            self._do(held, self._settling.hand_back(held))
        else:
            self._runs.push(held, task)

    # --- Ending -----------------------------------------------------------------------------------------

    def _ran(self, held: Held, outcome: Outcome) -> None:
        """A run has ended by itself."""
        task = held.task
        if self._group is None or held.state is not State.RUNNING or task is None:
            return  # the daemon ends, or it was dropped while it ran
        if isinstance(outcome, Cancelled):  # nobody here asked for it
            self._do(held, self._settling.was_stopped(held))
        else:
            self._settling.settle(held, task, outcome)

    # --- Letting go -------------------------------------------------------------------------------------

    def _stop(self, held: Held, reason: str) -> None:
        """Make a task end early; what becomes of it depends on the reason."""
        if held.stopped_for is not None and reason != "session":
            return
        held.stopped_for = reason
        if held.state is State.RUNNING:
            self._runs.stop(held)
            if reason != "session" and self._group is not None:
                self._do(held, self._settling.was_stopped(held))
            asyncio.get_running_loop().call_soon(self._in_callback, self._runs.start_what_fits)
        elif held.state in (State.READING, State.QUEUED) and held.work is None:
            if reason == "cancelled" and self._group is not None:
                held.advance(Step.ENDED)
                self._do(held, self._settling.let_go(held))
            else:
                self._drop(held)
        # A task that is being published is not stopped: its transaction finds out who won.

    def _abandon(self) -> None:
        for held in list(self._held.values()):
            self._stop(held, "session")
            if held.state is not State.GONE:
                self._drop(held)

    def _drop(self, held: Held) -> None:
        self._finish(held, Step.DROPPED)

    def _finish(self, held: Held, step: Step) -> None:
        if held.state is State.GONE:
            return
        held.advance(step)
        if self._held.get(held.line.id) is held:
            del self._held[held.line.id]
        wanted = self._wanted.get(held.line.id) or held.owed
        if wanted == held.line:
            self._done[held.line.id] = held.line
        is_new = wanted != held.line or (step is Step.DROPPED and held.stopped_for == "cancelled")
        if wanted is not None and is_new and held.line.id not in self._held and self._group is not None:
            # While we were letting go of it, it was given to us again: as a later version, or as it was.
            self._done.pop(held.line.id, None)
            self._spawn(self._read([self._hold(wanted, self._now())]))
        if not self._held:
            self._idle.set()

    def _do(self, held: Held, doing: Coroutine[Any, Any, None]) -> None:
        held.work = self._spawn(doing)

    def _spawn(self, doing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._group is not None
        return self._group.create_task(doing)

    def _in_callback(self, step: Callable[..., None], *args: Any) -> None:
        """A bug in a callback ends the daemon, as one in a coroutine does."""
        try:
            step(*args)
        except BaseException as bug:
            if self._group is not None:
                self._group.create_task(_raise(bug))
            raise

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def _raise(bug: BaseException) -> None:
    raise bug
