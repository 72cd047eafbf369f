"""A worker: takes one call after the other from its socket, runs it, answers.

Where calls lie ready one behind the other, the daemon is not woken for each answer: the bell is rung when
there is no further call, or when a call says so (`zkd.workers.line` has the other end).

This is the one place where `except Exception` stands: whatever a kernel raises becomes an outcome and the
worker lives on. What is no `Exception` (sys.exit, KeyboardInterrupt) and what no Python sees (abort, a
segmentation fault, the OOM killer) ends the process; the pool learns it from the fork server.
"""

from __future__ import annotations

import faulthandler
import fcntl
import math
import os
import signal
import socket
import sys
import termios
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from zkd.errors import BadRecord, DataDamaged
from zkd.kernels.current import CurrentTask, running
from zkd.kernels.registry import Registry
from zkd.workers import engine, frames
from zkd.workers.call import blob_name
from zkd.workers.confine import Memory, confine, die_with_parent, name_process
from zkd.workers.control import Configure
from zkd.workers.frames import (
    CallHeader,
    FailedHeader,
    FrameReader,
    LackingHeader,
    ProgressHeader,
    ReadyHeader,
    RejectedHeader,
)
from zkd.workers.sandbox import shut_in

RECEIVE_BYTES: Final = 64 * 1024
MESSAGE_CHARS_MAX: Final = 4_000
TRACEBACK_CHARS_MAX: Final = 16_000
KIND_CHARS_MAX: Final = 200
REPORT_INTERVAL_S: Final = 0.1  # people watch progress; more often would only cost the daemon
LOOK_S: Final = 0.001  # a shorter run leaves little memory behind; it is looked at only
LOOK_EACH: Final = 16  # every so many runs
UNRUNG_BYTES_MAX: Final = 64 * 1024  # answers that may lie in the socket unannounced: its buffer holds more
READ_MAX_S: Final = 0.5  # for the daemon to read what a run has printed
BELL: Final = b"!"
NOTHING: Final = bytes(4)  # in the pipe, as the kernel counts it


def run_worker(
    number: int,
    line: tuple[socket.socket, socket.socket],
    output: int,
    registry: Registry,
    configure: Configure,
    *,
    parent: int,
) -> NoReturn:
    """Be a worker until its line ends. Never returns: a forked process must not run its parent's code."""
    status = 1
    try:
        _settle(output, parent)
        if configure.writable is not None:
            own = [configure.blob_dir, *([configure.made_dir] if configure.made_dir else [])]
            shut_in([Path(path) for path in (*own, *configure.writable)])
        Worker(number, *line, registry, configure).serve()
        status = 0
    except SystemExit as error:
        status = _exit_status(error)
    except BaseException:
        traceback.print_exc()
    finally:
        # Not the interpreter's own end: it would wait for threads that a kernel has left behind.
        with suppress(Exception):  # a kernel may have closed them
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _settle(output: int, parent: int) -> None:
    name_process("zkd-worker")
    die_with_parent(parent)
    confine()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which drains
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    faulthandler.enable()  # a segmentation fault prints the kernel's stack, which the pool logs
    engine.reseed()


