"""One worker as the pool sees it: a line, the runs that are on it, and how far its life has gone.

    STARTING ──ready──> IDLE <──start / answer──> BUSY          all three ──kill, end of file──> ENDING ──exit──> GONE

The first run on the line is the one that the worker is at; those behind it are short ones that lie ready. They
are taken back when the first takes long, ends badly or is stopped: whatever happens costs one run and no other.
`start` sends without waiting and the read callback hands a freed worker on at once, so that a call costs
no extra turn of the loop. Only the fork server's word ends a worker for good: by then all
that it sent has been read, so an answer that was given counts even if its process died right after.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import TYPE_CHECKING, Final

from zkd.workers import frames
from zkd.workers.answers import outcome_of
from zkd.workers.call import Cancelled, Died, Outcome, TimedOut
from zkd.workers.frames import BadFrame, decode
from zkd.workers.line import Line
from zkd.workers.output import Output

if TYPE_CHECKING:
    from zkd.workers.run import Run

START_S_MAX: Final = 10.0  # from the fork to the first frame; a fork takes some 10 ms
EXIT_S_MAX: Final = 1.0  # from end of file to the exit
DEATH_S_MAX: Final = 2.0  # from SIGKILL to the exit; longer, and the fork server is stuck


class State(Enum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    ENDING = "ending"
    GONE = "gone"


class Ending(Enum):
    """Why a worker is made to end, as far as the run on it is concerned."""

    DIED = "died"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"
    RETIRED = "retired"


class Worker:
    def __init__(
        self,
        number: int,
        output: int,
        *,
        blob_path: Callable[[int, int], Path],
        grace_s: float,
        send_signal: Callable[[int, Signals], None],
        ready: Callable[[Worker], None],
        answered: Callable[[Worker, Run, Outcome, bool], None],
        freed: Callable[[Worker], None],
        returned: Callable[[Worker, list[Run]], None],
        leaving: Callable[[Worker], None],
        gone: Callable[[Worker, str], None],
        stuck: Callable[[], None],
        printed: Callable[[Worker, str], None],
    ) -> None:
        self.number = number
        self.pid = 0
        self.state = State.STARTING
        self.runs = 0
        self.on_line: deque[Run] = deque()  # the first is what the worker is at
        self._looked_at: Run | None = None
        self._is_receiving = False
        self._is_forged = False  # somebody has answered for another
        self.born = time.monotonic()
        self.private = self.private_at_start = 0
        self.is_due = False  # to be replaced by a fresh one
        self.was_used = False
        self._loop = asyncio.get_running_loop()
        self.line = Line(self._loop, heard=self._heard, lost=self._lost)
        self._blob_path = blob_path
        self._grace_s = grace_s
        self._send_signal = send_signal
        self._ready, self._answered, self._freed, self._returned = ready, answered, freed, returned
        self._leaving, self._gone, self._stuck = leaving, gone, stuck
        self._output = Output(self._loop, output, lambda line: printed(self, line), self._heard)
        self._ending = Ending.DIED
        self._detail = ""
        self._deadline: asyncio.TimerHandle | None = None
        self._escalation: asyncio.TimerHandle | None = self._loop.call_later(START_S_MAX, self._start_timeout)

    @property
    def run(self) -> Run | None:
        """What it is at."""
        return self.on_line[0] if self.on_line else None

    @property
    def ended_by_itself(self) -> bool:
        return self._ending is Ending.DIED

    # --- calls ------------------------------------------------------------------------------------------

    def start(self, run: Run, *, ring: bool = False) -> bool:
        """Send the call. False if that is not possible: then nothing of it has begun.

        Behind another run, or soon after one, it is answered quietly; `ring`: but its answer is to be announced.
        """
        line, is_alone = self.line, not self.on_line
        if frames.is_large(run.frame):
            assert is_alone
            line.watch()
        if is_alone and line.is_watched:
            kind = frames.CALL
        else:
            line.unwatch()
            kind = frames.CALL_AND_RING if ring else frames.CALL_AHEAD
        line.allow(run.call.inline_max)
        if not line.send(run.frame, kind):
            if is_alone:
                self._lost()
            return False
        self.state = State.BUSY
        self.was_used = True
        run.worker = self
        self.on_line.append(run)
        if is_alone:
            self._begin()
        return True

    def _begin(self) -> None:
        """The worker is at the first run on its line now."""
        run = self.on_line[0]
        run.began = time.monotonic()
        self._output.begin_run()
        if run.timeout_s is not None and self.state is State.BUSY:
            self._set_deadline(self._loop.time() + run.timeout_s)

    def look(self) -> bool:
        """Take answers that were not announced. If there are none, listen, and have back what waits behind.

        To be called now and then; False if it need not be any more.
        """
        self._heard()
        run = self.run
        if self.line.is_watched or self.state not in (State.IDLE, State.BUSY):
            return False
        if run is None or run is self._looked_at:
            self._looked_at = None
            self.line.watch()
            self._give_back()
            return False
        self._looked_at = run
        return True

    def withdraw(self, run: Run) -> bool:
        """Take a run off the line that has not begun. False if it has: then it ends by `end`."""
        taken = self._take_back()
        is_there = run in taken
        if is_there:
            taken.remove(run)
        if taken:
            self._returned(self, taken)
        if not is_there:
            self._heard()  # it may have been answered already
        return is_there

    def _take_back(self) -> list[Run]:
        """The runs on the line that the worker has not taken; they are off it now."""
        if self.on_line and frames.is_large(self.on_line[0].frame):
            return []  # it is half on its way
        at = self.run
        taken: list[Run] = []
        for packet in reversed(self.line.take_back()):
            # From the end: of two calls that are alike the worker is at the first.
            run = next(run for run in reversed(self.on_line) if frames.is_same(packet, run.frame))
            self.on_line.remove(run)
            run.worker = None
            taken.append(run)
        taken.reverse()
        if not self.on_line:
            if self.state is State.BUSY:
                self.state = State.IDLE
        elif self.run is not at:
            self._begin()  # what we thought it was at had not begun
        return taken

    def _give_back(self) -> None:
        taken = self._take_back() if len(self.on_line) > 1 or self.state is State.ENDING else []
        if taken:
            self._returned(self, taken)

    def _set_deadline(self, when: float) -> None:
        # A timer that fires early finds out and sets itself anew: runs that follow each other with the same
        # timeout share one timer, where one each would cost more than the hop itself.
        if self._deadline is not None:
            if self._deadline.when() <= when:
                return
            self._deadline.cancel()
        self._deadline = self._loop.call_at(when, self._deadline_passed)

    def _deadline_passed(self) -> None:
        self._deadline = None
        self._heard()  # it may have been answered, and nobody was told
        run = self.run
        if self.state is not State.BUSY or run is None or run.timeout_s is None:
            return
        left = run.timeout_s - (time.monotonic() - run.began)
        if left > 0.001:  # uvloop's clock counts milliseconds
            self._set_deadline(self._loop.time() + left)
        else:
            self.end(Ending.TIMED_OUT)

    # --- frames -----------------------------------------------------------------------------------------

    def _heard(self) -> None:
        self._receive()

    def _receive(self) -> bool:
        """Take what has come; False when nothing more will, or not now."""
        if self._is_receiving or self.state is State.GONE:
            return False
        self._is_receiving = True
        ended: list[tuple[Run, Outcome, bool]] = []
        is_bad = False
        try:
            found = self.line.receive()
            if found is None:
                self._lost()
                return False
            if self.state is State.ENDING:
                return bool(found)  # its run has been decided on
            for kind, header, body in found:
                self._take(kind, header, body, ended)
            if ended and not self.on_line and self.line.has_part:
                raise BadFrame("more bytes after an answer")
        except BadFrame as error:
            self._detail = f"sent something that is no frame: {error}"
            is_bad = True
        finally:
            self._is_receiving = False
        # Only now that nothing follows the answers: the next run must not be given what belongs to these.
        if is_bad:
            self.end(Ending.DIED, at_once=True)
        if ended:
            if self.on_line and not is_bad:
                self._begin()
            elif not is_bad:
                self.state = State.IDLE
            try:
                while ended:
                    self._answered(self, *ended.pop(0))
            finally:
                # A callback that raised is reported by the loop; the others must not suffer for it.
                for run, outcome, has_output in ended:
                    self._loop.call_soon(self._answered, self, run, outcome, has_output)
                if not is_bad:
                    self._freed(self)
        return not is_bad and bool(found)

    def _take(self, kind: int, header: bytes, body: bytes, ended: list[tuple[Run, Outcome, bool]]) -> None:
        if kind == frames.READY and self.state is State.STARTING:
            self._begin_life(decode(frames.ReadyHeader, header))
            return
        if not self.on_line:
            raise BadFrame(f"kind {kind} from a worker that is {self.state.value}")
        run = self.on_line[0]
        if kind == frames.PROGRESS:
            progress = decode(frames.ProgressHeader, header)
            if run.on_progress is not None:
                # In a turn of its own: what it raises is its owner's affair, and must not stop this one.
                self._loop.call_soon(run.on_progress, progress.fraction, progress.note)
            return
        answer, outcome = outcome_of(kind, header, body, lambda: self._blob_path(self.number, self.runs))
        if answer.run != self.runs:
            self._is_forged = True
            raise BadFrame(f"an answer to run {answer.run}, it is at run {self.runs}")
        if answer.has_output:
            self._output.drain()
        self.on_line.popleft()
        run.worker = None
        self.runs += 1
        self.private = answer.private
        ended.append((run, outcome, answer.has_output))

    def _begin_life(self, ready: frames.ReadyHeader) -> None:
        if self._escalation is not None:
            self._escalation.cancel()
            self._escalation = None
        self.private = self.private_at_start = ready.private
        self.state = State.IDLE
        self._ready(self)

    # --- ends -------------------------------------------------------------------------------------------

    def end(self, ending: Ending, *, at_once: bool = False) -> None:
        """Make this worker end: SIGTERM, a grace, SIGKILL; or SIGKILL at once."""
        if self.state in (State.ENDING, State.GONE):
            return
        self._leave(ending)
        self.line.watch()
        if at_once:
            self._kill()
        else:
            self._send_signal(self.number, SIGTERM)
            self._escalation = self._loop.call_later(self._grace_s, self._kill)

    def retire(self) -> None:
        """Let an idle worker go: it ends when it reads the end of its socket."""
        assert self.state is State.IDLE, self.state
        self._leave(Ending.RETIRED)
        self.line.watch()
        self.line.hang_up()
        self._escalation = self._loop.call_later(EXIT_S_MAX, self._kill)

    def exited(self, how: str) -> None:
        """The fork server says that the process has ended (or the pool knows, because the fork server did)."""
        for _ in range(1024):  # an answer may still be in the socket, and counts; a bound, for safety
            if self.state is State.GONE or not self._receive():
                break
        if self.state is not State.GONE:
            if self.state is not State.ENDING:  # it has not closed its end yet, and is as good as dead
                self._leave(Ending.DIED)
            self._finish(how)

    def _leave(self, ending: Ending) -> None:
        self._ending = ending
        if self._escalation is not None:
            self._escalation.cancel()
            self._escalation = None
        self.state = State.ENDING
        self._leaving(self)
        self._give_back()

    def _lost(self) -> None:
        """The line has ended. The exit status follows; if not, the kernel has closed what was not its own."""
        self.line.deaf()
        if self.state is not State.ENDING:
            self._leave(Ending.DIED)
            self._escalation = self._loop.call_later(EXIT_S_MAX, self._closed)

    def _closed(self) -> None:
        self._detail = "closed its own socket"
        self._kill()

    def _start_timeout(self) -> None:
        self._detail = f"not ready {START_S_MAX:g} s after its fork"
        self.end(Ending.DIED, at_once=True)

    def _kill(self) -> None:
        self._send_signal(self.number, SIGKILL)
        self._escalation = self._loop.call_later(DEATH_S_MAX, self._stuck)

    def _finish(self, how: str) -> None:
        how = self._detail or how
        self.state = State.GONE
        for timer in (self._escalation, self._deadline):
            if timer is not None:
                timer.cancel()
        taken = self._take_back()
        self.line.close()
        self._output.close()
        if self.on_line and not self._is_forged:
            run = self.on_line.popleft()
            run.worker = None
            self._answered(self, run, self._verdict(run, how), False)
            for suffix in (".tmp", ".npy", ".json"):  # of a result that is nobody's now
                self._blob_path(self.number, self.runs).with_suffix(suffix).unlink(missing_ok=True)
        for run in self.on_line:  # who is to blame has been answered
            run.worker = None
        taken[:0] = self.on_line
        self.on_line.clear()
        if taken:
            self._returned(self, taken)
        self._gone(self, how)

    def _verdict(self, run: Run, how: str) -> Outcome:
        run_s = time.monotonic() - run.began
        if self._ending is Ending.TIMED_OUT and run.timeout_s is not None:
            return TimedOut(run.timeout_s)
        if self._ending is Ending.CANCELLED:
            return Cancelled(run_s)
        return Died(how, run_s)
