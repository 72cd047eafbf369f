"""One connection against servers that lie, stall, trickle or leave, and the clock by which a session is judged.

The servers here are scripts of bytes: what no real server can be made to send.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from zkd.errors import OutcomeUnknown, Unavailable
from zkd.zk import Session, State, StateChange, states
from zkd.zk.hosts import parse_hosts
from zkd.zk.link import Link
from zkd.zk.states import Happening, Machine, next_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


SESSION = 0x1234
STAT = bytes(68)


def frame(body: bytes) -> bytes:
    return struct.pack("!i", len(body)) + body


def greeting(session: int = SESSION, timeout_ms: int = 1200) -> bytes:
    return frame(struct.pack("!iiqi", 0, timeout_ms, session, 16) + bytes(17))


def reply(xid: int, body: bytes = b"", *, code: int = 0, zxid: int = 5) -> bytes:
    return frame(struct.pack("!iqi", xid, zxid, code) + body)


async def request(reader: asyncio.StreamReader) -> tuple[int, int]:
    """xid and opcode of the next request that is not a ping."""
    while True:
        body = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
        xid, opcode = struct.unpack_from("!ii", body)
        if opcode != 11:
            return xid, opcode


async def hello(reader: asyncio.StreamReader) -> None:
    await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))


@contextlib.asynccontextmanager
async def serving(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server that treats every connection by this script, and its connect string."""
    tasks: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await answer(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.get_running_loop().create_task(carry(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


HOSTILE = {
    "a frame of negative length": struct.pack("!i", -5) + bytes(40),
    "a frame of 2 GB": struct.pack("!i", 2**31 - 1),
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a frame too short for a reply": frame(bytes(5)),
    "a reply that nobody asked for": reply(4711, STAT),
    "a reply out of order": reply(2, struct.pack("!i", 0) + STAT),
    "a ping that was not sent": reply(-2) + reply(-2) + reply(-2) + reply(-2),
    "an xid that does not exist": reply(-77),
    "a znode longer than its frame": reply(1, struct.pack("!i", 10_000) + STAT),
    "a znode without a stat": reply(1, struct.pack("!i", 0)),
    "an event with a path that is not text": reply(-1, struct.pack("!iii2s", 1, 3, 2, b"\xff\xff")),
    "an event longer than its frame": reply(-1, struct.pack("!iii", 1, 3, 999)),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_bytes_that_no_server_sends_end_the_connection_with_a_reason(what: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hello(reader)
        writer.write(greeting())
        await request(reader)
        writer.write(HOSTILE[what])
        await reader.read()

    async with serving(answer) as hosts, Session(hosts) as session:
        await session.connected(5)
        told: list[str] = []
        session.subscribe(lambda change: told.append(session.fault.detail if session.fault else ""))
        with pytest.raises(Unavailable, match="no ZooKeeper server sends"):
            await session.get("/a", timeout_s=3)
        assert "no ZooKeeper server sends" in told[0]


async def test_a_hostile_greeting_does_not_connect() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hello(reader)
        writer.write(frame(struct.pack("!iiqi", 0, 1000, SESSION, 2**30)))
        await reader.read()

    async with serving(answer) as hosts, Session(hosts) as session:
        with pytest.raises(Unavailable, match="no ZooKeeper server sends"):
            await session.connected(0.3)


async def test_replies_may_come_in_any_pieces() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hello(reader)
        writer.write(greeting())
        xids = [(await request(reader))[0] for _ in range(3)]
        replies = b"".join(reply(xid, struct.pack("!i", 3) + f"{xid:03}".encode() + STAT) for xid in xids)
        for number in range(len(replies)):
            writer.write(replies[number : number + 1])
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    async with serving(answer) as hosts, Session(hosts, timeout_s=6) as session:
        await session.connected(5)
        results = await asyncio.gather(*(session.get("/a") for _ in range(3)))
        assert [result.data for result in results] == [b"001", b"002", b"003"]


async def test_a_large_reply_costs_time_in_proportion_to_its_size() -> None:
    size = 24 * 1024 * 1024

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hello(reader)
        writer.write(greeting(timeout_ms=6000))
        xid, _ = await request(reader)
        writer.write(reply(xid, struct.pack("!i", size) + bytes(size) + STAT))
        await reader.read()

    async with serving(answer) as hosts, Session(hosts) as session:
        await session.connected(5)
        async with asyncio.timeout(2):
            assert len((await session.get("/a")).data) == size


async def test_pending_requests_fail_in_the_turn_in_which_the_connection_is_lost() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hello(reader)
        writer.write(greeting())
        await request(reader)

    async with serving(answer) as hosts, Session(hosts) as session:
        await session.connected(5)
        seen: list[State] = []

        async def failing(awaitable: Awaitable[object], kind: type[Exception]) -> None:
            with pytest.raises(kind):
                await awaitable
            seen.append(session.state)

        await asyncio.gather(
            failing(session.get("/a"), Unavailable),
            failing(session.set("/a", b"", 0), OutcomeUnknown),
            failing(session.create("/b"), OutcomeUnknown),
        )
        assert seen == [State.SUSPENDED] * 3  # the state is told before the failures


# --- silence ------------------------------------------------------------------------------------------


async def test_a_server_that_falls_silent_is_left_before_the_session_is_in_doubt() -> None:
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await hello(reader)
        writer.write(greeting(timeout_ms=2400))  # and never a word again
        await reader.read()

    async with serving(answer) as hosts, Session(hosts) as session:
        await session.connected(5)
        loop = asyncio.get_running_loop()
        start, changes = loop.time(), asyncio.Queue[StateChange]()
        session.subscribe(changes.put_nowait)
        async with asyncio.timeout(5):
            change = await changes.get()
        assert change.state is State.SUSPENDED
        share = (loop.time() - start) / session.timeout_s
        assert 0.5 < share < 0.67  # a ping at 1/4, an answer owed for 1/3
        async with asyncio.timeout(3):
            assert (await changes.get()).state is State.CONNECTED
        assert (connections, session.session_id) == (2, SESSION)


async def test_a_session_is_in_doubt_two_thirds_after_the_sending_of_what_was_last_answered() -> None:
    accepted = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        if accepted == 1:
            await hello(reader)
            writer.write(greeting())

    async with serving(answer) as hosts, Session(hosts) as session:
        changes = asyncio.Queue[tuple[State, float]]()
        clock = states.boottime
        session.subscribe(lambda change: changes.put_nowait((change.state, clock())))
        start = clock()
        found: dict[State, float] = {}
        async with asyncio.timeout(4):
            while State.UNKNOWN not in found:
                state, at = await changes.get()
                found[state] = at - start
        assert list(found) == [State.CONNECTED, State.SUSPENDED, State.UNKNOWN]
        assert 0.75 <= found[State.UNKNOWN] < 1.15  # 2/3 of 1.2 s, and well before all of it
        assert session.session_id == SESSION  # only a server may say that it is over


async def test_a_late_answer_counts_from_when_it_was_asked() -> None:
    accepted = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        if accepted == 1:
            await hello(reader)
            writer.write(greeting(timeout_ms=2400))
            xid, _ = await request(reader)
            await asyncio.sleep(0.7)
            writer.write(reply(xid, struct.pack("!i", 0) + STAT))

    async with serving(answer) as hosts, Session(hosts) as session:
        await session.connected(5)
        doubted = asyncio.Event()
        session.subscribe(lambda change: doubted.set() if change.state is State.UNKNOWN else None)
        start = states.boottime()
        await session.get("/a")
        async with asyncio.timeout(4):
            await doubted.wait()
        assert 1.6 <= states.boottime() - start < 2.1  # 2/3 of 2.4 s; from its coming it would be 2.3


async def test_an_answer_ends_the_doubt_without_a_new_connection() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hello(reader)
        writer.write(greeting())
        xid, _ = await request(reader)
        # A reply that takes longer than the session's timeout to come, but never stops coming.
        whole = reply(xid, struct.pack("!i", 0) + STAT)
        for number in range(len(whole)):
            writer.write(whole[number : number + 1])
            await asyncio.sleep(1.3 / len(whole))
        while True:
            body = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
            writer.write(reply(struct.unpack_from("!i", body)[0]))

    async with serving(answer) as hosts, Session(hosts) as session:
        changes: list[tuple[State, int]] = []
        session.subscribe(lambda change: changes.append((change.state, change.epoch)))
        await session.connected(5)
        await session.get("/a", timeout_s=5)
        await session.connected(5)
        assert changes == [(State.CONNECTED, 1), (State.UNKNOWN, 1), (State.CONNECTED, 1)]


async def test_doubt_is_not_a_matter_of_timers() -> None:
    """A machine that slept: no timer has fired yet, and still nothing may be sent or believed."""
    slept = 0.0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hello(reader)
        writer.write(greeting(timeout_ms=30_000))
        await reader.read()

    async with serving(answer) as hosts, Session(hosts, clock=lambda: states.boottime() + slept) as session:
        await session.connected(5)
        assert session.state is State.CONNECTED
        slept = 25.0
        assert session.state is State.UNKNOWN
        with pytest.raises(Unavailable, match="unknown"):
            await session.set("/a", b"", 0)


async def test_a_loop_that_was_stuck_reads_what_lies_there_before_it_judges() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hello(reader)
        writer.write(greeting())
        xid, _ = await request(reader)
        writer.write(reply(xid, struct.pack("!i", 0) + STAT))
        while True:
            body = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
            writer.write(reply(struct.unpack_from("!i", body)[0]))

    late = 0.0
    async with serving(answer) as hosts, Session(hosts, clock=lambda: states.boottime() + late) as session:
        await session.connected(5)
        pending = asyncio.create_task(session.get("/a", timeout_s=5))
        await asyncio.sleep(0)
        late = 0.5  # more than a third of 1.2 s, less than two thirds
        session._link._on_timer()
        await pending
        assert session.epoch == 1


async def test_an_address_that_swallows_packets_is_passed_over() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hello(reader)
        writer.write(greeting())
        await reader.read()

    with socket.socket() as full, contextlib.ExitStack() as others:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # its backlog is full: the kernel drops further SYNs
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        async with serving(answer) as hosts:
            nowhere_first = next(seed for seed in range(9) if random.Random(seed).sample([0, 1], 2) == [0, 1])
            hosts = f"127.0.0.1:{full.getsockname()[1]},{hosts}"
            async with Session(hosts, timeout_s=3, rng=random.Random(nowhere_first)) as session:
                await session.connected(1.5)  # a sixth of 3 s is its limit


# --- back-off, states, hosts --------------------------------------------------------------------------


async def test_a_server_that_flaps_is_not_hammered() -> None:
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await hello(reader)
        writer.write(greeting())
        await writer.drain()

    async with serving(answer) as hosts, Session(hosts) as session:
        await session.connected(5)
        await asyncio.sleep(1.0)
        assert 2 <= connections <= 8


def test_back_off_grows_to_two_seconds_and_is_jittered() -> None:
    def link(seed: int) -> Link:
        return Link("a", timeout_s=6, auth=(), tls=None, resume=None, clock=states.boottime, rng=random.Random(seed))

    waits = [link(0)._backoff(failures) for failures in range(1, 40)]
    assert 0.025 <= waits[0] <= 0.05
    assert all(1.0 <= wait <= 2.0 for wait in waits[6:])
    assert len({link(seed)._backoff(9) for seed in range(10)}) == 10


def test_the_server_just_lost_is_tried_last() -> None:
    link = Link("a,b,c", timeout_s=6, auth=(), tls=None, resume=None, clock=states.boottime, rng=random.Random(1))
    orders = [link._order(("b", 2181)) for _ in range(50)]
    assert {order[-1] for order in orders} == {("b", 2181)}
    assert {order[0][0] for order in orders} == {"a", "c"}


def test_a_pair_of_state_and_happening_that_cannot_be_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="closed cannot be established"):
        next_state(State.CLOSED, Happening.ESTABLISHED)
    assert next_state(State.SUSPENDED, Happening.DENIED) is State.EXPIRED


def test_changes_reach_everybody_in_one_order_even_if_a_callback_causes_the_next() -> None:
    machine = Machine()
    first: list[State] = []
    second: list[State] = []

    def lose(change: StateChange) -> None:
        first.append(change.state)
        if change.state is State.CONNECTED:
            machine.step(Happening.LOST, 1, SESSION)

    machine.subscribe(lose)
    unsubscribe = machine.subscribe(lambda change: second.append(change.state))
    machine.step(Happening.ESTABLISHED, 1, SESSION)
    assert first == second == [State.CONNECTED, State.SUSPENDED]
    unsubscribe()
    machine.step(Happening.SILENT, 1, SESSION)
    assert second == [State.CONNECTED, State.SUSPENDED]


@pytest.mark.parametrize(
    ("hosts", "servers"),
    [
        ("a", [("a", 2181)]),
        ("a:1, b:2", [("a", 1), ("b", 2)]),
        ("[::1]:5,[fe80::1]", [("::1", 5), ("fe80::1", 2181)]),
    ],
)
def test_connect_strings(hosts: str, servers: list[tuple[str, int]]) -> None:
    assert parse_hosts(hosts) == servers


@pytest.mark.parametrize("hosts", ["", "a:x", "a:0", "a:70000", "a:1/chroot", ",a"])
def test_connect_strings_that_are_refused(hosts: str) -> None:
    with pytest.raises(ValueError, match="expected host:port"):
        parse_hosts(hosts)
