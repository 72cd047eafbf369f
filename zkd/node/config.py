"""Reads the central configuration whenever its head changes, and hands the texts on; it judges nothing.

    config          the head: written in every transaction that changes a layer
    config/<layer>  those that concern this node

The head is read before the layers and once more after them. Unchanged in between, the layers are those of one
revision. Persistent watches do not replay what happened while there was no connection, so each new one means: read
again, from a server that has caught up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from structlog.typing import FilteringBoundLogger as Log

from zkd.errors import NoNode, ZooKeeperError
from zkd.paths import Paths
from zkd.zk import Event, Session, State, StateChange, Znode

LOOK_AGAIN_S = 60.0  # whatever was missed is found by then; it costs the server one request
RETRY_S = 1.0

Texts = tuple[bytes | None, list[tuple[str, bytes | None]]]  # the head, and the layers by name; None: not there


async def read(session: Session, paths: Paths, layers: Sequence[str]) -> Texts | None:
    """The texts of one revision; None if it changed while we looked. Raises `ZooKeeperError`."""
    head, *found, again = await session.get_many(
        [paths.config, *(paths.config_layer(name) for name in layers), paths.config]
    )
    if _moment(head) != _moment(again):
        return None
    return _text(head), [(name, _text(each)) for name, each in zip(layers, found, strict=True)]


def _moment(found: Znode | ZooKeeperError) -> tuple[int, int] | None:
    return (found.stat.czxid, found.stat.mzxid) if isinstance(found, Znode) else None


def _text(found: Znode | ZooKeeperError) -> bytes | None:
    if isinstance(found, Znode):
        return found.data
    if isinstance(found, NoNode):
        return None
    raise found


class ConfigReader:
    """`take` gets the texts, `fail` what kept us from reading them."""

    def __init__(self, session: Session, paths: Paths, layers: Sequence[str], log: Log) -> None:
        self._session = session
        self._paths = paths
        self._layers = list(layers)
        self._log = log
        self._wake = asyncio.Event()
        self._is_fresh = False  # this connection's server has caught up

    async def run(self, take: Callable[[Texts], None]) -> None:
        """Unbounded: for as long as the node lives."""
        unsubscribe = self._session.subscribe(self._hear_state)
        self._wake.set()
        is_watched = False
        try:
            while True:
                await self._wait()
                if self._session.state is not State.CONNECTED:
                    continue
                try:
                    if not is_watched:
                        await self._session.add_watch(self._paths.config, self._hear)
                        is_watched = True
                    if not self._is_fresh:
                        self._is_fresh = True  # before the wait: a connection that is lost meanwhile takes it back
                        await self._session.sync(self._paths.config)
                    texts = await read(self._session, self._paths, self._layers)
                except ZooKeeperError as error:
                    self._is_fresh = False
                    self._log.info("config.not_read", error=str(error))
                    asyncio.get_running_loop().call_later(RETRY_S, self._wake.set)
                    continue
                if texts is None:
                    self._wake.set()  # whoever changed it is done: at most as often as it changes
                else:
                    take(texts)
        finally:
            unsubscribe()

    async def _wait(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_AGAIN_S):
                await self._wake.wait()
        self._wake.clear()

    def _hear(self, _: Event) -> None:
        self._wake.set()

    def _hear_state(self, change: StateChange) -> None:
        if change.state is State.CONNECTED:
            self._is_fresh = False
            self._wake.set()
