"""A coordinator's link to the node that it runs on: the talk of `zkd.net.rounds` as plain calls, without a wire.

A third of what a small round costs is its way over a WebSocket; to one's own counters there is no way. Who may ask, who
is put out by whom and what is forgotten is the same: a visit (`zkd.training.answers`), as for everybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from zkd.net.round_frames import Ask, Context, Term
from zkd.paths import NodeId
from zkd.training.answers import Answers, Visit
from zkd.training.frames import Buffer

Answered = Callable[[NodeId, int, int, Sequence[int], Sequence[Buffer]], None]  # node, round, ask, parts, partials
Failed = Callable[[NodeId, int, int, str], None]  # node, round, ask, why
Lost = Callable[[NodeId, str], None]


class HereLink:
    """As `zkd.net.rounds.Link`: `lost` is called once, at the end of `run`, unless that was wanted."""

    def __init__(
        self, answers: Answers, term: Term, node: NodeId, *, answered: Answered, failed: Failed, lost: Lost
    ) -> None:
        self.node = node
        self._answers, self._term = answers, term
        self._answered, self._failed, self._lost = answered, failed, lost
        self._visit: Visit | None = None
        self._ended = asyncio.Event()
        self._why = ""

    async def connect(self, context: Context, body: bytes) -> None:
        """Raises `Overtaken`."""
        self._visit = self._answers.receive(self._term, self)
        self.tell(context, body)

    async def run(self) -> None:
        """Until the node hangs up. Cancelled, what was asked is forgotten, and nobody is told of a loss."""
        assert self._visit is not None, "connect comes first"
        try:
            await self._ended.wait()  # unbounded: as long as the job takes
        finally:
            self._ended.set()
            self._visit.close()
        self._lost(self.node, self._why)

    # --- What the coordinator says ----------------------------------------------------------------------

    def tell(self, context: Context, body: bytes) -> None:
        if self._visit is not None:
            self._visit.context(context, body)

    def ask(self, number: int, ask: int, parts: Sequence[int], question: bytes) -> None:
        if self._visit is not None:
            self._visit.ask(Ask(number, ask, list(parts)), question)

    def forget(self, number: int, ask: int) -> None:
        if self._visit is not None:
            self._visit.forget(number, ask)

    # --- What the node says: see `zkd.training.answers.Caller` ------------------------------------------

    def answer(self, number: int, ask: int, parts: Sequence[int], partials: Sequence[Buffer]) -> None:
        if not self._ended.is_set():
            self._answered(self.node, number, ask, parts, partials)

    def failed(self, number: int, ask: int, why: str) -> None:
        if not self._ended.is_set():
            self._failed(self.node, number, ask, why)

    def hang_up(self, why: str) -> None:
        self._why = self._why or why
        self._ended.set()
