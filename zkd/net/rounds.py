"""A coordinator's link to one node, for one job: asks go out, answers come in, for as long as both are there.

    link = Link(http, address, token, term, node, answered=..., failed=..., lost=...)
    await link.connect(context, body)        one HTTP request, upgraded to a WebSocket; from then on messages alone
    group.create_task(link.run())            until it is lost or closed
    link.ask(number, ask, parts, question)    never waits: what the node does not take yet lies here

Nothing is sent twice and nothing is kept for a node that is lost: the round machine asks others. A node that is silent
is found out by the WebSocket's own pings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from urllib.parse import urlencode

import aiohttp

from zkd.errors import DataUnavailable
from zkd.net.bodies import bearer
from zkd.net.outbox import HEARTBEAT_S, Outbox
from zkd.net.round_frames import (
    MESSAGE_BYTES_MAX,
    Answer,
    Ask,
    BadMessage,
    Context,
    Forget,
    Overtaken,
    Term,
    from_node,
    packed,
)
from zkd.paths import NodeId

__all__ = ["Link", "Overtaken", "Term"]

CONNECT_S = 5.0
CLOSE_S = 1.0  # for the node to say good-bye, too


Answered = Callable[[NodeId, int, int, list[int], list[bytes]], None]  # node, round, ask, parts, partials
Failed = Callable[[NodeId, int, int, str], None]  # node, round, ask, why
Lost = Callable[[NodeId, str], None]


class Link:
    """`lost` is called once, at the end of `run`, unless that was wanted; the others while it runs."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        address: str,
        token: str,
        term: Term,
        node: NodeId,
        *,
        answered: Answered,
        failed: Failed,
        lost: Lost,
    ) -> None:
        self.node = node
        self.term = term
        self._http = http
        self._url = f"{address}/v1/rounds/{term.job}?{urlencode({'life': term.life, 'fence': term.fence})}"
        self._token = token
        self._answered, self._failed, self._lost = answered, failed, lost
        self._out = Outbox()
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._is_closed = False

    @property
    def is_up(self) -> bool:
        return self._socket is not None and not self._socket.closed and not self._is_closed

    async def connect(self, context: Context, body: bytes) -> None:
        """Raises `Overtaken`, or `DataUnavailable` with what is in the way; then the link is of no more use."""
        timeout = aiohttp.ClientWSTimeout(ws_close=CLOSE_S)
        try:
            async with asyncio.timeout(CONNECT_S):
                self._socket = await self._http.ws_connect(
                    self._url,
                    headers=bearer(self._token),
                    timeout=timeout,
                    heartbeat=HEARTBEAT_S,
                    max_msg_size=MESSAGE_BYTES_MAX,
                )
        except aiohttp.WSServerHandshakeError as error:
            if error.status == 409:
                raise Overtaken(f"{self.node} knows a later coordinator of {self.term.job}") from None
            raise DataUnavailable(f"{self.node}: HTTP {error.status}: {error.message}") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) or f"no answer within {CONNECT_S:g} s"
            raise DataUnavailable(f"{self.node} cannot be reached: {why}") from None
        self.tell(context, body)

    # --- Out: none of these waits -----------------------------------------------------------------------

    def tell(self, context: Context, body: bytes) -> None:
        """What the asks after this one are about."""
        self._out.put(packed(context, [body]))

    def ask(self, number: int, ask: int, parts: Sequence[int], question: bytes) -> None:
        self._out.put(packed(Ask(number, ask, list(parts)), [question]), (number, ask))

    def forget(self, number: int, ask: int) -> None:
        """The answer will not count. An ask that has not left yet never does."""
        if not self._out.withdraw((number, ask)):
            self._out.put(packed(Forget(number, ask)))

    async def close(self) -> None:
        """Hang up, in at most `CLOSE_S`. `run` ends."""
        self._is_closed = True
        self._out.close()
        if self._socket is not None:
            await self._socket.close()

    # --- In ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Hand over what comes, until the link ends. Cancelled, it hangs up, and nobody is told of a loss."""
        socket = self._socket
        assert socket is not None, "connect comes first"
        why = ""
        try:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._out.empty_into(socket))
                why = await self._read(socket)
                sending.cancel()
        finally:
            was_closed, self._is_closed = self._is_closed, True
            self._out.close()
            await socket.close()
        if not was_closed:
            self._lost(self.node, why)

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> str:
        """Why there is no more to read."""
        while True:
            message = await socket.receive()  # unbounded: the heartbeat finds out a node that is silent
            if message.type is aiohttp.WSMsgType.CLOSE:
                return str(message.extra or f"it hung up ({message.data})")
            if message.type in (aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                error = socket.exception()
                return "it was cut off" if error is None else str(error) or type(error).__name__
            if message.type is not aiohttp.WSMsgType.BINARY:
                return "it sent text"
            try:
                head, partials = from_node(message.data)
            except BadMessage as error:
                return str(error)
            if self._is_closed:
                return "it was closed"
            if isinstance(head, Answer):
                self._answered(self.node, head.round, head.ask, head.parts, partials)
            else:
                self._failed(self.node, head.round, head.ask, head.why)
