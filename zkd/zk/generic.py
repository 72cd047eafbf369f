"""The rarely used operations, on aiozk's protocol records, and those that aiozk lacks, declared like its own.

This is the only file that imports aiozk. Its records are sound; its session is not (`docs/decisions`), so
nothing above the records is used. Its internals are relied on: the exact version is checked at import.
"""

from __future__ import annotations

import struct
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import aiozk
from aiozk import protocol as protocol  # re-exported to `session`, which asks its records
from aiozk.protocol.part import Part
from aiozk.protocol.primitives import Int, Long, UString, Vector
from aiozk.protocol.request import Request
from aiozk.protocol.response import Response

from zkd.zk.values import Acl, Stat
from zkd.zk.wire import Malformed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

AIOZK = "0.32.0"


def check_aiozk() -> None:
    """Refuse to start on another aiozk than the one whose internals are known."""
    found = version("aiozk")
    if found != AIOZK:
        raise ImportError(f"aiozk: expected exactly {AIOZK}, whose internals zkd.zk relies on, found {found}")
    fields = [name for name, _ in protocol.ConnectRequest.parts]
    known = ["protocol_version", "last_seen_zxid", "timeout", "session_id", "password", "read_only"]
    if fields != known or not hasattr(Request, "render") or 12 not in protocol.response_xref:
        raise ImportError(f"aiozk {aiozk}: its protocol records are not those of {AIOZK}")


check_aiozk()

# --- operations that aiozk does not have --------------------------------------------------------------

PERSISTENT, PERSISTENT_RECURSIVE = 0, 1  # modes of addWatch
ANY_WATCH, CHILD_WATCH, DATA_WATCH = 3, 1, 2  # kinds for removeWatches and checkWatches


class AddWatchRequest(Request):  # type: ignore[misc]
    opcode = 106
    parts = (("path", UString), ("mode", Int))


class AddWatchResponse(Response):  # type: ignore[misc]
    opcode = 106
    parts = ()


class SetWatches2Request(Request):  # type: ignore[misc]
    opcode = 105
    parts = (
        ("relative_zxid", Long),
        ("data_watches", Vector.of(UString)),
        ("exist_watches", Vector.of(UString)),
        ("child_watches", Vector.of(UString)),
        ("persistent_watches", Vector.of(UString)),
        ("recursive_watches", Vector.of(UString)),
    )


class SetWatches2Response(Response):  # type: ignore[misc]
    opcode = 105
    parts = ()


class GetEphemeralsRequest(Request):  # type: ignore[misc]
    opcode = 103
    parts = (("prefix", UString),)


class GetEphemeralsResponse(Response):  # type: ignore[misc]
    opcode = 103
    parts = (("paths", Vector.of(UString)),)


class CountDescendantsRequest(Request):  # type: ignore[misc]
    opcode = 104
    parts = (("path", UString),)


class CountDescendantsResponse(Response):  # type: ignore[misc]
    opcode = 104
    parts = (("count", Int),)


class ClientInfo(Part):  # type: ignore[misc]
    parts = (("scheme", UString), ("user", UString))


class WhoAmIRequest(Request):  # type: ignore[misc]
    opcode = 107
    parts = ()


class WhoAmIResponse(Response):  # type: ignore[misc]
    opcode = 107
    parts = (("clients", Vector.of(ClientInfo)),)


class CreateTtlRequest(Request):  # type: ignore[misc]
    """Sent by `wire`; here as the reading that `wire` is compared with."""

    opcode = 21
    parts = (*protocol.CreateRequest.parts, ("ttl", Long))


# --- bytes --------------------------------------------------------------------------------------------


def body(request: Any) -> bytes:
    """What follows the opcode."""
    layout, values = request.render()
    return struct.pack(f"!{''.join(layout)}", *values)


def decoder(response: Any) -> Callable[[bytes, int, int], Any]:
    def decode(data: bytes, at: int, end: int) -> Any:
        try:
            return response.deserialize(data[at:end])
        except (struct.error, UnicodeDecodeError) as error:
            raise Malformed(f"{response.__name__}: {error}") from None

    return decode


def connect_frame(last_zxid: int, timeout_ms: int, session_id: int, password: bytes) -> bytes:
    request = protocol.ConnectRequest(
        protocol_version=0,
        last_seen_zxid=last_zxid,
        timeout=timeout_ms,
        session_id=session_id,
        password=password,
        read_only=False,
    )
    return _framed(request.serialize())


class Greeting(NamedTuple):
    timeout_s: float
    session_id: int  # 0: the session that was asked for is over
    password: bytes


def decode_greeting(packet: bytes) -> Greeting:
    reply = protocol.ConnectResponse.deserialize(packet)
    return Greeting(reply.timeout / 1000, reply.session_id, reply.password or b"")


def auth_frame(scheme: str, secret: bytes) -> bytes:
    request = protocol.AuthRequest(type=0, scheme=scheme, auth=secret)
    return _framed(request.serialize(protocol.AUTH_XID))


def _framed(packet: bytes) -> bytes:
    return struct.pack("!i", len(packet)) + packet


def acl_records(acl: Sequence[Acl]) -> list[Any]:
    from aiozk.protocol.acl import ACL, ID

    return [ACL(perms=perms, id=ID(scheme=scheme, id=who)) for perms, scheme, who in acl]


def acl_values(records: Sequence[Any]) -> tuple[Acl, ...]:
    return tuple(Acl(record.perms, record.id.scheme, record.id.id) for record in records)


def stat_value(record: Any) -> Stat:
    return Stat(*(getattr(record, name) for name, _ in record.parts))
