"""How many copies each part of a dataset has, by what the nodes that are here say. Pure, and quick for many parts.

Part sets are whole numbers with a bit a part, as holdings/ has them; so a node costs a few operations on such numbers,
not one for each of 16,384 parts.
"""

from __future__ import annotations

from collections.abc import Iterable

from zkd.manifests import Manifest
from zkd.overview.seen import DatasetSeen, Health

CELLS_MAX = 512  # of a map; a cell stands for several parts beyond that


def at_least(held: Iterable[int], copies: int) -> list[int]:
    """The parts that have at least 1, 2, ... `copies` copies, each as a set of bits."""
    sets = [0] * copies
    for bits in held:
        for number in range(copies - 1, 0, -1):
            sets[number] |= sets[number - 1] & bits
        sets[0] |= bits
    return sets


def dataset_seen(manifest: Manifest, filled: int, held: Iterable[int]) -> DatasetSeen:
    """`filled` are the parts that have rows, `held` what each node that is here holds of them, both as bits."""
    copies = at_least(held, manifest.replicas)
    total = filled.bit_count()
    full, some = (copies[-1] & filled).bit_count(), (copies[0] & filled).bit_count()
    if manifest.store is not None:
        full = some = total
        copies = [filled] * manifest.replicas
    health: Health = "lost" if some < total else "degraded" if full < total else "full"
    return DatasetSeen(
        name=manifest.name,
        version=manifest.version,
        rows=manifest.rows,
        size=manifest.size,
        parts=manifest.parts,
        replicas=manifest.replicas,
        health=health,
        full=full,
        degraded=some - full,
        lost=total - some,
        map=drawn(manifest.parts, filled, copies),
        store=manifest.store,
    )


def drawn(parts: int, filled: int, copies: list[int]) -> str:
    """A digit a cell, the fewest copies that one of its parts has; "." for a cell without rows."""
    each = -(-parts // CELLS_MAX)
    cells = []
    for start in range(0, parts, each):
        wanted = filled & (((1 << each) - 1) << start)
        fewest = next((number for number, there in enumerate(copies) if wanted & ~there), len(copies))
        cells.append(str(min(fewest, 9)) if wanted else ".")
    return "".join(cells)
