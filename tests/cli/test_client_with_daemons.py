"""The client on real daemons with real workers: what a stand-in cannot promise."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

import zkd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.cli.conftest import Dev


@pytest.fixture
async def client(dev: Dev) -> AsyncIterator[zkd.Client]:
    async with zkd.Client(dev.hosts) as client:
        yield client


async def test_arrays_in_and_out(client: zkd.Client) -> None:
    rng = np.random.default_rng(1)
    matrix, vector = rng.normal(size=(30, 30)), rng.normal(size=30)
    solution = await client.run("numpy.linalg.solve", matrix, vector)
    assert isinstance(solution, np.ndarray)
    assert np.allclose(matrix @ solution, vector)


async def test_a_value_too_large_for_a_znode_comes_over_http(client: zkd.Client) -> None:
    value = await client.run("numpy.arange", 200_000)
    assert np.array_equal(value, np.arange(200_000))
    handle = await client.submit("numpy.arange", 200_000)
    result = await handle.outcome(20)
    assert result.ref is not None
    assert result.ref.size > 256 * 1024
    assert (await handle.result(forget=True)).sum() == np.arange(200_000).sum()


async def test_many_at_once(client: zkd.Client) -> None:
    values = await asyncio.gather(*(client.run("numpy.add", number, 1) for number in range(1000)))
    assert values == list(range(1, 1001))


async def test_map(client: zkd.Client) -> None:
    assert await client.map("numpy.add", range(20_000), 1) == list(range(1, 20_001))


async def test_map_takes_arrays_too_large_for_a_znode(client: zkd.Client) -> None:
    rows = np.arange(400_000.0).reshape(4, 100_000)
    assert await client.map("numpy.sum", rows) == [row.sum() for row in rows]
    sums = await client.map("numpy.add", range(3), rows[0])
    assert all(np.array_equal(value, rows[0] + number) for number, value in enumerate(sums))


async def test_an_error_in_map_names_the_item(client: zkd.Client) -> None:
    with pytest.raises(zkd.TaskFailed, match="item 0: ") as caught:
        await client.map("test.fail", ["a", "b"])
    assert caught.value.item == 0
    items = [np.eye(2)] * 9 + [np.zeros((2, 2))] + [np.eye(2)] * 9
    with pytest.raises(zkd.TaskFailed, match=r"item 9: numpy\.linalg\.inv failed .* LinAlgError") as caught:
        await client.map("numpy.linalg.inv", items, chunk=6)
    assert caught.value.item == 9


async def test_a_bad_item_in_map_is_named(client: zkd.Client) -> None:
    with pytest.raises(zkd.TaskRejected) as caught:
        await client.map("test.nap", [0.0, 0.0, "no number", 0.0], chunk=4)
    assert caught.value.item == 2


async def test_cancel_stops_a_running_kernel_and_frees_its_slot(client: zkd.Client) -> None:
    handles = [await client.submit("test.nap", 60) for _ in range(2)]  # both slots
    for handle in handles:
        while (await handle.status()).state != "running" and "assigned" not in await client.why(handle.id):
            await asyncio.sleep(0.02)
    started = time.monotonic()
    assert [await handle.cancel() for handle in handles] == [True, True]
    assert await client.run("numpy.add", 1, 2) == 3
    assert time.monotonic() - started < 4
    for handle in handles:
        with pytest.raises(zkd.TaskCancelled):
            await handle.result(5)
        while (result := await client.outcome(handle.id)) is None:  # published by the node, for others to see
            await asyncio.sleep(0.02)
        assert result.status == "cancelled"


async def test_progress_reaches_the_submitter(client: zkd.Client) -> None:
    handle = await client.submit("test.nap", 6)
    async with asyncio.timeout(30):
        told = [step async for step in handle.progress()]
    assert (0.5, "half asleep") in told
    assert await handle.result() == 6


async def test_why_tells_of_busy_slots(client: zkd.Client) -> None:
    busy = [await client.submit("test.nap", 60) for _ in range(60)]  # nodes that were quick are given some ahead
    waiting = await client.options(priority=-5).submit("test.nap", 0)
    while "of 1 free" not in (text := await client.why(waiting.id)):
        await asyncio.sleep(0.02)
    assert re.search(r"It waits for a free slot: dev-[12] has 0 of 1 free, dev-[12] has 0 of 1 free\.", text)
    for handle in busy:
        await handle.cancel()
    assert await waiting.result(20) == 0


@pytest.mark.parametrize("mode", ["ephemeral", "ttl"])
async def test_a_task_that_goes_with_its_session_or_its_time_is_reported_cancelled(
    client: zkd.Client, dev: Dev, mode: str
) -> None:
    task = b'{"kernel": "numpy.add", "args": [1, 2], "labels": {"planet": "mars"}}'  # it waits for ever
    async with zkd.Client(dev.hosts) as other:
        path = client.paths.task(f"goes-with-{mode}")
        await other.session.create(path, task, ephemeral=mode == "ephemeral", ttl_ms=300 if mode == "ttl" else None)
        handle = client.handle(f"goes-with-{mode}")
        assert "carries the labels planet=mars" in await client.why(handle.id)
        with pytest.raises(zkd.ResultTimeout):  # from here on it is waited for
            await handle.result(0.05)
    with pytest.raises(zkd.TaskCancelled):
        await handle.result(20)
    assert (await handle.outcome()).status == "cancelled"


async def test_a_client_can_be_opened_and_closed_from_different_tasks(dev: Dev) -> None:
    """As a notebook does: each cell is a task of its own."""
    client = zkd.Client(dev.hosts)
    await asyncio.create_task(client.__aenter__())
    assert await asyncio.create_task(client.run("numpy.add", 1, 2)) == 3
    await asyncio.create_task(client.__aexit__(None, None, None))
