"""Tasks on datasets over three nodes: where the parts are, as numpy says, whatever happens to nodes and files."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from tests.node.conftest import Site
from tests.node.submitter import until
from zkd.arrays import to_json
from zkd.client import Client
from zkd.client.dataset import Dataset
from zkd.daemon import Daemon
from zkd.errors import BadRecord, TaskFailed, TaskRejected
from zkd.records import Result

REAL: dict[str, Callable[[], Any]] = {
    "digits": lambda: load_digits(return_X_y=True),
    "breast_cancer": lambda: load_breast_cancer(return_X_y=True),
    "diabetes": lambda: load_diabetes(return_X_y=True),
}
NAMES = ("a", "b", "c")


@pytest.fixture
async def client(site: Site) -> AsyncIterator[Client]:
    async with Client(site.hosts, site.root) as client:
        yield client


async def nodes(site: Site, *names: str, slots: int = 2) -> dict[str, Daemon]:
    modules = ["mischief", "parted"]
    started = {name: await site.node(name, slots, workers__modules=modules) for name in names or NAMES}

    async def are_in_the_ring() -> bool:
        return all(started.keys() <= keepers(daemon) for daemon in started.values())

    await until(are_in_the_ring, 10.0, "all nodes keep data, and know it")
    return started


def keepers(daemon: Daemon) -> set[str]:
    return {keeper.node for keeper in daemon.view.atlas.ring.keepers}


async def kept(client: Client, name: str = "digits", parts: int = 8, replicas: int = 2) -> tuple[Any, Any, Dataset]:
    x, y = REAL[name]()
    made = await client.datasets.put(name, {"x": x, "y": y}, parts=parts, replicas=replicas, label="y")
    return x, y, made


def homes(daemon: Daemon, made: Dataset) -> list[tuple[str, ...]]:
    return [daemon.view.atlas.homes(made.name, made.version, part) for part in range(made.parts)]


async def settled(daemons: dict[str, Daemon], made: Dataset) -> None:
    async def all_know() -> bool:
        return all(daemon.view.is_settled and all(homes(daemon, made)) for daemon in daemons.values())

    await until(all_know, 10.0, "all nodes know where each part belongs")


def segment_of(daemon: Daemon, made: Dataset, part: int) -> str:
    refs = daemon.view.atlas.segments(made.name, made.version, part)
    assert refs
    return refs[0].id


def segment_dir(site: Site, node: str, segment_id: str) -> Path:
    return site.directory / node / "segments" / segment_id


def value_of(result: Result) -> Any:
    assert result.status == "done", result
    return json.loads(bytes(result.value))  # type: ignore[arg-type]


async def results_of(site: Site, task_id: str) -> dict[str, Result]:
    """Of all children that still have one."""
    session, paths = site.user.session, site.user.paths
    found = [name for name in await session.children(paths.results) if name.startswith(f"{task_id}.")]
    return {name: await site.user.result(name) for name in found}


# --- What comes out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
async def test_summaries_by_parts_of_real_data_are_numpys(site: Site, client: Client, name: str) -> None:
    await nodes(site)
    x, y, made = await kept(client, name)
    both = np.column_stack([x, y])
    moments = await client.map_parts("moments", made, columns=["x", "y"], cross=True, combine="combine_moments")
    assert moments["count"] == len(x)
    np.testing.assert_allclose(moments["mean"], both.mean(axis=0), rtol=1e-12, atol=1e-15)
    covariance = await client.map_parts("moments", name, columns=["x", "y"], cross=True, combine="combine_covariance")
    expected = np.cov(both, rowvar=False)
    spread = np.sqrt(np.diagonal(expected))
    assert (np.abs(covariance - expected) <= 1e-12 * np.outer(spread, spread)).all()
    edges = np.histogram_bin_edges(x, 20)
    found = await client.map_parts("histogram", made, edges, columns=["x"], combine="combine_histograms")
    np.testing.assert_array_equal(found["counts"], np.histogram(x, edges)[0])
    sketch = await client.map_parts(
        "quantile_sketch", made, columns=["x"], size=2048, combine="combine_quantile_sketches"
    )
    quantiles = await client.run("sketch_quantiles", sketch, [0.1, 0.5, 0.99])
    assert quantiles["rank_error"] == 0
    np.testing.assert_array_equal(quantiles["values"], np.quantile(x, [0.1, 0.5, 0.99], axis=0))
    if name == "digits":
        groups = await client.map_parts("group_sums", made, columns=["y", "y"], combine="combine_group_sums")
        np.testing.assert_array_equal(groups["counts"], np.bincount(y))
        np.testing.assert_array_equal(groups["sums"][0], np.bincount(y) * np.arange(10))


async def test_the_number_of_nodes_changes_no_bit(site: Site, client: Client) -> None:
    await nodes(site, "a")
    _, _, made = await kept(client, "diabetes", parts=16, replicas=1)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("moments", {"columns": ["x", "y"], "cross": True, "combine": "combine_moments"}),
        ("quantile_sketch", {"columns": ["x"], "size": 16, "combine": "combine_quantile_sketches"}),
        ("group_sums", {"columns": ["y", "y"], "combine": "combine_group_sums"}),
    ]
    on_one = [to_json(await client.map_parts(kernel, made, **options)) for kernel, options in calls]
    await nodes(site, "b", "c")
    await until(lambda: spread_over(client, made, 3), 20.0, "the parts moved to the new nodes")
    for (kernel, options), expected in zip(calls, on_one, strict=True):
        assert to_json(await client.map_parts(kernel, made, **options)) == expected


async def spread_over(client: Client, made: Dataset, count: int) -> bool:
    said = await client.map_parts("where", made, columns=["x"])
    return len({Path(file).parts[-4] for file, _, _ in said if file}) == count


async def test_parts_are_maps_on_a_home_of_theirs_in_part_order(site: Site, client: Client) -> None:
    daemons = await nodes(site)
    _, _, made = await kept(client)
    await settled(daemons, made)
    said = await client.map_parts("where", "digits", columns=["x"])
    for part, (file, is_writable, attempt) in enumerate(said):
        path = Path(file)
        assert (is_writable, attempt) == (False, 1)
        assert path.parts[-4] in homes(daemons["a"], made)[part]
        assert path.parts[-2] == segment_of(daemons["a"], made, part)
    some = await client.map_parts("where", made, columns=["x"], parts=[5, 2])
    assert [Path(file).parts[-2] for file, _, _ in some] == [Path(said[part][0]).parts[-2] for part in (5, 2)]


async def test_without_columns_a_part_is_a_table_and_rows_are_their_numbers(site: Site, client: Client) -> None:
    await nodes(site)
    x, y, _ = await kept(client)
    tables = await client.map_parts("table", "digits", 2)
    assert sum(table["x"] for table in tables) == 2 * x.sum()
    assert sum(table["y"] for table in tables) == 2 * y.sum()
    numbers = await client.map_parts("identity", "digits", columns=["rows"])
    np.testing.assert_array_equal(np.sort(np.concatenate(numbers)), np.arange(len(x)))


async def test_an_appended_part_is_one_array(site: Site, client: Client) -> None:
    await nodes(site)
    x, _, made = await kept(client)
    longer = await client.datasets.append("digits", {"x": x[:100], "y": np.arange(100)})
    sums = await client.map_parts("numpy.sum", longer, columns=["x"])
    assert sum(sums) == x.sum() + x[:100].sum()
    assert sum(await client.map_parts("numpy.sum", made, columns=["x"])) == x.sum(), "the version before is as it was"
    rows = await client.map_parts("identity", "digits", columns=["rows"])
    assert all((np.diff(some) > 0).all() for some in rows)


async def test_values_of_any_size_are_gathered(site: Site, client: Client) -> None:
    await nodes(site)
    x, _, made = await kept(client)
    whole = await client.map_parts("much", made, columns=["rows"], combine="add_all")
    assert whole.shape == (200_000,)
    assert (whole == np.arange(len(x)).sum()).all()
    values = await client.map_parts("much", made, columns=["rows"])
    assert len(values) == made.parts
    assert sum(value[0] for value in values) == whole[0]


async def test_large_arguments_go_by_reference(site: Site, client: Client) -> None:
    await nodes(site)
    x, _, made = await kept(client)
    weights = np.random.default_rng(0).normal(size=(64, 500))
    parts = await client.map_parts("numpy.matmul", made, weights, columns=["x"])
    found = np.concatenate(parts)
    order = np.argsort(np.concatenate(await client.map_parts("identity", made, columns=["rows"])))
    np.testing.assert_allclose(found[order], x @ weights, rtol=1e-9)


async def test_any_zookeeper_client_can_do_the_same(site: Site, client: Client) -> None:
    await nodes(site)
    x, y, made = await kept(client)
    whole = await site.user.do("moments", dataset="digits", columns=["x"], combine="combine_moments")
    assert whole.status == "done", whole
    np.testing.assert_allclose(value_of(whole)["mean"], x.mean(axis=0), rtol=1e-12)
    one = await site.user.do("numpy.sum", dataset=f"digits@{made.version}", partition=3, columns=["y"])
    every = await client.map_parts("numpy.sum", made, columns=["y"])
    assert value_of(one) == every[3]
    assert sum(every) == y.sum()


# --- What goes wrong --------------------------------------------------------------------------------------


async def test_what_is_not_there_is_rejected_with_what_was_expected(site: Site, client: Client) -> None:
    await nodes(site, "a")
    await kept(client, replicas=1)
    for given, says in (
        ({"dataset": "digit"}, "there is no dataset 'digit'"),
        ({"dataset": "digits@7"}, "no version 7"),
        ({"dataset": "digits", "columns": ["z"]}, "expected one of x, y, the columns of digits@1, got 'z'"),
        ({"dataset": "digits", "parts": [8]}, "0 to 7, got 8"),
        ({"dataset": "digits", "combine": "combine_momets"}, "did you mean 'combine_moments'"),
    ):
        name = given.pop("dataset")
        with pytest.raises(TaskRejected, match=says):
            await client.map_parts("moments", name, **given)  # type: ignore[arg-type]
    with pytest.raises(TaskRejected, match=r"part \d of digits@1.*\$\.columns\[0\].*2 dimensions"):
        await client.map_parts("class_means", "digits", columns=["y", "y"])
    with pytest.raises(BadRecord, match="regex"):
        await client.map_parts("moments", "../digits")
    with pytest.raises(BadRecord, match="each part once"):
        await client.map_parts("moments", "digits", parts=[1, 1])


async def test_a_failing_part_names_itself_and_nothing_is_left_behind(site: Site, client: Client) -> None:
    await nodes(site)
    _, _, made = await kept(client)
    numbers = await client.map_parts("identity", made, columns=["rows"])
    part = next(part for part, rows in enumerate(numbers) if 17 in rows)
    with pytest.raises(TaskFailed, match=f"part {part} of digits@1 on [abc]: row 17 is bad") as failed:
        await client.map_parts("picky", made, 17, columns=["rows"])
    assert failed.value.kind == "ValueError"
    assert "raise ValueError" in failed.value.remote_traceback
    await until(lambda: nothing_waits(client), 5.0, "no task is left")
    assert [task_id for task_id in await client.dead() if "." in task_id] == [], "parts are dead with their parent only"


async def nothing_waits(client: Client) -> bool:
    return await client.tasks() == []


async def test_a_dead_one_can_be_put_back(site: Site, client: Client) -> None:
    await nodes(site)
    await kept(client)
    task = await site.user.drop({"kernel": "picky", "args": [17], "dataset": "digits", "columns": ["rows"]}, "dead")
    assert (await site.user.result(task)).status == "failed"
    await client.retry(task)
    again = await site.user.result(task)
    assert again.status == "failed"
    assert again.error is not None
    assert "row 17 is bad" in again.error.message


async def test_cancelling_the_whole_stops_its_parts(site: Site, client: Client) -> None:
    await nodes(site)
    await kept(client)
    task = await site.user.drop({"kernel": "slow_sum", "args": [60], "dataset": "digits", "columns": ["x"]}, "long")

    async def is_running() -> bool:
        running = [run.id for status in (await client.statuses()).values() for run in status.running]
        return sum(name.startswith("long.") for name in running) >= 4

    await until(is_running, 10.0, "parts are running")
    began = time.monotonic()
    assert await site.user.cancel(task)
    assert (await site.user.result(task)).status == "cancelled"
    await until(lambda: nothing_waits(client), 5.0, "all parts are gone")
    assert time.monotonic() - began < 4.0
    assert {result.status for result in (await results_of(site, "long")).values()} == {"cancelled"}
    assert await client.map_parts("numpy.sum", "digits", columns=["y"]), "the slots are free"


async def test_a_damaged_part_costs_nothing_and_another_copy_is_used(site: Site, client: Client) -> None:
    daemons = await nodes(site)
    x, _, made = await kept(client)
    await settled(daemons, made)
    hurt = homes(daemons["a"], made)[3][0]
    segment = segment_of(daemons["a"], made, 3)
    file = segment_dir(site, hurt, segment) / "0.npy"
    flip(file)
    whole = await site.user.do("numpy.sum", dataset="digits", columns=["x"])
    sums = value_of(whole)
    expected = await client.map_parts("numpy.sum", made, columns=["x"])
    assert sum(sums) == x.sum()
    assert sums == list(expected)
    charged = [attempt.cause for result in (await results_of(site, "t-1")).values() for attempt in result.attempts]
    assert set(charged) <= {"data"}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.chmod(0o600)
    file.write_bytes(data)


async def test_a_part_that_is_damaged_while_it_is_worked_on_does_not_count(site: Site, client: Client) -> None:
    daemons = await nodes(site, slots=1)
    _, _, made = await kept(client, parts=1)
    expected = await client.map_parts("numpy.sum", made, columns=["x"])
    trace = site.trace()
    task = await site.user.drop(
        {"kernel": "slow_sum", "args": [1.0, str(trace)], "dataset": "digits", "partition": 0, "columns": ["x"]}, "t"
    )
    await until(lambda: has_lines(trace, 1), 10.0, "it runs")
    where = next(name for name, status in daemons.items() if status.executor.running())
    flip(segment_dir(site, where, segment_of(daemons["a"], made, 0)) / "0.npy")
    result = await site.user.result(task, 15.0)
    assert value_of(result) == expected[0]
    assert [(attempt.cause, attempt.node) for attempt in result.attempts] == [("data", where)]
    assert result.attempt == 1, "it was not charged"


async def has_lines(path: Path, count: int) -> bool:
    return len((await asyncio.to_thread(path.read_text)).splitlines()) >= count


async def test_a_part_that_was_removed_from_a_disk_is_fetched(site: Site, client: Client) -> None:
    daemons = await nodes(site)
    x, _, made = await kept(client)
    await settled(daemons, made)
    for part in range(made.parts):
        home = homes(daemons["a"], made)[part][0]
        shutil.rmtree(segment_dir(site, home, segment_of(daemons["a"], made, part)))
    sums = await client.map_parts("numpy.sum", made, columns=["x"])
    assert sum(sums) == x.sum()


async def test_a_crashing_part_costs_its_own_retries_only(site: Site, client: Client) -> None:
    await nodes(site)
    x, _, made = await kept(client, parts=4)
    options = client.options(retries=1)
    counts = await options.map_parts("crash", made, str(site.directory / "crashed"), columns=["x"])
    assert sum(counts) == len(x)
    with pytest.raises(TaskFailed, match="part 0 of digits@1"):
        await client.map_parts("crash", made, str(site.directory / "again"), columns=["x"], parts=[0])


async def test_a_value_whose_node_went_is_made_again(site: Site, client: Client) -> None:
    daemons = await nodes(site)
    x, _, _ = await kept(client)
    lost: list[str] = []

    async def all_parts_are_done() -> bool:
        done = await results_of(site, "v")
        for result in done.values():
            if result.ref is not None and not lost:
                lost.append(result.ref.blob)
                for daemon in daemons.values():
                    if (found := daemon._store.find(result.ref.blob)) is not None:
                        found.unlink()
        return bool(lost)

    await site.user.drop(
        {"kernel": "much", "dataset": "digits", "columns": ["rows"], "combine": "add_all", "args": [100_000]}, "v"
    )
    await until(all_parts_are_done, 10.0, "a value lies in a file")
    result = await site.user.result("v", 20.0)
    assert result.status == "done", result
    value = await client.result("v")
    assert (value == np.arange(len(x)).sum()).all()


async def test_the_leader_may_leave_at_any_time(site: Site, client: Client) -> None:
    daemons = await nodes(site, "a", "b")
    x, _, made = await kept(client, parts=64)
    asked = asyncio.create_task(client.map_parts("slow_sum", made, 0.02, columns=["x"]))
    leader = (await client.leader()).node  # type: ignore[union-attr]
    await asyncio.sleep(0.15)
    await daemons[leader].drain()
    sums = await asked
    assert len(sums) == 64
    assert sum(sums) == x.sum()
    assert made.parts == 64


async def test_a_dataset_that_is_made_anew_meanwhile_is_not_mixed_with_the_former(site: Site, client: Client) -> None:
    await nodes(site)
    rows = 4096
    await client.datasets.put("d", {"x": np.ones(rows)}, parts=16)
    asked = asyncio.create_task(client.map_parts("slow_sum", "d@1", 0.3, columns=["x"], combine="numpy.sum"))
    await asyncio.sleep(0.8)
    await client.datasets.rm("d")
    await client.datasets.put("d", {"x": np.full(rows, 1000.0)}, parts=16)
    (found,) = await asyncio.gather(asked, return_exceptions=True)
    assert isinstance(found, TaskRejected) or found in (rows, 1000.0 * rows), found
    assert await client.map_parts("slow_sum", "d", 0.0, columns=["x"], combine="numpy.sum") == 1000.0 * rows
