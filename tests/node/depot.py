"""Datasets with real segments, put on real nodes as a client would, and an onlooker who reads their disks himself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tests.node.datasets import manifest, publish
from tests.node.submitter import Submitter, until
from tests.store.made import Made, make
from zkd.core.placement import place
from zkd.errors import DataDamaged, NoNode
from zkd.manifests import Keeper, Manifest, Ring
from zkd.net.fetch import session
from zkd.net.segments import push
from zkd.store import segment_checks

COLUMNS = [{"name": "x", "dtype": "<f8", "shape": [3]}, {"name": "y", "dtype": "|i1"}, {"name": "w", "dtype": "<U3"}]


@dataclass
class Depot:
    """`data_dirs` gives the directory of each node's segments, of those that are gone, too."""

    user: Submitter
    directory: Path
    data_dir: Callable[[str], Path]
    made: dict[str, Made] = field(default_factory=dict)
    parts: dict[tuple[str, int], list[list[Made]]] = field(default_factory=dict)
    manifests: dict[tuple[str, int], Manifest] = field(default_factory=dict)

    # --- What a client does -----------------------------------------------------------------------------

    async def put(
        self, name: str = "d", version: int = 1, *, parts: int = 8, rows: int = 1000, replicas: int = 2, copies: int = 2
    ) -> None:
        """Make the next version of a dataset, with one segment more in each part, and push `copies` of each."""
        former = self.parts.get((name, version - 1), [[] for _ in range(parts)])
        added = [self._make(rows) for _ in range(parts)]
        lists = [[*old, new] for old, new in zip(former, added, strict=True)]
        refs = [[(made.id, made.ref.rows, made.ref.size) for made in part] for part in lists]
        text, chunks = manifest(name, version, refs, replicas=replicas, columns=COLUMNS)
        homes = place(name, parts, replicas, (await self.ring()).keepers)
        token = (await self.user.session.get(self.user.paths.token)).data.decode()
        async with session() as http:
            for part, made in enumerate(added):
                for node in homes[part][:copies]:
                    await push(http, await self.address(node), token, made.directory, made.ref)
        await publish(self.user.session, self.user.paths.root, text, chunks)
        self.parts[name, version] = lists
        self.manifests[name, version] = msgspec.convert(text, Manifest)

    def _make(self, rows: int) -> Made:
        number = len(self.made)
        made = make(self.directory / f"segment-{number}", rows, seed=number)
        self.made[made.id] = made
        return made

    async def ring(self) -> Ring:
        return msgspec.json.decode((await self.user.session.get(self.user.paths.ring)).data, type=Ring)

    async def address(self, node: str) -> str:
        found: str = json.loads((await self.user.session.get(self.user.paths.node(node))).data)["address"]
        return found

    async def token(self) -> str:
        return (await self.user.session.get(self.user.paths.token)).data.decode()

    # --- What is so -------------------------------------------------------------------------------------

    async def homes(self, name: str = "d", version: int = 1) -> list[tuple[str, ...]]:
        text = self.manifests[name, version]
        return place(name, text.parts, text.replicas, (await self.ring()).keepers)

    def copies(self, segment_id: str, nodes: Iterable[str]) -> set[str]:
        """The nodes on whose disk every byte of it is as it was made."""
        return {node for node in nodes if is_good(self.data_dir(node) / "segments" / segment_id, segment_id)}

    def lying(self, node: str, where: str = "segments") -> set[str]:
        directory = self.data_dir(node) / where
        return {path.name for path in directory.iterdir()} if directory.exists() else set()

    async def ringed(self, *nodes: str, lost: tuple[str, ...] = (), within_s: float = 15.0) -> None:
        """Wait for a ring of these."""

        async def is_so() -> bool:
            try:
                ring = await self.ring()
            except NoNode:
                return False
            return {keeper.node for keeper in ring.keepers} == set(nodes) and ring.lost.keys() == set(lost)

        await until(is_so, within_s, f"a ring of {nodes}")

    async def settled(self, *nodes: str, within_s: float = 20.0, is_tidy: bool = False, but: str = "") -> None:
        """Wait until each part has all its good copies where it belongs, and its homes say so; `is_tidy`: and none
        of these nodes has anything else. `but`: a node that is away."""

        async def is_so() -> bool:
            for (name, version), lists in self.parts.items():
                homes = await self.homes(name, version)
                held = {
                    node: await self.held(name, node, version) for node in {each for some in homes for each in some}
                }
                for part, segments in enumerate(lists):
                    expected = set(homes[part]) - {but}
                    for made in segments:
                        good = await asyncio.to_thread(self.copies, made.id, nodes)
                        if not (expected == good if is_tidy else expected <= good):
                            self.story = f"{name}@{version} part {part}: {made.id[:8]} on {good}, expected {expected}"
                            return False
                    for node in expected:
                        if not held[node] >> part & 1:
                            self.story = f"{name}@{version} part {part}: {node} does not say so"
                            return False
            return True

        self.story = ""
        try:
            await until(is_so, within_s, "settled")
        except AssertionError:
            raise AssertionError(f"not settled within {within_s} s: {self.story}") from None

    async def held(self, name: str, node: str, version: int) -> int:
        try:
            text = json.loads((await self.user.session.get(self.user.paths.holding(name, node))).data)
        except NoNode:
            return 0
        return int(text.get("versions", {}).get(str(version), "0"), 16)

    async def on(self, node: str) -> set[str]:
        """The segments that belong on a node by the ring as it is."""
        found = set()
        for (name, version), lists in self.parts.items():
            for part, homes in enumerate(await self.homes(name, version)):
                if node in homes:
                    found |= {made.id for made in lists[part]}
        return found


def is_good(directory: Path, segment_id: str) -> bool:
    try:
        segment_checks.check(directory, segment_id)
    except (DataDamaged, OSError):
        return False
    return True


def keepers(*names: str) -> list[Keeper]:
    return [Keeper(name) for name in names]
