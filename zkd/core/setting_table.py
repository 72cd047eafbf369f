"""Every setting as people should hear of it: what it may be, what it is by default, who may say it, when it counts."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from msgspec import Meta, Struct

from zkd.core.config import plain
from zkd.settings import KEYS, Settings, flat

_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}
# Defaults that differ from machine to machine.
_FOUND = {
    "node.name": "the host's name",
    "node.slots": "one a processor",
    "node.data_dir": "$STATE_DIRECTORY, /var/lib/zkd",
}
_BYTES = ("memory", "_bytes_s", "_bytes_max")


class About(Struct, frozen=True):
    """One setting."""

    key: str
    kind: str
    default: str
    is_central: bool  # may be said in the tree, for many nodes
    is_live: bool  # counts at once


def about(key: str) -> About:
    """Raises `KeyError`."""
    found = KEYS[key]
    kind = _kind(found.type)
    if key.endswith(_BYTES):
        kind = kind.replace("whole number", 'bytes, or such as "2GiB"')
    default = _FOUND.get(key) or _text(plain(flat(Settings()).get(key)))
    return About(key, kind, default, found.is_central, found.is_live)


def table() -> list[About]:
    """All of them, in the order of the settings file."""
    return [about(key) for key in KEYS]


def _text(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _kind(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in get_args(hint) if part is not type(None))
    if origin is Literal:
        return ", ".join(get_args(hint))
    if origin is Annotated:
        inner, *metas = get_args(hint)
        return _kind(inner) + "".join(_bounds(meta) for meta in metas if isinstance(meta, Meta))
    if origin is list:
        return "list of texts"
    if origin is dict:
        return "table of texts"
    return _WORDS.get(hint, "path")


def _bounds(meta: Meta) -> str:
    low = f" >= {meta.ge:g}" if meta.ge is not None else f" > {meta.gt:g}" if meta.gt is not None else ""
    if meta.ge is not None and meta.ge > 10**6:
        low = f" >= {int(meta.ge) // 2**20} MiB"
    return low + (f", <= {meta.le:,.0f}" if meta.le is not None and meta.le <= 10**9 else "")
