"""Submitters: programs that use `zkd.Client`, and plain ZooKeeper clients that know nothing but the protocol.

Each notes what it was told, to be compared with the log: an answer is a promise, a lost answer is none.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import zkd
from zkd.client.handles import Handle
from zkd.codec import decode_result
from zkd.errors import (
    NodeExists,
    NoNode,
    OutcomeUnknown,
    ResultLost,
    SessionExpired,
    TaskCancelled,
    TaskNotFound,
    Unavailable,
    ZooKeeperError,
)
from zkd.paths import leaf
from zkd.records import Result
from zkd.zk import Session

if TYPE_CHECKING:
    from tests.simulation.loop import Machine
    from tests.simulation.world import World

AWAY = (Unavailable, OutcomeUnknown, SessionExpired)


@dataclass
class Errand:
    """A task that somebody wants done, and what he was told of it."""

    at: float
    fields: dict[str, Any]
    id: str = ""  # known beforehand, or when the answer came
    mode: str = "persistent"  # or ephemeral, sequential, ttl
    cancel_after: float | None = None
    again_after: float | None = None  # drop the same id again so much later
    edit_after: float | None = None  # write the task anew, as it is, which ends whatever was made of it
    accepted: str = "no"  # no | yes | unknown: its answer was lost
    has_cancelled: bool | None = None  # who deleted it: we, as we were told
    told: Result | None = None
    said: str = ""  # what else came of waiting for it


@dataclass
class Submitter:
    world: World
    machine: Machine
    errands: list[Errand]
    timeout_s: float
    patience_s: float
    is_done: bool = False
    sessions: list[Session] = field(default_factory=list)

    def start(self) -> None:
        self.machine.start(self._live())

    async def _live(self) -> None:
        try:
            await self.work()
        except Exception as error:
            from tests.simulation.world import _said

            self.world.broken(f"{self.machine}: the submitter ended by {_said(error)}")
        self.is_done = True

    async def work(self) -> None:
        raise NotImplementedError

    async def until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, at - self.world.loop.now))


class Program(Submitter):
    """A program with a `zkd.Client`."""

    async def work(self) -> None:
        while True:
            client = zkd.Client(self.world.hosts, session_timeout_s=self.timeout_s, connect_timeout_s=self.patience_s)
            try:
                async with client:
                    self.sessions.append(client.session)
                    async with asyncio.TaskGroup() as group:
                        for errand in self.errands:
                            group.create_task(self._run(client, errand))
                return
            except Unavailable:
                continue  # it never connected

    async def _run(self, client: zkd.Client, errand: Errand) -> None:
        await self.until(errand.at)
        fields = dict(errand.fields)
        kernel, args = fields.pop("kernel"), fields.pop("args")
        if errand.mode == "ephemeral":
            fields["ephemeral"] = True
        try:
            handle = await client.options(**fields).submit(kernel, *args)
        except AWAY as error:
            errand.said = f"not submitted: {error}"
            return
        errand.id, errand.accepted = handle.id, "yes"
        self.world.tell("accepted", self.machine, handle.id)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._await(handle, errand))
            if errand.cancel_after is not None:
                await asyncio.sleep(errand.cancel_after)
                try:
                    errand.has_cancelled = await handle.cancel()
                except AWAY:
                    errand.said += " cancel unanswered"

    async def _await(self, handle: Handle, errand: Errand) -> None:
        while True:
            try:
                errand.told = await handle.outcome()
                self.world.tell("told", self.machine, handle.id, errand.told.status)
            except (TaskCancelled, ResultLost, TaskNotFound) as error:
                errand.said = type(error).__name__
            except AWAY:
                continue
            return


class Plain(Submitter):
    """Any ZooKeeper client: it drops znodes, looks for results, and asks again when it was cut off."""

    async def work(self) -> None:
        async with Session(self.world.hosts, timeout_s=self.timeout_s) as session:
            self.sessions.append(session)
            async with asyncio.TaskGroup() as group:
                for errand in self.errands:
                    group.create_task(self._run(session, errand))

    async def _run(self, session: Session, errand: Errand) -> None:
        await self.until(errand.at)
        await self._drop(session, errand)
        if errand.accepted != "yes":
            return
        self.world.tell("accepted", self.machine, errand.id)
        if errand.edit_after is not None:
            await asyncio.sleep(errand.edit_after)
            with suppress(ZooKeeperError):  # it may be gone, and so may the connection
                await session.set(self.world.paths.task(errand.id), json.dumps(errand.fields).encode(), -1)
        if errand.cancel_after is not None:
            await asyncio.sleep(errand.cancel_after)
            await self._cancel(session, errand)
            if errand.again_after is not None:
                await asyncio.sleep(errand.again_after)
                again = Errand(0.0, errand.fields, errand.id)
                self.errands.append(again)
                await self._drop(session, again)
                await self._look(session, again)
                return
        await self._look(session, errand)

    async def _drop(self, session: Session, errand: Errand) -> None:
        """Once, whatever comes of it; but while there is no connection nothing was sent."""
        path = self.world.paths.task(errand.id or "t-")
        data = json.dumps(errand.fields).encode()
        mode: dict[str, Any] = {
            "persistent": {},
            "ephemeral": {"ephemeral": True},
            "sequential": {"sequential": True},
            "ttl": {"ttl_ms": 1500},
        }[errand.mode]
        while True:
            try:
                await session.connected(self.patience_s)
                created = await session.create(path, data, **mode)
                errand.accepted, errand.id = "yes", leaf(created.path)
                return
            except NodeExists:
                errand.accepted = "no"  # by an earlier try of another kind, or a task that is still there
                return
            except NoNode:
                await asyncio.sleep(0.1)  # no daemon has been here yet
            except (Unavailable, SessionExpired):
                await asyncio.sleep(0.05)
            except OutcomeUnknown:
                errand.accepted = "unknown"
                return

    async def _cancel(self, session: Session, errand: Errand) -> None:
        is_sent = False
        while True:
            try:
                await session.connected(self.patience_s)
                await session.delete(self.world.paths.task(errand.id), -1)
                errand.has_cancelled = True
                return
            except NoNode:
                errand.has_cancelled = None if is_sent else False
                return
            except OutcomeUnknown:
                is_sent = True
            except (Unavailable, SessionExpired):
                await asyncio.sleep(0.05)

    async def _look(self, session: Session, errand: Errand) -> None:
        """Wait for the result by a watch, as docs/protocol.md says; gives up when neither it nor the task is there."""
        missed = 0
        while missed < 6:
            there = asyncio.Event()
            try:
                await session.connected(self.patience_s)
                is_waiting = await session.exists(self.world.paths.task(errand.id)) is not None
                path = self.world.paths.result(errand.id)
                if await session.exists(path, watch=lambda _, there=there: there.set()) is not None:  # type: ignore[misc]
                    errand.told = decode_result((await session.get(path)).data)
                    self.world.tell("told", self.machine, errand.id, errand.told.status)
                    return
                missed = 0 if is_waiting else missed + 1
                async with asyncio.timeout(1.0):
                    await there.wait()
            except (*AWAY, NoNode):
                await asyncio.sleep(0.05)
            except TimeoutError:
                continue
        errand.said = "gone"


class Operator(Submitter):
    """A person who drains and cordons nodes, limits kernels and has tasks recur, and takes it all back in the end."""

    wishes: list[tuple[float, str, str, Any]]  # when, what, of what, how

    async def work(self) -> None:
        for at, what, name, how in self.wishes:
            await self.until(at)
            while True:
                try:
                    async with zkd.Client(
                        self.world.hosts, session_timeout_s=self.timeout_s, connect_timeout_s=self.patience_s
                    ) as client:
                        self.sessions.append(client.session)
                        await self._do(client, what, name, how)
                    self.world.tell("operator", self.machine, what, name, how)
                    break
                except AWAY:
                    await asyncio.sleep(0.2)

    async def _do(self, client: zkd.Client, what: str, name: str, how: Any) -> None:
        if what == "state":
            await client.set_node_state(name, how, reason="why not")
        elif what == "limit":
            await client.set_limit(name, at_once=how)
        elif what == "no limit":
            await client.unset_limit(name)
        elif what == "schedule":
            await client.schedule(name, how, "sim.work", [["done", 0.05]])
        else:
            await client.unschedule(name)
