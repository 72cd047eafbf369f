"""What the tests of dispatch share: short ways to say who is there and what was dropped."""

from __future__ import annotations

from typing import Any

from zkd.core.commands import Assign, Command, End, Mourn, TakeBack
from zkd.core.dispatch import Dispatch
from zkd.paths import NodeId, TaskId
from zkd.records import Assigned, Node, Task


def node(name: NodeId, slots: int = 2, *, kernels: tuple[str, ...] = ("k",), life: int = 1, **fields: Any) -> Node:
    return Node(node=name, incarnation=f"{name}.{life}", slots=slots, kernels=list(kernels), **fields)


def cluster(*nodes: Node, me: NodeId = "a") -> Dispatch:
    mind = Dispatch(me)
    for record in nodes:
        mind.node_here(record, 0.0)
    return mind


def drop(
    mind: Dispatch,
    task_id: TaskId,
    czxid: int,
    *,
    version: int = 0,
    now: float = 0.0,
    age_s: float = 0.0,
    kernel: str = "k",
    **fields: Any,
) -> None:
    mind.task_read(task_id, czxid, version, Task(kernel=kernel, **fields), age_s=age_s, now=now)


def decided(mind: Dispatch, now: float = 0.0) -> list[Command]:
    """What is due now; the picture must be sound before and after."""
    assert list(mind.check()) == []
    commands = mind.commands(now)
    assert list(mind.check()) == []
    assert mind.commands(now) == [], "asked again at the same moment, it has something new to say"
    return commands


def lists(commands: list[Command]) -> dict[NodeId, list[TaskId]]:
    """Which ids stand in the lists that these commands write."""
    return {c.node: [line.id for line in c.tasks] for c in commands if isinstance(c, Assign)}


def line(task_id: TaskId, czxid: int, version: int = 0, attempt: int = 1) -> Assigned:
    return Assigned(task_id, czxid, version, attempt)


def ends(commands: list[Command]) -> dict[TaskId, str]:
    return {c.id: c.status for c in commands if isinstance(c, End)}


def mourned(commands: list[Command]) -> list[TaskId]:
    return [c.id for c in commands if isinstance(c, Mourn)]


def taken_back(commands: list[Command]) -> list[TakeBack]:
    return [c for c in commands if isinstance(c, TakeBack)]
