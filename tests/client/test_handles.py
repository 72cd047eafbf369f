"""A submitted task: its result, its progress, its cancellation, its second life."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

import zkd
from zkd.client.handles import TaskStatus
from zkd.codec import encode
from zkd.errors import SessionClosed
from zkd.records import Assigned, Assignment, Attempt, Dead, Fault, NodeStatus, Running
from zkd.zk import Create, Delete

if TYPE_CHECKING:
    from tests.client.standin import StandIn
    from zkd.client import Client
    from zkd.zk.server import EmbeddedServer


def status_of(node: str, *running: Running) -> bytes:
    return encode(NodeStatus(node, "1", "active", 4, len(running), 0, list(running), 0, 0, 0, 0.0, 1.0))


async def test_the_result_can_be_had_twice_and_stays_in_the_tree(client: Client) -> None:
    handle = await client.submit("square", 5)
    assert [await handle.result(5), await handle.result(), await client.result(handle.id)] == [25, 25, 25]
    assert await client.results() == [handle.id]
    assert await handle.result(forget=True) == 25
    while await client.results():
        await asyncio.sleep(0.01)


async def test_a_timeout_leaves_the_task_alone(client: Client, cluster: StandIn) -> None:
    cluster.hold.add("square")
    handle = await client.submit("square", 5)
    with pytest.raises(zkd.ResultTimeout, match=r"no result of .* after 0\.02 s; the task goes on"):
        await handle.result(0.02)
    await cluster.release()
    assert await handle.result(5) == 25


async def test_another_program_can_take_the_handle_over(
    client: Client, cluster: StandIn, embedded: EmbeddedServer
) -> None:
    cluster.hold.add("square")
    handle = await client.submit("square", 5)
    async with zkd.Client(embedded.connect_string) as other:
        waiting = asyncio.create_task(other.handle(handle.id).result(5))
        await asyncio.sleep(0)
        await cluster.release()
        assert await waiting == 25


async def test_two_handles_of_one_task_both_hear_of_its_end(client: Client, cluster: StandIn) -> None:
    cluster.hold.add("square")
    handle = await client.submit("square", 5)
    others = [asyncio.create_task(client.result(handle.id, 10)) for _ in range(3)]
    await asyncio.sleep(0.05)
    await cluster.release()
    assert await asyncio.gather(handle.result(10), *others) == [25] * 4


@pytest.mark.parametrize("count", [1, 40])
async def test_closing_the_client_ends_every_wait(client: Client, cluster: StandIn, count: int) -> None:
    cluster.hold.add("square")
    async with zkd.Client(client.hosts) as other:
        waiting = [asyncio.create_task(other.run("square", number)) for number in range(count)]
        await cluster.wait_for(count)
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(each) for each in done} == {SessionClosed}
    assert "goes on without this program" in str(done[0])
    assert len(await client.tasks()) == count


async def test_an_unknown_id_is_said_to_be_unknown(client: Client) -> None:
    for call in (client.result("t-nobody", 1), client.handle("t-nobody").status(), client.why("t-nobody")):
        with pytest.raises(zkd.TaskNotFound, match="t-nobody"):
            await call
    with pytest.raises(zkd.TaskNotFound):
        await client.retry("t-nobody")
    assert await client.cancel("t-nobody") is False


async def test_cancel_wins_against_a_waiting_task(client: Client, cluster: StandIn) -> None:
    cluster.hold.add("square")
    handle = await client.submit("square", 5)
    waiting = asyncio.create_task(handle.result())
    assert await handle.cancel() is True
    with pytest.raises(zkd.TaskCancelled):
        await waiting
    assert await client.tasks() == []


async def test_cancel_loses_against_a_finished_task(client: Client) -> None:
    handle = await client.submit("square", 5)
    await handle.result(5)
    assert await handle.cancel() is False
    assert await handle.result() == 25


async def test_one_of_cancel_and_finish_wins_and_both_sides_can_tell(client: Client, cluster: StandIn) -> None:
    for number in range(50):
        handle = await client.submit("square", number)
        if await handle.cancel():
            with pytest.raises(zkd.TaskCancelled):
                await handle.result(5)
        else:
            assert await handle.result(5) == number * number
    assert await client.tasks() == []


async def test_a_task_deleted_by_others_while_nobody_leads_is_found_out(
    client: Client, cluster: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkd.client.outstanding.LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr("zkd.client.outstanding.TICK_S", 0.02)
    cluster.hold.add("square")
    async with zkd.Client(client.hosts) as other:
        handle = await other.submit("square", 5)
        waiting = asyncio.create_task(handle.result())
        await asyncio.sleep(0)
        await client.session.delete(client.paths.task(handle.id), -1)
        with pytest.raises(zkd.TaskCancelled, match="was deleted"):
            await waiting


async def test_status_follows_the_task_through_the_tree(client: Client, cluster: StandIn) -> None:
    cluster.hold.add("square")
    handle = await client.submit("square", 5)
    session, paths = client.session, client.paths
    assert await handle.status() == TaskStatus(handle.id, "waiting")
    assignment = encode(Assignment(1, "1", [Assigned(handle.id, 1, 0, 2)]))
    await session.create(paths.assignment("standin"), assignment)
    assert await handle.status() == TaskStatus(handle.id, "assigned", "standin", 2)
    await session.create(paths.status("standin"), status_of("standin", Running(handle.id, "square", 2, 1.5, 0.25, "x")))
    assert await handle.status() == TaskStatus(handle.id, "running", "standin", 2, 0.25, "x", 1.5)
    await session.set(paths.status("standin"), status_of("standin"), -1)
    await session.set(paths.assignment("standin"), encode(Assignment(1, "1", [])), -1)
    await cluster.release()
    await handle.result(5)
    ended = await handle.status()
    assert (ended.state, ended.has_ended) == ("done", True)


async def test_progress_is_told_as_it_changes_and_ends_with_the_task(client: Client, cluster: StandIn) -> None:
    cluster.hold.add("square")
    handle = await client.submit("square", 5)
    session, path = client.session, client.paths.status("standin")
    await session.create(client.paths.status("other"), status_of("other", Running("t-other", "x", 1, 1.0, 0.9)))
    await session.create(path, status_of("standin", Running(handle.id, "square", 1, 1.0, 0.25, "quarter")))
    told = []
    async for step in handle.progress():
        told.append(step)
        if len(told) == 1:
            await session.set(path, status_of("standin", Running(handle.id, "square", 1, 2.0, 0.25, "quarter")), -1)
            await session.set(path, status_of("standin", Running(handle.id, "square", 1, 3.0, 0.5, "half")), -1)
        else:
            await cluster.release()
    assert told == [(0.25, "quarter"), (0.5, "half")]


async def test_retry_gives_a_dead_task_a_fresh_life(client: Client, cluster: StandIn) -> None:
    handle = await client.submit("unlucky", 13)
    with pytest.raises(zkd.TaskFailed):
        await handle.result(5)
    assert await client.dead() == [handle.id]
    cluster.kernels["unlucky"] = lambda x: "fine"
    await client.retry(handle.id)
    assert await client.result(handle.id, 5) == "fine"
    assert await client.dead() == []


async def test_retry_resets_the_attempts_and_works_when_the_result_is_gone(client: Client, cluster: StandIn) -> None:
    cluster.hold.add("square")
    task = b'{"kernel":"square","args":[2],"retries":1,"attempts":[{"cause":"error","node":"a"}]}'
    dead = Dead(msgspec.Raw(task), Fault("ValueError", "no"), [Attempt("error", "a")], "now")
    await client.session.create(client.paths.dead_task("t-1"), encode(dead))
    await client.retry("t-1")
    assert (await client.task("t-1")).attempts == []
    assert (await client.task("t-1")).retries == 1
    # Whoever held an attempt of the former life, at version 0 or 1, is shut out of this one.
    assert (await client.session.get(client.paths.task("t-1"))).stat.version == 2
    await cluster.release()
    assert await client.result("t-1", 5) == 4


async def test_operators_states_are_remembered(client: Client) -> None:
    await client.set_node_state("far-away", "draining", reason="new disk")
    # Nobody who watches has ever seen it without what it says.
    assert (await client.session.get(client.paths.node_state("far-away"))).stat.version == 0
    await client.set_node_state("standin", "cordoned")
    await client.set_node_state("standin", "active")
    states = await client.node_states()
    assert (states["far-away"].state, states["far-away"].reason) == ("draining", "new disk")
    assert states["standin"].state == "active"


async def test_a_result_that_is_deleted_before_it_is_read_is_reported_lost(client: Client, cluster: StandIn) -> None:
    cluster.hold.add("square")
    handle = await client.submit("square", 5)
    text = (await client.session.get(client.paths.task(handle.id))).data
    path = client.paths.result(handle.id)
    waiting = asyncio.create_task(handle.result())
    await asyncio.sleep(0)
    # Created and deleted in one transaction: the event comes, and there is nothing to read.
    await client.session.multi([Delete(client.paths.task(handle.id), -1), Create(path, text), Delete(path, -1)])
    with pytest.raises(zkd.ResultLost):
        await waiting
