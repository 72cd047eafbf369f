"""What submitters write down, a JSON line a fact, and how it is read again.

A line is written before the deed (`Submit`, `Cancel`) and after it (`Submitted`, `Cancelled`, `Ended`), so that a
submitter that is killed leaves deeds of unknown outcome and no lies. `outcome` is what the submitter knows: `ok`, it
was applied; `fail`, it was not; `unknown`. Times are of the machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct, field

Outcome = Literal["ok", "fail", "unknown"]
Mode = Literal["client", "forget", "persistent", "sequential", "ephemeral"]


class Submit(Struct, frozen=True, tag="submit", tag_field="op"):
    """About to drop a task. `id` is empty where the client makes it, a prefix where the server completes it."""

    key: str
    id: str
    kind: str
    n: int
    mode: Mode
    t: float = field(default_factory=time.monotonic)


class Submitted(Struct, frozen=True, tag="submitted", tag_field="op"):
    key: str
    id: str
    outcome: Outcome
    why: str = ""
    t: float = field(default_factory=time.monotonic)


class Cancel(Struct, frozen=True, tag="cancel", tag_field="op"):
    key: str
    id: str
    t: float = field(default_factory=time.monotonic)


class Cancelled(Struct, frozen=True, tag="cancelled", tag_field="op"):
    """`ok`: our delete took the task away. `fail`: it was gone already."""

    key: str
    id: str
    outcome: Outcome
    t: float = field(default_factory=time.monotonic)


class Seen(Struct, frozen=True):
    """A result, as far as it has to stay what it is."""

    status: str
    node: str | None = None
    attempt: int = 0
    owner: str | None = None
    czxid: int = 0
    value: str | None = None  # JSON text
    error: str = ""
    causes: list[str] = []
    ref: str = ""  # the sha256 of a value that lies in a file


class Ended(Struct, frozen=True, tag="ended", tag_field="op"):
    """What the submitter saw in the end; `seen` is None where there was neither task nor result."""

    key: str
    id: str
    seen: Seen | None
    t: float = field(default_factory=time.monotonic)


class Lost(Struct, frozen=True, tag="lost", tag_field="op"):
    """The submitter's session ended: its ephemeral tasks are cancelled from here on."""

    t: float = field(default_factory=time.monotonic)


Line: TypeAlias = Submit | Submitted | Cancel | Cancelled | Ended | Lost
_LINES = msgspec.json.Decoder(Line)


class Journal:
    """Appends lines to a file; each is whole or, at the very end of a killed process, missing."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, line: Struct) -> None:
        os.write(self._fd, msgspec.json.encode(line) + b"\n")


def read(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield _LINES.decode(line)


def seen_of(data: bytes) -> Seen:
    """What stands at a result, taken from its JSON by nobody's code but the test's own."""
    raw = msgspec.json.decode(data, type=dict[str, msgspec.Raw])

    def get(name: str, default: object = None) -> object:
        return msgspec.json.decode(raw[name]) if name in raw else default

    error = get("error") or {}
    attempts = get("attempts") or []
    ref = get("ref") or {}
    assert isinstance(error, dict)
    assert isinstance(ref, dict)
    assert isinstance(attempts, list)
    return Seen(
        str(get("status")),
        get("node"),  # type: ignore[arg-type]
        get("attempt", 0),  # type: ignore[arg-type]
        get("owner"),  # type: ignore[arg-type]
        get("czxid", 0),  # type: ignore[arg-type]
        bytes(raw["value"]).decode() if "value" in raw else None,
        error.get("kind", ""),
        [attempt["cause"] for attempt in attempts],
        ref.get("blob", ""),
    )
