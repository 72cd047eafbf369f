"""What stands below ``datasets/<name>`` and ``holdings/<name>``, believed as far as it can be checked.

A manifest has to be of the version under whose name it stands; a chunk has to have the digest that the manifest
names, and list as many parts; the rows and bytes of all segments have to be those that the manifest says. One that
lies is a `BadRecord` with the place and the expectation, and as if it were not there: nobody computes with half of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from blake3 import blake3

from zkd import codec
from zkd.core.extents import row_bytes
from zkd.errors import BadRecord
from zkd.manifests import CHUNK_PARTS, KEY_HASH, PARTS_MAX, Head, Holding, Manifest, Numbers, Ring, SegmentRef
from zkd.paths import NodeId, is_name

NUMBERS_MAX = 1000  # datasets whose numbers are remembered each by itself: some 50 kB

Parts = tuple[tuple[SegmentRef, ...], ...]  # the segments of each part, the oldest first

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")
_chunk = msgspec.json.Decoder(list[list[SegmentRef]])


def is_dataset_name(text: str) -> bool:
    return _NAME.match(text) is not None


def split_name(text: str) -> tuple[str, int | None]:
    """``NAME`` or ``NAME@VERSION`` -> the name, and the version if one is said; `BadRecord` if it is neither."""
    name, at, version = text.partition("@")
    if not is_dataset_name(name) or (at and not re.fullmatch(r"[1-9][0-9]{0,17}", version)):
        raise BadRecord("$.dataset", f"expected NAME or NAME@VERSION, got {text[:150]!r}")
    return name, int(version) if at else None


def version_number(leaf: str) -> int | None:
    """The version that a znode below ``versions/`` is of; None for a name that no version has."""
    return int(leaf) if re.fullmatch(r"[1-9][0-9]{0,17}", leaf) else None


def read_ring(text: bytes) -> Ring:
    """What stands at ``control/ring``, or a `BadRecord`: parts could not be placed by it."""
    ring = codec.decode(text, Ring)
    names = [keeper.node for keeper in ring.keepers]
    if len(set(names)) != len(names) or not all(map(is_name, names)):
        raise BadRecord("$.keepers", "expected names of nodes, each once")
    return ring


def read_head(text: bytes) -> Head:
    return codec.decode(text, Head)


def read_numbers(text: bytes) -> Numbers:
    """What stands at ``datasets``. What cannot be read is none: it is mended with the next that goes."""
    try:
        return codec.decode(text, Numbers) if text else Numbers()
    except BadRecord:
        return Numbers()


def next_number(numbers: Numbers, name: str, there: Iterable[int]) -> int:
    """Of the next version of a dataset: `there` are the numbers of those that it has."""
    return max([numbers.last.get(name, numbers.floor), *there]) + 1


def without(numbers: Numbers, name: str, highest: int) -> Numbers:
    """The numbers, when the version of this dataset that had the highest goes."""
    last = {**numbers.last, name: max(highest, numbers.last.get(name, 0))}
    kept = sorted(last, key=lambda each: (each == name, last[each]))[-NUMBERS_MAX:]
    floor = max([numbers.floor, *(last[each] for each in last.keys() - set(kept))])
    return Numbers({each: last[each] for each in sorted(kept) if last[each] > floor}, floor)


def read_manifest(name: str, version: int, text: bytes) -> Manifest:
    """The manifest in these bytes, which stood at ``datasets/<name>/versions/<version>``, or a `BadRecord`."""
    manifest = codec.decode(text, Manifest)
    if (manifest.name, manifest.version) != (name, version):
        raise BadRecord("$.name", f"expected {name}@{version}, got {manifest.name}@{manifest.version}")
    if manifest.parts & (manifest.parts - 1):
        raise BadRecord("$.parts", f"expected a power of two up to {PARTS_MAX}, got {manifest.parts}")
    chunks = chunks_of(manifest.parts)
    if len(manifest.chunks) != chunks:
        raise BadRecord("$.chunks", f"expected {chunks} for {manifest.parts} parts, got {len(manifest.chunks)}")
    if manifest.hash != KEY_HASH:
        raise BadRecord("$.hash", f"expected {KEY_HASH}, got {manifest.hash[:40]!r}: a newer zkd wrote this")
    columns = [column.name for column in manifest.columns]
    if not columns or len(set(columns)) != len(columns):
        raise BadRecord("$.columns", "expected at least one, and each name once")
    for place, column in (("key", manifest.key), ("label", manifest.label)):
        if column is not None and column not in columns:
            raise BadRecord(f"$.{place}", f"expected one of the columns, got {column!r}")
    for number, each in enumerate(manifest.columns):
        row_bytes(each, f"$.columns[{number}]")
    if manifest.parent is not None and not 1 <= manifest.parent < version:
        raise BadRecord("$.parent", f"expected a version before {version}, got {manifest.parent}")
    return manifest


def mark_of(manifest: Manifest) -> str:
    """Tells versions apart that had the same number one after the other: digest of what a key finds in this one."""
    return blake3("\n".join([manifest.key or "", *manifest.chunks]).encode()).hexdigest()


def chunks_of(parts: int) -> int:
    """How many chunks list the segments of so many parts."""
    return -(-parts // CHUNK_PARTS)


def chunk_digest(text: bytes) -> str:
    return blake3(text).hexdigest()


def read_chunk(digest: str, text: bytes) -> Parts:
    """The segments of each part that this chunk lists, or a `BadRecord`."""
    found = chunk_digest(text)
    if found != digest:
        raise BadRecord("$", f"expected the bytes of blake3 {digest}, got others, of {found}")
    try:
        lists = _chunk.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRecord("$", f"expected a list of segments for each part: {error}") from None
    if len(lists) > CHUNK_PARTS:
        raise BadRecord("$", f"expected at most {CHUNK_PARTS} parts, got {len(lists)}")
    return tuple(map(tuple, lists))


def assemble(manifest: Manifest, chunks: Mapping[str, Parts]) -> Parts:
    """The segments of all parts; `chunks` has every chunk that the manifest names. `BadRecord` if they do not fit."""
    parts: list[tuple[SegmentRef, ...]] = []
    for number, digest in enumerate(manifest.chunks):
        expected = min(CHUNK_PARTS, manifest.parts - number * CHUNK_PARTS)
        if len(chunks[digest]) != expected:
            raise BadRecord(f"$.chunks[{number}]", f"expected {expected} parts, got {len(chunks[digest])}")
        parts += chunks[digest]
    rows = sum(segment.rows for part in parts for segment in part)
    size = sum(segment.size for part in parts for segment in part)
    if (rows, size) != (manifest.rows, manifest.size):
        raise BadRecord(
            "$.rows", f"expected the {rows} rows of {size} bytes of all segments, got {manifest.rows}, {manifest.size}"
        )
    return tuple(parts)


@dataclass(frozen=True, slots=True)
class Edition:
    """One version of a dataset, checked."""

    manifest: Manifest
    parts: Parts


@dataclass(frozen=True, slots=True)
class Held:
    """What a node says that it holds of a dataset."""

    incarnation: str
    parts: dict[int, int]  # version -> bits, part 0 is the lowest

    def has(self, version: int, part: int) -> bool:
        return bool(self.parts.get(version, 0) >> part & 1)


def read_holding(text: bytes) -> Held:
    """What stands at ``holdings/<name>/<node>``, or a `BadRecord`."""
    holding = codec.decode(text, Holding)
    parts: dict[int, int] = {}
    for version, bits in holding.versions.items():
        number = version_number(version)
        if number is None or not re.fullmatch(rf"[0-9a-f]{{0,{PARTS_MAX // 4}}}", bits):
            raise BadRecord("$.versions", f"expected versions and hex digits, got {version[:40]!r}: {bits[:40]!r}")
        parts[number] = int(bits or "0", 16)
    return Held(holding.incarnation, parts)


def holding(incarnation: str, parts: Mapping[int, int]) -> Holding:
    return Holding(incarnation, {str(version): f"{bits:x}" for version, bits in sorted(parts.items()) if bits})


def bits(parts: Sequence[bool]) -> int:
    """The bits of parts that are there, part 0 the lowest."""
    return int("".join("01"[is_here] for is_here in reversed(parts)) or "0", 2)


def nodes_with(held: Mapping[NodeId, Held], version: int, part: int) -> tuple[NodeId, ...]:
    return tuple(node for node, each in held.items() if each.has(version, part))
