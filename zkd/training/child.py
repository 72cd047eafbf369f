"""The child's end of the line to its daemon: one thread, one socket, frames in and out, nothing that waits for ever
but the daemon's next word.

    def serve(line: Line) -> None: ...
    if __name__ == "__main__":
        be_child("zkd-brain", serve)

It dies with its parent, and ends by itself when the parent closes the line. A frame that is none ends it, too, with a
line in the log: what comes after such a frame means nothing.
"""

from __future__ import annotations

import faulthandler
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from zkd.training.frames import BadFrame, Buffer, Frame, FrameReader, encode
from zkd.workers.confine import confine, die_with_parent, name_process

BAD_FRAME_STATUS: Final = 3  # of a child that did not understand its parent
PIECES_MAX: Final = 512  # in one call to the kernel, which takes 1,024


class Line:
    """The child's end. Blocks; no call has a bound but the parent's own life."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader()

    def receive(self) -> Frame | None:
        """The next frame; None when the parent has closed the line. Raises `BadFrame`."""
        while True:
            count = self._sock.recv_into(self._reader.room())
            if count == 0:
                if self._reader.has_part:
                    raise BadFrame("the line was closed in the middle of a frame")
                return None
            frame = self._reader.took(count)
            if frame is not None:
                return frame

    def is_waiting(self, timeout_s: float = 0.0) -> bool:
        """Whether something has come, or the line was closed, so that `receive` would not block for long."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000.0))

    def send(self, kind: str, head: Any = None, *bodies: Buffer) -> None:
        """Returns when the parent's socket has taken it. Raises `OSError` where there is no parent any more."""
        pieces = [memoryview(piece).cast("B") for piece in encode(kind, head, *bodies)]
        while pieces:
            sent = self._sock.sendmsg(pieces[:PIECES_MAX])
            pieces = unsent(pieces, sent)


def unsent(pieces: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of pieces, none of them empty, when so many bytes went out."""
    for index, piece in enumerate(pieces):
        if sent < len(piece):
            return [piece[sent:], *pieces[index + 1 :]]
        sent -= len(piece)
    return []


def be_child(name: str, serve: Callable[[Line], None]) -> None:
    """Be the process that `zkd.training.process.Process` has started, until `serve` returns."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    name_process(name)
    confine()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which drains
    faulthandler.enable()
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    try:
        serve(Line(sock))
    except BadFrame as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        sys.exit(BAD_FRAME_STATUS)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the daemon has closed the line: nobody is left to tell
