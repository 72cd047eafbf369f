"""Which rows of a segment have a key, without numpy: a derived file beside the segments, searched in place.

    <data_dir>/segments.index/<segment>.<file>     "ZKDIDX1\\n", number of rows, xxh3 of the rest: the hashes of the
                                                   keys in order, 8 bytes each; the row of each, 4 bytes

All little-endian. `zkd.tables.key_index` makes it. Nothing depends on it: one that is missing, damaged or of another
length is made anew, so it is neither synced nor copied.
"""

from __future__ import annotations

import mmap
import os
import sys
from bisect import bisect_left
from pathlib import Path

from xxhash import xxh3_64_intdigest

from zkd.errors import DataDamaged

MAGIC = b"ZKDIDX1\n"
HEAD_BYTES = 24
ROWS_MAX = 1 << 32

assert sys.byteorder == "little", "files are mapped as they lie"


def index_name(segment_id: str, file: int) -> str:
    """`file` 0 is rows.npy, n the column n - 1."""
    return f"{segment_id}.{file}"


def head(rows: int, checksum: int) -> bytes:
    return MAGIC + rows.to_bytes(8, "little") + checksum.to_bytes(8, "little")


class KeyIndex:
    """An index that was checked when it was opened. It reads a file that may have been replaced since."""

    def __init__(self, path: Path, rows: int) -> None:
        """Raises `FileNotFoundError`; `DataDamaged` if it is not as it was written, for so many rows."""
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size != HEAD_BYTES + 12 * rows:
                raise DataDamaged(f"{path.name}: expected {HEAD_BYTES + 12 * rows} bytes for {rows} rows")
            self._map = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
        view = memoryview(self._map)
        if bytes(view[:HEAD_BYTES]) != head(rows, xxh3_64_intdigest(view[HEAD_BYTES:])):
            raise DataDamaged(f"{path.name}: has another checksum")
        self._hashes = view[HEAD_BYTES : HEAD_BYTES + 8 * rows].cast("Q")
        self._rows = view[HEAD_BYTES + 8 * rows :].cast("I")

    def rows(self, hashed: int) -> list[int]:
        """The rows, within the segment, whose keys have this hash; their keys need not be equal."""
        hashes, found = self._hashes, []
        at = bisect_left(hashes, hashed)
        while at < len(hashes) and hashes[at] == hashed:
            found.append(self._rows[at])
            at += 1
        return found
