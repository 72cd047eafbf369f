"""What a column of a dataset may be: an array of plain data, with a row for each row of the others.

Truth values, integers, floats, complex numbers, dates, spans, text and bytes of fixed widths; each row may have a
shape of its own, the same for all. Whatever else is refused with the column's name and what would have been right.
Text and bytes may grow wider from one batch of rows to the next, all other types stay as they began.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from zkd.arrays.dtypes import Array, refuse_bad_elements
from zkd.arrays.writing import is_masked
from zkd.core.extents import TEXT_WIDTH_MAX as TEXT_WIDTH_MAX
from zkd.errors import BadRecord, BadRows
from zkd.manifests import Column

Columns = dict[str, Array]  # a batch of rows: arrays of one length

NAME_LENGTH_MAX = 128
COLUMNS_MAX = 4096
KINDS = "biufcmMSU"
KEY_KINDS = "iufmMSU"
ADVICE = "expected numbers, truth values, dates, text or bytes of fixed width; use .astype(...) or leave it out"


def checked(batch: Mapping[str, Any]) -> Columns:
    """The arrays of this batch, as they are; `BadRows` unless each is plain data and all have the same length."""
    if not isinstance(batch, Mapping):
        raise BadRows("rows", f"expected a mapping of names to arrays, got a {type(batch).__name__}")
    refuse_bad_names(batch)
    columns = {name: _checked_column(name, values) for name, values in batch.items()}
    first = next(iter(columns))
    for name, column in columns.items():
        if len(column) != len(columns[first]):
            raise BadRows(
                f"column {name!r}",
                f"expected {len(columns[first])} rows, as many as column {first!r} has, got {len(column)}",
            )
    return columns


def refuse_bad_names(names: Iterable[Any]) -> None:
    """`BadRows` unless there are some names, each once, of characters that can be shown."""
    seen = set()
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH_MAX or not name.isprintable():
            shown = repr(name)[:80]
            raise BadRows("columns", f"expected names of 1 to {NAME_LENGTH_MAX} printable characters, got {shown}")
        if name in seen:
            raise BadRows("columns", f"expected each name once, got {name!r} twice")
        seen.add(name)
    if not 0 < len(seen) <= COLUMNS_MAX:
        raise BadRows("columns", f"expected 1 to {COLUMNS_MAX} columns, got {len(seen)}")


def _checked_column(name: str, values: Any) -> Array:
    where = f"column {name!r}"
    try:
        array: Array = values if isinstance(values, np.ndarray) else np.asarray(values)
    except (TypeError, ValueError) as error:  # uneven lists
        raise BadRows(where, f"expected an array or even lists: {error}") from None
    if is_masked(array):
        raise BadRows(where, "a masked array would lose its mask; use .filled(...) or a second column")
    if array.ndim == 0:
        raise BadRows(where, f"expected an array with a row for each row, got one value of type {array.dtype}")
    if array.dtype.kind == "T":
        raise BadRows(where, 'text of variable width has no fixed bytes; use .astype("U")')
    if array.dtype.kind not in KINDS:
        raise BadRows(where, f"dtype {array.dtype} is not plain data; {ADVICE}")
    if array.dtype.kind in "fc" and array.dtype.itemsize > (8 if array.dtype.kind == "f" else 16):
        raise BadRows(where, f"{array.dtype} means another format on other machines; use .astype(numpy.float64)")
    if array.dtype.kind == "U" and array.dtype.itemsize > 4 * TEXT_WIDTH_MAX:
        raise BadRows(
            where,
            f"expected text of at most {TEXT_WIDTH_MAX} characters, got up to {array.dtype.itemsize // 4}: "
            "every row would take as much as the longest",
        )
    try:
        refuse_bad_elements(array, where)
    except BadRecord as error:
        raise BadRows(error.where, error.expected) from None
    return array


def described(name: str, array: Array) -> Column:
    """What a manifest says of this column."""
    return Column(name, stored_dtype(array.dtype).str, list(array.shape[1:]))


def stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """As it lies in files: little-endian; text of length zero takes one character."""
    if dtype.itemsize == 0:
        return np.dtype(f"{dtype.kind}1")
    return dtype.newbyteorder("<")


def refuse_bad_key(columns: Mapping[str, Array], key: str | None, label: str | None) -> None:
    """`BadRows` unless these columns are there, and rows can be found by the key."""
    for what, name in (("key", key), ("label", label)):
        if name is not None and name not in columns:
            raise BadRows(what, f"expected one of the columns {_some(columns)}, got {name!r}")
    if key is None:
        return
    column = columns[key]
    if column.ndim != 1:
        raise BadRows(f"column {key!r}", f"a key is one value a row, this has the shape {list(column.shape[1:])}")
    if column.dtype.kind not in KEY_KINDS:
        raise BadRows(f"column {key!r}", f"a key is a number, a date, text or bytes, got {column.dtype}")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(map(repr, listed[:8])) + (", ..." if len(listed) > 8 else "")


def joined(known: list[Column], batch: Columns) -> list[Column]:
    """The columns of `known` as they have to be to hold `batch`, too. `BadRows` if they are others."""
    names = [column.name for column in known]
    if set(names) != batch.keys():
        missing, extra = [n for n in names if n not in batch], [n for n in batch if n not in names]
        raise BadRows(
            "columns",
            f"expected {_some(names)} as in the rows before"
            + (f"; {_some(missing)} is missing" if missing else "")
            + (f"; {_some(extra)} is new" if extra else ""),
        )
    return [_joined(column, batch[column.name]) for column in known]


def _joined(known: Column, array: Array) -> Column:
    new = described(known.name, array)
    if new == known:
        return known
    old_dtype, new_dtype = np.dtype(known.dtype), np.dtype(new.dtype)
    if new.shape != known.shape:
        raise BadRows(
            f"column {known.name!r}", f"expected rows of shape {known.shape} as before, got shape {new.shape}"
        )
    if old_dtype.kind == new_dtype.kind and old_dtype.kind in "US":
        return new if new_dtype.itemsize > old_dtype.itemsize else known
    raise BadRows(f"column {known.name!r}", f"expected {old_dtype} as in the rows before, got {new_dtype}")


def row_bytes(columns: Iterable[Column]) -> int:
    """Bytes of one row, without its number."""
    return sum(_width(column) for column in columns)


def _width(column: Column) -> int:
    count = 1
    for length in column.shape:
        count *= length
    return np.dtype(column.dtype).itemsize * count


def typed(values: Any, columns: Iterable[Column]) -> Columns:
    """Columns that came as JSON, where small arrays are lists, as what the manifest says they are. Raises `BadRows`."""
    if not isinstance(values, Mapping):
        raise BadRows("rows", f"expected an object of columns, got a {type(values).__name__}")
    found: Columns = {}
    for column in columns:
        if column.name not in values:
            raise BadRows(f"column {column.name!r}", "expected it among the others")
        try:
            array = np.asarray(values[column.name], np.dtype(column.dtype))
            if array.shape[1:] != tuple(column.shape):
                array = array.reshape(-1, *column.shape) if array.size else array.reshape(0, *column.shape)
            found[column.name] = array
        except (TypeError, ValueError) as error:
            raise BadRows(f"column {column.name!r}", str(error)) from None
    if len({len(array) for array in found.values()}) > 1:
        raise BadRows("rows", "expected columns of one length")
    return found
