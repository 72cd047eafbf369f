"""The embedded server's sockets: a thin asyncio shell around `Core`, and the faults it can be told to have.

For `zkd dev`, the demo and tests. It keeps everything in memory and forgets it at the end: *not durable, by
design*. A connection has one buffer in and one write out for each run of requests; it has no tasks, so there
is nothing to leak. Whatever a client sends, the worst that happens is the end of its own connection.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self, cast

from zkd.zk.server import words
from zkd.zk.server.core import Core
from zkd.zk.server.faults import Faults
from zkd.zk.server.wire import INT, MAX_FRAME, Malformed, Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zkd.zk.server.peer import Peer
    from zkd.zk.server.wire import Op

# A client that does not read: first its requests are left where they are, looked at each time this much is to
# be sent; when events still pile up, it is cut off as one that lost its connection.
LOOK_AT_UNSENT = 256 * 1024
MAX_UNSENT = 64 * 1024 * 1024


class Connection(asyncio.Protocol):
    """One client's socket."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server
        self._core = server.core
        self._faults = server.faults
        self._parts: list[bytes] = []  # of a frame that is not whole yet
        self._missing = 4  # bytes until it is worth looking at them again
        self._late: deque[bytes] = deque()
        self._is_slow = False  # its socket takes no more for now
        self.transport: asyncio.Transport
        self.peer: Peer
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none, and is as good
        host, port, *_ = self.transport.get_extra_info("peername") or ("127.0.0.1", 0)
        self.address = f"{host}:{port}"
        self.peer = self._core.open(host, self)
        self._server.connections[self] = None
        if self._faults.is_refusing:
            self.transport.abort()
        elif self._faults.is_cut_off(None):
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.pop(self, None)
        self._core.closed(self.peer)
        self._parts.clear()
        self._late.clear()

    def pause_writing(self) -> None:
        self._is_slow = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_slow = False
        self.go_on()

    def go_on(self) -> None:
        """Read on, and answer what was left, unless something else forbids it."""
        if not self._is_slow and not self._faults.is_cut_off(self.peer.session) and not self.transport.is_closing():
            self.transport.resume_reading()
            self.take_frames()
            self.flush()

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing <= 0:
            self.take_frames()

    def take_frames(self) -> None:
        """Answer all whole frames that are here, then let everyone have what they were sent."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        at, size = 0, len(data)
        needed = 4
        while size - at >= 4 and self._may_go_on():
            length = INT.unpack_from(data, at)[0]
            if self.peer.received == 0 and self._answer_word(data[at : at + 4]):
                break
            if not 0 <= length <= self._server.max_frame:
                self.transport.abort()
                break
            needed = 4 + length
            if size - at < needed:
                break
            try:
                self._take_frame(Reader(data, at + 4, at + needed))
            except Malformed:
                self.transport.abort()
                break
            at += needed
            needed = 4
            if self.peer.unsent > LOOK_AT_UNSENT:
                self._server.flush()
        rest = data[at:] if at else data
        self._parts = [] if self.peer.is_closing or not rest else [rest]
        self._missing = needed - len(rest)
        self._server.flush()

    def _may_go_on(self) -> bool:
        return not (self._is_slow or self.peer.is_closing or self._faults.is_cut_off(self.peer.session))

    def _take_frame(self, frame: Reader) -> None:
        if self.peer.session is None:
            self._core.connect(self.peer, frame)
            return
        op = INT.unpack_from(frame.source, frame.at + 4)[0] if frame.end - frame.at >= 8 else 0
        cut = self._faults.cut_for(op, frame) if self._faults.has_cuts else None
        if cut is None:
            self._core.request(self.peer, frame)
            return
        self._server.flush()  # the answers to what came before are not part of the fault
        if cut == "after":
            self._core.request(self.peer, frame)
        self.abort()

    def _answer_word(self, word: bytes) -> bool:
        said = words.answer(word, self._server)
        if said is None:
            return False
        self.transport.write(said.encode())
        self.transport.close()
        return True

    def abort(self) -> None:
        """End the connection without another byte, and leave no trace of it in the core."""
        self.peer.take()
        self._core.closed(self.peer)
        self.transport.abort()

    def flush(self) -> None:
        """Write what the core has for this client; close after it if that is wanted."""
        if self._faults.is_cut_off(self.peer.session):
            return  # it stays in the outbox until the partition heals
        out = self.peer.take()
        if self.transport.is_closing():
            return
        if out and (self._faults.delay_s or self._late):  # nothing overtakes what is late
            self._late.append(out)
            asyncio.get_running_loop().call_later(self._faults.delay_s, self._write_late)
        elif out:
            self._write(out)
        if self.peer.is_closing and not self._late:
            self.transport.close()

    def _write_late(self) -> None:
        if self._late and not self.transport.is_closing():
            self._write(self._late.popleft())
            if self.peer.is_closing and not self._late:
                self.transport.close()

    def _write(self, out: bytes) -> None:
        self.transport.write(out)
        if self.transport.get_write_buffer_size() > MAX_UNSENT:
            self.abort()


class EmbeddedServer:
    """An in-memory ZooKeeper on a port of this machine, inside the running event loop.

    Sessions may ask for timeouts from two ticks up to `max_timeout_s`. Containers and TTL nodes are looked at
    every `reap_s` (Apache: every minute). `clock` is what sessions live by and
    `wall` what stats show. The faults are methods here; all of them can be called at any time.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        tick_s: float = 0.5,
        *,
        reap_s: float = 1.0,
        max_timeout_s: float = 60.0,
        max_frame: int = MAX_FRAME,
        extended_types: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.host = host
        self.port = port
        self.tick_s = tick_s
        self.max_frame = max_frame
        self.faults = Faults()
        self.core = Core(
            clock=clock,
            wall=wall,
            tick_s=tick_s,
            reap_s=reap_s,
            max_timeout_s=max_timeout_s,
            extended_types=extended_types,
        )
        self.connections: dict[Connection, None] = {}
        self._listener: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def connect_string(self) -> str:
        return f"{self.host}:{self.port}"

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: Connection(self), self.host, self.port, backlog=1024)
        self.port = self._listener.sockets[0].getsockname()[1]
        self._timer = loop.call_later(self.tick_s, self._tick)

    async def stop(self) -> None:
        """Close the port and every connection. Sessions and znodes are kept while this object is."""
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.close()
        self.drop_connections()
        if self._listener is not None:
            await self._listener.wait_closed()
        await asyncio.sleep(0)  # one turn, in which aborted transports close their sockets

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.tick_s, self._tick)
        self.core.tick()
        self.flush()

    def flush(self) -> None:
        """Hand all outboxes to their sockets: one write for each connection."""
        dirty = self.core.dirty
        for peer in dirty:
            if isinstance(peer.shell, Connection):
                peer.shell.flush()
        dirty.clear()

    def address(self, peer: Peer) -> str:
        return peer.shell.address if isinstance(peer.shell, Connection) else ""

    # --- faults --------------------------------------------------------------------------------------

    def expire(self, session_id: int) -> None:
        """End a session now: its ephemerals go, its connection is closed."""
        self.core.expire(session_id)
        self.flush()

    def cut_before(self, op: Op, *, times: int = 1, path: str | None = None) -> None:
        """Cut the connection instead of applying the next request of this kind (below `path`)."""
        self.faults.cut("before", op, times, path)

    def cut_after(self, op: Op, *, times: int = 1, path: str | None = None) -> None:
        """Apply the next request of this kind, and cut the connection instead of answering."""
        self.faults.cut("after", op, times, path)

    def delay(self, seconds: float) -> None:
        """Answer everything this much later; 0 ends it."""
        self.faults.delay_s = seconds

    def refuse(self, refusing: bool = True) -> None:
        """Cut all connections, and every new one as soon as it is made, until `refuse(False)`."""
        self.faults.is_refusing = refusing
        if refusing:
            self.drop_connections()

    def partition(self, *session_ids: int) -> None:
        """Keep connections open and neither read nor answer: those of some sessions, or of everyone."""
        self.faults.partition(session_ids)
        for connection in self.connections:
            if self.faults.is_cut_off(connection.peer.session):
                connection.transport.pause_reading()

    def heal(self) -> None:
        """End every fault that lasts: partition, refusal, delay, cuts to come."""
        self.faults.heal()
        for connection in list(self.connections):
            connection.go_on()

    def drop_connections(self) -> None:
        for connection in list(self.connections):
            connection.abort()


@contextmanager
def serve_in_thread(server: EmbeddedServer | None = None) -> Iterator[EmbeddedServer]:
    """Run a server in a thread with a loop of its own, for programs that block.

    The server's methods belong to that thread's loop; from here only its port and connect string are used.
    """
    server = server or EmbeddedServer()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="zkd-embedded-server", daemon=True)
    try:
        loop.run_until_complete(server.start())  # here, so that a port in use is the caller's exception
        thread.start()
        yield server
    finally:
        if thread.is_alive():
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
        loop.close()
