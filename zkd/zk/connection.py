"""One TCP or TLS connection to one server: frames out, frames in, and nothing about sessions.

All requests of one turn of the loop leave in one write, in the order in which they were made; replies come
in that order too (ZooKeeper's guarantee), so pending requests are a queue and its head is the next to be
answered. When the connection ends, every pending request fails in the same call: none is sent again and
none waits for a timeout. A request that was cancelled or timed out keeps its place, and its reply is
dropped when it comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from struct import error as StructError  # noqa: N812 - it is a class
from typing import TYPE_CHECKING, Any, cast

from zkd.errors import AuthFailed, OutcomeUnknown, SessionExpired, Unavailable, from_code
from zkd.zk import generic, wire
from zkd.zk.wire import Malformed

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.zk.values import Event

# Requests on the wire at once; further ones wait here for their turn (and fail with the connection). A
# server reads no more than 1,000 ahead (globalOutstandingLimit); bytes are bounded so that a stalled server
# cannot make us buffer without limit.
IN_FLIGHT_MAX = 2048
IN_FLIGHT_BYTES_MAX = 8 * 1024 * 1024

_SESSION_GONE = -112
_SESSION_MOVED = -118
_MISSING_IS_ANSWER = -101  # exists() of nothing arms a watch too

_head = wire.HEAD.pack
_size_at = wire.INT.unpack_from
_reply_at = wire.REPLY.unpack_from


class Request:
    """One request from its making to its reply."""

    __slots__ = ("arm", "body", "deadline", "decode", "future", "is_write", "opcode", "path", "sent_at", "size", "xid")

    def __init__(
        self,
        opcode: int,
        body: bytes,
        decode: Callable[[bytes, int, int], Any],
        path: str | None,
        is_write: bool,
        deadline: float,
        future: asyncio.Future[Any],
        arm: Callable[[int], None] | None = None,
    ) -> None:
        self.opcode = opcode
        self.body = body
        self.decode = decode
        self.path = path
        self.is_write = is_write
        self.deadline = deadline
        self.future = future
        self.arm = arm  # called with the error code before the result is published, to register a watch
        self.size = len(body)
        self.xid = 0  # 0: not sent
        self.sent_at = 0.0

    def fail(self, why: str) -> None:
        """No reply will come, or none in time."""
        if self.xid and self.is_write:
            fail(self.future, OutcomeUnknown(self.path, why))
        else:
            fail(self.future, Unavailable(self.path, why))


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # counts as retrieved: its task may have been cancelled in this very turn


class Connection(asyncio.Protocol):
    """`answered_at` is when the latest answered request was *sent*: the server surely knew us then."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        last_zxid: int,
        on_event: Callable[[Event], None],
        on_heard: Callable[[], None],
        on_lost: Callable[[Connection, str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._on_event = on_event
        self._on_heard = on_heard
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._flush_due = False
        self._xid = 0
        self._sent: deque[Request] = deque()
        self._sent_bytes = 0
        self._waiting: deque[Request] = deque()  # no room on the wire yet
        self._greeting: asyncio.Future[generic.Greeting] | None = None
        self._auths: deque[asyncio.Future[None]] = deque()
        self._pings: deque[float] = deque()
        self._part: list[bytes] = []  # of a frame that has not come whole
        self._part_bytes = 0
        self._part_needs = 0
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self.last_zxid = last_zxid
        self.last_sent_at = self.heard_at = self.answered_at = clock()

    # --- out ------------------------------------------------------------------------------------------

    async def greet(self, last_zxid: int, timeout_ms: int, session_id: int, password: bytes) -> generic.Greeting:
        """What the server answers to our hello. Nothing else may be sent before it."""
        self._greeting = self._loop.create_future()
        sent_at = self._clock()
        self._write(generic.connect_frame(last_zxid, timeout_ms, session_id, password))
        greeting = await self._greeting
        self.answered_at = sent_at
        return greeting

    async def authenticate(self, scheme: str, secret: bytes) -> None:
        answer: asyncio.Future[None] = self._loop.create_future()
        self._auths.append(answer)
        self._write(generic.auth_frame(scheme, secret))
        await answer

    def ping(self) -> None:
        self._pings.append(self._clock())
        self._write(wire.PING_FRAME)

    def submit(self, request: Request) -> None:
        """Put a request on the wire, or in line for it. Its future has the outcome, always."""
        if self.closed.done():
            request.fail(self.closed.result())
        elif self._waiting or not self._has_room(request.size):
            self._waiting.append(request)
        else:
            self._put(request)

    def _has_room(self, size: int) -> bool:
        sent = len(self._sent)
        return not sent or (sent < IN_FLIGHT_MAX and self._sent_bytes + size <= IN_FLIGHT_BYTES_MAX)

    def _put(self, request: Request) -> None:
        xid = self._xid = self._xid + 1 if self._xid < 0x7FFFFFFF else 1
        request.xid = xid
        request.sent_at = self.last_sent_at = self._clock()
        self._sent.append(request)
        self._sent_bytes += request.size
        self._out.append(_head(request.size + 8, xid, request.opcode))
        self._out.append(request.body)
        request.body = b""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _write(self, frame: bytes) -> None:
        self.last_sent_at = self._clock()
        self._out.append(frame)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    # --- in -------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.closed.done():
            return
        self.heard_at = self._clock()
        if self._part:
            self._part.append(data)
            self._part_bytes += len(data)
            if self._part_bytes < self._part_needs:
                return
            data = b"".join(self._part)
            self._part = []
        else:
            data = bytes(data)  # uvloop may hand out a bytearray
        try:
            at = self._read_frames(data)
        except (Malformed, StructError, UnicodeDecodeError) as error:
            self.abort(f"the server sent what no ZooKeeper server sends: {error}")
            return
        if self.closed.done():
            return
        rest = len(data) - at
        if rest:
            self._part = [data[at:]]
            self._part_bytes = rest
            self._part_needs = 4 + _size_at(data, at)[0] if rest >= 4 else 4
        while self._waiting and self._has_room(self._waiting[0].size):
            request = self._waiting.popleft()
            if not request.future.done():
                self._put(request)
        self._on_heard()

    def _read_frames(self, data: bytes) -> int:
        """Take all whole frames; where the first part of a further one begins."""
        at, end, sent = 0, len(data), self._sent
        while end - at >= 4:
            (size,) = _size_at(data, at)
            if not wire.REPLY_BYTES <= size <= wire.REPLY_BYTES_MAX:
                raise Malformed(f"a frame of {size} bytes")
            stop = at + 4 + size
            if stop > end:
                break
            if self._greeting is not None:
                self._take_greeting(data[at + 4 : stop])
                at = stop
                continue
            xid, zxid, code = _reply_at(data, at + 4)
            if xid <= 0:
                self._take_special(xid, zxid, code, data, at + 20, stop)
                at = stop
                continue
            if not sent or sent[0].xid != xid:
                raise Malformed(f"a reply to request {xid}, awaited was {sent[0].xid if sent else 'none'}")
            request = sent[0]
            future = request.future
            if future.done():
                pass
            elif code:
                if request.arm is not None and code == _MISSING_IS_ANSWER:
                    request.arm(code)
                fail(future, self._error(code, request.path))
            else:
                result = request.decode(data, at + 20, stop)
                if request.arm is not None:
                    request.arm(0)
                future.set_result(result)
            sent.popleft()  # only now: a reply that cannot be decoded leaves its request to be failed with the rest
            self._sent_bytes -= request.size
            self.answered_at = request.sent_at
            if zxid > 0:
                self.last_zxid = zxid
            at = stop
            if code in (_SESSION_GONE, _SESSION_MOVED):
                self.abort("the server says that the session is over or went elsewhere")
                break
        return at

    def _error(self, code: int, path: str | None) -> Exception:
        if code == _SESSION_MOVED:
            return Unavailable(path, "the session has a newer connection")
        return SessionExpired(path) if code == _SESSION_GONE else from_code(code, path)

    def _take_greeting(self, packet: bytes) -> None:
        greeting, hello = self._greeting, generic.decode_greeting(packet)
        assert greeting is not None
        self._greeting = None  # only now: one that cannot be decoded is failed with the connection
        if not greeting.done():
            greeting.set_result(hello)

    def _take_special(self, xid: int, zxid: int, code: int, data: bytes, at: int, end: int) -> None:
        if xid == wire.EVENT_XID:
            event = wire.decode_event(data, at, end, zxid)
            if event is not None:
                self._on_event(event)
        elif xid == wire.PING_XID and self._pings:
            # A ping's zxid is not taken: events up to it may still be on their way.
            self.answered_at = max(self.answered_at, self._pings.popleft())
        elif xid == wire.AUTH_XID and self._auths:
            answer = self._auths.popleft()
            if code:
                fail(answer, AuthFailed(None, f"code {code}"))
            elif not answer.done():
                answer.set_result(None)
        else:
            raise Malformed(f"a reply to {xid}, which was not asked")

    # --- time -----------------------------------------------------------------------------------------

    def silent_since(self) -> float | None:
        """Since when an answer is owed and not a byte has come; None if none is owed."""
        owed = [self._sent[0].sent_at] if self._sent else []
        if self._pings:
            owed.append(self._pings[0])
        return max(min(owed), self.heard_at) if owed else None

    def fail_overdue(self, now: float) -> float:
        """Fail the requests whose deadline has passed; the earliest deadline that is left."""
        earliest = float("inf")
        for queue in (self._sent, self._waiting):
            for request in queue:
                if request.future.done():
                    continue
                if request.deadline <= now:
                    request.fail("no answer before its deadline")
                elif request.deadline < earliest:
                    earliest = request.deadline
        return earliest

    # --- life -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"connection lost: {exc}" if exc else "the server closed the connection")

    def abort(self, why: str) -> None:
        """End it now. Bytes that were not yet sent are dropped."""
        self._end(why)
        if self._transport is not None:
            self._transport.abort()

    def _end(self, why: str) -> None:
        if self.closed.done():
            return
        self.closed.set_result(why)
        self._out.clear()
        self._part = []
        try:
            # The session moves to its new state first: whoever is told of the failure finds it there.
            self._on_lost(self, why)
        finally:
            self._fail_all(why)

    def _fail_all(self, why: str) -> None:
        if self._greeting is not None:
            fail(self._greeting, Unavailable(None, why))
        for answer in self._auths:
            fail(answer, Unavailable(None, why))
        for request in (*self._sent, *self._waiting):
            request.fail(why)
        self._sent.clear()
        self._waiting.clear()
