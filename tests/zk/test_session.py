"""The session's requests on a real server: what each gives, what each refusal says, what cancelling leaves."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
import uvloop

from zkd.errors import (
    AuthFailed,
    BadArguments,
    BadVersion,
    MultiFailed,
    NoAuth,
    NoChildrenForEphemerals,
    NodeExists,
    NoNode,
    NotEmpty,
    OutcomeUnknown,
    SessionClosed,
    SessionExpired,
    TooLarge,
    Unavailable,
)
from zkd.zk import (
    CREATOR_ALL,
    WORLD_ALL,
    WORLD_READ,
    Check,
    Create,
    Created,
    Delete,
    Event,
    EventType,
    Session,
    SetData,
    Stat,
    State,
    StateChange,
    Znode,
    end_session,
    ensure_path,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.faults.proxy import Proxy
    from zkd.zk.apache import ApacheServer

CREATE, GET, SET, MULTI = 15, 4, 5, 14


@pytest.fixture
async def zk(apache: ApacheServer, zk_root: str) -> AsyncIterator[Session]:
    async with Session(apache.connect_string, timeout_s=10) as session:
        await session.connected(10)
        await session.create(zk_root)
        yield session


async def reached(session: Session, state: State, limit_s: float = 8.0) -> None:
    """Return when the session has been told that it is, or was meanwhile, in this state."""
    there = asyncio.Event()
    unsubscribe = session.subscribe(lambda change: there.set() if change.state is state else None)
    try:
        async with asyncio.timeout(limit_s):
            if session.state is not state:
                await there.wait()
    finally:
        unsubscribe()


async def test_a_znode_lives_and_dies(zk: Session, zk_root: str) -> None:
    path, stat = await zk.create(f"{zk_root}/a", b"one")
    assert path == f"{zk_root}/a"
    assert stat is not None
    assert (stat.version, stat.data_length, stat.ephemeral_owner) == (0, 3, 0)
    assert await zk.get(path) == Znode(b"one", stat)
    changed = await zk.set(path, b"two!", 0)
    assert (changed.version, changed.data_length, changed.czxid) == (1, 4, stat.czxid)
    assert await zk.exists(path) == changed
    assert await zk.children(zk_root) == ["a"]
    names, parent = await zk.children_stat(zk_root)
    assert (names, parent.num_children) == (["a"], 1)
    await zk.delete(path, 1)
    assert await zk.exists(path) is None


async def test_refusals_say_what_and_where(zk: Session, zk_root: str) -> None:
    missing = f"{zk_root}/missing"
    with pytest.raises(NoNode) as caught:
        await zk.get(missing)
    assert caught.value.path == missing
    with pytest.raises(NodeExists):
        await zk.create(zk_root)
    with pytest.raises(BadVersion):
        await zk.set(zk_root, b"", 5)
    await zk.create(f"{zk_root}/mine", ephemeral=True)
    with pytest.raises(NotEmpty):
        await zk.delete(zk_root, -1)
    with pytest.raises(NoChildrenForEphemerals):
        await zk.create(f"{zk_root}/mine/child")
    with pytest.raises(BadArguments):
        await zk.create("no-slash")
    await zk.create(f"{zk_root}/locked", acl=WORLD_READ)
    with pytest.raises(NoAuth):
        await zk.set(f"{zk_root}/locked", b"", -1)


async def test_kinds_of_znode(zk: Session, zk_root: str) -> None:
    first = await zk.create(f"{zk_root}/n-", sequential=True)
    second = await zk.create(f"{zk_root}/n-", sequential=True, ephemeral=True)
    assert first.path < second.path
    assert second.stat is not None
    assert second.stat.ephemeral_owner == zk.session_id
    assert await zk.ephemerals(zk_root) == [second.path]
    await zk.create(f"{zk_root}/container", container=True)
    await zk.create(f"{zk_root}/brief", ttl_ms=100)
    await zk.create(f"{zk_root}/container/child")
    gone = asyncio.Event()
    assert await zk.exists(f"{zk_root}/brief", watch=lambda event: gone.set()) is not None
    await zk.delete(f"{zk_root}/container/child", -1)
    container_gone = asyncio.Event()
    if await zk.exists(f"{zk_root}/container", watch=lambda event: container_gone.set()) is None:
        container_gone.set()
    async with asyncio.timeout(10):
        await gone.wait()
        await container_gone.wait()


async def test_a_transaction_gives_what_each_operation_gave(zk: Session, zk_root: str) -> None:
    results = await zk.multi(
        [
            Create(f"{zk_root}/a", b"1"),
            SetData(f"{zk_root}/a", b"22", 0),
            Check(f"{zk_root}/a", 1),
            Create(f"{zk_root}/n-", sequential=True),
            Delete(f"{zk_root}/a", 1),
            Create(f"{zk_root}/c", container=True),
            Create(f"{zk_root}/t", ttl_ms=60_000),
        ]
    )
    made, changed, checked, numbered, deleted, container, brief = results
    assert isinstance(made, Created)
    assert made.path == f"{zk_root}/a"
    assert isinstance(changed, Stat)
    assert (changed.version, changed.data_length) == (1, 2)
    assert checked is None
    assert deleted is None
    assert isinstance(numbered, Created)
    assert numbered.path.startswith(f"{zk_root}/n-0")
    assert isinstance(container, Created)
    assert isinstance(brief, Created)
    assert await zk.exists(numbered.path) is not None
    assert await zk.multi([]) == []


async def test_a_transaction_that_fails_names_its_culprit_and_does_nothing(zk: Session, zk_root: str) -> None:
    with pytest.raises(MultiFailed) as caught:
        await zk.multi([Create(f"{zk_root}/a"), Check(zk_root, 9), Create(f"{zk_root}/b")])
    assert (caught.value.index, caught.value.path) == (1, zk_root)
    assert isinstance(caught.value.cause, BadVersion)
    assert await zk.children(zk_root) == []


async def test_many_are_read_at_once(zk: Session, zk_root: str) -> None:
    count = 300  # more than one packet's worth
    await zk.multi([Create(f"{zk_root}/{number}", str(number).encode()) for number in range(count)])
    paths = [f"{zk_root}/{number}" for number in range(count)]
    paths.insert(150, f"{zk_root}/missing")
    results = await zk.get_many(paths)
    assert isinstance(results.pop(150), NoNode)
    assert [result.data for result in results if isinstance(result, Znode)] == [
        str(number).encode() for number in range(count)
    ]
    lists = await zk.children_many([zk_root, f"{zk_root}/0", f"{zk_root}/missing"])
    assert isinstance(lists[0], list)
    assert len(lists[0]) == count
    assert lists[1] == []
    assert isinstance(lists[2], NoNode)
    assert await zk.get_many([]) == []


async def test_rarely_used_operations(zk: Session, zk_root: str) -> None:
    await zk.create(f"{zk_root}/a")
    await zk.create(f"{zk_root}/a/b")
    await zk.sync(zk_root)
    assert await zk.count_descendants(zk_root) == 2
    acl, stat = await zk.get_acl(zk_root)
    assert (acl, stat.aversion) == (WORLD_ALL, 0)
    assert (await zk.set_acl(zk_root, WORLD_READ, 0)).aversion == 1
    assert (await zk.get_acl(zk_root))[0] == WORLD_READ
    with pytest.raises(NoAuth):
        await zk.set_acl(zk_root, WORLD_ALL, 1)  # not even by us: WORLD_READ allows no ADMIN
    assert ("ip", "127.0.0.1") in await zk.who_am_i()
    await ensure_path(zk, "/test-ensured/a/b/c")
    await ensure_path(zk, "/test-ensured/a/b/c")
    assert await zk.exists("/test-ensured/a/b/c") is not None


async def test_requests_are_carried_out_in_the_order_in_which_they_were_made(zk: Session, zk_root: str) -> None:
    writes = [zk.set(zk_root, str(number).encode(), number) for number in range(500)]
    stats = await asyncio.gather(*writes)  # each is conditional on the one before
    assert [stat.version for stat in stats] == list(range(1, 501))


async def test_one_turn_of_the_loop_is_one_packet(zk: Session, zk_root: str) -> None:
    connection = zk._link._connection
    assert connection is not None
    written = []
    transport = connection._transport

    class Counting:
        def write(self, data: bytes) -> None:
            written.append(len(data))
            assert transport is not None
            transport.write(data)

    connection._transport = Counting()  # type: ignore[assignment]
    await asyncio.gather(*(zk.get(zk_root) for _ in range(100)))
    connection._transport = transport
    assert len(written) == 1


async def test_more_requests_than_may_be_in_flight_wait_their_turn(zk: Session, zk_root: str) -> None:
    created = await asyncio.gather(*(zk.create(f"{zk_root}/{number}") for number in range(3000)))
    assert len(created) == 3000
    data = bytes(500_000)  # 20 MB: more than the bytes that may be in flight
    stats = await asyncio.gather(*(zk.set(f"{zk_root}/{number}", data, 0) for number in range(40)))
    assert {stat.data_length for stat in stats} == {500_000}


async def test_a_request_that_no_server_would_take_is_not_sent(zk: Session, zk_root: str) -> None:
    epoch = zk.epoch
    with pytest.raises(TooLarge, match="1048575"):
        await zk.set(zk_root, bytes(1_048_576), -1)
    with pytest.raises(TooLarge):
        await zk.multi([SetData(zk_root, bytes(400_000), -1) for _ in range(3)])
    envelope = 8 + 4 + len(zk_root) + 4 + 4  # xid, opcode; path; length; version
    largest = 1_048_575 - envelope
    await zk.set(zk_root, bytes(largest), -1)
    assert len((await zk.get(zk_root)).data) == largest
    assert zk.epoch == epoch


async def test_a_cancelled_request_leaves_nothing_behind(zk: Session, zk_root: str) -> None:
    heard: list[Event] = []
    reads = [asyncio.create_task(zk.get(zk_root, watch=heard.append)) for _ in range(50)]
    writes = [asyncio.create_task(zk.create(f"{zk_root}/{number}")) for number in range(50)]
    await asyncio.sleep(0)
    for task in (*reads, *writes):
        task.cancel()
    await asyncio.gather(*reads, *writes, return_exceptions=True)
    await zk.sync(zk_root)
    assert len(await zk.children(zk_root)) == 50  # they were sent, and are carried out
    connection = zk._link._connection
    assert connection is not None
    assert (len(connection._sent), connection._sent_bytes) == (0, 0)
    await zk.set(zk_root, b"", -1)
    await zk.sync(zk_root)
    assert heard == []
    assert len(zk._link.watches) == 0


# --- watches ------------------------------------------------------------------------------------------


async def test_one_shot_watches(zk: Session, zk_root: str) -> None:
    heard: list[tuple[str, Event]] = []
    path = f"{zk_root}/a"
    assert await zk.exists(path, watch=lambda event: heard.append(("exists", event))) is None
    await zk.children(zk_root, watch=lambda event: heard.append(("children", event)))
    await zk.create(path)
    await zk.get(path, watch=lambda event: heard.append(("get", event)))
    await zk.set(path, b"", -1)
    await zk.set(path, b"", -1)
    assert sorted(heard) == [
        ("children", Event(EventType.CHILDREN, zk_root)),
        ("exists", Event(EventType.CREATED, path)),
        ("get", Event(EventType.CHANGED, path)),
    ]


async def test_an_event_is_heard_before_the_reply_that_shows_its_change(zk: Session, zk_root: str) -> None:
    order: list[str] = []
    await zk.get(zk_root, watch=lambda event: order.append("event"))
    await zk.set(zk_root, b"new", -1)
    assert (await zk.get(zk_root)).data == b"new"
    order.append("reply")
    assert order == ["event", "reply"]


async def test_persistent_watches_hear_of_everything_until_removed(zk: Session, zk_root: str) -> None:
    below: list[Event] = []
    exact: list[Event] = []
    await zk.add_watch(zk_root, below.append, recursive=True)
    await zk.create(f"{zk_root}/a")
    await zk.add_watch(f"{zk_root}/a", exact.append)
    await zk.create(f"{zk_root}/a/b")
    await zk.set(f"{zk_root}/a/b", b"", -1)
    await zk.set(f"{zk_root}/a", b"", -1)
    await zk.delete(f"{zk_root}/a/b", -1)
    assert [(event.type, event.path.removeprefix(zk_root)) for event in below] == [
        (EventType.CREATED, "/a"),
        (EventType.CREATED, "/a/b"),
        (EventType.CHANGED, "/a/b"),
        (EventType.CHANGED, "/a"),
        (EventType.DELETED, "/a/b"),
    ]
    assert [event.type for event in exact] == [EventType.CHILDREN, EventType.CHANGED, EventType.CHILDREN]
    await zk.remove_watch(zk_root, below.append)
    below.clear()
    await zk.set(f"{zk_root}/a", b"", -1)
    assert below == []
    assert exact[-1].type is EventType.CHANGED


async def test_a_one_shot_watch_does_not_take_a_persistent_one_with_it(zk: Session, zk_root: str) -> None:
    lasting: list[Event] = []
    once: list[Event] = []
    await zk.add_watch(zk_root, lasting.append, recursive=True)
    await zk.get(zk_root, watch=once.append)
    for _ in range(3):
        await zk.set(zk_root, b"", -1)
    await zk.sync(zk_root)
    assert (len(lasting), len(once)) == (3, 1)


async def test_two_kinds_of_persistent_watch_on_one_path_are_refused(zk: Session, zk_root: str) -> None:
    await zk.add_watch(zk_root, print)
    with pytest.raises(ValueError, match="expected one kind"):
        await zk.add_watch(zk_root, print, recursive=True)


async def test_a_callback_that_raises_does_not_cost_the_others_their_event(zk: Session, zk_root: str) -> None:
    heard: list[Event] = []
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["exception"]))

    def broken(event: Event) -> None:
        raise RuntimeError("a bug")

    await zk.create(f"{zk_root}/a")
    await zk.get(zk_root, watch=broken)
    await zk.get(zk_root, watch=heard.append)
    await zk.get(f"{zk_root}/a", watch=heard.append)
    await zk.multi([SetData(zk_root, b"", -1), SetData(f"{zk_root}/a", b"", -1)])  # both events in one packet
    await zk.get(zk_root)
    assert sorted(event.path for event in heard) == [zk_root, f"{zk_root}/a"]
    assert [type(error) for error in reported] == [RuntimeError]
    assert zk.state is State.CONNECTED


# --- reconnection -------------------------------------------------------------------------------------


async def test_changes_of_state_are_told_in_order_and_watches_are_back_before_connected(
    proxy: Proxy, zk: Session, zk_root: str
) -> None:
    async with Session(proxy.connect_string, timeout_s=3) as session:
        changes: list[StateChange] = []
        session.subscribe(changes.append)
        await session.connected(5)
        first = session.session_id
        events: list[tuple[State, Event]] = []
        await session.add_watch(zk_root, lambda event: events.append((session.state, event)), recursive=True)
        await session.get(zk_root, watch=lambda event: events.append((session.state, event)))
        await proxy.refuse()
        proxy.cut_all()
        await reached(session, State.SUSPENDED)
        with pytest.raises(Unavailable):
            await session.get(zk_root)
        await zk.set(zk_root, b"changed meanwhile", -1)
        await proxy.accept()
        await session.connected(5)
        assert [(change.state, change.epoch) for change in changes] == [
            (State.CONNECTED, 1),
            (State.SUSPENDED, 1),
            (State.CONNECTED, 2),
        ]
        assert session.session_id == first
        await session.get(zk_root)
        # The one-shot watch replays the change; the persistent one hears of it by the same event.
        assert events == [(State.CONNECTED, Event(EventType.CHANGED, zk_root))] * 2
        events.clear()
        await zk.create(f"{zk_root}/new")
        await zk.set(zk_root, b"again", -1)
        await session.sync(zk_root)
        assert [event.type for _, event in events] == [EventType.CREATED, EventType.CHANGED]


async def test_an_expired_session_is_followed_by_a_new_one(proxy: Proxy, apache: ApacheServer, zk_root: str) -> None:
    async with Session(proxy.connect_string, timeout_s=3) as session:
        changes: list[StateChange] = []
        session.subscribe(changes.append)
        await session.connected(5)
        first = session.session_id
        heard: list[Event] = []
        await session.create(zk_root)
        await session.add_watch(zk_root, heard.append, recursive=True)
        await session.create(f"{zk_root}/mine", ephemeral=True)
        assert session.credentials is not None
        assert await end_session(apache.connect_string, session.credentials)
        await reached(session, State.EXPIRED)
        await session.connected(5)
        assert [(change.state, change.session_id == first) for change in changes[-2:]] == [
            (State.EXPIRED, True),
            (State.CONNECTED, False),
        ]
        with pytest.raises(SessionExpired):
            await session.get(zk_root, within=first)
        assert await session.exists(f"{zk_root}/mine", within=session.session_id) is None
        await session.set(zk_root, b"", -1)
        assert heard[-1].type is EventType.CHANGED  # watches came along


async def test_a_session_can_be_resumed_and_ended_by_its_credentials(apache: ApacheServer, zk_root: str) -> None:
    async with Session(apache.connect_string, timeout_s=10) as first:
        await first.connected(5)
        credentials = first.credentials
        assert credentials is not None
        await first.create(zk_root, ephemeral=True)
        async with Session(apache.connect_string, timeout_s=10, resume=credentials) as second:
            await second.connected(5)
            assert second.session_id == credentials.session_id
            stat = await second.exists(zk_root)
            assert stat is not None
            assert stat.ephemeral_owner == second.session_id
        # It ended with its second holder. The first holder is told by the server, not by a guess.
        await reached(first, State.EXPIRED)
    assert not await end_session(apache.connect_string, credentials)
    async with Session(apache.connect_string, timeout_s=10) as onlooker:
        await onlooker.connected(5)
        assert await onlooker.exists(zk_root) is None
    assert "password=..." in repr(credentials)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_writes_that_lose_their_reply_say_so_and_reads_do_not_pretend(
    proxy: Proxy, zk: Session, zk_root: str, moment: str
) -> None:
    async with Session(proxy.connect_string, timeout_s=3) as session:
        await session.connected(5)
        proxy.cut(CREATE, moment=moment)  # type: ignore[arg-type]
        write = asyncio.create_task(session.create(f"{zk_root}/a"))
        read = asyncio.create_task(session.get(zk_root))
        with pytest.raises(OutcomeUnknown):
            await write
        with pytest.raises(Unavailable):
            await read
        assert (await zk.exists(f"{zk_root}/a") is not None) == (moment == "after")


async def test_a_reply_that_never_comes_meets_its_deadline(proxy: Proxy, zk: Session, zk_root: str) -> None:
    async with Session(proxy.connect_string, timeout_s=6) as session:
        await session.connected(5)
        loop = asyncio.get_running_loop()
        proxy.black_hole()
        start = loop.time()
        results = await asyncio.gather(
            session.get(zk_root, timeout_s=0.1), session.set(zk_root, b"", -1, timeout_s=0.2), return_exceptions=True
        )
        assert [type(result) for result in results] == [Unavailable, OutcomeUnknown]
        assert 0.2 <= loop.time() - start < 1.0
        proxy.heal()
        assert (await session.get(zk_root, timeout_s=3)).stat.version >= 0


# --- credentials, closing -----------------------------------------------------------------------------


async def test_digest_credentials(apache: ApacheServer, zk_root: str) -> None:
    async with Session(apache.connect_string, auth=[("digest", b"ann:secret")]) as ann:
        await ann.connected(5)
        await ann.create(zk_root, b"private", acl=CREATOR_ALL)
        assert "digest" in [scheme for scheme, _ in await ann.who_am_i()]
        async with Session(apache.connect_string) as anyone:
            await anyone.connected(5)
            with pytest.raises(NoAuth):
                await anyone.get(zk_root)


async def test_credentials_that_the_server_refuses_are_final(apache: ApacheServer) -> None:
    async with Session(apache.connect_string, auth=[("no-such-scheme", b"x")]) as session:
        with pytest.raises(AuthFailed):
            await session.connected(5)
        assert session.state is State.CLOSED
        with pytest.raises(AuthFailed):
            await session.get("/")


async def test_after_closing_nothing_is_sent(apache: ApacheServer, zk_root: str) -> None:
    async with Session(apache.connect_string) as session:
        await session.connected(5)
        await session.create(zk_root, ephemeral=True)
    assert session.state is State.CLOSED
    with pytest.raises(SessionClosed):
        await session.get("/")
    async with Session(apache.connect_string) as onlooker:
        await onlooker.connected(5)
        assert await onlooker.exists(zk_root) is None  # ended at the server too


async def test_closing_answers_what_is_pending_and_takes_a_bounded_time(proxy: Proxy, apache: ApacheServer) -> None:
    loop = asyncio.get_running_loop()
    async with Session(proxy.connect_string, timeout_s=6) as session:
        await session.connected(5)
        answered = asyncio.create_task(session.get("/"))
        await asyncio.sleep(0)
    assert (await answered).stat.version >= 0
    async with Session(proxy.connect_string, timeout_s=6) as session:
        await session.connected(5)
        proxy.black_hole()
        pending = [asyncio.create_task(session.get("/")), asyncio.create_task(session.set("/", b"", 7))]
        await asyncio.sleep(0)
        start = loop.time()
    assert loop.time() - start < 2.0
    results = await asyncio.gather(*pending, return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable, OutcomeUnknown]


async def test_an_exception_leaves_the_block_as_it_is(apache: ApacheServer) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Session(apache.connect_string):
            raise ZeroDivisionError
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), Session("127.0.0.1:1"):
            await asyncio.Event().wait()


async def test_without_any_server_it_says_why() -> None:
    async with Session("127.0.0.1:1,127.0.0.1:2") as session:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:\d: .*(refused|Connect)"):
            await session.connected(0.3)
        assert session.state is State.CONNECTING
        with pytest.raises(Unavailable, match="connecting"):
            await session.get("/")


def test_it_runs_on_uvloop(apache: ApacheServer, zk_root: str) -> None:
    async def work() -> None:
        async with Session(apache.connect_string) as session:
            await session.connected(5)
            await session.create(zk_root, bytes(300_000))
            await asyncio.gather(*(session.get(zk_root) for _ in range(20)))
            with contextlib.suppress(NodeExists):
                await session.create(zk_root)
            await session.delete(zk_root, 0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())
