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
import heapq
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.clock import ServerClock
from zkd.core.lifecycle import Publish, State, Step, TryAgain, handed_back
from zkd.endings import Ending, Endings, cancelled
from zkd.errors import (
    BadRecord,
    NoAuth,
    NoNode,
    OutcomeUnknown,
    ResultLost,
    SessionExpired,
    Unavailable,
    ZooKeeperError,
)
from zkd.holder.following import Following
from zkd.holder.held import Held, Tally, life
from zkd.holder.inputs import blobs_of, call_of, has_blobs
from zkd.holder.verdicts import obituary_of, refusal_of, result_of, verdict_of
from zkd.paths import NodeId, Paths, TaskId
from zkd.records import Assigned, Assignment, BlobRef, Dead, Result, Running, Task
from zkd.store import BlobStore
from zkd.workers import Cancelled, Failed, Finished, Outcome, Pool, Rejected, TimedOut
from zkd.zk import Session, Stat

# Runs that wait in the pool beyond the slots: it hands the next one to a worker in the very callback that frees
# it, while a worker that had to wait for us would stand idle for some turns of a busy loop.
AHEAD = 2
STOP_S = 5.0  # for what was told to stop: SIGTERM, grace, SIGKILL, and a write
READ_AT_ONCE_FIRST = 16  # tasks may be 512 KiB each,
READ_AT_ONCE = 100  # and mostly are not
REPLY_BYTES = 2_000_000
NOT_WRITABLE = BadRecord("$", "expected a znode that zkd may write, to count its attempts: its ACL does not let it")


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
    ) -> None:
        self._session = session
        self._paths = paths
        self._node = node
        self._pool = pool
        self._slots = slots
        self._endings = endings
        self._store = store
        self._clock = clock
        self._log = log
        self._fetch = fetch
        self._timeout_s = timeout_s
        self._address = address
        self._following = Following(
            session,
            paths.assignment(node),
            log,
            take=lambda assignment: self._take(assignment, {}),
            has_joined=lambda: self._incarnation is not None,
            session_over=self.left,
        )
        self._held: dict[TaskId, Held] = {}
        self._wanted: dict[TaskId, Assigned] = {}  # the lines of the last assignment
        self._done: dict[TaskId, Assigned] = {}  # lines that still stand in assign/ although we are through with them
        self._queue: list[tuple[int, int, TaskId]] = []
        self._read_at_once = READ_AT_ONCE_FIRST
        self._idle = asyncio.Event()
        self._idle.set()
        self._incarnation: str | None = None
        self._session_id = 0
        self._is_draining = False
        self._group: asyncio.TaskGroup | None = None
        self._slots_taken = 0
        self._wide = 0  # running tasks of more than one slot
        self.tally = Tally()

    # --- What others ask and tell -----------------------------------------------------------------------

    async def run(self) -> None:
        """Work for as long as the daemon lives."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await self._following.run()
            finally:
                self._group = None  # callbacks begin nothing any more

    def joined(self, incarnation: str, session_id: int) -> None:
        """A session has begun, with our entry in nodes/. What we held in an older one is not ours any more."""
        self._wanted.clear()
        self._abandon()
        self._incarnation = incarnation
        self._session_id = session_id
        self._done.clear()
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

    def unfed(self) -> None:
        """Our own dispatcher leads no longer; from here on assign/<node> is to be read."""
        self._following.is_fed = False
        self._following.wake()

    @property
    def slots_used(self) -> int:
        return min(self._slots, self._slots_taken)

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
                    self._do(held, self._hand_back(held))
        if not await self._is_idle_within(timeout_s):
            running = [held for held in self._held.values() if held.state is State.RUNNING]
            self._log.warning("drain.timed_out", handed_back=len(running))
            for held in running:
                self._stop(held, "drain")
            if not await self._is_idle_within(STOP_S):
                self._log.error("drain.not_finished", held=len(self._held))

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
        self._start_what_fits()

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
                self._do(held, self._was_cancelled(held))
                continue
            if isinstance(got, NoAuth):
                # Hidden since the leader read it. A change of an ACL is no event: nobody else will notice.
                self._refuse(held, BadRecord("$", f"expected a znode that zkd may read: {got}"))
                continue
            if isinstance(got, ZooKeeperError) or life(got.stat) != life(held.line):
                self._drop(held)  # it moved on: the leader hears of it by an event
                continue
            try:
                task = codec.decode_task(got.data)
            except BadRecord as error:
                self._refuse(held, error)
                continue
            self._queue_up(held, task, got.stat)
        self._start_what_fits()

    def _refuse(self, held: Held, bad: BadRecord) -> None:
        held.advance(Step.ENDED)
        self._do(held, self._publish(held, self._refusal(held.line, bad), None))

    def _refusal(self, line: Assigned, bad: BadRecord) -> Result:
        return refusal_of(line, bad, node=self._node, owner=self._incarnation)

    def _queue_up(self, held: Held, task: Task, stat: Stat) -> None:
        held.task = task
        held.advance(Step.READ)
        if task.not_after_s is not None:
            now = self._now()
            held.expires_at = now + task.not_after_s - self._clock.age_s(stat.ctime, now, stat.czxid)
        if held.stopped_for is not None:
            self._do(held, self._hand_back(held))
        else:
            heapq.heappush(self._queue, (-task.priority, held.line.czxid, held.line.id))

    # --- Running ----------------------------------------------------------------------------------------

    def _start_what_fits(self) -> None:
        while self._queue and self._group is not None:
            held = self._held.get(self._queue[0][2])
            if held is None or held.state is not State.QUEUED or held.stopped_for or held.work:
                heapq.heappop(self._queue)
                continue
            task = held.task
            assert task is not None
            is_wide = task.slots > 1
            limit = self._slots
            if not is_wide and not self._wide:
                limit = self._slots * self._pool.depth(task.kernel) + AHEAD
            if self._slots_taken + task.slots > limit:
                return
            heapq.heappop(self._queue)
            self._slots_taken += task.slots
            self._wide += is_wide
            held.has_slots = True
            held.advance(Step.STARTED)
            held.started = self._now()
            if has_blobs(task):
                self._do(held, self._fetch_and_start(held, task))
            else:
                self._start(held, task, {})

    async def _fetch_and_start(self, held: Held, task: Task) -> None:
        try:
            files = {ref.blob: await self._fetch(ref) for ref in blobs_of(task)}
        except BadRecord as error:
            self._ran(held, Rejected(error.where, str(error)))
        except ResultLost as error:
            self._ran(held, Failed("ResultLost", str(error), "", 0.0))
        else:
            held.work = None
            if held.state is State.RUNNING and held.stopped_for is None:
                self._start(held, task, files)

    def _start(self, held: Held, task: Task, files: dict[str, str]) -> None:
        timeout_s = task.timeout_s or self._timeout_s()
        if held.expires_at is not None:
            timeout_s = min(timeout_s, max(0.0, held.expires_at - self._now()))
            if timeout_s == 0.0:
                self._ran(held, TimedOut(0.0))
                return

        def progressed(fraction: float | None, note: str | None) -> None:
            held.progress, held.note = fraction, note

        call = call_of(task, held.line, self._incarnation, files)
        run = self._pool.submit(
            call, partial(self._in_callback, self._ran, held), timeout_s=timeout_s, on_progress=progressed
        )
        if held.state is State.RUNNING:
            held.run = run

    def _ran(self, held: Held, outcome: Outcome) -> None:
        """The pool's answer, in one of its callbacks."""
        held.run = None
        self._free(held)
        task = held.task
        if self._group is None or held.state is not State.RUNNING or task is None:
            return  # the daemon ends, or it was dropped while it ran
        if isinstance(outcome, Cancelled):  # nobody here asked for it
            self._do(held, self._was_stopped(held))
        else:
            self._settle(held, task, outcome)
        self._start_what_fits()

    def _free(self, held: Held) -> None:
        if held.has_slots and held.task is not None:
            held.has_slots = False
            self._slots_taken -= held.task.slots
            self._wide -= held.task.slots > 1

    def _settle(self, held: Held, task: Task, outcome: Outcome) -> None:
        held.advance(Step.ENDED)
        line = held.line
        if isinstance(outcome, Finished) and outcome.blob is not None:
            blob = outcome.blob
            try:
                self._store.keep(blob.path, line.id, blob.sha256, blob.format)
            except OSError as error:
                outcome = Failed("OSError", f"the result cannot be kept as a file: {error}", "", outcome.run_s)
        has_expired = held.expires_at is not None and held.expires_at <= self._now()
        verdict = verdict_of(task, outcome, self._node, has_expired=has_expired)
        if isinstance(verdict, TryAgain):
            self._log.info("task.attempt_failed", id=line.id, attempt=line.attempt, cause=verdict.attempts[-1].cause)
            self._do(held, self._record(held, task, verdict))
            return
        self._end(held, task, outcome, verdict)

    def _end(self, held: Held, task: Task, outcome: Outcome, verdict: Publish) -> None:
        """Send the ending at once, together with the others of this turn; a refusal is another matter."""
        result = result_of(
            held, task, outcome, verdict, node=self._node, owner=self._incarnation, address=self._address()
        )
        dead = obituary_of(task, verdict, result.finished_at)
        if dead is not None:
            self._do(held, self._publish(held, result, dead))
            return
        sent = self._endings.send(held.line.id, held.line.version, result, within=self._session_id)
        sent.add_done_callback(partial(self._in_callback, self._sent, held, result))

    def _sent(self, held: Held, result: Result, sent: asyncio.Future[Any]) -> None:
        if not sent.cancelled() and sent.exception() is None:
            self._was_published(held, result)
        elif self._group is not None and held.state is State.PUBLISHING:
            # The same transaction again: what it says then tells how it went.
            self._do(held, self._publish(held, result, None))

    # --- Ending -----------------------------------------------------------------------------------------

    async def _publish(self, held: Held, result: Result, dead: Dead | None) -> None:
        line = held.line
        ending = await self._endings.end(line.id, line.version, result, dead, within=self._session_id)
        if ending is Ending.WRITTEN:
            self._was_published(held, result)
        elif ending is Ending.GONE:
            await self._was_cancelled(held)
        else:
            self._log.info("task.not_ours", id=line.id, attempt=line.attempt, because=ending.value)
            self._finish(held, Step.DROPPED)

    def _was_published(self, held: Held, result: Result) -> None:
        line = held.line
        self.tally.count(result.kernel or "", result.status)
        if result.status == "done":
            self._log.debug("task.done", id=line.id, attempt=line.attempt)
        else:
            why = result.error.message if result.error else ""
            self._log.info("task.ended", id=line.id, attempt=line.attempt, status=result.status, error=why)
        self._finish(held, Step.PUBLISHED)

    async def _was_cancelled(self, held: Held) -> None:
        """The task's znode is gone. Either our own commit took it, its answer lost; or somebody cancelled it."""
        line, me = held.line, self._incarnation or ""
        result = cancelled(me, line.czxid, line.attempt, held.task, self._node)
        ending = await self._endings.end_deleted(line.id, result, within=self._session_id)
        if ending is Ending.WRITTEN:
            self.tally.count(result.kernel or "", "cancelled")
            self._log.info("task.cancelled", id=line.id, attempt=line.attempt)
        self._finish(held, Step.PUBLISHED)

    async def _let_go(self, held: Held) -> None:
        """Our line was taken out of assign/: the task was cancelled, or moved on to somebody else.

        Nobody else finds out which while we live, so a lost connection only delays the question.
        """
        is_there: bool | None = None
        while is_there is None:
            try:
                is_there = await self._session.exists(self._paths.task(held.line.id)) is not None
            except ZooKeeperError:
                await asyncio.sleep(0.05)
                if not await self._endings.reconnected(self._session_id):
                    is_there = True  # the leader has lost us, and sees to what we held
        if is_there:
            self._finish(held, Step.DROPPED)
        else:
            await self._was_cancelled(held)

    async def _record(self, held: Held, task: Task, verdict: TryAgain) -> None:
        """Write the attempt into the task. Its version moves on, which ends our hold; the leader takes over."""
        line = held.line
        ending = await self._endings.record_attempts(
            line.id, line.version, task, verdict.attempts, within=self._session_id
        )
        if ending is Ending.WRITTEN:
            self.tally.count(task.kernel, verdict.attempts[-1].cause)
        elif ending is Ending.GONE:
            await self._was_cancelled(held)
            return
        elif ending is Ending.STUCK:
            await self._publish(held, self._refusal(line, NOT_WRITABLE), None)
            return
        self._finish(held, Step.DROPPED)

    async def _hand_back(self, held: Held) -> None:
        task = held.task
        assert task is not None
        held.advance(Step.ENDED)
        self._log.info("task.handed_back", id=held.line.id)
        await self._record(held, task, handed_back(task, self._node))

    async def _was_stopped(self, held: Held) -> None:
        if held.state is not State.RUNNING:
            return  # dropped meanwhile
        if held.stopped_for == "drain":
            await self._hand_back(held)
        else:
            held.advance(Step.ENDED)
            await self._let_go(held)

    # --- Letting go -------------------------------------------------------------------------------------

    def _stop(self, held: Held, reason: str) -> None:
        """Make a task end early; what becomes of it depends on the reason."""
        if held.stopped_for is not None and reason != "session":
            return
        held.stopped_for = reason
        if held.state is State.RUNNING:
            run, held.run = held.run, None
            if held.work is not None:
                held.work.cancel()  # it was still fetching what it needs
            if run is not None:
                self._pool.withdraw(run)
            self._free(held)
            if reason != "session" and self._group is not None:
                self._do(held, self._was_stopped(held))
            asyncio.get_running_loop().call_soon(self._in_callback, self._start_what_fits)
        elif held.state in (State.READING, State.QUEUED) and held.work is None:
            if reason == "cancelled" and self._group is not None:
                held.advance(Step.ENDED)
                self._do(held, self._let_go(held))
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
