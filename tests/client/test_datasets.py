"""Datasets from a program: what was put is read, or an error says why not, and nothing is half visible."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from tests.client.keepers import Keepers, keepers
from tests.store.serving import peer
from zkd.client import Client, merging, quorums
from zkd.client.dataset import Dataset
from zkd.client.quorums import quorum
from zkd.client.sending import Progress, Sending
from zkd.codec import encode
from zkd.core.datasets import holding, next_number, without
from zkd.core.placement import hash_key, part_of, place
from zkd.errors import BadRows, DataDamaged, DatasetExists, DatasetNotFound, DataUnavailable
from zkd.manifests import Column, Keeper, Numbers
from zkd.records import Node
from zkd.zk.server import EmbeddedServer


@asynccontextmanager
async def three(embedded: EmbeddedServer, directory: Path, *, is_local: bool) -> AsyncIterator[Keepers]:
    async with (
        Client(embedded.connect_string) as client,
        keepers(embedded.connect_string, directory, client) as nodes,
    ):
        nodes.is_local = is_local
        await nodes.add("n1", "n2", "n3")
        yield nodes


@pytest.fixture
async def far(embedded: EmbeddedServer, tmp_path: Path) -> AsyncIterator[Keepers]:
    """Three nodes, each on a machine of its own."""
    async with three(embedded, tmp_path, is_local=False) as nodes:
        yield nodes


@pytest.fixture
async def near(embedded: EmbeddedServer, tmp_path: Path) -> AsyncIterator[Keepers]:
    """Three nodes on this machine."""
    async with three(embedded, tmp_path, is_local=True) as nodes:
        yield nodes


@pytest.fixture(params=["far", "near"])
async def nodes(embedded: EmbeddedServer, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Keepers]:
    async with three(embedded, tmp_path, is_local=request.param == "near") as nodes:
        yield nodes


def table(rows: int = 1000, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "id": rng.permutation(rows * 3)[:rows].astype("i4"),
        "X": rng.random((rows, 3)),
        "y": rng.integers(0, 2, rows).astype(bool),
        "t": np.array([f"row {number}" for number in range(rows)]),
    }


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == np.asarray(expected[name]).dtype and np.array_equal(found[name], expected[name])
        for name in found
    )


async def tree(nodes: Keepers, path: str | None = None) -> list[str]:
    """Every znode below datasets/."""
    path = path or nodes.paths.datasets
    found = []
    for child in await nodes.session.children(path):
        found += [f"{path}/{child}", *await tree(nodes, f"{path}/{child}")]
    return sorted(found)


# --- Put and read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["id", "t", None])
async def test_what_was_put_is_read_in_the_order_in_which_it_was_written(nodes: Keepers, key: str | None) -> None:
    written = table()
    put = await nodes.client.datasets.put("a", written, key=key, label="y", parts=16)
    opened = await nodes.client.datasets.open("a@1")
    assert opened.manifest == put.manifest
    assert (opened.rows, opened.manifest.label, opened.manifest.replicas) == (1000, "y", 2)
    for dataset in (put, opened):
        assert same(await dataset.read(), written)
    assert same(await opened.read(columns=["y", "X"]), {"y": written["y"], "X": written["X"]})
    assert list(await opened.read(columns=["y", "X"])) == ["y", "X"]


async def test_every_part_has_the_rows_whose_keys_belong_there_on_the_nodes_that_all_compute(far: Keepers) -> None:
    written = table()
    dataset = await far.client.datasets.put("a", written, key="id", parts=16)
    homes = place("a", 16, 2, [Keeper("n1"), Keeper("n2"), Keeper("n3")])
    seen = []
    for number in range(16):
        part = await dataset.part(number)
        assert (np.diff(part.rows) > 0).all()
        assert {part_of(hash_key(int(key)), 16) for key in part["id"]} <= {number}
        for name, column in part.columns.items():
            assert np.array_equal(column, written[name][part.rows])
        seen += part.rows.tolist()
        for node in far.nodes.values():
            is_home = node.name in homes[number]
            assert all(node.store.has(ref.id) == is_home for ref in dataset.segments[number])
    assert sorted(seen) == list(range(1000))
    location = await dataset.locate(int(written["id"][5]))
    assert location.part == part_of(hash_key(int(written["id"][5])), 16)
    assert location.nodes == homes[location.part]


async def test_some_parts_are_read_in_written_order(far: Keepers) -> None:
    written = table()
    dataset = await far.client.datasets.put("a", written, key="id", parts=8)
    rows = np.sort(np.concatenate([(await dataset.part(number)).rows for number in (5, 1)]))
    found = await dataset.read(parts=[5, 1, 5])
    assert same(found, {name: column[rows] for name, column in written.items()})


async def test_parts_on_this_machine_are_maps_of_the_nodes_own_files(near: Keepers) -> None:
    dataset = await near.client.datasets.put("a", table(), parts=4)
    before = {name: len(node.asked) for name, node in near.nodes.items()}
    part = await dataset.part(2, columns=["X"])
    base: Any = part["X"]
    while not isinstance(base, mmap):
        base = base.obj if isinstance(base, memoryview) else base.base
        assert base is not None, "a copy"
    assert not part["X"].flags.writeable
    assert {name: len(node.asked) for name, node in near.nodes.items()} == before, "nobody was asked by HTTP"


async def test_a_damaged_local_file_is_not_mapped_but_read_from_another_node(near: Keepers) -> None:
    written = table()
    dataset = await near.client.datasets.put("a", written, parts=1, replicas=3)
    directory = near.nodes["n1"].directory / "segments" / dataset.segments[0][0].id
    for name in ("n1", "n2"):
        file = near.nodes[name].directory / "segments" / dataset.segments[0][0].id / "1.npy"
        damaged = bytearray(file.read_bytes())
        damaged[5000] ^= 1
        file.write_bytes(damaged)
    assert directory.exists()
    for _ in range(5):
        assert same(await (await near.client.datasets.open("a")).read(), written)


async def test_a_whole_segment_is_one_question_and_some_columns_are_more(
    far: Keepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("FIRST_DELAY_S", "DELAY_S_MIN", "DELAY_S_MAX"):  # nobody is so slow that another one is asked, too
        monkeypatch.setattr(f"zkd.client.race.{bound}", 30.0)
    written = table()
    dataset = await far.client.datasets.put("a", written, parts=4, replicas=3)
    for columns, questions in ((None, 4), (["y", "id", "t", "X"], 4), (["id"], 8), (["X"], 12)):
        for node in far.nodes.values():
            node.asked.clear()
        found = await dataset.read(columns=columns)
        assert all(np.array_equal(column, written[name]) for name, column in found.items())
        assert sum(len(node.asked) for node in far.nodes.values()) == questions


async def test_rows_come_from_any_replica_and_none_of_a_node_that_is_gone(far: Keepers) -> None:
    written = table()
    dataset = await far.client.datasets.put("a", written, parts=16)
    await far.report("a")
    await far.remove("n2")
    assert same(await dataset.read(), written)
    assert same(await (await far.client.datasets.open("a")).read(), written)
    await far.remove("n1")
    with pytest.raises(DataUnavailable, match=r"segment [0-9a-f]{12} of \d+ rows: "):
        await dataset.read()


async def test_a_slow_replica_is_not_waited_for(far: Keepers) -> None:
    written = table(4000)
    dataset = await far.client.datasets.put("a", written, parts=32, replicas=3)
    await far.report("a")
    await dataset.read()  # so that it is known how long a segment takes
    far.nodes["n1"].delay_s = 20.0
    async with asyncio.timeout(15):
        assert same(await dataset.read(), written)
    assert any(line.startswith("GET") for line in far.nodes["n1"].asked), "it was asked, and not waited for"


KEYS = {
    "i1": np.arange(100).astype("i1"),
    "u8": np.arange(100).astype("u8") + 2**63,
    "f4": np.arange(100).astype("f4") / 7,
    "U": np.array([f"käse {number % 50}" for number in range(100)]),
    "S": np.array([f"k{number % 50}".encode() for number in range(100)]),
    "M8": np.datetime64("2020-01-01T00:00", "m") + np.arange(100),
    "m8": np.arange(100).astype("m8[h]"),
}


@pytest.mark.parametrize("kind", [*KEYS, None])
async def test_rows_at_a_url_are_found_by_keys_of_every_kind(far: Keepers, tmp_path: Path, kind: str | None) -> None:
    keys = np.arange(100) if kind is None else KEYS[kind]
    written = {"k": keys, "x": np.arange(200.0).reshape(100, 2)}
    dataset = await far.client.datasets.put(
        "a", written, key=None if kind is None else "k", parts=4, store=f"file://{tmp_path}/shared"
    )
    for row in (0, 57, 99):
        chosen = keys == keys[row]
        assert same(await dataset.get(keys[row]), {name: column[chosen] for name, column in written.items()})
        assert list(await dataset.get(keys[row], columns=["x"])) == ["x"]


# --- What can be given ------------------------------------------------------------------------------------


async def test_iterators_of_batches_and_files_are_tables_too(far: Keepers, tmp_path: Path) -> None:
    written = table(900)

    def batches() -> Iterator[dict[str, Any]]:
        for start in range(0, 900, 100):
            yield {name: column[start : start + 100] for name, column in written.items()}

    async def slowly() -> AsyncIterator[dict[str, Any]]:
        for batch in batches():
            await asyncio.sleep(0)
            yield batch

    put = far.client.datasets.put
    np.savez(tmp_path / "a.npz", **written)
    (tmp_path / "a.csv").write_text(
        "id,t\n" + "".join(f"{i},{t}\n" for i, t in zip(written["id"], written["t"], strict=True))
    )
    assert same(await (await put("iterator", batches(), key="id")).read(), written)
    assert same(await (await put("async", slowly(), key="id")).read(), written)
    assert same(await (await put("npz", tmp_path / "a.npz", key="id")).read(), written)
    found = await (await put("csv", str(tmp_path / "a.csv"), key="t")).read()
    assert same(found, {"id": written["id"].astype("i8"), "t": written["t"]})


async def test_more_rows_than_the_buffer_are_spilled_and_all_there(
    far: Keepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkd.client.intake.buffer_bytes", lambda: 10_000)
    written = table(5000)
    assert same(await (await far.client.datasets.put("a", written, key="id", parts=8)).read(), written)


async def test_a_table_without_rows_is_a_dataset(far: Keepers) -> None:
    dataset = await far.client.datasets.put("a", {"x": np.empty((0, 3), "f4")})
    found = await dataset.read()
    assert (found["x"].shape, found["x"].dtype) == ((0, 3), np.dtype("f4"))


@pytest.mark.parametrize("replicas", [None, 2])
async def test_a_single_node_makes_one_copy_of_two_unless_two_were_asked_for(
    embedded: EmbeddedServer, tmp_path: Path, replicas: int | None
) -> None:
    async with (
        Client(embedded.connect_string) as client,
        keepers(embedded.connect_string, tmp_path, client) as nodes,
    ):
        await nodes.add("n1")
        if replicas is not None:
            with pytest.raises(DataUnavailable, match="2 replicas need 2 nodes that keep data, and there is 1"):
                await client.datasets.put("a", table(), replicas=replicas)
            return
        told: list[Progress] = []
        one = await client.datasets.put("a", table(100, 1), key="id", parts=4, progress=told.append)
        assert (one.manifest.replicas, one.manifest.quorum, told[-1].missing) == (2, 1, 1)
        two = await client.datasets.append("a", table(100, 2))
        assert (two.manifest.replicas, two.manifest.quorum) == (2, 1)
        await nodes.report("a")
        assert (await two.stat()).health == "degraded"
        await nodes.add("n2")
        assert (await two.stat()).missing == 4, "n2 is asked to fetch what it does not have"
        three = await client.datasets.append("a", table(100, 3))
        assert (three.manifest.replicas, three.manifest.quorum) == (2, None)
        await nodes.remove("n2")
        with pytest.raises(DataUnavailable, match="2 replicas need 2 nodes"):
            await client.datasets.append("a", table(100, 4))


async def test_progress_is_told_to_the_end(far: Keepers) -> None:
    told: list[Progress] = []
    dataset = await far.client.datasets.put("a", table(), parts=16, progress=told.append)
    assert told[-1] == Progress(1000, 16, 16, dataset.manifest.size)
    assert [each.parts_done for each in told] == sorted(each.parts_done for each in told)


@pytest.mark.parametrize(
    ("rows", "width", "parts"), [(10, 1, 1), (2000, 64, 32), (20_000, 64, 64), (2_000_000, 64, 128)]
)
async def test_small_tables_have_few_parts(far: Keepers, rows: int, width: int, parts: int) -> None:
    from zkd.client.intake import fewer_for, parts_for

    assert fewer_for(parts_for(3, 2), rows * width * 8, rows) == parts


# --- Versions ---------------------------------------------------------------------------------------------


async def test_an_append_shares_the_segments_of_the_version_before(far: Keepers) -> None:
    first, second = table(500, 1), table(300, 2)
    second["t"] = np.array([f"a longer text {number}" for number in range(300)])
    one = await far.client.datasets.put("a", first, key="id", parts=8)
    two = await far.client.datasets.append("a", second)
    assert (two.version, two.rows, two.manifest.parent) == (2, 800, 1)
    for before, after in zip(one.segments, two.segments, strict=True):
        assert after[: len(before)] == before
    together = {name: np.concatenate([first[name], second[name]]) for name in first}
    assert same(await two.read(), together)
    assert same(await (await far.client.datasets.open("a")).read(), together)
    assert same(await (await far.client.datasets.open("a@1")).read(), first)


async def test_appends_without_end_leave_few_segments_and_old_versions_as_they_were(
    far: Keepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkd.client.editions.CHUNK_BYTES_MAX", 2 * 10 * 100)  # ten segments for each of two parts
    tables = [table(20 + 5 * (number % 3), number) for number in range(30)]
    for number, one in enumerate(tables):
        one["t"] = one["t"].astype(f"U{9 + number % 4}")
    dataset = await far.client.datasets.put("a", tables[0], key="id", parts=2)
    for one in tables[1:]:
        dataset = await far.client.datasets.append("a", one)
        assert max(map(len, dataset.segments)) <= merging.SEGMENTS_MAX
    assert dataset.version == 30
    for version in (1, 8, 9, 10, 17, 29, 30):
        opened = await far.client.datasets.open("a", version)
        assert opened.rows == sum(len(one["id"]) for one in tables[:version])
        together = {name: np.concatenate([one[name] for one in tables[:version]]) for name in tables[0]}
        assert same(await opened.read(), together)


async def test_what_cannot_be_read_now_is_appended_to_all_the_same(
    far: Keepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "SEGMENTS_MAX", 1)
    dataset = await far.client.datasets.put("a", table(100, 1), key="id", parts=2)
    for node in far.nodes.values():
        for ref in dataset.segments[0]:
            if node.store.has(ref.id):
                await node.store.trash(ref.id)
    more = await far.client.datasets.append("a", table(100, 2))
    assert [len(refs) for refs in more.segments] == [2, 1]
    for node in far.nodes.values():
        await asyncio.gather(*(node.store.restore(ref.id) for ref in dataset.segments[0]))
    together = {name: np.concatenate([table(100, 1)[name], table(100, 2)[name]]) for name in table(1)}
    assert same(await more.read(), together)


@pytest.mark.parametrize(
    ("sizes", "new", "count"),
    [
        ([], 5, 0),
        ([1] * 7, 1, 0),  # few
        ([1] * 8, 1, 8),
        ([9, 1, 1, 1, 1, 1, 1, 1], 1, 7),  # 9 stays until 9 have come after it
        ([8, 7, 6, 5, 4, 3, 2, 1], 1, 8),
        ([90, 80, 70, 60, 50, 40, 30, 20], 1, 1),  # one at least
        ([90] * 8, merging.MERGED_BYTES_MAX, 0),  # what is large stays as it is
    ],
)
def test_segments_are_merged_when_as_much_came_after_them(sizes: list[int], new: int, count: int) -> None:
    assert merging.to_merge(sizes, new) == count


def test_rows_are_written_few_times_however_many_appends() -> None:
    sizes: list[int] = []
    written = 0
    for _ in range(5000):
        count = merging.to_merge(sizes, 1)
        merged = 1 + sum(sizes[len(sizes) - count :])
        sizes = [*sizes[: len(sizes) - count], merged]
        written += merged
        assert len(sizes) <= merging.SEGMENTS_MAX
    assert sum(sizes) == 5000
    assert written < 10 * 5000


async def test_only_one_of_two_who_append_at_once_succeeds(far: Keepers) -> None:
    await far.client.datasets.put("a", table(), parts=4)
    done = await asyncio.gather(
        *(far.client.datasets.append("a", table(100, seed)) for seed in range(4)), return_exceptions=True
    )
    good = [each for each in done if isinstance(each, Dataset)]
    assert all(isinstance(each, DatasetExists) for each in done if each not in good)
    assert len(good) >= 1
    assert list(await far.client.datasets.versions("a")) == list(range(1, 2 + len(good)))
    assert (await far.client.datasets.open("a")).rows == 1000 + 100 * len(good)


async def test_a_dataset_is_replaced_only_on_demand(far: Keepers) -> None:
    await far.client.datasets.put("a", table(100), parts=4)
    with pytest.raises(DatasetExists, match="there is a dataset a already"):
        await far.client.datasets.put("a", table(100), parts=4)
    replaced = await far.client.datasets.put("a", {"x": np.arange(5)}, replace=True)
    assert (replaced.version, replaced.manifest.parent) == (2, None)
    assert {name: manifest.version for name, manifest in (await far.client.datasets.list()).items()} == {"a": 2}


async def test_versions_are_removed_alone_or_all_and_leave_nothing(far: Keepers) -> None:
    first = table(200)
    await far.client.datasets.put("a", first, parts=4)
    await far.client.datasets.append("a", table(100, 1))
    await far.client.datasets.append("a", table(100, 2))
    await far.client.datasets.rm("a", 3)
    assert (await far.client.datasets.open("a")).version == 2
    await far.client.datasets.rm("a", 2)
    assert same(await (await far.client.datasets.open("a")).read(), first)
    assert len([path for path in await tree(far) if "/chunks/" in path]) == 1, "what nobody names is gone"
    with pytest.raises(DatasetNotFound, match="there is no version 2 of dataset a"):
        await far.client.datasets.rm("a", 2)
    await far.client.datasets.rm("a")
    assert await tree(far) == []
    for what in (far.client.datasets.rm("a"), far.client.datasets.open("a"), far.client.datasets.versions("a")):
        with pytest.raises(DatasetNotFound, match="there is no dataset a"):
            await what


async def test_all_but_the_newest_versions_are_removed_at_once(far: Keepers) -> None:
    await far.client.datasets.put("a", table(50), parts=4)
    for seed in range(5):
        await far.client.datasets.append("a", table(20, seed))
    await far.client.datasets.rm("a", keep=2)
    assert list(await far.client.datasets.versions("a")) == [5, 6]
    assert (await far.client.datasets.open("a")).rows == 150
    await far.client.datasets.rm("a", keep=2)
    assert list(await far.client.datasets.versions("a")) == [5, 6]
    for bad in (-1, "2"):
        with pytest.raises(BadRows, match="expected how many of the newest versions stay"):
            await far.client.datasets.rm("a", keep=bad)  # type: ignore[arg-type]


async def test_a_name_that_was_removed_can_be_used_again(far: Keepers) -> None:
    await far.client.datasets.put("a", table(50), parts=4)
    await far.client.datasets.rm("a")
    again = await far.client.datasets.put("a", {"x": np.arange(9)}, parts=2)
    assert (await again.read())["x"].tolist() == list(range(9))


async def test_a_number_is_never_given_to_other_rows(far: Keepers) -> None:
    """A task that says NAME@VERSION gets these rows, or none."""
    given = [(await far.client.datasets.put("a", {"x": np.arange(2)}, parts=1)).version]
    for going in (None, 2, None, None):
        for _ in range(2):
            given.append((await far.client.datasets.put("a", {"x": np.arange(2)}, parts=1, replace=True)).version)
        await far.client.datasets.rm("a", None if going is None else max(given))
        with pytest.raises(DatasetNotFound):
            await far.client.datasets.open("a", max(given))
    assert given == list(range(1, len(given) + 1))
    assert (await far.client.datasets.put("b", {"x": np.arange(2)}, parts=1)).version == 1
    assert await tree(far) == [path for path in await tree(far) if path.startswith(far.paths.dataset("b"))]


async def test_numbers_grow_when_what_is_known_of_them_cannot_be_read(far: Keepers) -> None:
    await far.session.set(far.paths.datasets, b"garbage", -1)
    assert (await far.client.datasets.put("a", {"x": np.arange(2)}, parts=1)).version == 1
    await far.client.datasets.rm("a")
    assert (await far.client.datasets.put("a", {"x": np.arange(2)}, parts=1)).version == 2


def test_numbers_of_many_datasets_take_little_room() -> None:
    numbers = Numbers()
    given: dict[str, int] = {}
    for turn in range(5000):
        name = f"d{turn % 2500}"
        number = next_number(numbers, name, [])
        assert number > given.get(name, 0)
        given[name] = number
        numbers = without(numbers, name, number)
        assert len(numbers.last) <= 1000
    assert numbers.floor <= 5, "one for each thousand"


# --- Faults -----------------------------------------------------------------------------------------------


def test_a_quorum_is_more_than_half() -> None:
    assert [quorum(replicas) for replicas in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]


async def test_a_node_that_cannot_take_a_part_is_replaced_by_the_next(far: Keepers) -> None:
    far.nodes["n2"].refuses = True
    written = table()
    dataset = await far.client.datasets.put("a", written, parts=16)
    for refs in dataset.segments:
        for ref in refs:
            assert sum(node.store.has(ref.id) for node in far.nodes.values()) == 2
    assert same(await dataset.read(), written)


async def test_a_node_that_died_and_is_still_in_the_ring_does_not_stand_in_the_way(far: Keepers) -> None:
    await far.remove("n3")
    written = table()
    assert same(await (await far.client.datasets.put("a", written, parts=16)).read(), written)


async def test_without_a_quorum_nothing_is_visible_and_it_is_said_why(far: Keepers) -> None:
    far.nodes["n1"].refuses = far.nodes["n2"].refuses = True
    with pytest.raises(DataUnavailable, match=r"a: part \d+ has [01] durable .* of the 2 .*No space left on device"):
        await far.client.datasets.put("a", table(), parts=16)
    assert await tree(far) == []
    assert await far.client.datasets.list() == {}


async def test_too_few_nodes_are_refused_before_anything_is_sent(far: Keepers) -> None:
    with pytest.raises(DataUnavailable, match="a: 8 replicas need 5 nodes that keep data, and there are 3"):
        await far.client.datasets.put("a", table(), replicas=8)
    assert await tree(far) == []
    assert all(node.asked == [] for node in far.nodes.values())


async def test_a_node_that_stalls_is_passed_over(far: Keepers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkd.client.quorums.SLOW_S", 0.2)
    monkeypatch.setattr("zkd.client.race.FIRST_DELAY_S", 0.05)
    far.nodes["n1"].delay_s = 60.0
    written = table()
    async with asyncio.timeout(20):
        dataset = await far.client.datasets.put("a", written, parts=16)
        assert same(await dataset.read(), written)


async def test_a_put_that_is_cancelled_leaves_nothing_to_see(far: Keepers) -> None:
    for node in far.nodes.values():
        node.delay_s = 0.5
    putting = asyncio.ensure_future(far.client.datasets.put("a", table(), parts=16))
    while not any(node.asked for node in far.nodes.values()):
        await asyncio.sleep(0.01)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert await tree(far) == []


async def test_a_session_that_expires_while_parts_are_sent_publishes_nothing(
    far: Keepers, embedded: EmbeddedServer
) -> None:
    for node in far.nodes.values():
        node.delay_s = 0.3
    putting = asyncio.ensure_future(far.client.datasets.put("a", table(), parts=8))
    while not any(node.asked for node in far.nodes.values()):
        await asyncio.sleep(0.01)
    embedded.expire(far.client.session.session_id)
    with pytest.raises(DataUnavailable, match="the session expired while the parts were sent; nothing was changed"):
        await putting
    assert await far.client.datasets.list() == {}


@pytest.mark.parametrize(
    ("name", "data", "options", "says"),
    [
        ("../a", {"x": [1]}, {}, "name: expected 1 to 128 letters"),
        ("a/b", {"x": [1]}, {}, "name: expected 1 to 128 letters"),
        ("", {"x": [1]}, {}, "name: expected 1 to 128 letters"),
        ("a\n", {"x": [1]}, {}, "name: expected 1 to 128 letters"),
        ("a", {"x": [1]}, {"parts": 3}, "parts: expected a power of two from 1 to 16384, got 3"),
        ("a", {"x": [1]}, {"parts": 0}, "parts: expected a power of two"),
        ("a", {"x": [1]}, {"replicas": 17}, "replicas: expected 1 to 16, got 17"),
        ("a", {"x": [1], "y": [1, 2]}, {}, "column 'y': expected 1 rows"),
        ("a", {"x": np.array([object()])}, {}, "column 'x': dtype object is not plain data"),
        ("a", {"x": [1.0, float("nan")]}, {"key": "x"}, r"column 'x': NaN equals nothing.*row 1"),
        ("a", {"x": [1]}, {"key": "z"}, "key: expected one of the columns 'x', got 'z'"),
        ("a", {"x": [1]}, {"label": "z"}, "label: expected one of the columns"),
        ("a", [], {}, "rows: expected at least one batch"),
        ("a", [{"x": [1]}, {"x": [1.5]}], {}, "column 'x': expected int64 as in the rows before, got float64"),
        ("a", 7, {}, "rows: expected a mapping of arrays, an iterator of these, or the path of a file"),
    ],
)
async def test_bad_input_is_refused_in_words_and_leaves_nothing(
    far: Keepers, name: str, data: Any, options: Any, says: str
) -> None:
    with pytest.raises(BadRows, match=says):
        await far.client.datasets.put(name, data, **options)
    assert await tree(far) == []
    assert all(node.asked == [] for node in far.nodes.values())


async def test_rows_of_other_columns_are_not_appended(far: Keepers) -> None:
    await far.client.datasets.put("a", {"x": [1, 2]}, parts=2)
    with pytest.raises(BadRows, match="column 'x': expected int64 as in the rows before, got float64"):
        await far.client.datasets.append("a", {"x": [1.5]})
    await far.client.datasets.put("c", {"x": [1], "y": [2]}, key="x", label="y", parts=2)
    with pytest.raises(BadRows, match="columns: expected 'x', 'y' as in the rows before; 'y' is missing"):
        await far.client.datasets.append("c", {"x": [1]})
    with pytest.raises(DatasetNotFound, match="there is no dataset b"):
        await far.client.datasets.append("b", {"x": [1]})
    assert list(await far.client.datasets.versions("a")) == [1]


async def test_text_that_looks_like_numbers_is_appended_to_text(far: Keepers, tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("zip,x\n00123,1\n50667,2\n")
    second.write_text("zip,x\n1011512,3\n")
    await far.client.datasets.put("a", first, key="zip", parts=2)
    more = await far.client.datasets.append("a", second)
    assert (await more.read())["zip"].tolist() == ["00123", "50667", "1011512"]


async def test_what_is_not_there_is_said(far: Keepers) -> None:
    dataset = await far.client.datasets.put("a", {"x": [1, 2], "k": ["a", "b"]}, key="k", parts=2)
    with pytest.raises(DatasetNotFound, match="there is no version 9 of dataset a"):
        await far.client.datasets.open("a@9")
    with pytest.raises(DatasetNotFound, match="a has no column 'z'; it has 'x', 'k'"):
        await dataset.read(columns=["z"])
    with pytest.raises(DatasetNotFound, match="a@1 has the parts 0 to 1, not 2"):
        await dataset.part(2)
    with pytest.raises(BadRows, match="key: expected a value of a column of <U1, got '5' \\(int\\)"):
        await dataset.locate(5)
    with pytest.raises(BadRows, match="name: expected NAME or NAME@VERSION"):
        await far.client.datasets.open("a@b")


async def test_a_node_that_went_in_the_middle_is_not_waited_for(far: Keepers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen while it is sent to, say, and no other node could take its place: its answer may never come."""
    monkeypatch.setattr(quorums, "SLOW_S", 0.3)
    await far.remove("n3")
    far.nodes["n2"].delay_s = 600.0
    async with asyncio.TaskGroup() as tasks:
        put = tasks.create_task(_refused(far, "stuck"))
        while not far.nodes["n2"].asked:
            await asyncio.sleep(0.02)
        path = far.paths.node("n2")
        await far.session.delete(path, -1)
        assert "n2: it is gone" in await asyncio.wait_for(put, 20.0)


