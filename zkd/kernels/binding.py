"""Arguments from JSON, checked against a kernel's annotations before it runs.

A signature is turned once into a `Plan` of converters; a call then costs a few function calls. A value
is converted only where nothing is lost (a list to an array, 1 to 1.0) and refused otherwise, with the
place, what was expected and what came. What has no annotation takes anything, and lists stay lists.
Types that JSON knows are checked by msgspec, arrays here.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from zkd.arrays import describe
from zkd.errors import BadKernel, BadRecord
from zkd.kernels.array_types import NUMPY_TYPES, array_type, is_array_type, plain
from zkd.kernels.declaration import place
from zkd.kernels.mismatch import Mismatch

Convert: TypeAlias = Callable[[Any], Any]

_EMPTY = inspect.Parameter.empty
_SEQUENCES: Mapping[Any, Callable[[list[Any]], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    Sequence: list,
    typing.Sequence: list,
}


@dataclass(frozen=True, slots=True)
class Param:
    name: str
    convert: Convert | None  # None takes anything
    required: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """How JSON arguments become the arguments of one function."""

    signature: str  # for messages
    positional: tuple[Param, ...]
    by_name: Mapping[str, Param]
    positional_only: frozenset[str]
    rest: Param | None  # *args
    named_rest: Param | None  # **kwargs

    def bind(self, args: list[Any], kwargs: dict[str, Any], *, given: int = 0) -> tuple[list[Any], dict[str, Any]]:
        """The arguments to call with, checked. The first `given` parameters are filled from elsewhere.

        Raises `BadRecord` at ``$.args[i]`` or ``$.kwargs.name``.
        """
        total = given + len(args)
        if total > len(self.positional) and self.rest is None:
            raise BadRecord(
                f"$.args[{len(self.positional) - given}]" if total > given else "$.items", self._too_many(total)
            )
        bound = []
        for index, value in enumerate(args):
            at = given + index
            param = self.positional[at] if at < len(self.positional) else self.rest
            bound.append(_converted(param, value, f"$.args[{index}]"))
        named = {}
        for name, value in kwargs.items():
            named[name] = _converted(self._named(name, given, total), value, f"$.kwargs.{name}")
        self._refuse_missing(total, kwargs)
        return bound, named

    def _named(self, name: str, given: int, total: int) -> Param | None:
        param = self.by_name.get(name)
        if param is None:
            if self.named_rest is not None:
                return self.named_rest
            if name in self.positional_only:
                raise BadRecord(f"$.kwargs.{name}", f"expected {name!r} by position in $.args, got it by name")
            known = ", ".join(map(repr, self.by_name)) or "no named arguments"
            raise BadRecord(f"$.kwargs.{name}", f"unexpected argument; expected {known}")
        for index, other in enumerate(self.positional[:total]):
            if other is param:
                first = "$.items" if index < given else f"$.args[{index - given}]"
                raise BadRecord(f"$.kwargs.{name}", f"expected each argument once, got {name!r} here and in {first}")
        return param

    def _refuse_missing(self, total: int, kwargs: Mapping[str, Any]) -> None:
        missing = [param.name for param in self.positional[total:] if param.required and param.name not in kwargs]
        named = {param.name for param in self.positional}
        missing += [
            name for name, param in self.by_name.items() if param.required and name not in kwargs and name not in named
        ]
        if missing:
            raise BadRecord("$.args", f"missing {', '.join(map(repr, missing))}; the kernel takes {self.signature}")

    def _too_many(self, total: int) -> str:
        most = len(self.positional)
        return f"expected at most {most} positional arguments, got {total}; the kernel takes {self.signature}"

    @property
    def first(self) -> Param | None:
        """The parameter that an item of an array task fills."""
        return self.positional[0] if self.positional else self.rest


def _converted(param: Param | None, value: Any, where: str) -> Any:
    if param is None or param.convert is None:
        return value
    try:
        return param.convert(value)
    except Mismatch as mismatch:
        raise mismatch.at(where) from None


def plan(function: Callable[..., Any]) -> Plan:
    """The plan for a function. Raises `BadKernel` where an annotation is none that JSON can be checked by."""
    try:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(_with_annotations(function), include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError, ValueError) as error:
        raise BadKernel(f"{place(function)}: its annotations cannot be read: {error}") from None
    positional, by_name, only = [], {}, set()
    rest = named_rest = None
    for parameter in signature.parameters.values():
        annotation = hints.get(parameter.name, _EMPTY)
        param = Param(parameter.name, _parameter(annotation, function, parameter.name), parameter.default is _EMPTY)
        if parameter.kind is parameter.VAR_POSITIONAL:
            rest = param
        elif parameter.kind is parameter.VAR_KEYWORD:
            named_rest = param
        else:
            if parameter.kind is not parameter.KEYWORD_ONLY:
                positional.append(param)
            if parameter.kind is parameter.POSITIONAL_ONLY:
                only.add(param.name)
            else:
                by_name[param.name] = param
    return Plan(signature_text(function), tuple(positional), by_name, frozenset(only), rest, named_rest)


def _with_annotations(function: Any) -> Any:
    """The function whose annotations count: inside of decorators and partials, or an object's `__call__`."""
    inner: Any = inspect.unwrap(function)
    if isinstance(inner, partial):
        return _with_annotations(inner.func)
    if isinstance(inner, types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        return inner
    return type(inner).__call__


def _parameter(annotation: Any, function: object, name: str) -> Convert | None:
    if annotation is _EMPTY:
        return None
    try:
        return converter(annotation)
    except (TypeError, RecursionError) as error:
        raise BadKernel(
            f"{place(function)}: the annotation of {name!r}, {_words(annotation)}, "
            f"cannot be checked against JSON: {error}"
        ) from None


# --- annotations to converters ------------------------------------------------------------------------


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
    if _mentions_numpy(annotation):
        if origin in _SEQUENCES:
            return _sequence(origin, arguments)
        if origin in (dict, Mapping, typing.Mapping):
            return _mapping(arguments)
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


def _words(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
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
    words = " or ".join(map(repr, options))

    def convert(value: Any) -> Any:
        for option in options:
            if type(option) is type(value) and option == value:
                return option
        raise Mismatch(words, value)

    return convert


def _union(annotation: Any, members: tuple[Any, ...]) -> Convert | None:
    if any(converter(member) is None for member in members):
        return None
    rest = [member for member in members if member is not type(None)]
    if len(rest) == 1:
        inner = converter(rest[0])
        assert inner is not None
        words = f"{_words(rest[0])} or null"
        return lambda value: None if value is None else _either(inner, value, words)
    if not _mentions_numpy(annotation):
        return _by_msgspec(annotation)
    # An exact match goes first, so that 3 stays an int for `NDArray[float64] | int`.
    exact = [(_natural(member), converter(member)) for member in members]
    words = " or ".join(map(_words, members))

    def convert(value: Any) -> Any:
        for wanted in (True, False):
            for natural, inner in exact:
                if inner is not None and (type(value) in natural) is wanted:
                    try:
                        return inner(value)
                    except Mismatch:
                        continue
        raise Mismatch(words, value)

    return convert


def _either(inner: Convert, value: Any, words: str) -> Any:
    try:
        return inner(value)
    except Mismatch as mismatch:
        raise mismatch if mismatch.suffix else Mismatch(words, value) from None


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
    words = _words(annotation)

    def convert(value: Any) -> Any:
        try:
            return msgspec.convert(value, annotation, dec_hook=_numpy_member)
        except msgspec.ValidationError as error:
            if not _holds_numpy(value):
                raise _from_msgspec(error, words, value) from None
        try:  # numpy scalars and arrays where plain numbers and lists are expected
            return msgspec.convert(plain(value), annotation, dec_hook=_numpy_member)
        except msgspec.ValidationError as error:
            raise _from_msgspec(error, words, value) from None

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


def _from_msgspec(error: msgspec.ValidationError, words: str, value: Any) -> Mismatch:
    message, _, path = str(error).rpartition(" - at `$")
    if not message:
        message, path = str(error), ""
    return Mismatch(words, value, suffix=path.rstrip("`"), detail=message[0].lower() + message[1:].replace("`", ""))


# --- text ---------------------------------------------------------------------------------------------


def signature_text(function: Callable[..., Any]) -> str:
    """The signature as its author wrote it, without the quotes that postponed annotations get."""
    signature = inspect.signature(function)
    words: list[str] = []
    star = False
    only = 0
    for parameter in signature.parameters.values():
        only += parameter.kind is parameter.POSITIONAL_ONLY
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            words.append("*")
            star = True
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        words.append(_parameter_text(parameter))
    if only:
        words.insert(only, "/")
    returns = signature.return_annotation
    told = returns not in (inspect.Signature.empty, Any, "Any")
    return f"({', '.join(words)}){f' -> {_annotation_text(returns)}' if told else ''}"


def _parameter_text(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    typed = parameter.annotation is not _EMPTY
    text = f"{stars}{parameter.name}{f': {_annotation_text(parameter.annotation)}' if typed else ''}"
    if parameter.default is _EMPTY:
        return text
    return f"{text} = {parameter.default!r}" if typed else f"{text}={parameter.default!r}"


def _annotation_text(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    for known in ("numpy.typing.", "numpy.", "typing.", "collections.abc."):
        text = text.replace(known, "")
    return text
