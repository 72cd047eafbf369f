"""Array annotations: what `np.ndarray`, `NDArray[np.float64]`, `ArrayLike` and numpy scalars accept.

Lists become arrays of the annotated dtype. The rule is numpy's `same_kind` (an int may become a float,
never the other way round) with one addition: whole numbers go to any integer dtype that holds them all.
Ragged lists, nulls and overflow are refused; numpy alone would make objects, strings or infinities.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from zkd.kernels.mismatch import Mismatch

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

NUMPY_TYPES = (np.ndarray, np.generic)
_ARRAY_LIKE: Any = npt.ArrayLike
_HELD = "a number that a numpy dtype holds"


def is_array_type(annotation: Any) -> bool:
    if annotation is _ARRAY_LIKE or annotation == _ARRAY_LIKE:
        return True
    origin = typing.get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(origin, NUMPY_TYPES)


def array_type(annotation: Any) -> Callable[[Any], Any]:
    """The converter for one of these annotations. Raises `TypeError` for one that cannot be checked."""
    if annotation == _ARRAY_LIKE:
        return lambda value: as_array(value, None, None)
    origin = typing.get_origin(annotation) or annotation
    if issubclass(origin, np.generic):
        return lambda value: _scalar(value, origin)
    if origin is not np.ndarray:
        raise TypeError(f"use numpy.ndarray instead of {origin.__name__}")
    arguments = typing.get_args(annotation)
    ndim = _dimensions(arguments[0]) if arguments else None
    wanted = _scalar_type(arguments[1]) if len(arguments) > 1 else None
    return lambda value: as_array(value, wanted, ndim)


def _dimensions(shape: Any) -> int | None:
    """2 for `tuple[int, int]`, None for any number of them."""
    lengths = typing.get_args(shape)
    return None if not lengths or Ellipsis in lengths else len(lengths)


def _scalar_type(dtype: Any) -> type[np.generic] | None:
    arguments = typing.get_args(dtype)
    wanted = arguments[0] if arguments else None
    if wanted is None or wanted is Any or isinstance(wanted, typing.TypeVar):
        return None
    if isinstance(wanted, type) and issubclass(wanted, np.generic):
        if issubclass(wanted, np.object_):
            raise TypeError("object arrays cannot be sent")
        return None if wanted is np.generic else wanted
    if origin := typing.get_origin(wanted):  # np.floating[Any]
        return _scalar_type(np.dtype[origin])  # type: ignore[valid-type]
    raise TypeError(f"use one numpy scalar type instead of {wanted}")


def as_array(value: Any, wanted: type[np.generic] | None, ndim: int | None) -> Array:
    """`value` as an array of the dtype and the number of dimensions wanted, or a `Mismatch`."""
    array = value if isinstance(value, np.ndarray) else _from_lists(value, wanted, ndim)
    if ndim is not None and array.ndim != ndim:
        raise Mismatch(_title(wanted, ndim), array)
    return array if wanted is None else _cast(array, wanted, value)


def _title(wanted: type[np.generic] | None, ndim: int | None) -> str:
    dtype = "" if wanted is None else f" of {wanted.__name__}"
    return f"an array{dtype}{f' of {ndim} dimensions' if ndim is not None else ''}"


def _from_lists(value: Any, wanted: type[np.generic] | None, ndim: int | None) -> Array:
    title = _title(wanted, ndim)
    if not isinstance(value, list | tuple | int | float | complex | np.generic):
        raise Mismatch(title, value)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # lists of unequal lengths, or more than 64 levels of them
        raise Mismatch(f"{title}, so lists of equal lengths", value) from None
    kind = array.dtype.kind
    if isinstance(value, list | tuple) and kind in "OUS":
        if kind != "O" and wanted is not None and issubclass(wanted, np.number | np.bool_):
            _refuse_text(value, wanted.__name__)
        refuse_mixed(value, is_text=kind != "O")
    if kind == "O":  # 10**30, or both 2**63 and -1
        raise Mismatch(_HELD, value)
    return array


def refuse_mixed(value: Sequence[Any], *, is_text: bool) -> None:
    """Find what made numpy choose objects, or text for a list that has numbers, too."""
    for index, item in enumerate(value):
        if isinstance(item, list | tuple):
            try:
                refuse_mixed(item, is_text=is_text)
            except Mismatch as mismatch:
                raise mismatch.inside(f"[{index}]") from None
        elif is_text:
            if not isinstance(item, str | bytes | np.ndarray):
                raise Mismatch("text and no numbers, or numbers and no text, in one list", item, suffix=f"[{index}]")
        elif not isinstance(item, int | float | complex | str | np.generic | np.ndarray) or (
            isinstance(item, int) and not -(2**63) <= item < 2**64
        ):
            raise Mismatch(_HELD, item, suffix=f"[{index}]")


def _refuse_text(value: Sequence[Any], expected: str) -> None:
    """Find the text that is in the way of numbers."""
    for index, item in enumerate(value):
        if isinstance(item, list | tuple):
            try:
                _refuse_text(item, expected)
            except Mismatch as mismatch:
                raise mismatch.inside(f"[{index}]") from None
        elif isinstance(item, str | bytes):
            raise Mismatch(expected, item, suffix=f"[{index}]")


def _cast(array: Array, wanted: type[np.generic], value: Any) -> Array:
    source = array.dtype
    if issubclass(source.type, wanted):
        return array if source.isnative else array.astype(source.newbyteorder("="))
    if array.size == 0 and not isinstance(value, np.ndarray):  # an empty list has no kind of its own
        return np.empty(array.shape, _concrete(wanted))
    target = _concrete(wanted)
    if source.kind in "iu" and target.kind in "iu":
        return _cast_whole(array, target)
    if target.kind in "mM" and source.kind == "U":
        try:
            return array.astype(target)
        except ValueError as error:
            raise Mismatch(f"dates or durations for numpy ({error})", value) from None
    if not np.can_cast(source, target, "same_kind"):
        raise Mismatch(_title(wanted, None), array)
    if target.kind not in "fc":
        return array.astype(target)
    with np.errstate(over="raise"):
        try:
            return array.astype(target)
        except FloatingPointError:
            raise Mismatch(f"numbers that {target} can hold", array) from None


def _cast_whole(array: Array, target: np.dtype[Any]) -> Array:
    limits = np.iinfo(target)
    if array.size:
        least, most = int(array.min()), int(array.max())
        if least < limits.min or most > limits.max:
            raise Mismatch(f"whole numbers that {target} can hold", least if least < limits.min else most)
    return array.astype(target)


def _concrete(wanted: type[np.generic]) -> np.dtype[Any]:
    """The dtype that lists get where the annotation leaves a choice, such as `np.floating`."""
    for abstract, chosen in (
        (np.complexfloating, np.complex128),
        (np.floating, np.float64),
        (np.unsignedinteger, np.uint64),
        (np.signedinteger, np.int64),
    ):
        if wanted is abstract:
            return np.dtype(chosen)
    if wanted in (np.inexact, np.number):
        return np.dtype(np.float64)
    if wanted is np.integer:
        return np.dtype(np.int64)
    return np.dtype(wanted)


def _scalar(value: Any, wanted: type[np.generic]) -> Any:
    if isinstance(value, list | tuple | dict) or (isinstance(value, np.ndarray) and value.ndim):
        raise Mismatch(f"one {wanted.__name__}", value)
    if isinstance(value, str) and issubclass(wanted, np.datetime64 | np.timedelta64 | np.str_):
        return _cast(np.asarray(value), wanted, value)[()]
    return as_array(value, wanted, 0)[()]


def plain(value: Any) -> Any:
    """`value` with numpy scalars and arrays as numbers and lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value
