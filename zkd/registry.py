"""What a registered model is, as frozen values: immutable versions, and aliases that move between them.

    models/<name>                     ModelHead: the highest number that a version ever had. Stays when all versions go
    models/<name>/versions/<n>        ModelVersion, immutable
    models/<name>/aliases/<alias>     Alias: the version that is served under this name, its canary, how it came to that

Every change of any of these goes with a write of the head at the version read, in one transaction: changes of a model
happen one after the other. Parameters never pass through ZooKeeper: the file that a version names lies on nodes, under
the digest of its bytes, and which of them hold it follows from that digest and the ring (`zkd.core.registry`).
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from zkd.jobs import ModelKind
from zkd.manifests import ColumnName, Digest

FILES_URL = "/v1/model-files"  # of a node's data plane; the digest follows
HISTORY_MAX = 50  # changes of an alias that are remembered
FILE_BYTES_MAX = 512 * 2**20  # of a model: 128 MiB of parameters, and what is told of them
VERSION_BYTES_MAX = 512 * 2**10  # of its znode, of the 1 MiB that a server takes
NOTE_MAX = 4096

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
AliasName = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,127}$")]
VersionNumber = Annotated[int, Meta(ge=1)]
ClassLabel: TypeAlias = bool | int | float | str
Number = Annotated[int, Meta(ge=0)]


class ModelHead(Struct, frozen=True):
    """What stands at ``models/<name>``. Without versions below it, there is no such model now."""

    latest: Number  # numbers up to this one are never given again


class ModelFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The file of a version, as training jobs end with (`zkd.models.trained`)."""

    id: Digest  # blake3 of its bytes
    size: Annotated[int, Meta(ge=1, le=FILE_BYTES_MAX)]


class Feature(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A column that the model wants: one number a row, or so many."""

    name: ColumnName
    width: Annotated[int, Meta(ge=0, le=1 << 24)] = 0  # 0: a plain number; 1: a list of one


class Lineage(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the model was made of."""

    dataset: str | None = None  # NAME@V
    job: str | None = None
    terms: Digest | None = None  # of the job's text
    source: Annotated[str, Meta(max_length=200)] | None = None  # "scikit-learn 1.9.1", say


class ModelVersion(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What stands at ``models/<name>/versions/<n>``. All but the last six fields are also in the file."""

    file: ModelFile
    kind: ModelKind
    features: list[Feature]
    outputs: Annotated[int, Meta(ge=1)] = 1  # scores a row
    classes: Annotated[list[ClassLabel], Meta(max_length=1000)] | None = None  # None: it predicts numbers
    lineage: Lineage = Lineage()
    metrics: dict[Annotated[str, Meta(min_length=1, max_length=128)], float] = {}
    created_ms: Number = 0  # by its maker's clock, for people
    by: Annotated[str, Meta(max_length=256)] = ""
    note: Annotated[str, Meta(max_length=NOTE_MAX)] = ""


class CanaryLimits(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Beyond any of these a canary is taken back. None: not looked at."""

    error_share: Annotated[float, Meta(gt=0, le=1)] | None = None  # of its requests that end in an error
    p99_ms: Annotated[float, Meta(gt=0)] | None = None
    drift: Annotated[float, Meta(gt=0)] | None = None  # population stability index against the version beside it


class Canary(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Another version beside the one that is served: it answers `percent` of the requests, or only looks on."""

    version: VersionNumber
    percent: Annotated[float, Meta(gt=0, le=100)]
    shadow: bool = False  # it gets its share of the requests, and its answers are compared and thrown away
    since_ms: Number = 0  # by the clock of who set it, for people
    limits: CanaryLimits = CanaryLimits()


class Move(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A line of an alias's history: from then on it was this version."""

    version: VersionNumber
    at_ms: Number
    by: Annotated[str, Meta(max_length=256)]
    why: Annotated[str, Meta(max_length=NOTE_MAX)] = ""
    is_rollback: bool = False  # it undid the one before, so the next rollback goes further back


class Alias(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What stands at ``models/<name>/aliases/<alias>``. The last line of the history is how it is."""

    version: VersionNumber
    canary: Canary | None = None
    history: Annotated[list[Move], Meta(max_length=HISTORY_MAX)] = []
