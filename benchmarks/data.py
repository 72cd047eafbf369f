"""Datasets: partitioning, put and get beside a file copy and Dask, look-ups by key, repair, and what moves.

    python -m benchmarks.data [--only partition,transfer,lookup,repair,movement] [--rows 10000000] [--rounds 3]

A table of an int64 key and ten float32 columns, random. Three real daemons on this machine's disk over a synced Apache
ZooKeeper. `copy` is what a disk and a processor do with the same bytes: shutil.copyfile of the columns as .npy files,
fsync, and the blake3 of each as it is read again; `read` is reading them with their blake3. `put` and `get` of zkd are
taken with one and with two copies; `near` maps the nodes' files, `far` has everything travel by HTTP. Dask has two
worker processes and is given the same arrays: scatter, and gather back. Rounds take turns; medians and ranges. Every
put has a column of its own, since nodes do not take the same segment twice.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import uvloop
from blake3 import blake3

from benchmarks.cluster import ROOT, Node, circumstances, one_server, save, until
from zkd.client import Client, copies
from zkd.client.dataset import Dataset
from zkd.core.placement import place
from zkd.manifests import Keeper
from zkd.tables.partition import Partition

COLUMNS = 10
LOOKUPS = 2000
AT_ONCE = 16
PARTS = (64, 1024)

_salts = itertools.count()

Figures = dict[str, list[float]]
Table = dict[str, Any]


def table_of(rows: int) -> Table:
    rng = np.random.default_rng(1)
    columns = {f"x{number}": rng.random(rows, dtype=np.float32) for number in range(COLUMNS)}
    return {"key": rng.permutation(rows), **columns}


def salted(table: Table) -> Table:
    """The same rows as a table that no node has seen."""
    return {**table, "salt": np.full(len(table["key"]), next(_salts), np.int32)}


def size_of(table: Table) -> int:
    return sum(column.nbytes for column in table.values())


def timed(work: Callable[[], Any]) -> float:
    gc.collect()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# --- Partitioning -----------------------------------------------------------------------------------------


def partition(table: Table, rounds: int) -> dict[str, Figures]:
    """Seconds to sort all rows by part and to bring each part together."""
    found: dict[str, Figures] = {}
    for _ in range(rounds):
        for parts in PARTS:
            for what, buffer_bytes in (("in memory", 1 << 40), ("spilled", 256 << 20)):
                seconds = timed(lambda parts=parts, held=buffer_bytes: _partitioned(table, parts, held))  # type: ignore[misc]
                found.setdefault(f"{parts} parts, {what}", {}).setdefault("s", []).append(seconds)
        found.setdefault("whole columns gathered at once", {}).setdefault("s", []).append(timed(lambda: _naive(table)))
    return found


def _partitioned(table: Table, parts: int, buffer_bytes: int) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        Partition(parts, "key", Path(directory), buffer_bytes=buffer_bytes) as rows,
    ):
        rows.add(table)
        for part in range(parts):
            for buffers in rows.buffers(part):
                for _ in buffers:
                    pass


def _naive(table: Table) -> None:
    from zkd.tables.hashing import hash_column, part_numbers

    order = np.argsort(part_numbers(hash_column(table["key"]), 64), kind="stable")
    for column in table.values():
        column[order]


# --- Put and get ------------------------------------------------------------------------------------------


def copied(table: Table, directory: Path) -> dict[str, float]:
    """GB/s of a plain file copy with its checksum, and of reading with it."""
    source, target = directory / "source", directory / "target"
    for each in (source, target):
        shutil.rmtree(each, ignore_errors=True)
        each.mkdir()
    for name, column in table.items():
        np.save(source / f"{name}.npy", column)
    took = {"copy": timed(lambda: _copy(source, target)), "read": timed(lambda: _read(target))}
    return {name: size_of(table) / seconds / 1e9 for name, seconds in took.items()}


def _copy(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
        fd = os.open(target / path.name, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    for path in target.iterdir():
        blake3(path.read_bytes()).hexdigest()


def _read(target: Path) -> None:
    for path in target.iterdir():
        data = path.read_bytes()
        blake3(data).hexdigest()
        np.frombuffer(data, np.uint8)


async def transferred(client: Client, table: Table, replicas: int) -> dict[str, float]:
    """GB/s of put and get."""
    name, found = f"t{replicas}", {}
    table = salted(table)
    began = time.perf_counter()
    dataset = await client.datasets.put(name, table, key="key", replicas=replicas)
    found[f"put, {replicas} copies"] = time.perf_counter() - began
    real = copies.platform
    for where in ("near", "far"):
        if where == "far":
            copies.platform = SimpleNamespace(node=lambda: "another machine")  # type: ignore[attr-defined]
        gc.collect()
        opened = await client.datasets.open(name)
        began = time.perf_counter()
        read = await opened.read()
        found[f"get {where}, {replicas} copies"] = time.perf_counter() - began
        copies.platform = real  # type: ignore[attr-defined]
        assert all(np.array_equal(read[column], values) for column, values in table.items()), "other rows"
        del read
    await client.datasets.rm(name)
    del dataset
    return {what: size_of(table) / seconds / 1e9 for what, seconds in found.items()}


def dask_transferred(table: Table) -> dict[str, float]:
    """GB/s of scatter and gather with two worker processes."""
    from distributed import Client as DaskClient
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        DaskClient(cluster) as dask,
    ):
        columns = list(table.values())
        gc.collect()
        began = time.perf_counter()
        futures = dask.scatter(columns)
        put = time.perf_counter() - began
        began = time.perf_counter()
        back = dask.gather(futures)
        get = time.perf_counter() - began
        assert all(np.array_equal(a, b) for a, b in zip(columns, back, strict=True))
    return {"Dask scatter": size_of(table) / put / 1e9, "Dask gather": size_of(table) / get / 1e9}


# --- Look-ups ---------------------------------------------------------------------------------------------


async def lookups(dataset: Dataset, table: Table) -> dict[str, float]:
    rng = np.random.default_rng(2)
    keys = table["key"][rng.integers(0, dataset.rows, LOOKUPS)].tolist()
    for key in keys[:200]:
        await dataset.get(key)
    took = []
    for key in keys:
        began = time.perf_counter()
        await dataset.get(key)
        took.append(time.perf_counter() - began)
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(key: int) -> None:
        async with turns:
            await dataset.get(key)

    began = time.perf_counter()
    await asyncio.gather(*map(one, keys))
    together = time.perf_counter() - began
    took.sort()
    return {
        "p50 ms": 1000 * took[LOOKUPS // 2],
        "p99 ms": 1000 * took[LOOKUPS * 99 // 100],
        f"per s, {AT_ONCE} at once": LOOKUPS / together,
    }


# --- Repair and movement ------------------------------------------------------------------------------------


async def well(dataset: Dataset, nodes: set[str]) -> None:
    """Until exactly these nodes keep it and each part has all copies where they belong."""

    async def is_well() -> bool:
        stat = await dataset.stat()
        return stat.nodes.keys() == nodes and stat.health == "full" and not stat.missing

    await until(is_well, "every copy is where it belongs", 600.0)


async def repaired(client: Client, nodes: dict[str, Node], table: Table) -> dict[str, float]:
    """A node is killed, and comes back empty: how fast copies are made elsewhere, and how many move when it joins."""
    dataset = await client.datasets.put("r", salted(table), key="key", replicas=2)
    everyone = set(nodes)
    await well(dataset, everyone)
    before = {part: set(holders) for part, (holders, _) in enumerate(await dataset.holders())}
    held = (await dataset.stat()).nodes["n3"]
    share = dataset.manifest.size / dataset.parts
    nodes["n3"].kill()

    async def ring() -> set[str]:
        return {keeper.node for keeper in (await copies.look(client, "r")).ring.keepers}

    async def is_out() -> bool:
        return "n3" not in await ring()

    async def is_in() -> bool:
        return "n3" in await ring()

    await until(is_out, "the ring has it no more", 60.0)
    began = time.perf_counter()
    await well(dataset, everyone - {"n3"})
    took = time.perf_counter() - began
    after = {part: set(holders) for part, (holders, _) in enumerate(await dataset.holders())}
    moved = sum(len(after[part] - before[part]) for part in before)
    shutil.rmtree(nodes["n3"].data_dir)  # what joins is a new machine
    nodes["n3"].start()
    await until(is_in, "the ring has it again", 60.0)
    began = time.perf_counter()
    await well(dataset, everyone)
    took_to_join = time.perf_counter() - began
    homes = [set(each) for _, each in await dataset.holders()]
    joined = sum(len(where - after[part]) for part, where in enumerate(homes))
    await client.datasets.rm("r")
    return {
        "repair MB/s": held * share / took / 1e6,
        "repair s": took,
        "copies made / lost": moved / held,
        "copies moved on join / optimum": joined / held,
        "join MB/s": joined * share / took_to_join / 1e6,
    }


def movement() -> dict[str, Figures]:
    """By the map alone: copies that move when a node joins or leaves, beside the least that has to."""
    found: dict[str, Figures] = {}
    for count, parts in ((3, 256), (10, 1024), (100, 4096)):
        keepers = [Keeper(f"n{number}") for number in range(count + 1)]
        joins, leaves, fullest = [], [], []
        for seed in range(5):
            less = place(f"d{seed}", parts, 2, keepers[:-1])
            more = place(f"d{seed}", parts, 2, keepers)
            moved = sum(len(set(new) - set(old)) for old, new in zip(less, more, strict=True))
            back = sum(len(set(old) - set(new)) for old, new in zip(less, more, strict=True))
            held = [sum(node in where for where in more) for node in (keeper.node for keeper in keepers)]
            joins.append(moved / (2 * parts / (count + 1)))
            leaves.append(back / held[-1])
            fullest.append(max(held) / statistics.fmean(held))
        found[f"{count} nodes, {parts} parts"] = {"join": joins, "leave": leaves, "max / mean": fullest}
    return found


# --- All of it ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[tuple[Client, dict[str, Node]]]:
    with one_server(directory / "zookeeper") as server:
        environment = {"ZKD_DATA__GRACE_S": "1", "ZKD_DATA__REPAIR_BYTES_S": "10GiB"}
        nodes = {
            name: Node(server.connect_string, name, directory, slots=1, **environment) for name in ("n1", "n2", "n3")
        }
        try:
            for node in nodes.values():
                node.start()
            async with Client(server.connect_string, ROOT, connect_timeout_s=30.0) as client:
                for node in nodes.values():
                    await node.ready(client.session)
                yield client, nodes
        finally:
            for node in nodes.values():
                node.kill()


async def run(args: argparse.Namespace, only: set[str]) -> dict[str, dict[str, Figures]]:
    found: dict[str, dict[str, Figures]] = {}
    table = table_of(args.rows)
    print(f"{args.rows} rows, {size_of(table) / 1e9:.2f} GB")
    if "movement" in only:
        found["movement"] = movement()
    if "partition" in only:
        found["partition"] = partition(table, args.rounds)
    if not only & {"transfer", "lookup", "repair"}:
        return found
    with tempfile.TemporaryDirectory(prefix="zkd-bench-", dir=args.directory) as directory:
        async with cluster(Path(directory)) as (client, nodes):
            for _ in range(args.rounds):
                if "transfer" in only:
                    rates = copied(table, Path(directory))
                    for replicas in (1, 2):
                        rates |= await transferred(client, table, replicas)
                    if args.dask:
                        rates |= await asyncio.to_thread(dask_transferred, table)
                    _add(found, "transfer", rates, "GB/s")
            if "lookup" in only:
                dataset = await client.datasets.put("l", salted(table), key="key")
                for _ in range(args.rounds):
                    _add(found, "lookup", await lookups(dataset, table), "")
                await client.datasets.rm("l")
            if "repair" in only:
                for _ in range(args.rounds):
                    _add(found, "repair", await repaired(client, nodes, table), "")
    return found


def _add(found: dict[str, dict[str, Figures]], section: str, figures: dict[str, float], unit: str) -> None:
    for what, value in figures.items():
        found.setdefault(section, {}).setdefault(what, {}).setdefault(unit, []).append(value)


def table_text(found: dict[str, dict[str, Figures]]) -> str:
    lines = ["| what | median | range |", "|---|---|---|"]
    for section, rows in found.items():
        for what, figures in rows.items():
            for unit, values in figures.items():
                span = f"{min(values):.3g} - {max(values):.3g}"
                lines.append(
                    f"| {section}: {what}{f', {unit}' if unit else ''} | {statistics.median(values):.3g} | {span} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="partition,transfer,lookup,repair,movement")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-dask", dest="dask", action="store_false")
    parser.add_argument("--directory", help="where nodes and copies lie; by default $TMPDIR")
    args = parser.parse_args()
    found = uvloop.run(run(args, set(args.only.split(","))))
    save("data", {"circumstances": circumstances("python -m benchmarks.data"), "figures": found}, table_text(found))


if __name__ == "__main__":
    main()
