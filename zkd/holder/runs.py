"""Which of the tasks in our hands run now: by priority, then age, as many as fit into the slots.

A task that is ready waits here until its turn comes; then its kernel is called in the pool. What the outcome
means is not known here.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from msgspec import structs

from zkd.core.lifecycle import State, Step
from zkd.core.spreads import is_spread
from zkd.errors import BadRecord, DataDamaged, DataUnavailable, ResultLost
from zkd.holder.held import Held
from zkd.holder.inputs import blobs_of, call_of, has_blobs
from zkd.holder.parts import Lives
from zkd.holder.provision import Provided, Provision
from zkd.paths import TaskId
from zkd.records import BlobRef, Task
from zkd.workers import Call, Failed, Lacking, Outcome, Pool, Rejected, TimedOut
from zkd.workers.run import remove_blob

# Runs that wait in the pool beyond what it has on its workers' lines: it hands the next one to a worker in the very
# callback that frees it, while a worker that had to wait for us would stand idle for some turns of a busy loop.
AHEAD = 2
FETCHES_AT_ONCE = 8  # of the values of one task's parts

Elsewhere: TypeAlias = Callable[[Task, TaskId, float], Awaitable[Outcome]]  # within so many seconds
NOWHERE: Mapping[str, Elsewhere] = MappingProxyType({})


class Runs:
    def __init__(
        self,
        pool: Pool,
        slots: int,
        held: dict[TaskId, Held],
        *,
        ended: Callable[[Held, Outcome], None],
        do: Callable[[Held, Coroutine[Any, Any, None]], None],
        fetch: Callable[[BlobRef], Awaitable[str]],
        timeout_s: Callable[[], float],
        provision: Provision | None = None,
        elsewhere: Mapping[str, Elsewhere] = NOWHERE,
    ) -> None:
        """`held` belongs to the executor; `ended` is called once a run that was not stopped, `do` owns coroutines;
        `elsewhere` runs some kernels without a worker."""
        self._pool = pool
        self._slots = slots
        self._held = held
        self._ended = ended
        self._do = do
        self._fetch = fetch
        self._timeout_s = timeout_s
        self._provision = provision
        self._elsewhere = elsewhere
        self.incarnation: str | None = None
        self.is_stopped = True  # nothing is begun
        self.queue: list[tuple[int, int, TaskId]] = []
        self.slots_taken = 0
        self.wide = 0  # running tasks of more than one slot
        self._is_starting = False

    @property
    def slots_used(self) -> int:
        return min(self._slots, self.slots_taken)

    def push(self, held: Held, task: Task) -> None:
        """It may run; `start_what_fits` starts it when its turn comes."""
        heapq.heappush(self.queue, (-task.priority, held.line.czxid, held.line.id))

    def start_what_fits(self) -> None:
        if self._is_starting:
            return  # one that has expired ended as it was begun: who began it goes on, and no stack grows
        self._is_starting = True
        try:
            self._start_what_fits()
        finally:
            self._is_starting = False

    def _start_what_fits(self) -> None:
        while self.queue and not self.is_stopped:
            held = self._held.get(self.queue[0][2])
            if held is None or held.state is not State.QUEUED or held.stopped_for or held.work:
                heapq.heappop(self.queue)
                continue
            task = held.task
            assert task is not None
            is_wide = task.slots > 1
            limit = self._slots
            if not is_wide and not self.wide:
                limit = self._slots * self._pool.depth(task.kernel) + AHEAD
            if self.slots_taken + task.slots > limit:
                return
            heapq.heappop(self.queue)
            self.slots_taken += task.slots
            self.wide += is_wide
            held.has_slots = True
            held.advance(Step.STARTED)
            held.started = _now()
            if task.kernel in self._elsewhere:
                self._do(held, self._run_elsewhere(held, task))
            elif task.dataset is not None or has_blobs(task):
                self._do(held, self._prepare_and_call(held, task))
            else:
                self._call(held, task, Provided(call_of(task, held.line, self.incarnation, {}), {}))

    async def _run_elsewhere(self, held: Held, task: Task) -> None:
        left_s = self._left_s(held, task)
        try:
            async with asyncio.timeout(left_s):
                outcome = await self._elsewhere[task.kernel](task, held.line.id, left_s)
        except TimeoutError:
            outcome = TimedOut(left_s)
        held.work = None
        if held.state is State.RUNNING and held.stopped_for is None:
            self._ran(held, outcome)
        else:
            remove_blob(outcome)

    async def _prepare_and_call(self, held: Held, task: Task) -> None:
        try:
            provided = await self._prepared(held, task)
        except BadRecord as error:
            self._ran(held, Rejected(error.where, str(error)))
        except ResultLost as error:
            self._ran(held, Failed("ResultLost", str(error), "", 0.0))
        except (DataUnavailable, DataDamaged) as error:
            self._ran(held, Lacking(str(error)))
        else:
            held.work = None
            if held.state is State.RUNNING and held.stopped_for is None:
                self._call(held, task, provided)

    async def _prepared(self, held: Held, task: Task) -> Provided:
        """What the kernel is called with, all of it on this node's disk."""
        if is_spread(task):
            return Provided(await self._gathered(held, task), {})
        files = {ref.blob: await self._fetch(ref) for ref in blobs_of(task)} if has_blobs(task) else {}
        call = call_of(task, held.line, self.incarnation, files)
        if task.dataset is None:
            return Provided(call, {})
        if self._provision is None:
            raise DataUnavailable("this node has no datasets")
        return await self._provision.of_part(task, call)

    async def _gathered(self, held: Held, task: Task) -> Call:
        if self._provision is None:
            raise DataUnavailable("this node has no datasets")
        provision = self._provision
        found = await provision.of_all(task, held.line, call_of(task, held.line, self.incarnation, {}))
        room = asyncio.Semaphore(FETCHES_AT_ONCE)
        files: dict[str, str] = {}
        lost: list[tuple[TaskId, ResultLost]] = []

        async def fetch(child: TaskId, ref: BlobRef) -> None:
            async with room:
                try:
                    files[ref.blob] = await self._fetch(ref)
                except ResultLost as error:
                    lost.append((child, error))

        async with asyncio.TaskGroup() as group:
            for child, ref in found.refs.items():
                group.create_task(fetch(child, ref))
        for child, _ in lost:
            await provision.forget(child)
        if lost:
            raise DataUnavailable(f"what {lost[0][0]} gave cannot be fetched, so it is done again: {lost[0][1]}")
        return structs.replace(found.call, files=files)

    def _call(self, held: Held, task: Task, provided: Provided) -> None:
        timeout_s = self._left_s(held, task)
        if timeout_s == 0.0:
            self._ran(held, TimedOut(0.0))
            return

        def progressed(fraction: float | None, note: str | None) -> None:
            held.progress, held.note = fraction, note

        def ended(outcome: Outcome) -> None:
            if provided.lives:
                self._ran_on_part(held, outcome, provided.lives)
            else:
                self._ran(held, outcome)

        run = self._pool.submit(provided.call, ended, timeout_s=timeout_s, on_progress=progressed)
        if held.state is State.RUNNING:
            held.run = run

    def _left_s(self, held: Held, task: Task) -> float:
        """How long it may run."""
        timeout_s = task.timeout_s or self._timeout_s()
        return timeout_s if held.expires_at is None else min(timeout_s, max(0.0, held.expires_at - _now()))

    def _ran(self, held: Held, outcome: Outcome) -> None:
        """The pool's answer, in one of its callbacks."""
        held.run = None
        self._free(held)
        self._ended(held, outcome)
        self.start_what_fits()

    def _ran_on_part(self, held: Held, outcome: Outcome, lives: Lives) -> None:
        """The same, of a run on a part: it counts if the part is still what it was."""
        held.run = None
        if held.state is State.RUNNING and not self.is_stopped:
            self._do(held, self._check_and_end(held, outcome, lives))
        else:
            remove_blob(outcome)

    async def _check_and_end(self, held: Held, outcome: Outcome, lives: Lives) -> None:
        assert self._provision is not None
        try:
            doubt = await self._provision.doubt(lives)
        except asyncio.CancelledError:
            remove_blob(outcome)
            raise
        held.work = None
        if doubt is not None:
            remove_blob(outcome)
            outcome = Lacking(doubt)
        self._ran(held, outcome)

    def stop(self, held: Held) -> None:
        """Its kernel is killed, or never begins; nothing is told of it."""
        run, held.run = held.run, None
        if held.work is not None:
            held.work.cancel()  # it was still fetching what it needs
        if run is not None:
            self._pool.withdraw(run)
        self._free(held)

    def _free(self, held: Held) -> None:
        if held.has_slots and held.task is not None:
            held.has_slots = False
            self.slots_taken -= held.task.slots
            self.wide -= held.task.slots > 1


def _now() -> float:
    return asyncio.get_running_loop().time()
