"""Promises of the link between a coordinator and a node, over real sockets; who sits at the desk is the test."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from zkd.errors import DataUnavailable
from zkd.net import outbox, round_frames
from zkd.net.bodies import bearer
from zkd.net.fetch import session
from zkd.net.round_frames import Answer, Ask, BadMessage, Context, Failed, Forget, for_node, from_node, packed
from zkd.net.round_routes import Caller, round_routes
from zkd.net.rounds import Link, Overtaken, Term

TOKEN = "secret"
TERM = Term("j", 7, 1)
CONTEXT = Context("d@1", ["x", "y"])


@dataclass
class Desk:
    """Answers with the question, twice; remembers what it was told."""

    caller: Caller
    term: Term
    told: list[Any] = field(default_factory=list)
    is_closed: bool = False

    def context(self, context: Context, body: bytes) -> None:
        self.told.append((context, body))

    def ask(self, ask: Ask, question: bytes) -> None:
        self.told.append(ask)
        if question == b"bad":
            self.caller.failed(ask.round, ask.ask, "cannot be answered")
        else:
            self.caller.answer(ask.round, ask.ask, ask.parts, [question, question[:3]])

    def forget(self, number: int, ask: int) -> None:
        self.told.append((number, ask))

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Node:
    address: str
    desks: list[Desk] = field(default_factory=list)
    sockets: list[Any] = field(default_factory=list)

    def receive(self, term: Term, caller: Caller) -> Desk:
        if any(desk.term > term for desk in self.desks):
            raise Overtaken("a later coordinator of j has been here")
        self.desks.append(Desk(caller, term))
        return self.desks[-1]


@asynccontextmanager
async def serving() -> AsyncIterator[Node]:
    node = Node("")

    def expect_token(request: web.Request) -> None:
        assert request.transport is not None
        node.sockets.append(request.transport)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized

    app = web.Application()
    app.add_routes(round_routes(node.receive, expect_token))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    node.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield node
    finally:
        await runner.cleanup()


class Coordinator:
    """What comes over its links, as it comes."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()

    def link(self, http: aiohttp.ClientSession, node: Node, term: Term = TERM, token: str = TOKEN) -> Link:
        put = self.came.put_nowait
        return Link(
            http,
            node.address,
            token,
            term,
            "n1",
            answered=lambda *said: put(("answered", *said)),
            failed=lambda *said: put(("failed", *said)),
            lost=lambda *said: put(("lost", *said)),
        )

    async def next(self) -> tuple[Any, ...]:
        async with asyncio.timeout(5):
            return await self.came.get()


@asynccontextmanager
async def linked(
    http: aiohttp.ClientSession, node: Node, coordinator: Coordinator, term: Term = TERM
) -> AsyncIterator[Link]:
    link = coordinator.link(http, node, term)
    await link.connect(CONTEXT, b"terms")
    async with asyncio.TaskGroup() as group:
        group.create_task(link.run())
        yield link
        await link.close()


async def test_an_answer_comes_with_its_partials_as_they_are() -> None:
    coordinator, question = Coordinator(), bytes(range(256)) * 20_000
    async with serving() as node, session() as http, linked(http, node, coordinator) as link:
        link.ask(3, 4, [0, 5], question)
        link.ask(3, 5, [1], b"bad")
        assert await coordinator.next() == ("answered", "n1", 3, 4, [0, 5], [question, question[:3]])
        assert await coordinator.next() == ("failed", "n1", 3, 5, "cannot be answered")
        assert node.desks[0].told == [(CONTEXT, b"terms"), Ask(3, 4, [0, 5]), Ask(3, 5, [1])]
        assert link.is_up
    assert node.desks[0].is_closed
    assert coordinator.came.empty(), "who hangs up himself has lost nobody"


