"""Where the parts of a job's dataset lie: the version it was pinned to, and the nodes that hold each part now."""

from __future__ import annotations

from collections.abc import Callable

from zkd.core.asks import Home
from zkd.core.atlas import Atlas
from zkd.core.datasets import Edition, split_name
from zkd.errors import BadRecord, BadTraining
from zkd.paths import NodeId


def pinned(atlas: Atlas, dataset: str) -> str:
    """NAME@V of the version that a job on this dataset trains on. Raises `BadTraining` if there is none."""
    return f"{split_name(dataset)[0]}@{edition_of(atlas, dataset).manifest.version}"


def edition_of(atlas: Atlas, dataset: str) -> Edition:
    """The version that stands in the tree. Raises `BadTraining` with what is in the way."""
    try:
        name, version = split_name(dataset)
    except BadRecord as error:
        raise BadTraining(str(error)) from None
    found = atlas.datasets.get(name)
    edition = None if found is None else found.pick(version)
    if edition is not None:
        return edition
    refusal = atlas.refusal(name, version)
    if refusal is not None:
        raise BadTraining(f"dataset {dataset} cannot be read: {refusal}")
    if found is None or (version is None and found.current is None):
        raise BadTraining(f"there is no dataset {name}")
    raise BadTraining(f"there is no version {version or found.current} of dataset {name}")


class Site:
    """The parts of one version, and where they are: as the atlas says it, or said it last."""

    def __init__(self, atlas: Atlas, dataset: str, everybody: Callable[[], list[NodeId]]) -> None:
        self._atlas = atlas
        self._everybody = everybody
        self.dataset = dataset
        name, version = split_name(dataset)
        assert version is not None, dataset
        self.name, self._version = name, version
        self.edition = edition_of(atlas, dataset)
        self.rows = {part: sum(ref.rows for ref in refs) for part, refs in enumerate(self.edition.parts)}
        self.homes: dict[int, Home] = {}
        self.look()

    @property
    def is_there(self) -> bool:
        """Whether the tree still has it, as far as we know."""
        found = self._atlas.datasets.get(self.name)
        return found is not None and found.pick(self._version) is not None

    def look(self) -> dict[int, Home]:
        """Where the parts lie now: where they belong first, then wherever else they are."""
        if self.edition.manifest.store is not None:
            everybody = tuple(self._everybody())  # whoever may read that store
            self.homes = {part: Home(rows, everybody) for part, rows in self.rows.items()}
        elif self.is_there:
            self.homes = {part: Home(rows, self._nodes(part)) for part, rows in self.rows.items()}
        return self.homes

    def nodes(self) -> frozenset[NodeId]:
        """All that hold any of it."""
        return frozenset(node for home in self.homes.values() for node in home.nodes)

    def _nodes(self, part: int) -> tuple[NodeId, ...]:
        holders = self._atlas.holders(self.name, self._version, part)
        homes = [node for node in self._atlas.homes(self.name, self._version, part) if node in holders]
        return (*homes, *sorted(node for node in holders if node not in homes))
