"""The session: every request that zkd makes of ZooKeeper.

A request is made once. It gives a result, or says what is known: `Unavailable` (not connected, or a read
without an answer; nothing was changed), `OutcomeUnknown` (a write was sent and its answer is lost: read
back), or the server's own refusal. Nothing is retried or kept for a later connection here, so every write
should be conditional on a version or on absence.

A coroutine's bytes are in the connection's buffer before its first await: requests made in order are sent
in order, and all those of one turn of the loop in one packet.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any, Self

from zkd.errors import (
    NoAuth,
    NodeExists,
    NoNode,
    NoWatcher,
    SessionClosed,
    SessionExpired,
    Unavailable,
    ZooKeeperError,
    from_code,
)
from zkd.paths import parent
from zkd.zk import generic, multi, wire
from zkd.zk.link import Link
from zkd.zk.states import boottime
from zkd.zk.values import Acl, Created, Credentials, Event, Op, Stat, State, StateChange, Znode
from zkd.zk.watches import Kind

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType


class Session:
    """A ZooKeeper session for as long as its ``async with`` block.

    Entering does not wait for a connection (`connected` does); leaving ends the session at the server, so
    that its ephemeral znodes go at once, and takes a bounded time. `hosts` is ``host:port,host:port``;
    `timeout_s` is what we ask for, the attribute has what the server gave. `auth` is sent on every
    connection. `resume` takes over the session of an earlier process, if it is still alive.
    """

    def __init__(
        self,
        hosts: str,
        *,
        timeout_s: float = 6.0,
        auth: Sequence[tuple[str, bytes]] = (),
        tls: ssl.SSLContext | None = None,
        resume: Credentials | None = None,
        acl: Callable[[str], Sequence[Acl]] | None = None,
        clock: Callable[[], float] = boottime,
        rng: random.Random | None = None,
    ) -> None:
        """`acl` gives that of a znode to be made at a path, where the caller says none; without it, open to anyone."""
        self._acl = acl
        self._link = Link(
            hosts, timeout_s=timeout_s, auth=auth, tls=tls, resume=resume, clock=clock, rng=rng or random.Random()
        )
        self._send = self._link.send
        self._watches = self._link.watches
        self._tasks = asyncio.TaskGroup()
        self._running: asyncio.Task[None] | None = None

    # --- life -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._running = self._tasks.create_task(self._link.run(), name="zookeeper link")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._running is not None
        self._running.cancel()  # first, so that it opens no new connection meanwhile
        try:
            await self._link.close()
        finally:
            # Only a cancellation concerns the group; another exception of the body must leave it unwrapped.
            if kind is asyncio.CancelledError:
                await self._tasks.__aexit__(kind, error, traceback)
            else:
                await self._tasks.__aexit__(None, None, None)

    async def connected(self, timeout_s: float) -> None:
        """Return when connected; `Unavailable` with the reason when that takes longer than `timeout_s`."""
        if self.state is State.CONNECTED:
            return
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settle(change: StateChange) -> None:
            if change.state in (State.CONNECTED, State.CLOSED) and not settled.done():
                settled.set_result(None)

        unsubscribe = self.subscribe(settle)
        try:
            if self._link.state is not State.CLOSED:
                async with asyncio.timeout(timeout_s):
                    await settled
        except TimeoutError:
            detail = self._link.fault.detail if self._link.fault else "no server answered"
            raise Unavailable(None, f"no connection within {timeout_s:g} s; {detail}") from None
        finally:
            unsubscribe()
        if self.state is State.CLOSED:
            raise self.fault or SessionClosed()

    @property
    def state(self) -> State:
        return self._link.state

    @property
    def epoch(self) -> int:
        """One more with every established connection."""
        return self._link.epoch

    @property
    def session_id(self) -> int:
        """0 when there is none."""
        return self._link.session_id

    @property
    def credentials(self) -> Credentials | None:
        return self._link.credentials

    @property
    def timeout_s(self) -> float:
        return self._link.timeout_s

    @property
    def server(self) -> tuple[str, int] | None:
        return self._link.server

    @property
    def fault(self) -> ZooKeeperError | None:
        """Why there is no connection, or why the last attempt at one failed."""
        return self._link.fault

    def subscribe(self, callback: Callable[[StateChange], None]) -> Callable[[], None]:
        """Call back on every change of state, in order, until the returned function is called.

        CONNECTED comes after handshake, credentials and watches, and before any request can be sent.
        """
        return self._link.subscribe(callback)

    # --- reads ----------------------------------------------------------------------------------------

    async def get(
        self,
        path: str,
        *,
        watch: Callable[[Event], None] | None = None,
        timeout_s: float | None = None,
        within: int | None = None,
    ) -> Znode:
        result: Znode
        if watch is None:
            body = wire.encode_path(path, False)
            result = await self._send(wire.GET, body, wire.decode_get, path, False, timeout_s, within)
        else:
            result = await self._watching(wire.GET, wire.decode_get, path, Kind.DATA, watch, timeout_s, within)
        return result

    async def exists(
        self,
        path: str,
        *,
        watch: Callable[[Event], None] | None = None,
        timeout_s: float | None = None,
        within: int | None = None,
    ) -> Stat | None:
        """The stat, or None where nothing is; a watch is set either way."""
        result: Stat
        try:
            if watch is None:
                body = wire.encode_path(path, False)
                result = await self._send(wire.EXISTS, body, wire.decode_stat, path, False, timeout_s, within)
            else:
                result = await self._watching(wire.EXISTS, wire.decode_stat, path, Kind.EXIST, watch, timeout_s, within)
        except NoNode:
            return None
        return result

    async def children(
        self,
        path: str,
        *,
        watch: Callable[[Event], None] | None = None,
        timeout_s: float | None = None,
        within: int | None = None,
    ) -> list[str]:
        return (await self.children_stat(path, watch=watch, timeout_s=timeout_s, within=within))[0]

    async def children_stat(
        self,
        path: str,
        *,
        watch: Callable[[Event], None] | None = None,
        timeout_s: float | None = None,
        within: int | None = None,
    ) -> tuple[list[str], Stat]:
        result: tuple[list[str], Stat]
        decode = wire.decode_children
        if watch is None:
            body = wire.encode_path(path, False)
            result = await self._send(wire.CHILDREN2, body, decode, path, False, timeout_s, within)
        else:
            result = await self._watching(wire.CHILDREN2, decode, path, Kind.CHILD, watch, timeout_s, within)
        return result

    def _watching(
        self,
        opcode: int,
        decode: Callable[[bytes, int, int], Any],
        path: str,
        kind: Kind,
        watch: Callable[[Event], None],
        timeout_s: float | None,
        within: int | None,
    ) -> Awaitable[Any]:
        """A read that arms a one-shot watch. It is registered when the reply is read, before any later
        event, and not at all if the read fails, since the server then holds none (but `exists`)."""

        def arm(code: int) -> None:
            if code == 0:
                self._watches.add(Kind.DATA if kind is Kind.EXIST else kind, path, watch)
            elif kind is Kind.EXIST:
                self._watches.add(Kind.EXIST, path, watch)

        body = wire.encode_path(path, self._watches.needs_server(kind, path))
        return self._send(opcode, body, decode, path, False, timeout_s, within, arm)

    async def get_many(
        self, paths: Sequence[str], *, timeout_s: float | None = None, within: int | None = None
    ) -> list[Znode | ZooKeeperError]:
        """What `get` gives or raises for each path, in few requests. Not one instant for all of them."""
        return await self._read_many(wire.GET, paths, timeout_s, within)

    async def children_many(
        self, paths: Sequence[str], *, timeout_s: float | None = None, within: int | None = None
    ) -> list[list[str] | ZooKeeperError]:
        return await self._read_many(wire.CHILDREN, paths, timeout_s, within)

    async def _read_many(
        self, opcode: int, paths: Sequence[str], timeout_s: float | None, within: int | None
    ) -> list[Any]:
        replies = []
        for start in range(0, len(paths), multi.PATHS_A_READ):
            body = multi.encode_reads(paths[start : start + multi.PATHS_A_READ], opcode)
            decode = multi.decode_results
            replies.append(self._send(wire.MULTI_READ, body, decode, None, False, timeout_s, within))
        results: list[Any] = []
        for reply in replies:
            results += await reply
        if len(results) != len(paths):
            raise ZooKeeperError(None, f"{len(paths)} reads sent, {len(results)} results came")
        return [
            from_code(result, path) if isinstance(result, int) else result
            for path, result in zip(paths, results, strict=True)
        ]

    # --- writes ---------------------------------------------------------------------------------------

    async def create(
        self,
        path: str,
        data: bytes = b"",
        *,
        ephemeral: bool = False,
        sequential: bool = False,
        container: bool = False,
        ttl_ms: int | None = None,
        acl: Sequence[Acl] | None = None,
        timeout_s: float | None = None,
        within: int | None = None,
    ) -> Created:
        if acl is None and self._acl is not None:
            acl = self._acl(path)
        opcode, body = wire.encode_create(path, data, ephemeral, sequential, container, ttl_ms, acl)
        result: Created = await self._send(opcode, body, wire.decode_created, path, True, timeout_s, within)
        return result

    async def set(
        self, path: str, data: bytes, version: int, *, timeout_s: float | None = None, within: int | None = None
    ) -> Stat:
        body = wire.encode_set(path, data, version)
        result: Stat = await self._send(wire.SET, body, wire.decode_stat, path, True, timeout_s, within)
        return result

    async def delete(
        self, path: str, version: int, *, timeout_s: float | None = None, within: int | None = None
    ) -> None:
        body = wire.encode_versioned(path, version)
        await self._send(wire.DELETE, body, wire.decode_nothing, path, True, timeout_s, within)

    async def multi(
        self, ops: Sequence[Op], *, timeout_s: float | None = None, within: int | None = None
    ) -> list[Created | Stat | None]:
        """All of the operations or none of them: `MultiFailed` says which one failed, and why."""
        if not ops:
            return []
        body = multi.encode_multi(ops, self._acl)
        path = ops[0].path
        results: list[Any] = await self._send(wire.MULTI, body, multi.decode_results, path, True, timeout_s, within)
        multi.settle(ops, results)
        return results

    # --- watches --------------------------------------------------------------------------------------

    def forget(self, path: str, callback: Callable[[Event], None]) -> None:
        """Drop a one-shot watch: the callback is not called any more, nor armed on the next connection."""
        self._watches.forget(path, callback)

    async def add_watch(
        self,
        path: str,
        callback: Callable[[Event], None],
        *,
        recursive: bool = False,
        timeout_s: float | None = None,
        within: int | None = None,
    ) -> None:
        """Watch until `remove_watch`, on this and every later connection.

        What happens while there is no connection is not replayed: read again on every CONNECTED. A
        recursive watch hears of every znode below, but not CHILDREN.
        """
        kind, other = (Kind.RECURSIVE, Kind.PERSISTENT) if recursive else (Kind.PERSISTENT, Kind.RECURSIVE)
        if self._watches.is_watched(other, path):
            raise ValueError(f"{path}: expected one kind of persistent watch, it has a {other.name.lower()} one")
        mode = generic.PERSISTENT_RECURSIVE if recursive else generic.PERSISTENT

        def arm(code: int) -> None:
            self._watches.add(kind, path, callback)

        await self._ask(generic.AddWatchRequest(path=path, mode=mode), path, timeout_s, within, arm=arm)

    async def remove_watch(
        self,
        path: str,
        callback: Callable[[Event], None],
        *,
        timeout_s: float | None = None,
        within: int | None = None,
    ) -> None:
        """Drop a persistent watch; at once here, and at the server if it can be reached."""
        if not self._watches.remove(path, callback):
            return
        request = generic.protocol.RemoveWatchesRequest(path=path, type=generic.ANY_WATCH)
        # With its connection or session it is gone anyway.
        with contextlib.suppress(NoWatcher, Unavailable, SessionExpired, SessionClosed):
            await self._ask(request, path, timeout_s, within)

    # --- rarely used ----------------------------------------------------------------------------------

    async def sync(self, path: str, *, timeout_s: float | None = None, within: int | None = None) -> None:
        """Reads after this see all that was written anywhere before it."""
        await self._ask(generic.protocol.SyncRequest(path=path), path, timeout_s, within)

    async def get_acl(
        self, path: str, *, timeout_s: float | None = None, within: int | None = None
    ) -> tuple[tuple[Acl, ...], Stat]:
        reply = await self._ask(generic.protocol.GetACLRequest(path=path), path, timeout_s, within)
        return generic.acl_values(reply.acl), generic.stat_value(reply.stat)

    async def set_acl(
        self,
        path: str,
        acl: Sequence[Acl],
        version: int,
        *,
        timeout_s: float | None = None,
        within: int | None = None,
    ) -> Stat:
        """`version` is the ACL's own (`Stat.aversion`)."""
        request = generic.protocol.SetACLRequest(path=path, acl=generic.acl_records(acl), version=version)
        return generic.stat_value((await self._ask(request, path, timeout_s, within, is_write=True)).stat)

    async def ephemerals(
        self, prefix: str = "/", *, timeout_s: float | None = None, within: int | None = None
    ) -> list[str]:
        """Paths of this session's own ephemeral znodes."""
        reply = await self._ask(generic.GetEphemeralsRequest(prefix=prefix), prefix, timeout_s, within)
        return list(reply.paths)

    async def who_am_i(self, *, timeout_s: float | None = None, within: int | None = None) -> list[tuple[str, str]]:
        """(scheme, user) of everything that this connection is authenticated as."""
        reply = await self._ask(generic.WhoAmIRequest(), None, timeout_s, within)
        return [(client.scheme, client.user) for client in reply.clients]

    async def count_descendants(self, path: str, *, timeout_s: float | None = None, within: int | None = None) -> int:
        reply = await self._ask(generic.CountDescendantsRequest(path=path), path, timeout_s, within)
        return int(reply.count)

    def _ask(
        self,
        request: Any,
        path: str | None,
        timeout_s: float | None,
        within: int | None,
        *,
        is_write: bool = False,
        arm: Callable[[int], None] | None = None,
    ) -> Awaitable[Any]:
        decode = generic.decoder(generic.protocol.response_xref[request.opcode])
        return self._send(request.opcode, generic.body(request), decode, path, is_write, timeout_s, within, arm)


async def ensure_path(session: Session, path: str) -> None:
    """Make `path` and what is missing above it, as persistent znodes."""
    try:
        await session.create(path)
    except NodeExists:
        return
    except NoNode:
        await ensure_path(session, parent(path))
        await ensure_path(session, path)
    except NoAuth:  # a server asks for the right to create before it looks whether there is anything to create
        if await session.exists(path) is None:
            raise


async def end_session(
    hosts: str,
    credentials: Credentials,
    *,
    timeout_s: float = 6.0,
    within_s: float = 5.0,
    auth: Sequence[tuple[str, bytes]] = (),
    tls: ssl.SSLContext | None = None,
) -> bool:
    """End the session that an earlier process left, so that its ephemeral znodes go at once and not after
    its timeout. False if it was over already."""
    async with Session(hosts, timeout_s=timeout_s, auth=auth, tls=tls, resume=credentials) as session:
        await session.connected(within_s)
        return session.session_id == credentials.session_id
