"""What a ZooKeeper client must survive, each as one function that runs on any `Client`.

They are the confirmed faults of plain aiozk 0.32 turned into promises: `tests/zk/test_faults.py` holds our
session to them, and shows that plain aiozk breaks every one, so that none tests nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from tests.faults.clients import CLEAR, EXPIRED
from tests.faults.proxy import HELLO, Proxy
from zkd.zk import Credentials, EventType, Session, end_session

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.faults.clients import Client

T = TypeVar("T")

CREATE, DELETE, EXISTS, GET, SET, MULTI = (15, 2, 3, 4, 5, 14)
SET_WATCHES = (101, 105)

TIMEOUT_S = 3.0  # of the sessions
AT_ONCE_S = 1.0  # far below TIMEOUT_S, far above what a busy machine needs


@dataclass
class World:
    """A server behind a proxy, a direct session of ours that looks on, and a place in the tree."""

    make: Callable[[], Client]
    port: int
    proxy: Proxy
    onlooker: Session
    root: str
    tls_port: int = 0
    tls: ssl.SSLContext | None = None
    clients: list[Client] = field(default_factory=list)

    async def client(
        self,
        hosts: str | None = None,
        *,
        auth: tuple[str, bytes] | None = None,
        tls: ssl.SSLContext | None = None,
        within_s: float = 10.0,
    ) -> Client:
        client = self.make()
        self.clients.append(client)
        await within(within_s, client.open(hosts or self.proxy.connect_string, TIMEOUT_S, auth, tls), "connecting")
        return client


async def within(limit_s: float, awaitable: Awaitable[T], what: str) -> T:
    try:
        async with asyncio.timeout(limit_s):
            return await awaitable
    except TimeoutError:
        raise AssertionError(f"{what} took longer than {limit_s} s") from None


async def reconnected(world: World, client: Client, limit_s: float = TIMEOUT_S) -> None:
    """Cut the client's connection under a read, and wait until reads work again."""
    fault = world.proxy.cut(GET, how="rst")
    await back(world, client, limit_s)
    assert fault.struck.is_set()


async def back(world: World, client: Client, limit_s: float = TIMEOUT_S) -> None:
    async def until_answered() -> None:
        while True:
            with contextlib.suppress(*CLEAR):
                await client.get(world.root)
                return
            await asyncio.sleep(0.01)

    await within(limit_s, until_answered(), "answering again after a cut")


# --- 1: a lost connection -----------------------------------------------------------------------------


async def a_closed_connection_is_noticed_at_once(world: World) -> None:
    client = await world.client()
    await world.proxy.refuse()
    world.proxy.cut_all("fin")

    async def noticed() -> None:
        while client.is_connected:  # the one face of both clients tells no more
            await asyncio.sleep(0.01)

    await within(AT_ONCE_S, noticed(), "noticing a closed connection")


async def a_pending_request_fails_with_its_connection(world: World) -> None:
    client = await world.client()
    world.proxy.cut(GET, moment="after", how="fin")
    read = asyncio.ensure_future(client.get(world.root))
    done, _ = await asyncio.wait([read], timeout=AT_ONCE_S)
    read.cancel()
    assert done, "a request on a closed connection was still pending"


async def a_request_while_disconnected_fails_and_is_not_sent_later(world: World) -> None:
    client = await world.client()
    await world.proxy.refuse()
    world.proxy.cut(GET, how="rst")
    read = asyncio.ensure_future(client.get(world.root))
    await asyncio.wait([read], timeout=AT_ONCE_S)
    write = asyncio.ensure_future(client.create(f"{world.root}/late"))
    done, _ = await asyncio.wait([write], timeout=AT_ONCE_S)
    read.cancel()
    write.cancel()
    assert done, "a request without a connection was neither sent nor refused"


# --- 2, 3: watches and reconnection -------------------------------------------------------------------


async def a_cut_while_watches_are_rearmed_is_survived(world: World) -> None:
    client = await world.client()
    await client.watch(world.root, [EventType.CHANGED], lambda event: None)
    cuts = world.proxy.cut(*SET_WATCHES, how="rst", times=2)
    await reconnected(world, client)
    assert cuts.struck.is_set()


async def a_watch_for_deletion_outlives_its_connection(world: World) -> None:
    client = await world.client()
    await world.onlooker.create(f"{world.root}/gone")
    heard = asyncio.Event()
    await client.watch(f"{world.root}/gone", [EventType.DELETED], lambda event: heard.set())
    await reconnected(world, client)
    await world.onlooker.delete(f"{world.root}/gone", -1)
    await within(AT_ONCE_S, heard.wait(), "hearing of a deletion")


