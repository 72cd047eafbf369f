"""A node's end of the links to coordinators: `GET /v1/rounds/<job>?life=L&fence=F`, upgraded to a WebSocket.

Asks for the cluster's token before anything else. `life` is the transaction that made the job's znode, `fence` says
which of its coordinators this is: 409 where a later one has been here, and who is on the line when one comes is hung up
on. 426 for a request that is no WebSocket. What is said then: `zkd.net.round_frames`; whoever says anything
else is hung up on with a reason, and costs nobody else anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import aiohttp
from aiohttp import web

from zkd.net.outbox import HEARTBEAT_S, Outbox
from zkd.net.round_frames import (
    MESSAGE_BYTES_MAX,
    WORDS_MAX,
    Answer,
    Ask,
    BadMessage,
    Bytes,
    Context,
    Failed,
    Overtaken,
    Term,
    for_node,
    packed,
)
from zkd.paths import is_name

REASON_BYTES_MAX = 120  # of a WebSocket's close frame
CLOSE_S = 1.0


class Desk(Protocol):
    """Who works for one coordinator. None of these waits."""

    def context(self, context: Context, body: bytes) -> None: ...
    def ask(self, ask: Ask, question: bytes) -> None: ...
    def forget(self, number: int, ask: int) -> None: ...
    def close(self) -> None:
        """The coordinator is gone: what it asked for is in vain."""


class Caller:
    """The coordinator at the other end, as its desk sees it. What is said after the end is not sent."""

    def __init__(self) -> None:
        self._out = Outbox()
        self._ended = asyncio.Event()
        self.why = ""

    def answer(self, number: int, ask: int, parts: Sequence[int], partials: Sequence[Bytes]) -> None:
        sizes = [len(partial) for partial in partials]
        self._out.put(packed(Answer(number, ask, list(parts), sizes), partials))

    def failed(self, number: int, ask: int, why: str) -> None:
        self._out.put(packed(Failed(number, ask, why[:WORDS_MAX])))

    def hang_up(self, why: str) -> None:
        self.why = self.why or why
        self._out.close()
        self._ended.set()

    async def serve(self, socket: web.WebSocketResponse, desk: Desk) -> None:
        """Until either side has had enough."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._out.empty_into(socket)),
                group.create_task(self._read(socket, desk)),
                group.create_task(self._ended.wait()),
            ]
            await asyncio.wait(tasks[1:], return_when=asyncio.FIRST_COMPLETED)  # unbounded: as long as the job takes
            for task in tasks:
                task.cancel()
        self._out.close()

    async def _read(self, socket: web.WebSocketResponse, desk: Desk) -> None:
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.BINARY:
                self.why = "expected binary messages"
                return
            try:
                head, body = for_node(message.data)
            except BadMessage as error:
                self.why = str(error)
                return
            if isinstance(head, Context):
                desk.context(head, body)
            elif isinstance(head, Ask):
                desk.ask(head, body)
            else:
                desk.forget(head.round, head.ask)


Receive = Callable[[Term, Caller], Desk]  # raises `Overtaken`


def round_routes(receive: Receive, expect_token: Callable[[web.Request], None]) -> list[web.RouteDef]:
    """`receive` gives each coordinator that comes a desk; `expect_token` raises if the request does not have it."""

    async def rounds(request: web.Request) -> web.StreamResponse:
        expect_token(request)
        job, query = request.match_info["job"], request.query
        if not is_name(job) or not (_is_number(query.get("life")) and _is_number(query.get("fence"))):
            raise web.HTTPBadRequest(text="expected /v1/rounds/<job>?life=N&fence=N\n")
        term = Term(job, int(query["life"]), int(query["fence"]))
        socket = web.WebSocketResponse(
            timeout=CLOSE_S, heartbeat=HEARTBEAT_S, max_msg_size=MESSAGE_BYTES_MAX, compress=False
        )
        if not socket.can_prepare(request).ok:
            raise web.HTTPUpgradeRequired(text="expected a WebSocket\n")
        caller = Caller()
        try:
            desk = receive(term, caller)
        except Overtaken as error:
            raise web.HTTPConflict(text=f"{error}\n") from None
        try:
            await socket.prepare(request)
            await caller.serve(socket, desk)
        finally:
            desk.close()
        code = aiohttp.WSCloseCode.POLICY_VIOLATION if caller.why else aiohttp.WSCloseCode.OK
        await socket.close(code=code, message=_cut(caller.why))
        return socket

    return [web.get("/v1/rounds/{job}", rounds)]


def _is_number(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit() and len(text) <= 18


def _cut(why: str) -> bytes:
    """As much of it as fits a close frame, without half a letter at its end."""
    return why.encode()[:REASON_BYTES_MAX].decode(errors="ignore").encode()
