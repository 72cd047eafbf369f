"""A small blocking client that speaks the raw protocol, for scripts that are run on two servers and compared.

It sends what it is told, valid or not, and returns what came, events included, in order.
"""

from __future__ import annotations

import socket
from typing import Any, NamedTuple

from zkd.zk.server import wire
from zkd.zk.server.wire import INT, LONG, REQUEST, Acl, Op, Reader, Stat

Step = tuple[Any, ...]


class Reply(NamedTuple):
    xid: int
    zxid: int
    error: int
    body: bytes


class Event(NamedTuple):
    kind: int
    state: int
    path: str
    zxid: int


class Closed(Exception):
    """The server closed the connection."""


class RawClient:
    def __init__(self, port: int, *, timeout_s: float = 20.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.events: list[Event] = []
        self.xid = 0
        self.session_id = 0
        self.password = bytes(16)
        self.timeout_ms = 0

    def connect(
        self,
        timeout_ms: int = 10_000,
        session_id: int = 0,
        password: bytes = bytes(16),
        *,
        seen_zxid: int = 0,
        tail: bytes = b"\0",
    ) -> bytes:
        """Shake hands; returns what follows the password in the answer."""
        body = wire.CONNECT.pack(0, seen_zxid, timeout_ms, session_id) + wire.buffer(password) + tail
        self.send(wire.buffer(body))
        reader = Reader(self.frame())
        reader.int32()
        self.timeout_ms, self.session_id = reader.int32(), reader.int64()
        self.password = reader.buffer() or b""
        return reader.source[reader.at :]

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Closed from error

    def frame(self) -> bytes:
        while len(self.buffer) < 4 or len(self.buffer) < 4 + INT.unpack_from(self.buffer)[0]:
            try:
                part = self.socket.recv(262_144)
            except ConnectionError as error:
                raise Closed from error
            if not part:
                raise Closed
            self.buffer += part
        size = 4 + INT.unpack_from(self.buffer)[0]
        frame, self.buffer = self.buffer[4:size], self.buffer[size:]
        return frame

    def post(self, op: int, body: bytes, xid: int | None = None) -> int:
        """Send a request without waiting for its reply; returns its xid."""
        if xid is None:
            self.xid += 1
            xid = self.xid
        self.send(wire.buffer(REQUEST.pack(xid, op) + body))
        return xid

    def reply(self) -> Reply:
        """The next reply; events before it are kept."""
        while True:
            reader = Reader(self.frame())
            xid, zxid, error = reader.int32(), reader.int64(), reader.int32()
            if xid != wire.NO_XID:
                return Reply(xid, zxid, error, reader.source[reader.at :])
            self.events.append(Event(reader.int32(), reader.int32(), reader.text(), zxid))

    def ask(self, op: int, body: bytes = b"", xid: int | None = None) -> Reply:
        self.post(op, body, xid)
        return self.reply()

    def take_events(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def await_event(self) -> Event:
        while not self.events:
            reader = Reader(self.frame())
            xid, zxid, _ = reader.int32(), reader.int64(), reader.int32()
            assert xid == wire.NO_XID, xid
            self.events.append(Event(reader.int32(), reader.int32(), reader.text(), zxid))
        return self.events.pop(0)

    def await_close(self) -> None:
        """Read until the server closes."""
        while True:
            try:
                self.frame()
            except Closed:
                return

    def close(self) -> None:
        self.socket.close()


OPEN = list(wire.OPEN_ACL)


def create_body(path: str, data: bytes | None, flags: int, acl: list[Acl] | None = None) -> bytes:
    return wire.text(path) + wire.buffer(data) + wire.acl(OPEN if acl is None else acl) + INT.pack(flags)


def multi_body(operations: list[Step]) -> bytes:
    parts = []
    for verb, *arguments in operations:
        op, body = encode(verb, *arguments)
        parts.append(wire.MULTI.pack(op, False, -1) + body)
    return b"".join(parts) + wire.MULTI_END


def encode(verb: str, *a: Any) -> tuple[int, bytes]:
    """Opcode and body of a request, from a verb and its arguments."""
    text, number = wire.text, INT.pack
    match verb:
        case "create" | "create2" | "container":
            op = {"create": Op.CREATE, "create2": Op.CREATE2, "container": Op.CREATE_CONTAINER}[verb]
            return op, create_body(*a)
        case "ttl":
            path, data, flags, ttl_ms = a
            return Op.CREATE_TTL, create_body(path, data, flags) + LONG.pack(ttl_ms)
        case "delete":
            return Op.DELETE, text(a[0]) + number(a[1])
        case "check":
            return Op.CHECK, text(a[0]) + number(a[1])
        case "set":
            return Op.SET_DATA, text(a[0]) + wire.buffer(a[1]) + number(a[2])
        case "set_acl":
            return Op.SET_ACL, text(a[0]) + wire.acl(a[1]) + number(a[2])
        case "exists" | "get" | "children" | "children2":
            op = {
                "exists": Op.EXISTS,
                "get": Op.GET_DATA,
                "children": Op.GET_CHILDREN,
                "children2": Op.GET_CHILDREN2,
            }[verb]
            return op, text(a[0]) + bytes([a[1] if len(a) > 1 else False])
        case "get_acl" | "sync" | "count" | "ephemerals":
            op = {
                "get_acl": Op.GET_ACL,
                "sync": Op.SYNC,
                "count": Op.GET_ALL_CHILDREN_NUMBER,
                "ephemerals": Op.GET_EPHEMERALS,
            }[verb]
            return op, text(a[0])
        case "who_am_i":
            return Op.WHO_AM_I, b""
        case "add_watch":
            return Op.ADD_WATCH, text(a[0]) + number(a[1])
        case "check_watches" | "remove_watches":
            return (Op.CHECK_WATCHES if verb[0] == "c" else Op.REMOVE_WATCHES), text(a[0]) + number(a[1])
        case "set_watches":
            seen, *lists = a
            body = LONG.pack(seen) + b"".join(map(wire.texts, lists))
            return (Op.SET_WATCHES if len(lists) == 3 else Op.SET_WATCHES2), body
        case "multi":
            return Op.MULTI, multi_body(a[0])
        case "multi_read":
            return Op.MULTI_READ, multi_body(a[0])
        case "auth":
            return Op.AUTH, number(0) + text(a[0]) + wire.buffer(a[1])
        case "reconfig":
            return Op.RECONFIG, wire.NULL + wire.NULL + text(a[0]) + LONG.pack(-1)
        case "raw":
            return a[0], a[1]
    raise AssertionError(verb)


def decode(verb: str, reply: Reply) -> Any:
    """What a successful reply says, as plain values."""
    reader = Reader(reply.body)
    value: Any
    match verb:
        case "create" | "sync":
            value = reader.text()
        case "create2" | "container" | "ttl":
            value = (reader.text(), stat(reader))
        case "set" | "set_acl" | "exists":
            value = stat(reader)
        case "get":
            value = (reader.buffer(), stat(reader))
        case "children" | "ephemerals":
            value = sorted(reader.texts())
        case "children2":
            value = (sorted(reader.texts()), stat(reader))
        case "get_acl":
            value = (sorted(reader.acl()), stat(reader))
        case "count" | "add_watch":
            value = reader.int32()
        case "who_am_i":
            value = sorted((reader.text(), reader.text()) for _ in range(reader.int32()))
        case "multi" | "multi_read":
            value = multi_results(reader)
        case _:
            value = None
    return value, reader.source[reader.at :]


def stat(reader: Reader) -> Stat:
    at = reader.at
    reader.at += wire.STAT.size
    return Stat._make(wire.STAT.unpack_from(reader.source, at))


def multi_results(reader: Reader) -> list[Any]:
    results: list[Any] = []
    while True:
        op, is_end, error = wire.MULTI.unpack_from(reader.source, reader.at)
        reader.at += wire.MULTI.size
        if is_end:
            return [*results, (op, error)]
        value: Any = None
        if op == Op.CREATE:
            value = reader.text()
        elif op == Op.CREATE2:
            value = (reader.text(), stat(reader))
        elif op == Op.SET_DATA:
            value = stat(reader)
        elif op == Op.GET_DATA:
            value = (reader.buffer(), stat(reader))
        elif op == Op.GET_CHILDREN:
            value = sorted(reader.texts())
        elif op == Op.ERROR:
            value = reader.int32()
        results.append((op, error, value))
