"""One worker as the pool sees it: a socket, what is in flight on it, and how far its life has gone.

    STARTING ──ready──> IDLE <──start / answer──> BUSY          all three ──kill, end of file──> ENDING ──exit──> GONE

`start` sends without waiting and the read callback hands a freed worker on at once, so that a call costs
one future and no extra turn of the loop. Only the fork server's word ends a worker for good: by then all
that it sent has been read, so an answer that was given counts even if its process died right after.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import TYPE_CHECKING, Final

from zkd.workers import frames
from zkd.workers.call import BlobFile, Cancelled, Died, Failed, Finished, Outcome, Rejected, TimedOut
from zkd.workers.frames import BadFrame, FrameReader, decode
from zkd.workers.output import Output

if TYPE_CHECKING:
    from zkd.workers.run import Run

if TYPE_CHECKING:
    pass

RECEIVE_BYTES: Final = 64 * 1024
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
        sock: socket.socket,
        output: int,
        *,
        blob_path: Callable[[int, int], Path],
        grace_s: float,
        send_signal: Callable[[int, Signals], None],
        ready: Callable[[Worker], None],
        freed: Callable[[Worker], None],
        leaving: Callable[[Worker], None],
        gone: Callable[[Worker, str], None],
        stuck: Callable[[], None],
        printed: Callable[[Worker, str], None],
    ) -> None:
        self.number = number
        self.pid = 0
        self.state = State.STARTING
        self.run: Run | None = None
        self.runs = 0
        self.born = time.monotonic()
        self.private = self.private_at_start = 0
        self.is_due = False  # to be replaced by a fresh one
        self.was_used = False
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._blob_path = blob_path
        self._grace_s = grace_s
        self._send_signal = send_signal
        self._ready, self._freed, self._leaving, self._gone, self._stuck = ready, freed, leaving, gone, stuck
        self._output = Output(self._loop, output, lambda line: printed(self, line))
        self._frames = FrameReader(frames.HEADER_BYTES_MAX)
        self._unsent = memoryview(b"")
        self._ending = Ending.DIED
        self._detail = ""
        self._deadline: asyncio.TimerHandle | None = None
        self._escalation: asyncio.TimerHandle | None = self._loop.call_later(START_S_MAX, self._start_timeout)
        sock.setblocking(False)
        self._loop.add_reader(self._fd, self._readable)

    @property
    def ended_by_itself(self) -> bool:
        return self._ending is Ending.DIED

    # --- calls ------------------------------------------------------------------------------------------

    def start(self, run: Run) -> bool:
        """Send the call. False if the worker turns out to be dead: then nothing of it has begun."""
        try:
            sent = self._sock.send(run.frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lost()
            return False
        if sent < len(run.frame):
            self._unsent = memoryview(run.frame)[sent:]
            self._loop.add_writer(self._fd, self._writable)
        self.state = State.BUSY
        self.was_used = True
        self.run = run
        run.worker = self
        run.began = time.monotonic()
        self._frames.limit = run.call.inline_max + frames.HEADER_BYTES_MAX
        self._output.begin_run()
        if run.timeout_s is not None:
            self._set_deadline(self._loop.time() + run.timeout_s)
        return True

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self._lost()
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._loop.remove_writer(self._fd)

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
        run = self.run
        if self.state is not State.BUSY or run is None or run.timeout_s is None:
            return
        left = run.timeout_s - (time.monotonic() - run.began)
        if left > 0.001:  # uvloop's clock counts milliseconds
            self._set_deadline(self._loop.time() + left)
        else:
            self.end(Ending.TIMED_OUT)

    # --- frames -----------------------------------------------------------------------------------------

    def _readable(self) -> None:
        self._receive()

    def _receive(self) -> bool:
        """Take what has come; False when nothing more will, or not now."""
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._lost()
            return False
        if self.state is State.ENDING:
            return True  # its run has been decided on
        run = self.run
        try:
            for kind, header, body in self._frames.feed(data):
                self._take(kind, header, body)
            if run is not None and self.run is None and self._frames.has_part:
                raise BadFrame("more bytes after an answer")
        except BadFrame as error:
            self._detail = f"sent something that is no frame: {error}"
            self.end(Ending.DIED, at_once=True)
            return False
        if run is not None and self.run is None:
            # Only now that nothing follows the answer: the next run must not be given what belongs to this one.
            self._freed(self)
        return True

    def _take(self, kind: int, header: bytes, body: bytes) -> None:
        run = self.run
        if run is None:
            if kind != frames.READY or self.state is not State.STARTING:
                raise BadFrame(f"kind {kind} from a worker that is {self.state.value}")
            self._begin_life(decode(frames.ReadyHeader, header))
            return
        outcome: Outcome
        if kind == frames.VALUE:
            value = decode(frames.ValueHeader, header)
            outcome = Finished(body, None, value.run_s)
            self._free(run, outcome, value.private, value.has_output)
        elif kind == frames.PROGRESS:
            progress = decode(frames.ProgressHeader, header)
            if run.on_progress is not None:
                # In a turn of its own: what it raises is its owner's affair, and must not stop this one.
                self._loop.call_soon(run.on_progress, progress.fraction, progress.note)
        elif kind == frames.BLOB:
            blob = decode(frames.BlobHeader, header)
            path = self._blob_path(self.number, self.runs).with_suffix(f".{blob.format}")
            outcome = Finished(None, BlobFile(path, blob.sha256, blob.size, blob.format), blob.run_s)
            self._free(run, outcome, blob.private, blob.has_output)
        elif kind == frames.FAILED:
            failed = decode(frames.FailedHeader, header)
            outcome = Failed(failed.kind, failed.message, failed.traceback, failed.run_s)
            self._free(run, outcome, failed.private, failed.has_output)
        elif kind == frames.REJECTED:
            rejected = decode(frames.RejectedHeader, header)
            outcome = Rejected(rejected.path, rejected.message)
            self._free(run, outcome, rejected.private, rejected.has_output)
        else:
            raise BadFrame(f"kind {kind} from a worker that is busy")

    def _begin_life(self, ready: frames.ReadyHeader) -> None:
        if self._escalation is not None:
            self._escalation.cancel()
            self._escalation = None
        self.private = self.private_at_start = ready.private
        self.state = State.IDLE
        self._ready(self)

    def _free(self, run: Run, outcome: Outcome, private: int, has_output: bool) -> None:
        if has_output:
            self._output.drain()
        self.run = run.worker = None
        self.state = State.IDLE
        self.runs += 1
        self.private = private
        run.end(outcome)

    # --- ends -------------------------------------------------------------------------------------------

    def end(self, ending: Ending, *, at_once: bool = False) -> None:
        """Make this worker end: SIGTERM, a grace, SIGKILL; or SIGKILL at once."""
        if self.state in (State.ENDING, State.GONE):
            return
        self._leave(ending)
        if at_once:
            self._kill()
        else:
            self._send_signal(self.number, SIGTERM)
            self._escalation = self._loop.call_later(self._grace_s, self._kill)

    def retire(self) -> None:
        """Let an idle worker go: it ends when it reads the end of its socket."""
        assert self.state is State.IDLE, self.state
        self._leave(Ending.RETIRED)
        self._sock.shutdown(socket.SHUT_WR)
        self._escalation = self._loop.call_later(EXIT_S_MAX, self._kill)

    def exited(self, how: str) -> None:
        """The fork server says that the process has ended (or the pool knows, because the fork server did)."""
        for _ in range(1024):  # an answer may still be in the socket, and counts; a bound, for safety
            if self.state is State.GONE or not self._receive():
                break
        if self.state is not State.GONE:
            self._finish(how)

    def _leave(self, ending: Ending) -> None:
        self._ending = ending
        if self._escalation is not None:
            self._escalation.cancel()
            self._escalation = None
        self.state = State.ENDING
        self._leaving(self)

    def _lost(self) -> None:
        """The socket has ended. The exit status follows; if not, the kernel has closed what was not its own."""
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
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
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._sock.close()
        self._output.close()
        run, self.run = self.run, None
        if run is not None:
            run.worker = None
            run.end(self._verdict(run, how))
            for suffix in (".tmp", ".npy", ".json"):  # of a result that is nobody's now
                self._blob_path(self.number, self.runs).with_suffix(suffix).unlink(missing_ok=True)
        self._gone(self, how)

    def _verdict(self, run: Run, how: str) -> Outcome:
        run_s = time.monotonic() - run.began
        if self._ending is Ending.TIMED_OUT and run.timeout_s is not None:
            return TimedOut(run.timeout_s)
        if self._ending is Ending.CANCELLED:
            return Cancelled(run_s)
        return Died(how, run_s)
