"""Works on what ``assign/<node>`` lists: reads the tasks, runs them in worker processes, publishes the outcome.

A task is held from the moment its line is seen until its outcome stands in the tree, in the states of
`zkd.core.lifecycle`. The outcome is one transaction: delete the task at the version we were given, create the
result. A stale version makes it fail, and then somebody else has the task and ours never happened.

Everything here belongs to one session. When that is over, the leader has given our tasks to others: what runs
is killed, what is finished is thrown away. While the connection is merely gone, kernels go on and outcomes wait.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec import Raw
from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.clock import ServerClock
from zkd.core.lifecycle import (
    Publish,
    State,
    Step,
    TryAgain,
    advance,
    handed_back,
    judge,
)
from zkd.endings import Ending, Endings, cancelled, timestamp
from zkd.errors import (
    AuthFailed,
    BadRecord,
    NoAuth,
    NoNode,
    OutcomeUnknown,
    ResultLost,
    SessionClosed,
    SessionExpired,
    Unavailable,
    ZooKeeperError,
)
from zkd.paths import NodeId, Paths, TaskId
from zkd.records import Assigned, Assignment, BlobRef, Dead, Fault, Result, Running, Task
from zkd.store import BlobStore
from zkd.workers import Call, Cancelled, Died, Failed, Finished, Outcome, Pool, Rejected, TimedOut
from zkd.zk import Session, Stat
from zkd.zk import State as Connection

# Runs that wait in the pool beyond the slots: it hands the next one to a worker in the very callback that frees
# it, while a worker that had to wait for us would stand idle for some turns of a busy loop.
AHEAD = 2
STOP_S = 5.0  # for what was told to stop: SIGTERM, grace, SIGKILL, and a write
READ_AT_ONCE = 16  # tasks may be 512 KiB each
NOT_WRITABLE = BadRecord("$", "expected a znode that zkd may write, to count its attempts: its ACL does not let it")


@dataclass(slots=True, eq=False)
class Held:
    """One task in our hands."""

    line: Assigned
    state: State = State.READING
    task: Task | None = None
    expires_at: float | None = None
    since: float = 0.0
    started: float = 0.0
    progress: float | None = None
    note: str | None = None
    work: asyncio.Task[None] | None = None
    has_begun: bool = False  # `work` has taken its first step, so that a cancellation finds it there
    stopped_for: str | None = None  # cancelled | drain | session, once somebody wants it to end early
    owed: Assigned | None = None  # a later line of this task that came and went: look what became of it

    def advance(self, step: Step) -> None:
        self.state = advance(self.state, step, f"task {self.line.id} attempt {self.line.attempt}")


@dataclass(slots=True)
class Tally:
    """What this node has done since it started."""

    done: int = 0
    failed: int = 0
    by_kernel: dict[tuple[str, str], int] = field(default_factory=dict)

    def count(self, kernel: str, status: str) -> None:
        if status == "done":
            self.done += 1
        else:
            self.failed += 1
        key = (kernel, status)
        self.by_kernel[key] = self.by_kernel.get(key, 0) + 1


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
        self._held: dict[TaskId, Held] = {}
        self._wanted: dict[TaskId, Assigned] = {}  # the lines of the last assignment
        self._done: dict[TaskId, Assigned] = {}  # lines that still stand in assign/ although we are through with them
        self._queue: list[tuple[int, int, TaskId]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._incarnation: str | None = None
        self._session_id = 0
        self._connection = 0
        self._is_draining = False
        self._is_fed = False  # our own dispatcher leads and hands us our share directly
        self._group: asyncio.TaskGroup | None = None
        self._slots_taken = 0
        self._wide = 0  # running tasks of more than one slot
        self.tally = Tally()

    # --- What others ask and tell -----------------------------------------------------------------------

    def joined(self, incarnation: str, session_id: int) -> None:
        """A session has begun, with our entry in nodes/. What we held in an older one is not ours any more."""
        self._wanted.clear()
        self._abandon("session")
        self._incarnation = incarnation
        self._session_id = session_id
        self._done.clear()
        self._wake.set()

    def left(self) -> None:
        """The session is over."""
        self._incarnation = None
        self._wanted.clear()
        self._abandon("session")

    def feed(self, assignment: Assignment, fresh: Mapping[TaskId, tuple[Task, Stat]]) -> None:
        """Our share, from the dispatcher in this very process, which has just written it to assign/."""
        self._is_fed = True
        self._take(assignment, fresh)

    def unfed(self) -> None:
        """Our own dispatcher leads no longer; from here on assign/<node> is to be read."""
        self._is_fed = False
        self._wake.set()

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
        return [
            Running(
                held.line.id,
                held.task.kernel if held.task else "",
                held.line.attempt,
                round(now - held.started, 3),
                held.progress,
                held.note,
            )
            for held in self._held.values()
            if held.state is State.RUNNING
        ]

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, hand back what has not begun, let the rest run, and hand back what still runs then."""
        self._is_draining = True
        assert self._group is not None
        for held in list(self._held.values()):
            if held.state in (State.READING, State.QUEUED) and held.work is None:
                held.stopped_for = "drain"  # one that is being read is handed back when that is done
                if held.state is State.QUEUED:
                    held.work = self._group.create_task(self._hand_back(held))
        if not await self._is_idle_within(timeout_s):
            running = [held for held in self._held.values() if held.state is State.RUNNING]
            self._log.warning("drain.timed_out", handed_back=len(running))
            for held in running:
                self._stop(held, "drain")
            if not await self._is_idle_within(STOP_S):
                self._log.error("drain.not_finished", held=len(self._held))

    async def hand_back_strays(self) -> None:
        """What the leader gave us before it knew that we are leaving."""
        try:
            found = await self._session.get(self._paths.assignment(self._node))
            self._take(codec.decode(found.data, Assignment), {})
        except (ZooKeeperError, BadRecord) as error:
            self._log.info("assignment.not_read", error=str(error))
            return
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
        self._wake.set()

    # --- The loop ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow assign/<node> for as long as the daemon lives."""
        path = self._paths.assignment(self._node)
        unsubscribe = self._session.subscribe(lambda _: self._wake.set())
        is_watching = False
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    if self._session.state in (Connection.EXPIRED, Connection.CLOSED):
                        self.left()
                    if self._session.state is not Connection.CONNECTED or self._incarnation is None:
                        continue
                    try:
                        if not is_watching:
                            await self._session.add_watch(path, lambda _: self._wake.set())
                            is_watching = True
                        is_new_connection = self._session.epoch != self._connection
                        if self._is_fed and not is_new_connection:
                            continue
                        self._connection = self._session.epoch
                        found = await self._session.get(path)
                        self._take(codec.decode(found.data, Assignment), {})
                    except NoNode:
                        continue  # the leader makes it when it has something for us
                    except BadRecord as error:
                        self._log.warning("assignment.unreadable", error=str(error))
                    except (Unavailable, OutcomeUnknown, SessionExpired) as error:
                        self._log.info("assignment.not_read", error=str(error))
                        self._connection = 0
                        if self._session.state is Connection.CONNECTED:
                            self._wake.set()
                            await asyncio.sleep(0.02)
                    except (SessionClosed, AuthFailed):
                        raise
                    except ZooKeeperError as error:  # forbidden, say: people may mend it
                        self._log.error("assignment.not_read", error=str(error))
                        self._connection = 0
                        self._wake.set()
                        await asyncio.sleep(1.0)
        finally:
            unsubscribe()
            self._group = None

    def _take(self, assignment: Assignment, fresh: Mapping[TaskId, tuple[Task, Stat]]) -> None:
        """Compare what we hold with what we should hold."""
        if assignment.incarnation != self._incarnation:
            return  # meant for a former life of ours
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
            if known is not None and _life(known[1]) == _life(line):
                self._queue_up(held, known[0], known[1])
            else:
                to_read.append(held)
        for start in range(0, len(to_read), READ_AT_ONCE):
            assert self._group is not None
            self._group.create_task(self._read(to_read[start : start + READ_AT_ONCE]))
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
        for held, got in zip(some, found, strict=True):
            if self._held.get(held.line.id) is not held or held.work is not None:
                continue  # dropped meanwhile, or being let go
            if isinstance(got, NoNode):
                assert self._group is not None
                held.advance(Step.ENDED)
                held.work = self._group.create_task(self._was_cancelled(held))
                continue
            if isinstance(got, NoAuth):
                # Hidden since the leader read it. A change of an ACL is no event: nobody else will notice.
                self._refuse(held, BadRecord("$", f"expected a znode that zkd may read: {got}"))
                continue
            if isinstance(got, ZooKeeperError) or _life(got.stat) != _life(held.line):
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
        assert self._group is not None
        held.advance(Step.ENDED)
        held.work = self._group.create_task(self._publish(held, self._refusal(held.line, bad), None))

    def _refusal(self, line: Assigned, bad: BadRecord) -> Result:
        return Result(
            status="rejected",
            node=self._node,
            attempt=line.attempt,
            error=Fault("task", str(bad), path=bad.where),
            owner=self._incarnation,
            czxid=line.czxid,
            finished_at=timestamp(),
        )

    def _queue_up(self, held: Held, task: Task, stat: Stat) -> None:
        held.task = task
        held.advance(Step.READ)
        if task.not_after_s is not None:
            now = self._now()
            held.expires_at = now + task.not_after_s - self._clock.age_s(stat.ctime, now, stat.czxid)
        if held.stopped_for is not None:
            assert self._group is not None
            held.work = self._group.create_task(self._hand_back(held))
        else:
            heapq.heappush(self._queue, (-task.priority, held.line.czxid, held.line.id))

    def _start_what_fits(self) -> None:
        assert self._group is not None
        while self._queue and self._slots_taken < self._slots + AHEAD:
            held = self._held.get(self._queue[0][2])
            if held is None or held.state is not State.QUEUED or held.stopped_for or held.work:
                heapq.heappop(self._queue)
                continue
            task = held.task
            assert task is not None
            is_wide = task.slots > 1
            limit = self._slots if is_wide or self._wide else self._slots + AHEAD
            if self._slots_taken + task.slots > limit:
                return
            heapq.heappop(self._queue)
            self._slots_taken += task.slots
            self._wide += is_wide
            held.advance(Step.STARTED)
            held.started = self._now()
            held.work = self._group.create_task(self._run(held, task))

    # --- One task ---------------------------------------------------------------------------------------

    async def _run(self, held: Held, task: Task) -> None:
        held.has_begun = True
        try:
            outcome = await self._outcome(held, task) if held.stopped_for is None else Cancelled(0.0)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            assert current is not None
            if held.stopped_for is None:
                raise  # the daemon itself ends
            current.uncancel()
            outcome = Cancelled(self._now() - held.started)
        finally:
            self._slots_taken -= task.slots
            self._wide -= task.slots > 1
            if self._group is not None:
                self._start_what_fits()
        if held.state is not State.RUNNING:
            return  # dropped while it ran
        if isinstance(outcome, Cancelled):
            if held.stopped_for == "drain":
                await self._hand_back(held)
            else:
                held.advance(Step.ENDED)
                await self._let_go(held)
            return
        await self._settle(held, task, outcome)

    async def _outcome(self, held: Held, task: Task) -> Outcome:
        line = held.line
        timeout_s = task.timeout_s or self._timeout_s()
        if held.expires_at is not None:
            timeout_s = min(timeout_s, max(0.0, held.expires_at - self._now()))
            if timeout_s == 0.0:
                return TimedOut(0.0)
        try:
            files = await self._files(task)
        except BadRecord as error:
            return Rejected(error.where, str(error))
        except ResultLost as error:
            return Failed("ResultLost", str(error), "", 0.0)
        call = Call(
            kernel=task.kernel,
            args=bytes(task.args),
            kwargs=bytes(task.kwargs),
            items=None if task.items is msgspec.UNSET else bytes(task.items),
            files=files,
            task_id=line.id,
            attempt=line.attempt,
            fence=f"{line.czxid:x}.{line.version:x}.{self._incarnation}",
            memory=task.memory,
        )

        def progressed(fraction: float | None, note: str | None) -> None:
            held.progress, held.note = fraction, note

        return await self._pool.run(call, timeout_s=timeout_s, on_progress=progressed)

    async def _files(self, task: Task) -> dict[str, str]:
        """Local files for the blobs that the arguments refer to."""
        texts = [task.args, task.kwargs, *([] if task.items is msgspec.UNSET else [task.items])]
        if not any(b'"blob"' in bytes(text) for text in texts):  # only then is it worth a look inside
            return {}
        refs: list[BlobRef] = []
        for text in texts:
            try:
                refs.extend(blob_refs(msgspec.json.decode(text)))
            except RecursionError:
                raise BadRecord("$.args", "expected JSON of reasonable depth, got one nested too deeply") from None
            except msgspec.DecodeError as error:  # a number out of range: raw text was only checked for its form
                raise BadRecord("$.args", f"expected JSON values: {error}") from None
        return {ref.blob: await self._fetch(ref) for ref in refs}

    async def _settle(self, held: Held, task: Task, outcome: Outcome) -> None:
        held.advance(Step.ENDED)
        line = held.line
        if isinstance(outcome, Finished) and outcome.blob is not None:
            blob = outcome.blob
            try:
                self._store.keep(blob.path, line.id, blob.sha256, blob.format)
            except OSError as error:
                outcome = Failed("OSError", f"the result cannot be kept as a file: {error}", "", outcome.run_s)
        if isinstance(outcome, Finished):
            verdict: Publish | TryAgain = Publish("done", attempts=tuple(task.attempts))
        elif isinstance(outcome, Rejected):
            verdict = Publish("rejected", Fault("arguments", f"{outcome.path}: {outcome.message}", outcome.path))
        elif isinstance(outcome, TimedOut) and held.expires_at is not None and held.expires_at <= self._now():
            verdict = Publish("expired", Fault("expired", "not_after_s passed before the task ended"))
        elif isinstance(outcome, TimedOut):
            fault = Fault("timeout", f"stopped after {outcome.after_s:g} s, its time limit")
            verdict = judge(task, "timeout", fault, self._node)
        elif isinstance(outcome, Died):
            verdict = judge(task, "crash", Fault("crash", outcome.how), self._node)
        else:
            assert isinstance(outcome, Failed)
            fault = Fault(outcome.kind, outcome.message, traceback=outcome.traceback or None)
            verdict = judge(task, "error", fault, self._node)
        run_s = outcome.after_s if isinstance(outcome, TimedOut) else getattr(outcome, "run_s", 0.0)
        if isinstance(verdict, TryAgain):
            self._log.info("task.attempt_failed", id=line.id, attempt=line.attempt, cause=verdict.attempts[-1].cause)
            await self._record(held, task, verdict)
            return
        value: Raw | msgspec.UnsetType = msgspec.UNSET
        ref: BlobRef | None = None
        if isinstance(outcome, Finished):
            if outcome.blob is not None:
                blob = outcome.blob
                address = self._address()
                nodes = {self._node: f"{address}/v1/blobs/{blob.sha256}"} if address else {}
                ref = BlobRef(blob.sha256, blob.size, blob.format, nodes)
            else:
                value = Raw(outcome.value or b"null")
        result = Result(
            status=verdict.status,
            node=self._node,
            attempt=line.attempt,
            value=value,
            ref=ref,
            error=verdict.error,
            kernel=task.kernel,
            owner=self._incarnation,
            czxid=line.czxid,
            wait_s=round(held.started - held.since, 6),
            run_s=round(run_s, 6),
            finished_at=timestamp(),
            ttl_s=task.ttl_s,
            traceparent=task.traceparent,
            attempts=list(verdict.attempts),
        )
        dead = None
        if verdict.is_dead and verdict.error is not None:
            text = Raw(codec.encode(msgspec.structs.replace(task, attempts=[])))
            dead = Dead(text, verdict.error, list(verdict.attempts), result.finished_at)
        await self._publish(held, result, dead)

    async def _publish(self, held: Held, result: Result, dead: Dead | None) -> None:
        line = held.line
        ending = await self._endings.end(line.id, line.version, result, dead, within=self._session_id)
        if ending is Ending.WRITTEN:
            self.tally.count(result.kernel or "", result.status)
            if result.status == "done":
                self._log.debug("task.done", id=line.id, attempt=line.attempt)
            else:
                why = result.error.message if result.error else ""
                self._log.info("task.ended", id=line.id, attempt=line.attempt, status=result.status, error=why)
        elif ending is Ending.GONE:
            await self._was_cancelled(held)
            return
        else:
            self._log.info("task.not_ours", id=line.id, attempt=line.attempt, because=ending.value)
        self._finish(held, Step.PUBLISHED if ending is Ending.WRITTEN else Step.DROPPED)

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

    # --- Letting go -------------------------------------------------------------------------------------

    def _stop(self, held: Held, reason: str) -> None:
        """Make a task end early; what becomes of it depends on the reason."""
        if held.stopped_for is not None and reason != "session":
            return
        held.stopped_for = reason
        if held.state is State.RUNNING:
            # A task that is cancelled before its first step never takes it, and its slot would never be free.
            if held.work is not None and held.has_begun:
                held.work.cancel()
        elif held.state in (State.READING, State.QUEUED) and held.work is None:
            task_group = self._group
            if reason == "cancelled" and task_group is not None:
                held.advance(Step.ENDED)
                held.work = task_group.create_task(self._let_go(held))
            else:
                self._drop(held)
        # A task that is being published is not stopped: its transaction finds out who won.

    def _abandon(self, reason: str) -> None:
        for held in list(self._held.values()):
            self._stop(held, reason)
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
            self._group.create_task(self._read([self._hold(wanted, self._now())]))
        if not self._held:
            self._idle.set()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _life(what: Stat | Assigned) -> tuple[int, int]:
    return what.czxid, what.version


def blob_refs(value: object) -> Iterable[BlobRef]:
    """Every blob reference inside a decoded JSON value; `BadRecord` for one that is malformed."""
    unseen = [value]  # no recursion: the depth is a stranger's choice
    while unseen:
        value = unseen.pop()
        if isinstance(value, list):
            unseen.extend(value)
        elif isinstance(value, dict) and "blob" not in value:
            unseen.extend(value.values())
        elif isinstance(value, dict):
            try:
                yield msgspec.convert(value, BlobRef)
            except msgspec.ValidationError as error:
                raise BadRecord("$.args", f"expected a blob reference: {error}") from None