async def test_small_messages_are_not_held_back() -> None:
    import socket

    async with serving() as node, session() as http, linked(http, node, Coordinator()) as link:
        assert link._socket is not None
        for transport in (node.sockets[0], link._socket._response.connection.transport):
            wire = transport.get_extra_info("socket")
            assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_an_ask_that_is_forgotten_in_time_never_leaves() -> None:
    coordinator = Coordinator()
    async with serving() as node, session() as http, linked(http, node, coordinator) as link:
        link.ask(1, 0, [0], b"never")
        link.forget(1, 0)
        link.ask(1, 1, [0], b"yes")
        assert (await coordinator.next())[3] == 1
        link.forget(1, 1)
        link.ask(2, 0, [0], b"")
        await coordinator.next()
        assert node.desks[0].told[1:] == [Ask(1, 1, [0]), (1, 1), Ask(2, 0, [0])]


async def test_a_node_that_goes_is_told_once() -> None:
    coordinator = Coordinator()
    async with session() as http:
        async with serving() as node:
            link = coordinator.link(http, node)
            await link.connect(CONTEXT, b"")
            async with asyncio.TaskGroup() as group:
                group.create_task(link.run())
                while not node.desks[0].told:
                    await asyncio.sleep(0.001)
                node.desks[0].caller.hang_up("the node stops")
                assert await coordinator.next() == ("lost", "n1", "the node stops")
            assert not link.is_up
            link.ask(1, 1, [0], b"")  # in vain, and no error
            await link.close()
        assert coordinator.came.empty()
        with pytest.raises(DataUnavailable, match="n1 cannot be reached"):
            await coordinator.link(http, node).connect(CONTEXT, b"")


