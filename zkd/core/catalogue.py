"""Which kernels the cluster has, and on which kinds of nodes: nodes with the same kernels are of one kind.

A task whose kernel nobody has is not refused at once, since the node that has it may be just joining, nor
ever, if somebody has had it: that node may only be restarting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from zkd.paths import TaskId

# A kernel that no node has may be on a node that is just joining; a person waits no longer than a second.
UNKNOWN_KERNEL_GRACE_S = 0.5


class Catalogue:
    """The kernels of the members. Kinds are few: nodes of one release and configuration are of one kind."""

    def __init__(self) -> None:
        self._kinds: dict[frozenset[str], int] = {}  # every one that was ever here
        self._members: Counter[frozenset[str]] = Counter()  # of those that are here now
        self._carriers: dict[str, frozenset[int]] = {}
        self.seen: set[str] = set()  # kernels that a node has had

    def joined(self, kernels: frozenset[str]) -> tuple[int, bool]:
        """A node with these is here: its kind, and whether that is a new one."""
        self._members[kernels] += 1
        is_new = kernels not in self._kinds
        if is_new:
            self._kinds[kernels] = len(self._kinds)
            self._carriers.clear()
            self.seen |= kernels
        return self._kinds[kernels], is_new

    def left(self, kernels: frozenset[str]) -> None:
        self._members[kernels] -= 1
        if not self._members[kernels]:
            del self._members[kernels]

    def carriers(self, kernel: str) -> frozenset[int]:
        """The kinds of nodes that have this kernel, or had it."""
        found = self._carriers.get(kernel)
        if found is None:
            found = frozenset(kind for kernels, kind in self._kinds.items() if kernel in kernels)
            if len(self._carriers) < 10_000:  # strangers choose the names
                self._carriers[kernel] = found
        return found

    def here(self) -> list[str]:
        """Every kernel that some node has now."""
        return sorted(frozenset().union(*self._members))


class Strangers:
    """Tasks whose kernel no node has had, until their grace is over; the kernels in the order of that."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[TaskId]] = {}
        self._due: dict[str, float] = {}  # empty while no node is here that could be asked

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, kernel: str, task: TaskId) -> None:
        self._waiting.setdefault(kernel, []).append(task)

    def take_all(self) -> list[TaskId]:
        """Every one of them: there is a new kind of node."""
        tasks = [task for some in self._waiting.values() for task in some]
        self._waiting.clear()
        self._due.clear()
        return tasks

    def refused(self, now: float, *, is_anyone_here: bool) -> Iterable[tuple[str, list[TaskId]]]:
        """Those whose grace is over; without a node it begins when one comes."""
        if not is_anyone_here:
            self._due.clear()
            return
        if len(self._due) < len(self._waiting):
            for kernel in self._waiting:
                self._due.setdefault(kernel, now + UNKNOWN_KERNEL_GRACE_S)
        while self._due:
            kernel, at = next(iter(self._due.items()))
            if at > now:
                return
            del self._due[kernel]
            yield kernel, self._waiting.pop(kernel)

    def timer(self) -> float | None:
        return next(iter(self._due.values()), None)
