"""A child that counts, as a node's counters do, but over parts that come over its line."""

from __future__ import annotations

from zkd.arrays.tensors import unpack
from zkd.models.answering import Desk
from zkd.training.child import Line, be_child


def serve(line: Line) -> None:
    desk = Desk(memory=1 << 20)
    parts = []
    while (frame := line.receive()) is not None:
        if frame.kind == "data":
            parts = [unpack(body)[0] for body in frame.bodies]
            continue
        question, context = frame.bodies
        desk.told(context)
        for part in frame.head:
            if part not in desk:
                desk.take(part, {name: parts[part][name] for name in desk.columns})
        line.send("answer", None, desk.answer(question, frame.head))


if __name__ == "__main__":
    be_child("zkd-desk", serve)
