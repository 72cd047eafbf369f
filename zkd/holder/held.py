"""One task in our hands.

A `Held` lives from the moment its line is seen in ``assign/<node>`` until its outcome stands in the tree, in the
states of `zkd.core.lifecycle`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from zkd.core.lifecycle import State, Step, advance
from zkd.records import Assigned, Running, Task
from zkd.workers.run import Run
from zkd.zk import Stat


@dataclass(slots=True, eq=False)
class Held:
    """One task in our hands."""

    line: Assigned
    state: State = State.READING
    task: Task | None = None
    expires_at: float | None = None
    since: float = 0.0
    started: float = 0.0
    progress: float | None = None
    note: str | None = None
    run: Run | None = None  # in the pool
    work: asyncio.Task[None] | None = None  # what is being done about it besides
    has_slots: bool = False
    stopped_for: str | None = None  # cancelled | drain | session, once somebody wants it to end early
    owed: Assigned | None = None  # a later line of this task that came and went: look what became of it

    def advance(self, step: Step) -> None:
        self.state = advance(self.state, step, f"task {self.line.id} attempt {self.line.attempt}")

    def shown(self, now: float) -> Running:
        """As the node's status tells it."""
        kernel = self.task.kernel if self.task else ""
        run_s = round(now - self.started, 3)
        return Running(self.line.id, kernel, self.line.attempt, run_s, self.progress, self.note)


def life(what: Stat | Assigned) -> tuple[int, int]:
    """Which life of the id this is, and which version of it: two that are equal are the same task unchanged."""
    return what.czxid, what.version