async def more_watches_than_fit_into_one_packet_are_rearmed(world: World) -> None:
    client = await world.client()
    for number in range(1200):  # of 1,000 bytes each: above jute.maxbuffer
        await client.watch(f"{world.root}/{number:04}{'x' * 990}", [EventType.CREATED], lambda event: None)
    await reconnected(world, client)


async def nothing_happened_means_no_event(world: World) -> None:
    client = await world.client()
    await world.onlooker.create(f"{world.root}/still")
    events: list[object] = []
    await client.watch(f"{world.root}/still", [EventType.CHANGED], events.append)
    await reconnected(world, client)
    await client.get(world.root)  # an event of the rearming would have come before this answer
    assert events == []


# --- 4: lost replies ----------------------------------------------------------------------------------


async def a_lost_reply_makes_no_second_znode(world: World) -> None:
    client = await world.client()
    world.proxy.cut(CREATE, moment="after", how="rst")
    with contextlib.suppress(*client.maybe_applied):
        await within(TIMEOUT_S, client.create(f"{world.root}/n-", sequential=True), "a create")
    assert len(await world.onlooker.children(world.root)) == 1


async def ones_own_znode_is_not_called_anothers(world: World) -> None:
    client = await world.client()
    world.proxy.cut(CREATE, moment="after", how="rst")
    try:
        await within(TIMEOUT_S, client.create(f"{world.root}/mine"), "a create")
    except client.maybe_applied:
        pass
    except CLEAR as error:
        raise AssertionError(f"a create that was applied says {error!r}") from error


async def a_lost_reply_applies_no_write_twice(world: World) -> None:
    client = await world.client()
    world.proxy.cut(SET, moment="after", how="rst")
    with contextlib.suppress(*client.maybe_applied):
        await within(TIMEOUT_S, client.set(world.root, b"x", -1), "a set")
    assert (await world.onlooker.get(world.root)).stat.version == 1


async def an_applied_delete_is_not_called_impossible(world: World) -> None:
    client = await world.client()
    await world.onlooker.create(f"{world.root}/old")
    world.proxy.cut(DELETE, moment="after", how="rst")
    try:
        await within(TIMEOUT_S, client.delete(f"{world.root}/old"), "a delete")
    except client.maybe_applied:
        pass
    except CLEAR as error:
        raise AssertionError(f"a delete that was applied says {error!r}") from error


async def a_reply_lost_by_a_closed_connection_is_told_at_once(world: World) -> None:
    client = await world.client()
    world.proxy.cut(CREATE, moment="after", how="fin")
    write = asyncio.ensure_future(client.create(f"{world.root}/a"))
    done, _ = await asyncio.wait([write], timeout=AT_ONCE_S)
    write.cancel()
    assert done, "nobody was told that the reply is lost"
    assert isinstance(write.exception(), client.maybe_applied)


# --- 5: growth ----------------------------------------------------------------------------------------


async def unique_paths_leave_nothing_behind(world: World) -> None:
    client = await world.client()

    async def work(start: int, count: int) -> None:
        for number in range(start, start + count):
            await client.create(f"{world.root}/{number}")
            await client.delete(f"{world.root}/{number}")

    await work(0, 100)
    tracemalloc.start()
    try:
        await work(100, 100)
        before = tracemalloc.get_traced_memory()[0]
        await work(200, 600)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 600 * 60, f"{grown / 600:.0f} bytes were kept for each path"


# --- 6: sessions --------------------------------------------------------------------------------------


async def an_expired_session_is_not_replaced_silently(world: World) -> None:
    client = await world.client()
    session = client.session
    await client.create(f"{world.root}/me", ephemeral=True)
    direct = f"127.0.0.1:{world.port}"
    assert await end_session(direct, Credentials(session, await client.password()))
    with contextlib.suppress(*CLEAR):
        await within(TIMEOUT_S + 1, client.get(world.root), "a read after the end of the session")
    await back(world, client)
    try:
        still_there = await client.exists_in_session(f"{world.root}/me", session)
    except EXPIRED:
        return
    raise AssertionError(f"in a session that is over: exists={still_there}, no word of the end")


async def a_cut_handshake_does_not_cost_the_session(world: World) -> None:
    client = await world.client()
    session = client.session
    hellos = world.proxy.cut(HELLO, how="rst")
    await reconnected(world, client, TIMEOUT_S + 2)
    assert hellos.struck.is_set()
    assert client.session == session, "a live session was given up"


