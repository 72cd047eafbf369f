"""One task on the node that holds it, from the assignment to its end.

    READING --read--> QUEUED --started--> RUNNING --ended--> PUBLISHING --published--> (gone)
       |                 |                   |                   |
       '---- dropped ----'---- dropped ------'---- dropped ------'      taken back, cancelled, session over

`TABLE` is the whole of it: a pair that is not in it is a bug and raises. What an ended attempt leads to is
decided by `judge` from the task's own record, so that every node, and a second try, decides alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from zkd.records import CHARGED, FREE, Attempt, Cause, Fault, Status, Task


class State(Enum):
    READING = "reading"
    QUEUED = "queued"
    RUNNING = "running"
    PUBLISHING = "publishing"
    GONE = "gone"


class Step(Enum):
    READ = "read"
    STARTED = "started"
    ENDED = "ended"
    PUBLISHED = "published"
    DROPPED = "dropped"


TABLE: dict[tuple[State, Step], State] = {
    (State.READING, Step.READ): State.QUEUED,
    (State.READING, Step.ENDED): State.PUBLISHING,  # it was cancelled before we had read it
    (State.READING, Step.DROPPED): State.GONE,
    (State.QUEUED, Step.STARTED): State.RUNNING,
    (State.QUEUED, Step.ENDED): State.PUBLISHING,  # its deadline passed before it was started
    (State.QUEUED, Step.DROPPED): State.GONE,
    (State.RUNNING, Step.ENDED): State.PUBLISHING,
    (State.RUNNING, Step.DROPPED): State.GONE,
    (State.PUBLISHING, Step.PUBLISHED): State.GONE,
    (State.PUBLISHING, Step.DROPPED): State.GONE,
}


class InvalidTransition(AssertionError):  # h11 and others name it so
    """A step that cannot follow on this state: a bug in zkd."""


def advance(state: State, step: Step, story: str) -> State:
    """The state after this step; `story` names the task for whoever reads the bug report."""
    try:
        return TABLE[state, step]
    except KeyError:
        raise InvalidTransition(f"{story}: {step.name} cannot follow on {state.name}") from None


@dataclass(frozen=True, slots=True)
class Publish:
    """The task ends with this."""

    status: Status
    error: Fault | None = None
    attempts: tuple[Attempt, ...] = ()
    is_dead: bool = False


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Record this attempt in the task; the leader finds it a node and a time."""

    attempts: list[Attempt]


def judge(task: Task, cause: Cause, error: Fault, node: str) -> Publish | TryAgain:
    """What follows on an attempt that ended without a value."""
    attempts = [*task.attempts, Attempt(cause, node, error.message[:500])]
    charged = sum(attempt.cause in CHARGED for attempt in attempts)
    if charged > task.retries:
        return Publish("failed", error, tuple(attempts), is_dead=True)
    return TryAgain(attempts)


def handed_back(task: Task, node: str) -> TryAgain:
    """A task that goes back unharmed. It is free of charge, and a second one in a row leaves no second line."""
    kept = task.attempts
    if kept and kept[-1].cause == "drain":
        kept = kept[:-1]
    return TryAgain([*kept, Attempt("drain", node, f"{node} is being drained")])


def without_data(task: Task, node: str, why: str) -> TryAgain:
    """A task that goes back because the part it was to work on is not here as it should be. Free of charge."""
    return TryAgain([*task.attempts, Attempt("data", node, why[:500])])


def attempt_number(attempts: list[Attempt]) -> int:
    """The number of the attempt that comes after these. Those that cost nothing do not count."""
    return 1 + sum(attempt.cause not in FREE for attempt in attempts)
