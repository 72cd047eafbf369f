"""The values that go in and out of a session. All frozen, no behaviour, no knowledge of bytes or sockets.

`Stat` has the fields of ZooKeeper's own stat in its own order, so one `struct` call fills it. Times are the
server's wall clock in milliseconds: they are for people, and nothing in zkd is decided by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple

from msgspec import Struct

ANY_VERSION = -1


class State(Enum):
    """What can be said of the session now."""

    CONNECTING = "connecting"  # never connected yet
    CONNECTED = "connected"  # requests are answered
    SUSPENDED = "suspended"  # connection lost; the session probably lives on
    UNKNOWN = "unknown"  # nothing answered for 2/3 of the timeout: the session may be over; stop what needs it
    EXPIRED = "expired"  # the server said that it is over; a new one is being opened
    CLOSED = "closed"  # closed here


@dataclass(frozen=True, slots=True)
class StateChange:
    """`epoch` counts established connections: with each, everything watched must be read again."""

    state: State
    epoch: int
    session_id: int


class Stat(NamedTuple):
    czxid: int
    mzxid: int
    ctime: int
    mtime: int
    version: int
    cversion: int
    aversion: int
    ephemeral_owner: int  # session id, or 0
    data_length: int
    num_children: int
    pzxid: int


class Znode(NamedTuple):
    data: bytes
    stat: Stat


class Created(NamedTuple):
    """A created znode; `path` is as the server made it. Servers before 3.9 give no stat inside a multi."""

    path: str
    stat: Stat | None


class EventType(IntEnum):
    CREATED = 1
    DELETED = 2
    CHANGED = 3
    CHILDREN = 4
    REMOVED = 5  # the server dropped a watch on somebody's request


class Event(NamedTuple):
    """A hint that something happened at `path`. What is there now must be read."""

    type: EventType
    path: str
    zxid: int = -1  # known from 3.9 servers on


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a later process needs to take over this session, or to end it. The password is a secret."""

    session_id: int
    password: bytes

    def __repr__(self) -> str:
        return f"Credentials(session_id={self.session_id:#x}, password=...)"


class Perms:
    READ = 1
    WRITE = 2
    CREATE = 4
    DELETE = 8
    ADMIN = 16
    ALL = 31


class Acl(NamedTuple):
    """Who (`scheme`, `id`) may do what (`perms`, a sum of `Perms`)."""

    perms: int
    scheme: str
    id: str


WORLD_ALL = (Acl(Perms.ALL, "world", "anyone"),)
WORLD_READ = (Acl(Perms.READ, "world", "anyone"),)
CREATOR_ALL = (Acl(Perms.ALL, "auth", ""),)


class Create(Struct, frozen=True):
    """Make a znode. `container` ones are removed by the server some time after their last child;
    `ttl_ms` ones when unchanged for so long and without children (the server must allow them)."""

    path: str
    data: bytes = b""
    ephemeral: bool = False
    sequential: bool = False
    container: bool = False
    ttl_ms: int | None = None
    acl: Sequence[Acl] | None = None


class SetData(Struct, frozen=True):
    path: str
    data: bytes
    version: int


class Delete(Struct, frozen=True):
    path: str
    version: int


class Check(Struct, frozen=True):
    path: str
    version: int


Op = Create | SetData | Delete | Check
