"""Which dtypes are plain data, how they are spelled in JSON, and which bytes are values of them.

A dtype from outside passes a parser that knows a few patterns. `numpy.dtype` itself reads far more:
objects, comma-separated structures, aliases that mean another width on another machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from zkd.arrays.shown import describe
from zkd.errors import BadRecord, NotData

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

DIMENSIONS_MAX = 64  # numpy's own limit
FIELDS_MAX = 256  # of a structured dtype, and
FIELD_DEPTH_MAX = 8  # how deep structures lie in each other
# "<f16" is the 80-bit format of x86 in 16 bytes. Other machines give the same name to other formats, so
# they refuse it (and their own long doubles) instead of reading wrong numbers.
HAS_X87 = np.finfo(np.longdouble).nmant == 63 and np.dtype(np.longdouble).itemsize == 16

_NUMERIC = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16)\Z")
_EXTENDED = re.compile(r"<(f16|c32)\Z")
_TIME = re.compile(r"[<>=]?[mM]8(\[[1-9]?[0-9]{0,8}(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?\Z")
_SIZED = re.compile(r"([<>=]?U|\|?S|\|?V)([1-9][0-9]{0,8})\Z")
BY_NAME = frozenset(
    np.dtype(code).name for code in ("?", "b", "h", "i", "q", "B", "H", "I", "Q", "e", "f", "d", "F", "D")
)
DTYPE_RULE = 'a plain dtype such as "float64", "<i4", "|b1", "<c16", "<M8[ns]", "<U10", "|S8" or a list of fields'


# --- to be sent ---------------------------------------------------------------------------------------


def plain_array(array: Array, where: str = "$") -> Array:
    """`array` as the bytes that are sent: C order, little-endian, no padding. Raises `NotData`."""
    dtype = _plain_dtype(array.dtype, where)
    plain = np.ascontiguousarray(array, dtype=dtype).reshape(array.shape).view(np.ndarray)
    if _is_extended(dtype):
        plain = plain.copy()
        # The 6 unused bytes of each number hold whatever was in memory before: not for others to read.
        plain.reshape(-1).view(np.uint8).reshape(-1, 16)[:, 10:] = 0
    return plain


def _plain_dtype(dtype: np.dtype[Any], where: str) -> np.dtype[Any]:
    if dtype.fields is not None and dtype.names is not None:
        return np.dtype([(name, _plain_field(dtype.fields[name][0], f"{where}.{name}")) for name in dtype.names])
    if _is_extended(dtype):
        if not HAS_X87:
            raise NotData(where, f"{dtype} means another format on other machines; use .astype(numpy.float64)")
        return dtype.newbyteorder("<")
    if dtype.hasobject or dtype.kind not in "biufcmMSUV":
        raise NotData(where, f"dtype {dtype} is not plain data; use .astype(…) with a numeric dtype, or a list")
    if dtype.itemsize == 0:  # text of length zero: one NUL says the same
        return np.dtype(f"{dtype.kind}1")
    return dtype.newbyteorder("<")


def _plain_field(dtype: np.dtype[Any], where: str) -> np.dtype[Any]:
    if dtype.subdtype is not None:
        element, shape = dtype.subdtype
        return np.dtype((_plain_field(element, where), shape))
    if _is_extended(dtype):
        raise NotData(where, f"{dtype} in a structure is not plain data; use float64")
    return _plain_dtype(dtype, where)


def _is_extended(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "fc" and dtype.itemsize > (8 if dtype.kind == "f" else 16)


def spelling(dtype: np.dtype[Any]) -> object:
    """A plain dtype as it is written: text, or a list of [name, dtype] and [name, dtype, shape]."""
    if dtype.names is None or dtype.fields is None:
        return dtype.str
    spelled: list[object] = []
    for name in dtype.names:
        field = dtype.fields[name][0]
        if field.subdtype is None:
            spelled.append([name, spelling(field)])
        else:
            spelled.append([name, spelling(field.subdtype[0]), list(field.subdtype[1])])
    return spelled


# --- as received --------------------------------------------------------------------------------------


def parse_dtype(value: object, where: str = "$") -> np.dtype[Any]:
    """The dtype that this text or list of fields names, if it is plain data. Raises `BadRecord`."""
    return _parse_dtype(value, where, 0, [])


def _parse_dtype(value: object, where: str, depth: int, seen: list[None]) -> np.dtype[Any]:
    if isinstance(value, str) and len(value) <= 32:
        sized = _SIZED.match(value)
        if sized and int(sized[2]) < 2**28:  # numpy counts bytes in 32 bits, four to a character
            return np.dtype(value)
        plain = value in BY_NAME or _NUMERIC.match(value) or _TIME.match(value)
        if plain or (HAS_X87 and depth == 0 and _EXTENDED.match(value)):
            return _known(value, where)
    elif isinstance(value, list) and value and depth < FIELD_DEPTH_MAX:
        return _parse_fields(value, where, depth, seen)
    raise BadRecord(where, f"expected {DTYPE_RULE}, got {describe(value)}")


def _known(text: str, where: str) -> np.dtype[Any]:
    try:
        return np.dtype(text)
    except (TypeError, ValueError) as error:  # a unit such as [999999999Y] that numpy cannot hold
        raise BadRecord(where, f"expected {DTYPE_RULE}, got {text!r}: {error}") from None


def _parse_fields(value: Sequence[object], where: str, depth: int, seen: list[None]) -> np.dtype[Any]:
    parsed: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
    for index, field in enumerate(value):
        place = f"{where}[{index}]"
        seen.append(None)
        if len(seen) > FIELDS_MAX:
            raise BadRecord(where, f"expected at most {FIELDS_MAX} fields")
        if not isinstance(field, list | tuple) or len(field) not in (2, 3):
            raise BadRecord(
                place, f'expected a field as ["name", dtype] or ["name", dtype, shape], got {describe(field)}'
            )
        name = field[0]
        if not isinstance(name, str) or not 0 < len(name) <= 256 or name in (other[0] for other in parsed):
            raise BadRecord(f"{place}[0]", f"expected a name of its own for each field, got {describe(name)}")
        dtype = _parse_dtype(field[1], f"{place}[1]", depth + 1, seen)
        shape = parse_shape(list(field[2]) if len(field) == 3 else [], f"{place}[2]") if _is_shape(field) else None
        if shape is None or 0 in shape or math.prod(shape) * dtype.itemsize >= 2**30:
            raise BadRecord(f"{place}[2]", f"expected a small shape without zeros, got {describe(field[2])}")
        parsed.append((name, dtype, shape))
    if sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in parsed) >= 2**31:
        raise BadRecord(where, "expected a structure below 2 GiB")
    return np.dtype(parsed)


def _is_shape(field: Sequence[Any]) -> bool:
    return len(field) == 2 or isinstance(field[2], list | tuple)


def parse_shape(value: object, where: str) -> tuple[int, ...]:
    if type(value) is not list or not all(type(length) is int and length >= 0 for length in value):
        raise BadRecord(where, f"expected a list of whole numbers >= 0, got {describe(value)}")
    if len(value) > DIMENSIONS_MAX:
        raise BadRecord(where, f"expected at most {DIMENSIONS_MAX} dimensions, got {len(value)}")
    return tuple(value)


def byte_count(shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> int:
    # numpy multiplies the other lengths of an empty array, too, so they must fit as well.
    if math.prod(length for length in shape if length) * dtype.itemsize >= 2**63:
        raise BadRecord(where, f"expected a shape that fits into memory, got {describe(list(shape))}")
    return math.prod(shape) * dtype.itemsize


def refuse_bad_elements(array: Array, where: str) -> None:
    """Raise a `BadRecord` for bytes that are no value of their dtype: booleans of 7, text past Unicode."""
    if array.dtype.names is not None:
        for name in array.dtype.names:
            refuse_bad_elements(array[name], where)
    elif array.dtype.kind == "b" and array.size and int(array.view(np.uint8).max()) > 1:
        raise BadRecord(where, "expected booleans as bytes 0 and 1, got others")
    elif array.dtype.kind == "U" and array.size:
        codes = np.ascontiguousarray(array).reshape(-1).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if int(codes.max()) > 0x10FFFF:
            raise BadRecord(where, "expected text in UCS-4, got numbers beyond Unicode")


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.isnative else dtype.newbyteorder("=")
