"""The pool: who runs next, and on which worker.

`size` runs go on at a time. A worker is given the next run in the very callback in which it becomes free;
where kernels are short, a few runs lie ready on its line, so that it need not wait for us nor wake us each
time. All deciding is done in plain functions, called from the loop's callbacks. How many workers there are is
the affair of `zkd.workers.staff`. Nothing here looks into arguments or results.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from zkd import log as zkd_log
from zkd.errors import NoWorkers
from zkd.workers import frames
from zkd.workers.brevity import Brevity
from zkd.workers.call import Cancelled, Died, Finished, Limits, ModuleFault, Rejected, TimedOut
from zkd.workers.run import Progress, Run, remove_blob
from zkd.workers.staff import Staff
from zkd.workers.worker import DEATH_S_MAX, Ending, State, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from structlog.typing import FilteringBoundLogger

    from zkd.records import KernelSignature
    from zkd.workers.call import Call, Outcome

START_S_MAX: Final = 120.0  # until the pool is warm: many modules of kernels, on a busy machine
DEFAULT_LIMITS: Final = Limits()
LOOK_S: Final = 0.002  # between looks at workers that answer quietly


class Pool:
    """Worker processes that run kernels.

        async with Pool(2, blob_dir=Path("/var/lib/zkd/blobs")) as pool:
            outcome = await pool.run(Call(kernel="numpy.sum", args=b"[[1, 2, 3]]"), timeout_s=10)

    Entering waits until `size` workers are warm and raises `NoWorkers` if that cannot be; leaving kills
    what still runs and takes a few seconds at most.
    """

    def __init__(
        self,
        size: int,
        *,
        blob_dir: Path,
        made_dir: Path | None = None,
        modules: Sequence[str] = (),
        entry_points: bool = True,
        limits: Limits = DEFAULT_LIMITS,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        assert size >= 1, size
        self.size = size
        self._blob_dir = blob_dir.absolute()
        self._limits = limits
        self._tasks = asyncio.TaskGroup()
        self._staff = Staff(
            size,
            self,
            blob_dir=self._blob_dir,
            made_dir=None if made_dir is None else made_dir.absolute(),
            modules=modules,
            entry_points=entry_points,
            limits=limits,
            log=zkd_log.get() if log is None else log,
        )
        self._is_closing = False
        self._idle: list[Worker] = []  # the last one is the next one: its caches are warm
        self._busy: set[Worker] = set()  # with a run, until it is answered or the process is gone
        self._waiting: deque[Run] = deque()
        self._brevity = Brevity()
        self._quiet: set[Worker] = set()  # who answer without our being told at once
        self._look_timer: asyncio.TimerHandle | None = None

    # --- what people see --------------------------------------------------------------------------------

    @property
    def kernels(self) -> list[KernelSignature]:
        return self._staff.kernels

    @property
    def idle(self) -> int:
        """How many runs would begin at once."""
        return max(0, min(self.size - len(self._busy), len(self._idle)) - len(self._waiting))

    @property
    def warm(self) -> int:
        """How many workers are ready or at work: `size` and a spare, when all is well."""
        return self._staff.warm

    @property
    def faults(self) -> list[ModuleFault]:
        """Modules of kernels that could not be loaded."""
        return list(self._staff.faults.values())

    @property
    def degraded(self) -> bool:
        """Whether workers keep dying before they have done anything; the pool goes on trying, ever more slowly."""
        return self._staff.is_degraded

    @property
    def pids(self) -> list[int]:
        """The processes of the workers that there are now."""
        return [worker.pid for worker in self._staff.workers.values() if worker.pid]

    @property
    def server_pid(self) -> int | None:
        return None if self._staff.server is None else self._staff.server.pid

    def depth(self, kernel: str) -> int:
        """How many runs of this kernel a worker may be given at once: one, unless they have been short lately."""
        return self._brevity.depth(kernel)

    async def run(self, call: Call, *, timeout_s: float | None = None, on_progress: Progress | None = None) -> Outcome:
        """Run `call` on the next free worker, first come first served, and say how it ended.

        `timeout_s` counts from when it begins. Cancelling the task that awaits this kills exactly this
        run's worker, in the background; its slot is free again when the process is gone.
        """
        ended: asyncio.Future[Outcome] = self._loop.create_future()

        def done(outcome: Outcome) -> None:
            if ended.done():
                remove_blob(outcome)
            else:
                ended.set_result(outcome)

        run = self.submit(call, done, timeout_s=timeout_s, on_progress=on_progress)
        try:
            return await ended
        except asyncio.CancelledError:
            if ended.done() and not ended.cancelled():
                remove_blob(ended.result())  # it ended in the very turn in which its owner was cancelled
            self.withdraw(run)
            raise

    def submit(
        self,
        call: Call,
        done: Callable[[Outcome], None],
        *,
        timeout_s: float | None = None,
        on_progress: Progress | None = None,
    ) -> Run:
        """`run` for who needs no coroutine: `done` is called once, perhaps before this returns."""
        assert not self._is_closing, "the pool is closed"
        run = Run(call, frames.encode_call(call), timeout_s, on_progress, done)
        if len(run.frame) > frames.FRAME_BYTES_MAX:
            most = frames.FRAME_BYTES_MAX
            run.end(
                Rejected(
                    "$.args", f"expected at most {most} bytes, got {len(run.frame)}: pass large arrays by reference"
                )
            )
            return run
        self._waiting.append(run)
        if len(self._waiting) == 1:  # else there was no room before, and nothing has changed
            self._dispatch()
        return run

    def withdraw(self, run: Run) -> None:
        """Nobody wants this run any more: it does not begin, or its worker is killed. `done` is not called."""
        run.is_wanted = False
        self._stop(run)

    def cancel(self, task_id: str) -> bool:
        """Stop the run of this task, waiting or running: it ends as `Cancelled` when its process is gone.

        False if there is none, or none any more: then its outcome stands.
        """
        runs = [run for run in self._waiting if run.call.task_id == task_id]
        runs += [run for worker in self._busy for run in worker.on_line if run.call.task_id == task_id]
        for run in runs:
            self._stop(run)
        return bool(runs)

    def _stop(self, run: Run) -> None:
        worker = run.worker
        if worker is None:
            if run in self._waiting:
                self._waiting.remove(run)
                run.end(Cancelled(0.0))
        elif worker.withdraw(run):
            run.end(Cancelled(0.0))
            self._rest(worker)
            self._dispatch()
        elif run.worker is not None:
            worker.end(Ending.CANCELLED)

    # --- dispatch ---------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        while self._waiting:
            if self._idle and len(self._busy) < self.size:
                self._start(self._idle.pop(), self._waiting.popleft())
                continue
            least = min(
                (worker for worker in self._busy if worker.on_line),
                key=lambda worker: len(worker.on_line),
                default=None,
            )
            if least is None or not self._send_ahead(least):
                return

    def _start(self, worker: Worker, run: Run) -> None:
        if worker.start(run):
            self._busy.add(worker)
            if not worker.line.is_watched:
                self._look_later(worker)
        else:
            self._waiting.appendleft(run)

    def _send_ahead(self, worker: Worker) -> bool:
        """Put the next run on the line of a worker that is at another one, if both are short."""
        run, ahead, depth = self._waiting[0], len(worker.on_line), self._brevity.depth
        most = min(depth(run.call.kernel), depth(worker.on_line[0].call.kernel), self._staff.runs_left(worker))
        if ahead >= most or worker.is_due or worker.state is not State.BUSY:
            return False
        if frames.is_large(run.frame) or frames.is_large(worker.on_line[0].frame):
            return False  # what is half on its way on the stream cannot be taken back
        if not worker.start(run, ring=ahead == most // 2):
            return False
        self._waiting.popleft()
        self._look_later(worker)
        return True

    def _look_later(self, worker: Worker) -> None:
        self._quiet.add(worker)
        if self._look_timer is None:
            self._look_timer = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._look_timer = None
        for worker in list(self._quiet):
            if not worker.look():
                self._quiet.discard(worker)
        if self._quiet and self._look_timer is None:
            self._look_timer = self._loop.call_later(LOOK_S, self._look)

    # --- what the staff tells ---------------------------------------------------------------------------

    def ready(self, worker: Worker) -> None:
        self._idle.append(worker)
        self._staff.recycle(self._idle)
        self._dispatch()
        if not self._warm.done() and len(self._idle) + len(self._busy) >= self.size:
            self._warm.set_result(None)

    def answered(self, worker: Worker, run: Run, outcome: Outcome, has_output: bool) -> None:
        if isinstance(outcome, Finished) and not has_output:
            self._brevity.ran(run.call.kernel, outcome.run_s)
        elif has_output or isinstance(outcome, TimedOut | Died):
            self._brevity.failed(run.call.kernel)
        run.end(outcome)

    def freed(self, worker: Worker) -> None:
        """It has answered; perhaps there is more on its line."""
        self._staff.has_worked(worker)
        if not worker.on_line:
            self._busy.discard(worker)
            if worker.is_due:
                self._idle.insert(0, worker)
                self._staff.recycle(self._idle)
            elif self._waiting and len(self._busy) < self.size:
                self._start(worker, self._waiting.popleft())
            else:
                self._idle.append(worker)
        while self._waiting and worker.on_line and self._send_ahead(worker):
            continue
        if self._idle:
            self._dispatch()

    def returned(self, worker: Worker, runs: list[Run]) -> None:
        """These have not begun, and are on no line any more."""
        if worker.on_line:
            self._brevity.failed(worker.on_line[0].call.kernel)
        self._rest(worker)
        if self._is_closing:
            for run in runs:
                run.end(Cancelled(0.0))
        else:
            self._waiting.extendleft(reversed(runs))
            self._dispatch()

    def _rest(self, worker: Worker) -> None:
        """Nothing may be left on its line, not even what it was to begin with."""
        if worker in self._busy and not worker.on_line and worker.state is State.IDLE:
            self._busy.discard(worker)
            self._idle.append(worker)

    def leaving(self, worker: Worker) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
        self._staff.fill()

    def gone(self, worker: Worker) -> None:
        self._busy.discard(worker)
        self._quiet.discard(worker)
        self._dispatch()
        if self._is_closing and not self._busy and not self._calm.done():
            self._calm.set_result(None)

    def hopeless(self, why: NoWorkers) -> None:
        self._warm.set_exception(why)

    # --- begin and end ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._warm: asyncio.Future[None] = self._loop.create_future()
        self._calm: asyncio.Future[None] = self._loop.create_future()
        self._blob_dir.mkdir(parents=True, exist_ok=True)
        await self._tasks.__aenter__()
        self._supervisor = self._tasks.create_task(self._staff.supervise(self._warm.done), name="zkd-pool")
        try:
            async with asyncio.timeout(START_S_MAX):
                await self._warm
        except BaseException as error:
            await self._close()
            await self._tasks.__aexit__(None, None, None)
            if isinstance(error, TimeoutError):
                raise NoWorkers(f"no {self.size} workers within {START_S_MAX:g} s") from None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()
        # What the body has raised is none of the group's affair: it would come out wrapped in an ExceptionGroup.
        await self._tasks.__aexit__(None, None, None)

    async def _close(self) -> None:
        """End everything in a few seconds, whatever state it is in; when cancelled meanwhile, at once."""
        self._is_closing = True
        self._staff.close()
        if self._look_timer is not None:
            self._look_timer.cancel()
        while self._waiting:
            self._waiting.popleft().end(Cancelled(0.0))
        server = self._staff.server
        try:
            if self._busy:
                for worker in list(self._busy):
                    worker.end(Ending.CANCELLED)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.grace_s + DEATH_S_MAX):
                        await self._calm
            if server is not None:
                server.close()
                with suppress(TimeoutError):
                    async with asyncio.timeout(DEATH_S_MAX):
                        await asyncio.shield(server.ended)
        finally:
            self._staff.reap()
            self._supervisor.cancel()
