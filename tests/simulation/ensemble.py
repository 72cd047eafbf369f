"""A ZooKeeper ensemble: one order of writes, and servers that apply it each at its own pace.

    client -> server -> leader: order, commit -> log -> every server: apply, fire watches, answer its client

Reads are answered from a server's own tree, which may lag behind; a client that has seen more than a server
knows is turned away. Writes of one session that were sent to two servers meet at the leader, which serves only
the latest connection. Sessions are the leader's: a new leader starts their clocks again. What of the writes
on their way survives a change of leaders is drawn. The trees and watches are the embedded server's own, which a
conformance test holds to Apache's.

`Ensemble.tree` has every committed transaction the moment it is committed: the truth, for those who check.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from tests.simulation.server import CLOSE_SESSION, CREATE_SESSION, HOP_S, ORDER_S, REAP, Entry, Peer, Request, Server
from zkd.zk.server import wire
from zkd.zk.server.acl import Refused
from zkd.zk.server.sessions import Sessions
from zkd.zk.server.tree import Tree, Txn
from zkd.zk.server.wire import Code, Malformed, Op
from zkd.zk.server.writes import WRITES

if TYPE_CHECKING:
    from tests.simulation.loop import Loop

COMMIT_S = (3e-4, 2e-3)  # the disks of a majority
APPLY_S = (5e-5, 1e-3)  # how far behind a follower usually is
SESSION_MOVED = -118


class Ensemble:
    def __init__(self, loop: Loop, rng: Random, names: list[str], *, tick_s: float, wall_s: float) -> None:
        self.loop = loop
        self.rng = rng
        self.tick_s = tick_s
        self.wall_s = wall_s
        self.tree = Tree()
        self.log: list[Entry] = []
        self.epoch = 1
        self.count = 0
        self.zxid = 1 << 32
        self.has_leader = True
        offsets = [rng.choice((0.0, rng.uniform(-3, 3), rng.uniform(-4000, 4000))) for _ in names]
        self.servers = [Server(self, name, offset) for name, offset in zip(names, offsets, strict=True)]
        self.leader = self.servers[0]
        self.offsets_led = [self.leader.wall_offset_s]  # of the clocks of all leaders so far
        self.sessions: Sessions[Peer] = Sessions(
            lambda: loop.now,
            tick_s=tick_s,
            min_timeout_ms=round(2000 * tick_s),
            max_timeout_ms=40_000,
            first_id=0x0100_0000_0000_0001,
            secret=b"simulation",
        )
        # Where each session was last: a leader takes writes of a session from this server only. A new leader takes
        # the word of the first who asks.
        self.owners: dict[int, Server] = {}
        self.timeouts: dict[int, float] = {}  # of every session there ever was
        self.ended: dict[int, int] = {}  # session -> zxid of its end
        self.on_request: Callable[[Request], bool] | None = None  # False: it is not taken
        self.on_commit: Callable[[Entry], None] = lambda entry: None
        self.cut: Callable[[Request], None] = lambda request: None
        self.happened: Callable[[str], None] = lambda what: None
        self.stall_s = 0.0
        self._commit_at = 0.0
        self._proposed: deque[Request] = deque()
        loop.after(tick_s, self._tick)

    def drawn(self, of: tuple[float, float]) -> float:
        low, high = of
        return low + (high - low) * self.rng.random()

    # --- the leader -------------------------------------------------------------------------------------

    def reach_leader(self, epoch: int, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        if epoch == self.epoch and self.has_leader:
            if self.leader.is_frozen:
                self.leader._late.append((self.reach_leader, (epoch, callback, args)))
            else:
                callback(*args)

    def propose(self, request: Request) -> None:
        self._proposed.append(request)
        self._commit_at = max(self._commit_at + ORDER_S, self.loop.now + self.drawn(COMMIT_S) + self.stall_s)
        self.loop.at(self._commit_at, self._commit_next, self.epoch)

    def _commit_next(self, epoch: int) -> None:
        if epoch == self.epoch and self.has_leader and self._proposed:
            self._commit(self._proposed.popleft(), is_checked=False)

    def _commit(self, request: Request, *, is_checked: bool) -> None:
        """Order, check and apply one write, as the leader's own pipeline does."""
        peer, op = request.peer, request.op
        if op == CREATE_SESSION:
            session = self.sessions.create(request.xid)
            self.timeouts[session.session_id] = session.timeout_ms / 1000
            session.connection = None if peer.is_gone else peer
            self.owners[session.session_id] = peer.server
            self._append(Entry(self._next_zxid(), self._now_ms(), session.session_id, op, request))
            return
        assert peer.session is not None
        session_id = peer.session.session_id
        entry = Entry(self._next_zxid(), self._now_ms(), session_id, op, request)
        known = self.sessions.by_id.get(session_id)
        if known is None:
            entry.code = Code.SESSION_EXPIRED
            self.happened("a request of an ended session was refused")
        elif not is_checked and self.owners.setdefault(session_id, peer.server) is not peer.server:
            entry.code = SESSION_MOVED
            self.happened("a request of an abandoned connection was refused")
        elif op == CLOSE_SESSION:
            self._end_session(entry)
        elif op == Op.SYNC:
            entry.body = wire.text(request.reader().text())
        else:
            entry.txn = Txn(entry.zxid, entry.time_ms, session_id, peer.identities)
            try:
                entry.body = WRITES[op](self.tree, entry.txn, request.reader())
            except Refused as refusal:
                entry.code = refusal.code
            except Malformed:
                entry.code = Code.MARSHALLING_ERROR
            self._take_changes(entry)
        self._append(entry)

    def revalidate(self, peer: Peer, session_id: int, password: bytes | None, timeout_ms: int) -> None:
        """A client brings its session to another connection."""
        session = self.sessions.take_over(session_id, password, timeout_ms)
        if session is not None:
            old = session.connection
            if old is not None and old.server is peer.server and not old.is_gone:
                old.close()
            session.connection = None if peer.is_gone else peer
            self.owners[session_id] = peer.server
            self.happened("a session went on over another connection")
        self.loop.after(self.drawn(HOP_S), peer.server.greeted, peer, session)

    def expire(self, session_id: int) -> None:
        """End a session now, as when nothing was heard of it for its timeout."""
        if session_id in self.sessions.by_id and self.has_leader:
            entry = Entry(self._next_zxid(), self._now_ms(), session_id, CLOSE_SESSION, None)
            self._end_session(entry)
            self._append(entry)

    def _end_session(self, entry: Entry) -> None:
        self.tree.end_session(entry.zxid, entry.session_id)
        self._take_changes(entry)
        self.sessions.end(entry.session_id)
        self.ended[entry.session_id] = entry.zxid

    def _take_changes(self, entry: Entry) -> None:
        if self.tree.changes:
            entry.changed = [(int(kind), path) for kind, path, _, _ in self.tree.changes]
            self.tree.changes.clear()

    def _append(self, entry: Entry) -> None:
        self.log.append(entry)
        self.zxid = entry.zxid
        self.on_commit(entry)
        now, upto = self.loop.now, len(self.log)
        for server in self.servers:
            if server.is_up:
                lag_s = self.drawn(APPLY_S) if server is not self.leader else 0.0
                server.apply_at = max(server.apply_at, now + lag_s + server.lag_s)
                self.loop.at(server.apply_at, server.apply, upto)

    def _next_zxid(self) -> int:
        self.count += 1
        return self.epoch << 32 | self.count

    def _now_ms(self) -> int:
        return int((self.wall_s + self.loop.now + self.leader.wall_offset_s) * 1000)

    def _tick(self) -> None:
        self.loop.after(self.tick_s, self._tick)
        if not self.has_leader or self.leader.is_frozen:
            return
        for session_id in self.sessions.expired():
            self.expire(session_id)
        if self.tree.reapable:
            self.remove(self.tree.overdue(self._now_ms()))

    def remove(self, paths: list[str]) -> None:
        """Delete these without a session: what is overdue, or what somebody had no business to delete."""
        if paths:
            entry = Entry(self._next_zxid(), self._now_ms(), 0, REAP, None)
            entry.paths = paths
            for path in paths:
                self.tree.reap(entry.zxid, path)
            self._take_changes(entry)
            self._append(entry)

    # --- faults -----------------------------------------------------------------------------------------

    def lose_leader(self, down_s: float) -> None:
        """The leader is lost: nobody serves until another is elected, which takes so long."""
        if not self.has_leader:
            return
        self.has_leader = False
        self.epoch += 1
        for server in self.servers:
            if server.is_up and not server.is_frozen:
                server.drop_all()
        self.loop.after(down_s, self._elect)

    def _elect(self) -> None:
        able = [server for server in self.servers if server.is_up and not server.is_frozen]
        if 2 * len(able) <= len(self.servers):
            self.loop.after(0.2, self._elect)
            return
        # What a majority had on disk is committed, answered or not; of the rest some.
        proposed, self._proposed = list(self._proposed), deque()
        self.leader = self.rng.choice(able)
        self.offsets_led.append(self.leader.wall_offset_s)
        self.count = 0
        kept = self.rng.randrange(len(proposed) + 1)
        for request in proposed[:kept]:
            if request.op != CREATE_SESSION:
                self.happened("a write whose server was gone survived a change of leaders")
                self._commit(request, is_checked=True)
        self.owners.clear()
        for session in self.sessions.by_id.values():
            session.heard_at = self.loop.now
        self.has_leader = True
        for server in able:
            server.catch_up()
        self.happened("the ensemble changed its leader")

    def check_quorum(self) -> None:
        """Called when a server went: without its leader or a majority nobody serves."""
        able = [server for server in self.servers if server.is_up and not server.is_frozen]
        if self.leader not in able or 2 * len(able) <= len(self.servers):
            self.lose_leader(self.drawn((0.2, 1.5)))
