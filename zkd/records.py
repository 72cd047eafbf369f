"""The frozen values that lie in znodes. `docs/protocol.md` explains them to people, JSON Schema to programs.

Values of arguments and results stay JSON text (`msgspec.Raw`) here: the daemon moves them without
looking inside, and only a worker or a client turns them into numbers (`zkd.arrays`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from zkd.configs import ConfigStanding
from zkd.paths import NodeId, TaskId

Status = Literal["done", "failed", "rejected", "cancelled", "expired"]
# Why an attempt ended without a result. The first three use up the task's `retries`; `node_loss` has its
# own, larger budget (NODE_LOSSES_MAX), because a reboot says nothing about the task. `drain` is free, and so is
# `data`: the node did not have the part it was to work on, or has it damaged (DATA_MISSES_MAX ends it all the same).
Cause = Literal["error", "crash", "timeout", "node_loss", "drain", "data"]
NodeState = Literal["active", "draining", "cordoned"]

CHARGED: frozenset[Cause] = frozenset({"error", "crash", "timeout"})
FREE: frozenset[Cause] = frozenset({"drain", "data"})
NODE_LOSSES_MAX = 10
DATA_MISSES_MAX = 100
PARTS_MAX = 16_384  # of a dataset

# Znode sizes. A server takes less than 1 MiB in a whole request; half of it leaves room for the history
# that retries add and for a transaction around it.
TASK_BYTES_MAX = 512 * 1024
HISTORY_BYTES_MAX = 256 * 1024  # what attempts may add to a task that was accepted
RESULT_INLINE_BYTES_MAX = 256 * 1024

EMPTY_LIST = Raw(b"[]")
EMPTY_OBJECT = Raw(b"{}")

Text = Annotated[str, Meta(min_length=1, max_length=256)]
Seconds = Annotated[float, Meta(ge=0, le=10 * 365 * 86400)]
Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$")]
DatasetRef = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}(@[1-9][0-9]{0,17})?$")]
PositiveSeconds = Annotated[float, Meta(gt=0, le=10 * 365 * 86400)]


class Attempt(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One attempt at a task that did not end it; the leader and the nodes write these, clients read them."""

    cause: Cause
    node: str
    message: str = ""


