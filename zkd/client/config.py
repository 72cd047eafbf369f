"""A program's own configuration: `client.config`. One document a name, of the program's own type, in revisions.

    config/apps/<name>        the document as it is now
    config/apps/<name>/<n>    as it was at revision n

Both are written in one transaction at the version of the document that was read. What is not a value of the asked type
is refused when it is written and passed over when it is read; a program that watches goes on with what it had.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import msgspec

from zkd import codec
from zkd.client.desired import whoami
from zkd.client.dropbox import ANY_VERSION, OUTAGE_MAX_S
from zkd.client.outstanding import NO_ANSWER
from zkd.configs import REVISIONS_KEPT, AppConfig
from zkd.core.app_config import app_differences, expect_app_name, read_app, read_value, value_text
from zkd.errors import (
    BadRecord,
    BadVersion,
    ConfigConflict,
    ConfigNotFound,
    MultiFailed,
    NodeExists,
    NoNode,
    SessionClosed,
    ZooKeeperError,
)
from zkd.zk import Create, Delete, SetData, State, ensure_path

if TYPE_CHECKING:
    from zkd.client.client import Client
    from zkd.client.dropbox import DropBox
    from zkd.zk import Op, Znode

T = TypeVar("T")

LOOK_AGAIN_S = 30.0  # whatever was missed is found by then
FORGOTTEN_AT_ONCE = 20

_MISSING: Any = object()


@dataclass(frozen=True)
class Configured(Generic[T]):
    """A value, and the revision that it stands in."""

    value: T
    revision: int
    at: str
    by: str
    why: str


class Config:
    """`type` is whatever msgspec reads: a Struct with bounds, a dataclass, a TypedDict, a plain type."""

    def __init__(self, client: Client, box: DropBox) -> None:
        self._box = box
        self._session = client.session
        self._paths = box.paths
        self._arming = asyncio.Lock()  # a watch that goes must not take one that comes along at the server

    # --- Reading ----------------------------------------------------------------------------------------

    @overload
    async def get(self, name: str, *, type: type[T], default: T = ...) -> T: ...

    @overload
    async def get(self, name: str, *, default: Any = ...) -> Any: ...

    async def get(self, name: str, *, type: Any = Any, default: Any = _MISSING) -> Any:  # noqa: A002 - the field's word
        """The value now. Raises `BadRecord` if it is not of this type; `ConfigNotFound` without a `default`."""
        try:
            return (await self.entry(name, type=type)).value
        except ConfigNotFound:
            if default is _MISSING:
                raise
            return default

    async def entry(self, name: str, *, type: Any = Any, revision: int | None = None) -> Configured[Any]:  # noqa: A002
        """The value now, or at a revision, with who set it, when and why."""
        found = await self._document(name, revision)
        return Configured(read_value(bytes(found.value), type), found.revision, found.at, found.by, found.why)

    async def names(self) -> list[str]:
        """Of all that is configured."""
        return await self._children(self._paths.config_apps)

    async def history(self, name: str) -> list[Configured[Any]]:
        """The revisions that are kept, the newest first; what makes no sense is left out."""
        found = []
        for number in await self._numbers(expect_app_name(name)):
            with suppress(ConfigNotFound, BadRecord):
                found.append(await self.entry(name, revision=number))
        return found

    async def diff(self, name: str, before: int, after: int | None = None) -> list[tuple[str, Any, Any]]:
        """Where two revisions differ: JSON path, and what stood there. `after` is by default what is there now."""
        old, new = await self._document(name, before), await self._document(name, after)
        return app_differences(bytes(old.value), bytes(new.value))

    async def _document(self, name: str, revision: int | None) -> AppConfig:
        expect_app_name(name)
        path = self._paths.app_config(name) if revision is None else self._paths.app_revision(name, revision)
        try:
            found = await self._box.read(path)
        except NoNode:
            found = None
        if found is None or not found.data:
            what = f"config {name}" if revision is None else f"revision {revision} of config {name}"
            raise ConfigNotFound(f"there is no {what} below {self._paths.root}")
        try:
            return read_app(found.data)
        except BadRecord as error:
            raise BadRecord(f"{path}: {error.where}", error.expected) from None

    # --- Following --------------------------------------------------------------------------------------

    @overload
    def watch(self, name: str, *, type: type[T], refused: Callable[[str], None] | None = None) -> AsyncGenerator[T]: ...

    @overload
    def watch(self, name: str, *, refused: Callable[[str], None] | None = None) -> AsyncGenerator[Any]: ...

    async def watch(
        self,
        name: str,
        *,
        type: Any = Any,  # noqa: A002
        refused: Callable[[str], None] | None = None,
    ) -> AsyncGenerator[Any]:
        """The value now, if there is one, and each one that comes; the newest, if they come fast.

        What is not of this type is told to `refused`, by default to the log, and never given. Lost connections and
        sessions are bridged for as long as they last. Where it is removed, the last value simply stays. Ends by
        `SessionClosed` when the client ends; close it (`contextlib.aclosing`) where you leave it before.
        """
        path, session = self._paths.app_config(expect_app_name(name)), self._session
        told = _tell_log(name) if refused is None else refused
        wake = asyncio.Event()

        def hear(_: object) -> None:
            wake.set()

        unsubscribe = session.subscribe(hear)
        is_armed, epoch, seen = False, -1, None
        try:
            while True:
                wake.clear()
                try:
                    if not is_armed:
                        async with self._arming:
                            await session.add_watch(path, hear)
                        is_armed = True
                    if epoch != session.epoch:  # watches do not replay, and this server may lag behind the last one
                        now = session.epoch
                        await session.sync(path)
                        epoch = now
                    found = await session.get(path)
                except NoNode:
                    pass
                except NO_ANSWER:
                    if session.state is State.CONNECTED:
                        wake.set()
                else:
                    value = _MISSING
                    if found.data and found.data != seen:
                        seen = found.data
                        try:
                            value = read_value(bytes(read_app(seen).value), type)
                        except BadRecord as error:
                            told(str(error))
                    if value is not _MISSING:
                        yield value
                        continue  # whatever came while the caller was busy is read before we wait
                if session.state is State.CLOSED:
                    raise SessionClosed(path, "the client ended")
                # Unbounded: a program follows its configuration for as long as it likes.
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN_S):
                        await wake.wait()
        finally:
            unsubscribe()
            if is_armed:
                async with self._arming:
                    with suppress(ZooKeeperError):
                        await session.remove_watch(path, hear)

    # --- Changing ---------------------------------------------------------------------------------------

    async def set(
        self,
        name: str,
        value: Any,
        *,
        type: Any = None,  # noqa: A002
        why: str = "",
        expect: int | None = None,
    ) -> int:
        """Make this the value; its revision. Raises `BadRecord` if it is none of its own type, or of the one given.

        `expect`: the revision that this is a change of, 0 for a new one; `ConfigConflict` if there is another by now.
        """
        text = value_text(value, _kind_of(value) if type is None else type)
        return await self._write(name, text, why, expect)

    async def rollback(self, name: str, revision: int, *, type: Any = Any, why: str = "") -> int:  # noqa: A002
        """Make a former value the present one again; its new revision."""
        former = await self._document(name, revision)
        read_value(bytes(former.value), type)
        return await self._write(name, bytes(former.value), why or f"rollback to {revision}", None)

    async def remove(self, name: str) -> bool:
        """Remove it with its history; whether there was one. Programs that watch it keep what they have."""
        path = self._paths.app_config(expect_app_name(name))
        give_up = time.monotonic() + OUTAGE_MAX_S
        was_there = False
        while True:
            try:
                children = await self._children(path)
                was_there = was_there or bool(children) or await self._session.exists(path) is not None
                for start in range(0, len(children), 100):
                    some = [Delete(f"{path}/{child}", ANY_VERSION) for child in children[start : start + 100]]
                    await self._session.multi(some)
                await self._session.delete(path, ANY_VERSION)
                return True
            except NoNode:
                return was_there
            except MultiFailed:
                continue  # somebody else removes it, too, or sets it: look again
            except NO_ANSWER as error:
                await self._box.catch_up(give_up, error)

    async def _write(self, name: str, text: bytes, why: str, expect: int | None) -> int:
        path, ours = self._paths.app_config(expect_app_name(name)), os.urandom(8).hex()
        sent: list[int] = []

        async def attempt() -> int:
            for number in sent:
                with suppress(ConfigNotFound, BadRecord):
                    if (await self._document(name, number)).id == ours:
                        return number
            now = await self._maybe(path)
            numbers = await self._numbers(name)
            current = 0
            with suppress(BadRecord):  # what makes no sense is replaced
                current = read_app(now.data).revision if now is not None and now.data else 0
            if expect is not None and current != expect:
                raise ConfigConflict(f"config {name}: expected revision {expect}, it is {current} by now")
            number = max([current, *numbers]) + 1
            at = datetime.now(UTC).isoformat(timespec="seconds")
            record = codec.encode(AppConfig(number, msgspec.Raw(text), at, whoami(), why, ours))
            forgotten = numbers[REVISIONS_KEPT - 1 :][-FORGOTTEN_AT_ONCE:]  # the oldest
            ops: list[Op] = [
                Create(path, record) if now is None else SetData(path, record, now.stat.version),
                Create(self._paths.app_revision(name, number), record),
                *(Delete(self._paths.app_revision(name, each), ANY_VERSION) for each in forgotten),
            ]
            sent.append(number)
            await self._session.multi(ops)
            return number

        give_up = time.monotonic() + OUTAGE_MAX_S
        while True:
            try:
                return await attempt()
            except MultiFailed as error:
                if not isinstance(error.cause, BadVersion | NodeExists | NoNode):
                    raise error.cause from None
                if time.monotonic() >= give_up:
                    raise ConfigConflict(f"config {name}: others change it all the time; nothing was changed") from None
                if isinstance(error.cause, NoNode):
                    with suppress(*NO_ANSWER):
                        await ensure_path(self._session, self._paths.config_apps)
            except NO_ANSWER as error:
                await self._box.catch_up(give_up, error)

    # --- Asking -----------------------------------------------------------------------------------------

    async def _maybe(self, path: str) -> Znode | None:
        try:
            return await self._box.read(path)
        except NoNode:
            return None

    async def _numbers(self, name: str) -> list[int]:
        names = await self._children(self._paths.app_config(name))
        return sorted((int(each) for each in names if each.isdecimal() and len(each) <= 16), reverse=True)

    async def _children(self, path: str) -> list[str]:
        give_up = time.monotonic() + OUTAGE_MAX_S
        while True:
            try:
                return sorted(await self._session.children(path))
            except NoNode:
                return []
            except NO_ANSWER as error:
                await self._box.catch_up(give_up, error)


def _kind_of(value: Any) -> Any:
    """Structs and dataclasses know their fields' types; of plain values any JSON will do."""
    cls = value.__class__
    return cls if hasattr(cls, "__struct_fields__") or hasattr(cls, "__dataclass_fields__") else Any


def _tell_log(name: str) -> Callable[[str], None]:
    def tell(error: str) -> None:
        from zkd import log as zkd_log  # structlog costs every start of the command

        zkd_log.get().warning("config.refused", config=name, error=error)

    return tell
