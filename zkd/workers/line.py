"""The daemon's end of the line to one worker: calls out, answers in.

    calls    packets, one a call; the worker takes one when it has answered the one before
    answers  a stream of frames

The daemon keeps the worker's end of `calls` open, too: so it can take back what the worker has not taken, and
the kernel of the operating system gives each packet to exactly one of them. What is neither here nor answered
is what the worker was at: which one that is, only what was taken back can tell.

One call at a time is answered aloud: the loop watches the answers. While several lie ready they are answered
quietly, so that a short kernel costs no wake-up of the daemon each: the loop does not watch the answers then,
and the worker rings (a packet on `calls`, the other way) when it has no further call, or when one says so.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from zkd.workers import frames
from zkd.workers.frames import Frame, FrameReader, LargeHeader

if TYPE_CHECKING:
    import asyncio

RECEIVE_BYTES: Final = 64 * 1024
BELL_BYTES: Final = 16


class Line:
    def __init__(self, loop: asyncio.AbstractEventLoop, *, heard: Callable[[], None], lost: Callable[[], None]) -> None:
        """`heard`: there may be answers to `receive`; `lost`: the worker has closed its end."""
        self._loop = loop
        self._heard = heard
        self._lost = lost
        self._calls, self._untaken = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._answers, self._theirs = socket.socketpair()
        except OSError:
            self._calls.close()
            self._untaken.close()
            raise
        self._frames = FrameReader(frames.HEADER_BYTES_MAX)
        self._unsent = memoryview(b"")  # of a call that is too large for a packet
        self.is_watched = False
        self._calls.setblocking(False)
        self._answers.setblocking(False)
        loop.add_reader(self._calls.fileno(), self._rung)
        self.watch()

    def give_away(self) -> tuple[int, int]:
        """The descriptors for the worker: calls, answers. They are the caller's to close."""
        return os.dup(self._untaken.fileno()), self._theirs.detach()

    # --- out --------------------------------------------------------------------------------------------

    def send(self, frame: bytes, kind: int = frames.CALL) -> bool:
        """Send a call. False if the line has no room for it, or is dead: then nothing of it was sent."""
        try:
            if frames.is_large(frame):
                self._calls.send(frames.encode(frames.LARGE, LargeHeader(len(frame))))
                self._unsent = memoryview(frame)
                self._loop.add_writer(self._answers.fileno(), self._writable)
                self._writable()
            else:
                self._calls.send(frame if kind == frames.CALL else frames.as_kind(frame, kind))
        except OSError:
            return False
        return True

    def _writable(self) -> None:
        try:
            sent = self._answers.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self.deaf()
            self._lost()
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._loop.remove_writer(self._answers.fileno())

    def take_back(self) -> list[bytes]:
        """The calls that the worker has not taken, as they were sent. They are not on the line any more.

        They need not be the last ones that were sent: packets come out in their order, and the worker may take
        one between two of ours.
        """
        taken: list[bytes] = []
        while True:
            try:
                packet = self._untaken.recv(frames.PACKET_BYTES_MAX, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return taken
            if not packet:
                return taken
            taken.append(packet)

    def hang_up(self) -> None:
        """Let the worker end when it has answered what it has taken."""
        self._calls.shutdown(socket.SHUT_WR)

    # --- in ---------------------------------------------------------------------------------------------

    def allow(self, inline_max: int) -> None:
        """Answers with values of this length may come."""
        self._frames.limit = max(self._frames.limit, inline_max + frames.HEADER_BYTES_MAX)

    @property
    def has_part(self) -> bool:
        return self._frames.has_part

    def receive(self) -> list[Frame] | None:
        """The answers that have come; None when no more can come. Raises `BadFrame`."""
        found: list[Frame] = []
        while True:
            try:
                data = self._answers.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return found
            except OSError:
                data = b""
            if not data:
                return found or None
            found += self._frames.feed(data)
            if len(data) < RECEIVE_BYTES:
                if self._frames.has_part and not self.is_watched:
                    self.watch()  # the worker waits for room to send the rest of it, and rings no more
                return found

    def _rung(self) -> None:
        try:
            self._calls.recv(BELL_BYTES)
        except OSError:
            return
        self._heard()

    def watch(self) -> None:
        """Hear of each answer."""
        if not self.is_watched:
            self.is_watched = True
            self._loop.add_reader(self._answers.fileno(), self._heard)

    def unwatch(self) -> None:
        """Hear of answers when the worker rings."""
        if self.is_watched:
            self.is_watched = False
            self._loop.remove_reader(self._answers.fileno())

    # --- end --------------------------------------------------------------------------------------------

    def deaf(self) -> None:
        """Wait for nothing any more: the other end is closed."""
        if self._calls.fileno() < 0:
            return
        self.unwatch()
        self._loop.remove_reader(self._calls.fileno())
        self._loop.remove_writer(self._answers.fileno())

    def close(self) -> None:
        self.deaf()
        for sock in (self._calls, self._untaken, self._answers, self._theirs):
            sock.close()
