"""Keeps one ZooKeeper session alive over as many connections as that takes.

    dial -> hello -> credentials -> watches -> CONNECTED -> (lost) SUSPENDED -> dial the next server ...

Every step has a time limit, so that a server which accepts and never answers costs a fraction of the
session timeout and no more. A session is given up only when a server says that it is over. One timer does
all waiting: for deadlines of requests, for the next ping, for silence. Requests are never kept for a later
connection; that is their caller's decision.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from zkd.errors import AuthFailed, SessionClosed, SessionExpired, TooLarge, Unavailable, ZooKeeperError
from zkd.zk import generic, wire
from zkd.zk.connection import Connection, Request
from zkd.zk.hosts import parse_hosts
from zkd.zk.states import Happening, Machine
from zkd.zk.values import Credentials, Event, State
from zkd.zk.watches import Watches

if TYPE_CHECKING:
    import random
    import ssl
    from collections.abc import Callable, Sequence

    from zkd.zk.hosts import Server

PASSWORD_BYTES = 16

# Shares of the negotiated timeout. An idle connection is pinged each PING; an answer owed for SILENCE ends it,
# early enough to be at another server within a third; together they stay below UNKNOWN, so a server that hangs
# is left before our own duties stop.
PING = 1 / 4
SILENCE = 3 / 10
UNKNOWN = 2 / 3
STEP = 1 / 6  # dialling, and each exchange before CONNECTED
STEP_S_MIN = 0.25  # a busy machine needs that much, however short the session
NEW_SESSION_S_MIN = 1.0  # a new session waits for the ensemble's disks, and there is nothing to lose yet

BACKOFF_S = (0.05, 2.0)
STEADY_S = 1.0  # a connection that lived shorter does not reset the back-off: a flapping server is not hammered
LATE_S = 0.05  # a timer so late says that our own loop was stuck
CLOSE_S_MAX = 1.0


class Link:
    def __init__(
        self,
        hosts: str,
        *,
        timeout_s: float,
        auth: Sequence[tuple[str, bytes]],
        tls: ssl.SSLContext | None,
        resume: Credentials | None,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.servers = parse_hosts(hosts)
        self.credentials = resume
        self.timeout_s = self._wanted_timeout_s = timeout_s
        self.epoch = 0
        self.watches = Watches()
        self.fault: ZooKeeperError | None = None  # why there is no connection, or the last one ended
        self._machine = Machine()
        self.subscribe = self._machine.subscribe
        self._auth = tuple(auth)
        self._tls = tls
        self._clock = clock
        self._rng = rng
        self._connection: Connection | None = None  # the one that is published, and alive
        self._server: Server | None = None
        self._last_zxid = 0
        self._answered_at = 0.0
        self._events: deque[Event] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = float("inf")

    # --- what others see ------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """As published, but never CONNECTED past the moment at which it must not be relied on."""
        if self._machine.state is State.CONNECTED and self._clock() >= self._unknown_at():
            return State.UNKNOWN
        return self._machine.state

    @property
    def session_id(self) -> int:
        return self.credentials.session_id if self.credentials else 0

    @property
    def server(self) -> Server | None:
        return self._server if self._connection else None

    # --- requests -------------------------------------------------------------------------------------

    def send(
        self,
        opcode: int,
        body: bytes,
        decode: Callable[[bytes, int, int], Any],
        path: str | None,
        is_write: bool,
        timeout_s: float | None,
        within: int | None,
        arm: Callable[[int], None] | None = None,
    ) -> asyncio.Future[Any]:
        """The reply to come. The request is in the connection's buffer when this returns, or was refused."""
        if within is not None and within != self.session_id:
            raise SessionExpired(path, f"this was for session {within:#x}, the present one is {self.session_id:#x}")
        connection = self._connection
        now = self._clock()
        if connection is None or self._machine.state is not State.CONNECTED or now >= self._unknown_at():
            raise self._refusal(path)
        if len(body) > wire.BODY_BYTES_MAX:
            raise TooLarge(path, f"{len(body) + 8} bytes, at most {wire.BODY_BYTES_MAX + 8}")
        deadline = now + (self.timeout_s if timeout_s is None else timeout_s)
        future = asyncio.get_running_loop().create_future()
        connection.submit(Request(opcode, body, decode, path, is_write, deadline, future, arm))
        if deadline < self._wake_at:
            self._wake(deadline, now)
        return future

    def _refusal(self, path: str | None) -> ZooKeeperError:
        if self._machine.state is State.CLOSED:
            return self.fault if isinstance(self.fault, AuthFailed) else SessionClosed(path)
        return Unavailable(path, f"{self.state.value}{f'; {self.fault.detail}' if self.fault else ''}")

    # --- life -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and connect again, until cancelled or refused for good."""
        failures = 0
        left: Server | None = None
        while True:
            for server in self._order(left):
                try:
                    connection = await self._establish(server)
                    break
                except AuthFailed as error:
                    self.fault = error
                    self._step(Happening.CLOSED)
                    return
                except (ZooKeeperError, OSError, TimeoutError) as error:
                    self._note(server, error)
            else:
                failures += 1
                await asyncio.sleep(self._backoff(failures))
                continue
            since = self._clock()
            # Bound: the timer ends a connection that answers nothing. Not awaited itself: a cancellation of
            # this task would cancel it, and it is the connection's.
            await asyncio.wait([connection.closed])
            left = server
            if self._clock() - since >= STEADY_S:
                failures = 0
            elif failures or len(self.servers) == 1:
                failures += 1
                await asyncio.sleep(self._backoff(failures))
            else:
                failures = 1

    def _order(self, left: Server | None) -> list[Server]:
        """All servers, shuffled so that clients spread; the one just lost comes last."""
        servers = self._rng.sample(self.servers, len(self.servers))
        return sorted(servers, key=lambda server: server == left)

    def _backoff(self, failures: int) -> float:
        low, high = BACKOFF_S
        longest: float = min(high, low * 2 ** min(failures - 1, 16))
        return longest * self._rng.uniform(0.5, 1.0)

    async def _establish(self, server: Server) -> Connection:
        """A connection that is published as CONNECTED, or an exception and no trace."""
        host, port = server
        step_s = max(STEP * self.timeout_s, STEP_S_MIN)
        async with asyncio.timeout(step_s):
            _, connection = await asyncio.get_running_loop().create_connection(
                self._protocol, host, port, ssl=self._tls
            )
        try:
            asked = self.credentials
            async with asyncio.timeout(step_s if asked else max(step_s, NEW_SESSION_S_MIN)):
                greeting = await connection.greet(
                    self._last_zxid,
                    round(self._wanted_timeout_s * 1000),
                    asked.session_id if asked else 0,
                    asked.password if asked else bytes(PASSWORD_BYTES),
                )
            if greeting.session_id == 0 or greeting.timeout_s <= 0:
                connection.abort("the server does not know this session")
                if asked is None:
                    raise Unavailable(None, "the server gave no session")
                self._step(Happening.DENIED)
                return await self._establish(server)
            # From here on this session must be kept, whatever becomes of this connection.
            self.credentials = Credentials(greeting.session_id, greeting.password)
            self.timeout_s = greeting.timeout_s
            self._answered_at = connection.answered_at
            for scheme, secret in self._auth:
                async with asyncio.timeout(step_s):
                    await connection.authenticate(scheme, secret)
            await self._rearm(connection, step_s)
        except BaseException:
            connection.abort("not established")
            raise
        self._publish_connection(connection, server)
        return connection

    def _protocol(self) -> Connection:
        return Connection(
            clock=self._clock,
            last_zxid=self._last_zxid,
            on_event=self._on_event,
            on_heard=self._on_heard,
            on_lost=self._on_lost,
        )

    async def _rearm(self, connection: Connection, step_s: float) -> None:
        """Put every watch on this connection. The last zxid is that of the last *published* connection: one
        from a chunk answered before a cut would skip the events that later chunks have to replay."""
        replies = []
        loop = asyncio.get_running_loop()
        for body in self.watches.rearm_bodies(self._last_zxid):
            reply = loop.create_future()
            opcode = generic.SetWatches2Request.opcode
            connection.submit(Request(opcode, body, wire.decode_nothing, None, False, float("inf"), reply))
            replies.append(reply)
        for reply in replies:
            async with asyncio.timeout(step_s):
                await reply

    def _publish_connection(self, connection: Connection, server: Server) -> None:
        if connection.closed.done():
            raise Unavailable(None, connection.closed.result())
        self._connection, self._server = connection, server
        self._last_zxid = connection.last_zxid
        self.fault = None
        self.epoch += 1
        self._step(Happening.ESTABLISHED)
        if self._events:
            asyncio.get_running_loop().call_soon(self._deliver)
        self._on_timer()

    async def close(self) -> None:
        """End the session at the server too, if it can be reached; the wait is bounded."""
        if self._machine.state is State.CLOSED:
            self._stop()
            return
        connection = self._connection
        self._step(Happening.CLOSED)
        if connection is not None:
            goodbye = asyncio.get_running_loop().create_future()
            request = Request(wire.CLOSE, b"", wire.decode_nothing, None, False, float("inf"), goodbye)
            connection.submit(request)
            await asyncio.wait([goodbye], timeout=min(CLOSE_S_MAX, SILENCE * self.timeout_s))
            goodbye.cancel()
            connection.abort("closed here")
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake_at = float("-inf")

    # --- states ---------------------------------------------------------------------------------------

    def _step(self, happening: Happening) -> None:
        session_id = self.session_id
        if happening is Happening.DENIED:
            self.credentials = None
            self.timeout_s = self._wanted_timeout_s
        self._machine.step(happening, self.epoch, session_id)

    def _on_lost(self, connection: Connection, why: str) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._answered_at = connection.answered_at
        self._last_zxid = max(self._last_zxid, connection.last_zxid)
        assert self._server is not None
        self._note(self._server, Unavailable(None, why))
        if self._machine.state is not State.CLOSED:
            self._step(Happening.LOST)

    def _note(self, server: Server, error: Exception) -> None:
        detail = error.detail if isinstance(error, ZooKeeperError) else str(error) or "no answer in time"
        self.fault = Unavailable(None, f"{server[0]}:{server[1]}: {detail}")

    def _on_heard(self) -> None:
        if self._machine.state is State.UNKNOWN and self._connection is not None and self._clock() < self._unknown_at():
            self._step(Happening.ANSWERED)

    def _on_event(self, event: Event) -> None:
        self._events.append(event)
        # Before CONNECTED is published events are kept, so that nobody acts on one in the old epoch.
        if self._connection is not None and len(self._events) == 1:
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        """Runs before the tasks that wait for replies which came after these events, as ZooKeeper promises."""
        due: deque[tuple[Callable[[Event], None], Event]] = deque()
        try:
            while self._events or due:
                if due:
                    watch, event = due.popleft()
                    watch(event)
                else:
                    event = self._events.popleft()
                    due.extend((watch, event) for watch in self.watches.take(event))
        finally:
            # A callback that raised is reported by the loop; the others must not suffer for it.
            for watch, event in due:
                asyncio.get_running_loop().call_soon(watch, event)
            if self._events:
                asyncio.get_running_loop().call_soon(self._deliver)

    # --- time -----------------------------------------------------------------------------------------

    def _unknown_at(self) -> float:
        answered_at = self._connection.answered_at if self._connection else self._answered_at
        return answered_at + UNKNOWN * self.timeout_s

    def _wake(self, at: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake_at = at
        self._timer = asyncio.get_running_loop().call_later(max(at - now, 0.0), self._on_timer)

    def _on_timer(self) -> None:
        """Do what is due, and sleep until the next thing is. The only timer of an established link."""
        now = self._clock()
        was_late = now - self._wake_at > LATE_S
        self._wake_at = float("inf")
        due = [float("inf")]
        if self._machine.state in (State.CONNECTED, State.SUSPENDED):
            if now >= self._unknown_at():
                self._step(Happening.SILENT)
            else:
                due.append(self._unknown_at())
        connection = self._connection
        if connection is not None:
            silent_since = connection.silent_since()
            if silent_since is not None and now - silent_since >= SILENCE * self.timeout_s:
                if was_late:
                    due.append(now + LATE_S)  # the answer may lie unread in the socket: read first, then judge
                else:
                    connection.abort(f"no answer for {now - silent_since:.1f} s")
                    connection = None
        if connection is not None:
            if now - connection.last_sent_at >= PING * self.timeout_s:
                connection.ping()
            due.append(connection.last_sent_at + PING * self.timeout_s)
            silent_since = connection.silent_since()
            if silent_since is not None:
                due.append(max(silent_since + SILENCE * self.timeout_s, now + LATE_S / 2))
            due.append(connection.fail_overdue(now))
        elif self._machine.state is State.SUSPENDED:
            due.append(self._unknown_at())
        at = min(due)
        if at != float("inf"):
            self._wake(at, now)
