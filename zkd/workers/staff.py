"""The staff: how many workers there are, and the fork server that makes them.

There is one worker more than runs go on at a time: it takes over within a millisecond where one was killed.
Workers that are worn out go when fresh and warm ones stand in for them. The one task here keeps a fork
server; what workers are given to do is the pool's affair (`zkd.workers.pool`).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from zkd.errors import NoWorkers
from zkd.workers.breaker import Breaker
from zkd.workers.call import Limits, ModuleFault, blob_name
from zkd.workers.control import Configure, Exited, Faulty, Forked, Kernels, Report, Serving
from zkd.workers.server import ForkServerProcess, describe_exit
from zkd.workers.worker import State, Worker

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from zkd.records import KernelSignature
    from zkd.workers.call import Outcome
    from zkd.workers.run import Run

STARTS_AT_ONCE: Final = 8
WARM: Final = (State.IDLE, State.BUSY)
SERVED_S: Final = 5.0  # a fork server that has lived so long was well
TAIL_LINES: Final = 20  # of what the fork server printed, to explain why it ended


class Employer(Protocol):
    """Who gives the workers something to do, and hears of them."""

    def ready(self, worker: Worker) -> None: ...
    def answered(self, worker: Worker, run: Run, outcome: Outcome, has_output: bool) -> None: ...
    def freed(self, worker: Worker) -> None: ...
    def returned(self, worker: Worker, runs: list[Run]) -> None: ...
    def leaving(self, worker: Worker) -> None: ...
    def gone(self, worker: Worker) -> None: ...
    def hopeless(self, why: NoWorkers) -> None: ...


class Staff:
    def __init__(
        self,
        size: int,
        employer: Employer,
        *,
        blob_dir: Path,
        made_dir: Path | None,
        modules: Sequence[str],
        entry_points: bool,
        limits: Limits,
        log: FilteringBoundLogger,
    ) -> None:
        self.size = size
        self.kernels: list[KernelSignature] = []
        self.faults: dict[str, ModuleFault] = {}
        self.workers: dict[int, Worker] = {}
        self.server: ForkServerProcess | None = None
        self.is_closing = False
        self._employer = employer
        self._blob_dir = blob_dir
        self._made_dir = made_dir
        self._modules = list(modules)
        self._entry_points = entry_points
        self._limits = limits
        self._log = log
        self._name = secrets.token_hex(4)
        self._last_number = 0
        self._excluded: set[str] = set()
        self._loaded: list[KernelSignature] = []
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._starts = Breaker()  # of workers
        self._servings = Breaker()  # of fork servers
        self._refill: asyncio.TimerHandle | None = None

    @property
    def warm(self) -> int:
        """How many workers are ready or at work."""
        return sum(worker.state in WARM for worker in self.workers.values())

    @property
    def is_degraded(self) -> bool:
        return self._starts.is_open or self._servings.is_open

    # --- how many workers there are ---------------------------------------------------------------------

    def has_worked(self, worker: Worker) -> None:
        """A run has ended well; is the worker worn out by now?"""
        self._starts.reset()
        limits = self._limits
        worker.is_due = worker.is_due or (
            worker.runs >= limits.recycle_tasks
            or worker.private - worker.private_at_start >= limits.recycle_growth
            or time.monotonic() - worker.born >= limits.recycle_age_s
        )

    def runs_left(self, worker: Worker) -> int:
        return self._limits.recycle_tasks - worker.runs

    def recycle(self, idle: Iterable[Worker]) -> None:
        """Let those go that are due, as far as fresh and warm ones stand in for them."""
        fresh = sum(worker.state in WARM and not worker.is_due for worker in self.workers.values())
        for worker in [worker for worker in idle if worker.is_due]:
            if fresh >= self.size:
                self._log.debug("worker.retired", pid=worker.pid, runs=worker.runs, private=worker.private)
                worker.retire()
        self.fill()

    def fill(self) -> None:
        """Ask for the workers that are missing."""
        if self.is_closing or self._refill is not None or self.server is None or not self.server.is_serving:
            return
        staying = [it for it in self.workers.values() if it.state is not State.ENDING and not it.is_due]
        starting = sum(worker.state is State.STARTING for worker in staying)
        for _ in range(min(self.size + 1 - len(staying), STARTS_AT_ONCE - starting)):
            try:
                self._spawn(self.server)
            except OSError as error:  # out of descriptors
                self._start_failed(f"no socket for it: {error}")
                return

    def _spawn(self, server: ForkServerProcess) -> None:
        employer = self._employer
        printed, prints = os.pipe2(os.O_CLOEXEC)
        self._last_number += 1
        try:
            worker = Worker(
                self._last_number,
                printed,
                blob_path=self._blob_path,
                grace_s=self._limits.grace_s,
                send_signal=server.signal,
                ready=employer.ready,
                answered=employer.answered,
                freed=employer.freed,
                returned=employer.returned,
                leaving=employer.leaving,
                gone=self._gone,
                stuck=lambda: server.kill("it did not kill a worker"),
                printed=self._printed,
            )
        except OSError:
            os.close(prints)
            raise
        self.workers[self._last_number] = worker
        server.spawn(self._last_number, *worker.line.give_away(), prints)

    def _blob_path(self, worker: int, run: int) -> Path:
        return self._blob_dir / blob_name(self._name, worker, run)

    def _gone(self, worker: Worker, how: str) -> None:
        del self.workers[worker.number]
        if worker.ended_by_itself and not self.is_closing:
            self._log.warning("worker.died", pid=worker.pid, how=how, runs=worker.runs)
            if not worker.was_used and self.server is not None and self.server.is_serving:
                self._start_failed(how)
        self.fill()
        self._employer.gone(worker)

    def _start_failed(self, how: str) -> None:
        wait_s = self._starts.fail(time.monotonic())
        if wait_s and self._refill is None:
            self._refill = asyncio.get_running_loop().call_later(wait_s, self._refill_now)
            self._log.warning("pool.start_failed", how=how, failures=self._starts.failures, wait_s=wait_s)

    def _refill_now(self) -> None:
        self._refill = None
        self.fill()

    def _printed(self, worker: Worker, line: str) -> None:
        run = worker.run
        if run is None:
            self._log.info("worker.printed", pid=worker.pid, line=line)
        else:
            call = run.call
            self._log.info("kernel.printed", task=call.task_id, attempt=call.attempt, kernel=call.kernel, line=line)

    # --- the fork server --------------------------------------------------------------------------------

    async def supervise(self, is_warm: Callable[[], bool]) -> None:
        """Keep a fork server; each turn is the life of one."""
        while True:
            self._tail.clear()
            self._loaded = []
            began = time.monotonic()
            server = self.server = ForkServerProcess(
                self._configuration(), self._limits.blas_threads, report=self._report, printed=self._server_printed
            )
            how = await asyncio.shield(server.ended)
            for worker in list(self.workers.values()):
                worker.exited(f"its fork server ended: {how}")
            if self.is_closing:
                return
            if server.importing is not None:
                self._blame(server.importing, how)
                continue
            self._log.error("forkserver.died", how=how, printed="\n".join(self._tail))
            if time.monotonic() - began >= SERVED_S:
                self._servings.reset()
            wait_s = self._servings.fail(time.monotonic())
            if not is_warm() and self._servings.is_open:
                printed = " | ".join(self._tail)
                self._employer.hopeless(NoWorkers(f"the fork server ended ({how}) and printed: {printed}"))
            await asyncio.sleep(wait_s)

    def _configuration(self) -> Configure:
        modules = [module for module in self._modules if module not in self._excluded]
        return Configure(
            modules,
            self._entry_points,
            sorted(self._excluded),
            str(self._blob_dir),
            self._name,
            self._limits.memory,
            "" if self._made_dir is None else str(self._made_dir),
            None if self._limits.writable is None else [str(path.absolute()) for path in self._limits.writable],
        )

    def _blame(self, module: str, how: str) -> None:
        """Go on without a module that took the fork server with it."""
        self._excluded.add(module)
        printed = f"; it printed: {' | '.join(self._tail)}" if self._tail else ""
        self._add_fault(ModuleFault(module, f"importing it ended the process: {how}{printed}"))

    def _add_fault(self, fault: ModuleFault) -> None:
        self.faults[fault.module] = fault
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
                self.fill()
            case Forked(number, pid) if number in self.workers:
                self.workers[number].pid = pid
            case Exited(number, status) if number in self.workers:
                how = "it could not be forked" if status < 0 else describe_exit(os.waitstatus_to_exitcode(status))
                self.workers[number].exited(how)

    def close(self) -> None:
        """No further workers."""
        self.is_closing = True
        if self._refill is not None:
            self._refill.cancel()

    def reap(self) -> None:
        """Kill what is left, here and now."""
        if self.server is not None:
            self.server.reap()
        for worker in list(self.workers.values()):
            worker.exited("the pool was closed")
