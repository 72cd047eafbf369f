"""A segment in a program's memory, ready to travel: made of rows that are to be sent once, and then forgotten.

Its bytes are written once, into room that can be used again for the next one, and hashed where they are. What a
directory has for it is only made by those who keep it. numpy is not needed; making one blocks: call it in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blake3 import blake3
from xxhash import xxh3_64_intdigest

from zkd.manifests import BLOCK_BYTES, Column, Segment, SegmentFile, SegmentRef
from zkd.store.segment_files import ROWS, Block, npy_header, npy_size, sealed

ALIGNMENT = 64  # of the values of each file, as of .npy files


@dataclass(frozen=True)
class Packed:
    """A segment, and where its files lie. Good for as long as nobody uses the room for another one."""

    ref: SegmentRef
    segment: Segment
    text: bytes  # segment.json
    files: tuple[memoryview, ...]

    def read(self, place: Block) -> memoryview:
        start = place.block * BLOCK_BYTES
        return self.files[place.file][start : start + place.size]


def room_bytes(rows: int, columns: Sequence[Column]) -> int:
    """How much room so many rows need."""
    return sum(_aligned(npy_size(column, rows)) for column in (ROWS, *columns))


def pack(room: memoryview, rows: int, columns: Sequence[Column], fill: Callable[[int, memoryview], None]) -> Packed:
    """Make a segment there. `fill` puts the values of the file of this number into a view of just their size:
    0 are the numbers of the rows, n the column n - 1; C order, little-endian."""
    views = []
    files = []
    at = 0
    for number, column in enumerate((ROWS, *columns)):
        header, size = npy_header(column, rows), npy_size(column, rows)
        view = room[at : at + size]
        view[: len(header)] = header
        fill(number, view[len(header) :])
        blocks = [xxh3_64_intdigest(view[start : start + BLOCK_BYTES]) for start in range(0, size, BLOCK_BYTES)]
        files.append(SegmentFile(size, blake3(view).hexdigest(), blocks))
        views.append(view)
        at += _aligned(size)
    segment = Segment(rows, list(columns), files)
    ref, text = sealed(segment)
    return Packed(ref, segment, text, tuple(views))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