async def _refused(far: Keepers, name: str) -> str:
    with pytest.raises(DataUnavailable) as refusal:
        await far.client.datasets.put(name, {"x": np.arange(64)}, parts=4, replicas=2)
    return str(refusal.value)


# --- Health -----------------------------------------------------------------------------------------------


async def test_what_nodes_have_not_said_yet_is_not_lost(far: Keepers) -> None:
    """They say what they hold some tenths of a second after they have it."""
    dataset = await far.client.datasets.put("fresh", {"x": np.arange(64)}, parts=8, replicas=2)
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(dataset.stat())
        await asyncio.sleep(0.3)
        assert not asked.done()
        await far.report("fresh")
    assert asked.result().health == "full"


async def test_health_is_what_nodes_that_are_here_say(far: Keepers) -> None:
    dataset = await far.client.datasets.put("a", table(), parts=8)
    await far.report("a")
    stat = await dataset.stat()
    assert (stat.health, stat.full, stat.missing, stat.astray, stat.copies) == ("full", 8, 0, 0, [2] * 8)
    assert sum(stat.nodes.values()) == 16
    await far.remove("n1")
    stat = await dataset.stat()
    assert (stat.health, stat.lost) == ("degraded", 0)
    assert stat.degraded == stat.missing > 0
    await far.remove("n2")
    stat = await dataset.stat()
    assert stat.health == "lost"
    assert stat.full + stat.degraded + stat.lost == 8


