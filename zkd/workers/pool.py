"""The pool: who runs next, on which worker, and how many workers there are.

`size` runs go on at a time, on `size` + 1 warm workers: the one too many takes over within a millisecond
where one was killed. All deciding is done in plain functions, called from the loop's callbacks; the one
task there is restarts the fork server. Nothing here looks into arguments or results.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from zkd import log as zkd_log
from zkd.errors import NoWorkers
from zkd.workers import frames
from zkd.workers.breaker import Breaker
from zkd.workers.call import Cancelled, Limits, ModuleFault, Rejected, blob_name
from zkd.workers.control import Configure, Exited, Faulty, Forked, Kernels, Report, Serving
from zkd.workers.run import Progress, Run
from zkd.workers.server import ForkServerProcess, describe_exit
from zkd.workers.worker import DEATH_S_MAX, Ending, State, Worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from structlog.typing import FilteringBoundLogger

    from zkd.records import KernelSignature
    from zkd.workers.call import Call, Outcome

START_S_MAX: Final = 120.0  # until the pool is warm: many modules of kernels, on a busy machine
STARTS_AT_ONCE: Final = 8
WARM: Final = (State.IDLE, State.BUSY)
DEFAULT_LIMITS: Final = Limits()
SERVED_S: Final = 5.0  # a fork server that has lived so long was well
TAIL_LINES: Final = 20  # of what the fork server printed, to explain why it ended


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
        modules: Sequence[str] = (),
        entry_points: bool = True,
        limits: Limits = DEFAULT_LIMITS,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        assert size >= 1, size
        self.size = size
        self.kernels: list[KernelSignature] = []
        self._blob_dir = blob_dir.absolute()
        self._modules = list(modules)
        self._entry_points = entry_points
        self._limits = limits
        self._log = zkd_log.get() if log is None else log
        self._name = secrets.token_hex(4)
        self._tasks = asyncio.TaskGroup()
        self._server: ForkServerProcess | None = None
        self._is_closing = False
        self._workers: dict[int, Worker] = {}
        self._last_number = 0
        self._idle: list[Worker] = []  # the last one is the next one: its caches are warm
        self._busy: set[Worker] = set()  # with a run, until it is answered or the process is gone
        self._waiting: deque[Run] = deque()
        self._faults: dict[str, ModuleFault] = {}
        self._excluded: set[str] = set()
        self._loaded: list[KernelSignature] = []
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._starts = Breaker()  # of workers
        self._servings = Breaker()  # of fork servers
        self._refill: asyncio.TimerHandle | None = None

    # --- what people see --------------------------------------------------------------------------------

    @property
    def idle(self) -> int:
        """How many runs would begin at once."""
        return max(0, min(self.size - len(self._busy), len(self._idle)) - len(self._waiting))

    @property
    def warm(self) -> int:
        """How many workers are ready or at work: `size` and a spare, when all is well."""
        return sum(worker.state in WARM for worker in self._workers.values())

    @property
    def faults(self) -> list[ModuleFault]:
        """Modules of kernels that could not be loaded."""
        return list(self._faults.values())

    @property
    def degraded(self) -> bool:
        """Whether workers keep dying before they have done anything; the pool goes on trying, ever more slowly."""
        return self._starts.is_open or self._servings.is_open

    @property
    def pids(self) -> list[int]:
        """The processes of the workers that there are now."""
        return [worker.pid for worker in self._workers.values() if worker.pid]

    @property
    def server_pid(self) -> int | None:
        return None if self._server is None else self._server.pid

    async def run(self, call: Call, *, timeout_s: float | None = None, on_progress: Progress | None = None) -> Outcome:
        """Run `call` on the next free worker, first come first served, and say how it ended.

        `timeout_s` counts from when it begins. Cancelling the task that awaits this kills exactly this
        run's worker, in the background; its slot is free again when the process is gone.
        """
        assert not self._is_closing, "the pool is closed"
        frame = frames.encode_call(call)
        if len(frame) > frames.FRAME_BYTES_MAX:
            most = frames.FRAME_BYTES_MAX
            return Rejected(
                "$.args", f"expected at most {most} bytes, got {len(frame)}: pass large arrays by reference"
            )
        outcome: asyncio.Future[Outcome] = self._loop.create_future()
        run = Run(call, frame, timeout_s, on_progress, outcome)
        self._waiting.append(run)
        self._dispatch()
        try:
            return await outcome
        except asyncio.CancelledError:
            self._stop(run)
            raise

    def cancel(self, task_id: str) -> bool:
        """Stop the run of this task, waiting or running: it ends as `Cancelled` when its process is gone.

        False if there is none, or none any more: then its outcome stands.
        """
        runs = [run for run in self._waiting if run.call.task_id == task_id]
        runs += [worker.run for worker in self._busy if worker.run and worker.run.call.task_id == task_id]
        for run in runs:
            self._stop(run)
        return bool(runs)

    def _stop(self, run: Run) -> None:
        if run.worker is not None:
            run.worker.end(Ending.CANCELLED)
        elif run in self._waiting:
            self._waiting.remove(run)
            run.end(Cancelled(0.0))
        else:
            run.discard()  # it has ended, in the very turn in which its owner was cancelled

    # --- dispatch ---------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        while self._waiting and self._idle and len(self._busy) < self.size:
            self._start(self._idle.pop(), self._waiting.popleft())

    def _start(self, worker: Worker, run: Run) -> None:
        if worker.start(run):
            self._busy.add(worker)
        else:
            self._waiting.appendleft(run)

    def _freed(self, worker: Worker) -> None:
        self._starts.reset()
        limits = self._limits
        worker.is_due = worker.is_due or (
            worker.runs >= limits.recycle_tasks
            or worker.private - worker.private_at_start >= limits.recycle_growth
            or time.monotonic() - worker.born >= limits.recycle_age_s
        )
        self._busy.discard(worker)
        if worker.is_due:
            self._idle.insert(0, worker)
            self._recycle()
        elif self._waiting and len(self._busy) < self.size:
            self._start(worker, self._waiting.popleft())
            return
        else:
            self._idle.append(worker)
        self._dispatch()

    # --- how many workers there are ---------------------------------------------------------------------

    def _recycle(self) -> None:
        """Let workers go that are due, as far as fresh and warm ones stand in for them."""
        fresh = sum(worker.state in WARM and not worker.is_due for worker in self._workers.values())
        for worker in [worker for worker in self._idle if worker.is_due]:
            if fresh >= self.size:
                self._log.debug("worker.retired", pid=worker.pid, runs=worker.runs, private=worker.private)
                worker.retire()
        self._fill()

    def _fill(self) -> None:
        """Ask for the workers that are missing."""
        if self._is_closing or self._refill is not None or self._server is None or not self._server.is_serving:
            return
        staying = [it for it in self._workers.values() if it.state is not State.ENDING and not it.is_due]
        starting = sum(worker.state is State.STARTING for worker in staying)
        for _ in range(min(self.size + 1 - len(staying), STARTS_AT_ONCE - starting)):
            try:
                self._spawn(self._server)
            except OSError as error:  # out of descriptors
                self._start_failed(f"no socket for it: {error}")
                return

    def _spawn(self, server: ForkServerProcess) -> None:
        ours, theirs = socket.socketpair()
        try:
            printed, prints = os.pipe2(os.O_CLOEXEC)
        except OSError:
            ours.close()
            theirs.close()
            raise
        self._last_number += 1
        self._workers[self._last_number] = Worker(
            self._last_number,
            ours,
            printed,
            blob_path=self._blob_path,
            grace_s=self._limits.grace_s,
            send_signal=server.signal,
            ready=self._ready,
            freed=self._freed,
            leaving=self._leaving,
            gone=self._gone,
            stuck=lambda: server.kill("it did not kill a worker"),
            printed=self._printed,
        )
        server.spawn(self._last_number, theirs, prints)

    def _blob_path(self, worker: int, run: int) -> Path:
        return self._blob_dir / blob_name(self._name, worker, run)

    def _ready(self, worker: Worker) -> None:
        self._idle.append(worker)
        self._recycle()
        self._dispatch()
        if not self._warm.done() and len(self._idle) + len(self._busy) >= self.size:
            self._warm.set_result(None)

    def _leaving(self, worker: Worker) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
        self._fill()

    def _gone(self, worker: Worker, how: str) -> None:
        del self._workers[worker.number]
        self._busy.discard(worker)
        if worker.ended_by_itself and not self._is_closing:
            self._log.warning("worker.died", pid=worker.pid, how=how, runs=worker.runs)
            if not worker.was_used and self._server is not None and self._server.is_serving:
                self._start_failed(how)
        self._fill()
        self._dispatch()
        if self._is_closing and not self._busy and not self._calm.done():
            self._calm.set_result(None)

    def _start_failed(self, how: str) -> None:
        wait_s = self._starts.fail(time.monotonic())
        if wait_s and self._refill is None:
            self._refill = self._loop.call_later(wait_s, self._refill_now)
            self._log.warning("pool.start_failed", how=how, failures=self._starts.failures, wait_s=wait_s)

    def _refill_now(self) -> None:
        self._refill = None
        self._fill()

    def _printed(self, worker: Worker, line: str) -> None:
        if worker.run is None:
            self._log.info("worker.printed", pid=worker.pid, line=line)
        else:
            call = worker.run.call
            self._log.info("kernel.printed", task=call.task_id, attempt=call.attempt, kernel=call.kernel, line=line)

    # --- the fork server --------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        """Keep a fork server; each turn is the life of one."""
        while True:
            self._tail.clear()
            self._loaded = []
            began = time.monotonic()
            server = self._server = ForkServerProcess(
                self._configuration(), self._limits.blas_threads, report=self._report, printed=self._server_printed
            )
            how = await asyncio.shield(server.ended)
            for worker in list(self._workers.values()):
                worker.exited(f"its fork server ended: {how}")
            if self._is_closing:
                return
            if server.importing is not None:
                self._blame(server.importing, how)
                continue
            self._log.error("forkserver.died", how=how, printed="\n".join(self._tail))
            if time.monotonic() - began >= SERVED_S:
                self._servings.reset()
            wait_s = self._servings.fail(time.monotonic())
            if not self._warm.done() and self._servings.is_open:
                printed = " | ".join(self._tail)
                self._warm.set_exception(NoWorkers(f"the fork server ended ({how}) and printed: {printed}"))
            await asyncio.sleep(wait_s)

    def _configuration(self) -> Configure:
        modules = [module for module in self._modules if module not in self._excluded]
        return Configure(
            modules, self._entry_points, sorted(self._excluded), str(self._blob_dir), self._name, self._limits.memory
        )

    def _blame(self, module: str, how: str) -> None:
        """Go on without a module that took the fork server with it."""
        self._excluded.add(module)
        printed = f"; it printed: {' | '.join(self._tail)}" if self._tail else ""
        self._add_fault(ModuleFault(module, f"importing it ended the process: {how}{printed}"))

    def _add_fault(self, fault: ModuleFault) -> None:
        self._faults[fault.module] = fault
        self._log.warning("kernels.not_loaded", module=fault.module, message=fault.message)

    def _server_printed(self, line: str) -> None:
        self._tail.append(line)
        self._log.info("forkserver.printed", line=line)

    def _report(self, report: Report) -> None:
        match report:
            case Faulty(fault):
                self._add_fault(fault)
            case Kernels(kernels):
                self._loaded += kernels
            case Serving():
                self.kernels = self._loaded
                self._fill()
            case Forked(number, pid) if number in self._workers:
                self._workers[number].pid = pid
            case Exited(number, status) if number in self._workers:
                how = "it could not be forked" if status < 0 else describe_exit(os.waitstatus_to_exitcode(status))
                self._workers[number].exited(how)

    # --- begin and end ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._warm: asyncio.Future[None] = self._loop.create_future()
        self._calm: asyncio.Future[None] = self._loop.create_future()
        self._blob_dir.mkdir(parents=True, exist_ok=True)
        await self._tasks.__aenter__()
        self._supervisor = self._tasks.create_task(self._supervise(), name="zkd-pool")
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
        if self._refill is not None:
            self._refill.cancel()
        while self._waiting:
            self._waiting.popleft().end(Cancelled(0.0))
        try:
            if self._busy:
                for worker in list(self._busy):
                    worker.end(Ending.CANCELLED)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.grace_s + DEATH_S_MAX):
                        await self._calm
            if self._server is not None:
                self._server.close()
                with suppress(TimeoutError):
                    async with asyncio.timeout(DEATH_S_MAX):
                        await asyncio.shield(self._server.ended)
        finally:
            if self._server is not None:
                self._server.reap()
            for worker in list(self._workers.values()):
                worker.exited("the pool was closed")
            self._supervisor.cancel()
