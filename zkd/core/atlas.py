"""What is known of the datasets: their versions, what each part is made of, where it belongs, who says to hold it.

A picture without I/O, so that whatever decides can be given one: `zkd.node.view` keeps it true. All answers are of
one moment, as long as nobody awaits between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from zkd.core.datasets import Edition, Held, Parts, nodes_with
from zkd.manifests import Keeper, Manifest, Ring, SegmentRef
from zkd.paths import NodeId

# name, parts, replicas, keepers -> the nodes of each part, the primary first
Place = Callable[[str, int, int, Sequence[Keeper]], list[tuple[NodeId, ...]]]
Layout = tuple[str, int, int]  # what, beside the ring, decides where the parts of a version belong


def layout(manifest: Manifest) -> Layout:
    return manifest.name, manifest.parts, manifest.replicas


@dataclass(slots=True)
class Dataset:
    """What is known of a dataset."""

    current: int | None = None  # None: its head cannot be read, or is not there yet
    editions: dict[int, Edition] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)  # version -> what is wrong with it
    fault: str | None = None  # what is wrong with all of it: it may not be read
    writers: int = 0  # who are sending segments that no manifest lists yet

    @property
    def is_readable(self) -> bool:
        return not self.refused and self.fault is None

    def pick(self, version: int | None) -> Edition | None:
        chosen = self.current if version is None else version
        return None if chosen is None else self.editions.get(chosen)


class Atlas:
    def __init__(self) -> None:
        self.datasets: dict[str, Dataset] = {}
        self.holdings: dict[str, dict[NodeId, Held]] = {}
        self.ring = Ring(0)
        self.placed: dict[Layout, tuple[list[Keeper], list[tuple[NodeId, ...]]]] = {}  # by whom, and where

    def manifest(self, name: str, version: int | None = None) -> Manifest | None:
        """Of this version, or of the one that readers get; None if there is none that can be believed."""
        edition = self._edition(name, version)
        return None if edition is None else edition.manifest

    def parts(self, name: str, version: int | None = None) -> Parts | None:
        """The segments of each part."""
        edition = self._edition(name, version)
        return None if edition is None else edition.parts

    def segments(self, name: str, version: int, part: int) -> tuple[SegmentRef, ...] | None:
        """What this part is made of, the oldest first; None if there is no such version or part."""
        edition = self._edition(name, version)
        return edition.parts[part] if edition is not None and 0 <= part < len(edition.parts) else None

    def homes(self, name: str, version: int, part: int) -> tuple[NodeId, ...]:
        """The nodes that this part belongs to, the primary first; they may be away, or still be fetching it.

        None of them if there is no such part, no ring yet, or if the data lie in a store of their own.
        """
        edition = self._edition(name, version)
        if edition is None or not 0 <= part < len(edition.parts):
            return ()
        placed = self.placed.get(layout(edition.manifest))
        return () if placed is None else placed[1][part]

    def holders(self, name: str, version: int, part: int) -> tuple[NodeId, ...]:
        """The nodes that say to hold this part whole. They may be away, and need not be those it belongs to."""
        return nodes_with(self.holdings.get(name, {}), version, part)

    def refusal(self, name: str, version: int | None = None) -> str | None:
        """What is wrong with a version that stands in the tree but cannot be believed."""
        dataset = self.datasets.get(name)
        chosen = dataset.current if dataset is not None and version is None else version
        if dataset is None or dataset.fault is not None:
            return None if dataset is None else dataset.fault
        return None if chosen is None else dataset.refused.get(chosen)

    def layouts(self) -> set[Layout]:
        return {
            layout(edition.manifest)
            for dataset in self.datasets.values()
            for edition in dataset.editions.values()
            if edition.manifest.store is None
        }

    def unplaced(self) -> set[Layout]:
        """What `homes` does not answer by the ring as it is now."""
        keepers = self.ring.keepers
        return {each for each in self.layouts() if each not in self.placed or self.placed[each][0] != keepers}

    def _edition(self, name: str, version: int | None) -> Edition | None:
        dataset = self.datasets.get(name)
        return None if dataset is None else dataset.pick(version)
