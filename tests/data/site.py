"""Nodes as processes that can be made to blow at a boundary, what lies on their disks, and what the tree says."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from blake3 import blake3

from tests.cluster.processes import DaemonProcess
from tests.core.placement_twice import placed
from tests.data.fuse import Fuse, Trip, cut_power, environment
from zkd.client import Client
from zkd.errors import NoNode
from zkd.manifests import Keeper

GRACE_S = 1.5
SESSION_S = 2.0
# Hours and minutes, in the field.
CONSTANTS = {
    "zkd.core.keeping.ORPHAN_S": 1.5,
    "zkd.keeping.TIDY_S": 1.0,
    "zkd.node.sweeper.ABANDONED_S": 2.0,
    "zkd.node.sweeper.ROUND_S": 0.5,
    "zkd.store.segments.INCOMING_KEPT_S": 6.0,
}
REPLICAS = 2


class Member:
    """A node."""

    def __init__(self, hosts: str, root: str, name: str, directory: Path) -> None:
        self.name = name
        self.process = DaemonProcess(hosts, root, name, directory, slots=1, timeout_s=SESSION_S)
        self.process.command = ("tests.data.fuse", "zkd", "daemon")
        self.data_dir = self.process.data_dir
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.trips = directory / f"{name}.trip"
        self.trace = directory / f"{name}.trace"
        self.power = directory / f"{name}.power"
        fuse = Fuse(str(self.data_dir), trips=str(self.trips), trace=str(self.trace), constants=CONSTANTS)
        self.process.environment |= environment(fuse) | {
            "ZKD_DATA__GRACE_S": str(GRACE_S),
            "ZKD_WORKERS__MODULES": "",
        }

    def arm(self, label: str, occurrence: int, when: str, *, is_power_cut: bool) -> None:
        trip = Trip(label, occurrence, when, str(self.power) if is_power_cut else None)
        half = self.trips.with_suffix(".new")
        half.write_bytes(msgspec.json.encode(trip))
        half.rename(self.trips)

    def disarm(self) -> None:
        self.trips.unlink(missing_ok=True)

    def start(self) -> None:
        self.process.start()

    def kill(self) -> None:
        self.process.kill()

    @property
    def is_running(self) -> bool:
        return self.process.process.poll() is None

    @property
    def has_blown(self) -> bool:
        return self.process.process.poll() == -signal.SIGKILL

    def cut_power(self, seed: int) -> list[str]:
        return cut_power(self.power, seed)

    def labels(self) -> list[str]:
        """All boundaries that it reached so far."""
        return self.trace.read_text().split("\n")[:-1] if self.trace.exists() else []

    # --- Its disk, without the product's help -----------------------------------------------------------

    def lying(self, place: str) -> set[str]:
        directory = self.data_dir / place
        return {path.name for path in directory.iterdir()} if directory.exists() else set()

    def fault_of(self, segment_id: str) -> str | None:
        """What is wrong with a segment on this disk; None if it is what its id says."""
        directory = self.data_dir / "segments" / segment_id
        try:
            text = (directory / "segment.json").read_bytes()
            if blake3(text).hexdigest() != segment_id:
                return "segment.json has another digest"
            said = json.loads(text)
            names = ["rows.npy", *(f"{n}.npy" for n in range(len(said["columns"])))]
            for name, file in zip(names, said["files"], strict=True):
                if blake3((directory / name).read_bytes()).hexdigest() != file["blake3"]:
                    return f"{name} has another digest"
                if len(np.load(directory / name)) != said["rows"]:
                    return f"{name} has not {said['rows']} rows"
            if {path.name for path in directory.iterdir()} != {"segment.json", *names}:
                return "there are other files, too"
        except (OSError, ValueError) as error:
            return str(error)
        return None


@dataclass
class Site:
    client: Client
    nodes: dict[str, Member]
    directory: Path
    known: set[str] = field(default_factory=set)  # segments of versions that were visible and not removed
    spoiled: set[tuple[str, str]] = field(
        default_factory=set
    )  # node and segment: a copy that we damaged is none until it is good
    floor: Counter[str] = field(default_factory=Counter)  # of how many copies each must not have fewer

    def up(self) -> list[Member]:
        return [node for node in self.nodes.values() if node.is_running]

    # --- The tree, without the product's help -----------------------------------------------------------

    async def keepers(self) -> list[Keeper] | None:
        """The nodes of the ring, if all of them are here in the life that they are in."""
        session, paths = self.client.session, self.client.paths
        try:
            ring = json.loads((await session.get(paths.ring)).data)
            for each in ring["keepers"]:
                entry = json.loads((await session.get(paths.node(each["node"]))).data)
                if entry["pid"] != self.nodes[each["node"]].process.process.pid:
                    return None  # of a session that has not ended yet
        except NoNode:
            return None
        if ring.get("lost"):
            return None
        return [Keeper(each["node"], each.get("weight", 1.0), each.get("zone")) for each in ring["keepers"]]

    async def listed(self) -> dict[str, tuple[str, int, int, int, int]]:
        """Segment -> name, version, part, parts, replicas of one of the places where a manifest lists it."""
        session, paths = self.client.session, self.client.paths
        found = {}
        for name in await session.children(paths.datasets):
            for version in await self._children(paths.versions(name)):
                manifest = json.loads((await session.get(paths.version(name, int(version)))).data)
                part = 0
                for digest in manifest["chunks"]:
                    for refs in json.loads((await session.get(paths.chunk(name, digest))).data):
                        for ref in refs:
                            found[ref[0]] = name, int(version), part, manifest["parts"], manifest["replicas"]
                        part += 1
        return found

    async def wrong(self, nodes: Set[str]) -> str | None:
        """What is not yet as it has to be in the end: these nodes in the ring, each segment where it belongs."""
        keepers = await self.keepers()
        if keepers is None or {keeper.node for keeper in keepers} != nodes:
            return f"the ring is {keepers}"
        listed = await self.listed()
        belongs: dict[str, set[str]] = {name: set() for name in self.nodes}
        maps: dict[tuple[str, int, int], list[tuple[str, ...]]] = {}
        for segment_id, (name, _, part, parts, replicas) in listed.items():
            layout = name, parts, replicas
            if layout not in maps:
                maps[layout] = placed(*layout, keepers, 0.1)
            for home in maps[layout][part]:
                belongs[home].add(segment_id)
        for node in self.nodes.values():
            lying = node.lying("segments")
            if lying != belongs[node.name]:
                lacks, has = belongs[node.name] - lying, lying - belongs[node.name]
                return f"{node.name} lacks {len(lacks)} and has {len(has)} too many: {sorted(lacks | has)[:3]}"
            for place in ("segments.incoming", "segments.trash"):
                if node.lying(place):
                    return f"{node.name} has {len(node.lying(place))} in {place}"
        return None

    async def rests(self) -> list[str]:
        """What stands in the tree and belongs to no version."""
        session, paths = self.client.session, self.client.paths
        found = []
        for name in await session.children(paths.datasets):
            versions = await self._children(paths.versions(name))
            named = set()
            for version in versions:
                named |= set(json.loads((await session.get(paths.version(name, int(version)))).data)["chunks"])
            found += [f"{name}/chunks/{each}" for each in set(await self._children(paths.chunks(name))) - named]
            found += [] if versions else [name]
        return found + [f"holdings/{each}" for each in await self._unknown_holdings()]

    async def _children(self, path: str) -> list[str]:
        try:
            return await self.client.session.children(path)
        except NoNode:
            return []

    async def _unknown_holdings(self) -> set[str]:
        session, paths = self.client.session, self.client.paths
        return set(await session.children(paths.holdings)) - set(await session.children(paths.datasets))

    # --- Copies -----------------------------------------------------------------------------------------

    def copies(self) -> Counter[str]:
        """On how many nodes each known segment lies, in place or in the trash."""
        self.spoiled = {each for each in self.spoiled if self.nodes[each[0]].fault_of(each[1]) is not None}
        return Counter(
            segment_id
            for node in self.nodes.values()
            for segment_id in (node.lying("segments") | node.lying("segments.trash")) & self.known
            if (node.name, segment_id) not in self.spoiled
        )

    def too_few(self) -> str | None:
        """Which known segment has fewer copies than it had and than it should have, by the nodes' own doing."""
        for _ in range(3):  # one that is moved while we look may be missed once
            copies = self.copies()
            fewer = {each for each in self.known if copies[each] < self.floor[each]}
            if not fewer:
                break
        else:
            some = min(fewer)
            return f"{len(fewer)} segments lost copies: {some} had {self.floor[some]}, and has {copies[some]}"
        for each in self.known:
            self.floor[each] = max(self.floor[each], min(REPLICAS, copies[each]))
        return None

    def copies_were_taken(self) -> None:
        """We took some ourselves."""
        copies = self.copies()
        self.floor = Counter({each: min(count, copies[each]) for each, count in self.floor.items()})
