"""Requests for predictions as bytes: what the daemon reads of them, which are no numbers.

Of a JSON body it reads all but the rows, which stay text; of a container only the texts in its header. Numbers are
looked at by the process that answers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from zkd import codec
from zkd.errors import BadRecord, NotPredicted

Want: TypeAlias = Literal["prediction", "probabilities", "score", "attributions"]
Missing: TypeAlias = Literal["refuse", "propagate"]
Form: TypeAlias = Literal["json", "tensors"]

JSON_TYPE: Final = "application/json"
TENSORS_TYPE: Final = "application/vnd.safetensors"
HEADER_BYTES_MAX: Final = 1 << 20  # of a container that is a request
DEADLINE_MS_MAX: Final = 60_000.0

NO_FILES: Mapping[str, str] = MappingProxyType({})

_LENGTH = struct.Struct("<Q")

DeadlineMs = Annotated[float, Meta(gt=0, le=DEADLINE_MS_MAX)]
Key = Annotated[str, Meta(max_length=1024)]


class Body(Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON body."""

    rows: Raw
    want: list[Want] | UnsetType = UNSET
    missing: Missing = "refuse"
    deadline_ms: DeadlineMs | None = None
    key: Key | int | None = None


class _Texts(Struct, frozen=True, forbid_unknown_fields=True):
    """What may stand in a container's metadata; lists are JSON text there."""

    want: str | UnsetType = UNSET
    missing: Missing = "refuse"
    deadline_ms: str | None = None
    key: Key | None = None


class _Header(Struct, frozen=True):
    texts: _Texts = msgspec.field(name="__metadata__", default=_Texts())


class Request(NamedTuple):
    """`rows` are JSON text, or a container; `want` is None for what the model gives by default."""

    form: Form
    rows: bytes | memoryview
    want: tuple[Want, ...] | None = None
    missing: Missing = "refuse"
    deadline_s: float | None = None  # from arrival
    key: str | None = None
    files: Mapping[str, str] = NO_FILES  # of arrays that `rows` refers to: sha256 -> path
    files_bytes: int = 0
    is_task: bool = False  # it came as a task, which a node that is drained does to its end
    is_gone: Callable[[], bool] = lambda: False  # nobody waits for the answer any more


def read(body: bytes, content_type: str) -> Request:
    """The request in these bytes. Raises `NotPredicted`."""
    try:
        if content_type == JSON_TYPE:
            return _of_json(body)
        if content_type == TENSORS_TYPE:
            return _of_tensors(body)
    except BadRecord as error:
        raise NotPredicted("bad_request", str(error)) from None
    raise NotPredicted(
        "bad_request", f"expected Content-Type {JSON_TYPE} or {TENSORS_TYPE}, got {content_type[:80] or 'none'}"
    )


def _of_json(body: bytes) -> Request:
    asked = codec.decode(body, Body)
    key = None if asked.key is None else str(asked.key)
    return Request("json", memoryview(asked.rows), wanted(asked.want), asked.missing, _seconds(asked.deadline_ms), key)


def _of_tensors(body: bytes) -> Request:
    if len(body) < _LENGTH.size:
        raise BadRecord("$", f"expected a container of safetensors, got {len(body)} bytes")
    (length,) = _LENGTH.unpack_from(body)
    if length > min(HEADER_BYTES_MAX, len(body) - _LENGTH.size):
        raise BadRecord("$", f"a header of {length} bytes is announced, in {len(body)} bytes all told")
    texts = codec.decode(body[_LENGTH.size : _LENGTH.size + length], _Header).texts
    want = texts.want if texts.want is UNSET else codec.decode(texts.want.encode(), list[Want])
    deadline_ms = None if texts.deadline_ms is None else codec.decode(texts.deadline_ms.encode(), DeadlineMs)
    return Request("tensors", body, wanted(want), texts.missing, _seconds(deadline_ms), texts.key)


def wanted(want: list[Want] | UnsetType) -> tuple[Want, ...] | None:
    """Each once. Raises `BadRecord` for none."""
    if want is UNSET:
        return None
    if not want:
        raise BadRecord("$.want", "expected at least one of prediction, probabilities, score, attributions")
    return tuple(dict.fromkeys(want))


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000.0