def _exit_status(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


class Worker:
    def __init__(
        self,
        number: int,
        calls: socket.socket,
        answers: socket.socket,
        registry: Registry,
        configure: Configure,
    ) -> None:
        self._number = number
        self._calls = calls
        self._answers = answers
        self._registry = registry
        self._blob_dir = Path(configure.blob_dir)
        self._made_dir = Path(configure.made_dir) if configure.made_dir else None
        self._pool = configure.pool
        self._default_memory = configure.memory
        self._memory = Memory()
        self._private = 0
        self._frames = FrameReader(frames.FRAME_BYTES_MAX)
        self._pending = bytearray(4)
        self._runs = 0
        self._is_running = False
        self._sending = threading.Lock()  # a kernel's threads may report while its own thread answers
        self._reported = 0.0
        self._unrung = 0  # bytes of answers that the daemon has not been told of

    def serve(self) -> None:
        pid = os.getpid()
        self._private = self._memory.private()
        self._answers.sendall(frames.encode(frames.READY, ReadyHeader(pid, self._private)))
        while (frame := self._next_call()) is not None:
            kind, header, body = frame
            answer = self._run(frames.decode(CallHeader, header), body)
            if os.getpid() != pid:
                os._exit(0)  # a kernel has forked and let its child return: one answer is enough
            signal.alarm(0)  # one that a kernel has left behind would end the next one's process
            self._runs += 1
            self._answer(answer, kind)

    def _next_call(self) -> frames.Frame | None:
        packet = None
        if self._unrung:
            try:
                packet = self._calls.recv(frames.PACKET_BYTES_MAX, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._ring()
        if packet is None:
            packet = self._calls.recv(frames.PACKET_BYTES_MAX)
        if not packet:
            return None
        (frame,) = self._frames.feed(packet)
        while frame[0] == frames.LARGE:
            data = self._answers.recv(RECEIVE_BYTES)
            if not data:
                return None
            for found in self._frames.feed(data):
                frame = found
        return frame

    def _answer(self, answer: bytes, kind: int) -> None:
        if self._unrung + len(answer) > UNRUNG_BYTES_MAX:
            self._ring()  # before it is sent: the socket may not hold it until it is read
        self._answers.sendall(answer)
        if kind == frames.CALL:
            return  # somebody listens
        self._unrung += len(answer)
        if kind == frames.CALL_AND_RING:
            self._ring()

    def _ring(self) -> None:
        self._unrung = 0
        with suppress(BlockingIOError):  # so often that nobody can have missed it
            self._calls.send(BELL, socket.MSG_DONTWAIT)

    def _run(self, call: CallHeader, body: bytes) -> bytes:
        """The frame that answers this call."""
        limit = call.memory or self._default_memory
        run = self._runs
        numbers = engine.numbers(call)
        task = CurrentTask(call.task_id, call.attempt, call.fence, lambda *said: self._report(run, *said), numbers)
        self._is_running = True
        self._reported = -REPORT_INTERVAL_S
        began = time.perf_counter()
        try:
            if limit is not None:
                self._memory.allow(limit)
            try:
                given = engine.given(call)
            except DataDamaged as error:
                self._after(limit)
                lacking = LackingHeader(run, self._memory.private(), self._has_output(), _cut(_plain(str(error))))
                return frames.encode(frames.LACKING, lacking)
            with running(task):
                result = engine.run(self._registry, call, body, self._blob_path, given, self._made_dir)
        except BadRecord as error:
            self._after(limit)
            private, has_output = self._memory.private(), self._has_output()
            header = RejectedHeader(run, private, has_output, error.where, _cut(_plain(error.expected)))
            return frames.encode(frames.REJECTED, header)
        except Exception as error:
            self._after(limit)
            return self._failed(error, time.perf_counter() - began, limit)
        self._after(limit)
        run_s, has_output = time.perf_counter() - began, self._has_output()
        if run_s > LOOK_S or run % LOOK_EACH == 0:
            self._private = self._memory.private()
        if isinstance(result, bytes):
            return frames.encode(frames.VALUE, frames.ValueHeader(run, run_s, self._private, has_output), result)
        return frames.encode(frames.BLOB, frames.BlobHeader(run, run_s, self._private, has_output, *result))

    def _blob_path(self) -> Path:
        return self._blob_dir / blob_name(self._pool, self._number, self._runs)

    def _after(self, limit: int | None) -> None:
        with self._sending:
            self._is_running = False
        if limit is not None:
            self._memory.allow_all()  # or the report of a run that hit its limit would hit it, too

    def _failed(self, error: Exception, run_s: float, limit: int | None) -> bytes:
        # numpy raises a private subclass, whose name would mean nothing to a policy that looks for MemoryError.
        kind = "MemoryError" if isinstance(error, MemoryError) else type(error).__name__
        message, stack = _describe(error)
        if isinstance(error, MemoryError) and limit is not None:  # Python's own has no words, numpy's not the reason
            message = f"{message or 'out of memory'} (this attempt may allocate {limit} bytes)"
        traceback.clear_frames(error.__traceback__)  # what the kernel had allocated goes before the next call
        private, has_output = self._memory.private(), self._has_output()
        header = FailedHeader(self._runs, run_s, private, has_output, kind[:KIND_CHARS_MAX], message, stack)
        return frames.encode(frames.FAILED, header)

    def _has_output(self) -> bool:
        """Whether something printed, by Python or by C, has not been read by the pool yet.

        It is waited for, as a further run may lie ready: what is printed belongs to the run that goes on, and the
        pool, which listens, knows no other way to tell whose it is.
        """
        until = time.monotonic() + READ_MAX_S
        while True:
            fcntl.ioctl(1, termios.FIONREAD, self._pending)
            if self._pending == NOTHING:
                return False
            if time.monotonic() >= until:
                return True
            time.sleep(0.0002)

    def _report(self, run: int, fraction: float | None, note: str | None) -> None:
        now = time.monotonic()
        is_last = fraction == 1.0 and self._reported != math.inf
        if now - self._reported < REPORT_INTERVAL_S and not is_last:
            return
        frame = frames.encode(frames.PROGRESS, ProgressHeader(fraction, None if note is None else _plain(note)))
        with self._sending:
            if self._is_running and run == self._runs:  # else a thread that its run has left behind
                self._reported = math.inf if is_last else now
                self._answers.sendall(frame)
                with suppress(BlockingIOError):
                    self._calls.send(BELL, socket.MSG_DONTWAIT)


def _describe(error: Exception) -> tuple[str, str]:
    try:
        message = str(error)
    except Exception as second:  # the exception is the kernel's own class, and so is its __str__
        message = f"(its message cannot be shown: {type(second).__name__})"
    return _cut(_plain(message)), _middle_out(_plain("".join(_stack(error))), TRACEBACK_CHARS_MAX)


def _stack(error: Exception) -> Sequence[str]:
    """The stack as the kernel's author knows it: from the first frame that is not zkd's own."""
    frame = error.__traceback__
    while frame is not None and _is_ours(frame.tb_frame.f_code.co_filename) and frame.tb_next is not None:
        frame = frame.tb_next
    try:
        return traceback.format_exception(type(error), error, frame)
    except Exception as second:
        return [f"(its traceback cannot be shown: {type(second).__name__})"]


def _is_ours(filename: str) -> bool:
    return filename == __file__ or engine.is_ours(filename)


def _plain(text: str) -> str:
    """`text` as something that UTF-8 can carry."""
    return text.encode("utf-8", "backslashreplace").decode()


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARS_MAX else f"{text[:MESSAGE_CHARS_MAX]} … ({len(text)} characters)"


def _middle_out(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most // 4]}\n  … {len(text) - most} characters left out …\n{text[-3 * most // 4 :]}"
