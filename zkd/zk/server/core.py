"""The server without its sockets: frames of a connection in, frames for all connections out.

`Core` owns the tree, the watches and the sessions and answers every request at once, in the order in which
they come, so each sees all before it: that is all there is to consistency here. A `Peer` is one client's
connection as the core sees it: an outbox and a wish to close. The shell moves bytes and looks at the clock.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

from zkd.zk.server import acl as acls
from zkd.zk.server import wire
from zkd.zk.server.acl import Refused
from zkd.zk.server.sessions import PASSWORD_SIZE, Session, Sessions
from zkd.zk.server.tree import Tree, Txn
from zkd.zk.server.watches import Kind, Mode, Watches
from zkd.zk.server.wire import INT, MULTI, REPLY, STAT, Code, Malformed, Op, Perm, Reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.zk.server.acl import Identity
    from zkd.zk.server.tree import Node

CREATES = (Op.CREATE, Op.CREATE2, Op.CREATE_CONTAINER, Op.CREATE_TTL)


class Peer:
    """One connection. `outbox` holds frames not handed to the socket yet; `is_closing` asks for its end after them."""

    __slots__ = ("_dirty", "identities", "is_closing", "outbox", "received", "sent", "session", "shell")

    def __init__(self, host: str, dirty: list[Peer], shell: object = None) -> None:
        self.identities: dict[Identity, None] = {("ip", host): None}
        self.session: Session[Peer] | None = None
        self.outbox: list[bytes] = []
        self.is_closing = False
        self.received = self.sent = 0
        self.shell = shell
        self._dirty = dirty

    def send(self, frame: bytes) -> None:
        if not self.outbox:
            self._dirty.append(self)
        self.outbox.append(frame)
        self.sent += 1

    def close(self) -> None:
        self.is_closing = True
        self._dirty.append(self)


class Core:
    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        tick_s: float = 0.5,
        reap_s: float = 1.0,
        max_timeout_s: float = 60.0,
        extended_types: bool = True,
        secret: bytes | None = None,
    ) -> None:
        self._wall = wall
        self._clock = clock
        self._reap_s = reap_s
        self._reaped_at = clock()
        self.tree = Tree(extended_types=extended_types)
        self.watches = Watches()
        self.sessions: Sessions[Peer] = Sessions(
            clock,
            tick_s=tick_s,
            min_timeout_ms=round(2000 * tick_s),
            max_timeout_ms=round(1000 * max_timeout_s),
            # As Apache: milliseconds and a counter, with the first byte for the server's number, 0 here.
            first_id=(round(wall() * 1000) << 24 & 0xFFFF_FFFF_FFFF_FFFF) >> 8,
            secret=secret or os.urandom(16),
        )
        self.zxid = 0
        self.dirty: list[Peer] = []  # peers with something in their outbox, or to be closed
        self.peers: dict[Peer, None] = {}
        self._reads: dict[int, Callable[[Peer, Reader], bytes]] = {
            Op.EXISTS: self._exists,
            Op.GET_DATA: self._get_data,
            Op.GET_ACL: self._get_acl,
            Op.GET_CHILDREN: self._get_children,
            Op.GET_CHILDREN2: self._get_children2,
            Op.SYNC: lambda _, reader: wire.text(reader.text()),
            Op.CHECK_WATCHES: self._check_watches,
            Op.REMOVE_WATCHES: self._remove_watches,
            Op.MULTI_READ: self._multi_read,
            Op.SET_WATCHES: self._set_watches,
            Op.SET_WATCHES2: self._set_watches2,
            Op.ADD_WATCH: self._add_watch,
            Op.GET_EPHEMERALS: self._get_ephemerals,
            Op.GET_ALL_CHILDREN_NUMBER: self._get_all_children_number,
            Op.WHO_AM_I: self._who_am_i,
        }
        self._writes: dict[int, Callable[[Txn, Reader], bytes]] = {
            Op.CREATE: self._create,
            Op.CREATE2: lambda txn, reader: self._create2(txn, reader, Op.CREATE2),
            Op.CREATE_CONTAINER: lambda txn, reader: self._create2(txn, reader, Op.CREATE_CONTAINER),
            Op.CREATE_TTL: lambda txn, reader: self._create2(txn, reader, Op.CREATE_TTL),
            Op.DELETE: self._delete,
            Op.SET_DATA: self._set_data,
            Op.SET_ACL: self._set_acl,
            Op.CHECK: self._check,
            Op.MULTI: self._multi,
            Op.RECONFIG: self._reconfig,
        }

    # --- connections and sessions --------------------------------------------------------------------

    def open(self, host: str, shell: object = None) -> Peer:
        peer = Peer(host, self.dirty, shell)
        self.peers[peer] = None
        return peer

    def closed(self, peer: Peer) -> None:
        """The connection is gone; its session lives on until it expires, its watches do not."""
        self.peers.pop(peer, None)
        self.watches.forget(peer)
        peer.is_closing = True
        if peer.session is not None and peer.session.connection is peer:
            peer.session.connection = None

    def connect(self, peer: Peer, reader: Reader) -> None:
        """The first frame of a connection. `Malformed` when it is not a connect request."""
        reader.int32()
        seen_zxid, timeout_ms, session_id, password = reader.int64(), reader.int32(), reader.int64(), reader.buffer()
        knows_read_only = reader.at < reader.end
        peer.received += 1
        if seen_zxid > self.zxid:
            peer.close()  # it has seen a future that this server has not: it should try another
            return
        session: Session[Peer] | None
        if session_id == 0:
            session = self.sessions.create(timeout_ms)
            self.zxid += 1
        else:
            known = self.sessions.by_id.get(session_id)
            if known is not None and known.connection is not None:
                self._cut_off(known.connection)  # before the password is looked at, as Apache does
            session = self.sessions.take_over(session_id, password, timeout_ms)
        if session is not None:
            session.connection = peer
            peer.session = session
        body = b"".join(
            (
                INT.pack(0),
                INT.pack(session.timeout_ms if session else 0),
                wire.LONG.pack(session.session_id if session else 0),
                wire.buffer(session.password if session else bytes(PASSWORD_SIZE)),
                b"\0" if knows_read_only else b"",
            )
        )
        peer.send(wire.buffer(body))
        if session is None:
            peer.close()

    def expire(self, session_id: int) -> None:
        """End a session now, as when nothing had been heard of it for its timeout."""
        session = self.sessions.by_id.get(session_id)
        if session is None:
            return
        self._end_session(session)
        if session.connection is not None:
            self._cut_off(session.connection)

    def tick(self) -> None:
        """Expire sessions and, less often, delete containers and TTL nodes that are due. To be called every tick."""
        for session_id in self.sessions.expired():
            self.expire(session_id)
        if self._clock() - self._reaped_at < self._reap_s:
            return
        self._reaped_at = self._clock()
        for path in self.tree.overdue(self._now_ms()):
            self.zxid += 1
            self.tree.reap(self.zxid, path)
            self._fire()

    def _end_session(self, session: Session[Peer]) -> None:
        self.zxid += 1
        self.tree.end_session(self.zxid, session.session_id)
        self.sessions.end(session.session_id)
        self._fire()

    def _cut_off(self, peer: Peer) -> None:
        self.watches.forget(peer)
        peer.close()

    # --- requests ------------------------------------------------------------------------------------

    def request(self, peer: Peer, reader: Reader) -> None:
        """Answer one frame. `Malformed` when it has not even a header."""
        xid, op = reader.int32(), reader.int32()
        session = peer.session
        assert session is not None
        peer.received += 1
        if op == Op.AUTH:
            self._auth(peer, xid, reader)
            return
        self.sessions.hear(session)
        body = b""
        code = 0
        if op in self._writes:
            self.zxid += 1  # a write that fails has its place in the order too
            txn = Txn(self.zxid, self._now_ms(), session.session_id, peer.identities)
            try:
                body = self._writes[op](txn, reader)
            except Refused as refusal:
                code = refusal.code
            except Malformed:
                code = Code.MARSHALLING_ERROR
            if self.tree.changes:
                self._fire()
        elif op in self._reads:
            try:
                body = self._reads[op](peer, reader)
            except Refused as refusal:
                code = refusal.code
            except Malformed:
                code = Code.MARSHALLING_ERROR
        elif op == Op.PING:
            xid = wire.PING_XID
        elif op == Op.CLOSE_SESSION:
            self._end_session(session)
            peer.session = None
            peer.send(REPLY.pack(16, xid, self.zxid, 0))
            self._cut_off(peer)
            return
        else:
            peer.send(REPLY.pack(16, xid, -1, Code.UNIMPLEMENTED))
            self._cut_off(peer)
            return
        peer.send(REPLY.pack(16 + len(body), xid, self.zxid, code) + body)

    def _fire(self) -> None:
        changes = self.tree.changes
        for change in changes:
            self.watches.changed(*change)
        changes.clear()

    def _now_ms(self) -> int:
        return int(self._wall() * 1000)

    def _auth(self, peer: Peer, xid: int, reader: Reader) -> None:
        reader.int32()
        scheme, credentials = reader.text_or_none(), reader.buffer()
        if scheme == "digest" and credentials is not None:
            peer.identities["digest", acls.digest(credentials)] = None
        elif scheme != "ip":  # which every connection has proved already
            peer.send(REPLY.pack(16, xid, 0, Code.AUTH_FAILED))
            self._cut_off(peer)
            return
        peer.send(REPLY.pack(16, xid, 0, 0))

    # --- writes: the body of the reply, or Refused ---------------------------------------------------

    def _create(self, txn: Txn, reader: Reader) -> bytes:
        path, data, acl, flags = reader.text(), reader.buffer(), reader.acl(), reader.int32()
        return wire.text(self.tree.create(txn, Op.CREATE, path, data, acl, flags).path)

    def _create2(self, txn: Txn, reader: Reader, op: Op) -> bytes:
        path, data, acl, flags = reader.text(), reader.buffer(), reader.acl(), reader.int32()
        ttl_ms = reader.int64() if op == Op.CREATE_TTL else -1
        node = self.tree.create(txn, op, path, data, acl, flags, ttl_ms)
        return wire.text(node.path) + STAT.pack(*node.stat())

    def _delete(self, txn: Txn, reader: Reader) -> bytes:
        self.tree.delete(txn, reader.text(), reader.int32())
        return b""

    def _set_data(self, txn: Txn, reader: Reader) -> bytes:
        return STAT.pack(*self.tree.set_data(txn, reader.text(), reader.buffer(), reader.int32()).stat())

    def _set_acl(self, txn: Txn, reader: Reader) -> bytes:
        return STAT.pack(*self.tree.set_acl(txn, reader.text(), reader.acl(), reader.int32()).stat())

    def _check(self, txn: Txn, reader: Reader) -> bytes:
        self.tree.check(txn, reader.text(), reader.int32())  # outside a multi Apache's server ends on it
        return b""

    def _reconfig(self, txn: Txn, reader: Reader) -> bytes:
        raise Refused(Code.RECONFIG_DISABLED)

    def _multi(self, txn: Txn, reader: Reader) -> bytes:
        operations = self._read_multi(txn, reader)
        results = []
        self.tree.begin()
        for number, operation in enumerate(operations):
            try:
                results.append(operation())
            except Refused as refusal:
                self.tree.roll_back()
                codes = [0] * number + [refusal.code] + [Code.RUNTIME_INCONSISTENCY] * (len(operations) - number - 1)
                return b"".join(MULTI.pack(Op.ERROR, False, code) + INT.pack(code) for code in codes) + wire.MULTI_END
        self.tree.commit()
        return b"".join(results) + wire.MULTI_END

    def _read_multi(self, txn: Txn, reader: Reader) -> list[Callable[[], bytes]]:
        """The operations, decoded before the first of them is tried."""
        operations: list[Callable[[], bytes]] = []
        while True:
            op, is_end = reader.multi_header()
            if is_end:
                return operations
            if op in CREATES:
                operations.append(self._create_in_multi(txn, op, reader))
            elif op == Op.DELETE:
                operations.append(partial(self._deleted, txn, reader.text(), reader.int32()))
            elif op == Op.SET_DATA:
                operations.append(partial(self._data_set, txn, reader.text(), reader.buffer(), reader.int32()))
            elif op == Op.CHECK:
                operations.append(partial(self._checked, txn, reader.text(), reader.int32()))
            else:
                raise Malformed(f"opcode {op} in a multi")

    def _create_in_multi(self, txn: Txn, op: int, reader: Reader) -> Callable[[], bytes]:
        path, data, acl, flags = reader.text(), reader.buffer(), reader.acl(), reader.int32()
        ttl_ms = reader.int64() if op == Op.CREATE_TTL else -1
        # Here, unlike outside a multi, the flag decides what is made.
        if flags in (5, 6):
            if op != Op.CREATE_TTL:
                raise Malformed("a TTL flag without a TTL")
            return lambda: self._created2(self.tree.create(txn, Op.CREATE_TTL, path, data, acl, flags, ttl_ms))
        if flags == 4:
            return lambda: self._created2(self.tree.create(txn, Op.CREATE_CONTAINER, path, data, acl, flags))
        return lambda: (
            MULTI.pack(Op.CREATE, False, 0) + wire.text(self.tree.create(txn, Op.CREATE, path, data, acl, flags).path)
        )

    @staticmethod
    def _created2(node: Node) -> bytes:
        return MULTI.pack(Op.CREATE2, False, 0) + wire.text(node.path) + STAT.pack(*node.stat())

    def _deleted(self, txn: Txn, path: str, version: int) -> bytes:
        self.tree.delete(txn, path, version)
        return MULTI.pack(Op.DELETE, False, 0)

    def _data_set(self, txn: Txn, path: str, data: bytes | None, version: int) -> bytes:
        node = self.tree.set_data(txn, path, data, version)
        return MULTI.pack(Op.SET_DATA, False, 0) + STAT.pack(*node.stat())

    def _checked(self, txn: Txn, path: str, version: int) -> bytes:
        self.tree.check(txn, path, version)
        return MULTI.pack(Op.CHECK, False, 0)

    # --- reads ---------------------------------------------------------------------------------------

    def _exists(self, peer: Peer, reader: Reader) -> bytes:
        path, watch = reader.text(), reader.flag()
        if watch and "\0" not in path:
            self.watches.data.add(path, peer)  # also where there is no znode: that is what one waits for
        return STAT.pack(*self.tree.stat(path))

    def _get_data(self, peer: Peer, reader: Reader) -> bytes:
        path, watch = reader.text(), reader.flag()
        node = self.tree.read(path, peer.identities)
        if watch:
            self.watches.data.add(path, peer)
        return wire.buffer(node.data) + STAT.pack(*node.stat())

    def _get_children(self, peer: Peer, reader: Reader) -> bytes:
        return wire.texts(self._children(peer, reader).children)

    def _get_children2(self, peer: Peer, reader: Reader) -> bytes:
        node = self._children(peer, reader)
        return wire.texts(node.children) + STAT.pack(*node.stat())

    def _children(self, peer: Peer, reader: Reader) -> Node:
        path, watch = reader.text(), reader.flag()
        node = self.tree.read(path, peer.identities)
        if watch:
            self.watches.children.add(path, peer)
        return node

    def _get_acl(self, peer: Peer, reader: Reader) -> bytes:
        path = reader.text()
        node = self.tree.read(path, peer.identities, Perm.READ | Perm.ADMIN)
        try:
            self.tree.read(path, peer.identities, Perm.ADMIN)
        except Refused:
            return wire.acl(acls.masked(node.acl)) + STAT.pack(*node.stat())
        return wire.acl(node.acl) + STAT.pack(*node.stat())

    def _get_all_children_number(self, peer: Peer, reader: Reader) -> bytes:
        path = reader.text()
        self.tree.read(path, peer.identities)
        return INT.pack(self.tree.descendants(path))

    def _get_ephemerals(self, peer: Peer, reader: Reader) -> bytes:
        prefix = reader.text_or_none()
        assert peer.session is not None
        owned = self.tree.ephemerals.get(peer.session.session_id, {})
        if prefix is None or prefix.strip() in ("", "/"):
            return wire.texts(owned)
        return wire.texts(path for path in owned if path.startswith(prefix))

    def _who_am_i(self, peer: Peer, reader: Reader) -> bytes:
        known = [wire.text(identity[0]) + wire.text(acls.user_name(identity)) for identity in peer.identities]
        return INT.pack(len(known)) + b"".join(known)

    def _multi_read(self, peer: Peer, reader: Reader) -> bytes:
        wanted = []
        while True:
            op, is_end = reader.multi_header()
            if is_end:
                break
            if op not in (Op.GET_DATA, Op.GET_CHILDREN):
                raise Malformed(f"opcode {op} in a multi-read")
            wanted.append((op, reader.text()))
            reader.flag()  # a watch: not set from here, as with Apache
        return b"".join(self._read_one(peer, op, path) for op, path in wanted) + wire.MULTI_END

    def _read_one(self, peer: Peer, op: int, path: str) -> bytes:
        try:
            node = self.tree.read(path, peer.identities)
        except Refused as refusal:
            return MULTI.pack(Op.ERROR, False, refusal.code) + INT.pack(refusal.code)
        if op == Op.GET_CHILDREN:
            return MULTI.pack(op, False, 0) + wire.texts(node.children)
        return MULTI.pack(op, False, 0) + wire.buffer(node.data) + STAT.pack(*node.stat())

    # --- watches -------------------------------------------------------------------------------------

    def _add_watch(self, peer: Peer, reader: Reader) -> bytes:
        path, mode = reader.text(), reader.int32()
        if mode not in (Mode.PERSISTENT, Mode.RECURSIVE):
            raise Malformed(f"watch mode {mode}")
        self.watches.add_persistent(path, peer, Mode(mode))
        return INT.pack(0)

    def _check_watches(self, peer: Peer, reader: Reader) -> bytes:
        path, kind = reader.text(), self._watch_kind(reader)
        if path and "/" not in path:
            raise Malformed(f"{path} has no parent to look at")
        if not self.watches.exists(path, kind):
            raise Refused(Code.NO_WATCHER)
        return b""

    def _remove_watches(self, peer: Peer, reader: Reader) -> bytes:
        path, kind = reader.text(), self._watch_kind(reader)
        if not self.watches.remove(path, peer, kind):
            raise Refused(Code.NO_WATCHER)
        return b""

    @staticmethod
    def _watch_kind(reader: Reader) -> Kind:
        number = reader.int32()
        if number not in (Kind.CHILDREN, Kind.DATA, Kind.ANY):
            raise Malformed(f"watch kind {number}")
        return Kind(number)

    def _set_watches(self, peer: Peer, reader: Reader) -> bytes:
        seen, data, exists, children = reader.int64(), reader.texts(), reader.texts(), reader.texts()
        self.watches.restore(self.tree, peer, seen, data=data, exists=exists, children=children)
        return b""

    def _set_watches2(self, peer: Peer, reader: Reader) -> bytes:
        seen, data, exists, children = reader.int64(), reader.texts(), reader.texts(), reader.texts()
        persistent, recursive = reader.texts(), reader.texts()
        self.watches.restore(
            self.tree,
            peer,
            seen,
            data=data,
            exists=exists,
            children=children,
            persistent=persistent,
            recursive=recursive,
        )
        return b""
