"""What a dataset is, as frozen values: its versions, the segments its parts are made of, who keeps them.

    dataset      a name; its head says which version readers get
    version      an immutable manifest: columns, number of parts, and the segments of each part
    part         the rows whose key's hash has these top bits; 2^k parts, frozen with the first version
    segment      rows of one part that were written together: immutable files, named by the digest of their contents

A manifest's list of segments is cut into chunks, which are named by their digest, so that versions share what they
have in common and nobody has to believe what he reads. The values themselves never pass through here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from zkd.paths import NodeId
from zkd.records import PARTS_MAX as PARTS_MAX

REPLICAS_MAX = 16
CHUNK_PARTS = 256  # parts whose segments are listed in one chunk
KEY_HASH = "zkd-1"  # how a key becomes 64 bits (zkd.core.placement); frozen in each manifest
BLOCK_BYTES = 1 << 20  # of a file; each block has a checksum of its own

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]  # blake3 of the bytes
DatasetName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
ColumnName = Annotated[str, Meta(min_length=1, max_length=128)]
Parts = Annotated[int, Meta(ge=1, le=PARTS_MAX)]  # a power of two


class Column(Struct, frozen=True, forbid_unknown_fields=True):
    """One named array of a dataset; its first axis is the rows."""

    name: ColumnName
    dtype: str  # as numpy spells it: "<f8"
    shape: list[Annotated[int, Meta(ge=0)]] = []  # of one row


class SegmentRef(Struct, frozen=True, array_like=True):
    """A segment of a part, in a manifest."""

    id: Digest  # of the bytes of its segment.json
    rows: Annotated[int, Meta(ge=0)]
    size: Annotated[int, Meta(ge=0)]  # bytes of all its files


class Origin(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a dataset was computed of, part by part: the same gives the same segments, whoever computes it when."""

    dataset: str  # NAME@V
    mark: Digest  # of that version (`zkd.core.datasets.mark_of`): a name and number may come again
    model: Digest  # of the bytes of its file
    name: str = ""  # of the model, for people: NAME@V, a job, a file
    missing: str = "refuse"  # what became of rows without a score


class Manifest(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What stands at ``datasets/<name>/versions/<n>``. Immutable."""

    name: DatasetName
    version: Annotated[int, Meta(ge=1)]
    parts: Parts
    replicas: Annotated[int, Meta(ge=1, le=REPLICAS_MAX)]
    columns: list[Column]
    rows: Annotated[int, Meta(ge=0)]
    size: Annotated[int, Meta(ge=0)]  # bytes of one copy
    chunks: list[Digest]  # at ``chunks/<digest>`` stands JSON: a list of segments for each of CHUNK_PARTS parts
    key: ColumnName | None = None  # the column whose hash decides the part; None: the number of the row
    label: ColumnName | None = None  # the column that models are to predict
    hash: str = KEY_HASH
    parent: int | None = None  # the version that this one was made from
    # How many copies of each part were durable before it was visible; None: more than half of `replicas`.
    quorum: Annotated[int, Meta(ge=1, le=REPLICAS_MAX)] | None = None
    store: str | None = None  # where its segments lie, if not on nodes: an fsspec URL
    origin: Origin | None = None  # of what `client.predict` made
    created_at: str = ""  # UTC, for people
    by: str = ""


class Head(Struct, frozen=True):
    """What stands at ``datasets/<name>``: the version that readers get. It changes by compare-and-set."""

    current: Annotated[int, Meta(ge=1)]


class Numbers(Struct, frozen=True, omit_defaults=True):
    """What stands at ``datasets``: numbers of versions that were removed, so that none is given twice."""

    last: dict[str, Annotated[int, Meta(ge=1)]] = {}  # dataset -> the highest that one of it had, if that one is gone
    floor: Annotated[int, Meta(ge=0)] = 0  # no less than those of all datasets that are not listed any more


class SegmentFile(Struct, frozen=True, forbid_unknown_fields=True):
    """One .npy file of a segment."""

    size: Annotated[int, Meta(ge=0)]
    blake3: Digest
    blocks: list[Annotated[int, Meta(ge=0)]]  # xxh3_64 of each BLOCK_BYTES


class Segment(Struct, frozen=True, forbid_unknown_fields=True):
    """segment.json. Its files are rows.npy (int64: which row of the dataset each is, as written), then 0.npy, 1.npy, …,
    a column each."""

    rows: Annotated[int, Meta(ge=0)]
    columns: list[Column]
    files: list[SegmentFile]


class Holding(Struct, frozen=True, omit_defaults=True):
    """What stands at ``holdings/<name>/<node>``: the parts that lie on this node, whole and verified."""

    incarnation: str
    versions: dict[str, str] = {}  # version -> bits in hex, part 0 is the lowest


class Keeper(Struct, frozen=True, omit_defaults=True):
    """A node that keeps data."""

    node: NodeId
    weight: Annotated[float, Meta(gt=0, le=1_000_000)] = 1.0
    zone: str | None = None


class Ring(Struct, frozen=True, omit_defaults=True):
    """What stands at ``control/ring``: the nodes that parts are placed on, written by the leader.

    A node that was lost stays in it for a time of grace, one that is drained goes at once. Whoever reads it can
    compute where each part belongs.
    """

    epoch: int
    keepers: list[Keeper] = []
    lost: dict[str, str] = {}  # node of `keepers` that is not here -> since when, UTC, for people


Health = Literal["full", "degraded", "lost"]
