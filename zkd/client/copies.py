"""Where the copies of a dataset's parts are, and where they belong: what the tree says, as of one moment.

Homes follow from the ring: anybody computes the same ones. Who holds a part already is what nodes say in holdings/.
A reader takes the word of neither: he asks in the order of what is likely, and checks what he gets.
"""

from __future__ import annotations

import asyncio
import platform
import random
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zkd import codec
from zkd.core.datasets import Held, read_holding, read_ring
from zkd.core.placement import place
from zkd.errors import BadRecord, DataUnavailable, NoNode
from zkd.manifests import Holding, Keeper, Ring

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from zkd.client.client import Client
    from zkd.core.datasets import Parts
    from zkd.manifests import Health, Manifest, SegmentRef
    from zkd.paths import NodeId
    from zkd.records import Node

VERIFIES_AT_ONCE = 8
PLACED_INLINE = 2_000  # parts times nodes; more takes longer than a loop should stand still

Homes = list[tuple["NodeId", ...]]


@dataclass(frozen=True)
class Scene:
    """Nodes, ring and holdings of one dataset."""

    nodes: dict[NodeId, Node]  # that are here
    ring: Ring
    held: dict[NodeId, Held]  # what they say that they hold; also of nodes that are not here

    @cached_property
    def keepers(self) -> list[Keeper]:
        """The nodes that can take data now."""
        lost = self.ring.lost
        return [each for each in self.ring.keepers if each.node in self.nodes and each.node not in lost]

    def address(self, node: NodeId) -> str | None:
        return self.nodes[node].address if node in self.nodes else None

    def is_held(self, node: NodeId, version: int, part: int) -> bool:
        """Whether this node is here and says that it holds this part whole."""
        here, held = self.nodes.get(node), self.held.get(node)
        return (
            here is not None and held is not None and held.incarnation == here.incarnation and held.has(version, part)
        )

    def holders(self, version: int, part: int) -> list[NodeId]:
        return [node for node in self.held if self.is_held(node, version, part)]

    def sources(self, version: int, part: int, homes: Sequence[NodeId]) -> list[NodeId]:
        """The nodes to ask for a part: those that say they hold it in any order, then its homes, then all others."""
        holders = self.holders(version, part)
        random.shuffle(holders)  # so that readers spread
        others = [node for node in homes if node in self.nodes]
        rest = list(self.nodes)
        random.shuffle(rest)
        return [node for node in dict.fromkeys([*holders, *others, *rest]) if self.address(node) is not None]

    def local(self, node: NodeId) -> Path | None:
        """Where a node on this very machine has its segments, if it says so."""
        here = self.nodes.get(node)
        is_local = here is not None and here.data is not None and here.host == platform.node()
        return Path(here.data) if is_local and here is not None and here.data is not None else None


async def look(client: Client, name: str) -> Scene:
    """What the tree says now. Without a ring, as long as nobody has led, every node that keeps data counts."""
    nodes = await client.nodes()
    try:
        ring = read_ring((await client.read(client.paths.ring)).data)
    except (NoNode, BadRecord):  # the leader will mend it
        keepers = [Keeper(node, each.weight, each.zone) for node, each in nodes.items() if each.weight > 0]
        ring = Ring(0, keepers)
    held = {}
    for node, holding in (await client.records(f"{client.paths.holdings}/{name}", Holding)).items():
        try:
            held[node] = read_holding(codec.encode(holding))
        except BadRecord:
            continue  # as if it said nothing
    return Scene(nodes, ring, held)


async def homes(name: str, parts: int, replicas: int, keepers: Sequence[Keeper]) -> Homes:
    """The nodes of each part, the primary first."""
    if not keepers:
        return [()] * parts
    if parts * len(keepers) <= PLACED_INLINE:
        return place(name, parts, replicas, keepers)
    return await asyncio.to_thread(place, name, parts, replicas, keepers)


@dataclass(frozen=True)
class Stat:
    """How a version of a dataset stands. Only parts with rows count."""

    name: str
    version: int
    health: Health
    rows: int
    size: int  # bytes of one copy
    parts: int
    replicas: int
    copies: list[int]  # of each part, on nodes that are here
    full: int  # parts with all their copies
    degraded: int  # with some
    lost: int  # with none
    missing: int  # copies that their homes do not hold yet
    astray: int  # copies on nodes that they do not belong to, which may be collected
    nodes: dict[NodeId, int] = field(default_factory=dict)  # parts that lie on each


def judge(manifest: Manifest, parts: Parts, scene: Scene, where: Homes) -> Stat:
    """Health of a version by what nodes that are here say that they hold.

    A part is full with as many copies as it should have, or as there are nodes to keep them.
    """
    version = manifest.version
    copies, full, degraded, missing, astray = [0] * manifest.parts, 0, 0, 0, 0
    nodes = dict.fromkeys((keeper.node for keeper in scene.keepers), 0)
    filled = [part for part in range(manifest.parts) if parts[part]]
    for part in filled:
        holders = scene.holders(version, part)
        copies[part] = len(holders)
        full += len(holders) >= manifest.replicas
        degraded += 0 < len(holders) < manifest.replicas
        missing += sum(node not in holders for node in where[part])
        astray += sum(node not in where[part] for node in holders)
        for node in holders:
            nodes[node] = nodes.get(node, 0) + 1
    lost = len(filled) - full - degraded
    health: Literal["full", "degraded", "lost"] = "lost" if lost else "degraded" if degraded else "full"
    return Stat(
        manifest.name,
        version,
        health,
        manifest.rows,
        manifest.size,
        manifest.parts,
        manifest.replicas,
        copies,
        full,
        degraded,
        lost,
        missing,
        astray,
        dict(sorted(nodes.items())),
    )


@dataclass(frozen=True)
class Verified:
    """What reading every copy of a version from its disk gave."""

    good: int  # copies of segments
    bad: list[tuple[NodeId, int]] = field(default_factory=list)  # node, or URL, and part: it has none, or a damaged one
    silent: dict[NodeId, str] = field(default_factory=dict)  # nodes that did not say


async def verify(
    version: int, parts: Parts, scene: Scene, where: Homes, ask: Callable[[str, SegmentRef], Awaitable[bool]]
) -> Verified:
    """Have each node that says it holds a part, or should, asked about its copies; some at a time."""
    turns = asyncio.Semaphore(VERIFIES_AT_ONCE)
    good = 0
    bad: list[tuple[NodeId, int]] = []
    silent: dict[NodeId, str] = {}

    async def one(node: NodeId, part: int, ref: SegmentRef) -> None:
        nonlocal good
        address = scene.address(node)
        try:
            if address is None:
                raise DataUnavailable("it serves no data")
            async with turns:
                if await ask(address, ref):
                    good += 1
                else:
                    bad.append((node, part))
        except DataUnavailable as error:
            silent[node] = str(error)

    async with asyncio.TaskGroup() as tasks:
        for part, refs in enumerate(parts):
            nodes = {*scene.holders(version, part), *(each for each in where[part] if each in scene.nodes)}
            for ref in refs:
                for node in sorted(nodes):
                    tasks.create_task(one(node, part, ref))
    return Verified(good, sorted(bad), silent)
