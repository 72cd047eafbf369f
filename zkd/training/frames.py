"""Frames between a daemon and its children that compute: a kind, a small JSON value, and bodies of raw bytes.

    u32 bytes of the head | u64 bytes of all bodies | head: JSON [kind, value, [bytes of each body]] | bodies

A frame is received into one piece of memory of its own and its bodies are views of that, so that hundreds of MB cost
one copy on each side. Lengths are compared with what may come, and with each other, before they are believed.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from zkd.workers.frames import BadFrame

__all__ = ["BODIES_BYTES_MAX", "HEAD_BYTES_MAX", "BadFrame", "Buffer", "Frame", "FrameReader", "encode"]

Buffer: TypeAlias = bytes | bytearray | memoryview

HEAD_BYTES_MAX: Final = 16 << 20
BODIES_BYTES_MAX: Final = 4 << 30  # the Hessians of a round, from many counters
ALIGNMENT: Final = 16  # of the first body, in memory: arrays in it can be used where they are
MAPPED_BYTES_MIN: Final = 1 << 20  # memory for more than this costs nothing until bytes are there

_LENGTHS = struct.Struct("<IQ")


class _Head(msgspec.Struct, frozen=True, array_like=True):
    kind: str
    value: Any
    bodies: list[int]


class Frame(NamedTuple):
    """`head` is what `json.loads` would give; `bodies` are read-only views."""

    kind: str
    head: Any
    bodies: tuple[memoryview, ...]


def encode(kind: str, head: Any = None, *bodies: Buffer) -> list[Buffer]:
    """The pieces of a frame, to be written one after the other. Bodies are not copied."""
    lengths = [memoryview(body).nbytes for body in bodies]
    raw = msgspec.json.encode([kind, head, lengths])
    raw += b" " * (-len(raw) % ALIGNMENT)
    _check(len(raw), sum(lengths))
    pieces: list[Buffer] = [_LENGTHS.pack(len(raw), sum(lengths)) + raw]
    return pieces + [body for body, length in zip(bodies, lengths, strict=True) if length]


class FrameReader:
    """Says where the next bytes are to be received, and makes frames of them.

    while True: frame = reader.took(sock.recv_into(reader.room()))
    """

    def __init__(self) -> None:
        self._into = memoryview(bytearray(_LENGTHS.size))
        self._at = 0
        self._lengths: tuple[int, int] | None = None  # of head and bodies, once they are known

    @property
    def has_part(self) -> bool:
        """Whether the stream ends in the middle of a frame now."""
        return self._at > 0 or self._lengths is not None

    def room(self) -> memoryview:
        """Where to put the bytes that come next; never empty."""
        return self._into[self._at :]

    def took(self, count: int) -> Frame | None:
        """After `count` bytes were put there. A frame, where they were its last. Raises `BadFrame`."""
        self._at += count
        if self._at < len(self._into):
            return None
        if self._lengths is None:
            head, bodies = _LENGTHS.unpack(self._into)
            _check(head, bodies)
            self._lengths, self._into, self._at = (head, bodies), _memory(head + bodies), 0
            return None
        whole, (head, _) = self._into.toreadonly(), self._lengths
        self._lengths, self._into, self._at = None, memoryview(bytearray(_LENGTHS.size)), 0
        return _frame(whole[:head], whole[head:])


def _check(head: int, bodies: int) -> None:
    if not 0 < head <= HEAD_BYTES_MAX:
        raise BadFrame(f"a frame with a head of {head} bytes, where 1 to {HEAD_BYTES_MAX} may come")
    if bodies > BODIES_BYTES_MAX:
        raise BadFrame(f"a frame with bodies of {bodies} bytes, where at most {BODIES_BYTES_MAX} may come")


def _memory(size: int) -> memoryview:
    if size < MAPPED_BYTES_MIN:
        return memoryview(bytearray(size))
    try:
        return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except OSError as error:
        raise BadFrame(f"a frame of {size} bytes, for which there is no memory ({error})") from None


def _frame(raw: memoryview, rest: memoryview) -> Frame:
    try:
        head = msgspec.json.decode(raw, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(
            f"expected a kind, a value and the lengths of bodies, got {bytes(raw[:80])!r} ({error})"
        ) from None
    if min(head.bodies, default=0) < 0 or sum(head.bodies) != len(rest):
        raise BadFrame(f"bodies of {head.bodies[:8]} bytes in a frame that has {len(rest)}")
    bodies, at = [], 0
    for length in head.bodies:
        bodies.append(rest[at : at + length])
        at += length
    return Frame(head.kind, head.value, tuple(bodies))
