"""One key, as a program or a person says it, as what it is in a column: the same that `hash_column` hashes there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zkd.arrays.dtypes import Array
from zkd.errors import BadRows
from zkd.tables.hashing import is_utf8, refuse


def as_key(key: Any, dtype: str) -> int | str | bytes | float:
    """`key` as `hash_key` takes it, to be looked for in a column of this dtype. `BadRows` if it cannot be in there.

    A float is rounded as the column rounded it when it was written, a date becomes the number of the column's unit.
    """
    column = np.dtype(dtype)
    wrong = BadRows("key", f"expected a value of a column of {column}, got {str(key)[:80]!r} ({type(key).__name__})")
    if isinstance(key, np.generic):
        key = key if key.dtype.kind in "mM" else key.item()
    if key is None or isinstance(key, bool) or np.ndim(key):
        raise wrong
    if column.kind in "mM":
        try:
            moment = np.array(key, column) if isinstance(key, int) else np.asarray(key).astype(column)
        except (TypeError, ValueError):
            raise wrong from None
        refuse(np.isnat(moment.reshape(1)), 0, "key", "NaT equals nothing, so nothing can be found by it")
        return int(moment.astype(np.int64))
    if isinstance(key, int) and abs(key) >= 2**64:
        raise wrong
    if column.kind in "iu" and isinstance(key, int | float) and float(key).is_integer():
        limits = np.iinfo(column)
        if not limits.min <= key <= limits.max:
            raise wrong
        return int(key)
    if column.kind == "f" and isinstance(key, int | float):
        refuse(np.isnan(np.array([key], np.float64)), 0, "key", "NaN equals nothing, so nothing can be found by it")
        with np.errstate(over="ignore"):
            return float(np.float64(key).astype(column)) + 0.0
    if column.kind == "U" and isinstance(key, str) and is_utf8(key):
        return key
    if column.kind == "S" and isinstance(key, str | bytes):
        return key.encode() if isinstance(key, str) else key
    raise wrong


def from_text(text: str, dtype: str) -> Any:
    """The key that somebody typed, for a column of this dtype. Raises `BadRows`."""
    kind = np.dtype(dtype).kind
    try:
        if kind in "ium":  # a span is the number of its unit
            return int(text)
        if kind == "f":
            return float(text)
        if kind == "M":
            return np.datetime64(text)
    except ValueError:
        raise BadRows("key", f"expected a value of a column of {np.dtype(dtype)}, got {text[:80]!r}") from None
    return text


def has_key(column: Array, key: int | str | bytes | float) -> npt.NDArray[np.bool_]:
    """Which rows of a column have the key that `as_key` gave. Dates do not equal the numbers that they are."""
    numbers = column.astype(column.dtype.newbyteorder("=")).view(np.int64) if column.dtype.kind in "mM" else column
    return np.asarray(numbers == key)
