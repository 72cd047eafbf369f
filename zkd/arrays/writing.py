"""Values -> JSON text: nested lists for small finite arrays, the dtype form for what they cannot say.

msgspec does the writing. It would turn NaN into null, bytes into text and sets into lists without a word,
so only what it writes faithfully is given to it, whole lists at a time; the rest is replaced first.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw

from zkd.arrays.dtypes import Array, plain_array, spelling
from zkd.arrays.shown import type_name
from zkd.errors import NotData

LIST_ELEMENTS_MAX = 1000  # larger arrays are base64: 3 times smaller and 20 times faster to read
DEPTH_MAX = 100  # of lists and objects in each other

_encode = msgspec.json.Encoder().encode
_SIMPLE = frozenset({float, int, bool, str, type(None)})


def to_json(value: object, *, exact: bool = False) -> bytes:
    """`value` as JSON text.

    A tuple becomes a list, a dataclass or struct an object, a numpy scalar a number. NaN, infinities,
    complex numbers, dates and bytes become 0-d arrays, which `from_json` gives back bit for bit.
    `exact` keeps every dtype, by giving up nested lists and numbers for what comes from numpy.
    Raises `NotData` for what has no place in JSON: object arrays, sets, functions, cycles.
    """
    try:
        return _encode(_tree(value, "$", 0, exact))
    except UnicodeEncodeError as error:
        raise NotData("$", f"text with a lone surrogate cannot be UTF-8: {error.object[:40]!r}") from None
    except ValueError as error:  # Python's own bound on the digits of an int
        raise NotData("$", str(error)) from None


def _tree(value: object, where: str, depth: int, exact: bool) -> object:
    """`value` with everything that msgspec would not write, or write differently, replaced."""
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else _float(value)  # type: ignore[arg-type]
    if kind in _SIMPLE:
        return value
    if isinstance(value, np.ndarray):
        return _array(value, where, exact)
    if depth >= DEPTH_MAX:
        raise NotData(where, f"a value nested deeper than {DEPTH_MAX} levels, or one that contains itself")
    if isinstance(value, list | tuple | range):
        return _list(list(value) if isinstance(value, range) else value, where, depth, exact)
    if isinstance(value, dict):
        return _object(value, where, depth, exact)
    return _other(value, where, depth, exact)


def _list(value: Sequence[object], where: str, depth: int, exact: bool) -> object:
    kinds = set(map(type, value))
    if kinds <= _SIMPLE:
        text = _encode(value)
        # msgspec writes NaN and infinities as null, so only a list with a null needs a closer look.
        if float not in kinds or b"null" not in text:
            return Raw(text)
        return [_float(item) if type(item) is float and not math.isfinite(item) else item for item in value]
    return [_tree(item, f"{where}[{index}]", depth + 1, exact) for index, item in enumerate(value)]


def _object(value: Mapping[Any, object], where: str, depth: int, exact: bool) -> dict[str, object]:
    tree: dict[str, object] = {}
    for name, item in value.items():
        if not isinstance(name, str):
            raise NotData(where, f"names in an object are text, got {name!r} of type {type(name).__name__}")
        tree[str(name)] = _tree(item, f"{where}.{name}", depth + 1, exact)
    if len(tree) != len(value):
        raise NotData(where, "two names of this object are the same text")
    return tree


def _other(value: object, where: str, depth: int, exact: bool) -> object:
    if isinstance(value, np.generic):
        return _array(np.asarray(value), where, exact)
    if isinstance(value, bytes | bytearray | memoryview):
        return _bytes_form(f"|V{len(bytes(value))}", (), bytes(value))
    if isinstance(value, complex):
        return _bytes_form("<c16", (), struct.pack("<dd", value.real, value.imag))
    if isinstance(value, msgspec.Struct):
        names = value.__struct_encode_fields__
        pairs = zip(names, value.__struct_fields__, strict=True)
        return _object({name: getattr(value, field) for name, field in pairs}, where, depth, exact)
    if is_dataclass(value) and not isinstance(value, type):
        return _object({field.name: getattr(value, field.name) for field in fields(value)}, where, depth, exact)
    for base in (bool, int, float, str):  # subclasses, such as the members of an IntEnum
        if isinstance(value, base):
            return _tree(base(value), where, depth, exact)
    raise NotData(where, f"a value of type {type_name(value)} is not plain data; {_advice(value)}")


def _advice(value: object) -> str:
    if isinstance(value, set | frozenset):
        return "a set has no order, use sorted(…) or list(…)"
    if hasattr(value, "__next__") or hasattr(value, "__await__"):
        return "return the values themselves, for example list(…)"
    return "use numbers, text, lists, dicts and numpy arrays"


def _float(value: float) -> dict[str, object]:
    return _bytes_form("<f8", (), struct.pack("<d", value))


def _array(array: Array, where: str, exact: bool) -> object:
    if is_masked(array):
        raise NotData(where, "a masked array would lose its mask; use .filled(…) or send data and mask")
    if array.dtype.kind == "T":  # variable-width text has no fixed bytes
        array = _fixed_text(array, where)
    if not exact and _is_list(array):
        text = _nested(array)
        if text is not None:
            return text
    plain = plain_array(array, where)
    return _bytes_form(spelling(plain.dtype), plain.shape, plain)


def is_masked(array: Array) -> bool:
    # numpy loads this package on demand, for 20 ms: where it was not, there are no masked arrays.
    masked: Any = sys.modules.get("numpy.ma")
    return type(array) is not np.ndarray and masked is not None and isinstance(array, masked.MaskedArray)


def _nested(array: Array) -> Raw | None:
    """`array` as nested lists, or None if a value of it cannot be said there: NaN, a lone surrogate."""
    try:
        text = _encode(array.tolist())
    except UnicodeEncodeError:
        return None
    return None if array.dtype.kind == "f" and b"null" in text else Raw(text)


def _is_list(array: Array) -> bool:
    """Whether nested lists can say this array: its shape survives, and its elements may be JSON's."""
    kind, size = array.dtype.kind, array.size
    if size > LIST_ELEMENTS_MAX or kind not in "biufU" or (kind == "f" and array.dtype.itemsize > 8):
        return False
    # An empty list says its own length alone: (0, 3) would come back as (0,).
    return size > 0 or 0 not in array.shape[:-1]


def _fixed_text(array: Array, where: str) -> Array:
    texts = array.reshape(-1).tolist()
    if not all(type(text) is str for text in texts):
        raise NotData(where, "this text array has missing values; give them a text of their own")
    return np.array(texts, np.str_).reshape(array.shape)


def _bytes_form(dtype: object, shape: tuple[int, ...], data: Array | bytes) -> dict[str, object]:
    """The dtype form. msgspec writes bytes as base64, straight into its output and faster than binascii."""
    octets: object = data
    if isinstance(data, np.ndarray):
        octets = data.reshape(-1).view(np.uint8).data if data.size else b""
    return {"dtype": dtype, "shape": shape, "data": octets}


def is_large(value: object, limit: int) -> bool:
    """Whether `to_json` would surely write more than `limit` bytes: known for arrays without encoding them."""
    return isinstance(value, np.ndarray) and value.size > LIST_ELEMENTS_MAX and value.nbytes * 4 // 3 > limit
