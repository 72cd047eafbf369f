"""A submitter as users are: any ZooKeeper client that drops a znode and reads a result."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from zkd import codec
from zkd.errors import NoAuth, NodeExists, NoNode, OutcomeUnknown, SessionExpired, Unavailable
from zkd.paths import Paths, TaskId, leaf
from zkd.records import Dead, Result
from zkd.zk import Acl, Event, Session, State

T = TypeVar("T")
WHILE_AWAY = (Unavailable, OutcomeUnknown, SessionExpired)


async def until(condition: Callable[[], Awaitable[T]], within_s: float, what: str) -> T:
    """Ask again and again, until the answer is not None and not False."""
    answer: T | None = None
    try:
        async with asyncio.timeout(within_s):
            while True:
                try:
                    answer = await condition()
                except WHILE_AWAY:
                    answer = None
                if answer is not None and answer is not False:
                    return answer
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s: {what}; the last answer was {answer!r}") from None


class Submitter:
    def __init__(self, session: Session, paths: Paths) -> None:
        self.session = session
        self.paths = paths
        self.count = 0

    async def drop(
        self,
        task: object,
        task_id: TaskId | None = None,
        *,
        ephemeral: bool = False,
        sequential: bool = False,
        ttl_ms: int | None = None,
        acl: Sequence[Acl] | None = None,
    ) -> TaskId:
        """Create the znode; its id. Bytes go as they are, everything else as JSON."""
        self.count += 1
        data = task if isinstance(task, bytes) else json.dumps(task).encode()
        path = self.paths.task(task_id or f"t-{self.count}")
        created = await self.session.create(
            path, data, ephemeral=ephemeral, sequential=sequential, ttl_ms=ttl_ms, acl=acl
        )
        return leaf(created.path)

    async def drop_for_sure(self, task: object, task_id: TaskId, within_s: float = 30.0) -> None:
        """Create the znode, however often the connection is lost on the way."""

        async def is_there() -> bool:
            try:
                await self.drop(task, task_id)
            except NodeExists:
                return True
            return True

        await until(is_there, within_s, f"{task_id} was dropped")

    async def result(self, task_id: TaskId, within_s: float = 8.0) -> Result:
        """Wait for the result."""
        path = self.paths.result(task_id)
        try:
            async with asyncio.timeout(within_s):
                while True:
                    there = asyncio.Event()
                    try:
                        if await self.session.exists(path, watch=lambda _, there=there: there.set()) is not None:  # type: ignore[misc]
                            return codec.decode_result((await self.session.get(path)).data)
                        async with asyncio.timeout(1.0):
                            await there.wait()
                    except WHILE_AWAY:
                        await asyncio.sleep(0.05)
                    except (NoNode, TimeoutError):
                        if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                            raise
        except TimeoutError:
            raise AssertionError(f"{task_id} has no result within {within_s} s; {await self.story(task_id)}") from None

    async def results(self, task_ids: Sequence[TaskId], within_s: float = 20.0) -> list[Result]:
        return list(await asyncio.gather(*(self.result(task_id, within_s) for task_id in task_ids)))

    async def do(self, kernel: str, *args: object, within_s: float = 8.0, **fields: Any) -> Result:
        return await self.result(await self.drop({"kernel": kernel, "args": args, **fields}), within_s)

    async def cancel(self, task_id: TaskId) -> bool:
        """Delete the task; False if it was gone."""
        try:
            await self.session.delete(self.paths.task(task_id), -1)
        except NoNode:
            return False
        return True

    async def dead(self, task_id: TaskId) -> Dead:
        return codec.decode((await self.session.get(self.paths.dead_task(task_id))).data, Dead)

    async def is_there(self, path: str) -> bool:
        return await self.session.exists(path) is not None

    async def gone(self, path: str, within_s: float = 8.0) -> None:
        async def is_gone() -> bool:
            return await self.session.exists(path) is None

        await until(is_gone, within_s, f"{path} is gone")

    async def set_state(self, node: str, state: str) -> None:
        path, data = self.paths.node_state(node), json.dumps({"state": state}).encode()
        try:
            await self.session.create(path, data)
        except NodeExists:
            await self.session.set(path, data, -1)

    async def story(self, task_id: TaskId) -> str:
        """What the tree says about a task, for the message of a failing test."""
        if self.session.state is not State.CONNECTED:
            return f"the submitter's session is {self.session.state.name}"
        lines = []
        for path in (self.paths.task(task_id), self.paths.dead_task(task_id), self.paths.leader):
            try:
                got = await self.session.get(path)
                lines.append(f"{path} (version {got.stat.version}): {got.data[:300]!r}")
            except (NoNode, NoAuth) as error:
                lines.append(f"{path}: {error}")
        for name in await self.session.children(self.paths.assignments):
            got = await self.session.get(self.paths.assignment(name))
            lines.append(f"assign/{name}: {got.data[:300]!r}")
        lines.append(f"nodes: {await self.session.children(self.paths.nodes)}")
        return "\n".join(lines)


class Witness:
    """Sees every result that is created, from a session of its own. Two for one id are two lines here."""

    def __init__(self) -> None:
        self.created: list[TaskId] = []
        self.events: list[Event] = []

    async def watch(self, session: Session, paths: Paths) -> None:
        def saw(event: Event) -> None:
            self.events.append(event)
            if event.type.name == "CREATED" and event.path.startswith(f"{paths.results}/"):
                self.created.append(leaf(event.path))

        await session.add_watch(paths.results, saw, recursive=True)


@asynccontextmanager
async def submitting(hosts: str, root: str, *, timeout_s: float = 20.0) -> AsyncIterator[Submitter]:
    async with Session(hosts, timeout_s=timeout_s) as session:
        await session.connected(20.0)
        yield Submitter(session, Paths(root))
