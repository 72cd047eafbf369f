"""Datasets on daemons of their own: rows by key in one hop, and all rows again after a node is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from tests.cluster.conftest import Grid
from tests.node.submitter import until
from zkd.client import Client
from zkd.client.dataset import Dataset
from zkd.errors import BadRows, DatasetNotFound, DataUnavailable

ROWS = 2000
KEYS = {
    "i1": np.arange(ROWS).astype("i1") // 2,
    "u8": np.arange(ROWS).astype("u8") + 2**63,
    "i8": np.arange(ROWS) - 1000,
    "f4": np.arange(ROWS).astype("f4") / 7,
    "f8": np.arange(ROWS) / 7,
    "U": np.array([f"käse {number % 500}" for number in range(ROWS)]),
    "S": np.array([f"k{number % 500}".encode() for number in range(ROWS)]),
    "M8": np.datetime64("2020-01-01T00:00", "m") + np.arange(ROWS),
    "m8": np.arange(ROWS).astype("m8[h]"),
    "count": np.arange(ROWS).astype("m8"),
}


@pytest.fixture
async def three(grid: Grid) -> Grid:
    await grid.start("n1", "n2", "n3", slots=1, ZKD_DATA__GRACE_S="1")
    return grid


@pytest.fixture(params=["near", "far"])
async def client(three: Grid, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """Near: the nodes' files can be read. Far: everything travels."""
    if request.param == "far":
        monkeypatch.setattr("zkd.client.copies.platform.node", lambda: "another-machine")
    async with Client(three.hosts, three.root) as client:
        yield client


async def full(dataset: Dataset, *nodes: str, within_s: float = 60.0) -> None:
    """Until these nodes keep it, and each part has its copies where they belong."""

    async def is_full() -> bool:
        stat = await dataset.stat()
        return stat.nodes.keys() == set(nodes) and stat.health == "full" and not stat.missing

    await until(is_full, within_s, f"{dataset.name} full")


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == column.dtype and np.array_equal(found[name], column) for name, column in expected.items()
    )


async def test_the_rows_of_a_key_are_exactly_those(three: Grid) -> None:
    nobody = {"i1": -128, "U": "nobody", "S": b"nobody", "M8": np.datetime64("1999-01-01")}
    async with Client(three.hosts, three.root) as client:
        for kind, keys in {**KEYS, "rows": np.arange(ROWS)}.items():
            table = {"k": keys, "x": np.random.default_rng(0).random((ROWS, 2)), "y": np.arange(ROWS) % 3 == 0}
            table["nothing"] = np.zeros((ROWS, 0))
            dataset = await client.datasets.put(kind, table, key=None if kind == "rows" else "k", parts=8)
            for row in (0, 777, ROWS - 1):
                for key in (keys[row], keys[row].item() if keys.dtype.kind not in "mM" else keys[row]):
                    chosen = keys == keys[row]
                    assert same(await dataset.get(key), {name: column[chosen] for name, column in table.items()})
            assert list(await dataset.get(keys[5], columns=["y"])) == ["y"]
            with pytest.raises(DatasetNotFound, match="has no row with the key"):
                await dataset.get(nobody.get(kind, 99_999))
            with pytest.raises(BadRows, match="key: expected a value of a column"):
                await dataset.get(None)


async def test_all_rows_are_there_when_a_node_was_killed_and_copies_come_back(three: Grid, client: Client) -> None:
    rng = np.random.default_rng(1)
    table = {"id": rng.permutation(20_000), "X": rng.random((20_000, 8)), "t": rng.integers(0, 99, 20_000).astype("U")}
    dataset = await client.datasets.put("a", table, key="id", label="t", parts=32)
    await full(dataset, "n1", "n2", "n3")
    three.nodes["n2"].kill()
    assert same(await dataset.read(), table)
    assert same(await (await client.datasets.open("a")).read(), table)
    await full(dataset, "n1", "n3")
    assert (await dataset.stat()).nodes == {"n1": 32, "n3": 32}
    # The one that was lost comes back, and takes over what is its own again.
    three.nodes["n2"].start()
    await full(dataset, "n1", "n2", "n3")
    assert (await dataset.stat()).nodes["n2"] > 0
    assert same(await dataset.read(), table)


async def test_a_put_goes_on_while_a_node_is_killed(three: Grid, client: Client) -> None:
    rng = np.random.default_rng(2)
    table = {"X": rng.random((300_000, 8))}

    def killer(progress: Any) -> None:
        if progress.parts_done == 3 and three.nodes["n3"].process.poll() is None:
            three.nodes["n3"].kill()

    async with asyncio.timeout(60):
        dataset = await client.datasets.put("a", table, parts=32, progress=killer)
    assert same(await dataset.read(), table)


async def test_versions_share_files_and_those_of_a_removed_one_go_later(three: Grid, client: Client) -> None:
    first, second = {"x": np.arange(5000)}, {"x": np.arange(5000, 6000)}
    one = await client.datasets.put("a", first, parts=8)
    two = await client.datasets.append("a", second)
    await full(two, "n1", "n2", "n3")
    await client.datasets.rm("a", 1)
    assert same(await two.read(), {"x": np.arange(6000)})
    assert (await one.stat()).rows == 5000
    await client.datasets.rm("a")
    with pytest.raises(DatasetNotFound):
        await client.datasets.open("a")


async def test_who_opened_a_version_never_gets_rows_of_the_dataset_that_took_its_name(
    three: Grid, client: Client
) -> None:
    old = await client.datasets.put("a", {"k": np.arange(100), "x": np.zeros(100)}, key="k", parts=4)
    assert (await old.get(7))["x"].tolist() == [0]
    await client.datasets.rm("a")
    new = await client.datasets.put("a", {"k": np.arange(100), "x": np.ones(100)}, key="k", parts=4)
    assert new.version == old.version + 1
    assert (await new.get(7))["x"].tolist() == [1]
    with pytest.raises(DataUnavailable):
        await old.get(7)
