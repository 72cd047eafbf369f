"""A pool of workers without processes: what a kernel does is written in its task, and every run in a ledger.

A task's first argument is its plan: for each attempt, what becomes of it and after how long, the last entry
holding for all further ones. `[["crash", 0.2], ["done", 1]]` kills its process at first and then returns.
What a run returns is its number in the ledger, so that a result can be traced to the run that made it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import msgspec

from zkd.records import KernelSignature
from zkd.workers.call import Call, Cancelled, Died, Failed, Finished, Outcome, Rejected, TimedOut

if TYPE_CHECKING:
    from tests.simulation.loop import Machine

KERNELS = ("sim.other", "sim.work")
GRACE_S = 1.0  # from SIGTERM to SIGKILL


@dataclass(slots=True)
class Run:
    """One execution of a kernel, as its worker saw it."""

    number: int
    task: str
    attempt: int
    fence: str
    node: str
    boot: str
    start: float
    end: float | None = None
    outcome: str = "running"

    @property
    def life(self) -> tuple[int, int, str]:
        """czxid and version of the task's znode, and the incarnation that ran it."""
        czxid, version, incarnation = self.fence.split(".", 2)
        return int(czxid, 16), int(version, 16), incarnation


class _Job:
    """One call in the pool."""

    __slots__ = ("call", "done", "is_wanted", "run", "timeout_s", "timer", "what")

    def __init__(self, call: Call, timeout_s: float | None, done: Callable[[Outcome], None]) -> None:
        self.call = call
        self.timeout_s = timeout_s
        self.done = done
        self.is_wanted = True
        self.run: Run | None = None
        self.timer: Any = None
        self.what: tuple[str, float] = ("", 0.0)


class Pool:
    """`zkd.workers.Pool` as the daemon uses it."""

    degraded = False

    def __init__(self, size: int, **_: Any) -> None:
        from tests.simulation import doubles

        self.size = size
        self.kernels = [KernelSignature(name, "(plan)") for name in KERNELS]
        self._world = doubles.the_world()
        self._machine: Machine = doubles.here()
        self._waiting: deque[_Job] = deque()
        self._busy: dict[_Job, None] = {}

    async def __aenter__(self) -> Self:
        await asyncio.sleep(self._machine.rng.uniform(0.01, 0.1))
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._waiting:
            self._end(self._waiting.popleft(), Cancelled(0.0))
        for job in list(self._busy):
            self._kill(job)
        while self._busy:
            await asyncio.sleep(0.01)

    def submit(
        self, call: Call, done: Callable[[Outcome], None], *, timeout_s: float | None = None, on_progress: Any = None
    ) -> _Job:
        job = _Job(call, timeout_s, done)
        self._waiting.append(job)
        self._dispatch()
        return job

    def withdraw(self, job: _Job) -> None:
        job.is_wanted = False
        if job.run is None:
            self._waiting.remove(job)
        else:
            self._kill(job)

    def depth(self, kernel: str) -> int:
        return 1

    @property
    def in_use(self) -> int:
        return len(self._busy) + len(self._waiting)

    def _dispatch(self) -> None:
        while self._waiting and len(self._busy) < self.size:
            self._start(self._waiting.popleft())

    def _start(self, job: _Job) -> None:
        call, loop = job.call, asyncio.get_running_loop()
        plan = msgspec.json.decode(call.args)[0]
        what, seconds = plan[min(call.attempt, len(plan)) - 1]
        if what == "rejected":
            job.run = self._world.ledger.begin(call, self._machine)
            self._busy[job] = None
            self._over(job, "rejected")
            return
        if what == "hang":
            seconds = float("inf")
        if job.timeout_s is not None and seconds >= job.timeout_s:
            what, seconds = "timeout", job.timeout_s
        if what == "straggle":  # here and now; the same thing elsewhere takes no time
            what, seconds = "done", 0.05 if self._world.ledger.has_begun(call) else seconds
        job.what = (what, seconds)
        job.run = self._world.ledger.begin(call, self._machine)
        self._busy[job] = None
        if seconds != float("inf"):
            job.timer = loop.call_later(seconds, self._over, job, what)

    def _over(self, job: _Job, what: str) -> None:
        run = job.run
        assert run is not None
        self._world.ledger.end(run, what)
        self._busy.pop(job, None)
        run_s = asyncio.get_running_loop().time() - run.start
        outcome: Outcome
        if what == "done":
            outcome = Finished(b"%d" % run.number, None, run_s)
        elif what == "error":
            outcome = Failed("ValueError", f"run {run.number} failed", "", run_s)
        elif what == "crash":
            outcome = Died(f"run {run.number} was killed by signal 11", run_s)
        elif what == "rejected":
            outcome = Rejected("$.args[0]", f"run {run.number} does not like it")
        elif what == "timeout":
            outcome = TimedOut(run_s)
        else:
            outcome = Cancelled(run_s)
        self._end(job, outcome)
        self._dispatch()

    def _end(self, job: _Job, outcome: Outcome) -> None:
        if job.is_wanted and self._machine.is_up:  # else nobody is there any more to hear of it
            job.done(outcome)

    def _kill(self, job: _Job) -> None:
        """SIGTERM, which some obey, then SIGKILL; its slot is free when the process is gone."""
        if job in self._busy and job.what[0] != "cancelled":
            if job.timer is not None:
                job.timer.cancel()
            job.what = ("cancelled", 0.0)
            grace_s = self._machine.rng.choice((0.002, 0.002, GRACE_S))
            asyncio.get_running_loop().call_later(grace_s, self._over, job, "cancelled")


class Ledger:
    """Every run of every kernel, whatever became of it."""

    def __init__(self, world: Any) -> None:
        self.runs: list[Run] = []
        self._world = world

    def has_begun(self, call: Call) -> bool:
        """Whether this version of this task runs somewhere, or did."""
        version = call.fence.split(".", 2)[:2]
        return any(run.task == call.task_id and run.fence.split(".", 2)[:2] == version for run in self.runs)

    def begin(self, call: Call, machine: Machine) -> Run:
        run = Run(
            len(self.runs),
            call.task_id,
            call.attempt,
            call.fence,
            machine.name.partition("#")[0],
            machine.name,
            self._world.loop.now,
        )
        self.runs.append(run)
        if machine.is_up:
            self._world.tell("run began", machine, run.number, call.task_id, call.attempt, call.fence)
        else:
            run.outcome = "never"
        return run

    def end(self, run: Run, what: str) -> None:
        run.end = self._world.loop.now
        run.outcome = what
        self._world.tell("run ended", None, run.number, run.task, what)
