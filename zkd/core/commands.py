"""What the leader's mind asks its hands to do. Each is refused by the tree if a task has moved on meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from zkd.paths import NodeId, TaskId
from zkd.records import Assigned, Attempt, Fault, Status


@dataclass(frozen=True, slots=True)
class Assign:
    """Write this list as the whole of ``assign/<node>``."""

    node: NodeId
    incarnation: str
    tasks: list[Assigned]


@dataclass(frozen=True, slots=True)
class End:
    """End a task without a run: delete it at this version and publish this in the same transaction."""

    id: TaskId
    czxid: int
    version: int
    status: Status
    error: Fault
    kernel: str | None
    attempt: int
    attempts: list[Attempt]
    ttl_s: float | None
    traceparent: str | None
    is_dead: bool = False  # keep the task below dead/


@dataclass(frozen=True, slots=True)
class Refuse:
    """End one that is too much, or has lost its parent. If there is one there are many: they are written together."""

    end: End


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Record this attempt in the task, at this version. The version moves on and shuts out the old holder."""

    id: TaskId
    version: int
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Mourn:
    """The task was deleted by somebody else: publish `cancelled`, unless it has a result."""

    id: TaskId
    czxid: int
    attempt: int
    attempts: list[Attempt]
    ttl_s: float | None
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class Look:
    """Look how these ended: tell the mind the status in each one's result, or that there is none."""

    ids: list[TaskId]


@dataclass(frozen=True, slots=True)
class LookUp:
    """Read this dataset from the tree, and tell the mind that it was: it is not in the picture."""

    name: str


@dataclass(frozen=True, slots=True)
class Pin:
    """Write this version of its dataset into the task, at this version of the task."""

    id: TaskId
    version: int
    dataset_version: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Drop the children of this task that have neither a znode nor a result, and tell the mind when that is done."""

    id: TaskId
    czxid: int
    version: int
    stem: str
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Find:
    """Tell the mind of these tasks if they are not there: others say to be their children."""

    ids: list[TaskId]


Command = Assign | End | Refuse | TakeBack | Mourn | Look | LookUp | Pin | Spread | Find
