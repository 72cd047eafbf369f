"""The daemon's end of the line to a child process that computes: a brain or a counter.

    async with Process("zkd.training.brain") as brain:
        brain.send("start", {...}, checkpoint)
        frame = await brain.receive()            # Frame(kind, head, bodies); raises ProcessEnded when it is no more

The child is a Python of its own (`python -P -m MODULE FD PARENT`, see `zkd.training.child`), started with exec, its
BLAS with one thread if nobody says otherwise; it dies with this process. Its end is known by its pidfd, not by SIGCHLD,
which belongs to the program that this is part of. Nothing here blocks the loop for longer than a start takes, some
milliseconds, and nothing here imports numpy.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from zkd.errors import ZkdError
from zkd.training.child import PIECES_MAX, unsent
from zkd.training.frames import BadFrame, Buffer, Frame, FrameReader, encode
from zkd.workers.output import Output
from zkd.workers.server import describe_exit, worker_environment

EXIT_S_MAX: Final = 1.0  # from the end of its line to its exit
FRAMES_AHEAD_MAX: Final = 16  # that nobody has taken; then no more are read
READS_A_TURN_MAX: Final = 16  # of the loop, each of at most what a socket holds, some 200 kB
LAST_LINES: Final = 5  # of what it printed, told with its end


class ProcessEnded(ZkdError):
    """The child is no more, or is about to be killed. The message says how it ended and what it printed last."""


class Process:
    """A child process that talks frames. To be made in a running loop; `close` it, or use it in `async with`.

    `module` is what it runs. `printed` gets each line that it writes to stdout or stderr. `ended` is a future of the
    sentence that says how it ended; awaiting it directly is fine, cancelling it is not: shield it.
    """

    def __init__(
        self, module: str, *, printed: Callable[[str], None] = lambda line: None, blas_threads: int = 1
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._printed = printed
        self.ended: asyncio.Future[str] = loop.create_future()
        ours, theirs = socket.socketpair()
        printed_fd, print_fd = os.pipe2(os.O_CLOEXEC)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())],
                    env=worker_environment(os.environ, blas_threads),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=print_fd,
                    stderr=print_fd,
                )
        except OSError:
            ours.close()
            os.close(printed_fd)
            raise
        finally:
            os.close(print_fd)
        self.pid = self._process.pid
        self._sock = ours
        ours.setblocking(False)
        self._reader = FrameReader()
        self._frames: deque[Frame] = deque()
        self._arrived: asyncio.Future[None] | None = None
        self._is_reading = False
        self._is_heard = True  # until its end of the line is closed, or has said what is no frame
        self._unsent: list[memoryview] = []
        self._all_sent: asyncio.Future[None] | None = None
        self._asking = asyncio.Lock()
        self._unclaimed = 0  # answers to questions whose asker has gone
        self._killed_for = ""
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._exit_timer: asyncio.TimerHandle | None = None
        self._output = Output(loop, printed_fd, self._take_line)
        self._pidfd = os.pidfd_open(self.pid)
        loop.add_reader(self._pidfd, self._exited)
        self._read_on()

    @property
    def is_alive(self) -> bool:
        """Whether it can be sent something; what it has sent before its end can be received all the same."""
        return self._is_heard and not self.ended.done()

    # --- frames ---------------------------------------------------------------------------------------

    def send(self, kind: str, head: Any = None, *bodies: Buffer) -> None:
        """Send a frame; returns at once. `head` is any JSON value. Bodies are not copied: leave them as they are until
        `flushed`. Raises `ProcessEnded`."""
        if not self.is_alive:
            raise self._end()
        self._unsent += [memoryview(piece).cast("B") for piece in encode(kind, head, *bodies)]
        if self._all_sent is None:
            self._all_sent = self._loop.create_future()
            self._flush()

    async def flushed(self) -> None:
        """Returns when all that was sent is in the child's socket, or the child is no more. Bounded by its life."""
        if self._all_sent is not None:
            await asyncio.shield(self._all_sent)

    async def receive(self) -> Frame:
        """The next frame, in the order sent. One caller at a time. Raises `ProcessEnded` when no more can come.

        Has no bound: how long an answer may take is for the caller to know. Cancelling it loses no frame.
        """
        while not self._frames:
            if not self._is_heard and self.ended.done():
                raise self._end()
            assert self._arrived is None, "two receive from one process"
            self._arrived = self._loop.create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None
        frame = self._frames.popleft()
        self._read_on()
        return frame

    async def ask(self, kind: str, head: Any = None, *bodies: Buffer) -> Frame:
        """One frame out, one frame in; several callers take turns. Not to be mixed with `receive`.

        Raises `ProcessEnded`. Cancelling it does not stop the child: its answer is dropped when it comes, and the next
        question waits until then. Has no bound, as `receive`.
        """
        async with self._asking:
            self.send(kind, head, *bodies)
            self._unclaimed += 1
            while True:
                frame = await self.receive()
                self._unclaimed -= 1
                if self._unclaimed == 0:
                    return frame

    # --- end ------------------------------------------------------------------------------------------

    def kill(self, why: str) -> None:
        """SIGKILL; `ended` follows, with this sentence."""
        if self._process.returncode is None:
            self._killed_for = self._killed_for or why
            self._process.kill()

    async def close(self) -> None:
        """Let it end by itself, within a second, or kill it. It is gone when this returns; may be called twice."""
        if not self.ended.done():
            with suppress(OSError):  # the child has closed it already
                self._sock.shutdown(socket.SHUT_RDWR)
            self._hang_up()
            await asyncio.shield(self.ended)  # bounded by the timer that `_hang_up` has set

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _end(self) -> ProcessEnded:
        told = self.ended.result() if self.ended.done() else self._killed_for or "it has closed its line"
        said = " | ".join(self._last_lines)
        return ProcessEnded(f"{told}{f'; it printed: {said}' if said else ''}")

    # --- what the loop calls --------------------------------------------------------------------------

    def _read_on(self) -> None:
        if not self._is_reading and self._is_heard and len(self._frames) < FRAMES_AHEAD_MAX:
            self._is_reading = True
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def _readable(self) -> None:
        for _ in range(READS_A_TURN_MAX):
            if not self._read():
                break
        if len(self._frames) >= FRAMES_AHEAD_MAX and self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._sock.fileno())
        self._wake()

    def _read(self) -> bool:
        """Whether there may be more to read now."""
        try:
            count = self._sock.recv_into(self._reader.room())
        except BlockingIOError:
            return False
        except OSError:
            count = 0
        if count == 0:
            self._hang_up()
            return False
        try:
            frame = self._reader.took(count)
        except BadFrame as error:
            self.kill(f"it sent {error}")
            self._hang_up()
            return False
        if frame is not None:
            self._frames.append(frame)
            self._output.begin_run()
        return True

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done() and (self._frames or self.ended.done()):
            self._arrived.set_result(None)

    def _flush(self) -> None:
        assert self._all_sent is not None
        while self._unsent:
            try:
                sent = self._sock.sendmsg(self._unsent[:PIECES_MAX])
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError:  # it has died; `ended` says so
                self._unsent = []
                break
            self._unsent = unsent(self._unsent, sent)
        self._loop.remove_writer(self._sock.fileno())
        self._all_sent.set_result(None)
        self._all_sent = None

    def _hang_up(self) -> None:
        """Nothing more is read or written. Its exit follows, or it is killed."""
        if self._is_reading:
            self._loop.remove_reader(self._sock.fileno())
        self._is_heard = self._is_reading = False
        if self._exit_timer is None:
            self._exit_timer = self._loop.call_later(EXIT_S_MAX, self.kill, "it did not end when its line did")

    def _exited(self) -> None:
        status = self._process.wait()  # it has ended: this does not block
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        while self._is_heard and self._read():  # its last frames: what a socket holds, and nobody fills it any more
            pass
        self._hang_up()
        if self._exit_timer is not None:
            self._exit_timer.cancel()
        if self._all_sent is not None:
            self._unsent = []
            self._flush()
        self._sock.close()
        self._output.close()
        self.ended.set_result(self._killed_for or describe_exit(status))
        self._wake()

    def _take_line(self, line: str) -> None:
        self._last_lines.append(line[:500])
        self._printed(line)
