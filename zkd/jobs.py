"""What a training job is, as frozen values: what its user asks for, how far it is, what came of it.

    jobs/<id>                  Job, as its user wrote it; only `desired` may change while it runs. Never written by zkd.
    control/jobs/<id>          JobState: how far it is, where its last checkpoint and its model lie
    control/coordinators/<id>  Coordinator, ephemeral: the node that opens the job's rounds

Deleting jobs/<id> cancels the job and removes all that came of it. Numbers and vectors of the training never pass
through ZooKeeper; `FileRef`s say which nodes have them.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from zkd.manifests import ColumnName, Digest
from zkd.paths import NodeId

ModelKind: TypeAlias = Literal["linear", "logistic", "softmax", "poisson", "svm", "mlp"]
OptimizerName: TypeAlias = Literal["newton", "lbfgs", "gd", "momentum", "nesterov", "sgd", "adam", "average"]
Desired: TypeAlias = Literal["run", "pause", "stop"]  # stop: end with what there is
Phase: TypeAlias = Literal["waiting", "preparing", "training", "explaining", "paused", "done", "failed"]

LAYERS_MAX = 3
DONE: tuple[Phase, ...] = ("done", "failed")

Share = Annotated[float, Meta(gt=0, lt=1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]


class Validation(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Rows held out of training: `share` of them, chosen by a hash of the key, or of all of a row's features.

    `by` None: the key where the dataset has one, else the features.
    """

    share: Share
    by: Literal["key", "features"] | None = None
    seed: Annotated[int, Meta(ge=0)] = 0


class PrivacyTerms(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """As `zkd.models.plan.Privacy`."""

    clip: Positive
    noise: Positive
    delta: Share
    epsilon: Positive | None = None


class Job(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What stands at ``jobs/<id>``. What a field left out means is said in docs/training.md."""

    model: ModelKind
    dataset: str  # NAME: the version that is current when the job starts; NAME@V
    target: ColumnName | None = None  # None: the dataset's label
    features: list[ColumnName] | None = None  # None: all columns of numbers but target, weight and key
    weight: ColumnName | None = None  # of rows
    l2: NotNegative | list[NotNegative] = 1.0
    l1: NotNegative = 0.0
    optimizer: OptimizerName | None = None
    tol: Positive = 1e-8
    max_rounds: Count | None = None  # None: 1000; with sgd, adam and average as many as the epochs take
    patience: Count | None = None
    jitter: Positive | None = None
    learning_rate: Positive | None = None
    epochs: Count = 60
    local_epochs: Count = 1
    batch_rows: Count = 128
    seed: Annotated[int, Meta(ge=0)] = 0
    hidden: list[Annotated[int, Meta(ge=1, le=65536)]] = []  # units of each hidden layer of an mlp
    tells_classes: bool | None = None  # of an mlp; None: where the target is text, whole numbers or booleans
    intercept: bool = True
    standardise: bool = True
    validation: Validation | None = None
    privacy: PrivacyTerms | None = None
    importance: bool = False  # permutation importance, after the last round
    confidence: Share = 0.95  # of the limits around odds ratios
    desired: Desired = "run"
    by: Annotated[str, Meta(max_length=256)] | None = None  # who asks, for people


class FileRef(Struct, frozen=True, forbid_unknown_fields=True):
    """A checkpoint or a model: a file that lies whole on each of these nodes."""

    id: Digest  # blake3 of its bytes
    size: Annotated[int, Meta(ge=0)]
    nodes: list[NodeId]
    round: Annotated[int, Meta(ge=0)]


class Progress(Struct, frozen=True, omit_defaults=True):
    """The last round, for people. Means a unit of weight; None where it is not known, or not finite."""

    round: int = 0
    total: float | None = None  # F
    loss: float | None = None
    held_loss: float | None = None
    slope: float | None = None  # |gradient of F|
    rows_s: float | None = None  # rows gone over a second
    round_s: float | None = None
    waits_for: list[str] = []


class Round(Struct, frozen=True, omit_defaults=True):
    """A line of ``GET /v1/jobs/<id>/rounds?after=N``: a round over all rows. Means a unit of weight.

    Numbers grow from line to line, with gaps where rounds are mini-batches. None: not known, or not finite. The last
    line of a job that is over says how it ended and is no round; a stream that ends without is to be asked for again.
    """

    number: int = 0
    stage: int = 0  # of a path of several l2
    total: float | None = None  # F
    loss: float | None = None
    held_loss: float | None = None
    slope: float | None = None  # |gradient of F|
    is_accepted: bool = True  # False: a trial of a line search that was not taken
    rows_s: float | None = None
    round_s: float | None = None
    ended: Literal["done", "failed"] | None = None


class Summary(Struct, frozen=True, omit_defaults=True):
    """What came of a job, as far as it fits a line; all of it is in the model's file."""

    reason: str
    rounds: int
    total: float | None = None
    loss: float | None = None
    held_loss: float | None = None
    slope: float | None = None
    bound: float | None = None  # of |v - v*|
    l2: float | None = None
    epsilon: float | None = None
    is_approximate: bool = False
    notes: list[str] = []  # jitter, features that say too much, constant ones


class JobState(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What stands at ``control/jobs/<id>``. `fence` grows with each coordinator, and answers to others do not count."""

    czxid: int  # of the job's znode: another job of the same id is another life
    terms: Digest  # blake3 of the job's text without `desired`
    fence: Annotated[int, Meta(ge=1, lt=1 << 53)]
    phase: Phase
    dataset: str | None = None  # NAME@V
    coordinator: NodeId | None = None  # the last one
    progress: Progress = Progress()
    checkpoint: FileRef | None = None
    model: FileRef | None = None
    summary: Summary | None = None
    error: str | None = None  # why it failed
    started_ms: int | None = None  # by the servers' clock
    ended_ms: int | None = None


class Coordinator(Struct, frozen=True):
    """What stands at ``control/coordinators/<id>``."""

    node: NodeId
    fence: int
