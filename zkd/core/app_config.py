"""A program's own configuration as text: read into its own type and back, and how two of them differ. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from zkd import codec
from zkd.configs import APP_BYTES_MAX, AppConfig
from zkd.errors import BadRecord
from zkd.paths import NAME_RULE, is_name

T = TypeVar("T")

_AT = re.compile(r"^(?P<message>.*) - at `(?P<path>.*)`$", re.DOTALL)
_ABSENT = object()


def expect_app_name(name: str) -> str:
    """`name` if a program's configuration can have it. Raises `BadRecord`."""
    if not is_name(name):
        raise BadRecord(name[:150], f"expected a name of {NAME_RULE}")
    return name


def read_app(text: bytes) -> AppConfig:
    """Raises `BadRecord`."""
    if len(text) > APP_BYTES_MAX + 4096:
        raise BadRecord("$", f"expected at most {APP_BYTES_MAX} bytes, got {len(text)}")
    found = codec.decode(text, AppConfig)
    codec.refuse_duplicate_names(text)
    return found


def read_value(text: bytes, kind: type[T]) -> T:
    """The value as the program's own type. Raises `BadRecord` with the place, what was expected and what came."""
    try:
        return msgspec.json.decode(text, type=kind)
    except RecursionError:
        raise BadRecord("$", "expected JSON of reasonable depth, got one nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        at = _AT.match(str(error))
        where, what = (at["path"], at["message"]) if at else ("$", str(error))
        raise BadRecord(where, what[:1].lower() + what[1:]) from None


def value_text(value: Any, kind: Any) -> bytes:
    """The value as JSON that reads as this type again. Raises `BadRecord` where it would not."""
    try:
        for where, leaf in leaves(msgspec.to_builtins(value)):
            if isinstance(leaf, float) and not math.isfinite(leaf):
                raise BadRecord(where, f"expected a number that JSON has, got {leaf}")
        text = msgspec.json.encode(value)
    except (TypeError, OverflowError) as error:
        raise BadRecord("$", f"expected a value that JSON can hold: {error}") from None
    if len(text) > APP_BYTES_MAX:
        raise BadRecord(
            "$", f"expected at most {APP_BYTES_MAX} bytes, got {len(text)}; keep what is large in a dataset"
        )
    read_value(text, kind)
    return text


def leaves(value: Any, where: str = "$") -> Iterator[tuple[str, Any]]:
    """Every value inside that holds no others, by its JSON path; an empty list or object is one."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{where}.{name}")
    elif isinstance(value, list | tuple) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{where}[{index}]")
    else:
        yield where, value


def app_differences(before: bytes, after: bytes) -> list[tuple[str, Any, Any]]:
    """JSON path, and what stood there before and after; None where nothing did."""
    old, new = (dict(leaves(msgspec.json.decode(text))) for text in (before, after))
    paths = [*old, *(path for path in new if path not in old)]
    return [(path, old.get(path), new.get(path)) for path in paths if old.get(path, _ABSENT) != new.get(path, _ABSENT)]
