"""Three real servers: one is killed or frozen under a session, which goes on elsewhere as the same session."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from zkd.errors import OutcomeUnknown, Unavailable
from zkd.zk import Session, State, StateChange
from zkd.zk.apache import ApacheServer, Ensemble, ensemble

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.xdist_group("ensemble")

TIMEOUT_S = 4.0


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    with ensemble(3, tmp_path_factory.mktemp("ensemble")) as servers:
        yield servers


def server_of(session: Session, three: Ensemble) -> ApacheServer:
    assert session.server is not None
    return next(server for server in three.servers if server.port == session.server[1])


async def change_to(changes: asyncio.Queue[StateChange], state: State, limit_s: float) -> float:
    """How long it took until this state was told."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with asyncio.timeout(limit_s):
        while (await changes.get()).state is not state:
            pass
    return loop.time() - start


async def follower_session(three: Ensemble, session: Session, changes: asyncio.Queue[StateChange]) -> ApacheServer:
    """Move the session to a follower, if it is at the leader: a follower's end elects nobody."""
    leader = await asyncio.to_thread(three.leader)
    while server_of(session, three) is leader:
        connection = session._link._connection
        assert connection is not None
        connection.abort("moved by the test")
        await change_to(changes, State.CONNECTED, 5)
    return server_of(session, three)


async def test_a_killed_server_costs_milliseconds(three: Ensemble, zk_root: str) -> None:
    changes = asyncio.Queue[StateChange]()
    async with Session(three.connect_string, timeout_s=TIMEOUT_S) as session:
        await session.connected(10)
        session.subscribe(changes.put_nowait)
        first = session.session_id
        await session.create(zk_root, ephemeral=True)
        victim = await follower_session(three, session, changes)
        victim.kill()
        assert await change_to(changes, State.SUSPENDED, 2) < 0.5
        assert await change_to(changes, State.CONNECTED, 3) < 1.5
        assert session.session_id == first
        stat = await session.exists(zk_root)
        assert stat is not None
        assert stat.ephemeral_owner == first
        await asyncio.to_thread(victim.restart)


async def test_a_frozen_server_is_left_within_its_share_of_the_timeout(three: Ensemble) -> None:
    changes = asyncio.Queue[StateChange]()
    async with Session(three.connect_string, timeout_s=TIMEOUT_S) as session:
        await session.connected(10)
        session.subscribe(changes.put_nowait)
        first = session.session_id
        victim = await follower_session(three, session, changes)
        victim.pause()
        try:
            assert await change_to(changes, State.SUSPENDED, TIMEOUT_S) < TIMEOUT_S * 2 / 3
            assert await change_to(changes, State.CONNECTED, TIMEOUT_S) < TIMEOUT_S / 3
            assert session.session_id == first
        finally:
            victim.resume()


async def test_who_waits_for_a_frozen_server_is_at_another_within_a_third_of_the_timeout(three: Ensemble) -> None:
    changes = asyncio.Queue[StateChange]()
    async with Session(three.connect_string, timeout_s=6.0) as session:
        await session.connected(10)
        session.subscribe(changes.put_nowait)
        victim = await follower_session(three, session, changes)
        began = time.monotonic()
        victim.pause()
        try:
            with pytest.raises(Unavailable):
                await session.exists("/")
            await change_to(changes, State.CONNECTED, 6.0)
            assert time.monotonic() - began < session.timeout_s / 3
        finally:
            victim.resume()


async def test_killing_the_leader_loses_no_acknowledged_write(three: Ensemble, zk_root: str) -> None:
    async with Session(three.connect_string, timeout_s=TIMEOUT_S) as session:
        await session.connected(10)
        first = session.session_id
        await session.create(zk_root)
        acknowledged, unknown = set(), set()
        leader = await asyncio.to_thread(three.leader)
        for number in range(300):
            if number == 100:
                leader.kill()
            try:
                await session.create(f"{zk_root}/{number}")
                acknowledged.add(str(number))
            except Unavailable:
                await session.connected(20)
            except OutcomeUnknown:
                unknown.add(str(number))
                await session.connected(20)
        await session.sync(zk_root)
        present = set(await session.children(zk_root))
        assert acknowledged <= present <= acknowledged | unknown
        assert session.session_id == first
        await asyncio.to_thread(leader.restart)
