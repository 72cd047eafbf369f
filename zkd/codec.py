"""Bytes <-> records. Hostile bytes end here, as a `BadRecord` that says where and what was expected.

A task is checked in the order in which a person would want to hear of it: size, encoding, JSON, one
value a name, the fields and their types. Arguments are checked for being JSON and no further; what they
mean is the kernel's business (`zkd.kernels`).
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from zkd.errors import BadRecord
from zkd.records import HISTORY_BYTES_MAX, TASK_BYTES_MAX, Result, Schedule, Task

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode
_task = msgspec.json.Decoder(Task)
_result = msgspec.json.Decoder(Result)
_schedule = msgspec.json.Decoder(Schedule)

ATTEMPTS_FIELD_BYTES = len(b',"attempts":')

# One JSON string, and the colon that makes it a name. Scanning by whole strings keeps in step with the text.
_STRING = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?', re.DOTALL)
_AT = re.compile(r"^(?P<message>.*) - at `(?P<path>.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"unknown field `(?P<name>.*)`")


def encode(record: Any) -> bytes:
    """A record as JSON, readable in zkCli.sh."""
    return _encode(record)


def decode_task(text: bytes) -> Task:
    """The task in these bytes, or a `BadRecord`."""
    if len(text) > TASK_BYTES_MAX + HISTORY_BYTES_MAX:
        raise _too_large(text)
    task = _decode(_task, text)
    # What was tried before is our own writing: a task that was accepted must not become too large by it.
    history = len(encode(task.attempts)) if task.attempts else 0
    if len(text) - history > TASK_BYTES_MAX + (ATTEMPTS_FIELD_BYTES if history else 0):
        raise _too_large(text)
    # One object, written just as we would write it: it has no name twice. This is how our own client drops tasks.
    if text.count(b"{") != 1 or encode(task) != text:
        refuse_duplicate_names(text)
    _expect(task.args, b"[", "$.args", "array")
    _expect(task.kwargs, b"{", "$.kwargs", "object")
    if task.items is not UNSET:
        _expect(task.items, b"[", "$.items", "array")
    if task.dataset is None:
        for field, is_given in (
            ("partition", task.partition is not None),
            ("parts", bool(task.parts)),
            ("columns", bool(task.columns)),
            ("combine", task.combine is not None),
        ):
            if is_given:
                raise BadRecord(f"$.{field}", "expected a `dataset` beside it")
    elif task.items is not UNSET:
        raise BadRecord("$.items", "expected none beside a `dataset`, whose columns are the first arguments")
    elif len(set(task.parts)) < len(task.parts):
        raise BadRecord("$.parts", "expected each part once")
    elif task.partition is not None and task.parts:
        raise BadRecord("$.parts", "expected no `partition` beside it")
    elif task.partition is not None and task.combine is not None:
        raise BadRecord("$.combine", "expected no `partition` beside it: one part has nothing to be combined with")
    return task


def decode_schedule(text: bytes) -> Schedule:
    """The recurring task in these bytes, or a `BadRecord`. Whether its times make sense is not looked at here."""
    if len(text) > TASK_BYTES_MAX:
        raise BadRecord("$", f"expected at most {TASK_BYTES_MAX} bytes, got {len(text)}")
    schedule = _decode(_schedule, text)
    refuse_duplicate_names(text)
    try:
        task = decode_task(bytes(schedule.task))
    except BadRecord as error:
        raise BadRecord(f"$.task{error.where.removeprefix('$')}", error.expected) from None
    if task.attempts:
        raise BadRecord("$.task.attempts", "expected none: zkd writes these into a task that it runs")
    if task.parent is not None:
        raise BadRecord("$.task.parent", "expected none: zkd writes this into the parts of a task")
    return schedule


def _too_large(text: bytes) -> BadRecord:
    return BadRecord("$", f"expected at most {TASK_BYTES_MAX} bytes, got {len(text)}: pass large arrays by reference")


def decode_result(text: bytes) -> Result:
    """The result in these bytes, or a `BadRecord`."""
    return _decode(_result, text)


def decode(text: bytes, kind: type[T]) -> T:
    """Some other record in these bytes, or a `BadRecord`."""
    return _decode(msgspec.json.Decoder(kind), text)


def _decode(decoder: msgspec.json.Decoder[T], text: bytes) -> T:
    if not text or text.isspace():
        raise BadRecord("$", f"expected a JSON object, got {'white space' if text else 'nothing'}")
    try:
        text.decode()
        return decoder.decode(text)
    except UnicodeDecodeError as error:
        raise BadRecord("$", f"expected UTF-8, got byte {text[error.start]:#04x} at offset {error.start}") from None
    except RecursionError:
        raise BadRecord("$", "expected JSON of reasonable depth, got one nested too deeply") from None
    except msgspec.ValidationError as error:
        raise _validation(str(error), decoder.type) from None
    except msgspec.DecodeError as error:
        raise BadRecord("$", f"expected JSON, got text that is not: {error}") from None


def _validation(message: str, kind: Any) -> BadRecord:
    at = _AT.match(message)
    where, what = (at["path"], at["message"]) if at else ("$", message)
    unknown = _UNKNOWN.search(what)
    if unknown:
        known = ", ".join(field for field in kind.__struct_fields__ if field not in ("attempts", "parent"))
        return BadRecord(f"{where}.{unknown['name']}", f"unknown field; expected one of {known}")
    return BadRecord(where, what[0].lower() + what[1:])


def _expect(raw: msgspec.Raw, opening: bytes, where: str, kind: str) -> None:
    text = bytes(raw).lstrip()
    if not text.startswith(opening):
        raise BadRecord(where, f"expected `{kind}`, got `{text[:40].decode(errors='replace')}`")


def refuse_duplicate_names(text: bytes) -> None:
    """Raise a `BadRecord` if an object in this JSON text has a name twice.

    Decoders silently keep the last one, so the person who wrote two would get half of what they meant.
    Names that occur once in the whole text, the usual case, cost one scan; only else is the text parsed.
    """
    names = [name for name, colon in _STRING.findall(text) if colon]
    if len(names) == len(set(names)) and b"\\" not in b"".join(names):
        return
    import json

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        seen: dict[str, object] = {}
        for name, value in pairs:
            if name in seen:
                raise BadRecord(f"$..{name}", "expected each name once in an object, got it twice")
            seen[name] = value
        return seen

    try:
        # Numbers are passed over: Python refuses to convert an integer of more than 4,300 digits.
        json.loads(text, object_pairs_hook=unique, parse_int=str, parse_float=str)
    except RecursionError:  # its limit is a few levels below that of the decoder that took the text before
        raise BadRecord("$", "expected JSON of reasonable depth, got one nested too deeply") from None