async def test_verify_reads_every_copy_and_finds_the_bad_one(far: Keepers) -> None:
    dataset = await far.client.datasets.put("a", table(), parts=4)
    await far.report("a")
    assert (await dataset.verify()).bad == []
    part = 2
    node = next(node for node in far.nodes.values() if node.store.has(dataset.segments[part][0].id))
    file = node.directory / "segments" / dataset.segments[part][0].id / "rows.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    verified = await dataset.verify()
    assert (verified.good, verified.bad, verified.silent) == (7, [(node.name, part)], {})
    assert not node.store.has(dataset.segments[part][0].id)


# --- Lies -------------------------------------------------------------------------------------------------


async def test_what_contradicts_itself_in_the_tree_is_said_and_not_believed(far: Keepers) -> None:
    paths, session = far.paths, far.session
    dataset = await far.client.datasets.put("a", table(), parts=4)
    good = encode(dataset.manifest)
    chunk = paths.chunk("a", dataset.manifest.chunks[0])
    text = (await session.get(chunk)).data

    async def refused(says: str, **changes: Any) -> None:
        await session.set(paths.version("a", 1), encode(replace(dataset.manifest, **changes)), -1)
        with pytest.raises(DataDamaged, match=says):
            await far.client.datasets.open("a")

    await refused("expected a@1, got b@1", name="b")
    await refused(r"expected the 1000 rows of \d+ bytes of all segments, got 999", rows=999)
    await refused("expected a power of two", parts=3)
    await refused("expected 2 for 512 parts, got 1", parts=512)
    await refused("expected 8 parts, got 4", parts=8)
    await refused("expected plain data such as <f8, got 'O'", columns=[Column("x", "O")])
    await refused(r"chunks/0{64} is not there, and a manifest names it", chunks=["0" * 64])
    await session.set(paths.version("a", 1), good, -1)
    await session.set(chunk, text.replace(b"[", b"[ ", 1), -1)
    with pytest.raises(DataDamaged, match="expected the bytes of blake3"):
        await far.client.datasets.open("a")
    await session.set(chunk, text, -1)
    await session.set(paths.dataset("a"), b"not a head", -1)
    with pytest.raises(DataDamaged, match="datasets/a: "):
        await far.client.datasets.open("a")
    assert await far.client.datasets.list() == {}
    await session.set(paths.dataset("a"), b'{"current":1}', -1)
    assert (await far.client.datasets.open("a")).rows == 1000


