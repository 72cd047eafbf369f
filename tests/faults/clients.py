"""Our session and plain aiozk behind one face, so that one scenario runs on both."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import aiozk
from aiozk import protocol

from zkd.errors import OutcomeUnknown, SessionExpired, ZooKeeperError
from zkd.zk import CREATOR_ALL, Create, EventType, Session, SetData, State

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

AIOZK_EVENTS = {EventType.CREATED: 1, EventType.DELETED: 2, EventType.CHANGED: 3, EventType.CHILDREN: 4}


class Client(Protocol):
    maybe_applied: tuple[type[Exception], ...]  # what a write raises when its outcome is not known

    @property
    def session(self) -> int: ...
    @property
    def is_connected(self) -> bool: ...
    async def open(self, hosts: str, timeout_s: float, auth: tuple[str, bytes] | None, tls: Any) -> None: ...
    async def close(self) -> None: ...
    async def password(self) -> bytes: ...
    async def get(self, path: str) -> bytes: ...
    async def exists_in_session(self, path: str, session: int) -> bool: ...
    async def create(
        self, path: str, data: bytes = b"", *, ephemeral: bool = False, sequential: bool = False, private: bool = False
    ) -> str: ...
    async def set(self, path: str, data: bytes, version: int) -> None: ...
    async def delete(self, path: str) -> None: ...
    async def creates(self, paths: Sequence[str]) -> list[str]: ...
    async def create_and_set(self, path: str, other: str, version: int) -> None: ...
    async def watch(self, path: str, kinds: Sequence[EventType], callback: Callable[[object], None]) -> None: ...


class Ours:
    maybe_applied = (OutcomeUnknown,)

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._close = asyncio.Event()

    async def open(
        self, hosts: str, timeout_s: float, auth: tuple[str, bytes] | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.zk = Session(hosts, timeout_s=timeout_s, auth=[auth] if auth else (), tls=tls)

        async def live() -> None:
            async with self.zk:
                await self._close.wait()

        self._task = asyncio.create_task(live())
        await asyncio.sleep(0)
        await self.zk.connected(20)

    async def close(self) -> None:
        self._close.set()
        if self._task is not None:
            await self._task

    @property
    def session(self) -> int:
        return self.zk.session_id

    @property
    def is_connected(self) -> bool:
        return self.zk.state is State.CONNECTED

    async def password(self) -> bytes:
        assert self.zk.credentials is not None
        return self.zk.credentials.password

    async def get(self, path: str) -> bytes:
        return (await self.zk.get(path)).data

    async def exists_in_session(self, path: str, session: int) -> bool:
        return await self.zk.exists(path, within=session) is not None

    async def create(
        self, path: str, data: bytes = b"", *, ephemeral: bool = False, sequential: bool = False, private: bool = False
    ) -> str:
        acl = CREATOR_ALL if private else None
        return (await self.zk.create(path, data, ephemeral=ephemeral, sequential=sequential, acl=acl)).path

    async def set(self, path: str, data: bytes, version: int) -> None:
        await self.zk.set(path, data, version)

    async def delete(self, path: str) -> None:
        await self.zk.delete(path, -1)

    async def creates(self, paths: Sequence[str]) -> list[str]:
        return [created.path for created in await self.zk.multi([Create(path, sequential=True) for path in paths])]  # type: ignore[union-attr]

    async def create_and_set(self, path: str, other: str, version: int) -> None:
        await self.zk.multi([Create(path), SetData(other, b"", version)])

    async def watch(self, path: str, kinds: Sequence[EventType], callback: Callable[[object], None]) -> None:
        await self.zk.exists(path, watch=lambda event: callback(event) if event.type in kinds else None)


class PlainAiozk:
    maybe_applied = ()  # it has no such thing

    async def open(self, hosts: str, timeout_s: float, auth: tuple[str, bytes] | None = None, tls: Any = None) -> None:
        self.zk = aiozk.ZKClient(hosts, session_timeout=timeout_s)  # it has no parameter for TLS
        await self.zk.start()
        if auth:
            await self.zk.session.send(protocol.AuthRequest(type=0, scheme=auth[0], auth=auth[1]))

    async def close(self) -> None:
        await self.zk.close()

    @property
    def session(self) -> int:
        return self.zk.session.session_id or 0

    @property
    def is_connected(self) -> bool:
        return bool(self.zk.session.state == "connected")

    async def password(self) -> bytes:
        return self.zk.session.password

    async def get(self, path: str) -> bytes:
        return (await self.zk.get(path))[0]

    async def exists_in_session(self, path: str, session: int) -> bool:
        return await self.zk.exists(path)  # it cannot say which session is meant

    async def create(
        self, path: str, data: bytes = b"", *, ephemeral: bool = False, sequential: bool = False, private: bool = False
    ) -> str:
        acl = [protocol.AUTHED_UNRESTRICTED] if private else None
        return await self.zk.create(path, data, acl=acl, ephemeral=ephemeral, sequential=sequential)

    async def set(self, path: str, data: bytes, version: int) -> None:
        await self.zk.set(path, data, version)

    async def delete(self, path: str) -> None:
        await self.zk.delete(path, force=True)

    async def creates(self, paths: Sequence[str]) -> list[str]:
        transaction = self.zk.begin_transaction()
        for path in paths:
            transaction.create(path, sequential=True)
        return sorted((await transaction.commit()).created)

    async def create_and_set(self, path: str, other: str, version: int) -> None:
        transaction = self.zk.begin_transaction()
        transaction.create(path)
        transaction.set_data(other, b"", version)
        await transaction.commit()

    async def watch(self, path: str, kinds: Sequence[EventType], callback: Callable[[object], None]) -> None:
        for kind in kinds:
            self.zk.session.add_watch_callback(AIOZK_EVENTS[kind], path, callback)
        await self.zk.exists(path, watch=True)


CLEAR = (ZooKeeperError, aiozk.exc.ZKError)  # errors of either client
EXPIRED = (SessionExpired, aiozk.exc.SessionExpired, aiozk.exc.SessionLost)
