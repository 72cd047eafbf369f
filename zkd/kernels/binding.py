"""Arguments from JSON, checked against a kernel's annotations before it runs.

A signature is turned once into a `Plan` of converters; a call then costs a few function calls. A value
is converted only where nothing is lost (a list to an array, 1 to 1.0) and refused otherwise, with the
place, what was expected and what came. What has no annotation takes anything, and lists stay lists.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from zkd.errors import BadKernel, BadRecord
from zkd.kernels.annotations import Convert, converter, words
from zkd.kernels.declaration import place
from zkd.kernels.mismatch import Mismatch

_EMPTY = inspect.Parameter.empty


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

    def bind(
        self, args: list[Any], kwargs: dict[str, Any], *, given: Sequence[str] = ()
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments to call with, checked. The first parameters are filled from elsewhere: `given` says from where.

        Raises `BadRecord` at ``$.args[i]`` or ``$.kwargs.name``.
        """
        total = len(given) + len(args)
        most = len(self.positional)
        if total > most and self.rest is None:
            where = f"$.args[{most - len(given)}]" if most >= len(given) and args else given[most]
            raise BadRecord(where, self._too_many(total))
        bound = []
        for index, value in enumerate(args):
            bound.append(_converted(self._at(len(given) + index), value, f"$.args[{index}]"))
        named = {}
        for name, value in kwargs.items():
            named[name] = _converted(self._named(name, given, total), value, f"$.kwargs.{name}")
        self._refuse_missing(total, kwargs)
        return bound, named

    def converted(self, values: list[Any], places: Sequence[str]) -> list[Any]:
        """What fills the first parameters, checked. Raises `BadRecord` with the place."""
        each = enumerate(zip(values, places, strict=True))
        return [_converted(self._at(index), value, where) for index, (value, where) in each]

    def _at(self, index: int) -> Param | None:
        return self.positional[index] if index < len(self.positional) else self.rest

    def _named(self, name: str, given: Sequence[str], total: int) -> Param | None:
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
                first = given[index] if index < len(given) else f"$.args[{index - len(given)}]"
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
            f"{place(function)}: the annotation of {name!r}, {words(annotation)}, "
            f"cannot be checked against JSON: {_words_of(error)}"
        ) from None


def _words_of(error: Exception) -> str:
    """msgspec's message ends with the type; before that it advises on its own hooks, which nobody has here."""
    *_, last = str(error).strip().splitlines() or [""]
    return last


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
    stars = "*" * (parameter.kind is parameter.VAR_POSITIONAL) + "**" * (parameter.kind is parameter.VAR_KEYWORD)
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
