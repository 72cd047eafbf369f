"""What a task on a dataset is called with on this node: the files of its part, or what all of its parts gave.

What is not here yet is fetched at once, for a while; what cannot be had sends the task back to the leader, free of
charge, and it goes to another home of the part.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import structs

from zkd import children, codec
from zkd.core.spreads import GATHER, family, gathered, inline_max, parts_of
from zkd.errors import DataUnavailable, ZooKeeperError
from zkd.holder.parts import Fetch, Lives, Parts
from zkd.paths import Paths, TaskId
from zkd.records import Assigned, BlobRef, Task
from zkd.workers import Call, PartFiles
from zkd.zk import Session


class Provided(NamedTuple):
    """What a task on a part is called with."""

    call: Call
    lives: Lives  # of the segments that it is about to read


class Gathered(NamedTuple):
    """What a task on all parts is called with, once its parts are done."""

    call: Call
    refs: dict[TaskId, BlobRef]  # of the values that lie in files


class Provision:
    """`fetch` brings a segment from one of these nodes."""

    def __init__(self, session: Session, paths: Paths, parts: Parts, fetch: Fetch) -> None:
        self._session = session
        self._paths = paths
        self._parts = parts
        self._fetch = fetch

    async def of_part(self, task: Task, call: Call) -> Provided:
        """The call, with the part's files in it. Raises `DataUnavailable`, `DataDamaged`."""
        assert task.dataset is not None
        assert task.partition is not None
        manifest = await self._parts.manifest(task.dataset)
        laid = await self._parts.lay(manifest, task.partition, task.columns or (), self._fetch)
        most = call.inline_max if task.parent is None else inline_max(manifest.parts, call.inline_max)
        part = PartFiles(laid.columns, not task.columns, laid.numbers)
        return Provided(structs.replace(call, part=part, inline_max=most), laid.lives)

    async def doubt(self, lives: Lives) -> str | None:
        """Why a run that has read these cannot be believed, if so."""
        return await self._parts.doubt(lives)

    async def of_all(self, task: Task, line: Assigned, call: Call) -> Gathered:
        """The call that puts together what all parts gave. Raises `DataUnavailable` if one's result is not there."""
        assert task.dataset is not None
        manifest = await self._parts.manifest(task.dataset)
        stem = family(line.id, line.czxid, task, manifest)
        try:
            values = await children.values(self._session, self._paths, stem, parts_of(task, manifest.parts))
        except ZooKeeperError as error:
            raise DataUnavailable(f"the results of the parts cannot be read: {error}") from error
        refs: dict[TaskId, BlobRef] = {}
        texts: list[bytes] = []
        for task_id, value in values.items():
            if value is None:
                raise DataUnavailable(f"the result of {task_id} is not there")
            if isinstance(value, BlobRef):
                refs[task_id] = value
            texts.append(codec.encode(value) if isinstance(value, BlobRef) else value)
        kernel = task.combine or GATHER
        return Gathered(structs.replace(call, kernel=kernel, args=gathered(texts), kwargs=b"{}"), refs)

    async def forget(self, child: TaskId) -> None:
        """The value of this part cannot be had any more: without its result the leader has it done again."""
        try:
            await self._session.delete(self._paths.result(child), -1)
        except ZooKeeperError:
            return  # it is found missing, or tried again, the next time
