"""Makes the file in which a node looks up rows by key (`zkd.store.key_index` reads it, and says what is in it)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_intdigest

from zkd.tables.hashing import hash_column

ROWS_MAX = 1 << 32


def build(column: Path, target: Path) -> None:
    """Write the index of a column's .npy file, whose keys were checked when the segment was made."""
    keys = np.load(column, mmap_mode="r", allow_pickle=False)
    if len(keys) >= ROWS_MAX:
        raise ValueError(f"{column}: expected less than {ROWS_MAX} rows in a segment, got {len(keys)}")
    hashes = hash_column(keys)
    order = np.argsort(hashes, kind="stable")
    body = hashes[order].astype("<u8").tobytes() + order.astype("<u4").tobytes()
    half_written = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    head = b"ZKDIDX1\n" + len(keys).to_bytes(8, "little") + xxh3_64_intdigest(body).to_bytes(8, "little")
    half_written.write_bytes(head + body)
    os.replace(half_written, target)
