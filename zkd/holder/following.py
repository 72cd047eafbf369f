"""Follows ``assign/<node>`` for as long as the daemon lives, and says what stands there.

Every change is read, and everything is read again on each new connection, since watches do not replay. While
our own dispatcher leads it hands us our share itself, and nothing is read but after a reconnect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.lists import LINGER_S
from zkd.errors import (
    AuthFailed,
    BadRecord,
    NoNode,
    OutcomeUnknown,
    SessionClosed,
    SessionExpired,
    Unavailable,
    ZooKeeperError,
)
from zkd.records import Assignment
from zkd.zk import Session, State

AGAIN_S = 0.02
MEND_S = 1.0  # before the next try when something is wrong that people have to mend


class Following:
    def __init__(
        self,
        session: Session,
        path: str,
        log: Log,
        *,
        take: Callable[[Assignment], None],
        has_joined: Callable[[], bool],
        session_over: Callable[[], None],
        missed: Callable[[int, int], None],
    ) -> None:
        """`missed`: this version was read, and next that one; the lines that stood only in between are not known."""
        self._session = session
        self._path = path
        self._log = log
        self._take = take
        self._has_joined = has_joined
        self._session_over = session_over
        self._missed = missed
        self._last: tuple[int, float] | None = None  # the version that was read, and when that was asked for
        self._wake = asyncio.Event()
        self._connection = 0  # the one on which we have read
        self._is_fed = False

    def wake(self) -> None:
        """Something may have changed."""
        self._wake.set()

    @property
    def is_fed(self) -> bool:
        """Whether our own dispatcher leads and hands us our share directly."""
        return self._is_fed

    @is_fed.setter
    def is_fed(self, is_fed: bool) -> None:
        self._is_fed = is_fed
        self._last = None

    async def _read(self) -> None:
        asked_at = asyncio.get_running_loop().time()
        found = await self._session.get(self._path)
        self._take(codec.decode(found.data, Assignment))
        version, last = found.stat.version, self._last
        self._last = (version, asked_at)
        # Lines linger for a while, so who looks often enough has seen each.
        if last is not None and version > last[0] + 1 and asyncio.get_running_loop().time() - last[1] > LINGER_S:
            self._missed(last[0], version)

    async def read_once(self) -> None:
        try:
            await self._read()
        except (ZooKeeperError, BadRecord) as error:
            self._log.info("assignment.not_read", error=str(error))

    async def run(self) -> None:
        unsubscribe = self._session.subscribe(lambda _: self._wake.set())
        is_watching = False
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._session.state in (State.EXPIRED, State.CLOSED):
                    self._session_over()
                if self._session.state is not State.CONNECTED or not self._has_joined():
                    continue
                try:
                    if not is_watching:
                        await self._session.add_watch(self._path, lambda _: self._wake.set())
                        is_watching = True
                    is_new_connection = self._session.epoch != self._connection
                    if self.is_fed and not is_new_connection:
                        continue
                    self._connection = self._session.epoch
                    await self._read()
                except NoNode:
                    continue  # the leader makes it when it has something for us
                except BadRecord as error:
                    self._log.warning("assignment.unreadable", error=str(error))
                except (Unavailable, OutcomeUnknown, SessionExpired) as error:
                    self._log.info("assignment.not_read", error=str(error))
                    self._connection = 0
                    if self._session.state is State.CONNECTED:
                        self._wake.set()
                        await asyncio.sleep(AGAIN_S)
                except (SessionClosed, AuthFailed):
                    raise
                except ZooKeeperError as error:  # forbidden, say: people may mend it
                    self._log.error("assignment.not_read", error=str(error))
                    self._connection = 0
                    self._wake.set()
                    await asyncio.sleep(MEND_S)
        finally:
            unsubscribe()
