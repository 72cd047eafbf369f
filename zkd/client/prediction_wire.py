"""What a predictor says to a node and hears from it: rows -> body, answer -> arrays, status -> exception.

Small questions go as JSON, which anybody can read on the wire; its numbers come back with the very bits that were sent.
Large arrays go as the container that models lie in, and so do their answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from zkd.arrays.tensors import pack, unpack
from zkd.errors import BadRecord, BadRows, ZkdError
from zkd.net.bodies import bearer

if TYPE_CHECKING:
    import aiohttp

    from zkd.paths import NodeId

JSON_TYPE, CONTAINER_TYPE = "application/json", "application/vnd.safetensors"
JSON_VALUES_MAX = 4096  # of a question; beyond, it is cheaper to send arrays as they are
ANSWER_BYTES_MAX = 1 << 30
WORDS_MAX = 2000  # of an error
TEXTS = ("model", "alias", "node")  # of a container's answer; the others are JSON
COLUMNS = ("prediction", "probabilities", "score", "attributions", "base")
LOAD = "X-Zkd-Load"
QUEUED = re.compile(r"\bqueued=(\d{1,9})\b", re.ASCII)
DEADLINE_MS_MAX = 60_000  # that a node takes

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says of n rows; what was not asked for, or is not given by its kind, is None."""

    prediction: Array | None  # (n,)
    probabilities: Array | None  # (n, classes)
    score: Array | None  # (n,) or (n, outputs)
    attributions: Array | None  # (n, features)
    base: Array | None  # (n,), the score that they add to
    rows: int
    version: int | None  # none of an ensemble
    is_canary: bool
    node: NodeId | None  # that answered
    told: Mapping[str, Any] = field(default_factory=dict)  # the rest as the node says it: alias, ms, who voted
    asked: tuple[NodeId, ...] = ()  # the nodes that were asked for it, in order
    seconds: float = 0.0  # from the call on
    is_remembered: bool = False


# --- Faults, within the client --------------------------------------------------------------------------------


class Lost(ZkdError):
    """No answer, or none that can be used; another node may have one."""


class Shed(Lost):
    """The node wants nothing now; `after_s` is when it may."""

    def __init__(self, words: str, after_s: float) -> None:
        super().__init__(words)
        self.after_s = after_s


class Unknown(Lost):
    """The node knows no such model, or not yet."""


class NotAllowed(Lost):
    """The token is not that of the cluster, or not any more."""


# --- Questions ------------------------------------------------------------------------------------------------


class Question:
    """Rows with what is asked of them, once for all nodes that are asked."""

    def __init__(self, rows: Any, fields: Mapping[str, Any], key: str, *, is_text: bool = False) -> None:
        """`is_text`: as JSON, however large. `key` is not part of the digest.

        Raises `BadRows` for what cannot be sent; what fits no model, nodes say.
        """
        arrays, records = _given(rows)
        self.rows = len(next(iter(arrays.values()))) if arrays else len(records)
        values = sum(array.size for array in arrays.values())
        is_plain = all(array.dtype.kind in "biuf" for array in arrays.values())
        self.is_container = bool(arrays) and is_plain and values > JSON_VALUES_MAX and not is_text
        self._arrays = arrays
        self._fields = dict(fields)
        self._key = key
        self._rows_text = b"" if self.is_container else _text(arrays, records)

    @property
    def content_type(self) -> str:
        return CONTAINER_TYPE if self.is_container else JSON_TYPE

    def body(self, deadline_ms: int) -> bytes:
        fields = {**self._fields, "key": self._key, "deadline_ms": min(deadline_ms, DEADLINE_MS_MAX)}
        if self.is_container:
            texts = {name: value if isinstance(value, str) else _json(value) for name, value in fields.items()}
            return pack(self._arrays, texts)
        return b"".join((msgspec.json.encode(fields)[:-1], b',"rows":', self._rows_text, b"}"))

    def digest(self) -> bytes:
        """Of rows and all that is asked, whatever its form."""
        from blake3 import blake3

        digest = blake3(msgspec.json.encode(self._fields, order="sorted"))
        digest.update(pack(self._arrays) if self.is_container else self._rows_text)
        return digest.digest()


def _given(rows: Any) -> tuple[dict[str, Array], list[Any]]:
    """Columns by name, or the matrix "rows"; or rows as objects."""
    if isinstance(rows, Mapping) or hasattr(rows, "columns"):
        names = list(rows if isinstance(rows, Mapping) else rows.columns)
        arrays = {str(name): np.asarray(rows[name]) for name in names}
        if arrays and all(array.ndim == 0 for array in arrays.values()):
            arrays = {name: array[None] for name, array in arrays.items()}  # one row
        if not arrays or any(array.ndim == 0 for array in arrays.values()):
            raise BadRows("rows", "expected columns by name, or one row, a value each")
        lengths = {len(array) for array in arrays.values()}
        if len(lengths) > 1:
            raise BadRows("rows", f"expected columns of one length, got {sorted(lengths)[:5]}")
        return arrays, []
    if isinstance(rows, Sequence) and rows and all(isinstance(row, Mapping) for row in rows):
        return {}, list(rows)
    try:
        matrix = np.asarray(rows)
    except ValueError as error:
        raise BadRows("rows", f"expected rows of one length: {error}") from None
    if matrix.ndim != 2:
        raise BadRows("rows", f"expected columns by name, objects, or rows x features, got the shape {matrix.shape}")
    return {"rows": matrix}, []


