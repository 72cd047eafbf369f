"""Nothing a client was promised is lost, and nothing is done twice, whatever happens to its connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

import zkd
from zkd.zk import State
from zkd.zk.server import Op

if TYPE_CHECKING:
    from tests.client.standin import StandIn
    from zkd.client import Client
    from zkd.zk.server import EmbeddedServer

BELOW = "/zkd/tasks"


async def test_a_create_that_was_applied_and_not_answered_is_not_repeated(
    client: Client, cluster: StandIn, embedded: EmbeddedServer
) -> None:
    embedded.cut_after(Op.MULTI, path=BELOW)
    assert await client.run("square", 5) == 25
    assert len(cluster.seen) == 1


async def test_a_create_that_was_not_applied_is_sent_again(
    client: Client, cluster: StandIn, embedded: EmbeddedServer
) -> None:
    embedded.cut_before(Op.MULTI, times=3, path=BELOW)
    assert await client.run("square", 5) == 25
    assert len(cluster.seen) == 1


async def test_a_task_that_was_accepted_and_ended_while_we_were_away_is_not_dropped_again(
    client: Client, cluster: StandIn, embedded: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconnect = client._box.catch_up

    async def reconnect_late(*args: object) -> None:
        while not await cluster.session.children(cluster.paths.results):
            await asyncio.sleep(0.001)
        await reconnect(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(client._box, "catch_up", reconnect_late)
    embedded.cut_after(Op.MULTI, path=BELOW)
    handle = await client.submit("square", 6)
    assert await handle.result(10) == 36
    assert len(cluster.seen) == 1


async def test_a_burst_of_creates_survives_a_cut(client: Client, cluster: StandIn, embedded: EmbeddedServer) -> None:
    embedded.cut_after(Op.MULTI, path=BELOW)
    embedded.cut_before(Op.MULTI, path=BELOW)
    values = await asyncio.gather(*(client.run("square", number) for number in range(300)))
    assert values == [number * number for number in range(300)]
    assert len(cluster.seen) == len(set(cluster.seen)) == 300


@pytest.mark.parametrize("count", [1, 40])  # watched one by one, and by one watch for all
async def test_results_that_come_while_we_are_away_are_found(
    client: Client, cluster: StandIn, embedded: EmbeddedServer, count: int
) -> None:
    cluster.hold.add("square")
    handles = [await client.submit("square", number) for number in range(count)]
    waiting = [asyncio.create_task(handle.result()) for handle in handles]
    await cluster.wait_for(count)
    embedded.partition(client.session.session_id)
    await cluster.release()
    while len(await cluster.session.children(cluster.paths.results)) < count:
        await asyncio.sleep(0.001)
    embedded.drop_connections()  # the events of those results died with the connection
    embedded.heal()
    assert await asyncio.gather(*waiting) == [number * number for number in range(count)]


@pytest.mark.parametrize("count", [1, 40])
async def test_the_end_of_the_session_is_survived(
    client: Client, cluster: StandIn, embedded: EmbeddedServer, count: int
) -> None:
    cluster.hold.add("square")
    handles = [await client.submit("square", number) for number in range(count)]
    waiting = [asyncio.create_task(handle.result()) for handle in handles]
    await cluster.wait_for(count)
    before = client.session.session_id
    embedded.expire(before)
    await cluster.release()
    assert await asyncio.gather(*waiting) == [number * number for number in range(count)]
    assert client.session.session_id != before
    assert await client.run("square", 9) == 81


async def test_ephemeral_tasks_that_went_with_the_session_are_reported_cancelled(
    client: Client, cluster: StandIn, embedded: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkd.client.outstanding.LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr("zkd.client.outstanding.TICK_S", 0.02)
    async with zkd.Client(client.hosts) as other:
        cluster.hold.add("square")
        handle = await other.options(ephemeral=True).submit("square", 1)
        embedded.expire(other.session.session_id)
        with pytest.raises(zkd.TaskCancelled):
            await handle.result(10)


async def test_calls_made_without_a_connection_go_through_when_it_is_back(
    client: Client, cluster: StandIn, embedded: EmbeddedServer
) -> None:
    embedded.refuse()
    calls = [asyncio.create_task(client.run("square", number)) for number in range(20)]
    while client.session.state is State.CONNECTED:
        await asyncio.sleep(0.001)
    calls += [asyncio.create_task(client.run("square", number)) for number in range(20, 40)]
    await asyncio.sleep(0)
    embedded.refuse(False)
    assert await asyncio.gather(*calls) == [number * number for number in range(40)]
    assert len(cluster.seen) == len(set(cluster.seen)) == 40


async def test_an_outage_without_end_becomes_an_error(
    client: Client, embedded: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkd.client.dropbox.OUTAGE_MAX_S", 0.1)
    embedded.refuse()
    with pytest.raises((zkd.Unavailable, zkd.errors.OutcomeUnknown)):
        await client.run("square", 1)


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_cancel_whose_answer_was_lost_still_tells_who_won(
    client: Client, cluster: StandIn, embedded: EmbeddedServer, cut: str
) -> None:
    cluster.hold.add("square")
    handle = await client.submit("square", 5)
    getattr(embedded, f"cut_{cut}")(Op.MULTI, path=BELOW)
    assert await handle.cancel() is True
    assert await client.tasks() == []


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_retry_whose_answer_was_lost_happens_once(
    client: Client, cluster: StandIn, embedded: EmbeddedServer, cut: str
) -> None:
    handle = await client.submit("unlucky", 13)
    with pytest.raises(zkd.TaskFailed):
        await handle.result(5)
    cluster.hold.add("unlucky")
    getattr(embedded, f"cut_{cut}")(Op.MULTI, path="/zkd/dead")
    await client.retry(handle.id)
    assert await client.tasks() == [handle.id]
    assert await client.dead() == []


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_an_operators_word_is_not_lost(client: Client, embedded: EmbeddedServer, cut: str) -> None:
    await client.set_node_state("standin", "cordoned")
    getattr(embedded, f"cut_{cut}")(Op.MULTI, path="/zkd/control")
    await client.set_node_state("standin", "draining")
    assert (await client.node_states())["standin"].state == "draining"


async def test_cuts_at_random_lose_nothing(client: Client, cluster: StandIn, embedded: EmbeddedServer) -> None:
    async def trouble() -> None:
        for _ in range(8):
            await asyncio.sleep(0.03)
            embedded.drop_connections()

    async def calls(first: int) -> list[int]:
        return [await client.run("square", number) for number in range(first, first + 40)]

    values, *_ = await asyncio.gather(asyncio.gather(*(calls(40 * each) for each in range(12))), trouble())
    assert [value for row in values for value in row] == [number * number for number in range(480)]
    assert len(cluster.seen) == len(set(cluster.seen)) == 480
