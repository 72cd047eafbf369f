"""Why a task is not done yet, in words. Pure: a picture of the tree in, a sentence out.

The leader decides from the same facts; where it would weigh many waiting tasks against each other, this says
what would keep this one waiting if it were alone, and else that others go first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkd.paths import NodeId, TaskId
    from zkd.records import Assignment, Dead, Leader, Limit, Node, NodeState, NodeStatus, Result, Task


NAMED_MAX = 5  # of the tasks it waits for


@dataclass(frozen=True)
class Picture:
    """What the tree says about one task and about all nodes."""

    id: TaskId
    task: Task | None = None
    malformed: str = ""  # why the bytes at tasks/<id> are not a task
    age_s: float = 0.0  # by the server's clock
    result: Result | None = None
    dead: Dead | None = None
    leader: Leader | None = None
    nodes: dict[NodeId, Node] = field(default_factory=dict)
    statuses: dict[NodeId, NodeStatus] = field(default_factory=dict)
    states: dict[NodeId, NodeState] = field(default_factory=dict)  # set by operators
    assignments: dict[NodeId, Assignment] = field(default_factory=dict)
    unfinished: list[TaskId] = field(default_factory=list)  # of those it comes after: in the drop box
    promised: list[TaskId] = field(default_factory=list)  # neither in the drop box nor ended
    limit: Limit | None = None  # of its kernel
    waiting: int = 0  # tasks in the drop box


def is_waiting(picture: Picture) -> bool:
    """Whether a leader may know more of it than the tree shows."""
    return picture.result is None and picture.task is not None and not _running(picture)


def explain(picture: Picture) -> str:
    """One or two sentences about this task; empty if the tree has nothing of this id."""
    if picture.result is not None:
        return _ended(picture.result)
    if picture.task is None and not picture.malformed:
        if picture.dead is not None:
            return f"It is dead: {_fault(picture.dead)}. Its result was let go; `zkd retry {picture.id}` runs it again."
        return ""
    running = _running(picture)
    if running:
        return running
    if picture.leader is None:
        here = f"{len(picture.nodes)} nodes are here" if picture.nodes else "no node is here"
        return f"It waits for a leader: nobody leads now, {here}. " + (
            "One of them will take over within the session timeout."
            if picture.nodes
            else "Start one: zkd daemon, or zkd dev."
        )
    if picture.malformed:
        return f"It is not a task ({picture.malformed}); the leader will reject it."
    return _waiting(picture)


def _ended(result: Result) -> str:
    where = f" on {result.node}" if result.node else ""
    if result.status == "done":
        return f"It is done: attempt {result.attempt}{where} took {result.run_s:.3g} s. The result is there."
    fault = result.error
    # What failed is told by its kind; of a cancelled or rejected task the kind says no more than the status does.
    kind = f"{fault.kind}: " if fault and result.status == "failed" else ""
    place = f"{fault.path}: " if fault and fault.path and fault.path not in fault.message else ""
    what = f": {kind}{place}{fault.message}" if fault else ""
    # Not by the length of `attempts`, which has the last one in it, too, if that was charged.
    tried = f" after {result.attempt} attempts" if result.attempt > 1 else ""
    return f"It has ended, {result.status}{where}{tried}{what}."


def _fault(dead: Dead) -> str:
    return f"{dead.error.kind}: {dead.error.message}"


def _running(picture: Picture) -> str:
    runs = [
        (node, run)
        for node, status in picture.statuses.items()
        for run in status.running
        if run.id == picture.id and node in picture.nodes
    ]
    if runs:
        (node, run), *copies = runs
        how_far = f", {run.progress:.0%}" if run.progress is not None else ""
        note = f" ({run.note})" if run.note else ""
        more = "".join(f" A second copy runs on {other}; the first to end counts." for other, _ in copies)
        return f"It runs on {node}, attempt {run.attempt}, for {run.run_s:.3g} s{how_far}{note}.{more}"
    for node, assignment in picture.assignments.items():
        for line in assignment.tasks:
            if line.id != picture.id:
                continue
            if node not in picture.nodes:
                return f"It was assigned to {node}, which is gone; the leader is about to give it to another node."
            return f"It is assigned to {node} as attempt {line.attempt} and starts there when a worker is free."
    return ""


def _waiting(picture: Picture) -> str:
    task = picture.task
    assert task is not None
    history = f" {_history(task)}" if task.attempts else ""
    if task.not_after_s is not None and picture.age_s > task.not_after_s:
        return f"Its not_after_s of {task.not_after_s:g} s is over; the leader will publish it as expired.{history}"
    if picture.age_s < task.delay_s:
        return f"Its delay is not over: {task.delay_s - picture.age_s:.3g} s of {task.delay_s:g} s are left.{history}"
    missing = [*picture.unfinished, *(f"{name} (which nobody has dropped yet)" for name in picture.promised)]
    if missing:
        more = f" and {len(missing) - NAMED_MAX} more" if len(missing) > NAMED_MAX else ""
        of = f"{len(missing)} of {_tasks(len(task.after))}"
        return f"It waits for {of} to be done: {', '.join(missing[:NAMED_MAX])}{more}.{history}"
    if not picture.nodes:
        return f"No node is here. Start one: zkd daemon, or zkd dev.{history}"
    left = list(picture.nodes.values())
    for passed, refusal in _sieves(picture, task):
        if not passed:
            return f"{refusal}{history}"
        left = passed
    free = {node.node: _free(picture, node) for node in left}
    if max(free.values()) < task.slots:
        busy = ", ".join(
            f"{name} has {max(0, slots)} of {picture.nodes[name].slots} free" for name, slots in free.items()
        )
        return f"It waits for {_slots(task.slots)}: {busy}. {picture.waiting} tasks are in the drop box.{history}"
    held_back = _limited(picture, task)
    if held_back:
        return f"{held_back}{history}"
    if task.attempts:
        return f"It is between two attempts; the next one comes after a pause that grows with each.{history}"
    return (
        f"It could run now on {', '.join(sorted(name for name, slots in free.items() if slots >= task.slots))}: the "
        f"leader {picture.leader.node if picture.leader else ''} is about to assign it, or others of higher priority "
        f"or age go first ({picture.waiting} tasks are in the drop box)."
    )


def _sieves(picture: Picture, task: Task) -> Iterator[tuple[list[Node], str]]:
    """Each demand of the task, with the nodes that are left after it and what to say if none is."""
    nodes = list(picture.nodes.values())
    if task.node is not None:
        known = ", ".join(sorted(picture.nodes))
        nodes = [node for node in nodes if node.node == task.node]
        yield nodes, f"It must run on node {task.node}, which is not here. Here: {known}."
    if task.labels:
        wanted = ", ".join(f"{name}={value}" for name, value in sorted(task.labels.items()))
        nodes = [node for node in nodes if task.labels.items() <= node.labels.items()]
        yield nodes, f"No node carries the labels {wanted}."
    nodes = [node for node in nodes if task.kernel in node.kernels or not node.kernels]
    yield nodes, f"No node that it may run on has the kernel {task.kernel}."
    most = max((node.slots for node in nodes), default=0)
    nodes = [node for node in nodes if node.slots >= task.slots]
    yield nodes, f"It wants {_slots(task.slots)}, and no node that it may run on has more than {most}."
    if task.memory is not None:
        nodes = [node for node in nodes if node.memory is None or node.memory >= task.memory]
        yield nodes, f"It wants {task.memory} bytes of memory, more than any node that it may run on has."
    closed = ", ".join(f"{node.node} is {_state(picture, node)}" for node in nodes)
    nodes = [node for node in nodes if _state(picture, node) == "active"]
    yield nodes, f"The nodes that it may run on take no work: {closed}. See zkd node uncordon."


def _limited(picture: Picture, task: Task) -> str:
    """What the limit of its kernel says, if it may be that."""
    limit = picture.limit
    if limit is None:
        return ""
    who = f" (by {limit.by}{': ' if limit.reason else ''}{limit.reason})" if limit.by else ""
    if limit.at_once == 0:
        return f"All work of {task.kernel} is held back by its limit{who}; see zkd get limits."
    running = sum(run.kernel == task.kernel for status in picture.statuses.values() for run in status.running)
    if limit.at_once is not None and running >= limit.at_once:
        return f"It waits for the limit of {task.kernel}, {limit.at_once} at once, and {running} run now{who}."
    if limit.per_s is not None:
        return f"It waits for its turn: the limit of {task.kernel} is {limit.per_s:g} starts a second{who}."
    return ""


def _state(picture: Picture, node: Node) -> str:
    return "draining" if node.draining else picture.states.get(node.node, "active")


def _free(picture: Picture, node: Node) -> int:
    assignment = picture.assignments.get(node.node)
    status = picture.statuses.get(node.node)
    return node.slots - max(len(assignment.tasks) if assignment else 0, status.slots_used if status else 0)


def _slots(count: int) -> str:
    return "a free slot" if count == 1 else f"{count} free slots on one node"


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _history(task: Task) -> str:
    last = task.attempts[-1]
    return (
        f"{len(task.attempts)} attempts so far; the last, on {last.node}, ended by {last.cause}: {last.message or '-'}."
    )
