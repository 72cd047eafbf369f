"""What waits for what, as the leader knows it: a line for each group of tasks that wait for the same, with the reason.

For people who look on. Lanes are few and their heads are known, so this costs little however much waits; only when
less than COUNTED_MAX tasks are there is each looked at, to tell kernels apart.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from msgspec import Struct

from zkd.core import why
from zkd.core.picture import Phase

if TYPE_CHECKING:
    from zkd.core.dispatch import Dispatch
    from zkd.core.lanes import Demand

COUNTED_MAX = 10_000
GROUPS_MAX = 12


class Group(Struct, frozen=True):
    """Tasks that wait together."""

    wants: str  # what they have in common
    count: int
    example: str  # the next one of them
    why: str


class Backlog(Struct, frozen=True, omit_defaults=True):
    tasks: int = 0
    phases: dict[str, int] = {}  # empty where there are too many to count
    kernels: dict[str, dict[str, int]] = {}  # kernel -> phase -> tasks
    groups: list[Group] = []


def backlog(mind: Dispatch, now: float) -> Backlog:
    groups = []
    lanes = sorted(mind.queues.waiting(), key=lambda lane: -lane.count)
    for lane in lanes[:GROUPS_MAX]:
        head = lane.head()
        if head is not None:
            entry = mind.tasks[head[3][1]]
            groups.append(
                Group(_wants(lane.demand, entry.need.kernel), lane.count, entry.id, why.briefly(mind, entry, now))
            )
    if len(mind.tasks) > COUNTED_MAX:
        return Backlog(len(mind.tasks), groups=groups)
    phases: Counter[str] = Counter()
    kernels: dict[str, Counter[str]] = {}
    waiting: dict[str, list[str]] = {}
    for entry in mind.tasks.values():
        phases[entry.phase.value] += 1
        kernels.setdefault(entry.need.kernel, Counter())[entry.phase.value] += 1
        if entry.phase not in (Phase.READY, Phase.ASSIGNED) or (entry.phase is Phase.READY and not entry.lanes):
            waiting.setdefault(entry.phase.value, []).append(entry.id)
    for phase, ids in list(waiting.items())[: GROUPS_MAX - len(groups)]:
        groups.append(
            Group(phase, len(ids), ids[0], mind.why(ids[0], now) if phase != "ready" else "No node can run it.")
        )
    return Backlog(len(mind.tasks), dict(phases), {kernel: dict(count) for kernel, count in kernels.items()}, groups)


def _wants(demand: Demand, kernel: str) -> str:
    words = [demand.kernel or f"{kernel}, or any other kernel"]
    if demand.node is not None:
        words.append(f"on {demand.node}")
    words += [f"{name}={value}" for name, value in demand.labels]
    if demand.slots > 1:
        words.append(f"{demand.slots} slots")
    if demand.memory is not None:
        words.append(f"{demand.memory >> 20} MiB")
    return ", ".join(words)
