"""One task's call, from JSON to the kernel's value. This is all that a worker needs.

Arguments are decoded and checked before the kernel runs, for all items before the first of them, so a
task is rejected as a whole or not at all. What the kernel raises goes through to the worker untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from zkd.arrays import NO_FILES, describe, from_json
from zkd.errors import BadRecord
from zkd.kernels.mismatch import Mismatch
from zkd.kernels.registry import Registry


class Given(NamedTuple):
    """Arguments that come before those of the call, with the place that each is named by."""

    values: list[Any]
    places: list[str]


def call(
    registry: Registry,
    name: str,
    args: bytes = b"[]",
    kwargs: bytes = b"{}",
    files: Mapping[str, str] = NO_FILES,
    given: Given | None = None,
) -> Any:
    """The kernel's value for these arguments. Raises `BadRecord` if the call was rejected before it ran."""
    kernel = registry.find(name)
    places = () if given is None else given.places
    bound, named = kernel.plan.bind(_list(args, files, "$.args"), _object(kwargs, files), given=places)
    if given is not None:
        bound = kernel.plan.converted(given.values, given.places) + bound
    return kernel.function(*bound, **named)


def call_items(
    registry: Registry,
    name: str,
    items: bytes,
    args: bytes = b"[]",
    kwargs: bytes = b"{}",
    files: Mapping[str, str] = NO_FILES,
) -> list[Any]:
    """The kernel's values for many items, each of them the first argument before `args`, in their order.

    Raises `BadRecord` at ``$.items[i]`` before any item ran; an exception of the kernel gets a note with
    the number of its item.
    """
    kernel = registry.find(name)
    values = _list(items, files, "$.items")
    bound, named = kernel.plan.bind(_list(args, files, "$.args"), _object(kwargs, files), given=("$.items",))
    first = kernel.plan.first
    if first is not None and first.convert is not None:
        convert = first.convert
        done = 0
        try:
            for done, value in enumerate(values):
                values[done] = convert(value)
        except Mismatch as mismatch:
            raise mismatch.at(f"$.items[{done}]") from None
    function = kernel.function
    results: list[Any] = []
    append = results.append
    try:
        if bound or named:
            for value in values:
                append(function(value, *bound, **named))
        else:
            for value in values:
                append(function(value))
    except Exception as error:
        error.add_note(f"raised by item {len(results)} of {len(values)}")
        raise
    return results


def _list(text: bytes, files: Mapping[str, str], where: str) -> list[Any]:
    value = [] if text == b"[]" else from_json(text, files, where)
    if type(value) is not list:
        raise BadRecord(where, f"expected a list, got {describe(value)}")
    return value


def _object(text: bytes, files: Mapping[str, str]) -> dict[str, Any]:
    value = {} if text == b"{}" else from_json(text, files, "$.kwargs")
    if type(value) is not dict:
        raise BadRecord("$.kwargs", f"expected an object, got {describe(value)}")
    return value
