"""A child that does what it is told, and things that no child should."""

from __future__ import annotations

import os
import sys
import time

from zkd.training.child import Line, be_child


def serve(line: Line) -> None:
    while (frame := line.receive()) is not None:
        match frame.kind:
            case "echo":
                line.send("echoed", frame.head, *frame.bodies)
            case "sleep":
                time.sleep(frame.head)
                line.send("slept", frame.head)
            case "print":
                print(frame.head, flush=True)
                line.send("printed")
            case "raise":
                raise ValueError(frame.head)
            case "exit":
                for number in range(frame.head):
                    line.send("last words", number)
                sys.exit(7)
            case "raw":
                os.write(line._sock.fileno(), bytes(frame.bodies[0]))
            case "stay":
                time.sleep(60)
            case "many":
                for number in range(frame.head):
                    line.send("one", number, bytes(1000))
            case "peek":
                waits = line.is_waiting(frame.head)
                line.send("peeked", waits)


if __name__ == "__main__":
    be_child("zkd-parrot", serve)
