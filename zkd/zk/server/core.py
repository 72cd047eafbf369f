"""The server without its sockets: frames of a connection in, frames for all connections out.

`Core` owns the tree, the watches and the sessions and answers every request at once, in the order in which
they come, so each sees all before it: that is all there is to consistency here. A `Peer` is one client's
connection as the core sees it: an outbox and a wish to close. The shell moves bytes and looks at the clock.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from zkd.zk.server import acl as acls
from zkd.zk.server import wire
from zkd.zk.server.acl import Refused
from zkd.zk.server.peer import Peer
from zkd.zk.server.reads import READS
from zkd.zk.server.sessions import PASSWORD_SIZE, Session, Sessions
from zkd.zk.server.tree import Tree, Txn
from zkd.zk.server.watches import Watches
from zkd.zk.server.wire import INT, REPLY, Code, Malformed, Op, Reader
from zkd.zk.server.writes import WRITES

if TYPE_CHECKING:
    from collections.abc import Callable


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
        if op in WRITES:
            self.zxid += 1  # a write that fails has its place in the order too
            txn = Txn(self.zxid, self._now_ms(), session.session_id, peer.identities)
            try:
                body = WRITES[op](self.tree, txn, reader)
            except Refused as refusal:
                code = refusal.code
            except Malformed:
                code = Code.MARSHALLING_ERROR
            if self.tree.changes:
                self._fire()
        elif op in READS:
            try:
                body = READS[op](self.tree, self.watches, peer, reader)
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
