"""What every recipe stands on: a session, somebody to clean up, and how to wait until there is news.

A recipe waits for one of two things: an event at a znode, or a change of the session's state. Both ring the same
`Alarm`, and whoever wakes looks at the tree again: the ring itself says nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from zkd.errors import NodeExists, NoNode, OutcomeUnknown, SessionClosed, SessionExpired, Unavailable, ZooKeeperError
from zkd.paths import parent
from zkd.zk.session import Session, ensure_path
from zkd.zk.values import ANY_VERSION, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from zkd.records import Claimant
    from zkd.zk.values import Event, Znode

# A change of state by the clock alone (a loop that was stuck, and is not any more) is not always told, so nobody
# waits for a connection longer than this without looking.
LOOK_AGAIN_S = 0.25
# What a recipe lives through and tries again after it: the connection, or the session, is another one now.
INTERRUPTIONS = (Unavailable, OutcomeUnknown, SessionExpired)


@dataclass(frozen=True, slots=True)
class Footing:
    """`client` is one program's identity, across all its sessions."""

    session: Session
    leftovers: Leftovers
    tasks: asyncio.TaskGroup
    claimant: Claimant
    client: str


class Alarm:
    """Rung by watches and by every change of the session's state, for as long as its ``with`` block."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rung = asyncio.Event()
        self._watched: set[str] = set()
        self._unsubscribe = session.subscribe(lambda _: self._rung.set())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._unsubscribe()
        for path in self._watched:
            self._session.forget(path, self.ring)

    async def get(self, path: str, *, within: int | None = None) -> Znode:
        """What stands at `path`; the alarm rings when that changes or goes. Raises `NoNode`, and then watches nothing:
        a watch on what is not there would stay for ever."""
        self._watched.add(path)
        return await self._session.get(path, watch=self.ring, within=within)

    async def children(self, path: str, *, within: int | None = None) -> list[str]:
        """The children of `path`; the alarm rings when there are others, or it goes. Raises `NoNode`."""
        self._watched.add(path)
        return await self._session.children(path, watch=self.ring, within=within)

    def ring(self, _: Event | None = None) -> None:
        self._rung.set()

    def clear(self) -> None:
        """To be called before looking: what happens from here on is heard by `wait`."""
        self._rung.clear()

    async def wait(self) -> None:
        """Wait for news; the caller bounds it."""
        await self._rung.wait()

    async def connected(self) -> int:
        """The id of the session, when it is connected; the caller bounds the wait. Raises `SessionClosed`."""
        while True:
            self.clear()
            if self._session.state is State.CONNECTED:
                return self._session.session_id
            if self._session.state is State.CLOSED:
                raise self._session.fault or SessionClosed()
            try:
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await self.wait()
            except TimeoutError:
                continue


async def ensure_directory(session: Session, path: str, data: bytes = b"") -> None:
    """Make `path` as a container, which the server removes some time after its last child, and what is above it."""
    try:
        await session.create(path, data, container=True)
    except NodeExists:
        return
    except NoNode:
        await ensure_path(session, parent(path))
        await ensure_directory(session, path, data)


async def listed(session: Session, path: str, *, within: int | None = None) -> list[str]:
    """The children of a directory that may not be there, as of now and not as of some server's past."""
    try:
        await session.sync(path, within=within)
        return await session.children(path, within=within)
    except NoNode:
        return []


class Leftovers:
    """Znodes of ours that nobody wants any more and that could not be deleted at once.

    A caller who is cancelled, or whose connection is gone, leaves them here, also those whose creation was never
    answered: they are looked for until they are gone or their session is.
    """

    def __init__(self, session: Session, tasks: asyncio.TaskGroup) -> None:
        self._session = session
        self._tasks = tasks
        self._removals: set[asyncio.Task[None]] = set()

    def leave(self, session_id: int, remove: Callable[[], Awaitable[None]]) -> None:
        """Have this done as soon as this session of ours is connected, and not at all once it is over."""
        self.ends_with(self._tasks.create_task(self._remove(session_id, remove), name="zkd sync leftovers"))

    def ends_with(self, task: asyncio.Task[None]) -> None:
        """Have a task cancelled by `close`."""
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    @property
    def count(self) -> int:
        return len(self._removals)

    def close(self) -> None:
        """Leave the rest to the end of the session, which takes ephemeral znodes with it."""
        for removal in self._removals:
            removal.cancel()

    async def _remove(self, session_id: int, remove: Callable[[], Awaitable[None]]) -> None:
        with Alarm(self._session) as alarm:
            while True:
                try:
                    if await alarm.connected() != session_id:
                        return  # they went with their session
                    await remove()
                    return
                except (Unavailable, OutcomeUnknown):
                    continue
                except ZooKeeperError:
                    return  # expired, closed, or forbidden meanwhile: the end of the session takes them


async def delete_by_identity(session: Session, directory: str, identity: str, session_id: int) -> None:
    for child in await listed(session, directory, within=session_id):
        if identity in child:
            await delete_if_there(session, f"{directory}/{child}", session_id)


async def delete_if_there(session: Session, path: str, session_id: int) -> bool:
    """Whether it was there. Only ever for znodes whose name nobody else uses."""
    try:
        await session.delete(path, ANY_VERSION, within=session_id)
    except NoNode:
        return False
    return True
