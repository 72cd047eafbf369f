"""A brain that never comes back from its tenth answers, unless it goes on from a checkpoint."""

from __future__ import annotations

from typing import Any

from zkd.training.brain import serve
from zkd.training.child import Line, be_child
from zkd.training.frames import Frame

SPINS_AT = 10


class Spinning:
    def __init__(self, line: Line) -> None:
        self.line = line
        self.answers = 0
        self.is_first = False

    def receive(self) -> Frame | None:
        frame = self.line.receive()
        if frame is not None:
            self.is_first |= frame.kind == "start" and not frame.bodies
            self.answers += frame.kind == "answers"
        while self.is_first and self.answers == SPINS_AT:
            pass
        return frame

    def send(self, *said: Any) -> None:
        self.line.send(*said)


if __name__ == "__main__":
    be_child("zkd-brain", lambda line: serve(Spinning(line)))  # type: ignore[arg-type]
