"""One call on its way through the pool: waiting, then on a worker, then its outcome.

The outcome is a future that is set once. Whoever awaits it may be cancelled at any time; then an outcome
with a file is nobody's, and the file is removed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zkd.workers.call import Finished

if TYPE_CHECKING:
    import asyncio

    from zkd.workers.call import Call, Outcome
    from zkd.workers.worker import Worker

Progress = Callable[[float | None, str | None], None]


class Run:
    """One call on its way: waiting, then on a worker, then its outcome."""

    __slots__ = ("began", "call", "frame", "on_progress", "outcome", "timeout_s", "worker")

    def __init__(
        self,
        call: Call,
        frame: bytes,
        timeout_s: float | None,
        on_progress: Progress | None,
        outcome: asyncio.Future[Outcome],
    ) -> None:
        self.call = call
        self.frame = frame
        self.timeout_s = timeout_s
        self.on_progress = on_progress
        self.outcome = outcome
        self.worker: Worker | None = None
        self.began = 0.0

    def end(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)
        else:  # cancelled: whoever awaited it has gone
            _remove_blob(outcome)

    def discard(self) -> None:
        """Nobody will look at the outcome, if there is one: the file it may have would be nobody's."""
        if self.outcome.done() and not self.outcome.cancelled():
            _remove_blob(self.outcome.result())


def _remove_blob(outcome: Outcome) -> None:
    if isinstance(outcome, Finished) and outcome.blob is not None:
        outcome.blob.path.unlink(missing_ok=True)
