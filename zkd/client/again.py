"""Puts a dead task back into the drop box: its history and its result go, the task comes, in one transaction."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import Raw

from zkd import codec
from zkd.client.dropbox import ANY_VERSION, OUTAGE_MAX_S
from zkd.client.outstanding import NO_ANSWER
from zkd.errors import MultiFailed, NodeExists, NoNode, OutcomeUnknown, TaskNotFound
from zkd.records import Dead
from zkd.zk import Create, Delete, SetData

if TYPE_CHECKING:
    from zkd.client.dropbox import DropBox
    from zkd.paths import TaskId


async def retry(box: DropBox, task: TaskId) -> None:
    """Drop a dead task again, with all its attempts before it. Raises `TaskNotFound`."""
    paths = box.paths
    give_up = time.monotonic() + OUTAGE_MAX_S
    is_sent_before = False
    while True:
        try:
            dead = codec.decode((await box.read(paths.dead_task(task))).data, Dead)
        except NoNode:
            if is_sent_before and await _has(box, paths.task(task)):
                return
            raise TaskNotFound(
                f"there is no dead task {task} below {paths.root}: only failed ones can be retried"
            ) from None
        ops: list[Create | Delete | SetData] = [Delete(paths.dead_task(task), ANY_VERSION)]
        if await _has(box, paths.result(task)):  # it may have outlived its time
            ops.append(Delete(paths.result(task), ANY_VERSION))
        text = _fresh(dead.task)
        ops.append(Create(paths.task(task), text))
        # The version is the fence, and a new life would start at 0 again: go beyond what any attempt held.
        ops += [SetData(paths.task(task), text, number) for number in range(len(dead.attempts) + 1)]
        try:
            await box.session.multi(ops)
            return
        except MultiFailed as error:
            if isinstance(error.cause, NodeExists):
                return  # somebody else retried it
            if not isinstance(error.cause, NoNode):
                raise error.cause from None
            if time.monotonic() >= give_up:
                raise
        except NO_ANSWER as error:
            is_sent_before = is_sent_before or isinstance(error, OutcomeUnknown)
            await box.catch_up(give_up, error)


async def _has(box: DropBox, path: str) -> bool:
    try:
        await box.read(path)
    except NoNode:
        return False
    return True


def _fresh(task: Raw) -> bytes:
    """The task without its history."""
    fields: dict[str, Raw] = codec.decode(bytes(task), dict[str, Raw])
    fields.pop("attempts", None)
    return codec.encode(fields)
