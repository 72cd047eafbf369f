"""Frames between the pool and a worker: a length that is checked before it is believed, a header, raw bytes.

    u32 bytes that follow | u8 kind | u32 bytes of header | header: a JSON array | body: raw bytes

The body of a call is args, kwargs and items one after the other, as they came from the submitter, so that
text which is not what it claims to be can spoil nothing but its own call. Nothing here is ever unpickled.
Each call is a packet of its own on one socket (`zkd.workers.line`), answers are a stream on another.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from zkd.errors import ZkdError
from zkd.workers.call import BlobFormat, Call, PartFiles

Frame = tuple[int, bytes, bytes]  # kind, header, body

FRAME_BYTES_MAX: Final = 64 * 1024 * 1024  # of a call; larger inputs travel as files
PACKET_BYTES_MAX: Final = 32 * 1024  # of a call that fits into a packet; several of them fit into a socket's buffer
# What a worker may send beyond the inline value itself: the longest header is a failure's, whose texts are bounded.
HEADER_BYTES_MAX: Final = 256 * 1024

CALL: Final = 1
READY: Final = 2
VALUE: Final = 3
BLOB: Final = 4
REJECTED: Final = 5
FAILED: Final = 6
PROGRESS: Final = 7
CALL_AHEAD: Final = 8  # one of several: ring when there is no further one, and not for each answer
CALL_AND_RING: Final = 9  # one of several: ring when it is answered
LACKING: Final = 11
LARGE: Final = 10  # the call is too large for a packet, and follows on the stream

_LENGTH = struct.Struct("<I")
_HEAD = struct.Struct("<IBI")
_REST = 5  # bytes of the head after its first field

_encode = msgspec.json.Encoder().encode
T = TypeVar("T")


class BadFrame(ZkdError):
    """Bytes that are not a frame, or not one that may stand here. The process that sent them is not to be trusted."""


class CallHeader(Struct, frozen=True, array_like=True):
    kernel: str
    args: int  # bytes of each part of the body
    kwargs: int
    items: int | None
    files: dict[str, str]
    task_id: str
    attempt: int
    fence: str
    memory: int | None
    inline_max: int
    part: PartFiles | None


class LargeHeader(Struct, frozen=True, array_like=True):
    size: int


class ReadyHeader(Struct, frozen=True, array_like=True):
    pid: int
    private: int  # bytes of memory that this worker shares with nobody


class ValueHeader(Struct, frozen=True, array_like=True):
    run: int  # the how manieth of this worker: nobody may answer for the next one
    run_s: float
    private: int
    has_output: bool  # something printed waits in the output pipe


class BlobHeader(Struct, frozen=True, array_like=True):
    run: int
    run_s: float
    private: int
    has_output: bool
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Meta(ge=0)]
    format: BlobFormat


class RejectedHeader(Struct, frozen=True, array_like=True):
    run: int
    private: int
    has_output: bool
    path: str
    message: str


class LackingHeader(Struct, frozen=True, array_like=True):
    run: int
    private: int
    has_output: bool
    message: str


class FailedHeader(Struct, frozen=True, array_like=True):
    run: int
    run_s: float
    private: int
    has_output: bool
    kind: str
    message: str
    traceback: str


class ProgressHeader(Struct, frozen=True, array_like=True):
    fraction: float | None
    note: str | None


_DECODERS: dict[type[Any], Any] = {
    header: msgspec.json.Decoder(header).decode
    for header in (
        CallHeader,
        ReadyHeader,
        ValueHeader,
        BlobHeader,
        RejectedHeader,
        LackingHeader,
        FailedHeader,
        ProgressHeader,
    )
}


def encode(kind: int, header: Struct, *body: bytes) -> bytes:
    head = _encode(header)
    return b"".join((_HEAD.pack(_REST + len(head) + sum(map(len, body)), kind, len(head)), head, *body))


def encode_call(call: Call) -> bytes:
    items = call.items
    header = CallHeader(
        call.kernel,
        len(call.args),
        len(call.kwargs),
        None if items is None else len(items),
        call.files,
        call.task_id,
        call.attempt,
        call.fence,
        call.memory,
        call.inline_max,
        call.part,
    )
    return encode(CALL, header, call.args, call.kwargs, items or b"")


def as_kind(frame: bytes, kind: int) -> bytes:
    """The same frame as one of another kind."""
    return b"%b%c%b" % (frame[:4], kind, frame[5:])


def is_large(frame: bytes) -> bool:
    """Whether this call is too large for a packet. Then it is alone on its line: nothing lies behind it."""
    return len(frame) > PACKET_BYTES_MAX


def is_same(packet: bytes, frame: bytes) -> bool:
    """Whether these are the same call, of whatever kind."""
    return packet[5:] == frame[5:]


def decode(kind: type[T], header: bytes) -> T:
    try:
        decoded: T = _DECODERS[kind](header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(f"expected a {kind.__name__}, got {header[:80]!r} ({error})") from None
    return decoded


class FrameReader:
    """Cuts a stream of bytes into frames. `limit` is the longest that is taken in; raises `BadFrame`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()

    @property
    def has_part(self) -> bool:
        """Whether the stream ends in the middle of a frame now."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        if not self._buffer and len(data) >= _HEAD.size:
            # Nearly always exactly one whole frame has come, and needs no buffer.
            rest, kind, head = _HEAD.unpack_from(data)
            if rest == len(data) - _LENGTH.size:
                self._check(rest, head)
                start = _HEAD.size + head
                return [(kind, data[_HEAD.size : start], data[start:])]
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        at = 0
        while len(buffer) - at >= _HEAD.size:
            rest, kind, head = _HEAD.unpack_from(buffer, at)
            self._check(rest, head)
            end = at + _LENGTH.size + rest
            if len(buffer) < end:
                break
            start = at + _HEAD.size + head
            frames.append((kind, bytes(buffer[at + _HEAD.size : start]), bytes(buffer[start:end])))
            at = end
        if at:
            del buffer[:at]
        return frames

    def _check(self, rest: int, head: int) -> None:
        if rest > self.limit:
            raise BadFrame(f"a frame of {rest} bytes, where at most {self.limit} may come")
        if rest < _REST + head:
            raise BadFrame(f"a header of {head} bytes in a frame of {rest}")
