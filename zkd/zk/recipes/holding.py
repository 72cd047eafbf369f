"""Hold something for an ``async with`` block, and end the block when it is lost.

The block is cancelled, and `LockLost` raised in its place, as soon as the lock is lost *or in doubt* (UNKNOWN: no
answer for 2/3 of the session timeout): while ZooKeeper cannot be reached nobody will ever say that it is lost, and
the last third of the timeout is for stopping. With ``until="lost"`` it is cancelled only when it is known to be lost;
that is for work whose every write is checked by its fence.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from zkd.errors import LockReentered

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from zkd.errors import LockLost

Until = Literal["doubt", "lost"]


class Grant(Protocol):
    """What a block has while it runs: a `Held`, or an item of a queue."""

    async def release(self) -> None: ...
    async def release_quietly(self) -> None: ...
    def loss(self) -> LockLost: ...
    def tell(self, *, on_loss: Callable[[], None], on_doubt: Callable[[], None]) -> None: ...
    def when_over(self, callback: Callable[[], object]) -> None: ...


G = TypeVar("G", bound=Grant)
G_co = TypeVar("G_co", bound=Grant, covariant=True)


class Source(Protocol[G_co]):
    """Where a grant comes from."""

    @property
    def what(self) -> str: ...
    @property
    def directory(self) -> str: ...
    async def hold(self, timeout_s: float | None) -> G_co: ...


class Holding(Generic[G]):
    """`async with client.lock("name") as held`: enter it once. `hold` is for who holds beyond one block."""

    def __init__(
        self, line: Source[G], timeout_s: float | None, until: Until, mine: dict[str, asyncio.Task[object]] | None
    ) -> None:
        if until not in ("doubt", "lost"):
            raise ValueError(f'until: expected "doubt" or "lost", got {until!r}')
        self._line = line
        self._timeout_s = timeout_s
        self._until = until
        self._mine = mine  # who of this program holds or waits, by directory, if nobody may twice
        self._held: G | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0  # how often the task had been asked to stop when the block began
        self._is_stopped = False
        self._is_used = False

    async def hold(self) -> G:
        """Wait for our turn and have it until `Held.release`, with nobody being cancelled: look at `Held.is_sure`.

        Raises `LockTimeout`, `LockReentered`, `TermsDisagree`.
        """
        if self._is_used:
            raise RuntimeError(f"{self._line.what}: this was entered before; make another one")
        self._is_used = True
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._refuse_reentry()
        if self._mine is None:
            return await self._line.hold(self._timeout_s)
        key = f"{self._line.directory} {id(task)}"
        self._mine[key] = task
        try:
            held = await self._line.hold(self._timeout_s)
        except BaseException:
            self._mine.pop(key, None)
            raise
        mine = self._mine
        held.when_over(lambda: mine.pop(key, None))
        return held

    def _refuse_reentry(self) -> None:
        assert self._task is not None
        if self._mine is not None and f"{self._line.directory} {id(self._task)}" in self._mine:
            raise LockReentered(
                f"{self._line.what}: this task holds it already, or waits for it, and would wait for itself; "
                "locks of zkd are not reentrant: hand on what was held instead"
            )

    async def __aenter__(self) -> G:
        self._held = held = await self.hold()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        held.tell(on_loss=self._stop, on_doubt=self._stop if self._until == "doubt" else lambda: None)
        return held

    def _stop(self) -> None:
        assert self._task is not None
        if not self._is_stopped:
            self._is_stopped = True
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        held, task = self._held, self._task
        assert held is not None
        assert task is not None
        if not self._is_stopped:
            await (held.release() if kind is None else held.release_quietly())
            return
        loss = held.loss()
        if kind is None:  # the block ended before it was reached: take the cancellation that is still to come
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        is_ours_alone = task.uncancel() <= self._cancelling
        await held.release_quietly()
        if not is_ours_alone:
            if kind is None:
                raise asyncio.CancelledError
        elif kind is None or issubclass(kind, asyncio.CancelledError):
            raise loss from error
