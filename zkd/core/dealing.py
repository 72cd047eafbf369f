"""Which of a node's counters goes over which parts: as even as whole parts allow, and each part where it was before.

A counter keeps the rows of its parts ready in memory, so a part that moves costs more than a share that is a little
larger than the others.
"""

from __future__ import annotations

from collections.abc import Mapping

LOPSIDED = 1.2  # times the mean share; parts move only beyond, and only as many as it takes


def dealt(rows: Mapping[int, int], homes: Mapping[int, int], counters: int) -> dict[int, int]:
    """The counter, from 0, of each of these parts. `rows` of each; `homes`: where some of them were before."""
    loads = [0] * counters
    chosen: dict[int, int] = {}
    for part, size in rows.items():
        home = homes.get(part, counters)
        if home < counters:
            chosen[part] = home
            loads[home] += _weight(size)
    for part in sorted(rows.keys() - chosen.keys(), key=lambda part: (-rows[part], part)):
        chosen[part] = loads.index(min(loads))
        loads[chosen[part]] += _weight(rows[part])
    while max(loads) * counters > LOPSIDED * sum(loads):
        fullest, emptiest = loads.index(max(loads)), loads.index(min(loads))
        gap = loads[fullest] - loads[emptiest]
        # What fits the gap best: the larger one would be less than before, and the smaller one more.
        movable = [part for part, counter in chosen.items() if counter == fullest and _weight(rows[part]) < gap]
        if not movable:
            break
        part = min(movable, key=lambda part: (abs(gap - 2 * _weight(rows[part])), part))
        chosen[part] = emptiest
        loads[fullest] -= _weight(rows[part])
        loads[emptiest] += _weight(rows[part])
    return chosen


def _weight(rows: int) -> int:
    return rows + 1  # a part without rows is not for nothing, either
