"""What one look at the cluster shows, as frozen values. They travel as JSON to browsers and other programs."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from zkd.core.backlog import Backlog
from zkd.log import Told
from zkd.records import Running

Health = Literal["full", "degraded", "lost"]
# here: it has an entry in nodes/. away: only its last heartbeat or an operator's word is left of it.
NodePhase = Literal["active", "draining", "cordoned", "away"]


class NodeSeen(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A node, by its entry and its last heartbeat."""

    node: str
    state: NodePhase
    incarnation: str = ""
    leads: bool = False
    slots: int = 0
    used: int = 0
    queued: int = 0
    running: list[Running] = []
    done: int = 0
    failed: int = 0
    memory_bytes: int = 0
    load_1m: float = 0.0
    uptime_s: float = 0.0
    loop_lag_s: float = 0.0
    heard_ms: int = 0  # when its heartbeat was written, by the servers' clock
    version: str = ""
    zone: str | None = None
    labels: dict[str, str] = {}
    host: str = ""
    address: str | None = None


class Counts(Struct, frozen=True):
    """How many znodes there are of each kind."""

    tasks: int = 0  # waiting or running
    results: int = 0
    dead: int = 0
    schedules: int = 0
    slots: int = 0
    used: int = 0
    running: int = 0


class DatasetSeen(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The version of a dataset that readers get."""

    name: str
    version: int
    rows: int
    size: int
    parts: int
    replicas: int
    health: Health
    full: int = 0
    degraded: int = 0
    lost: int = 0
    map: str = ""  # a digit a cell: the fewest copies of its parts, "." where none has rows
    store: str | None = None  # the parts lie there, and not on nodes


class JobSeen(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A training job."""

    id: str
    model: str = ""
    dataset: str = ""
    phase: str = "waiting"
    desired: str = "run"
    coordinator: str | None = None
    round: int = 0
    loss: float | None = None
    held_loss: float | None = None
    slope: float | None = None
    rows_s: float | None = None
    reason: str | None = None
    error: str | None = None
    dropped_ms: int = 0


class AliasSeen(Struct, frozen=True, omit_defaults=True):
    version: int
    canary: int | None = None
    percent: float | None = None
    shadow: bool = False


class ModelSeen(Struct, frozen=True, omit_defaults=True):
    """A registered model."""

    name: str
    latest: int = 0
    versions: int = 0
    aliases: dict[str, AliasSeen] = {}


class SyncSeen(Struct, frozen=True):
    """Something below sync/ that programs hold or wait for together: a lock, a barrier."""

    kind: str
    name: str
    members: int


class Overview(Struct, frozen=True, kw_only=True):
    """One look. `omitted` says how many of each kind there are beyond what is shown."""

    root: str
    at_ms: int  # by the reader's clock
    leader: str | None = None
    epoch: int = 0
    counts: Counts = Counts()
    nodes: list[NodeSeen] = []
    datasets: list[DatasetSeen] = []
    jobs: list[JobSeen] = []
    models: list[ModelSeen] = []
    sync: list[SyncSeen] = []
    omitted: dict[str, int] = {}


class Ran(Struct, frozen=True, array_like=True):
    """A run that has ended: done, or failed and tried again or not. Times are its node's."""

    number: int  # of the node's life, without gaps
    id: str
    kernel: str
    status: str  # of the result; or why the attempt failed, and another follows
    attempt: int
    ended_ms: int
    wait_s: float
    run_s: float


class Recent(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What only a node itself knows: GET /v1/recent."""

    node: str
    incarnation: str = ""
    runs: list[Ran] = []
    runs_last: int = 0  # ask for those after it next time
    lines: list[Told] = []  # of its log
    lines_last: int = 0
    kernels: list[tuple[str, str, int]] = []  # kernel, how runs of it ended, how many
    backlog: Backlog | None = None  # of the leader alone
    curves: dict[str, list[tuple[int, float | None, float | None]]] = {}  # job -> round, loss, held-out loss
    traffic: dict[str, float] = {}  # model -> requests answered since the node started
