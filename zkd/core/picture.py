"""What the leader remembers: of each task what it needs and where it is, of each node what it offers and holds.

Values that `zkd.core.dispatch` changes as it is told of changes in the tree; nothing here decides.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from zkd.core.commands import Mourn
from zkd.core.credits import Pace
from zkd.core.lifecycle import attempt_number
from zkd.paths import NodeId, TaskId
from zkd.records import Assigned, Attempt, Node, NodeState

if TYPE_CHECKING:
    from zkd.core.lanes import Lane


class Phase(Enum):
    LOOKING = "looking"  # for its dataset, which is not in the picture
    PINNING = "pinning"  # the version of its dataset is being written into it
    WAITING = "waiting"  # for a moment in time, or for other tasks
    SPREADING = "spreading"  # its children are being dropped
    READY = "ready"  # for a node
    ASSIGNED = "assigned"
    ORPHANED = "orphaned"  # its node was lost, and the leader is taking it back
    ENDING = "ending"  # the leader is ending it itself


# In which nobody has begun it.
IDLE = frozenset({Phase.LOOKING, Phase.PINNING, Phase.WAITING, Phase.READY, Phase.SPREADING})


@dataclass(frozen=True, slots=True)
class Need:
    """What a task needs of a node. Tasks with equal needs wait in one queue."""

    kernel: str
    node: NodeId | None
    labels: tuple[tuple[str, str], ...]
    slots: int
    memory: int | None  # graded


def graded(memory: int | None) -> int | None:
    """Bytes rounded up by less than 0.4 %, tasks' and nodes' alike, so that there are few sizes to tell apart."""
    if memory is None:
        return None
    step = 1 << max(0, memory.bit_length() - 9)
    return -(-memory // step) * step


@dataclass(frozen=True, slots=True)
class Part:
    """What a task works on that has to run where this is."""

    name: str
    version: int
    number: int
    is_kept: bool = True  # on nodes; else it lies in a store of its own, and any node will do

    def __str__(self) -> str:
        return f"part {self.number} of {self.name}@{self.version}"


@dataclass(slots=True)
class Family:
    """Of a task on all parts of a dataset: the tasks that do one each."""

    stem: str  # what their ids begin with
    dataset: str  # NAME@VERSION
    parts: tuple[int, ...]
    gatherer: str  # the kernel that is given what they gave
    is_done: bool = False  # all of them


@dataclass(slots=True)
class Entry:
    """What the leader remembers of a task; the arguments stay in ZooKeeper."""

    id: TaskId
    czxid: int
    version: int
    need: Need
    priority: int
    retries: int
    attempts: list[Attempt]
    submitter: str = ""
    phase: Phase = Phase.READY
    node: NodeId | None = None
    due_at: float = 0.0
    expires_at: float | None = None
    ttl_s: float | None = None
    traceparent: str | None = None
    has_moved: bool = False  # its version has, so its holder has let go of it; the new text is yet to be read
    line: Assigned | None = None  # as it stands in assign/<node>
    lost_by: NodeId | None = None  # the node whose list still says that a former life of it holds this
    size: int | None = None  # bytes of its znode, once it was admitted
    lanes: tuple[Lane, ...] = ()  # where it waits while it is ready
    given_at: float = 0.0
    near: tuple[NodeId, ...] = ()  # nodes that are preferred
    patience_s: float = 0.0  # so long it waits for one of them, when its turn comes and only others have room
    patient_until: float | None = None
    is_speculative: bool = False
    copy: NodeId | None = None  # a second node that holds it, by the same line
    is_dependent: bool = False  # it waits for other tasks
    part: Part | None = None
    homes: tuple[NodeId, ...] | None = None  # of its part, when it was queued: nowhere else may it run
    family: Family | None = None
    parent: TaskId | None = None  # the task whose part it is

    @property
    def holders(self) -> list[NodeId]:
        return [node for node in (self.node, self.copy) if node is not None]

    @property
    def kernels(self) -> tuple[str, ...]:
        """All that it needs somebody to have, now and later."""
        if self.family is None or self.family.is_done:
            return (self.need.kernel,)
        return (self.need.kernel, self.family.gatherer)

    @property
    def attempt(self) -> int:
        """The number of the next attempt, or of the one under way."""
        return attempt_number(self.attempts)


@dataclass(slots=True)
class Member:
    """A node that is here, and what it holds."""

    record: Node
    state: NodeState = "active"
    kernels: frozenset[str] = frozenset()
    kind: int = -1  # the same for all nodes with these kernels
    memory: int | None = None  # graded
    held: dict[TaskId, Entry] = field(default_factory=dict)
    slots_held: int = 0
    memory_held: int = 0
    given: int = 0  # tasks in this reign
    pace: Pace = field(default_factory=Pace)
    ended: deque[tuple[float, Mourn]] = field(default_factory=deque)

    @property
    def takes_work(self) -> bool:
        return self.state == "active" and not self.record.draining

    @property
    def free_slots(self) -> int:
        return self.record.slots - self.slots_held

    def hold(self, entry: Entry) -> None:
        self.held[entry.id] = entry
        self.slots_held += entry.need.slots
        self.memory_held += entry.need.memory or 0

    def let_go(self, entry: Entry) -> None:
        del self.held[entry.id]
        self.slots_held -= entry.need.slots
        self.memory_held -= entry.need.memory or 0


def fits(need: Need, member: Member) -> bool:
    """Whether this node could run such a task at all, busy or not."""
    record = member.record
    return (
        need.kernel in member.kernels
        and need.slots <= record.slots
        and (need.memory is None or record.memory is None or need.memory <= (member.memory or 0))
        and all(record.labels.get(name) == value for name, value in need.labels)
    )
