"""What a process of ours prints, line by line, as long as it prints with measure.

A pipe that nobody reads would stop the kernel that prints into it, and reading as fast as one can print
would stop the daemon. So beyond a run's budget lines are dropped, and the pipe is read slowly.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

BUDGET_BYTES: Final = 64 * 1024  # of one run
LINE_BYTES_MAX: Final = 4 * 1024
READ_BYTES: Final = 64 * 1024  # what a pipe holds
DRAIN_READS_MAX: Final = 4  # a grandchild may go on printing
PAUSE_S: Final = 0.01  # between reads when over budget: 6 MB/s at most, for a tenth of a percent of a core


class Output:
    """The reading end of a pipe that is some process's stdout and stderr."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        emit: Callable[[str], None],
        before: Callable[[], object] = lambda: None,
    ) -> None:
        """`before` is called before what has been printed is read, to find out by whom."""
        self._before = before
        self._loop = loop
        self._fd = fd
        self._emit = emit
        self._line = b""
        self._left = BUDGET_BYTES
        self._pause: asyncio.TimerHandle | None = None
        os.set_blocking(fd, False)
        loop.add_reader(fd, self._readable)

    def begin_run(self) -> None:
        self._left = BUDGET_BYTES

    def drain(self) -> None:
        """Take what is in the pipe now: all that a run has printed, when its result has come."""
        for _ in range(DRAIN_READS_MAX):
            if self._fd < 0 or self._read() < READ_BYTES:
                break
        if self._line:
            self._emit_line(self._line)
            self._line = b""

    def close(self) -> None:
        self.drain()
        if self._fd >= 0:
            self._stop()

    def _readable(self) -> None:
        self._before()
        if self._fd < 0:
            return
        self._read()
        if self._left <= 0 and self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._pause = self._loop.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._fd, self._readable)

    def _read(self) -> int:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self._stop()
            return 0
        if self._left > 0:
            self._take(data)
        return len(data)

    def _take(self, data: bytes) -> None:
        kept = data[: self._left]
        self._left -= len(data)
        *lines, self._line = (self._line + kept).split(b"\n")
        for line in lines:
            self._emit_line(line)
        if len(self._line) > LINE_BYTES_MAX:
            self._emit_line(self._line)
            self._line = b""
        if self._left <= 0:
            self._emit_line(self._line)
            self._line = b""
            self._emit(f"(more than {BUDGET_BYTES} bytes printed, the rest is dropped)")

    def _emit_line(self, line: bytes) -> None:
        for at in range(0, len(line), LINE_BYTES_MAX):
            self._emit(line[at : at + LINE_BYTES_MAX].decode(errors="backslashreplace"))

    def _stop(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
