"""The daemon's view of one counter: a process, when there is something to count, and the shares that it was given.

    none --take--> running --ended, shares left--> running again (rarer each time) --retire--> none

Shares are done in the order given, so of a process that died the first one is to blame. It dies thrice of it at most.
What the process was told of subjects and parts it is told anew after its death.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from structlog.typing import FilteringBoundLogger as Log

from zkd.holder.parts import Laid
from zkd.training.frames import Buffer, Frame
from zkd.training.process import Process, ProcessEnded
from zkd.workers.breaker import Breaker

MODULE: Final = "zkd.training.counter"
DEATHS_MAX: Final = 3  # of processes, from one share
UNHEARD_S: Final = 10.0  # on one part, with what is forgotten: others wait
STILL_S: Final = 5.0  # sleeping or stopped, with something to do; who starves for a processor is neither
WAITING_S: Final = 60.0  # for a disk
FILES_A_FRAME: Final = 20_000


@dataclass(eq=False)
class Share:
    """What one counter has to do for an ask."""

    number: int
    work: object
    subject: int
    context: bytes  # what the subject is about, as it was when this was asked
    source: int
    parts: Sequence[int]
    laid: dict[int, Laid]
    question: bytes
    deaths: int = 0


@dataclass
class Done:
    """What came of a share: a partial and the parts that were read from files for it; or why there is none."""

    partial: Buffer | None
    read: Sequence[int] = ()
    why: str = ""
    lacking: Sequence[int] = ()  # parts whose files could not be read


Told = Callable[["Counter", Share, Done], None]


class _Answer(msgspec.Struct, frozen=True):
    ask: int
    read: list[int] = []
    why: str = ""
    lacking: list[int] = []


class Counter:
    """`memory`: bytes of rows that it may keep. `told` hears of each share once, unless it is forgotten."""

    def __init__(self, number: int, memory: int, log: Log, told: Told) -> None:
        self.number = number
        self.died = 0
        self._memory = memory
        self._log = log
        self._told = told
        self._shares: dict[int, Share] = {}
        self._process: Process | None = None
        self._is_served = False
        self._is_retiring = False
        self._breaker = Breaker()
        self._contexts: dict[int, bytes] = {}  # of each subject, as this process was told it last
        self._parts: dict[tuple[int, int], Laid] = {}  # source, part -> files that this process was told of
        self._unheard: dict[int, float] = {}  # shares that it was told to forget, and goes on with for all we know
        self._ticks = -1
        self._still_since = 0.0

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.is_alive

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    # --- Shares -----------------------------------------------------------------------------------------

    def take(self, share: Share, group: asyncio.TaskGroup) -> None:
        self._shares[share.number] = share
        if not self._is_served:
            self._is_served = True
            group.create_task(self._serve())
        elif self.is_alive and not self._is_retiring:
            self._give(share)

    def forget(self, share: Share) -> None:
        if self._shares.pop(share.number, None) is not None and self._process is not None:
            self._say("forget", {"ask": share.number})
            self._unheard[share.number] = asyncio.get_running_loop().time()

    def end_subject(self, subject: int) -> None:
        if self._contexts.pop(subject, None) is not None:
            self._say("end", {"subject": subject})

    def drop(self, source: int, parts: Sequence[int] | None) -> None:
        """What it has of these parts is of no use any more; None: of all of them."""
        known = [part for of, part in self._parts if of == source and (parts is None or part in parts)]
        for part in known:
            del self._parts[source, part]
        if known:
            self._say("drop", {"source": source, "parts": known})

    def _give(self, share: Share) -> None:
        if self._contexts.get(share.subject) is not share.context:
            self._contexts[share.subject] = share.context
            self._say("context", {"subject": share.subject, "source": share.source}, share.context)
        known, source = self._parts, share.source
        self._lay(source, {part: laid for part, laid in share.laid.items() if known.get((source, part)) is not laid})
        head = {"ask": share.number, "subject": share.subject, "source": source, "parts": share.parts}
        self._say("ask", head, share.question)

    def _lay(self, source: int, laid: dict[int, Laid]) -> None:
        batch: dict[int, Any] = {}
        files = 0
        for part, each in laid.items():
            self._parts[source, part] = each
            batch[part] = [[column.name, column.dtype, column.shape, column.files] for column in each.columns]
            files += sum(len(column.files) for column in each.columns)
            if files >= FILES_A_FRAME:
                self._say("parts", {"source": source, "parts": batch})
                batch, files = {}, 0
        if batch:
            self._say("parts", {"source": source, "parts": batch})

    def _say(self, kind: str, head: Any, *bodies: Buffer) -> None:
        if self._process is not None:
            with suppress(ProcessEnded):  # whoever serves it hears of that, too
                self._process.send(kind, head, *bodies)

    # --- The process ------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Keep a process for as long as there are shares, and then until it is retired."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    process = self._process = Process(MODULE, printed=self._printed)
                except OSError as error:
                    self._give_up(f"no process could be started: {error}")
                    return
                how = await self._life(process)
                if self._is_retiring:
                    self._is_retiring = False
                else:
                    self.died += 1
                    self._log.warning("counter.died", counter=self.number, pid=process.pid, how=how)
                    self._blame(how)
                    if self._shares:
                        await asyncio.sleep(self._breaker.fail(loop.time()))
                if not self._shares:
                    return
        finally:
            self._is_served = False

    async def _life(self, process: Process) -> str:
        """One process from its start to its end, and how that was."""
        self._contexts, self._parts, self._unheard, self._ticks = {}, {}, {}, -1
        try:
            self._say("start", {"memory": self._memory})
            for share in list(self._shares.values()):
                self._give(share)
            while True:
                self._heard(await process.receive())  # unbounded: `look` finds out one that does nothing
        except ProcessEnded as end:
            return str(end)
        finally:
            await process.close()  # in a second, or it is killed
            self._process = None

    def _heard(self, frame: Frame) -> None:
        said = msgspec.convert(frame.head, _Answer)
        self._unheard.pop(said.ask, None)
        if frame.kind == "forgotten":
            return
        share = self._shares.pop(said.ask, None)
        if share is None:
            return  # forgotten
        self._breaker.reset()
        if frame.kind == "answer":
            self._told(self, share, Done(frame.bodies[0], said.read))
        else:
            self._told(self, share, Done(None, why=said.why, lacking=said.lacking))

    def _blame(self, how: str) -> None:
        share = next(iter(self._shares.values()), None)
        if share is not None:
            share.deaths += 1
            if share.deaths >= DEATHS_MAX:
                del self._shares[share.number]
                self._told(self, share, Done(None, why=f"its counter died {share.deaths} times: {how}"))

    def _give_up(self, why: str) -> None:
        shares, self._shares = list(self._shares.values()), {}
        for share in shares:
            self._told(self, share, Done(None, why=why))

    def retire(self) -> None:
        """Let the process go; it is started again for the next share."""
        if self._process is not None and not self._is_retiring:
            self._is_retiring = True
            self._process.kill("it is not needed")

    async def gone(self) -> None:
        """Returns when there is no process."""
        if self._process is not None:
            await self._process.close()

    def look(self, now: float) -> None:
        """Kill it if it owes something and does nothing: it was stopped, or waits for what never comes.

        And let it go if it does not come to an end of what nobody waits for.
        """
        process = self._process
        if process is not None and now - min(self._unheard.values(), default=now) > UNHEARD_S:
            self._log.info("counter.let_go", counter=self.number, pid=process.pid, forgotten=len(self._unheard))
            self._unheard.clear()
            self.retire()
            return
        if process is None or not self._shares:
            self._ticks = -1
            return
        found = state_of(process.pid)
        if found is None:
            return
        state, ticks = found
        if ticks != self._ticks or state in "RZX":
            self._ticks, self._still_since = ticks, now
            return
        most = WAITING_S if state == "D" else STILL_S
        if now - self._still_since >= most:
            process.kill(f"it did nothing for {most:g} s (state {state})")

    def _printed(self, line: str) -> None:
        self._log.info("counter.printed", counter=self.number, line=line)


def state_of(pid: int) -> tuple[str, int] | None:
    """The letter of a process's state, and the ticks of processor time that it has had."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[11]) + int(fields[12])