async def test_segments_of_other_columns_than_the_manifest_says_are_refused(far: Keepers) -> None:
    dataset = await far.client.datasets.put("a", {"x": np.arange(50), "y": np.arange(50.0)}, parts=1)
    for columns in (
        [Column("x", "<f8"), Column("y", "<f8")],
        [Column("y", "<i8"), Column("x", "<f8")],
        [Column("x", "<i8"), Column("y", "<f8"), Column("z", "<f8")],
    ):
        text = encode(replace(dataset.manifest, columns=columns))
        await far.session.set(far.paths.version("a", 1), text, -1)
        with pytest.raises((DataUnavailable, DataDamaged)):
            await (await far.client.datasets.open("a")).read()


@pytest.mark.parametrize("how", ["garbage", "stalls", "closes", "another segment"])
async def test_a_peer_that_lies_or_stalls_costs_a_try(far: Keepers, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that says it holds the parts is none of ours."""
    written = table()
    dataset = await far.client.datasets.put("a", written, parts=4, replicas=2)
    other = await far.client.datasets.put("b", table(seed=1), parts=1, replicas=3)
    ref = other.segments[0][0]
    packed = b"".join([piece async for piece in far.nodes["n1"].store.read(ref.id)])

    async def answer(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if how == "stalls":
            await asyncio.sleep(60)
        body = packed if how == "another segment" else b"x" * 100_000
        if how != "closes":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        raise ConnectionError

    monkeypatch.setattr("zkd.client.race.FIRST_DELAY_S", 0.05)
    async with peer(answer) as address, asyncio.timeout(20):
        entry = Node("liar", "liar-1", 1, address=address, host="far-liar")
        await far.session.create(far.paths.node("liar"), encode(entry), ephemeral=True)
        await far.session.create(f"{far.paths.holdings}/a")
        await far.session.create(far.paths.holding("a", "liar"), encode(holding("liar-1", {1: 15})))
        assert same(await (await far.client.datasets.open("a")).read(), written)
    assert dataset.rows == 1000


async def test_who_begins_while_the_rest_of_a_dataset_is_removed_publishes(
    far: Keepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He who removes takes `writers/`, then the other directories: one may begin in between."""
    session, paths = far.session, far.client.paths
    sent = Sending.run

    async def run(self: Sending) -> Any:
        for path in (paths.chunks("a"), paths.versions("a")):
            await session.delete(path, -1)
        return await sent(self)

    monkeypatch.setattr(Sending, "run", run)
    async with asyncio.timeout(10):
        await far.client.datasets.put("a", table(100), parts=4)
    assert same(await (await far.client.datasets.open("a")).read(), table(100))
