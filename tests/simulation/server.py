"""One ZooKeeper server of the model: its tree as far as it has applied the log, its watches, its clients.

Reads are answered here, in the order of their session's requests, and wait for the writes before them. Writes go
to the leader, and their answers come back with the log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zkd.zk.server import wire
from zkd.zk.server.acl import Refused
from zkd.zk.server.reads import READS
from zkd.zk.server.sessions import PASSWORD_SIZE, Session
from zkd.zk.server.tree import Tree, Txn
from zkd.zk.server.watches import Watches
from zkd.zk.server.wire import INT, REPLY, Code, Malformed, Op, Reader
from zkd.zk.server.writes import WRITES

if TYPE_CHECKING:
    from tests.simulation.ensemble import Ensemble
    from tests.simulation.network import Connection

HOP_S = (5e-5, 3e-4)  # between servers
ORDER_S = 1e-9  # between what must stay in order, since equal times are shuffled
CREATE_SESSION, CLOSE_SESSION = int(Op.CREATE_SESSION), int(Op.CLOSE_SESSION)
REAP = 0


class Request:
    """One frame of a client, from its arrival to its answer."""

    __slots__ = ("answer", "end", "is_cut", "is_write", "op", "peer", "source", "start", "xid")

    def __init__(self, peer: Peer, xid: int, op: int, source: bytes, start: int, end: int) -> None:
        self.peer = peer
        self.xid = xid
        self.op = op
        self.source = source
        self.start = start
        self.end = end
        self.is_write = op in WRITES or op in (CREATE_SESSION, CLOSE_SESSION, Op.SYNC)
        self.answer: bytes | None = None
        self.is_cut = ""  # the answer is to be lost, in this way

    def reader(self) -> Reader:
        return Reader(self.source, self.start, self.end)


class Entry:
    """One transaction of the log."""

    __slots__ = ("body", "changed", "code", "op", "paths", "request", "session_id", "time_ms", "txn", "zxid")

    def __init__(self, zxid: int, time_ms: int, session_id: int, op: int, request: Request | None) -> None:
        self.zxid = zxid
        self.time_ms = time_ms
        self.session_id = session_id
        self.op = op
        self.request = request
        self.txn: Txn | None = None
        self.code = 0
        self.body = b""
        self.changed: list[tuple[int, str]] = []  # what it did to the tree: kind of event, path
        self.paths: list[str] = []  # to reap


class Peer:
    """A client's connection as its server sees it; also who is told of events."""

    __slots__ = ("answers", "connection", "identities", "inbox", "is_gone", "out", "pending", "server", "session")

    def __init__(self, server: Server, connection: Connection) -> None:
        self.server = server
        self.connection = connection
        self.identities = {("ip", "10.0.0.1"): None}
        self.session: Session[Peer] | None = None
        self.inbox = b""
        self.pending: deque[Request] = deque()
        self.out: list[bytes] = []
        self.answers = 0
        self.is_gone = False

    def send(self, frame: bytes) -> None:
        """An event."""
        if not self.out:
            self.server.dirty.append(self)
        self.out.append(frame)

    def answer(self, frame: bytes) -> None:
        self.send(frame)
        self.answers += 1

    def close(self) -> None:
        """The server ends it, after what it has said."""
        if not self.is_gone:
            self.server.flush()
            self.server.forget(self)
            self.connection.server_closed()


