"""What a program gets from run, submit, map and imap."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

import zkd
from zkd.errors import BadRecord, TooLarge
from zkd.records import Task

if TYPE_CHECKING:
    from tests.client.standin import StandIn
    from zkd.client import Client
    from zkd.zk.server import EmbeddedServer


async def until_empty(client: Client) -> None:
    """Until no result is left; bounded by the test's own timeout."""
    while await client.results():
        await asyncio.sleep(0.01)


async def test_run_gives_the_value(client: Client) -> None:
    assert await client.run("square", 12) == 144
    assert await client.run("same", {"a": [1, "b", None]}) == {"a": [1, "b", None]}
    assert np.isnan(await client.run("nan"))


@pytest.mark.parametrize("side", [3, 60])  # nested lists in the znode, and bytes in base64
async def test_arrays_go_in_and_come_out_as_arrays_of_any_size(client: Client, side: int) -> None:
    array = np.arange(side * side, dtype=float).reshape(side, side)
    value = await client.run("add", array, y=array)
    assert isinstance(value, np.ndarray)
    assert np.array_equal(value, 2 * array)
    value += 1  # and may be written to


async def test_named_arguments_belong_to_the_kernel_and_options_do_not(client: Client, cluster: StandIn) -> None:
    cluster.kernels["priority"] = lambda *, priority: priority
    assert await client.options(priority=5, retries=2, labels={"a": "b"}).run("priority", priority="mine") == "mine"


async def test_options_stand_in_the_task(client: Client, cluster: StandIn) -> None:
    cluster.hold.add("square")
    handle = await client.options(priority=7).options(retries=2, ttl_s=60).submit("square", 2)
    task = await client.task(handle.id)
    assert (task.priority, task.retries, task.ttl_s, bytes(task.args)) == (7, 2, 60.0, b"[2]")


@pytest.mark.parametrize("options", [{"priority": 10_000}, {"retries": -1}, {"prioritty": 1}, {"labels": 3}])
async def test_a_bad_option_is_refused_where_it_is_written(client: Client, options: dict[str, object]) -> None:
    with pytest.raises(BadRecord):
        client.options(**options)


async def test_a_client_says_once_whose_tasks_they_are(embedded: EmbeddedServer, cluster: StandIn) -> None:
    cluster.hold.add("square")
    async with zkd.Client(embedded.connect_string, submitter="team-a") as client:
        own = await client.submit("square", 2)
        lent = await client.options(submitter="team-b").submit("square", 2)
        assert [(await client.task(handle.id)).submitter for handle in (own, lent)] == ["team-a", "team-b"]


async def test_run_leaves_no_trace(client: Client) -> None:
    for number in range(3):
        await client.run("square", number)
    with pytest.raises(zkd.TaskFailed):
        await client.run("unlucky", 13)
    assert await client.tasks() == []
    await until_empty(client)


