"""How a duty of the leader goes on over the connections of one reign, whatever the duty is.

A connection that is lost means: begin anew on the next one, with everything read again. Another epoch, or the end of
the session, means that the reign is over. A tree that somebody has damaged is mended and tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from structlog.typing import FilteringBoundLogger as Log

from zkd.errors import AuthFailed, OutcomeUnknown, SessionClosed, SessionExpired, Unavailable, ZooKeeperError
from zkd.zk import Event, Session, ensure_path

AGAIN_S = 0.01
MEND_S = 1.0  # before the next try when something is wrong that another try may not change


class Deposed(Exception):  # a signal between a duty and this loop
    """The write came too late: another epoch has begun."""


async def lead(
    serve: Callable[[], Awaitable[None]],
    session: Session,
    log: Log,
    noun: str,
    *,
    watched: Sequence[str],
    saw: Callable[[Event], None],
    woken: Callable[[], None],
    directories: Sequence[str],
) -> None:
    """Call `serve` once for each connection until the reign is over.

    `serve` raises `Unavailable` when its connection is gone and `Deposed` when a write was refused. While this runs,
    `saw` hears of everything below `watched`, and `woken` is called when the connection changes. `noun` names the duty
    in the log, `directories` are made again when they are missing.
    """
    unsubscribe = session.subscribe(lambda _: woken())
    is_watching = False
    try:
        while True:
            try:
                await session.connected(session.timeout_s)
                if not is_watching:
                    for path in watched:
                        await session.add_watch(path, saw, recursive=True)
                    is_watching = True
                await serve()
            except (Unavailable, OutcomeUnknown) as error:
                log.info(f"{noun}.interrupted", error=str(error))
                await asyncio.sleep(AGAIN_S)
            except (SessionExpired, Deposed):
                return
            except (SessionClosed, AuthFailed):
                raise
            except ZooKeeperError as error:
                # Something in the tree is not as it should be: forbidden, over quota, deleted. People may mend it.
                log.error(f"{noun}.failed", error=str(error))
                await asyncio.sleep(MEND_S)
                await _mend(session, log, directories)
    finally:
        unsubscribe()
        # Without a connection, too: a watch is armed again on the next one, and in the next session.
        for path in watched:
            await _stop_watching(session, path, saw)


async def _mend(session: Session, log: Log, directories: Sequence[str]) -> None:
    """Make the directories again that somebody has deleted."""
    try:
        for path in directories:
            await ensure_path(session, path)
    except ZooKeeperError as error:
        log.warning("tree.not_mended", error=str(error))


async def _stop_watching(session: Session, path: str, saw: Callable[[Event], None]) -> None:
    try:
        await session.remove_watch(path, saw)
    except ZooKeeperError:
        return  # it is forgotten here; at the server it ends with the connection
