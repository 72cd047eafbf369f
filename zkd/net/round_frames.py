"""What a coordinator and a node say to each other, one WebSocket message each: what it is in JSON, then raw bytes.

    u32 bytes of the head | head: a JSON object | body: raw bytes

    to the node      context     which dataset and columns the parts are of; body: what counters make of them
                     ask         parts of which round; body: the question
                     forget      nobody waits for this answer any more
    from the node    answer      what it counted; body: its partials, one behind the other, `sizes` bytes each
                     failed      why there will be no answer

Nothing that is said here says who says it: a link is of one job, in one of its lives, by one coordinator.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta, Struct

from zkd.errors import DataUnavailable, ZkdError
from zkd.manifests import PARTS_MAX, ColumnName
from zkd.paths import JobId

HEAD_BYTES_MAX: Final = 1 << 20  # all parts of a dataset, as numbers
MESSAGE_BYTES_MAX: Final = 1 << 29  # a gradient of 20 million parameters
COLUMNS_MAX: Final = 1 << 16
PARTIALS_MAX: Final = 4096  # in one answer: one a counter
WORDS_MAX: Final = 2000

Number = Annotated[int, Meta(ge=0, lt=1 << 62)]
PartNumber = Annotated[int, Meta(ge=0, lt=PARTS_MAX)]
PartNumbers = Annotated[list[PartNumber], Meta(min_length=1, max_length=PARTS_MAX)]

_LENGTH = struct.Struct("<I")


class BadMessage(ZkdError):
    """Bytes that are no message, or not one that may come now. Whoever sends them is hung up on."""


class Term(NamedTuple):
    """Which coordinator of which job speaks: one with a higher life, or fence in the same life, puts it out."""

    job: JobId
    life: int  # the transaction that made the job's znode
    fence: int


class Overtaken(DataUnavailable):
    """A later coordinator of this job, or one of a later life of it, has been here: the node takes no more asks."""


class Context(Struct, frozen=True, forbid_unknown_fields=True, tag_field="is", tag="context"):
    """What asks are about from now on. It may be said anew, when more is known of the data."""

    dataset: str  # NAME@V
    columns: Annotated[list[ColumnName], Meta(min_length=1, max_length=COLUMNS_MAX)]


class Ask(Struct, frozen=True, forbid_unknown_fields=True, tag_field="is", tag="ask"):
    round: Number
    ask: Number
    parts: PartNumbers  # ascending


class Forget(Struct, frozen=True, forbid_unknown_fields=True, tag_field="is", tag="forget"):
    round: Number
    ask: Number


class Answer(Struct, frozen=True, forbid_unknown_fields=True, tag_field="is", tag="answer"):
    round: Number
    ask: Number
    parts: PartNumbers
    sizes: Annotated[list[Number], Meta(max_length=PARTIALS_MAX)]


class Failed(Struct, frozen=True, forbid_unknown_fields=True, tag_field="is", tag="failed"):
    round: Number
    ask: Number
    why: str


ToNode: TypeAlias = Context | Ask | Forget
FromNode: TypeAlias = Answer | Failed
Bytes: TypeAlias = bytes | bytearray | memoryview

_encode = msgspec.json.Encoder().encode
_to_node = msgspec.json.Decoder(ToNode)
_from_node = msgspec.json.Decoder(FromNode)


def packed(head: ToNode | FromNode, body: Sequence[Bytes] = ()) -> bytes:
    text = _encode(head)
    return b"".join((_LENGTH.pack(len(text)), text, *body))


def for_node(message: bytes) -> tuple[ToNode, bytes]:
    """What a coordinator says. Raises `BadMessage`."""
    text, body = _parted(message)
    try:
        head = _to_node.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"expected what a coordinator says: {error}") from None
    if isinstance(head, Ask) and any(later <= earlier for earlier, later in pairwise(head.parts)):
        raise BadMessage("parts: expected each once, in ascending order")
    if isinstance(head, Forget) and body:
        raise BadMessage(f"forget: expected nothing behind it, got {len(body)} bytes")
    return head, body


def from_node(message: bytes) -> tuple[FromNode, list[bytes]]:
    """What a node says, and its partials. Raises `BadMessage`."""
    text, body = _parted(message)
    try:
        head = _from_node.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"expected what a node says: {error}") from None
    sizes = head.sizes if isinstance(head, Answer) else []
    if sum(sizes) != len(body):
        raise BadMessage(f"expected {sum(sizes)} bytes behind it, got {len(body)}")
    partials, at = [], 0
    for size in sizes:
        partials.append(body[at : at + size])
        at += size
    return head, partials


def _parted(message: bytes) -> tuple[bytes, bytes]:
    if len(message) < _LENGTH.size:
        raise BadMessage(f"expected {_LENGTH.size} bytes or more, got {len(message)}")
    (length,) = _LENGTH.unpack_from(message)
    start = _LENGTH.size + length
    if length > HEAD_BYTES_MAX or start > len(message):
        raise BadMessage(f"expected a head of at most {min(HEAD_BYTES_MAX, len(message))} bytes, got {length}")
    return message[_LENGTH.size : start], message[start:]
