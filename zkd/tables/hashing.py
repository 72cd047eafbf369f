"""The hashes of a whole column of keys: for every row what `zkd.core.placement.hash_key` says of its key.

All widths of integers count as 64 bits, all floats as doubles, dates and spans as the number of their unit. Keys
that cannot be found again are refused with the number of their row: NaN, NaT, text that is no UTF-8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from zkd.arrays.dtypes import Array
from zkd.errors import BadRows

Hashes = npt.NDArray[np.uint64]

BLOCK_ROWS = 1 << 16  # so that what is in between stays in the processor's second cache
SHOWN_ROWS = 5

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


def hash_column(keys: Array, *, first_row: int = 0, where: str = "key") -> Hashes:
    """The 64-bit hash of each key. Raises `BadRows` with the numbers of bad rows, counted from `first_row`."""
    if keys.dtype.kind in "US":
        return _hash_text(keys, first_row, where)
    if keys.dtype.kind not in "iufmM":
        raise BadRows(where, f"a key is a number, a date, text or bytes, got {keys.dtype}")
    hashes = np.empty(len(keys), np.uint64)
    spare = np.empty(min(BLOCK_ROWS, len(keys)), np.uint64)
    for start in range(0, len(keys), BLOCK_ROWS):
        block = hashes[start : start + BLOCK_ROWS]
        _bits(keys[start : start + BLOCK_ROWS], block, first_row + start, where)
        _splitmix64(block, spare[: len(block)])
    return hashes


def part_numbers(hashes: Hashes, parts: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """The part that each hash belongs to: its upper bits, as small integers, which numpy sorts by radix."""
    kind: Any = np.uint8 if parts <= 256 else np.uint16
    if parts == 1:  # a shift by all 64 bits has no meaning
        return np.zeros(len(hashes), kind)
    return (hashes >> np.uint64(65 - parts.bit_length())).astype(kind)


def _bits(keys: Array, into: Hashes, first_row: int, where: str) -> None:
    """The keys as 64 bits each."""
    if keys.dtype.kind == "u":
        into[:] = keys
    elif keys.dtype.kind == "f":
        floats = into.view(np.float64)
        floats[:] = keys
        refuse(np.isnan(floats), first_row, where, "NaN equals nothing, so nothing could be found by it")
        floats += 0.0  # -0.0 + 0.0 is 0.0
    elif keys.dtype.kind in "mM":
        refuse(np.isnat(keys), first_row, where, "NaT equals nothing, so nothing could be found by it")
        into.view(np.int64)[:] = keys.astype(keys.dtype.newbyteorder("=")).view(np.int64)
    else:
        into.view(np.int64)[:] = keys


def _splitmix64(x: Hashes, spare: Hashes) -> None:
    """In place: Steele, Lea and Flood 2014."""
    np.add(x, _GOLDEN, out=x)
    np.right_shift(x, _30, out=spare)
    np.bitwise_xor(x, spare, out=x)
    np.multiply(x, _FIRST, out=x)
    np.right_shift(x, _27, out=spare)
    np.bitwise_xor(x, spare, out=x)
    np.multiply(x, _SECOND, out=x)
    np.right_shift(x, _31, out=spare)
    np.bitwise_xor(x, spare, out=x)


def _hash_text(keys: Array, first_row: int, where: str) -> Hashes:
    texts = keys.tolist()
    if keys.dtype.kind == "U":
        try:
            texts = [text.encode() for text in texts]
        except UnicodeEncodeError:
            bad = np.array([not is_utf8(text) for text in texts])
            refuse(bad, first_row, where, "text with a lone surrogate cannot be UTF-8")
    return np.fromiter(map(xxh3_64_intdigest, texts), np.uint64, len(texts))


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse(bad: npt.NDArray[np.bool_], first_row: int, where: str, why: str) -> None:
    if not bad.any():
        return
    rows = np.flatnonzero(bad)
    some = ", ".join(str(first_row + int(row)) for row in rows[:SHOWN_ROWS])
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    raise BadRows(where, f"{why} (row{'s' if len(rows) > 1 else ''} {some}{more}, counted from 0)")