async def test_a_result_is_left_alone_while_its_node_may_still_look_for_it(
    client: Client, embedded: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkd.client.dropbox.FORGET_AFTER_S", 60.0)
    async with zkd.Client(embedded.connect_string) as other:
        await other.run("square", 2)
        await other.map("square", range(3))
    results = await client.results()
    assert len(results) == 4  # not even on leaving
    assert {(await client.outcome(task)).status for task in results} == {"done"}  # type: ignore[union-attr]


async def test_results_that_are_left_behind_have_a_short_time_to_live(client: Client, cluster: StandIn) -> None:
    cluster.hold.add("square")
    calls = [
        asyncio.create_task(client.run("square", 2)),
        asyncio.create_task(client.options(ttl_s=7).run("square", 2)),
    ]
    await cluster.wait_for(2)
    assert {(await client.task(task)).ttl_s for task in await client.tasks()} == {300.0, 7.0}
    await cluster.release()
    await asyncio.gather(*calls)


async def test_a_failure_carries_the_remote_story(client: Client) -> None:
    with pytest.raises(zkd.TaskFailed, match="unlucky failed on standin, attempt 1: ValueError: unlucky") as caught:
        await client.run("unlucky", 13)
    assert caught.value.kind == "ValueError"
    assert 'raise ValueError("unlucky")' in caught.value.remote_traceback
    assert (caught.value.node, caught.value.attempt) == ("standin", 1)


async def test_a_rejection_says_where(client: Client) -> None:
    with pytest.raises(zkd.TaskRejected, match=r"rejected at \$\.kernel: no such kernel nonsense"):
        await client.run("nonsense")


async def test_a_task_that_is_too_large_is_refused_before_it_is_sent(client: Client) -> None:
    with pytest.raises(TooLarge, match="by reference"):
        await client.run("same", [0.5] * 200_000)


async def test_many_at_once_each_get_their_own(client: Client) -> None:
    values = await asyncio.gather(*(client.run("square", number) for number in range(500)))
    assert values == [number * number for number in range(500)]
    await until_empty(client)


async def test_cancelling_the_caller_cancels_the_task(client: Client, cluster: StandIn) -> None:
    cluster.hold.add("square")
    waiting = asyncio.create_task(client.run("square", 3))
    await cluster.wait_for(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    while await client.tasks():
        await asyncio.sleep(0.01)


async def test_a_timeout_of_the_caller_cancels_the_task(client: Client, cluster: StandIn) -> None:
    cluster.hold.add("square")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.run("square", 3)
    while await client.tasks():
        await asyncio.sleep(0.01)


async def test_an_ephemeral_task_goes_with_its_submitter(
    client: Client, cluster: StandIn, embedded: EmbeddedServer
) -> None:
    cluster.hold.add("square")
    async with zkd.Client(embedded.connect_string) as other:
        await other.options(ephemeral=True).submit("square", 1)
        kept = await other.submit("square", 2)
    assert await client.tasks() == [kept.id]


async def test_drop_takes_a_task_as_it_is_written(client: Client) -> None:
    handle = await client.drop(b'{"kernel": "square", "args": [4]}')
    assert await handle.result(5) == 16
    assert await (await client.drop(Task("square", args=msgspec.Raw(b"[5]")))).result(5) == 25
    with pytest.raises(BadRecord, match="kernl"):
        await client.drop(b'{"kernl": "square"}')


# --- map ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, 20_000])
async def test_map_keeps_the_order(client: Client, count: int) -> None:
    assert await client.map("square", range(count)) == [number * number for number in range(count)]


async def test_map_packs_items_and_still_spreads_them(client: Client, cluster: StandIn) -> None:
    await client.map("square", range(64))  # 4 slots: 16 tasks of 4 items
    assert len(cluster.seen) == 16
    cluster.seen.clear()
    await client.map("square", range(100), chunk=30)
    assert len(cluster.seen) == 4


async def test_map_cuts_tasks_to_a_bounded_size(client: Client, cluster: StandIn) -> None:
    sizes = []
    cluster.kernels["size"] = lambda x: sizes.append(len(x)) or len(x)
    text = "x" * 50_000
    assert await client.map("size", [text] * 10, chunk=10) == [50_000] * 10
    assert len(cluster.seen) == 5  # two items of 50 kB to a task of at most 128 KiB


async def test_map_passes_further_arguments_to_each(client: Client) -> None:
    values = await client.map("add", [1, 2, 3], y=10)
    assert values == [11, 12, 13]
    rows = await client.map("add", np.eye(3), y=1)
    assert [row.tolist() for row in rows] == [[2, 1, 1], [1, 2, 1], [1, 1, 2]]


@pytest.mark.parametrize("chunk", [None, 1, 7, 100])
async def test_an_error_in_map_names_the_item(client: Client, chunk: int | None) -> None:
    with pytest.raises(zkd.TaskFailed, match="item 13: unlucky failed") as caught:
        await client.map("unlucky", range(50), chunk=chunk)
    assert caught.value.item == 13


async def test_an_error_in_map_cancels_what_is_left(client: Client, cluster: StandIn) -> None:
    cluster.kernels["second"] = lambda x: 1 / 0 if x else x
    cluster.hold.add("square")
    with pytest.raises(zkd.TaskRejected):
        await client.map("nonsense", range(20), chunk=1)
    while await client.tasks():
        await asyncio.sleep(0.01)


async def test_imap_streams_in_order_from_an_endless_source(client: Client) -> None:
    taken = 0

    async def source():  # type: ignore[no-untyped-def]
        nonlocal taken
        while True:
            taken += 1
            yield taken

    got = []
    async with aclosing(client.imap("square", source(), chunk=2)) as values:  # type: ignore[type-var]
        async for value in values:
            got.append(value)
            if len(got) == 30:
                break
    assert got == [number * number for number in range(1, 31)]
    assert taken < 400  # reads ahead, but no further than keeps all busy
    while await client.tasks():
        await asyncio.sleep(0.01)


async def test_entering_says_clearly_that_nobody_is_there() -> None:
    with pytest.raises(zkd.Unavailable, match=r"127\.0\.0\.1:1: no connection within 0\.2 s"):
        async with zkd.Client("127.0.0.1:1", connect_timeout_s=0.2):
            raise AssertionError("entered")


async def test_a_client_that_was_not_entered_says_how_to() -> None:
    with pytest.raises(RuntimeError, match=r"async with zkd\.Client"):
        await zkd.Client("127.0.0.1:1").run("numpy.sum", [1])
    assert not hasattr(zkd.Client("127.0.0.1:1"), "no_such_thing")


async def test_a_client_works_before_any_daemon_has_made_the_root(embedded: EmbeddedServer) -> None:
    async with zkd.Client(embedded.connect_string, "/fresh/place") as client:
        assert await client.nodes() == {}
        assert await client.leader() is None
        assert await client.tasks() == []
        handle = await client.submit("square", 3)
        assert await client.tasks() == [handle.id]
        assert "No node is here" in await client.why(handle.id) or "leader" in await client.why(handle.id)
