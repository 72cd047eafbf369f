"""Datasets whose parts lie at a URL: the same to their readers, and nodes work on them that are told they may."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zkd
from tests.node.conftest import Site
from tests.node.submitter import until
from tests.store.buckets import aws, s3_server
from zkd.errors import BadRows, DataDamaged, DatasetNotFound, DataUnavailable, TaskError, TaskNotFound
from zkd.store import segment_cache

__all__ = ["aws", "s3_server"]  # fixtures

ROWS = 20_000


def table(rows: int = ROWS, seed: int = 1) -> dict[str, Any]:
    dice = np.random.default_rng(seed)
    return {"x": dice.normal(size=(rows, 3)), "id": np.arange(rows) * 7 + seed, "w": dice.integers(0, 9, rows)}


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/shared/data"
    request.getfixturevalue("aws")
    return "s3://zkd/data/of/ours"


async def test_what_lies_at_a_url_is_a_dataset_like_any_other(site: Site, url: str) -> None:
    await site.node("a", data__stores=[url.rpartition("/")[0]])
    await site.node("b", data__stores=[url])
    first, more = table(), table(500, seed=2)
    both = {name: np.concatenate([first[name], more[name]]) for name in first}
    async with zkd.Client(site.hosts, root=site.root) as client:
        put = await client.datasets.put("table", first, key="id", parts=4, store=f"{url}/")
        assert (put.manifest.store, put.manifest.replicas) == (url, 1)
        await client.datasets.append("table", more)
        dataset = await client.datasets.open("table")
        assert (dataset.manifest.store, dataset.version) == (url, 2)
        for name, column in (await dataset.read()).items():
            assert np.array_equal(column, both[name])
        assert np.array_equal((await put.read(columns=["w"]))["w"], first["w"])
        found = await dataset.get(7 * 123 + 1)
        assert np.array_equal(found["x"], first["x"][123:124])
        with pytest.raises(DatasetNotFound):
            await dataset.get(-1)
        assert (await dataset.locate(7)).nodes == ()
        stat = await dataset.stat()
        assert (stat.health, stat.full, stat.lost) == ("full", 4, 0)
        assert (await dataset.verify()).bad == []
        for node in ("a", "b"):
            sums = await client.options(node=node).map_parts("numpy.sum", dataset, columns=["w"])
            assert len(sums) == 4
            assert sum(sums) == both["w"].sum()
        with pytest.raises(DatasetNotFound):
            await client.datasets.open("other")
        await client.datasets.rm("table")
        assert (await put.verify()).bad == []  # nothing there is removed


async def test_what_is_damaged_or_gone_there_is_told_and_never_read(site: Site, tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    await site.node("a", data__stores=[f"file://{directory}"])
    async with zkd.Client(site.hosts, root=site.root) as client:
        dataset = await client.datasets.put("table", table(), parts=4, store=f"file://{directory}")
        path = directory / dataset.segments[2][0].id
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(DataDamaged):
            await dataset.read()
        assert (await dataset.verify()).bad == [(f"file://{directory}", 2)]
        assert (await dataset.stat()).health == "full"  # it looks at sizes
        with pytest.raises(TaskError):
            await client.options(not_after_s=2).map_parts("numpy.sum", dataset, columns=["w"])
        path.unlink()
        stat = await dataset.stat()
        assert (stat.health, stat.lost, stat.copies) == ("lost", 1, [1, 1, 0, 1])
        again = await client.datasets.put("table", table(), parts=4, store=f"file://{directory}", replace=True)
        assert np.array_equal((await again.read())["x"], table()["x"])
        assert (await dataset.stat()).health == "full"  # the same rows are the same objects


async def test_a_node_opens_no_url_that_its_operator_did_not_name(site: Site, tmp_path: Path) -> None:
    daemon = await site.node("a", data__stores=[f"file://{tmp_path}/other"])
    async with zkd.Client(site.hosts, root=site.root) as client:
        dataset = await client.datasets.put("table", table(), parts=1, store=f"file://{tmp_path}/shared")
        working = asyncio.create_task(client.map_parts("numpy.sum", dataset, columns=["w"]))

        async def is_told() -> bool:
            for name in await client.tasks():
                with suppress(TaskNotFound):
                    told = [attempt.message or "" for attempt in (await client.task(name)).attempts]
                    if any("is not in data.stores of this node" in each for each in told):
                        return True
            return False

        await until(is_told, 10.0, "the attempts say why")
        assert not daemon.apply(site.settings("a", data__stores=[f"file://{tmp_path}/shared"]))
        assert await working == [table()["w"].sum()]


async def test_what_no_node_needs_to_keep_needs_no_node_that_keeps(site: Site, tmp_path: Path) -> None:
    await site.node("a", data__weight=0, data__stores=[f"file://{tmp_path}"])
    async with zkd.Client(site.hosts, root=site.root) as client:
        await client.datasets.put("table", table(), store=f"file://{tmp_path}/shared")
        with pytest.raises(BadRows, match="expected none with `store`"):
            await client.datasets.put("other", table(), store=f"file://{tmp_path}/shared", replicas=2)
        for bad in ("/shared", "http://host/x", "s3://"):
            with pytest.raises(BadRows, match="expected file:///directory or s3://"):
                await client.datasets.put("other", table(), store=bad)
        with pytest.raises(DataUnavailable):
            await client.datasets.put("other", table(), store="file:///proc/nothing")
        assert list(await client.datasets.list()) == ["table"]


async def test_the_cache_of_a_node_is_bounded(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 1_000_000
    monkeypatch.setattr(segment_cache, "CACHE_BYTES_MAX", size)
    monkeypatch.setattr(segment_cache, "USED_LATELY_S", 0.0)
    daemon = await site.node("a", data__stores=[f"file://{tmp_path}"])
    async with zkd.Client(site.hosts, root=site.root) as client:
        dataset = await client.datasets.put("table", table(), parts=8, store=f"file://{tmp_path}/shared")
        sums = await client.map_parts("numpy.sum", dataset, columns=["w"])
        assert sum(sums) == table()["w"].sum()
        assert sum(await client.map_parts("numpy.sum", dataset, columns=["w"])) == sum(sums)

    def kept() -> int:
        directory = daemon.settings.node.data_dir / "remote"
        return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(directory) for name in names)

    assert 0 < await asyncio.to_thread(kept) <= size + 10_000
