"""A few words on a value, for messages to people."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping

import numpy as np

_KINDS: Mapping[type, str] = {
    bool: "the truth value",
    int: "the number",
    float: "the number",
    str: "the text",
    list: "the list",
    tuple: "the list",
}
SHOWN_MAX = 80  # characters of a value

_short = reprlib.Repr()  # bounded: a value may be a million lists
_short.maxlist = _short.maxtuple = 8
_short.maxlevel = 3
_short.maxstring = _short.maxlong = _short.maxother = SHOWN_MAX


def describe(value: object) -> str:
    """The kind of a value, and the value itself where it is short."""
    if value is None:
        return "null"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} in shape {list(value.shape)}"
    if isinstance(value, dict):
        names = ", ".join(repr(name)[:SHOWN_MAX] for name in list(value)[:5])
        return f"an object with {names or 'nothing'}{', …' if len(value) > 5 else ''}"
    if isinstance(value, list | tuple) and len(value) > 8:
        return f"a list of {len(value)}"
    text = _short.repr(value)
    kind = _KINDS.get(type(value), type_name(value))
    return f"{kind} {text[:SHOWN_MAX]}{'…' if len(text) > SHOWN_MAX else ''}"


def type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
