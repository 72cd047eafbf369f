"""Segments to put into stores, and the checker of what comes out: the bytes that went in, or an error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zkd.manifests import Column, SegmentRef
from zkd.store import segment_files
from zkd.store.segments import SegmentStore

BLOCK = 1 << 20


@dataclass(frozen=True)
class Made:
    """A segment, and all of its bytes."""

    ref: SegmentRef
    directory: Path
    files: dict[str, bytes]

    @property
    def id(self) -> str:
        return self.ref.id

    @property
    def head(self) -> bytes:
        return segment_files.packed_head(self.files["segment.json"])

    @property
    def packed(self) -> bytes:
        return self.head + b"".join(data for name, data in self.files.items() if name != "segment.json")


def make(directory: Path, rows: int = 1000, seed: int = 0, wide: int = 3) -> Made:
    """A segment with a column of `wide` floats, one of labels and one of words."""
    dice = np.random.default_rng(seed)
    columns = [Column("x", "<f8", [wide]), Column("y", "|i1"), Column("w", "<U3")]
    values = [
        np.sort(dice.permutation(rows * 3)[:rows]).astype("<i8"),
        dice.normal(size=(rows, wide)),
        dice.integers(0, 10, rows).astype("i1"),
        dice.integers(0, 1000, rows).astype("<U3"),
    ]
    ref = segment_files.write(directory, rows, columns, [[value.tobytes()] for value in values])
    names = ["segment.json", "rows.npy", "0.npy", "1.npy", "2.npy"]
    return Made(ref, directory, {name: (directory / name).read_bytes() for name in names})


async def in_pieces(data: bytes, size: int = 1 << 18) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def put(store: SegmentStore, made: Made) -> None:
    assert await store.receive(made.id, 0, len(made.packed), in_pieces(made.packed))


async def got(store: SegmentStore, segment_id: str, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join([piece async for piece in store.read(segment_id, start, stop)])
