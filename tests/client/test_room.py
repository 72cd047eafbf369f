"""A program that drops more than the cluster takes is held back, and told when that does not help."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

import zkd
from zkd.codec import encode
from zkd.records import Fault, Leader, Result
from zkd.zk import Create, Delete

if TYPE_CHECKING:
    from tests.client.standin import StandIn
    from zkd.client import Client
    from zkd.zk.server import EmbeddedServer

LIMIT = 200


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, so that a few hundred tasks are many."""
    monkeypatch.setattr("zkd.client.room.LOOK_EACH", 10)
    monkeypatch.setattr("zkd.client.room.AGAIN_S", 0.01)


async def announce(cluster: StandIn, limit: int) -> None:
    await cluster.session.set(cluster.paths.leader, encode(Leader("standin", "1", 1, limit)), -1)


async def depth(client: Client) -> int:
    stat = await client.session.exists(client.paths.tasks)
    return stat.num_children if stat is not None else 0


async def test_many_submits_stop_before_the_limit_and_go_on_when_there_is_room(
    client: Client, cluster: StandIn
) -> None:
    await announce(cluster, LIMIT)
    cluster.hold.add("square")
    submits = [asyncio.create_task(client.submit("square", number)) for number in range(LIMIT)]
    deepest = 0
    for _ in range(50):
        deepest = max(deepest, await depth(client))
        await asyncio.sleep(0.01)
    assert 0.4 * LIMIT <= deepest <= 0.5 * LIMIT
    assert not all(submit.done() for submit in submits)
    await cluster.release()
    handles = await asyncio.gather(*submits)
    assert sorted(await asyncio.gather(*(handle.result() for handle in handles))) == [n * n for n in range(LIMIT)]


async def test_what_runs_through_is_never_held(client: Client, cluster: StandIn) -> None:
    await announce(cluster, LIMIT)
    assert len(await asyncio.gather(*(client.run("square", number) for number in range(5 * LIMIT)))) == 5 * LIMIT


async def test_after_its_patience_it_says_what_is_wrong(
    client: Client, cluster: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkd.client.room.PATIENCE_S", 0.2)
    await announce(cluster, LIMIT)
    cluster.hold.add("square")
    began = time.monotonic()
    ended = await asyncio.gather(*(client.submit("square", n) for n in range(LIMIT)), return_exceptions=True)
    assert time.monotonic() - began < 5.0
    refused = [one for one in ended if isinstance(one, zkd.Overloaded)]
    assert LIMIT // 2 <= len(refused) < LIMIT
    assert "the cluster takes 200 (tasks.queue_max)" in str(refused[0])
    assert refused[0].kind == "overloaded"
    assert await depth(client) == LIMIT - len(refused)


async def test_one_who_drops_little_is_not_held_by_anothers_flood(client: Client, cluster: StandIn) -> None:
    await announce(cluster, LIMIT)
    cluster.hold.add("same")
    flood = [Create(cluster.paths.task(f"flood-{n}"), b'{"kernel":"same"}') for n in range(LIMIT // 2)]
    await cluster.session.multi(flood)
    for number in range(8):
        assert await asyncio.wait_for(client.run("square", number), 5.0) == number * number
    assert await client.check_room()


async def test_a_full_queue_is_told_before_the_drop(client: Client, cluster: StandIn) -> None:
    assert not await client.check_room()
    await announce(cluster, 2)
    client._box.room._limit = (0, float("-inf"))  # what was known is too old
    cluster.hold.add("same")
    await cluster.session.multi([Create(cluster.paths.task(f"t{n}"), b'{"kernel":"same"}') for n in range(2)])
    with pytest.raises(zkd.Overloaded, match="2 tasks wait or run, and the cluster takes 2"):
        await client.check_room()


async def test_a_refusal_by_the_leader_is_an_error_of_its_own(client: Client, cluster: StandIn) -> None:
    cluster.hold.add("square")
    handle = await client.submit("square", 2)
    refusal = Result(status="rejected", error=Fault("overloaded", "7 tasks wait or run"))
    await cluster.session.multi(
        [Delete(cluster.paths.task(handle.id), -1), Create(cluster.paths.result(handle.id), encode(refusal))]
    )
    with pytest.raises(zkd.Overloaded, match="7 tasks wait or run"):
        await handle.result(5.0)


async def test_closing_leaves_nobody_waiting(cluster: StandIn, embedded: EmbeddedServer) -> None:
    await announce(cluster, 20)
    cluster.hold.add("square")
    async with zkd.Client(embedded.connect_string, "/zkd") as client:
        submits = [asyncio.create_task(client.submit("square", number)) for number in range(100)]
        await asyncio.sleep(0.1)
    done, pending = await asyncio.wait(submits, timeout=5.0)
    assert not pending
    assert [submit.exception() for submit in done if isinstance(submit.exception(), zkd.ZooKeeperError)]
