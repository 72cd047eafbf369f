"""What all submitters have in common: what to drop next, where to write it down, when to stop.

SIGTERM means: drop nothing more, wait for what is out, end. A submitter tells how far it is in a small file that is
replaced whole.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.chaos import work
from tests.chaos.history import Journal, Mode, Submit

TELL_S = 0.25
HANDFUL = 10


class Progress(msgspec.Struct):
    """How far a submitter is; `is_through`: it will drop nothing more."""

    dropped: int = 0
    ended: int = 0
    is_through: bool = False


@dataclass(frozen=True)
class Order:
    """What the command line of a submitter says."""

    name: str
    hosts: str
    root: str
    directory: Path
    seed: int
    window: int
    timeout_s: float

    @classmethod
    def parse(cls, argv: list[str]) -> Order:
        return msgspec.convert(msgspec.json.decode(argv[1]), cls, dec_hook=lambda kind, value: kind(value))

    def text(self) -> str:
        return msgspec.json.encode(self, enc_hook=str).decode()


class Desk:
    def __init__(self, order: Order) -> None:
        self.order = order
        self.rng = random.Random(f"{order.seed} {order.name}")
        self.journal = Journal(order.directory / f"{order.name}.history")
        self.progress = Progress()
        self._told_at = 0.0
        self._granted = 0
        self._is_stopped = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self._is_stopped = True

    def plans(self, modes: dict[Mode, int], *, with_garbage: bool = True) -> Iterator[Submit]:
        """One after the other, what to drop. The same seed gives the same."""
        for number in itertools.count():
            if self._is_stopped or not self._may_drop():
                break
            kind = work.pick(self.rng)
            if kind == "garbage" and not with_garbage:
                kind = "steps"
            mode = self.rng.choices(list(modes), list(modes.values()))[0]
            key = f"{self.order.name}-{number}"
            task_id = {"client": "", "forget": "", "sequential": f"{key}-"}.get(mode, key)
            plan = Submit(key, task_id, kind, self.rng.randrange(2**40), mode)
            self.journal.write(plan)
            self.progress.dropped += 1
            self.tell()
            yield plan
        self.progress.is_through = True
        self.tell(now=True)

    def _may_drop(self) -> bool:
        """Take from what is left for all submitters together, a handful at a time: the slow ones get less of it."""
        if self._granted == 0:
            with (self.order.directory / "left").open("r+") as file:
                fcntl.lockf(file, fcntl.LOCK_EX)
                left = int(file.read())
                self._granted = min(HANDFUL, left)
                file.seek(0)
                file.write(f"{left - self._granted:>12}")
        self._granted -= 1
        return self._granted >= 0

    def ended(self) -> None:
        self.progress.ended += 1
        self.tell()

    def tell(self, *, now: bool = False) -> None:
        if now or time.monotonic() - self._told_at > TELL_S:
            self._told_at = time.monotonic()
            path = self.order.directory / f"{self.order.name}.progress"
            path.with_suffix(".new").write_bytes(msgspec.json.encode(self.progress))
            os.replace(path.with_suffix(".new"), path)

    def data(self, plan: Submit) -> bytes:
        """The znode's bytes."""
        if plan.kind == "garbage":
            return work.garbage_of(plan.n)
        return msgspec.json.encode(work.task_of(plan.kind, plan.key, plan.n))


def allow(directory: Path, tasks: int) -> None:
    """So many tasks are to be dropped by all submitters together."""
    (directory / "left").write_text(f"{tasks:>12}")


def progress_of(directory: Path, name: str) -> Progress:
    try:
        return msgspec.json.decode((directory / f"{name}.progress").read_bytes(), type=Progress)
    except FileNotFoundError:
        return Progress()