async def test_a_frozen_node_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkd.net.rounds.HEARTBEAT_S", 0.2)
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from base64 import b64encode
        from hashlib import sha1

        head = await reader.readuntil(b"\r\n\r\n")
        key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")).split()[1]
        accept = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
        writer.write(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    node = Node(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    coordinator = Coordinator()
    async with server, session() as http:
        link = coordinator.link(http, node)
        await link.connect(CONTEXT, b"")
        async with asyncio.timeout(3):
            await link.run()
        assert (await coordinator.next())[0] == "lost"
        gone.set()


async def test_who_leaves_has_lost_nobody() -> None:
    coordinator = Coordinator()
    async with serving() as node, session() as http:
        link = coordinator.link(http, node)
        await link.connect(CONTEXT, b"")
        async with asyncio.TaskGroup() as group:
            running = group.create_task(link.run())
            link.ask(1, 0, [0], b"")
            await coordinator.next()
            running.cancel()
        assert coordinator.came.empty()
        async with asyncio.timeout(5):
            while not node.desks[0].is_closed:
                await asyncio.sleep(0.001)


async def test_who_was_deposed_gets_no_desk() -> None:
    async with serving() as node, session() as http:
        async with linked(http, node, Coordinator(), Term("j", 7, 2)):
            with pytest.raises(Overtaken):
                await Coordinator().link(http, node, Term("j", 7, 1)).connect(CONTEXT, b"")
        assert len(node.desks) == 1


async def test_the_token_comes_first() -> None:
    async with serving() as node, session() as http:
        with pytest.raises(DataUnavailable, match="HTTP 401"):
            await Coordinator().link(http, node, token="guessed").connect(CONTEXT, b"")
        async with http.get(f"{node.address}/v1/rounds/..%2f?life=x") as answer:
            assert answer.status == 401
        for path, status in (
            ("/v1/rounds/-?life=1&fence=1", 400),
            ("/v1/rounds/j?life=1&fence=1e3", 400),
            ("/v1/rounds/j?fence=1", 400),
            (f"/v1/rounds/j?life=1&fence={'9' * 30}", 400),
            ("/v1/rounds/j?life=1&fence=1", 426),
        ):
            async with http.get(node.address + path, headers=bearer(TOKEN)) as answer:
                assert answer.status == status, path
        assert not node.desks


HOSTILE = {
    "nothing": b"",
    "a length alone": struct.pack("<I", 4),
    "a length beyond it": struct.pack("<I", 2**32 - 1) + b"{}",
    "no JSON": struct.pack("<I", 2) + b"{]",
    "no UTF-8": struct.pack("<I", 2) + b"\xff\xfe",
    "deep": struct.pack("<I", 200_000) + b"[" * 200_000,
    "unknown": struct.pack("<I", 14) + b'{"is":"other"}',
    "an answer": packed(Answer(1, 1, [0], [0])),
    "parts twice": packed(Ask(1, 1, [3, 3]), [b"q"]),
    "parts backwards": packed(Ask(1, 1, [3, 2])),
    "no parts": packed(Ask(1, 1, [])),
    "parts below zero": packed(Ask(1, 1, [-1])),
    "parts beyond all": packed(Ask(1, 1, [1 << 40])),
    "a round below zero": packed(Ask(-1, 1, [0])),
    "a body to forget": packed(Forget(1, 1), [b"x"]),
    "no columns": packed(Context("d@1", [])),
    "a head too long": packed(Ask(1, 1, list(range(400_000)))),
}


@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE.keys())
async def test_who_says_what_is_no_message_is_hung_up_on(message: bytes) -> None:
    with pytest.raises(BadMessage):
        for_node(message)
    async with serving() as node, session() as http:
        url = f"{node.address}/v1/rounds/j?life=1&fence=1"
        async with http.ws_connect(url, headers=bearer(TOKEN)) as socket:
            await socket.send_bytes(message)
            async with asyncio.timeout(5):
                ended = await socket.receive()
            assert (ended.type, ended.data) == (aiohttp.WSMsgType.CLOSE, 1008)
        assert node.desks[0].told == []
        assert node.desks[0].is_closed


async def test_text_and_giants_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkd.net.round_routes.MESSAGE_BYTES_MAX", 1 << 16)
    async with serving() as node, session() as http:
        url = f"{node.address}/v1/rounds/j?life=1&fence=1"
        async with http.ws_connect(url, headers=bearer(TOKEN)) as socket:
            await socket.send_str("hello")
            assert (await socket.receive()).data == 1008
        async with http.ws_connect(url, headers=bearer(TOKEN)) as socket:
            await socket.send_bytes(bytes(1 << 17))
            assert (await socket.receive()).data == 1009
        assert [desk.told for desk in node.desks] == [[], []]


def test_a_node_is_believed_no_more_than_a_coordinator() -> None:
    good = packed(Answer(1, 2, [0, 3], [2, 0, 1]), [b"ab", b"", b"c"])
    assert from_node(good) == (Answer(1, 2, [0, 3], [2, 0, 1]), [b"ab", b"", b"c"])
    assert from_node(packed(Failed(1, 2, "no"))) == (Failed(1, 2, "no"), [])
    for bad in (good[:-1], good + b"x", packed(Failed(1, 2, "no"), [b"x"]), packed(Answer(1, 1, [0], [-1, 1]))):
        with pytest.raises(BadMessage):
            from_node(bad)
    with pytest.raises(BadMessage):
        from_node(packed(Ask(1, 1, [0])))


async def test_what_nobody_takes_stays_in_order_until_it_is_withdrawn() -> None:
    class Slow:
        def __init__(self) -> None:
            self.sent: list[bytes] = []
            self.may = asyncio.Event()

        async def send_bytes(self, data: bytes) -> None:
            await self.may.wait()
            self.sent.append(data)

    box, slow = outbox.Outbox(), Slow()
    async with asyncio.TaskGroup() as group:
        group.create_task(box.empty_into(slow))
        for name in ("a", "b", "c"):
            box.put(name.encode(), name)
        await asyncio.sleep(0)
        assert box.withdraw("b")
        assert not box.withdraw("b")
        slow.may.set()
        while len(slow.sent) < 2:
            await asyncio.sleep(0)
        box.close()
        box.put(b"d")
    assert slow.sent == [b"a", b"c"]
    assert len(packed(Ask(1, 1, list(range(65536))))) <= round_frames.HEAD_BYTES_MAX
