"""A node and leader in one, in forty lines: what the client's tests need of a cluster, under the test's control.

It keeps to the protocol in docs/protocol.md: one transaction takes the task away and publishes its result.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from zkd.arrays import from_json, to_json
from zkd.codec import decode_task, encode
from zkd.errors import MultiFailed, NodeExists, NoNode, OutcomeUnknown, Unavailable, ZooKeeperError
from zkd.paths import Paths, leaf
from zkd.records import UNSET, Dead, Fault, Leader, Node, Result
from zkd.zk import Create, Delete, Session, State, ensure_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.zk import Event, StateChange


class StandIn:
    """Runs Python functions by name as soon as their tasks appear. `hold` keeps the named kernels waiting."""

    def __init__(self, hosts: str, root: str, kernels: dict[str, Callable[..., Any]], *, slots: int = 4) -> None:
        self.session = Session(hosts)
        self.paths = Paths(root)
        self.kernels = kernels
        self.slots = slots
        self.hold: set[str] = set()
        self.seen: list[str] = []  # the id of every task, once for each of its lives
        self.lives: set[tuple[str, int]] = set()
        self.new = asyncio.Event()
        self._queue: list[str] = []

    async def __aenter__(self) -> StandIn:
        await self.session.__aenter__()
        await self.session.connected(10)
        for path in self.paths.skeleton():
            await ensure_path(self.session, path)
        node = Node("standin", "1", self.slots, kernels=list(self.kernels))
        await self.session.create(self.paths.node("standin"), encode(node), ephemeral=True)
        await self.session.create(self.paths.leader, encode(Leader("standin", "1", 1)), ephemeral=True)
        await self.session.add_watch(self.paths.tasks, self._hear, recursive=True)
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._runner = self._group.create_task(self._run())
        self.session.subscribe(self._session_changed)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._runner.cancel()
        await self._group.__aexit__(None, None, None)
        await self.session.__aexit__(None, None, None)

    def _hear(self, event: Event) -> None:
        if event.path != self.paths.tasks and event.type.name == "CREATED":
            self._queue.append(leaf(event.path))
            self.new.set()

    async def _run(self) -> None:
        while True:
            await self.new.wait()
            self.new.clear()
            names, self._queue = list(dict.fromkeys(self._queue)), []
            try:
                await self._look_at(names)
            except (Unavailable, OutcomeUnknown):
                await self.session.connected(10)
                await self._list()

    async def _look_at(self, names: list[str]) -> None:
        found = await self.session.get_many([self.paths.task(name) for name in names])
        for name, znode in zip(names, found, strict=True):
            if isinstance(znode, ZooKeeperError):
                continue
            if (name, znode.stat.czxid) not in self.lives:
                self.lives.add((name, znode.stat.czxid))
                self.seen.append(name)
            if decode_task(znode.data).kernel not in self.hold:
                await self.end(name, znode.data, znode.stat.version)

    async def _list(self) -> None:
        with suppress(Unavailable):  # the next connection lists them again
            self._queue = await self.session.children(self.paths.tasks)
            self.new.set()

    def _session_changed(self, change: StateChange) -> None:
        if change.state is State.CONNECTED:
            self._group.create_task(self._list())

    async def release(self) -> None:
        """Run what was held."""
        self.hold.clear()
        await self._list()

    async def wait_for(self, count: int) -> None:
        """Until so many tasks have been seen."""
        while len(self.seen) < count:
            await asyncio.sleep(0.001)

    async def end(self, name: str, text: bytes, version: int) -> None:
        task = decode_task(text)
        args, kwargs = from_json(bytes(task.args)), from_json(bytes(task.kwargs))
        dead = []
        try:
            function = self.kernels[task.kernel]
            if task.items is UNSET:
                value = function(*args, **kwargs)
            else:
                value = []
                for number, item in enumerate(from_json(bytes(task.items))):
                    try:
                        value.append(function(item, *args, **kwargs))
                    except ValueError as error:
                        error.add_note(f"raised by item {number} of many")
                        raise
            result = Result("done", "standin", 1, value=msgspec.Raw(to_json(value)), kernel=task.kernel)
        except KeyError:
            result = Result("rejected", error=Fault("kernel", f"no such kernel {task.kernel}", path="$.kernel"))
        except ValueError as error:
            import traceback

            fault = Fault("ValueError", str(error), traceback="".join(traceback.format_exception(error)))
            result = Result("failed", "standin", 1, error=fault, kernel=task.kernel)
            dead = [Create(self.paths.dead_task(name), encode(Dead(msgspec.Raw(text), fault, [], "now")))]
        try:
            await self.session.multi(
                [Delete(self.paths.task(name), version), Create(self.paths.result(name), encode(result)), *dead]
            )
        except MultiFailed as failed:
            # It was cancelled; or its id has a result already, which answers it.
            if not isinstance(failed.cause, (NoNode, NodeExists)):
                raise
