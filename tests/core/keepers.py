"""A small world of keepers, by seed: nodes come and go, fetches fail, bits rot, disks are lost, everybody sees late.

Each node decides with `zkd.core.keeping` and nothing else; the world is its hands, and knows what is truly where.
Nothing is ever damaged or lost here of which there is no other good copy that will come back: what is lost all the
same was lost by a decision.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.node.datasets import rank
from zkd.core.atlas import Atlas, Dataset, layout
from zkd.core.datasets import Edition, Held
from zkd.core.keeping import Fetch, Keeping, Purge, Restore, Trash, Witnesses, report, survey
from zkd.manifests import Column, Keeper, Manifest, Ring, SegmentRef

GRACE_S = 20.0
LAG_S = 8.0  # nobody sees later than this what is in the tree
NODES = ["a", "b", "c", "d", "e"]


def edition(name: str, version: int, parts: list[list[str]], replicas: int) -> Edition:
    refs = tuple(tuple(SegmentRef(each, 1, 1) for each in part) for part in parts)
    return Edition(
        Manifest(
            name=name,
            version=version,
            parts=len(parts),
            replicas=replicas,
            columns=[Column("x", "<f8")],
            rows=1,
            size=1,
            chunks=[],
        ),
        refs,
    )


@dataclass
class Node:
    name: str
    keeping: Keeping
    disk: dict[str, bool] = field(default_factory=dict)  # segment -> is it good
    trash: dict[str, bool] = field(default_factory=dict)
    is_up: bool = True
    life: int = 1
    atlas: Atlas = field(default_factory=Atlas)  # as it sees it
    live: dict[str, str] = field(default_factory=dict)
    seen_at: float = -1.0

    @property
    def incarnation(self) -> str:
        return f"{self.name}.{self.life}"


class World:
    def __init__(self, seed: int, *, replicas: int = 2) -> None:
        self.random = random.Random(seed)
        self.replicas = replicas
        self.now = 0.0
        self.nodes = {name: Node(name, Keeping(name)) for name in NODES}
        self.draining: set[str] = set()
        self.away_since: dict[str, float] = {}
        self.truth = Atlas()  # the tree
        first = [[f"{part:08x}.1"] for part in range(8)]
        second = [[*part, f"{number:08x}.2"] if number < 4 else part for number, part in enumerate(first)]
        self.truth.datasets["d"] = Dataset(
            2, {1: edition("d", 1, first, replicas), 2: edition("d", 2, second, replicas)}
        )
        self.segments = sorted({each for part in second for each in part})
        self.lead()
        self.count: dict[str, int] = {}
        for part, refs in enumerate(second):
            for home in self.truth.homes("d", 2, part):
                self.nodes[home].disk.update(dict.fromkeys(refs, True))
        for node in self.nodes.values():
            self.say(node)
            self.see(node)

    # --- What others do ---------------------------------------------------------------------------------

    def lead(self) -> None:
        """The ring, as a leader writes it."""
        inside = [
            name
            for name, node in self.nodes.items()
            if name not in self.draining and (node.is_up or self.now - self.away_since[name] < GRACE_S)
        ]
        keepers = [Keeper(name) for name in inside]
        if keepers and keepers != self.truth.ring.keepers:
            self.truth.ring = Ring(self.truth.ring.epoch + 1, keepers)
            for layer in self.truth.layouts():
                self.truth.placed[layer] = (keepers, rank(*layer, keepers))

    def see(self, node: Node) -> None:
        node.atlas = Atlas()
        node.atlas.datasets = dict(self.truth.datasets)
        node.atlas.ring, node.atlas.placed = self.truth.ring, dict(self.truth.placed)
        node.atlas.holdings = {name: dict(held) for name, held in self.truth.holdings.items()}
        node.live = {name: each.incarnation for name, each in self.nodes.items() if each.is_up}
        node.seen_at = self.now

    def say(self, node: Node) -> None:
        said = report(node.atlas if node.seen_at >= 0 else self.truth, node.name, node.disk.keys())
        self.truth.holdings.setdefault("d", {})[node.name] = Held(node.incarnation, said.get("d", {}))

    def good(self, segment: str) -> list[str]:
        """Where a good copy lies, in the trash or not, of nodes here or away."""
        return [name for name, node in self.nodes.items() if node.disk.get(segment) or node.trash.get(segment)]

    def tell(self, what: str) -> None:
        self.count[what] = self.count.get(what, 0) + 1

    # --- What goes wrong --------------------------------------------------------------------------------

    def mischief(self) -> None:
        node = self.nodes[self.random.choice(NODES)]
        match self.random.choice(["crash", "come", "come", "rot", "lose", "drain", "undrain"]):
            case "crash" if node.is_up and sum(each.is_up for each in self.nodes.values()) > 2:
                node.is_up = False
                self.away_since[node.name] = self.now
                self.tell("crash")
            case "come" if not node.is_up:
                self.come(node)
            case "rot" if node.disk:
                segment = self.random.choice(sorted(node.disk))
                if len(self.good(segment)) > 1:
                    node.disk[segment] = False
                    self.tell("rot")
            case "lose" if not node.is_up and all(len(self.good(each)) > 1 for each in {**node.disk, **node.trash}):
                node.disk.clear()
                node.trash.clear()
                self.tell("lose")
            case "drain" if len(self.draining) < 2:
                self.draining.add(node.name)
                self.tell("drain")
            case "undrain":
                self.draining.discard(node.name)

    def come(self, node: Node) -> None:
        """A new life: nothing is remembered but what lies on the disk."""
        node.is_up, node.life, node.keeping = True, node.life + 1, Keeping(node.name)
        self.see(node)
        self.say(node)

    # --- A node's hands ---------------------------------------------------------------------------------

    def act(self, node: Node, *, luck: float) -> None:
        asked = survey(node.atlas, node.name)
        witnesses = Witnesses(node.atlas.holdings, node.live)
        commands = node.keeping.decide(
            asked, node.disk.keys(), node.trash.keys(), witnesses, self.now, GRACE_S, is_sure=True
        )
        for command in commands:
            match command:
                case Fetch(segment=segment, sources=sources):
                    if not any(self.fetched(node, segment, source, luck) for source in sources):
                        node.keeping.fetch_failed(segment, asked, witnesses, self.now)
                case Trash(segment=segment):
                    node.trash[segment] = node.disk.pop(segment)
                    self.tell("trash")
                case Restore(segment=segment):
                    node.disk[segment] = node.trash.pop(segment)
                    self.tell("restore")
                case Purge(segment=segment, witnesses=names):
                    if self.random.random() < luck and all(self.verified(name, segment) for name in names):
                        self.purge(node, segment)
                    else:
                        node.keeping.purge_refused(segment)

    def fetched(self, node: Node, segment: str, source: str, luck: float) -> bool:
        if self.random.random() < luck and self.verified(source, segment):
            node.disk[segment] = True
            self.tell("fetch")
            return True
        return False

    def verified(self, name: str, segment: str) -> bool:
        """As the node itself finds it when it reads every byte; what is bad goes into quarantine."""
        node = self.nodes[name]
        if not node.is_up or segment not in node.disk:
            return False
        if not node.disk[segment]:
            del node.disk[segment]
            self.tell("quarantine")
            return False
        return True

    def purge(self, node: Node, segment: str) -> None:
        del node.trash[segment]
        self.tell("purge")
        if segment in self.segments:
            left = self.good(segment)
            assert left, f"{node.name} deleted the last good copy of {segment} at {self.now}"
            assert len(left) >= self.replicas, f"{node.name} deleted {segment}, which only {left} have"

    # --- Time -------------------------------------------------------------------------------------------

    def step(self, *, luck: float = 1.0, mischief: float = 0.0) -> None:
        self.now += 1.0
        if self.random.random() < mischief:
            self.mischief()
        self.lead()
        for name in self.random.sample(NODES, len(NODES)):
            node = self.nodes[name]
            if not node.is_up:
                continue
            if self.random.random() < 0.4 or self.now - node.seen_at > LAG_S:
                self.see(node)
            if self.random.random() < 0.5:
                self.act(node, luck=luck)
            if self.random.random() < 0.3 and node.disk:
                self.verified(name, self.random.choice(sorted(node.disk)))  # scrubbed
            if self.random.random() < 0.5:
                self.say(node)

    def heal(self) -> None:
        """Everybody comes back, and nothing goes wrong any more."""
        for node in self.nodes.values():
            if not node.is_up:
                self.come(node)
        for _ in range(400):
            self.step()

    def check_rest(self) -> None:
        """R good copies of everything, where they belong and nowhere else."""
        for version, found in self.truth.datasets["d"].editions.items():
            for part, refs in enumerate(found.parts):
                homes = self.truth.homes("d", version, part)
                assert len(homes) == self.replicas
                for ref in refs:
                    assert set(self.good(ref.id)) == set(homes), (version, part, ref.id, self.good(ref.id), homes)
                assert set(homes) <= set(self.truth.holders("d", version, part))
        for node in self.nodes.values():
            assert not node.trash, node.name
        assert layout(self.truth.datasets["d"].editions[2].manifest) in self.truth.placed
