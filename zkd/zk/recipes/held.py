"""What a holder has in hand: a fence, and honest answers to "is it still mine?".

    CONNECTED   sure                      SUSPENDED   not sure, nothing is lost yet: work may go on
    UNKNOWN     in doubt: the server may give it to another before we hear of it
    EXPIRED, or our znode deleted         lost

`is_sure` asks the clock each time, so a process that slept through its session does not believe in it on waking.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from zkd.errors import LockLost, ZooKeeperError
from zkd.zk.recipes.footing import INTERRUPTIONS, Alarm, Footing, delete_if_there
from zkd.zk.values import ANY_VERSION, Check, EventType, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.zk.values import Event, Stat, StateChange

GONE = "its znode is gone: somebody deleted it, or the session has expired"


class Held:
    """One grant, from the moment it was given.

    `fence` grows with every grant of this name, for ever: pass it along with what you write, and have the receiver
    refuse what carries a smaller one than it has seen. `path` is our znode.
    """

    def __init__(self, footing: Footing, what: str, path: str, session_id: int) -> None:
        self.what = what
        self.path = path
        self.fence = 0
        self.session_id = session_id
        self._footing = footing
        self._why = ""  # it is lost; not empty once it is
        self._is_released = False
        self._lost = asyncio.Event()
        self._on_doubt: Callable[[], None] | None = None
        self._on_loss: Callable[[], None] | None = None
        self._on_over: Callable[[], object] | None = None
        self._unsubscribe = footing.session.subscribe(self._on_state)

    def __repr__(self) -> str:
        return f"<Held {self.what} fence={self.fence} {self._why or ('sure' if self.is_sure else 'not sure')}>"

    @property
    def is_sure(self) -> bool:
        """Whether nobody else can hold it at this moment. False may mean no more than a lost connection."""
        session = self._footing.session
        return (
            not self._why
            and not self._is_released
            and session.state is State.CONNECTED
            and session.session_id == self.session_id
        )

    @property
    def is_lost(self) -> bool:
        """Whether it is known that it is not ours any more. Never true again of what was lost: it has another fence."""
        return bool(self._why)

    @property
    def reason(self) -> str:
        """Why it is lost or in doubt, or nothing."""
        if self._why or self.is_sure or self._is_released:
            return self._why
        return f"the session is {self._footing.session.state.value}"

    @property
    def check(self) -> Check:
        """For the head of a transaction on this ensemble, which is then applied only while this is held."""
        return Check(self.path, ANY_VERSION)

    def require_sure(self) -> None:
        """Raise `LockLost` unless `is_sure`."""
        if not self.is_sure:
            raise self.loss()

    async def lost(self) -> str:
        """Wait until it is lost, however long it is held, and say why."""
        await self._lost.wait()
        return self._why

    def loss(self) -> LockLost:
        return LockLost(f"{self.what} (fence {self.fence}): {self.reason or 'it was released'}")

    # --- for the recipes ----------------------------------------------------------------------------

    def granted(self, stat: Stat) -> None:
        self.fence = stat.czxid

    def tell(self, *, on_loss: Callable[[], None], on_doubt: Callable[[], None]) -> None:
        """Call back, at most once each, when it is lost, and when nobody can say; at once if that is so already."""
        self._on_loss, self._on_doubt = on_loss, on_doubt
        if self._why:
            on_loss()
        elif self._footing.session.state is State.UNKNOWN:
            on_doubt()

    def when_over(self, callback: Callable[[], object]) -> None:
        """Call back when it is released, or given up as lost."""
        self._on_over = callback

    def saw(self, event: Event) -> None:
        """The watch on our own znode."""
        if self._is_released or self._why:
            return
        if event.type is EventType.DELETED:
            self._lose(GONE)
        else:
            self._footing.tasks.create_task(self._watch_again(), name="zkd sync watch")

    async def _watch_again(self) -> None:
        """Somebody wrote into our znode, and used up the watch."""
        with Alarm(self._footing.session) as alarm:
            while not (self._why or self._is_released):
                try:
                    await alarm.connected()
                    await self._footing.session.get(self.path, watch=self.saw, within=self.session_id)
                    return
                except INTERRUPTIONS:
                    continue
                except ZooKeeperError as error:
                    self._lose(str(error))

    def _on_state(self, change: StateChange) -> None:
        if change.state is State.EXPIRED or (change.session_id != self.session_id and change.state is State.CONNECTED):
            self._lose("the session has expired")
        elif change.state is State.CLOSED:
            self._lose("the session was closed")
        elif change.state is State.UNKNOWN and self._on_doubt is not None:
            self._on_doubt()

    def _lose(self, why: str) -> None:
        if self._why or self._is_released:
            return
        self._why = why
        self._lost.set()
        if self._on_loss is not None:
            self._on_loss()

    def forget(self) -> None:
        """Hear of nothing any more."""
        self._unsubscribe()
        self._on_loss = self._on_doubt = None
        if self._on_over is not None:
            self._on_over()
            self._on_over = None
        self._footing.session.forget(self.path, self.saw)

    async def release(self) -> None:
        """Let the next one in. Raises `LockLost` if it was lost before; what cannot be deleted now is, later."""
        if self._is_released:
            return
        self.forget()
        if self._why:
            raise self.loss()
        self._is_released = True
        try:
            was_there = await delete_if_there(self._footing.session, self.path, self.session_id)
        except INTERRUPTIONS:
            self.abandon()
            return
        except BaseException:
            self.abandon()
            raise
        if not was_there:
            self._why = GONE
            raise self.loss()

    def abandon(self) -> None:
        """Be released soon, without waiting."""

        async def remove() -> None:
            await delete_if_there(self._footing.session, self.path, self.session_id)

        self.forget()
        self._is_released = True
        self._footing.leftovers.leave(self.session_id, remove)

    def done(self) -> None:
        """Our znode was deleted by other means, as part of a transaction."""
        self.forget()
        self._is_released = True

    async def release_quietly(self) -> None:
        """Let the next one in after a block that failed: its own error is told, and no loss beside it."""
        with suppress(LockLost):
            await self.release()
