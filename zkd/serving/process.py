"""A serving process: it opens models where they lie, and answers batches of requests, one after the other.

    in   start {room, is_spare}, load {model, path, version}, drop {model}, batch {batch, model, asks} + a body each
    out  answers {batch, seconds, outcomes} + a body each

A model's parameters are mapped, not copied: all processes of a node share their memory. What a file is was verified by
the daemon; whether it is what the registry says is looked at here, once.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import Any, Final

import msgspec

from zkd.errors import BadModel, BadRecord
from zkd.models.cards import refuse_another, refuse_unsound
from zkd.models.trained import Trained
from zkd.registry import ModelVersion
from zkd.serving.answering import Ask, Outcome, Served, answers, served
from zkd.training.child import Line, be_child
from zkd.training.frames import Buffer
from zkd.workers.confine import Memory

WORDS_MAX: Final = 2000
SPARE_NICE: Final = 5


class Serving:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._models: dict[str, Served | str] = {}  # or why one cannot be served
        self._limit = Memory()

    def serve(self) -> None:
        while (frame := self._line.receive()) is not None:
            head: Any = frame.head
            if frame.kind == "batch":
                self._answer(head["batch"], head["model"], msgspec.convert(head["asks"], list[Ask]), frame.bodies)
            elif frame.kind == "load":
                self._models[head["model"]] = _opened(head["path"], msgspec.convert(head["version"], ModelVersion))
            elif frame.kind == "drop":
                self._models.pop(head["model"], None)
            else:
                assert frame.kind == "start", frame.kind
                self._limit.allow(head["room"])
                if head["is_spare"]:  # not idle: on a busy machine it would never have an answer
                    os.nice(SPARE_NICE)

    def _answer(self, batch: int, name: str, asks: list[Ask], bodies: tuple[memoryview, ...]) -> None:
        began = time.monotonic()
        model = self._models[name]
        texts: list[bytes] = []
        if isinstance(model, str):
            outcomes = [Outcome(kind="failed", why=model)] * len(asks)
        else:
            try:
                outcomes, texts = answers(model, asks, bodies, began, time.monotonic)
            except MemoryError:
                outcomes = [Outcome(kind="too_large", why="there is no memory for so many rows")] * len(asks)
        sent: list[Buffer] = list(texts) if texts else [b""] * len(asks)
        head = {"batch": batch, "seconds": time.monotonic() - began, "outcomes": outcomes}
        self._line.send("answers", head, *sent)


def _opened(path: str, version: ModelVersion) -> Served | str:
    """The model in this file; or why it cannot be served."""
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(mapped) != version.file.size:
            return f"the model cannot be served: its file has {len(mapped)} bytes, not {version.file.size}"
        trained = Trained.read(memoryview(mapped))
        refuse_another(version, trained)
        refuse_unsound(trained)
    except (OSError, ValueError, BadRecord, BadModel) as error:
        return f"the model cannot be served: {error}"[:WORDS_MAX]
    return served(trained)


if __name__ == "__main__":
    be_child("zkd-serving", lambda line: Serving(line).serve())
