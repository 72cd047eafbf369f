"""Hostile and clumsy clients harm nobody but themselves: the server goes on, and keeps nothing of them."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import struct
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from tests.zk_server.raw_client import RawClient, decode, encode
from zkd.zk.server import EmbeddedServer, serve, wire
from zkd.zk.server.wire import CONNECT, INT, MAX_FRAME, REQUEST, Op

if TYPE_CHECKING:
    from collections.abc import Callable

HANDSHAKE = wire.buffer(CONNECT.pack(0, 0, 10_000, 0) + wire.buffer(bytes(16)) + b"\0")


async def connected(server: EmbeddedServer) -> RawClient:
    client = RawClient(server.port)
    await asyncio.to_thread(client.connect)
    return client


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def is_serving(server: EmbeddedServer) -> bool:
    """A client of good will is served, and afterwards no connection is left."""
    client = await connected(server)
    reply = await asyncio.to_thread(client.ask, *encode("exists", "/"))
    client.close()
    await until(lambda: not server.connections and not server.core.peers)
    return reply.error == 0


async def send_and_vanish(server: EmbeddedServer, data: bytes) -> None:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(data)
        await writer.drain()
        await asyncio.wait_for(reader.read(1), 0.02)
    except (OSError, TimeoutError):
        pass
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\xff" * 10_000,
        b"\0" * 10_000,
        INT.pack(-1),
        INT.pack(-(2**31)),
        INT.pack(0),
        INT.pack(4) + b"abcd",
        INT.pack(2**31 - 1) + b"x" * 1000,
        INT.pack(MAX_FRAME + 1) + b"x" * 1000,
        INT.pack(MAX_FRAME) + b"x" * 1000,
        b"\0\0",
        HANDSHAKE[:20],
        HANDSHAKE[:-3],
        HANDSHAKE + INT.pack(-1),
        HANDSHAKE + INT.pack(0),
        HANDSHAKE + INT.pack(7) + b"1234567",
        HANDSHAKE + INT.pack(MAX_FRAME + 1),
        HANDSHAKE + wire.buffer(REQUEST.pack(1, Op.AUTH)),
        HANDSHAKE + wire.buffer(REQUEST.pack(1, Op.CREATE) + INT.pack(2**31 - 1)),
        HANDSHAKE + wire.buffer(REQUEST.pack(1, Op.SET_WATCHES) + bytes(8) + INT.pack(2**31 - 1)),
        HANDSHAKE + wire.buffer(REQUEST.pack(1, Op.MULTI) + b"\xff" * 500),
        HANDSHAKE + HANDSHAKE * 50,
        b"ruok" * 100,
        b"mntr",
        b"xxxx",
    ],
)
async def test_bad_bytes_end_at_most_their_own_connection(embedded: EmbeddedServer, data: bytes) -> None:
    await send_and_vanish(embedded, data)
    assert await is_serving(embedded)


async def test_random_bytes_and_mutated_frames(embedded: EmbeddedServer) -> None:
    rng = random.Random(1)
    good = [
        wire.buffer(REQUEST.pack(number, encode(*step)[0]) + encode(*step)[1])
        for number, step in enumerate(
            [
                ("create", "/a", b"x", 0),
                ("multi", [("create", "/b", b"", 0), ("delete", "/b", 0)]),
                ("add_watch", "/", 1),
                ("set_watches", 0, ["/a"], ["/b"], ["/"], ["/p"], ["/r"]),
                ("multi_read", [("get", "/a"), ("children", "/")]),
                ("set_acl", "/a", list(wire.OPEN_ACL), -1),
                ("ttl", "/t", b"", 5, 1000),
            ]
        )
    ]
    for _ in range(300):
        frames = bytearray(HANDSHAKE + b"".join(rng.choices(good, k=4)))
        for _ in range(rng.randrange(1, 12)):
            frames[rng.randrange(len(HANDSHAKE), len(frames))] = rng.choice([0, 255, rng.randrange(256)])
        await send_and_vanish(embedded, bytes(frames[: rng.randrange(10, len(frames) + 1)]))
    assert await is_serving(embedded)


async def test_frames_may_come_a_byte_at_a_time(embedded: EmbeddedServer) -> None:
    reader, writer = await asyncio.open_connection(embedded.host, embedded.port)
    for byte in HANDSHAKE + wire.buffer(REQUEST.pack(5, Op.EXISTS) + wire.text("/") + b"\0"):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    await reader.readexactly(INT.unpack(await reader.readexactly(4))[0])
    reply = await reader.readexactly(INT.unpack(await reader.readexactly(4))[0])
    assert INT.unpack_from(reply)[0] == 5
    writer.close()
    await writer.wait_closed()


async def test_client_killed_in_mid_frame_leaves_nothing(embedded: EmbeddedServer) -> None:
    client = await connected(embedded)
    client.socket.sendall(INT.pack(500_000) + b"x" * 300_000)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    client.close()
    assert await is_serving(embedded)


async def test_client_that_does_not_read_is_not_computed_for(embedded: EmbeddedServer) -> None:
    client = await connected(embedded)
    assert (await asyncio.to_thread(client.ask, *encode("create", "/big", b"x" * 1_000_000, 0))).error == 0
    op, body = encode("get", "/big")
    wanted = 3000  # 3 GB of answers to 90 kB of requests
    client.socket.sendall(wire.buffer(REQUEST.pack(9, op) + body) * wanted)
    (connection,) = embedded.connections
    await until(lambda: connection.transport.get_write_buffer_size() > 0)
    other = await connected(embedded)
    assert (await asyncio.to_thread(other.ask, *encode("exists", "/"))).error == 0  # others are served
    assert connection.transport.get_write_buffer_size() < 4_000_000
    assert connection.peer.unsent < 4_000_000
    assert connection.peer.received < 100
    for _ in range(40):
        assert (await asyncio.to_thread(client.reply)).error == 0  # and goes on as it reads
    client.close()
    other.close()


async def test_watcher_that_does_not_read_is_cut_off(embedded: EmbeddedServer, monkeypatch: Any) -> None:
    monkeypatch.setattr(serve, "MAX_UNSENT", 1_000_000)
    watcher, writer = await connected(embedded), await connected(embedded)
    await asyncio.to_thread(watcher.ask, *encode("add_watch", "/", 1))
    name = "n" * 1000
    await asyncio.to_thread(writer.ask, *encode("create", f"/{name}", b"", 0))
    body = encode("multi", [("set", f"/{name}", b"", -1)] * 900)
    for _ in range(20):
        reply = await asyncio.to_thread(writer.ask, *body)
        assert reply.error == 0
    await until(lambda: len(embedded.connections) == 1)
    assert not embedded.core.watches.data.by_watcher
    watcher.close()
    writer.close()


async def test_ten_thousand_watches_fire_and_go(embedded: EmbeddedServer) -> None:
    watcher, writer = await connected(embedded), await connected(embedded)
    count = 10_000

    def watch() -> None:
        for number in range(count):
            watcher.post(*encode("exists", f"/w{number}", True))
        for _ in range(count):
            assert watcher.reply().error == -101

    def write() -> None:
        for start in range(0, count, 500):
            steps = [("create", f"/w{number}", b"", 0) for number in range(start, start + 500)]
            assert writer.ask(*encode("multi", steps)).error == 0

    await asyncio.to_thread(watch)
    assert len(embedded.core.watches.data) == count
    await asyncio.to_thread(write)
    await asyncio.to_thread(watcher.ask, Op.PING)
    assert [event.path for event in watcher.take_events()] == [f"/w{number}" for number in range(count)]
    assert not embedded.core.watches.data.by_path
    assert not embedded.core.watches.data.by_watcher
    watcher.close()
    writer.close()


async def test_hundred_thousand_children_are_listed(embedded: EmbeddedServer) -> None:
    client = await connected(embedded)
    count = 100_000

    def fill() -> list[str]:
        client.ask(*encode("create", "/many", b"", 0))
        for start in range(0, count, 5000):
            steps = [("create", f"/many/{number}", b"", 0) for number in range(start, start + 5000)]
            assert client.ask(*encode("multi", steps)).error == 0
        names: list[str] = decode("children", client.ask(*encode("children", "/many")))[0]
        return names

    assert len(await asyncio.to_thread(fill)) == count
    reply = await asyncio.to_thread(client.ask, *encode("count", "/"))
    assert decode("count", reply)[0] == count + 4
    client.close()


async def test_a_path_of_half_a_million_parts_is_only_refused(embedded: EmbeddedServer) -> None:
    client = await connected(embedded)
    for step in (("set", "/a" * 500_000, b"", -1), ("create", "/a" * 400_000, b"", 0), ("exists", "/" * 900_000, True)):
        assert (await asyncio.to_thread(client.ask, *encode(*step))).error == -101
    assert (await asyncio.to_thread(client.ask, *encode("set", "/a/." * 200_000, b"", -1))).error == -8
    client.close()
    await until(lambda: not embedded.connections)
    assert not embedded.core.watches.data.by_path


async def test_nothing_is_left_of_connections_and_sessions_that_ended() -> None:
    now = [0.0]
    async with EmbeddedServer(tick_s=60.0, clock=lambda: now[0], max_timeout_s=600) as server:
        watched: list[weakref.ref[Any]] = []
        for _ in range(200):
            client = await connected(server)
            client.post(*encode("create", f"/e{client.session_id}", b"", 1))
            client.post(*encode("add_watch", "/", 1))
            await asyncio.to_thread(client.ask, *encode("exists", "/x", True))
            watched += [weakref.ref(connection) for connection in server.connections]
            client.close()
        await until(lambda: not server.connections)
        core = server.core
        assert len(core.sessions.by_id) == 200
        assert not core.peers
        for table in (core.watches.data, core.watches.children):
            assert not table.by_path
            assert not table.by_watcher
        now[0] = 10_000.0
        core.tick()
        assert not core.sessions.by_id
        assert not core.tree.ephemerals
        assert len(core.tree) == 4
        assert not core.dirty
        gc.collect()
        assert [ref() for ref in watched if ref() is not None] == []


def test_all_the_same_on_uvloop() -> None:
    async def serve_one() -> None:
        async with EmbeddedServer() as server:
            for data in (b"\xff" * 100, HANDSHAKE[:20], HANDSHAKE + INT.pack(MAX_FRAME) + b"x" * 70_000):
                await send_and_vanish(server, data)
            await test_client_that_does_not_read_is_not_computed_for(server)
            client = await connected(server)
            server.partition()
            server.partition()
            server.heal()
            server.heal()
            assert (await asyncio.to_thread(client.ask, *encode("exists", "/"))).error == 0
            client.close()
            assert await is_serving(server)

    uvloop.run(serve_one())
