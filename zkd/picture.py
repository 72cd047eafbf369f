"""How a node keeps a picture of some of the tree true over connections, whatever the picture is.

Watches only say where to look: whoever owns the picture reads again what they named. A new connection replays nothing,
so on it everything is read again; while there is none the picture stands as it was, and `is_complete` says that it may
be old.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from structlog.typing import FilteringBoundLogger as Log

from zkd.errors import AuthFailed, OutcomeUnknown, SessionClosed, SessionExpired, Unavailable, ZooKeeperError
from zkd.zk import Event, Session, State

AGAIN_S = 0.01
MEND_S = 1.0  # before the next try when something is wrong that another try may not change
RECONCILE_S = 60.0  # for what a watch missed


class Picture:
    def __init__(
        self,
        session: Session,
        log: Log,
        noun: str,
        *,
        watched: Sequence[tuple[str, bool]],
        saw: Callable[[Event], None],
        read: Callable[[bool], Awaitable[None]],
        size: Callable[[], dict[str, int]],
    ) -> None:
        """`saw` hears of everything at the paths `watched`, each with whether that is with all below it. `read` brings
        the picture up to date, and is told whether to look for what no event named, too. The log is told the `size`
        of a picture that is complete; `noun` names it there.
        """
        self._session = session
        self._log = log
        self._noun = noun
        self._watched = watched
        self._saw = saw
        self._read = read
        self._size = size
        self._wake = asyncio.Event()
        self._reading = asyncio.Lock()  # a look of somebody's must not mix with ours
        self._listeners: list[Callable[[], None]] = []
        self.is_complete = False

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call back after each change of the picture, until the returned function is called."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """Read some of it now, for somebody; all who listen are told afterwards."""
        async with self._reading:
            yield
        self._tell()

    async def run(self) -> None:
        """Ends only by cancellation, or with the session."""
        unsubscribe = self._session.subscribe(lambda _: self._wake.set())
        waiting = list(self._watched)
        try:
            while True:
                try:
                    # Unbounded in sum: without a connection there is nothing to look at.
                    await self._session.connected(self._session.timeout_s)
                    while waiting:
                        path, is_recursive = waiting[0]
                        await self._session.add_watch(path, self._heard, recursive=is_recursive)
                        del waiting[0]
                    await self._follow()
                except (SessionClosed, AuthFailed):
                    raise
                except (Unavailable, OutcomeUnknown, SessionExpired):
                    self.is_complete = False
                    await asyncio.sleep(AGAIN_S)
                except ZooKeeperError as error:  # forbidden, deleted: people may mend it
                    self.is_complete = False
                    self._log.warning(f"{self._noun}.not_read", error=str(error))
                    await asyncio.sleep(MEND_S)
        finally:
            unsubscribe()

    def _heard(self, event: Event) -> None:
        self._saw(event)
        self._wake.set()

    async def _follow(self) -> None:
        """Keep the picture over one unbroken connection."""
        connection = self._session.epoch
        loop = asyncio.get_running_loop()
        self.is_complete = False
        reconcile_at = 0.0
        while True:
            self._wake.clear()
            if self._session.epoch != connection or self._session.state is not State.CONNECTED:
                raise Unavailable(self._watched[0][0], "the connection changed")
            async with self._reading:
                is_due = loop.time() >= reconcile_at
                await self._read(is_due)
                if is_due:
                    reconcile_at = loop.time() + RECONCILE_S
            if not self.is_complete:
                self.is_complete = True
                self._log.info(f"{self._noun}.read", **self._size())
            self._tell()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, reconcile_at - loop.time())):
                    await self._wake.wait()

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()
