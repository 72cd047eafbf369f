"""How far a job is, as its coordinator knows it: what it writes into the state, and tells those who look on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from zkd.core.clock import ServerClock
from zkd.errors import ZkdError
from zkd.jobs import FileRef, JobState, Phase, Progress, Round, Summary
from zkd.training.seat import Change, now_ms
from zkd.training.telling import Telling

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS_MAX = 4000  # of an error, in the tree
LINES_MAX = 20  # of what a job waits for
LINE_MAX = 300


class JobFailed(ZkdError):
    """The job ends without a model. The message says why."""


class Question(msgspec.Struct, frozen=True):
    """The head of a brain's question: see `zkd.training.brain`."""

    number: int
    phase: Phase
    progress: Progress
    rounds: list[Round]
    columns: list[str]
    context: str
    again: str | None = None


class Account:
    def __init__(self, state: JobState, clock: ServerClock, round_waits: Callable[[], Sequence[str]]) -> None:
        self._clock = clock
        self._round_waits = round_waits
        self._pace = Round()  # the last one with a time
        self._trouble = ""
        self.phase: Phase = state.phase
        self.progress = state.progress
        self.checkpoint = state.checkpoint
        self.telling = Telling()

    def note(self, question: Question, took_s: float, rows: int) -> None:
        """What a question says; the round before it went over so many rows in so long, 0 s if that is not known."""
        rounds = list(question.rounds)
        if rounds and took_s > 0.0:
            self._pace = structs.replace(rounds[-1], round_s=round(took_s, 6), rows_s=round(rows / took_s, 1))
            rounds[-1] = self._pace
        self.telling.add(rounds)
        self.progress = structs.replace(question.progress, round_s=self._pace.round_s, rows_s=self._pace.rows_s)
        self.phase = question.phase

    @contextmanager
    def waiting(self, trouble: str) -> Iterator[None]:
        """Inside, this is what the job waits for."""
        self._trouble = trouble
        try:
            yield
        finally:
            self._trouble = ""

    # --- Changes of the state ---------------------------------------------------------------------------

    def noted(self, state: JobState) -> JobState:
        waits = [line[:LINE_MAX] for line in (self._trouble, *self._round_waits()) if line][:LINES_MAX]
        progress = structs.replace(self.progress, waits_for=waits)
        started_ms = now_ms(self._clock) if state.started_ms is None else state.started_ms
        checkpoint = self._checkpoint(state)
        return structs.replace(state, phase=self.phase, progress=progress, checkpoint=checkpoint, started_ms=started_ms)

    def paused(self, state: JobState) -> JobState:
        return structs.replace(self._still(state), phase="paused")

    def handed_over(self, state: JobState) -> JobState:
        return self._still(state)

    def done(self, summary: Summary, model: FileRef) -> Change:
        return lambda state: structs.replace(
            self._still(state),
            phase="done",
            progress=_last(self.progress, summary),
            checkpoint=None,
            model=model,
            summary=summary,
            ended_ms=now_ms(self._clock),
        )

    def failed(self, why: str) -> Change:
        return lambda state: structs.replace(
            self._still(state),
            phase="failed",
            checkpoint=None,
            error=why[:WORDS_MAX],
            ended_ms=now_ms(self._clock),
        )

    def _still(self, state: JobState) -> JobState:
        """As noted, and nothing is waited for any more."""
        progress = structs.replace(self.progress, waits_for=[])
        return structs.replace(self.noted(state), progress=progress)

    def _checkpoint(self, state: JobState) -> FileRef | None:
        """The last one, with the nodes that others have added meanwhile."""
        mine, there = self.checkpoint, state.checkpoint
        return there if mine is None or (there is not None and there.id == mine.id) else mine


def _last(progress: Progress, summary: Summary) -> Progress:
    """Also of the rounds since the last question, which only the summary knows."""
    return structs.replace(progress, round=summary.rounds, waits_for=[])
