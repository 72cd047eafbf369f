"""Rounds of faults on a cluster that lives through all of them, and the checker that comes after each.

A round does something with datasets, chooses who is to blow at which boundary of it, and starts him again. Then:

    no copy is ever gone    at every look, each segment of a visible version lies on some node
    whole or nothing        what was put is visible and exact, or not to be seen; what was acknowledged is visible
    exact                   every version reads back bit by bit, by the client and from each disk by other code
    healed                  R good copies where a second placement says, nothing lacking, nothing left over
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.processes import ROOT
from tests.data.fuse import Fuse, Trip, environment
from tests.data.site import GRACE_S, REPLICAS, SESSION_S, Member, Site
from tests.data.tables import Table, difference, table, together
from zkd.client import Client
from zkd.client.dataset import Dataset
from zkd.errors import DatasetNotFound, DataUnavailable, ZkdError, ZooKeeperError

FILES = ("segment.json", "rows.npy", "0.npy", "1.npy", "2.npy", "3.npy")
ARRIVING = [
    "mkdir segments.incoming/<id>",
    *(f"{what} segments.incoming/<id>/{file}" for file in FILES for what in ("open", "fsync")),
    *(f"{what} segments.incoming/<id>/{file}" for file in FILES[1:] for what in ("ftruncate", "write")),
    "fsync segments.incoming/<id>",
    "rename segments.incoming/<id> segments/<id>",
    "fsync segments",
    "fsync segments.incoming",
]
GOING = [
    "rename segments/<id> segments.trash/<id>",
    "fsync segments.trash",
    *(f"unlink segments.trash/<id>/{file}" for file in FILES),
    "rmdir segments.trash/<id>",
]
ROTTEN = ["rename segments/<id> segments.bad/<id>", "fsync segments.bad"]
REMEMBERING = ["open segments.tmp", "fsync segments.tmp", "replace segments.tmp segments.tree", "fsync ."]
SAYING = ["tree.set holdings/<name>/<any>", "tree.create holdings/<name>/<any>", "tree.multi control/ring"]
WRITING = [
    "tree.create datasets/<name>/writers/<any>",
    "tree.create datasets/<name>/chunks/<id>",
    "tree.multi datasets/<name>/writers/<any>",
    "tree.create datasets/<name>",
    "tree.create datasets/<name>/versions",
    "mkdir zkd-<any>/<n>",
    "open zkd-<any>/<n>/0.npy",
    "open zkd-<any>/<n>/segment.json",
    "write zkd-<any>/<n>/1.npy",
    "rmdir zkd-<any>/<n>",
]
REMOVING = [
    "tree.multi datasets/<name>/versions/<n>",
    "tree.delete datasets/<name>/writers",
    "tree.delete datasets/<name>/chunks/<id>",
    "tree.delete datasets/<name>/versions",
    "tree.delete datasets/<name>",
]
HEAL_S = 60.0
ROWS = (0, 1, 50, 3000)


class Wrong(AssertionError):
    """A promise was broken."""


@dataclass
class Report:
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)  # boundary, and when
    blown: Counter[tuple[str, str]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    power_cuts: int = 0
    reads: int = 0
    rows: int = 0

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        return (
            f"{sum(self.kinds.values())} rounds ({kinds}), {self.blown.total()} blown at {len(self.blown)} boundaries "
            f"of {len(self.tried)} tried, {self.power_cuts} of them power cuts, {self.reads} versions with "
            f"{self.rows} rows read back bit by bit"
        )


class Rounds:
    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.dice = random.Random(seed)
        self.seed = seed
        self.report = Report()
        self.truth: dict[tuple[str, int], list[Table]] = {}  # visible versions, and what was put into them
        self.story: list[str] = []
        self.count = 0

    # --- Rounds -----------------------------------------------------------------------------------------

    async def go(self, kind: str) -> None:
        """One round; raises `Wrong`."""
        self.count += 1
        self.report.kinds[kind] += 1
        self.tell(f"round {self.count}: {kind}")
        await getattr(self, f"of_{kind}")()
        await self.check()

    async def of_write(self) -> None:
        """A node blows while it is sent parts."""
        victim = self.choose(ARRIVING, occurrences=6)
        await self.put_and_see(self.dice.choice(["put", "append"]))
        await self.again(victim, 0.5)

    async def of_client(self) -> None:
        """The program that writes blows."""
        label, when = self.least(WRITING)
        name, how, seed, rows = self.new_write(self.dice.choice(["put", "append"]))
        before = await self.versions_of(name)
        options = {} if how == "append" else {"parts": 4, "replicas": REPLICAS, "key": "k"}
        occurrence = self.dice.randint(1, 4 if "chunks" in label else 2)
        acknowledged = await self.run_writer(Trip(label, occurrence, when), name, how, options, seed, rows)
        await self.see(name, how, seed, rows, before, acknowledged)

    async def of_remover(self) -> None:
        """The program that removes a dataset or a version blows."""
        if not self.truth:
            return
        name, version = self.dice.choice(list(self.truth))
        others = {each for each in self.truth if each[0] == name and each[1] != version}
        whole = not others or self.dice.random() < 0.5
        going = {(name, version), *(others if whole else ())}
        label, when = self.least(REMOVING)
        self.site.known -= {each for each, place in (await self.site.listed()).items() if place[0] == name}
        options = {} if whole else {"version": version}
        acknowledged = await self.run_writer(Trip(label, 1, when), name, "remove", options)
        left = {(name, each) for each in await self.versions_of(name)}
        self.tell(f"remove {name}@{'*' if whole else version}: acknowledged {acknowledged}, left {sorted(left)}")
        if left & going and (acknowledged is not None or not going <= left):
            raise Wrong(f"{sorted(left & going)} of {sorted(going)} are left")
        for each in going - left:
            del self.truth[each]
        self.site.known |= set(await self.site.listed())

    async def of_blackout(self) -> None:
        """All nodes lose their power while they are sent parts."""
        victim = self.choose(ARRIVING, occurrences=8)
        label, occurrence, when, _ = self.chosen
        victim.arm(label, occurrence, when, is_power_cut=True)
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(self.put_blind())
            while victim.is_running and not writing.done():
                await asyncio.sleep(0.005)
            for node in self.site.nodes.values():
                if node.is_running:
                    node.arm("*", 1, "before", is_power_cut=True)
            await asyncio.sleep(0.3)
            for node in self.site.nodes.values():
                node.kill()
                node.disarm()
                self.report.power_cuts += bool(node.cut_power(self.seed + self.count))
            self.site.copies_were_taken()
            self.blew("everybody", label, when)
            for node in self.site.nodes.values():
                node.start()
        await until(lambda: is_up(self.site), 30.0)
        await self.see(*writing.result())

    async def put_blind(self) -> tuple[str, str, int, int, set[int], int | None]:
        """A write that may fail for good reasons: what it was, and what was acknowledged."""
        name, how, seed, rows = self.new_write("put")
        before = await self.versions_of(name)
        try:
            made = await self.site.client.datasets.put(name, table(seed, rows), key="k", parts=4, replicas=REPLICAS)
        except DataUnavailable as error:
            self.tell(f"put {name}: {error}")
            return name, how, seed, rows, before, None
        return name, how, seed, rows, before, made.version

    async def of_repair(self) -> None:
        """A node comes back with an empty disk, and blows while it fetches its parts."""
        victim = self.choose([*ARRIVING, *SAYING, *REMEMBERING], occurrences=8, is_set=False)
        victim.kill()
        for place in ("segments", "segments.incoming", "segments.trash", "segments.bad"):
            shutil.rmtree(victim.data_dir / place, ignore_errors=True)
        self.site.copies_were_taken()
        self.tell(f"{victim.name} lost its disk")
        self.arm(victim)
        victim.start()
        await self.again(victim, 15.0)

    async def of_move(self) -> None:
        """A node is emptied and filled again, and some node blows meanwhile."""
        moved = self.dice.choice(list(self.site.nodes.values()))
        client = self.site.client
        path = client.paths.node_state(moved.name)
        first = self.choose([*ARRIVING, *GOING, *SAYING], occurrences=8)
        await client.session.create(path, b'{"state": "draining"}')
        self.tell(f"{moved.name} is drained")
        await self.again(first, 10.0, drained=moved)
        if self.dice.random() < 0.5:
            await self.healed(self.site.nodes.keys() - {moved.name})
        second = self.choose([*ARRIVING, *GOING, *SAYING], occurrences=8)
        await client.session.delete(path, -1)
        self.tell(f"{moved.name} is filled again")
        await self.again(second, 10.0)

    async def of_remove(self) -> None:
        """A dataset or a version is removed, and a node blows while it lets the parts go."""
        if not self.truth:
            return
        name, version = self.dice.choice(list(self.truth))
        others = [each for each in self.truth if each[0] == name and each[1] != version]
        whole = not others or self.dice.random() < 0.5
        victim = self.choose(GOING, occurrences=4)
        await self.site.client.datasets.rm(name, None if whole else version)
        self.tell(f"{name}@{'*' if whole else version} is removed")
        for each in [*(others if whole else []), (name, version)]:
            del self.truth[each]
        self.site.known &= set(await self.site.listed())
        await self.again(victim, 10.0)

    async def of_rot(self) -> None:
        """Bytes rot on a disk, are found, and the node blows while it gets them anew."""
        if not self.truth:
            return
        victim = self.choose([*ROTTEN, *ARRIVING], occurrences=2)
        lying = sorted(victim.lying("segments"))
        name, version = self.dice.choice(list(self.truth))
        for segment_id in self.dice.sample(lying, min(3, len(lying))):
            file = victim.data_dir / "segments" / segment_id / self.dice.choice(FILES)
            damaged = bytearray(file.read_bytes())
            place = self.dice.randrange(len(damaged))
            damaged[place] ^= 1 << self.dice.randrange(8)
            file.write_bytes(damaged)
            self.site.spoiled.add((victim.name, segment_id))
            self.site.copies_were_taken()
            self.tell(f"{victim.name}: a bit of {segment_id[:12]}/{file.name} flipped")
        await self.read_back(await self.site.client.datasets.open(name, version), may_lack=False)
        for each in {each for each, _ in self.truth}:
            with suppress(ZkdError):
                await (await self.site.client.datasets.open(each)).verify()
        await self.again(victim, 6.0)
        await self.healed(set(self.site.nodes))
        for node in self.site.nodes.values():  # older versions, and what was not read: scrubbing would find it
            for segment_id in node.lying("segments"):
                if node.fault_of(segment_id) is not None:
                    await self.verify_at(node, segment_id)

    # --- Doing ------------------------------------------------------------------------------------------

    def new_write(self, how: str) -> tuple[str, str, int, int]:
        names = sorted({name for name, _ in self.truth})
        is_new = how == "put" or not names
        name = f"d{self.count}" if is_new else self.dice.choice(names)
        return name, "put" if is_new else "append", self.seed * 1000 + self.count, self.dice.choice(ROWS[is_new:])

    async def run_writer(
        self, trip: Trip, name: str, how: str, options: dict[str, object], seed: int = 0, rows: int = 0
    ) -> int | None:
        """A program that blows; what it acknowledged, if it came so far."""
        temporary = self.site.directory / "temporary"
        temporary.mkdir(exist_ok=True)
        client = self.site.client
        spec = {"hosts": client.hosts, "root": client.paths.root, "name": name, "seed": seed, "rows": rows, "how": how}
        done = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.data.fuse", "tests.data.writer", json.dumps({**spec, "options": options})),
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
            | environment(Fuse(str(temporary), trip)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            said, errors = await done.communicate()
        acknowledged = int(said.split()[1]) if said.startswith(b"visible") else None
        if done.returncode == -signal.SIGKILL:
            self.blew("the writer", trip.label, trip.when)
        elif acknowledged is None:
            raise Wrong(f"the writer failed: {errors.decode(errors='replace')[-3000:]}")
        shutil.rmtree(temporary)  # what a dead program leaves in its $TMPDIR is for the machine to sweep
        return acknowledged

    async def put_and_see(self, how: str) -> None:
        name, how, seed, rows = self.new_write(how)
        before = await self.versions_of(name)
        datasets = self.site.client.datasets
        acknowledged = None
        try:
            if how == "append":
                made = await datasets.append(name, table(seed, rows))
            else:
                made = await datasets.put(name, table(seed, rows), key="k", parts=4, replicas=REPLICAS)
            acknowledged = made.version
        except DataUnavailable as error:
            self.tell(f"{how} {name}: {error}")
        await self.see(name, how, seed, rows, before, acknowledged)

    async def see(self, name: str, how: str, seed: int, rows: int, before: set[int], acknowledged: int | None) -> None:
        """What came of a write: a version that was acknowledged is there; one that is there is all of it."""
        after = await self.versions_of(name)
        new = after - before
        self.tell(f"{how} {name}, {rows} rows: acknowledged {acknowledged}, new versions {sorted(new)}")
        if acknowledged is not None and new != {acknowledged}:
            raise Wrong(f"{name}: version {acknowledged} was acknowledged, and {sorted(new)} are new")
        if acknowledged is not None:
            await self.check_quorum(name, acknowledged)
        if len(new) > 1:
            raise Wrong(f"{name}: one write made the versions {sorted(new)}")
        for version in new:
            parent = self.truth[name, max(before)] if how == "append" else []
            self.truth[name, version] = [*parent, table(seed, rows)]
            self.site.known |= set(await self.site.listed())
            await self.read_back(await self.site.client.datasets.open(name, version), may_lack=False)

    async def check_quorum(self, name: str, version: int) -> None:
        """What is visible lies whole on more than half of as many nodes as it should."""
        for segment_id, place in (await self.site.listed()).items():
            if place[:2] == (name, version):
                good = [node.name for node in self.site.nodes.values() if node.fault_of(segment_id) is None]
                if len(good) < (REPLICAS + 2) // 2:
                    raise Wrong(f"{name}@{version} was acknowledged, and {segment_id} is whole on {good} only")

    async def versions_of(self, name: str) -> set[int]:
        try:
            return set(await self.site.client.datasets.versions(name))
        except DatasetNotFound:
            return set()

    async def verify_at(self, node: Member, segment_id: str) -> None:
        from zkd import codec
        from zkd.net.fetch import session
        from zkd.net.segments import verify
        from zkd.records import Node

        client = self.site.client
        token = (await client.session.get(client.paths.token)).data.decode()
        record = codec.decode((await client.session.get(client.paths.node(node.name))).data, Node)
        async with session() as http:
            with suppress(DataUnavailable):
                is_good = await verify(http, record.address or "", token, segment_id, 30.0)
                fault = node.fault_of(segment_id)
                if is_good and fault is not None:
                    raise Wrong(f"{node.name} finds {segment_id} good: {fault}")

    # --- Faults -----------------------------------------------------------------------------------------

    def least(self, labels: list[str]) -> tuple[str, str]:
        """A boundary, and when, that was tried least of all."""
        choices = [
            (label, when)
            for label in labels
            for when in ("before", "after", *(["torn"] if label.startswith("write ") else []))
        ]
        fewest = min(self.report.tried[choice] for choice in choices)
        label, when = self.dice.choice([choice for choice in choices if self.report.tried[choice] == fewest])
        self.report.tried[label, when] += 1
        return label, when

    def choose(self, labels: list[str], *, occurrences: int, is_set: bool = True) -> Member:
        label, when = self.least(labels)
        victim = self.dice.choice(list(self.site.nodes.values()))
        rare = label in REMEMBERING or label in ROTTEN or label.startswith("tree.")
        occurrence = self.dice.randint(1, 2 if rare else self.dice.randint(1, occurrences))
        self.chosen = (label, occurrence, when, self.dice.random() < 0.4)
        if is_set:
            self.arm(victim)
        return victim

    def arm(self, victim: Member) -> None:
        label, occurrence, when, is_power_cut = self.chosen
        victim.arm(label, occurrence, when, is_power_cut=is_power_cut)

    async def again(self, victim: Member, within_s: float, *, drained: Member | None = None) -> None:
        """Wait for the victim to blow, and start it again; or take its fuse away when there is nothing left to do."""
        nodes = self.site.nodes.keys() - ({drained.name} if drained else set())
        began = time.monotonic()
        while victim.is_running and time.monotonic() < began + within_s:
            self.look()
            await asyncio.sleep(0.1)
            if time.monotonic() > began + 2 * GRACE_S and await self.wrong(nodes) is None:
                break
        victim.disarm()
        await asyncio.sleep(0.02)
        if victim.is_running:
            return
        label, occurrence, when, is_power_cut = self.chosen
        self.blew(f"{victim.name} ({occurrence})", label, when)
        if not victim.has_blown:
            raise Wrong(f"{victim.name} ended by itself:\n{victim.process.log()[-5000:]}")
        self.look()
        lost = victim.cut_power(self.seed + self.count)
        if is_power_cut:
            self.site.copies_were_taken()  # those that were not durable yet
            self.report.power_cuts += 1
            self.tell(f"the power cut took {len(lost)} things")
        self.look()
        if self.dice.random() < 0.5 and drained is None:
            await self.read_some()
        if self.dice.random() < 0.25:
            await self.stay_away(GRACE_S + SESSION_S + 2 * GRACE_S + 1.0)
        victim.start()

    async def stay_away(self, time_s: float) -> None:
        """So long that its parts belong to others, and are thrown away where they belong no more."""
        self.tell(f"it stays away for {time_s:.0f} s")
        deadline = time.monotonic() + time_s
        while time.monotonic() < deadline:
            self.look()
            await asyncio.sleep(0.1)

    def blew(self, who: str, label: str, when: str) -> None:
        self.report.blown[label, when] += 1
        self.tell(f"{who} blew {when} {label}")

    # --- Checking ---------------------------------------------------------------------------------------

    def look(self) -> None:
        fewer = self.site.too_few()
        if fewer is not None:
            raise Wrong(fewer)

    async def read_some(self) -> None:
        """While a node is away, all is there: each part has another copy."""
        if self.truth:
            name, version = self.dice.choice(list(self.truth))
            await self.read_back(await self.site.client.datasets.open(name, version), may_lack=False)

    async def read_back(self, dataset: Dataset, *, may_lack: bool) -> None:
        try:
            found = await dataset.read()
        except DataUnavailable as error:
            if may_lack:
                return
            raise Wrong(f"{dataset.name}@{dataset.version} cannot be read: {error}") from None
        expected = together(self.truth[dataset.name, dataset.version])
        differs = difference(found, expected)
        if differs is not None:
            raise Wrong(f"{dataset.name}@{dataset.version}: {differs}")
        self.report.reads += 1
        self.report.rows += len(expected["k"])

    async def healed(self, nodes: Set[str]) -> None:
        """Wait until everything lies where it belongs, and nowhere else."""
        deadline = time.monotonic() + HEAL_S
        while True:
            self.look()
            for node in self.site.nodes.values():
                if not node.is_running:
                    raise Wrong(f"{node.name} ended by itself:\n{node.process.log()[-5000:]}")
            wrong = await self.wrong(nodes)
            if wrong is None:
                return
            if time.monotonic() > deadline:
                raise Wrong(f"not healed within {HEAL_S:.0f} s: {wrong}")
            await asyncio.sleep(0.1)

    async def wrong(self, nodes: Set[str]) -> str | None:
        try:
            return await self.site.wrong(nodes)
        except (ZooKeeperError, FileNotFoundError) as error:
            return str(error)  # it changed while we looked

    async def check(self) -> None:
        await self.healed(set(self.site.nodes))
        datasets = self.site.client.datasets
        there = {(name, version) for name in await datasets.list() for version in await self.versions_of(name)}
        if there != self.truth.keys():
            raise Wrong(f"expected the versions {sorted(self.truth)}, there are {sorted(there)}")
        for name, version in self.truth:
            dataset = await datasets.open(name, version)
            await self.read_back(dataset, may_lack=False)
            stat = await self.said(dataset, "full")
            if stat is not None:
                raise Wrong(stat)
        for node in self.site.nodes.values():
            for segment_id in node.lying("segments"):
                fault = node.fault_of(segment_id)
                if fault is not None:
                    raise Wrong(f"{node.name} {segment_id}: {fault}")
        self.site.spoiled.clear()  # all of them are good again
        deadline = time.monotonic() + 15.0
        while rests := await self.rests():
            if time.monotonic() > deadline:
                raise Wrong(f"left in the tree: {rests}")
            await asyncio.sleep(0.1)

    async def rests(self) -> list[str]:
        try:
            return await self.site.rests()
        except ZooKeeperError as error:
            return [str(error)]  # it changed while we looked

    async def said(self, dataset: Dataset, health: str) -> str | None:
        """Nodes report what lies on them; within a few seconds, since they gather changes."""
        deadline = time.monotonic() + 15.0
        while True:
            stat = await dataset.stat()
            if stat.health == health and not stat.missing and not stat.astray:
                return None
            if time.monotonic() > deadline:
                return f"{dataset.name}@{dataset.version} is said to be {stat}"
            await asyncio.sleep(0.1)

    def tell(self, line: str) -> None:
        self.story.append(f"{time.strftime('%H:%M:%S')} {line}")


@asynccontextmanager
async def playing(hosts: str, root: str, directory: Path, seed: int) -> AsyncIterator[Rounds]:
    """Three nodes that are up, and nothing kept on them."""
    nodes = {name: Member(hosts, root, name, directory) for name in ("a", "b", "c")}
    try:
        for node in nodes.values():
            node.start()
        async with Client(hosts, root, connect_timeout_s=30.0) as client:
            rounds = Rounds(Site(client, nodes, directory), seed)
            await until(lambda: is_up(rounds.site), 30.0)
            yield rounds
    finally:
        for node in nodes.values():
            node.kill()


async def is_up(site: Site) -> bool:
    with suppress(ZooKeeperError):
        keepers = await site.keepers()
        return keepers is not None and len(keepers) == len(site.nodes)
    return False


async def until(condition: Callable[[], Awaitable[bool]], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.05)