def _text(arrays: Mapping[str, Array], records: list[Any]) -> bytes:
    try:
        if records:
            return msgspec.json.encode(records, enc_hook=_plain)
        if set(arrays) == {"rows"} and arrays["rows"].ndim == 2:
            return _listed("rows", arrays["rows"])
        inner = b",".join(msgspec.json.encode(name) + b":" + _listed(name, array) for name, array in arrays.items())
        return b"{" + inner + b"}"
    except (TypeError, msgspec.MsgspecError) as error:
        raise BadRows("rows", f"expected numbers: {error}") from None


def _listed(name: str, array: Array) -> bytes:
    if array.dtype.kind not in "biufOU":
        raise BadRows(name, f"expected numbers, got {array.dtype}")
    return msgspec.json.encode(array.tolist(), enc_hook=_plain)  # NaN becomes null, which is what JSON has for it


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"got {type(value).__name__}")


# --- Answers --------------------------------------------------------------------------------------------------


async def ask(
    http: aiohttp.ClientSession, url: str, token: str, question: Question, deadline_ms: int
) -> tuple[Answer, int | None]:
    """The answer of a node, and how much waits there as it says. The caller bounds the time.

    Raises `BadRows` for what it refuses, and `Lost`.
    """
    import aiohttp

    headers = bearer(token) | {"Content-Type": question.content_type}
    try:
        async with http.post(url, data=question.body(deadline_ms), headers=headers, allow_redirects=False) as reply:
            data = await reply.content.read(ANSWER_BYTES_MAX) if reply.content_length is None else await reply.read()
            if reply.status != 200:
                raise _fault(reply.status, data, reply.headers)
            return read(data, reply.content_type), _queued(reply.headers.get(LOAD))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Lost(str(error) or type(error).__name__) from None


def read(data: bytes, content_type: str) -> Answer:
    """The answer in these bytes. Raises `Lost` for what is none."""
    try:
        if content_type == CONTAINER_TYPE:
            return _answer(_of_container(data))
        return _answer(msgspec.json.decode(data))
    except (BadRecord, msgspec.DecodeError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Lost(f"expected an answer, got what is none: {error}") from None


def _answer(told: dict[str, Any]) -> Answer:
    arrays: dict[str, Any] = {name: _column(told.pop(name, None)) for name in COLUMNS}
    rows, version, node = told.pop("rows"), told.pop("version", None), told.pop("node", None)
    lengths = {len(array) for array in arrays.values() if array is not None}
    if lengths != {rows}:
        raise ValueError(f"it is about {rows} rows, and has {sorted(lengths)}")
    return Answer(
        **arrays, rows=rows, version=version, is_canary=bool(told.pop("is_canary", False)), node=node, told=told
    )


def _of_container(data: bytes) -> dict[str, Any]:
    """Texts are texts, or JSON; a prediction among classes is their number, -1 for a row that has none."""
    arrays, texts = unpack(data)
    told: dict[str, Any] = {name: texts[name] for name in TEXTS if texts.get(name, "null") != "null"}
    told |= {name: msgspec.json.decode(text) for name, text in texts.items() if name not in TEXTS}
    classes = told.pop("classes", None)
    if classes is not None and "prediction" in arrays:
        numbers = arrays["prediction"]
        if numbers.size and not -1 <= numbers.min() <= numbers.max() < len(classes):
            raise ValueError(f"expected numbers of {len(classes)} classes")
        labels = np.array(classes)
        if (numbers < 0).any():
            labels = np.append(labels, "") if labels.dtype.kind == "U" else np.append(labels.astype(np.float64), np.nan)
        arrays["prediction"] = labels[numbers]
    return told | arrays


def _column(values: Any) -> Array | None:
    """Numbers, labels as written; null is a number or a label that is missing."""
    if values is None or isinstance(values, np.ndarray):
        return values
    if any(type(value) is str for value in values):
        values = ["" if value is None else value for value in values]
    array = np.array(values)
    return np.array(values, np.float64) if array.dtype.kind == "O" else array


def _fault(status: int, data: bytes, headers: Mapping[str, str]) -> Exception:
    try:
        words = str(msgspec.json.decode(data)["error"])
    except (msgspec.DecodeError, KeyError, TypeError, RecursionError):
        words = data[:WORDS_MAX].decode(errors="replace").strip()
    words = words[:WORDS_MAX]
    if status in (400, 411, 413, 415):
        return BadRows("rows", words.removeprefix("rows: "))
    if status in (429, 503, 504):  # of the last, nobody is to blame but the deadline
        return Shed(f"HTTP {status}: {words}", _seconds(headers.get("Retry-After")))
    if status == 404:
        return Unknown(words)
    if status in (401, 403):
        return NotAllowed(f"HTTP {status}: {words}")
    return Lost(f"HTTP {status}: {words}")


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0.0))
    except ValueError:  # a date
        return 1.0


def _queued(text: str | None) -> int | None:
    """Of ``queued=3; p50_ms=1.2``."""
    found = QUEUED.search(text or "")
    return None if found is None else int(found[1])
