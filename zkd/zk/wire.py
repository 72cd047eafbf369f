"""Bytes of the hot requests and replies, with every `struct` compiled once.

A request is a body here; the connection puts length, xid and opcode before it. A decoder gets the whole
chunk that came from the socket and the bounds of one reply in it, and must not believe a length that
points outside: it raises `Malformed`, and the connection ends. `generic` has the rarely used operations;
property tests hold the two to each other.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING

from zkd.zk.values import WORLD_ALL, Created, Event, EventType, Stat, Znode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zkd.zk.values import Acl

CREATE, DELETE, EXISTS, GET, SET, SYNC, PING, CHILDREN = 1, 2, 3, 4, 5, 9, 11, 8
CHILDREN2, CHECK, MULTI, CREATE2, CREATE_CONTAINER, CREATE_TTL, MULTI_READ = 12, 13, 14, 15, 19, 21, 22
CLOSE = -11

EVENT_XID, PING_XID, AUTH_XID = -1, -2, -4

# jute.maxbuffer of a server is 0xfffff by default; it closes the connection on a longer packet. The packet
# is xid, opcode and body.
BODY_BYTES_MAX = 0xFFFFF - 8
# A server puts no limit on what it sends. 128 znodes of 1 MiB must fit (`multi.PATHS_A_READ`); the text of
# some other protocol read as a length ("HTTP" is 1.2 GB) must not.
REPLY_BYTES_MAX = 160 * 1024 * 1024

INT = Struct("!i")
STAT = Struct("!qqqqiiiqiiq")
HEAD = Struct("!iii")  # length, xid, opcode
REPLY = Struct("!iqi")  # xid, zxid, error code
REPLY_BYTES = REPLY.size
EVENT = Struct("!iii")  # type, state, length of the path

_pack_int = INT.pack
_int_at = INT.unpack_from
_stat_at = STAT.unpack_from
_tuple = tuple.__new__

PING_FRAME = HEAD.pack(8, PING_XID, PING)


class Malformed(Exception):
    """Bytes that no ZooKeeper server sends."""


# --- requests -----------------------------------------------------------------------------------------


def encode_path(path: str, watch: bool) -> bytes:
    """get, exists, children."""
    text = path.encode()
    return b"%b%b%b" % (_pack_int(len(text)), text, b"\x01" if watch else b"\x00")


def encode_versioned(path: str, version: int) -> bytes:
    """delete, check."""
    text = path.encode()
    return b"%b%b%b" % (_pack_int(len(text)), text, _pack_int(version))


def encode_set(path: str, data: bytes, version: int) -> bytes:
    text = path.encode()
    return b"%b%b%b%b%b" % (_pack_int(len(text)), text, _pack_int(len(data)), data, _pack_int(version))


def encode_create(
    path: str,
    data: bytes,
    ephemeral: bool,
    sequential: bool,
    container: bool,
    ttl_ms: int | None,
    acl: Sequence[Acl] | None,
) -> tuple[int, bytes]:
    """Opcode and body: containers and znodes with a TTL have operations of their own."""
    text = path.encode()
    opcode, tail = CREATE2, _PLAIN_TAIL
    if acl is not None or ephemeral or sequential or container or ttl_ms is not None:
        opcode, tail = _create_tail(ephemeral, sequential, container, ttl_ms, tuple(acl or WORLD_ALL))
    return opcode, b"%b%b%b%b%b" % (_pack_int(len(text)), text, _pack_int(len(data)), data, tail)


@lru_cache(maxsize=64)  # a program uses a handful of combinations
def _create_tail(
    ephemeral: bool, sequential: bool, container: bool, ttl_ms: int | None, acl: tuple[Acl, ...]
) -> tuple[int, bytes]:
    permissions = encode_acl(acl)
    if ttl_ms is not None:
        if ephemeral or container:
            raise ValueError("ttl_ms: expected neither ephemeral nor container beside it")
        return CREATE_TTL, permissions + _pack_int(6 if sequential else 5) + Struct("!q").pack(ttl_ms)
    if container:
        if ephemeral or sequential:
            raise ValueError("container: expected neither ephemeral nor sequential beside it")
        return CREATE_CONTAINER, permissions + _pack_int(4)
    return CREATE2, permissions + _pack_int(ephemeral + 2 * sequential)


def encode_acl(acl: Sequence[Acl]) -> bytes:
    parts = [_pack_int(len(acl))]
    for perms, scheme, who in acl:
        parts.append(_pack_int(perms))
        for text in (scheme.encode(), who.encode()):
            parts += (_pack_int(len(text)), text)
    return b"".join(parts)


_PLAIN_TAIL = encode_acl(WORLD_ALL) + _pack_int(0)


# --- replies ------------------------------------------------------------------------------------------


def decode_nothing(data: bytes, at: int, end: int) -> None:
    return None


def decode_stat(data: bytes, at: int, end: int) -> Stat:
    if at + 68 > end:
        raise Malformed(f"a stat of {end - at} bytes")
    return _tuple(Stat, _stat_at(data, at))


def decode_get(data: bytes, at: int, end: int) -> Znode:
    at += 4
    stop = at + max(_int_at(data, at - 4)[0], 0)  # no data at all is length -1
    if stop + 68 > end:
        raise Malformed(f"a znode of {stop - at} bytes in a reply of {end - at}")
    return _tuple(Znode, (data[at:stop], _tuple(Stat, _stat_at(data, stop))))


def decode_created(data: bytes, at: int, end: int) -> Created:
    at += 4
    stop = at + _int_at(data, at - 4)[0]
    if not at <= stop <= end - 68:
        raise Malformed(f"a path of {stop - at} bytes in a reply of {end - at}")
    return _tuple(Created, (data[at:stop].decode(), _tuple(Stat, _stat_at(data, stop))))


def decode_names(data: bytes, at: int, end: int) -> tuple[list[str], int]:
    """A vector of strings, and where it ends."""
    (count,) = _int_at(data, at)
    at += 4
    names = []
    for _ in range(count):
        at += 4
        stop = at + _int_at(data, at - 4)[0]
        if not at <= stop <= end:
            raise Malformed(f"a name of {stop - at} bytes in a reply of {end - at}")
        names.append(data[at:stop].decode())
        at = stop
    return names, at


def decode_children(data: bytes, at: int, end: int) -> tuple[list[str], Stat]:
    names, at = decode_names(data, at, end)
    return names, decode_stat(data, at, end)


EVENT_TYPES = {
    1: EventType.CREATED,
    2: EventType.DELETED,
    3: EventType.CHANGED,
    4: EventType.CHILDREN,
    5: EventType.REMOVED,  # data, child and persistent watches
    6: EventType.REMOVED,
    7: EventType.REMOVED,
}


def decode_event(data: bytes, at: int, end: int, zxid: int) -> Event | None:
    """The event, or None for one about the session itself, which the connection tells us better."""
    kind, _, length = EVENT.unpack_from(data, at)
    at += 12
    if not at <= at + length <= end:
        raise Malformed(f"an event's path of {length} bytes in a frame of {end - at}")
    event = EVENT_TYPES.get(kind)
    return None if event is None else Event(event, data[at : at + length].decode(), zxid)
