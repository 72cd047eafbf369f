"""What a job's brain gives to be kept: checkpoints, and the model at the end.

A file lies on enough nodes before the state points to it, so whoever follows the pointer finds it. Nodes throw away
what nothing points to for too long; a pointer that comes too late for that is preceded by copies made anew.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Set

from msgspec import structs
from structlog.typing import FilteringBoundLogger as Log

from zkd.errors import DataUnavailable
from zkd.jobs import FileRef, JobState
from zkd.leading import Deposed
from zkd.paths import NodeId
from zkd.settings import Training
from zkd.training.account import Account, JobFailed
from zkd.training.copies import Copies
from zkd.training.seat import Seat

CHECKPOINT_TRIES_S = (0.5, 1.0, 2.0, 4.0)  # at a checkpoint that no node gives; then rounds are gone through again
MODEL_TRIES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # at a model that no node takes
POINTED_S = 20.0  # from the last copy of a file to the pointer to it: nodes keep no stray files for ever


class TooOld(Exception):  # a signal between two functions here
    """Copies were made too long ago to be pointed to."""


class Saves:
    """`live` are the nodes that answer at present; `lost` is called when another holds the office."""

    def __init__(
        self,
        seat: Seat,
        account: Account,
        copies: Copies,
        settings: Callable[[], Training],
        live: Callable[[], Set[NodeId]],
        lost: Callable[[], None],
        counts: Counter[str],
        log: Log,
    ) -> None:
        self._seat = seat
        self._account = account
        self._copies = copies
        self._settings = settings
        self._live = live
        self._lost = lost
        self._counts = counts
        self._log = log
        self._last: bytes | None = None  # that the brain gave, or a node
        self._due_at = 0.0
        self._keeping: asyncio.Task[None] | None = None

    def is_due(self) -> bool:
        """Whether the brain should be asked for a checkpoint; asking this is taken as doing so."""
        now = time.monotonic()
        if now < self._due_at or (self._keeping is not None and not self._keeping.done()):
            return False
        self._due_at = now + self._settings().checkpoint_s
        return True

    async def last(self) -> bytes | None:
        """Where a new brain goes on from; None: at the beginning, which leads to the same bits."""
        ref = self._account.checkpoint
        if self._last is not None or ref is None:
            return self._last
        for pause_s in (*CHECKPOINT_TRIES_S, None):
            try:
                self._last = await self._copies.read(self._seat.job_id, ref)
            except DataUnavailable as error:
                if pause_s is None:
                    self._log.error("checkpoint.lost", error=str(error), round=ref.round)
                    return None
                with self._account.waiting(str(error)):
                    await asyncio.sleep(pause_s)
            else:
                return self._last
        raise AssertionError

    def keep_beside(self, group: asyncio.TaskGroup, data: bytes, number: int) -> None:
        """Keep a checkpoint while rounds go on."""
        self._last = data
        self._keeping = group.create_task(self._keep_beside(data, number))

    async def stop(self) -> None:
        """What is kept from now on is newer."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
            self._keeping = None

    async def keep(self, data: bytes, number: int) -> None:
        """On enough nodes first, then in the state. Raises `DataUnavailable`, `Deposed`."""
        self._last = data
        while True:
            ref = await self._write(data, number)
            try:
                await self._seat.write(self._pointing_to(ref, time.monotonic()))
            except TooOld:
                continue
            self._account.checkpoint = ref
            self._counts["checkpoints"] += 1
            self._counts["checkpoint_bytes"] += len(data)
            return

    async def keep_model(self, data: bytes, number: int) -> FileRef:
        """On enough nodes; whoever calls points to it. Raises `JobFailed` when nobody takes it."""
        for pause_s in (*MODEL_TRIES_S, None):
            try:
                return await self._write(data, number)
            except DataUnavailable as error:
                if pause_s is None:
                    raise JobFailed(f"the model could not be kept anywhere: {error}") from None
                with self._account.waiting(f"the model cannot be kept: {error}"):
                    await asyncio.sleep(pause_s)
        raise AssertionError

    async def _keep_beside(self, data: bytes, number: int) -> None:
        try:
            await self.keep(data, number)
        except DataUnavailable as error:
            self._log.warning("checkpoint.not_kept", error=str(error))
        except Deposed:
            self._lost()

    def _pointing_to(self, ref: FileRef, written_at: float) -> Callable[[JobState], JobState]:
        def change(state: JobState) -> JobState:
            if time.monotonic() - written_at > POINTED_S:
                raise TooOld
            return structs.replace(self._account.noted(state), checkpoint=ref)

        return change

    async def _write(self, data: bytes, number: int) -> FileRef:
        return await self._copies.write(self._seat.job_id, data, number, self._settings().replicas, self._live())
