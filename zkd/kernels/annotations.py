"""An annotation as a converter: a function that checks a JSON value and gives the Python value, or a `Mismatch`.

A value is converted only where nothing is lost (a list to an array, 1 to 1.0). Types that JSON knows, and
dataclasses and structs, are checked by msgspec; arrays by `zkd.kernels.array_types`; containers and unions
that mention arrays here, since msgspec has no word for those.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from zkd.arrays import describe
from zkd.kernels.array_types import NUMPY_TYPES, array_type, is_array_type, plain
from zkd.kernels.mismatch import Mismatch

Convert: TypeAlias = Callable[[Any], Any]

_SEQUENCES: Mapping[Any, Callable[[list[Any]], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    Sequence: list,
    typing.Sequence: list,
}


def converter(annotation: Any) -> Convert | None:
    """What checks and converts a JSON value for this annotation; None where anything will do."""
    annotation = _stripped(annotation)
    if annotation in (Any, object) or isinstance(annotation, typing.TypeVar):
        return None
    if annotation in _LEAVES:
        return _LEAVES[annotation]
    if is_array_type(annotation):
        return array_type(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return _literal(arguments)
    if origin in (typing.Union, types.UnionType):
        return _union(annotation, arguments)
    if origin in (dict, Mapping, typing.Mapping) and arguments:
        return _mapping(arguments)  # msgspec's messages do not say which name
    if origin in _SEQUENCES and _mentions_numpy(annotation):
        return _sequence(origin, arguments)
    return _by_msgspec(annotation)


def _stripped(annotation: Any) -> Any:
    """The annotation without what only type checkers and readers care for."""
    while True:
        if isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":  # `type X = …` of Python 3.12
            annotation = annotation.__value__
        elif typing.get_origin(annotation) is typing.Annotated and not any(
            isinstance(note, msgspec.Meta) for note in annotation.__metadata__
        ):
            annotation = annotation.__origin__
        else:
            return annotation


def _mentions_numpy(annotation: Any) -> bool:
    annotation = _stripped(annotation)
    if annotation is complex or is_array_type(annotation):
        return True
    return any(_mentions_numpy(argument) for argument in typing.get_args(annotation) if argument is not Ellipsis)


def words(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    if typing.get_origin(annotation) is typing.Annotated:
        return words(annotation.__origin__)
    return annotation.__name__ if type(annotation) is type else str(annotation).replace("typing.", "")


def _float(value: Any) -> float:
    kind = type(value)
    if kind is float:
        return value  # type: ignore[no-any-return]
    if kind is int or isinstance(value, np.floating | np.integer):
        try:
            return float(value)
        except OverflowError:
            raise Mismatch("a number that a float can hold", value) from None
    raise Mismatch("float", value)


def _int(value: Any) -> int:
    kind = type(value)
    if kind is int:
        return value  # type: ignore[no-any-return]
    if isinstance(value, np.integer) or (isinstance(value, float | np.floating) and float(value).is_integer()):
        return int(value)
    raise Mismatch("int", value)


def _bool(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise Mismatch("bool", value)


def _complex(value: Any) -> complex:
    if isinstance(value, complex | np.complexfloating):
        return complex(value)
    return complex(_float(value))


def _str(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise Mismatch("str", value)


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, np.ndarray) and (value.dtype.kind in "SV" or value.dtype == np.uint8):
        return value.tobytes()
    if type(value) is str:
        try:
            return msgspec.convert(value, bytes)
        except msgspec.ValidationError:
            raise Mismatch("bytes in base64", value) from None
    raise Mismatch("bytes (in base64)", value)


def _null(value: Any) -> None:
    if value is not None:
        raise Mismatch("null", value)


_LEAVES: Mapping[Any, Convert] = {
    float: _float,
    int: _int,
    bool: _bool,
    complex: _complex,
    str: _str,
    bytes: _bytes,
    None: _null,
    type(None): _null,
}


def _literal(options: tuple[Any, ...]) -> Convert:
    shown = " or ".join(map(repr, options))

    def convert(value: Any) -> Any:
        for option in options:
            if type(option) is type(value) and option == value:
                return option
        raise Mismatch(shown, value)

    return convert


def _union(annotation: Any, members: tuple[Any, ...]) -> Convert | None:
    if any(converter(member) is None for member in members):
        return None
    rest = [member for member in members if member is not type(None)]
    if len(rest) == 1:
        inner = converter(rest[0])
        assert inner is not None
        shown = f"{words(rest[0])} or null"
        return lambda value: None if value is None else _either(inner, value, shown)
    if not _mentions_numpy(annotation):
        return _by_msgspec(annotation)
    # An exact match goes first, so that 3 stays an int for `NDArray[float64] | int`.
    exact = [(_natural(member), converter(member)) for member in members]
    shown = " or ".join(map(words, members))

    def convert(value: Any) -> Any:
        for wanted in (True, False):
            for natural, inner in exact:
                if inner is not None and (type(value) in natural) is wanted:
                    try:
                        return inner(value)
                    except Mismatch:
                        continue
        raise Mismatch(shown, value)

    return convert


def _either(inner: Convert, value: Any, shown: str) -> Any:
    try:
        return inner(value)
    except Mismatch as mismatch:
        raise mismatch if mismatch.suffix or mismatch.detail else Mismatch(shown, value) from None


def _natural(annotation: Any) -> frozenset[type]:
    annotation = _stripped(annotation)
    if is_array_type(annotation):
        return frozenset({list, np.ndarray, np.memmap})
    origin = typing.get_origin(annotation) or annotation
    if origin is Literal:
        return frozenset(map(type, typing.get_args(annotation)))
    if origin in _SEQUENCES:
        return frozenset({list})
    return frozenset({origin}) if isinstance(origin, type) else frozenset()


def _sequence(origin: Any, arguments: tuple[Any, ...]) -> Convert:
    build = _SEQUENCES[origin]
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return _fixed_tuple([converter(argument) for argument in arguments])
    inner = converter(arguments[0])

    def convert(value: Any) -> Any:
        if not isinstance(value, list | tuple | np.ndarray) or (isinstance(value, np.ndarray) and value.ndim == 0):
            raise Mismatch("a list", value)
        return build([_element(inner, item, index) for index, item in enumerate(value)])

    return convert


def _fixed_tuple(inners: list[Convert | None]) -> Convert:
    def convert(value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != len(inners):
            raise Mismatch(f"a list of {len(inners)}", value)
        return tuple(
            _element(inner, item, index) for index, (inner, item) in enumerate(zip(inners, value, strict=True))
        )

    return convert


def _element(inner: Convert | None, item: Any, index: int) -> Any:
    if inner is None:
        return item
    try:
        return inner(item)
    except Mismatch as mismatch:
        raise mismatch.inside(f"[{index}]") from None


def _mapping(arguments: tuple[Any, ...]) -> Convert:
    if arguments[0] is not str:
        raise TypeError("names of a JSON object are text")
    inner = converter(arguments[1])

    def convert(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise Mismatch("an object", value)
        converted = {}
        for name, item in value.items():
            try:
                converted[name] = item if inner is None else inner(item)
            except Mismatch as mismatch:
                raise mismatch.inside(f".{name}") from None
        return converted

    return convert


# --- msgspec ------------------------------------------------------------------------------------------


def _by_msgspec(annotation: Any) -> Convert:
    msgspec.json.schema(annotation, schema_hook=_refuse_unknown_type)  # TypeError where it is not for JSON
    shown = words(annotation)

    def convert(value: Any) -> Any:
        try:
            return msgspec.convert(value, annotation, dec_hook=_numpy_member)
        except msgspec.ValidationError as error:
            if not _holds_numpy(value):
                raise _from_msgspec(error, shown, value) from None
        try:  # numpy scalars and arrays where plain numbers and lists are expected
            return msgspec.convert(plain(value), annotation, dec_hook=_numpy_member)
        except msgspec.ValidationError as error:
            raise _from_msgspec(error, shown, value) from None

    return convert


def _refuse_unknown_type(kind: type) -> dict[str, Any]:
    if is_array_type(kind) or kind is complex:
        return {"type": "array"}
    raise NotImplementedError


def _numpy_member(kind: Any, value: Any) -> Any:
    """An array inside of a dataclass or struct."""
    inner = converter(kind)
    if inner is None:
        return value
    try:
        return inner(value)
    except Mismatch as mismatch:
        raise ValueError(f"expected {mismatch.expected}, got {describe(mismatch.got)}") from None


def _holds_numpy(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_holds_numpy, value))
    if isinstance(value, dict):
        return any(map(_holds_numpy, value.values()))
    return isinstance(value, NUMPY_TYPES)


def _from_msgspec(error: msgspec.ValidationError, shown: str, value: Any) -> Mismatch:
    message, _, path = str(error).rpartition(" - at `$")
    if not message:
        message, path = str(error), ""
    return Mismatch(shown, value, suffix=path.rstrip("`"), detail=message[0].lower() + message[1:].replace("`", ""))
