"""ZooKeeper's wire format (jute) as the embedded server reads and writes it.

A second implementation, on purpose: it shares no line with the client side of zkd, so that a mistake in one
is seen by the other. Reading is bounds-checked against the frame and never trusts a count or a length;
anything that does not fit raises `Malformed`. Only bytes and values here: no sockets, no tree.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_FRAME = 0xFFFFF  # Apache's default jute.maxbuffer

INT = Struct(">i")
LONG = Struct(">q")
STAT = Struct(">qqqqiiiqiiq")
REPLY = Struct(">iiqi")  # length of what follows, xid, zxid, error
REQUEST = Struct(">ii")  # xid, opcode
CONNECT = Struct(">iqiq")  # protocol, last zxid seen, timeout, session id; a password and a flag follow
CONNECTED = Struct(">iiiq16s")  # length of the password, and all before it: see `connect_reply`
MULTI = Struct(">i?i")  # kind of the next operation, whether this ends the list, error
EVENT = Struct(">iiqiii")  # a reply header with xid -1 and zxid -1, then type and state of the event

NULL = INT.pack(-1)
MULTI_END = MULTI.pack(-1, True, -1)


class Op(IntEnum):
    """Request types."""

    NOTIFICATION = 0
    CREATE = 1
    DELETE = 2
    EXISTS = 3
    GET_DATA = 4
    SET_DATA = 5
    GET_ACL = 6
    SET_ACL = 7
    GET_CHILDREN = 8
    SYNC = 9
    PING = 11
    GET_CHILDREN2 = 12
    CHECK = 13
    MULTI = 14
    CREATE2 = 15
    RECONFIG = 16
    CHECK_WATCHES = 17
    REMOVE_WATCHES = 18
    CREATE_CONTAINER = 19
    DELETE_CONTAINER = 20
    CREATE_TTL = 21
    MULTI_READ = 22
    AUTH = 100
    SET_WATCHES = 101
    SASL = 102
    GET_EPHEMERALS = 103
    GET_ALL_CHILDREN_NUMBER = 104
    SET_WATCHES2 = 105
    ADD_WATCH = 106
    WHO_AM_I = 107
    CREATE_SESSION = -10
    CLOSE_SESSION = -11
    ERROR = -1


class Code(IntEnum):
    """Errors as the server sends them."""

    OK = 0
    RUNTIME_INCONSISTENCY = -2
    MARSHALLING_ERROR = -5
    UNIMPLEMENTED = -6
    BAD_ARGUMENTS = -8
    NO_NODE = -101
    NO_AUTH = -102
    BAD_VERSION = -103
    NO_CHILDREN_FOR_EPHEMERALS = -108
    NODE_EXISTS = -110
    NOT_EMPTY = -111
    SESSION_EXPIRED = -112
    INVALID_ACL = -114
    AUTH_FAILED = -115
    NO_WATCHER = -121
    RECONFIG_DISABLED = -123


class EventType(IntEnum):
    CREATED = 1
    DELETED = 2
    CHANGED = 3
    CHILDREN = 4


class Perm:
    """Bits of an ACL entry."""

    READ = 1
    WRITE = 2
    CREATE = 4
    DELETE = 8
    ADMIN = 16
    ALL = 31


CONNECTED_STATE = 3  # KeeperState.SyncConnected, the state inside every event
NO_XID, PING_XID = -1, -2


class Acl(NamedTuple):
    perms: int
    scheme: str | None
    ident: str


class Stat(NamedTuple):
    """A znode's stat, in the order of the wire."""

    czxid: int
    mzxid: int
    ctime: int
    mtime: int
    version: int
    cversion: int
    aversion: int
    ephemeral_owner: int
    data_length: int
    num_children: int
    pzxid: int


class Malformed(Exception):
    """Bytes that are not the record they should be."""


def text(value: str) -> bytes:
    encoded = value.encode()
    return INT.pack(len(encoded)) + encoded


def buffer(value: bytes | None) -> bytes:
    return NULL if value is None else INT.pack(len(value)) + value


def texts(values: Iterable[str]) -> bytes:
    encoded = [text(value) for value in values]
    return INT.pack(len(encoded)) + b"".join(encoded)


def acl(entries: Iterable[Acl]) -> bytes:
    encoded = [INT.pack(e.perms) + (NULL if e.scheme is None else text(e.scheme)) + text(e.ident) for e in entries]
    return INT.pack(len(encoded)) + b"".join(encoded)


OPEN_ACL = (Acl(Perm.ALL, "world", "anyone"),)
OPEN_ACL_BYTES = acl(OPEN_ACL)


def event(kind: int, path: str) -> bytes:
    """A whole frame: the notification that something happened at `path`."""
    encoded = path.encode()
    return EVENT.pack(28 + len(encoded), NO_XID, -1, 0, kind, CONNECTED_STATE) + INT.pack(len(encoded)) + encoded


class Reader:
    """Reads the values of one frame, in order, from `start` to `end` of a larger run of bytes."""

    __slots__ = ("at", "end", "source")

    def __init__(self, source: bytes, start: int = 0, end: int | None = None) -> None:
        self.source = source
        self.at = start
        self.end = len(source) if end is None else end

    def _advance(self, size: int) -> int:
        at = self.at
        self.at = at + size
        if size < 0 or self.at > self.end:
            raise Malformed(f"{size} bytes wanted at {at}, the frame ends at {self.end}")
        return at

    def int32(self) -> int:
        value: int = INT.unpack_from(self.source, self._advance(4))[0]
        return value

    def int64(self) -> int:
        value: int = LONG.unpack_from(self.source, self._advance(8))[0]
        return value

    def flag(self) -> bool:
        return self.source[self._advance(1)] != 0

    def buffer(self) -> bytes | None:
        size = self.int32()
        if size == -1:
            return None
        at = self._advance(size)
        return self.source[at : at + size]

    def text_or_none(self) -> str | None:
        value = self.buffer()
        # Java replaces what is not UTF-8 with U+FFFD, which no path may hold: refused where it matters.
        return None if value is None else str(value, "utf-8", "replace")

    def text(self) -> str:
        value = self.text_or_none()
        if value is None:
            raise Malformed("a string is missing")
        return value

    def texts(self) -> list[str]:
        return [self.text() for _ in self._count()]

    def acl(self) -> tuple[Acl, ...]:
        """An ACL; empty when the list is empty or missing."""
        at = self.at
        if self.source.startswith(OPEN_ACL_BYTES, at) and at + len(OPEN_ACL_BYTES) <= self.end:
            self.at = at + len(OPEN_ACL_BYTES)
            return OPEN_ACL
        return tuple(Acl(self.int32(), self.text_or_none(), self.text()) for _ in self._count())

    def multi_header(self) -> tuple[int, bool]:
        """Opcode of the next operation of a multi, and whether there is none."""
        kind, is_end, _ = MULTI.unpack_from(self.source, self._advance(9))
        return kind, is_end

    def _count(self) -> range:
        return range(self.int32())  # a false count ends in Malformed at the end of the frame, before it costs memory
