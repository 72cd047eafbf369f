"""The talk between a job's brain and its nodes: questions to all parts, answers back, until the brain has a model.

    brain --- question ---> gathering --- asks ---> nodes
          <-- answers -----           <-- partials

A brain that dies, or is as good as dead, is started again from its last checkpoint and comes to the same bits. One that
dies again and again, without a round between, fails its job.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from structlog.typing import FilteringBoundLogger as Log

from zkd.errors import DataUnavailable
from zkd.jobs import Job, Phase, Round, Summary
from zkd.net.round_frames import Context
from zkd.training.account import Account, JobFailed, Question
from zkd.training.frames import Buffer, Frame
from zkd.training.gathering import Gathering, GivenUp
from zkd.training.links import Links
from zkd.training.process import Process, ProcessEnded
from zkd.training.saves import Saves
from zkd.training.site import Site

BRAIN = "zkd.training.brain"
SAVED_IN: tuple[Phase, ...] = ("training", "explaining")  # before, there is nothing to go on from
STOPPED = "stopped"  # the reason that a stopped run has
# A round that cannot be completed is tried again after these, since copies are being mended all the time.
GIVEN_UP_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
GIVEN_UP_S = 60.0  # but not one that took so long, all its tries together
BRAIN_DEATHS_MAX = 4  # without a round between them
BRAIN_STILL_S = 10.0  # without a word and without using its CPU: it is frozen
BRAIN_BRISK_S = 1.0  # until nobody asks for its CPU: to read that costs a tenth of a round
BRAIN_CPU_MAX_S = 120.0  # of its CPU between an answer and a question: it spins. The longest steps take some seconds
BRAIN_MAX_S = 3600.0  # and of time, for one that does next to nothing
SLOW_S = 1.0  # what a round waits for is told when it takes longer


class Lesson:
    def __init__(
        self,
        job: Job,
        account: Account,
        saves: Saves,
        links: Links,
        gathering: Gathering,
        fence: Callable[[], int],
        group: asyncio.TaskGroup,
        counts: Counter[str],
        log: Log,
    ) -> None:
        self._job = job
        self._account = account
        self._saves = saves
        self._links = links
        self._gathering = gathering
        self._fence = fence
        self._group = group
        self._counts = counts
        self._log = log
        self._brain: Process | None = None
        self._deaths = 0
        self._most_rounds = 0
        self._open: Frame | None = None  # the question that the brain waits for an answer to
        self._context = ""  # the name of the one that the nodes were told
        self._began = 0.0  # the round that is under way; 0: none is
        self._took_s = 0.0  # the last round

    def waits_for(self) -> list[str]:
        """What the round that is under way waits for, if it is slow; for people."""
        if self._began == 0.0 or time.monotonic() - self._began < SLOW_S:
            return []
        return [*self._gathering.waits_for(), *self._links.faults()]

    async def run(self, site: Site) -> tuple[Summary, bytes]:
        """Rounds until the brain says that it is over: what came of it, and the model. Raises `JobFailed`."""
        await self.close()  # one that was interrupted: nobody knows any more what it waits for
        while True:
            try:
                return await self._drive(await self._begin(site), site)
            except ProcessEnded as error:
                await self._died(error)

    async def stop(self, site: Site) -> tuple[Summary, bytes]:
        """What the brain makes of what there is, after some more questions. Raises `JobFailed`."""
        while True:
            try:
                brain = self._brain if self._brain is not None else await self._begin(site)
                brain.send("stop", {"reason": STOPPED})
                brain.send("save")  # what comes before the answer to this comes of the stop, or of what was before
                frame = self._open
                while (heard := await self._hear(brain)).kind != "saved":
                    frame = heard
                    if frame.kind == "question":
                        self._note(msgspec.convert(frame.head, Question), site)
                return await self._drive(brain, site, frame)
            except ProcessEnded as error:
                await self._died(error)

    async def save(self) -> None:
        """Have the state point to what there is now, as far as that can be had. Raises `Deposed`."""
        if self._brain is None:
            return
        try:
            self._brain.send("save")
            while (frame := await self._hear(self._brain)).kind != "saved":
                if frame.kind == "over":  # its end is the next coordinator's to find
                    return
            if frame.head["phase"] in SAVED_IN:
                await self._saves.keep(bytes(frame.bodies[0]), frame.head["round"])
        except ProcessEnded as error:
            self._log.warning("brain.ended", error=str(error))
        except DataUnavailable as error:
            self._log.warning("checkpoint.not_kept", error=str(error))

    async def close(self) -> None:
        if self._brain is not None:
            brain, self._brain = self._brain, None
            brain.kill("nobody needs it any more")
            await brain.close()

    async def _begin(self, site: Site) -> Process:
        """A brain that has been told what to do."""
        saved = await self._saves.last()
        self._brain = brain = Process(BRAIN, printed=lambda line: self._log.info("brain.printed", line=line[:500]))
        self._log.info("brain.started", pid=brain.pid, dataset=site.dataset, checkpoint=saved is not None)
        self._open, self._context, self._took_s = None, "", 0.0
        head = {"job": self._job, "manifest": site.edition.manifest}
        brain.send("start", msgspec.to_builtins(head), *([] if saved is None else [saved]))
        return brain

    async def _drive(self, brain: Process, site: Site, frame: Frame | None = None) -> tuple[Summary, bytes]:
        """From this frame on, or the next that comes."""
        while True:
            if frame is None:
                frame = await self._hear(brain)
            if frame.kind == "over":
                self._account.telling.add(msgspec.convert(frame.head["rounds"], list[Round]))
                return msgspec.convert(frame.head["summary"], Summary), bytes(frame.bodies[0])
            if frame.kind == "saved":
                if frame.head["phase"] in SAVED_IN:
                    self._saves.keep_beside(self._group, bytes(frame.bodies[0]), frame.head["round"])
            elif frame.kind == "question":
                await self._answer(brain, site, frame)
            else:
                raise ProcessEnded(f"it said {frame.kind[:40]!r}")
            frame = None

    async def _answer(self, brain: Process, site: Site, frame: Frame) -> None:
        self._open = frame
        question = msgspec.convert(frame.head, Question)
        self._note(question, site)
        if question.context != self._context:
            self._context = question.context
            self._links.tell(Context(site.dataset, question.columns), bytes(frame.bodies[1]))
        if question.phase in SAVED_IN and self._saves.is_due():
            brain.send("save")
        try:
            answers = await self._gather(bytes(frame.bodies[0]))
        except JobFailed as error:
            if question.phase != "explaining":
                raise
            brain.send("stop", {"reason": str(error)})  # the model is there; only what was to be told of it is not
        else:
            brain.send("answers", {"number": question.number}, *answers)

    def _note(self, question: Question, site: Site) -> None:
        if question.again is not None:
            self._log.warning("answers.doubted", number=question.number, error=question.again)
        if question.progress.round > self._most_rounds:
            self._most_rounds, self._deaths = question.progress.round, 0
        self._account.note(question, self._took_s, site.edition.manifest.rows)

    async def _gather(self, question: bytes) -> list[Buffer]:
        """The answers of all parts. What cannot be had now is asked for again, some times."""
        self._began = time.monotonic()
        try:
            for pause_s in (*GIVEN_UP_PAUSES_S, None):
                try:
                    answers = await self._gathering.gather(self._fence(), question)
                except GivenUp as error:
                    if pause_s is None or time.monotonic() - self._began > GIVEN_UP_S:
                        raise JobFailed(f"a round could not be completed: {error}") from None
                    self._log.warning("round.given_up", error=str(error), again_s=pause_s)
                    with self._account.waiting(f"{error}; asked again in {pause_s:g} s"):
                        await asyncio.sleep(pause_s)
                else:
                    self._counts["rounds"] += 1
                    return answers
            raise AssertionError
        finally:
            self._took_s, self._began = time.monotonic() - self._began, 0.0

    async def _hear(self, brain: Process) -> Frame:
        """The next frame. Raises `JobFailed` for a refusal, `ProcessEnded` of one that is dead, or as good as dead."""
        until, patience_s, spent_s = time.monotonic() + BRAIN_MAX_S, BRAIN_BRISK_S, -1.0
        most_s = math.inf  # that it may have spent
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    frame = await brain.receive()
                    if frame.kind == "refused":
                        raise JobFailed(frame.head["error"])
                    return frame
            former_s, spent_s, patience_s = spent_s, cpu_s(brain.pid), BRAIN_STILL_S
            most_s = min(most_s, spent_s + BRAIN_CPU_MAX_S)
            if spent_s == former_s or time.monotonic() > until:
                brain.kill(f"it said nothing for {BRAIN_STILL_S:g} s")
            elif spent_s > most_s:
                brain.kill(f"it said nothing, and computed for {BRAIN_CPU_MAX_S:g} s")

    async def _died(self, error: ProcessEnded) -> None:
        await self.close()
        self._counts["brains_lost"] += 1
        self._deaths += 1
        self._log.warning("brain.ended", error=str(error), deaths=self._deaths)
        if self._deaths >= BRAIN_DEATHS_MAX:
            raise JobFailed(f"its brain ended {self._deaths} times without a round between: {error}")


def cpu_s(pid: int) -> float:
    """What a process has used of its CPU; 0 of one that is no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
