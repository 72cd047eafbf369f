"""One call on its way through the pool: waiting, then on a worker's line, then its outcome.

Whoever asked for it is called back once, in the callback that brings the outcome. Who has gone meanwhile
says so by `Pool.withdraw`; then an outcome with a file is nobody's, and the file is removed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zkd.workers.call import Finished

if TYPE_CHECKING:
    from zkd.workers.call import Call, Outcome
    from zkd.workers.worker import Worker

Progress = Callable[[float | None, str | None], None]


class Run:
    __slots__ = ("began", "call", "done", "frame", "is_wanted", "on_progress", "timeout_s", "worker")

    def __init__(
        self,
        call: Call,
        frame: bytes,
        timeout_s: float | None,
        on_progress: Progress | None,
        done: Callable[[Outcome], None],
    ) -> None:
        self.call = call
        self.frame = frame
        self.timeout_s = timeout_s
        self.on_progress = on_progress
        self.done = done
        self.is_wanted = True
        self.worker: Worker | None = None
        self.began = 0.0

    def end(self, outcome: Outcome) -> None:
        if self.is_wanted:
            self.done(outcome)
        else:
            remove_blob(outcome)


def remove_blob(outcome: Outcome) -> None:
    if isinstance(outcome, Finished) and outcome.blob is not None:
        outcome.blob.path.unlink(missing_ok=True)
