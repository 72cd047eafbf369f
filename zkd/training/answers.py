"""Who may ask this node's counters, and about what: one visit for each coordinator's link.

A coordinator is put out by a later one of its job, and by one of a later life of the job; from then on nothing that it
asked for is answered, and it is told so by the end of its link. How long that is remembered: as long as this process
lives, for the last `JOBS_MAX` jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from zkd.core.datasets import split_name
from zkd.errors import BadRecord
from zkd.net.round_frames import Ask, Context, Overtaken, Term
from zkd.paths import JobId
from zkd.training.counters import Counters, Subject, Work
from zkd.training.frames import Buffer

JOBS_MAX: Final = 10_000
ASKS_MAX: Final = 64  # of one coordinator at a time; a round machine has a few
CONTEXT_BYTES_MAX: Final = 64 << 20


class Caller(Protocol):
    """A coordinator, as its visit sees it. None of these waits."""

    def answer(self, number: int, ask: int, parts: Sequence[int], partials: Sequence[Buffer]) -> None: ...
    def failed(self, number: int, ask: int, why: str) -> None: ...
    def hang_up(self, why: str) -> None:
        """Nothing more is said here."""


class Answers:
    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._terms: dict[JobId, Term] = {}  # the highest seen; the last ones at the end
        self._visits: dict[JobId, set[Visit]] = {}
        self._closed_for = ""

    def receive(self, term: Term, caller: Caller) -> Visit:
        """A visit of who calls. Raises `Overtaken`."""
        known = self._terms.pop(term.job, term)
        self._terms[term.job] = max(known, term)
        if known > term:
            raise Overtaken(f"{term.job} has a later coordinator, with fence {known.fence}")
        while len(self._terms) > JOBS_MAX:
            del self._terms[next(iter(self._terms))]
        for visit in list(self._visits.get(term.job, ())):
            visit.put_out("a later coordinator has come, or the same anew")
        if self._closed_for:
            caller.hang_up(self._closed_for)
        visit = Visit(term.job, self._counters, caller, self._left)
        self._visits.setdefault(term.job, set()).add(visit)
        return visit

    def close(self, why: str) -> None:
        """Hang up on everybody, also on who calls from now on."""
        self._closed_for = why
        for visits in list(self._visits.values()):
            for visit in list(visits):
                visit.put_out(why)

    def _left(self, visit: Visit) -> None:
        visits = self._visits[visit.job]
        visits.discard(visit)
        if not visits:
            del self._visits[visit.job]


class Visit:
    """What one coordinator has asked on one link. See `zkd.net.round_routes.Desk`."""

    def __init__(self, job: JobId, counters: Counters, caller: Caller, left: Callable[[Visit], None]) -> None:
        self.job = job
        self._counters = counters
        self._caller = caller
        self._left = left
        self._subject: Subject | None = None
        self._works: dict[tuple[int, int], Work] = {}  # round, ask
        self._is_over = False

    def context(self, context: Context, body: bytes) -> None:
        if self._is_over:
            return
        fault = _fault(context, body)
        if fault is not None:
            self.put_out(fault)
            return
        known = self._subject
        if known is not None:
            if (known.source.dataset, list(known.source.columns)) == (context.dataset, context.columns):
                known.context = body
                return
            self._let_go()
        self._subject = self._counters.subject(context.dataset, context.columns, body)

    def ask(self, ask: Ask, question: bytes) -> None:
        name = ask.round, ask.ask
        if self._is_over:
            return
        if self._subject is None:
            self.put_out("expected a context before the first ask")
        elif name in self._works:
            self.put_out(f"ask {ask.ask} of round {ask.round} was asked twice")
        elif len(self._works) >= ASKS_MAX:
            self._caller.failed(*name, f"there are {ASKS_MAX} asks at once already")
        else:
            asker = _Asker(self, self._caller, ask)
            work = self._counters.ask(self._subject, ask.parts, question, asker)
            if not work.is_over:
                self._works[name] = work

    def forget(self, number: int, ask: int) -> None:
        work = self._works.pop((number, ask), None)
        if work is not None:
            self._counters.forget(work)

    def close(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._let_go()
            self._left(self)

    def put_out(self, why: str) -> None:
        """Nothing more is answered. It is told why."""
        self.close()
        self._caller.hang_up(why)

    def done(self, ask: Ask) -> None:
        self._works.pop((ask.round, ask.ask), None)

    def _let_go(self) -> None:
        self._works.clear()
        if self._subject is not None:
            self._counters.let_go(self._subject)  # forgets what it was asked, too
            self._subject = None


class _Asker(NamedTuple):
    visit: Visit
    caller: Caller
    ask: Ask

    def counted(self, partials: Sequence[Buffer]) -> None:
        self.visit.done(self.ask)
        self.caller.answer(self.ask.round, self.ask.ask, self.ask.parts, partials)

    def failed(self, why: str) -> None:
        self.visit.done(self.ask)
        self.caller.failed(self.ask.round, self.ask.ask, why)


def _fault(context: Context, body: bytes) -> str | None:
    if len(body) > CONTEXT_BYTES_MAX:
        return f"expected a context of at most {CONTEXT_BYTES_MAX} bytes, got {len(body)}"
    if len(set(context.columns)) != len(context.columns):
        return "columns: expected each once"
    try:
        _, version = split_name(context.dataset)
    except BadRecord as error:
        return str(error)
    return None if version is not None else f"expected NAME@V, got {context.dataset}"