async def a_server_that_never_answers_is_passed_over(world: World) -> None:
    async with Proxy(world.port) as frozen:
        frozen.black_hole()
        hosts = f"{frozen.connect_string},{world.proxy.connect_string}"
        # Eight, since whoever happens to try the good one first learns nothing.
        await asyncio.gather(*(world.client(hosts, within_s=TIMEOUT_S) for _ in range(8)))


# --- 8, 9: closing, credentials -----------------------------------------------------------------------


async def closing_without_a_server_is_prompt(world: World) -> None:
    client = await world.client()
    await world.proxy.refuse()
    world.proxy.cut_all("rst")
    closing = asyncio.ensure_future(client.close())
    done, _ = await asyncio.wait([closing], timeout=AT_ONCE_S)
    closing.cancel()
    assert done, "close() hangs without a server"


async def credentials_are_given_on_every_connection(world: World) -> None:
    client = await world.client(auth=("digest", b"ann:secret"))
    await client.create(f"{world.root}/private", b"x", private=True)
    await reconnected(world, client)
    try:
        assert await client.get(f"{world.root}/private") == b"x"
    except CLEAR as error:
        raise AssertionError(f"after a reconnect: {error!r}") from error


async def a_tls_port_is_spoken_to_in_tls(world: World) -> None:
    client = await world.client(f"127.0.0.1:{world.tls_port}", tls=world.tls, within_s=5)
    assert await client.get(world.root) == b""


# --- 11, 12: transactions, sizes ----------------------------------------------------------------------


async def a_failed_transaction_raises(world: World) -> None:
    client = await world.client()
    try:
        await client.create_and_set(f"{world.root}/a", world.root, 77)
    except CLEAR as error:
        if "version" not in str(error):
            raise AssertionError(f"it does not say why: {error}") from error
    else:
        raise AssertionError("a transaction that was rolled back raised nothing")


async def a_transaction_tells_the_names_that_the_server_made(world: World) -> None:
    client = await world.client()
    made = await client.creates([f"{world.root}/n-", f"{world.root}/n-"])
    there = await world.onlooker.children(world.root)
    assert sorted(made) == sorted(f"{world.root}/{name}" for name in there)


async def an_oversize_request_does_not_harm_its_neighbours(world: World) -> None:
    client = await world.client()
    await client.get(world.root)
    oversize = asyncio.ensure_future(client.set(world.root, bytes(1_100_000), -1))
    reads = [asyncio.ensure_future(client.get(world.root)) for _ in range(10)]
    _, pending = await asyncio.wait([oversize, *reads], timeout=AT_ONCE_S)
    for task in pending:
        task.cancel()
    assert not pending, f"{len(pending)} requests hang"
    assert all(read.exception() is None for read in reads)
    assert isinstance(oversize.exception(), CLEAR)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        a_closed_connection_is_noticed_at_once,
        a_pending_request_fails_with_its_connection,
        a_request_while_disconnected_fails_and_is_not_sent_later,
        a_cut_while_watches_are_rearmed_is_survived,
        a_watch_for_deletion_outlives_its_connection,
        more_watches_than_fit_into_one_packet_are_rearmed,
        nothing_happened_means_no_event,
        a_lost_reply_makes_no_second_znode,
        ones_own_znode_is_not_called_anothers,
        a_lost_reply_applies_no_write_twice,
        an_applied_delete_is_not_called_impossible,
        a_reply_lost_by_a_closed_connection_is_told_at_once,
        unique_paths_leave_nothing_behind,
        an_expired_session_is_not_replaced_silently,
        a_cut_handshake_does_not_cost_the_session,
        a_server_that_never_answers_is_passed_over,
        closing_without_a_server_is_prompt,
        credentials_are_given_on_every_connection,
        a_tls_port_is_spoken_to_in_tls,
        a_failed_transaction_raises,
        a_transaction_tells_the_names_that_the_server_made,
        an_oversize_request_does_not_harm_its_neighbours,
    )
}
ALONE = unique_paths_leave_nothing_behind  # measures the whole process, so nothing may run beside it


@contextlib.asynccontextmanager
async def world_of(
    make: Callable[[], Client], port: int, tls_port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[World]:
    """Leaves its clients open: only a scenario, or the owner of the process, knows whether closing them ends."""
    root = f"/test-{uuid.uuid4().hex}"
    async with Proxy(port) as proxy, Session(f"127.0.0.1:{port}", timeout_s=10) as onlooker:
        await onlooker.connected(10)
        await onlooker.create(root)
        yield World(make, port, proxy, onlooker, root, tls_port, tls)
