"""The tasks this program waits for, and how it hears that they have ended.

A few are watched one by one, each watch sent in the turn in which its task is dropped. More than that share
one persistent watch on all results, armed once and dropped when idle. An event is only a hint where to look:
after every reconnect all of them are looked up again, and a slow round does the same for what has been
pending long, so that neither a lost connection nor a lost event can leave anyone waiting.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from zkd.errors import NoNode, OutcomeUnknown, SessionExpired, Unavailable, ZooKeeperError
from zkd.paths import leaf
from zkd.zk import EventType, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zkd.paths import Paths, TaskId
    from zkd.zk import Event, ReadBatch, Session, StateChange, Znode
    from zkd.zk.batch import Done

FEW = 8  # so many watches of their own cost less than hearing of everybody's results
TICK_S = 5.0
LOOK_AGAIN_S = 15.0
LOOK_AGAIN_MAX = 500  # a round
NO_ANSWER = (Unavailable, OutcomeUnknown, SessionExpired)


class Sign(Enum):
    """What became of a pending task, when it is not known more exactly."""

    THERE = "its result is there to be read"
    GONE = "there is neither task nor result"
    CLOSED = "the client was closed"
    UNSURE = "it was not accepted, or nobody knows"


class Pending:
    """One task that is waited for. Whoever waits holds it; when nobody does, it is forgotten here, too."""

    __slots__ = ("__weakref__", "arrival", "id", "is_dropped", "looked_at", "missed")

    def __init__(self, task: TaskId, *, is_dropped: bool) -> None:
        self.id = task
        self.is_dropped = is_dropped  # it is known to be in the drop box, so its absence means something
        self.missed = 0
        self.looked_at = time.monotonic()
        self.arrival: asyncio.Future[Sign | Znode] = asyncio.get_running_loop().create_future()

    def arrive(self, sign: Sign | Znode) -> None:
        if not self.arrival.done():
            self.arrival.set_result(sign)

    def was_sent(self, created: asyncio.Future[Done]) -> None:
        """What became of the write that drops it."""
        if created.cancelled() or created.exception() is not None:
            self.arrive(Sign.UNSURE)
        else:
            self.is_dropped = True

    def was_read(self, read: asyncio.Future[Znode]) -> None:
        """What became of reading its result."""
        self.arrive(Sign.THERE if read.cancelled() or read.exception() is not None else read.result())


class Outstanding:
    """All that this client waits for."""

    def __init__(self, session: Session, paths: Paths, reads: ReadBatch, tasks: asyncio.TaskGroup) -> None:
        self._session = session
        self._paths = paths
        self._reads = reads
        self._tasks = tasks
        self._pending: WeakValueDictionary[TaskId, Pending] = WeakValueDictionary()
        self._heard = self._hear  # one bound method, so that watches can be told apart by it
        self._arming: asyncio.Task[bool] | None = None
        self._is_armed = False  # the watch on all results
        self._idle_ticks = 0

    def expect_new(self, task: TaskId) -> Pending | None:
        """`expect` for a task that is dropped only now: then nothing needs to be looked for. None if that is not so."""
        if not self._is_armed:
            return None
        pending = self._pending[task] = Pending(task, is_dropped=False)
        return pending

    async def expect(self, task: TaskId, *, is_dropped: bool = False) -> Pending:
        """Wait for this task from now on. To be called before it is dropped, and followed by `look_out`."""
        pending = self._pending.get(task)
        if pending is None or pending.arrival.done():
            pending = self._pending[task] = Pending(task, is_dropped=is_dropped)
        if not self._is_armed and len(self._pending) > FEW:
            await self._arm()
        return pending

    async def look_out(self, pending: Pending) -> None:
        """Watch for this one alone if nothing watches for all; look whether its result is there already.

        A connection that fails is no matter here: the next one begins with a look at everything pending.
        """
        try:
            if self._is_armed:
                if pending.is_dropped:
                    pending.arrive(await self._reads.get(self._paths.result(pending.id)))
            elif await self._session.exists(self._paths.result(pending.id), watch=self._heard) is not None:
                pending.arrive(Sign.THERE)
        except (NoNode, *NO_ANSWER):
            pass

    def drop(self, pending: Pending) -> None:
        """Nobody waits for this any more."""
        if self._pending.pop(pending.id, None) is not None and not self._is_armed:
            self._session.forget(self._paths.result(pending.id), self._heard)

    def _hear(self, event: Event) -> None:
        if event.type is EventType.CREATED:
            pending = self._pending.pop(leaf(event.path), None)
            if pending is not None:
                self._reads.send(event.path).add_done_callback(pending.was_read)

    # --- the watch on everything --------------------------------------------------------------------

    async def _arm(self) -> None:
        """Have the watch on all results in place, or know that there is no connection to have it on."""
        if self._arming is None or self._arming.done():
            self._arming = self._tasks.create_task(self._add_watch())
        # Shared by all who came in this turn; none of them may take it down by being cancelled.
        await asyncio.wait({self._arming})

    async def _add_watch(self) -> bool:
        try:
            await self._session.add_watch(self._paths.results, self._heard, recursive=True)
        except ZooKeeperError:
            return False  # without it each is watched alone
        self._is_armed = True
        self._idle_ticks = 0
        return True

    async def _disarm(self) -> None:
        self._is_armed = False  # first, so that whoever comes now arms it anew or watches for himself
        with suppress(ZooKeeperError):  # it is forgotten here, and a new connection begins without it
            await self._session.remove_watch(self._paths.results, self._heard)

    # --- looking again ------------------------------------------------------------------------------

    def on_state(self, change: StateChange) -> None:
        """A subscriber of the session: every new connection begins with a look at all that is pending."""
        if change.state is State.CONNECTED and self._pending:
            self._tasks.create_task(self._look_after_reconnect())
        elif change.state is State.CLOSED:
            self.close()

    def close(self) -> None:
        """Nothing will be heard any more: nobody may go on waiting."""
        for pending in list(self._pending.values()):
            pending.arrive(Sign.CLOSED)

    async def _look_after_reconnect(self) -> None:
        if not self._is_armed and len(self._pending) > FEW:
            await self._arm()
        if self._is_armed:
            await self._look(list(self._pending.values()))
        else:
            for pending in list(self._pending.values()):
                with suppress(ZooKeeperError):  # the slow round will find it
                    await self.look_out(pending)

    async def keep(self) -> None:
        """Runs as long as the client: the slow round."""
        while True:
            await asyncio.sleep(TICK_S * random.uniform(0.8, 1.2))
            self._idle_ticks = 0 if self._pending else self._idle_ticks + 1
            if self._is_armed and self._idle_ticks >= 2:
                await self._disarm()
            now = time.monotonic()
            old = [pending for pending in self._pending.values() if now - pending.looked_at > LOOK_AGAIN_S]
            old.sort(key=lambda pending: pending.looked_at)
            await self._look(old[:LOOK_AGAIN_MAX])

    async def _look(self, pendings: Iterable[Pending]) -> None:
        """Read what became of these, the tasks before their results.

        In this order a task that ends between the two reads shows its result. One that shows neither, twice,
        was deleted while nobody led, and nobody will publish a result for it.
        """
        chosen = [pending for pending in pendings if not pending.arrival.done()]
        for start in range(0, len(chosen), 50):
            some = chosen[start : start + 50]
            try:
                tasks = await self._session.get_many([self._paths.task(pending.id) for pending in some])
                results = await self._session.get_many([self._paths.result(pending.id) for pending in some])
            except ZooKeeperError:
                return  # the next connection begins with a look, and so does the next round
            now = time.monotonic()
            for pending, task, result in zip(some, tasks, results, strict=True):
                pending.looked_at = now
                if not isinstance(result, ZooKeeperError):
                    self._pending.pop(pending.id, None)
                    pending.arrive(result)
                elif isinstance(task, NoNode) and isinstance(result, NoNode) and pending.is_dropped:
                    pending.missed += 1
                    if pending.missed >= 2:
                        self._pending.pop(pending.id, None)
                        pending.arrive(Sign.GONE)
                else:
                    pending.missed = 0