class Task(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a client drops at ``tasks/<id>``. Only `kernel` is required."""

    kernel: Text
    args: Raw = EMPTY_LIST  # a JSON array: the positional arguments
    kwargs: Raw = EMPTY_OBJECT  # a JSON object: the named arguments
    items: Raw | UnsetType = UNSET  # a JSON array: one call an item, the item is the first argument
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0  # higher goes first
    submitter: Text | None = None  # whose turn it is among tasks of one priority
    timeout_s: PositiveSeconds | None = None  # of one attempt
    retries: Annotated[int, Meta(ge=0, le=100)] = 0  # further attempts after an error, crash or timeout
    after: Annotated[list[Id], Meta(max_length=1000)] = []  # tasks that have to be done before
    delay_s: Seconds = 0.0  # not before this many seconds after its creation
    not_after_s: PositiveSeconds | None = None  # worthless this many seconds after its creation
    labels: dict[str, str] = {}  # only on nodes that carry all of these
    node: Text | None = None  # only on this node
    prefer: Annotated[list[Text], Meta(max_length=16)] = []  # rather on these nodes, which have its data, say
    slots: Annotated[int, Meta(ge=1, le=4096)] = 1
    memory: Annotated[int, Meta(ge=1, le=2**62)] | None = None  # bytes that an attempt may allocate
    speculative: bool = False  # a second copy may run beside one that is late; the first to end counts
    dataset: DatasetRef | None = None  # NAME or NAME@VERSION: run where this dataset's parts are, once for each
    partition: Annotated[int, Meta(ge=0)] | None = None  # for this part only
    parts: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=PARTS_MAX)] = []  # for these only, in this order
    columns: Annotated[list[Text], Meta(max_length=1000)] = []  # of the dataset: arrays that come before `args`
    combine: Text | None = None  # the kernel that makes one value of the list of all parts' values
    parent: Id | None = None  # written by zkd: the task that this is one part of; it goes when that one has gone
    ttl_s: PositiveSeconds | None = None  # how long the result is kept
    traceparent: Annotated[str, Meta(max_length=128)] | None = None  # W3C trace context, echoed in the result
    attempts: list[Attempt] = []  # written by zkd


class Schedule(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a client writes at ``schedules/<name>``: a task, and when it recurs, by `cron` or by `every_s`."""

    task: Raw  # a task, as it is dropped at tasks/<name>.<slot>
    cron: Text | None = None  # minute, hour, day of month, month, day of week
    timezone: Text | None = None  # of `cron`; UTC
    every_s: Annotated[int, Meta(ge=1, le=10 * 365 * 86400)] | None = None  # at the multiples of so many seconds
    overlap: Literal["allow", "skip"] = "allow"  # skip: not while the former task is not finished
    paused: bool = False


class ScheduleState(Struct, frozen=True, omit_defaults=True):
    """What stands at ``control/schedules/<name>``: how far the leader is. Times are UTC, by the servers' clock."""

    czxid: int  # the creation transaction of the schedule: which life of the name this is about
    timing: str  # what counts from `since` on; paused, or empty if it is no schedule
    since: str
    fired: int  # how many slots
    skipped: int  # missed while nobody led, but for the last one, or while the former task was not finished
    slot: str | None = None  # the last one that was dealt with; none at or before it fires any more
    task: str | None = None  # the last task that was dropped
    error: str | None = None  # why nothing fires


class Fault(Struct, frozen=True, omit_defaults=True):
    """Why a task has no value: `kind` is an exception's type or a cause, `path` the place in the task."""

    kind: str
    message: str
    path: str | None = None
    traceback: str | None = None


class BlobRef(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where a value lies that is too large for a znode. As an argument it stands for that value."""

    blob: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]  # sha256 of the bytes
    size: Annotated[int, Meta(ge=0)]
    format: Literal["npy", "json"]
    nodes: dict[str, str] = {}  # node -> URL


class Result(Struct, frozen=True, omit_defaults=True):
    """What stands at ``results/<id>`` when a task has ended. It is written once and never changes."""

    status: Status
    node: str | None = None
    attempt: int = 0
    value: Raw | UnsetType = UNSET
    ref: BlobRef | None = None  # instead of `value`, when it is larger than RESULT_INLINE_BYTES_MAX
    error: Fault | None = None
    kernel: str | None = None
    owner: str | None = None  # the incarnation that published it
    czxid: int = 0  # the creation transaction of the task's znode: which life of the id this answers
    wait_s: float = 0.0  # from assignment to start
    run_s: float = 0.0
    finished_at: str = ""  # UTC, for people; nothing is decided by it
    ttl_s: float | None = None
    traceparent: str | None = None
    attempts: list[Attempt] = []


class Dead(Struct, frozen=True):
    """What stands at ``dead/<id>``: the task as it was dropped, its result, and what was tried."""

    task: Raw
    error: Fault
    attempts: list[Attempt]
    at: str


class Node(Struct, frozen=True, omit_defaults=True):
    """What stands at ``nodes/<node>`` while a node is here."""

    node: NodeId
    incarnation: str  # new with every session, so that a stale owner can be told from its successor
    slots: int
    labels: dict[str, str] = {}
    zone: str | None = None
    memory: int | None = None  # bytes for all its kernels together
    address: str | None = None  # http://host:port of the data plane
    host: str = ""
    pid: int = 0
    version: str = ""
    protocol: int = 1
    draining: bool = False
    weight: float = 1.0  # how much data it keeps, beside others; 0 is none
    data: str | None = None  # where its segments lie, for programs on the same host
    kernels: list[str] = []
    missed: list[tuple[int, int]] = []  # versions of assign/<node> that it has read, and those that it read next


class Running(Struct, frozen=True, omit_defaults=True):
    id: TaskId
    kernel: str
    attempt: int
    run_s: float
    progress: float | None = None
    note: str | None = None


class NodeStatus(Struct, frozen=True, omit_defaults=True):
    """What stands at ``status/<node>``: one coalesced write every few seconds."""

    node: NodeId
    incarnation: str
    state: NodeState
    slots: int
    slots_used: int
    queued: int
    running: list[Running]
    done: int
    failed: int
    memory_bytes: int
    load_1m: float
    uptime_s: float
    loop_lag_s: float = 0.0
    published_at: str = ""
    config: ConfigStanding | None = None


class Assigned(Struct, frozen=True, array_like=True):
    """One line of ``assign/<node>``: run this life of this task, at this version, as this attempt."""

    id: TaskId
    czxid: int
    version: int
    attempt: int


class Assignment(Struct, frozen=True):
    """What stands at ``assign/<node>``: all that the leader of `epoch` wants this incarnation to hold."""

    epoch: int
    incarnation: str
    tasks: list[Assigned]


class Leader(Struct, frozen=True, omit_defaults=True):
    node: NodeId
    incarnation: str
    epoch: int
    queue_max: int = 0  # tasks that may wait or run, by this leader's settings; 0: it does not say


class OperatorState(Struct, frozen=True, omit_defaults=True):
    """What stands at ``control/nodes/<node>``: how operators want this node to be."""

    state: NodeState
    by: str = ""
    reason: str = ""


class Limit(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What stands at ``control/limits/<kernel>``: how much of this kernel's work the cluster takes on."""

    per_s: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None  # starts a second
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None  # starts at once after a pause; else 0.1 s' worth
    at_once: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None  # held over the whole cluster; 0 holds all back
    by: str = ""
    reason: str = ""


class Claimant(Struct, frozen=True, omit_defaults=True):
    """What stands at a claim below ``sync/``: who holds a lock, waits for it, or is a member; for people to read."""

    who: str
    pid: int = 0
    note: str = ""


class SemaphoreTerms(Struct, frozen=True, forbid_unknown_fields=True):
    """What stands at ``sync/semaphores/<name>``: what all who use it have agreed on."""

    leases: Annotated[int, Meta(ge=1, le=1000)]


class Count(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What stands at ``sync/counters/<name>``. `last` has the number of each program's last change that was applied,
    the latest last, by which a program whose answer was lost finds out."""

    value: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] = 0
    last: dict[str, int] = {}


class Meeting(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What stands at ``sync/double-barriers/<name>``: how many meet there, and the members who met last."""

    count: Annotated[int, Meta(ge=1, le=1000)]
    round: int = 0
    inside: list[str] = []


class Member(Struct, frozen=True, omit_defaults=True):
    """What stands at ``sync/parties/<name>/<member>``: who is here, and what it says of itself."""

    who: str
    pid: int = 0
    note: str = ""
    value: Raw = Raw(b"null")


class Queued(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What stands at ``sync/queues/<name>/items/<item>``."""

    value: Raw
    id: Id | None = None  # no second one of this id is let in while it is here


class KernelSignature(Struct, frozen=True, omit_defaults=True):
    """How people see a kernel: `zkd get kernels` and `zkd describe kernel NAME`."""

    name: str
    signature: str  # (x: float, *, axis: int | None = None) -> float
    summary: str = ""  # the first line of `doc`
    doc: str = ""
    source: str = ""  # where it is defined: module:qualname
