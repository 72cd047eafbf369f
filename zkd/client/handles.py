"""A task that was submitted, in the hands of the program that waits for it.

A handle is nothing but an id and a way to look: it can be dropped, made again from the id, in another process,
and the task goes on regardless.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from zkd.client.outstanding import Pending, Sign
from zkd.codec import decode, decode_result
from zkd.errors import BadRecord, NoNode, ResultTimeout, TaskNotFound, ZooKeeperError
from zkd.paths import NodeId, TaskId, leaf
from zkd.records import Assignment, NodeStatus, Result, Running
from zkd.zk import EventType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zkd.client.dropbox import DropBox
    from zkd.client.outcomes import Blobs
    from zkd.zk import Event


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """Where a task is: `waiting` for a node, `assigned` to one, `running` on it, or how it ended."""

    id: TaskId
    state: Literal["waiting", "assigned", "running", "done", "failed", "rejected", "cancelled", "expired"]
    node: NodeId | None = None
    attempt: int = 0
    progress: float | None = None  # 0..1, if the kernel reports it
    note: str | None = None
    run_s: float = 0.0

    @property
    def has_ended(self) -> bool:
        return self.state not in ("waiting", "assigned", "running")


class Handle:
    """A submitted task. `await handle.result()` gives its value."""

    def __init__(self, box: DropBox, blobs: Blobs, task: TaskId, pending: Pending | None = None) -> None:
        self.id = task
        self._box = box
        self._blobs = blobs
        self._pending = pending
        self._result: Result | None = None

    def __repr__(self) -> str:
        return f"Handle({self.id!r})"

    async def outcome(self, timeout: float | None = None) -> Result:
        """The result as it stands in the tree, whatever its status; waits for it.

        Raises `ResultTimeout` after `timeout` seconds (the task goes on), `TaskNotFound` if there is neither
        task nor result, `TaskCancelled` if the task is deleted and nobody led who could publish that.
        """
        if self._result is None:
            pending = await self._expected()
            # Waits for the task's own end unless the caller bounds it. `wait` leaves the future to other callers.
            await asyncio.wait({pending.arrival}, timeout=timeout)
            if not pending.arrival.done():
                raise ResultTimeout(f"no result of {self.id} after {timeout:g} s; the task goes on")
            self._result = await self._box.result_of(pending)
        return self._result

    async def result(self, timeout: float | None = None, *, forget: bool = False) -> Any:
        """The task's value, waiting up to `timeout` seconds (default: as long as the task takes).

        With `forget` the result is deleted from the tree once it is here; else it stays for its time to live.
        Raises `TaskFailed`, `TaskRejected`, `TaskCancelled`, `TaskExpired`, `ResultTimeout`, `ResultLost`.
        """
        result = await self.outcome(timeout)
        try:
            return await self._blobs.value_of(self.id, result)
        finally:
            if forget:
                self._box.forget([self.id])

    async def cancel(self) -> bool:
        """Cancel the task: a running kernel is stopped. False if it had ended before; its result stands then."""
        has_won = await self._box.withdraw(self.id)
        if has_won and self._pending is not None:
            self._pending.arrive(Sign.GONE)
        return has_won

    async def status(self) -> TaskStatus:
        """Where the task is now. Raises `TaskNotFound`."""
        return await status_of(self._box, self.id)

    async def progress(self) -> AsyncIterator[tuple[float | None, str | None]]:
        """(fraction, note) whenever the kernel's report changes, until the task has ended.

        Reports travel with the node's status, every few seconds; fast ones are skipped, never queued.
        """
        pending = await self._expected()
        changed = asyncio.Event()
        nodes: set[NodeId] = set()  # whose status has changed
        paths = self._box.paths

        def hear(event: Event) -> None:
            if event.type in (EventType.CREATED, EventType.CHANGED):
                nodes.add(leaf(event.path))
                changed.set()

        await self._box.session.add_watch(paths.statuses, hear, recursive=True)
        pending.arrival.add_done_callback(lambda _: changed.set())
        told: tuple[float | None, str | None] | None = None
        here: NodeId | None = None  # where it was seen running
        try:
            nodes.update(await self._box.session.children(paths.statuses))
            while not pending.arrival.done():
                looked = [here] if here in nodes else sorted(nodes)
                nodes.clear()
                running, here = await self._find(looked, here)
                if running is not None and (running.progress, running.note) != told:
                    told = (running.progress, running.note)
                    if told != (None, None):
                        yield told
                if not nodes and not pending.arrival.done():
                    changed.clear()
                    await changed.wait()  # until a status changes or the result is there: both wake it
        finally:
            with suppress(ZooKeeperError):  # without a connection it is forgotten here, which is all that matters
                await self._box.session.remove_watch(paths.statuses, hear)

    async def _find(self, nodes: list[NodeId], here: NodeId | None) -> tuple[Running | None, NodeId | None]:
        """The task among what these nodes run; where it is afterwards."""
        for node in nodes:
            try:
                status = decode((await self._box.read(self._box.paths.status(node))).data, NodeStatus)
            except (NoNode, BadRecord):
                status = None
            for running in status.running if status else ():
                if running.id == self.id:
                    return running, node
            if node == here:
                here = None
        return None, here

    async def _expected(self) -> Pending:
        if self._pending is None:
            box = self._box
            pending = await box.outstanding.expect(self.id, is_dropped=True)
            await box.outstanding.look_out(pending)
            if not pending.arrival.done() and not await _exists(box, self.id):
                raise TaskNotFound(f"there is neither task nor result {self.id} below {box.paths.root}")
            self._pending = pending
        return self._pending


async def _exists(box: DropBox, task: TaskId) -> bool:
    """Whether there is such a task, or its result; in this order, which a task's end cannot slip through."""
    for path in (box.paths.task(task), box.paths.result(task)):
        try:
            await box.read(path)
            return True
        except NoNode:
            continue
    return False


async def status_of(box: DropBox, task: TaskId) -> TaskStatus:
    """Where a task is, from the tree: its result, or who runs it, or who it is assigned to."""
    paths, session = box.paths, box.session
    try:
        result = decode_result((await box.read(paths.result(task))).data)
        return TaskStatus(task, result.status, result.node, result.attempt, run_s=result.run_s)
    except NoNode:
        pass
    nodes, assigned = await session.children(paths.statuses), await session.children(paths.assignments)
    for node, found in zip(nodes, await session.get_many([paths.status(node) for node in nodes]), strict=True):
        status = None if isinstance(found, ZooKeeperError) else _maybe(found.data, NodeStatus)
        for run in status.running if status else ():
            if run.id == task:
                return TaskStatus(task, "running", node, run.attempt, run.progress, run.note, run.run_s)
    lists = await session.get_many([paths.assignment(node) for node in assigned])
    for node, found in zip(assigned, lists, strict=True):
        assignment = None if isinstance(found, ZooKeeperError) else _maybe(found.data, Assignment)
        for line in assignment.tasks if assignment else ():
            if line.id == task:
                return TaskStatus(task, "assigned", node, line.attempt)
    if not await _exists(box, task):
        raise TaskNotFound(f"there is neither task nor result {task} below {paths.root}")
    try:  # it may have ended since the first look
        result = decode_result((await box.read(paths.result(task))).data)
        return TaskStatus(task, result.status, result.node, result.attempt, run_s=result.run_s)
    except NoNode:
        return TaskStatus(task, "waiting")


def _maybe(text: bytes, kind: type[Any]) -> Any:
    try:
        return decode(text, kind)
    except BadRecord:
        return None
