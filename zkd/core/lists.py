"""What stands in each ``assign/<node>``, and which of its lines a node cannot have seen.

A node reads the list as it is when it comes to it, so it may miss one in between. If a task was given to it and
deleted while it did not look, nobody knows of the task any more: the node was never told, and the leader takes it
that whoever holds a task sees to its end. So the line of a task that is gone lingers until it has stood for
LINGER_S, and a node that has not looked for longer says which versions it has not seen (``missed`` in its entry).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from dataclasses import dataclass

from zkd.paths import NodeId, TaskId
from zkd.records import Assigned

LINGER_S = 0.1  # some hops through ZooKeeper, under load
REMEMBERED_S = 60.0  # a node that is silent for so long has lost its session


@dataclass(frozen=True, slots=True)
class Standing:
    """A line that stands in a list: since which version, and when that was written."""

    version: int
    at: float


@dataclass(frozen=True, slots=True)
class Stood:
    """A line that stands there no more: it stood from one version on, and not in the other any more."""

    id: TaskId
    first: int
    removed: int
    at: float


class Lists:
    """The lists of one reign."""

    def __init__(self) -> None:
        self._lines: dict[NodeId, dict[Assigned, Standing]] = {}
        self._gone: dict[NodeId, deque[Stood]] = {}

    def lingering(self, node: NodeId, tasks: list[Assigned], there: Container[TaskId], now: float) -> list[Assigned]:
        """The lines of tasks that are gone which should stand beside these for a while."""
        known = self._lines.get(node)
        if not known:
            return []
        wanted = {line.id for line in tasks}
        return [
            line
            for line, standing in known.items()
            if now - standing.at < LINGER_S and line.id not in wanted and line.id not in there
        ]

    def wrote(self, node: NodeId, version: int, tasks: list[Assigned], now: float) -> None:
        """This is what stands there now."""
        before = self._lines.get(node, {})
        first = Standing(version, now)
        self._lines[node] = after = {line: before.get(line, first) for line in tasks}
        gone = self._gone.setdefault(node, deque())
        gone.extend(Stood(line.id, stood.version, version, now) for line, stood in before.items() if line not in after)
        while gone and gone[0].at < now - REMEMBERED_S:
            gone.popleft()

    def unseen(self, node: NodeId, read: int, then: int) -> set[TaskId]:
        """The tasks of which a node knows nothing that has read this version, and next that one."""
        return {stood.id for stood in self._gone.get(node, ()) if read < stood.first and stood.removed <= then}

    def forget(self, node: NodeId) -> None:
        """The node is gone, and another life of it knows nothing anyway."""
        self._lines.pop(node, None)
        self._gone.pop(node, None)
