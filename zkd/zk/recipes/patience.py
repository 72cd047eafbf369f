"""Try again over the connections and sessions of an outage, until a deadline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from zkd.errors import LockTimeout
from zkd.zk.recipes.footing import INTERRUPTIONS, Alarm

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from zkd.zk.session import Session

OUTAGE_MAX_S = 60.0  # so long a call goes on trying to reach ZooKeeper before it raises

T = TypeVar("T")


async def persist(
    session: Session, what: str, timeout_s: float | None, attempt: Callable[[Alarm, int], Awaitable[T]]
) -> T:
    """What `attempt` gives. It is called with the alarm and the session's id whenever there is a connection, and again
    when it was interrupted; it has to find out by itself what an earlier call may have done. Raises `LockTimeout`."""
    with Alarm(session) as alarm:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    session_id = await alarm.connected()
                    try:
                        return await attempt(alarm, session_id)
                    except INTERRUPTIONS:
                        continue
        except TimeoutError:
            raise LockTimeout(f"{what}: not within {timeout_s:g} s; the session is {session.state.value}") from None