class Server:
    """One server: its tree as far as it has applied the log, and its clients."""

    def __init__(self, ensemble: Ensemble, name: str, wall_offset_s: float) -> None:
        self.ensemble = ensemble
        self.name = name
        self.wall_offset_s = wall_offset_s
        self.tree = Tree()
        self.watches = Watches()
        self.zxid = 0
        self.applied = 0  # entries of the log
        self.is_up = True
        self.is_frozen = False
        self.is_refusing = False
        self.lag_s = 0.0
        self.apply_at = 0.0
        self.peers: dict[Peer, None] = {}
        self.dirty: list[Peer] = []
        self._up_at = 0.0
        self._frozen_in = 0
        self._late: list[tuple[Callable[..., object], tuple[Any, ...]]] = []  # what came while it was frozen

    @property
    def accepts(self) -> bool:
        return self.is_up and not self.is_refusing and self.ensemble.has_leader

    # --- connections ------------------------------------------------------------------------------------

    def accept(self, connection: Connection) -> Peer:
        peer = Peer(self, connection)
        self.peers[peer] = None
        return peer

    def hung_up(self, peer: Peer) -> None:
        if self.is_frozen:
            self._late.append((self.hung_up, (peer,)))
        else:
            self.forget(peer)

    def forget(self, peer: Peer) -> None:
        peer.is_gone = True
        peer.out.clear()
        peer.pending.clear()
        self.peers.pop(peer, None)
        self.watches.forget(peer)
        if peer.session is not None and peer.session.connection is peer:
            peer.session.connection = None

    def drop_all(self) -> None:
        for peer in list(self.peers):
            self.forget(peer)
            peer.connection.cut()

    # --- requests ---------------------------------------------------------------------------------------

    def receive(self, peer: Peer, data: bytes) -> None:
        if self.is_frozen:
            self._late.append((self.receive, (peer, data)))
            return
        data = peer.inbox + data
        at = 0
        while len(data) - at >= 4 and not peer.is_gone:
            end = at + 4 + INT.unpack_from(data, at)[0]
            if end > len(data):
                break
            self._take(peer, data, at + 4, end)
            at = end
        peer.inbox = data[at:]
        self.flush()

    def _take(self, peer: Peer, data: bytes, start: int, end: int) -> None:
        ensemble = self.ensemble
        if peer.session is None:
            self._greet(peer, Reader(data, start, end))
            return
        xid, op = wire.REQUEST.unpack_from(data, start)
        ensemble.sessions.hear(peer.session)
        request = Request(peer, xid, op, data, start + 8, end)
        if ensemble.on_request is not None and not ensemble.on_request(request):
            return
        if op == Op.AUTH:
            peer.answer(REPLY.pack(16, xid, 0, 0))
            return
        peer.pending.append(request)
        if request.is_write:
            self._to_leader(ensemble.propose, request)
        else:
            self.advance(peer)

    def _greet(self, peer: Peer, reader: Reader) -> None:
        reader.int32()
        seen_zxid, timeout_ms, session_id, password = reader.int64(), reader.int32(), reader.int64(), reader.buffer()
        if seen_zxid > self.zxid:
            self.ensemble.happened("a lagging server turned a client away")
            peer.close()
        elif session_id == 0:
            request = Request(peer, timeout_ms, CREATE_SESSION, b"", 0, 0)
            self._to_leader(self.ensemble.propose, request)
        else:
            self._to_leader(self.ensemble.revalidate, peer, session_id, password, timeout_ms)

    def _to_leader(self, callback: Callable[..., object], *args: Any) -> None:
        """In order, as all that this server says to its leader."""
        ensemble = self.ensemble
        self._up_at = max(self._up_at + ORDER_S, ensemble.loop.now + ensemble.drawn(HOP_S))
        ensemble.loop.at(self._up_at, ensemble.reach_leader, ensemble.epoch, callback, args)

    def greeted(self, peer: Peer, session: Session[Peer] | None) -> None:
        """The leader's word on a session reached us."""
        if peer.is_gone or not self.is_up:
            return
        if session is not None:
            peer.session = session
            peer.connection.session_id = session.session_id
            peer.connection.timeout_s = session.timeout_ms / 1000
        body = b"".join(
            (
                INT.pack(0),
                INT.pack(session.timeout_ms if session else 0),
                wire.LONG.pack(session.session_id if session else 0),
                wire.buffer(session.password if session else bytes(PASSWORD_SIZE)),
                b"\0",
            )
        )
        peer.answer(wire.buffer(body))
        if session is None:
            peer.close()
        self.flush()

    def advance(self, peer: Peer) -> None:
        """Answer what can be answered now: a read waits for the writes of its session before it."""
        pending = peer.pending
        while pending and not peer.is_gone:
            request = pending[0]
            if request.answer is None:
                if request.is_write:
                    return
                request.answer = self._read(peer, request)
            pending.popleft()
            if request.is_cut:
                self.flush()
                self.ensemble.cut(request)
                return
            peer.answer(request.answer)

    def _read(self, peer: Peer, request: Request) -> bytes:
        op, code, body, xid = request.op, 0, b"", request.xid
        if op == Op.PING:
            xid = wire.PING_XID
        elif op in READS:
            try:
                body = READS[op](self.tree, self.watches, peer, request.reader())  # type: ignore[arg-type]
            except Refused as refusal:
                code = refusal.code
            except Malformed:
                code = Code.MARSHALLING_ERROR
        else:
            code = Code.UNIMPLEMENTED
        if self.zxid < self.ensemble.zxid:
            self.ensemble.happened("a read was answered by a lagging server")
        return REPLY.pack(16 + len(body), xid, self.zxid, code) + body

    # --- the log ----------------------------------------------------------------------------------------

    def apply(self, upto: int) -> None:
        if not self.is_up:
            return
        if self.is_frozen:
            self._late.append((self.apply, (upto,)))
            return
        log = self.ensemble.log
        while self.applied < upto:
            entry = log[self.applied]
            self.applied += 1
            self._apply(entry)
        self.flush()

    def _apply(self, entry: Entry) -> None:
        self.zxid = entry.zxid
        tree, request = self.tree, entry.request
        if entry.changed:
            if entry.op == CLOSE_SESSION:
                tree.end_session(entry.zxid, entry.session_id)
            elif entry.op == REAP:
                for path in entry.paths:
                    tree.reap(entry.zxid, path)
            else:
                assert request is not None
                assert entry.txn is not None
                WRITES[entry.op](tree, entry.txn, request.reader())
            for change in tree.changes:
                self.watches.changed(*change)
            tree.changes.clear()
        if entry.op == CLOSE_SESSION:
            for peer in list(self.peers):
                if peer.session is not None and peer.session.session_id == entry.session_id:
                    if request is not None and request.peer is peer:
                        self._answer(entry, request)
                    peer.close()
        elif request is not None and request.peer.server is self and not request.peer.is_gone:
            if entry.op == CREATE_SESSION:
                self.greeted(request.peer, self.ensemble.sessions.by_id.get(entry.session_id))
            else:
                self._answer(entry, request)

    def _answer(self, entry: Entry, request: Request) -> None:
        body = entry.body
        request.answer = REPLY.pack(16 + len(body), request.xid, entry.zxid, entry.code) + body
        self.advance(request.peer)

    def flush(self) -> None:
        dirty, self.dirty = self.dirty, []
        for peer in dirty:
            if peer.out:
                data, answers = b"".join(peer.out), peer.answers
                peer.out.clear()
                peer.answers = 0
                if not peer.is_gone:
                    peer.connection.server_wrote(data, answers)

    # --- faults -----------------------------------------------------------------------------------------

    def freeze(self) -> None:
        self.is_frozen = True
        self._frozen_in = self.ensemble.epoch

    def thaw(self) -> None:
        self.is_frozen = False
        late, self._late = self._late, []
        if self.ensemble.epoch != self._frozen_in:
            # The others went on without it. It knows no leader, to whom it could pass on what lies unread.
            self.drop_all()
            if self.ensemble.has_leader:
                self.catch_up()
            return
        for callback, args in late:
            callback(*args)

    def crash(self) -> None:
        self.is_up = False
        self.is_frozen = False
        self._late.clear()
        self.drop_all()

    def start(self) -> None:
        self.is_up = True
        if self.ensemble.has_leader:
            self.catch_up()

    def catch_up(self) -> None:
        """As it joins a leader: it serves nobody before it knows all that is committed."""
        self.apply(len(self.ensemble.log))
