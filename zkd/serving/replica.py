"""The daemon's view of one serving process, from its start with the first batch to its end when nothing comes.

    none --start--> running --ended--> running again, if there is something to do (rarer each time) --retire--> none

Batches are answered in the order given, so of a process that died the first one is to blame. One that was stopped, or
does nothing, or does not come to an end, is killed: `look` finds out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
from structlog.typing import FilteringBoundLogger as Log

from zkd.core.batching import Batch
from zkd.registry import ModelVersion
from zkd.training.counting import state_of
from zkd.training.frames import Buffer, Frame
from zkd.training.process import Process, ProcessEnded
from zkd.workers.breaker import Breaker

MODULE: Final = "zkd.serving.process"
AHEAD: Final = 2  # batches: the next one lies ready when one is answered
STOPPED_S: Final = 0.2  # by a signal, or a debugger
STILL_S: Final = 2.0  # asleep, with something to do; who starves for a processor is not
AWAY_S: Final = 1.5  # between two looks: this daemon itself stood still
WAITING_S: Final = 10.0  # for a disk
BATCH_S_MAX: Final = 60.0  # longer than any deadline
ROOM_BYTES: Final = 2 << 30  # beside models: requests, what is computed of them, answers


class Outcome(msgspec.Struct, frozen=True):
    """What came of one request of a batch; see `zkd.serving.answering`."""

    rows: int = 0
    seconds: float = 0.0
    labels: list[bool | int | float | str] = []
    numbers: list[float] = []
    kind: str = ""
    why: str = ""


class _Answers(msgspec.Struct, frozen=True):
    batch: int
    seconds: float
    outcomes: list[Outcome]


Answered = Callable[[Batch, float, Sequence[Outcome], Sequence[memoryview]], None]
Ended = Callable[["Replica", Sequence[Batch], str], None]


class Replica:
    """`answered` hears of each batch that was answered, `ended` of those that a process took with it, and why."""

    def __init__(self, number: int, threads: int, is_spare: bool, log: Log, answered: Answered, ended: Ended) -> None:
        self.number = number
        self.died = 0
        self.open: set[str] = set()  # models
        self._threads = threads
        self._is_spare = is_spare
        self._log = log
        self._answered = answered
        self._ended = ended
        self._batches: dict[int, tuple[Batch, str]] = {}
        self._last = 0
        self._process: Process | None = None
        self.is_served = False
        self._is_retiring = False
        self._breaker = Breaker()
        self._ticks = -1
        self._began = self._still_since = self._looked_at = 0.0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.is_alive and not self._is_retiring

    @property
    def has_room(self) -> bool:
        return self.is_alive and len(self._batches) < AHEAD

    @property
    def in_use(self) -> set[str]:
        """The models that its batches are about."""
        return {model for _, model in self._batches.values()}

    @property
    def is_busy(self) -> bool:
        return bool(self._batches)

    # --- Batches ----------------------------------------------------------------------------------------

    def load(self, model: str, path: str, version: ModelVersion) -> None:
        if model not in self.open:
            self.open.add(model)
            self._say("load", {"model": model, "path": path, "version": version})

    def drop(self, model: str) -> None:
        if model in self.open:
            self.open.discard(model)
            self._say("drop", {"model": model})

    def give(self, batch: Batch, model: str, asks: Sequence[Any], bodies: Sequence[Buffer]) -> None:
        """`asks` are those of `zkd.serving.answering`."""
        self._last += 1
        if not self._batches:
            self._begin()
        self._batches[self._last] = batch, model
        self._say("batch", {"batch": self._last, "model": model, "asks": asks}, *bodies)

    def _say(self, kind: str, head: Any, *bodies: Buffer) -> None:
        if self._process is not None:
            with suppress(ProcessEnded):  # `serve` hears of that, too
                self._process.send(kind, head, *bodies)

    def _begin(self) -> None:
        self._began = self._still_since = asyncio.get_running_loop().time()
        self._ticks = -1

    # --- The process ------------------------------------------------------------------------------------

    async def serve(self, ready: Callable[[], bool]) -> None:
        """Keep a process until it is retired. `ready` is called when there is one, and says whether one is needed."""
        loop = asyncio.get_running_loop()
        self.is_served = True
        try:
            while True:
                try:
                    process = self._process = Process(MODULE, printed=self._printed, blas_threads=self._threads)
                except OSError as error:
                    self._log.error("serving.not_started", error=str(error))
                    await asyncio.sleep(max(1.0, self._breaker.fail(loop.time())))
                    if not ready():
                        return
                    continue
                how = await self._life(process, ready)
                lost, self._batches = [batch for batch, _ in self._batches.values()], {}
                if self._is_retiring and not lost:
                    self._is_retiring = False
                    if not ready():
                        return
                    continue
                self._is_retiring = False
                self.died += 1
                self._log.warning("serving.died", process=self.number, pid=process.pid, batches=len(lost), how=how)
                self._ended(self, lost, how)
                await asyncio.sleep(self._breaker.fail(loop.time()))
        finally:
            self.is_served = self._is_retiring = False

    async def _life(self, process: Process, ready: Callable[[], bool]) -> str:
        """One process from its start to its end, and how that was."""
        try:
            self._say("start", {"room": ROOM_BYTES, "is_spare": self._is_spare})
            ready()
            while True:
                self._heard(await process.receive())  # unbounded: `look` finds out one that does nothing
        except ProcessEnded as end:
            return str(end)
        finally:
            await process.close()  # in a second, or it is killed
            self._process = None
            self.open.clear()

    def _heard(self, frame: Frame) -> None:
        said = msgspec.convert(frame.head, _Answers)
        self._breaker.reset()
        batch, _ = self._batches.pop(said.batch)
        self._begin()
        self._answered(batch, said.seconds, said.outcomes, frame.bodies)

    def retire(self) -> None:
        """Let the process go; `serve` ends, and is to be called again for the next batch."""
        if self._process is not None and not self._is_retiring:
            self._is_retiring = True
            self._process.kill("it is not needed")

    async def gone(self) -> None:
        """Returns when there is no process."""
        if self._process is not None:
            self.retire()
            await self._process.close()

    def look(self, now: float) -> None:
        """Kill it if it owes something and does nothing for it."""
        process, was_away = self._process, now - self._looked_at > AWAY_S
        self._looked_at = now
        if was_away:  # it may have waited for us
            self._still_since = now
        if process is None or not self._batches:
            return
        found = state_of(process.pid)
        if found is None:
            return
        state, ticks = found
        if now - self._began >= BATCH_S_MAX:
            process.kill(f"it was at one batch for {BATCH_S_MAX:g} s")
        elif (ticks != self._ticks and state not in "Tt") or state in "RZX":
            self._ticks, self._still_since = ticks, now
        else:
            most = STOPPED_S if state in "Tt" else WAITING_S if state == "D" else STILL_S
            if now - self._still_since >= most:
                process.kill(f"it did nothing for {most:g} s (state {state})")

    def _printed(self, line: str) -> None:
        self._log.info("serving.printed", process=self.number, line=line)
