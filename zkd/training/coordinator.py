"""One running job: pins the dataset, opens rounds, hands the answers to the brain, keeps what it says, ends.

    brain --- question ---> gathering --- asks ---> nodes
          <-- answers -----           <-- partials

No arithmetic is done here and no vector looked into. The brain is a child process: when it dies it begins anew from its
last checkpoint and comes to the same bits, as does a coordinator on another node. What the user wants meanwhile
(`told`) interrupts at any moment; whatever is then under way is asked for again some time, or not.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs
from structlog.typing import FilteringBoundLogger as Log

from zkd.core.asks import Home
from zkd.core.atlas import Atlas
from zkd.core.clock import ServerClock
from zkd.core.jobs import EDITED, Turn, Words, turn
from zkd.core.terms import choose
from zkd.errors import BadTraining, DataUnavailable, ZkdError, ZooKeeperError
from zkd.jobs import FileRef, JobState, Phase, Progress, Round, Summary
from zkd.leading import Deposed
from zkd.net.round_frames import Context
from zkd.net.rounds import Term
from zkd.paths import JobId, NodeId
from zkd.settings import Training
from zkd.training.copies import Copies
from zkd.training.frames import Frame
from zkd.training.gathering import Gathering, GivenUp
from zkd.training.links import Heard, Links
from zkd.training.peers import Peers
from zkd.training.process import Process, ProcessEnded
from zkd.training.seat import Change, Seat, now_ms
from zkd.training.site import Site, pinned
from zkd.training.telling import Telling

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import aiohttp

BRAIN = "zkd.training.brain"
WRITES_S = 1.0  # between writes of how far it is
SLOW_S = 1.0  # what a round waits for is told when it takes longer
KNOWN_S = 10.0  # for who is here to be read
AGAIN_S = 0.1  # before the next try at what is refused for the moment
# A round that cannot be completed is tried again after these, since copies are being mended all the time.
GIVEN_UP_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
CHECKPOINT_TRIES_S = (0.5, 1.0, 2.0, 4.0)  # at a checkpoint that no node gives; then rounds are gone through again
MODEL_TRIES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # at a model that no node takes
BRAIN_DEATHS_MAX = 4  # without a round between them
STOPPED = "stopped"  # the reason that a stopped run has
SAVED_IN: tuple[Phase, ...] = ("training", "explaining")  # before, there is nothing to go on from
BRAIN_STILL_S = 10.0  # without a word and without using its CPU: it is frozen
BRAIN_MAX_S = 3600.0  # between an answer and a question
POINTED_S = 20.0  # from the last copy of a file to the pointer to it: nodes keep no stray files for ever
WORDS_MAX = 4000  # of an error, in the tree
LINES_MAX = 20  # of what a round waits for
LINE_MAX = 300


class JobFailed(ZkdError):
    """The job ends without a model. The message says why."""


class Question(msgspec.Struct, frozen=True):
    """The head of a brain's question: see `zkd.training.brain`."""

    number: int
    phase: Phase
    progress: Progress
    rounds: list[Round]
    columns: list[str]
    context: str
    again: str | None = None


class TooOld(Exception):  # a signal between two functions here
    """Copies were made too long ago to be pointed to."""


@dataclass(frozen=True, slots=True)
class Means:
    """What the coordinators of a node have in common."""

    node: NodeId
    atlas: Atlas
    look_up: Callable[[str], Awaitable[None]]  # a dataset, from the tree
    follow: Callable[[Callable[[], None]], Callable[[], None]]  # changes of the atlas
    peers: Peers
    copies: Copies
    http: aiohttp.ClientSession
    token: Callable[[], str | None]
    settings: Callable[[], Training]
    clock: ServerClock
    log: Log


class JobCoordinator:
    def __init__(self, means: Means, seat: Seat, words: Words, counts: Counter[str]) -> None:
        assert words.job is not None
        self._means = means
        self._seat = seat
        self._began = words
        self._words: Words | None = words  # as they are now
        self._job = words.job
        self._log = means.log.bind(job=seat.job_id)
        self._counts = counts
        self._is_handing_over = False
        self._has_lost = False  # the office, as a write has found out
        self._is_gone = ""  # what is wrong with the dataset since we began
        self._is_overtaken = False
        self._overtakes = 0
        self._doing = Turn.GO_ON, False
        self._scope: asyncio.Timeout | None = None
        self._phase: Phase = seat.state.phase
        self._progress = seat.state.progress
        self._trouble = ""  # what it waits for beside answers, for people
        self._round_began = 0.0
        self._round_took_s = 0.0
        self._waits: list[str] = []
        self._pace = Round()  # the last one with a time
        self._asked_last: Frame | None = None  # the question that the brain waits for an answer to
        self._context = ""  # the name of the one that the nodes were told
        self._brain: Process | None = None
        self._deaths = 0
        self._most_rounds = 0
        self._saved: bytes | None = None  # the last that the brain gave
        self._checkpoint: FileRef | None = seat.state.checkpoint
        self._saves_at = 0.0
        self._keeping: asyncio.Task[None] | None = None
        self._site: Site | None = None
        self._group: asyncio.TaskGroup
        self.telling = Telling()
        self._links = Links(
            means.http,
            means.peers,
            means.token,
            self._term,
            lambda: frozenset() if self._site is None else self._site.nodes(),
            self._hear_link,
            self._was_overtaken,
            self._log,
        )
        self._gathering = Gathering(self._links, self._homes, counts, self._log)

    @property
    def job_id(self) -> JobId:
        return self._seat.job_id

    # --- What the office says ---------------------------------------------------------------------------

    def told(self, words: Words | None) -> None:
        """The words are these now."""
        self._words = words
        if (self._turn(), self._is_handing_over) != self._doing:
            self._interrupt()

    def hand_over(self) -> None:
        """Save, and leave the office: this node is going."""
        self._is_handing_over = True
        self._interrupt()

    def _turn(self) -> Turn:
        return turn(self._words, self._began)

    def _interrupt(self) -> None:
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    # --- Life -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the job is over, paused, gone, or handed over. Raises `Deposed`."""
        deposed: Deposed | None = None
        end: Round | None = None
        async with AsyncExitStack() as stack:
            stack.enter_context(self._means.peers.followed(self._moved))
            stack.callback(self._means.follow(self._moved))
            group = self._group = await stack.enter_async_context(asyncio.TaskGroup())
            beside = [group.create_task(self._links.run()), group.create_task(self._tend())]
            try:
                end = await self._work()
            except Deposed as error:
                deposed = error
            finally:
                for task in beside:
                    task.cancel()
                self.telling.end(end)
                if self._brain is not None:
                    self._brain.kill("nobody needs it any more")
                    await self._brain.close()
        if deposed is not None:
            raise deposed

    async def _work(self) -> Round | None:
        """The line that says how the job ended; None if it goes on some time."""
        while True:
            if self._has_lost:
                raise Deposed
            now = self._turn()
            await self._stop_keeping()
            if now is Turn.END:
                await self._seat.remove()
                self._log.info("job.removed")
                return None
            self._doing = now, self._is_handing_over
            try:
                async with asyncio.timeout(None) as self._scope:
                    last, end = await self._last(now)
            except TimeoutError:
                if self._scope is None or not self._scope.expired():
                    raise
                continue
            except (JobFailed, BadTraining) as error:
                last, end = self._failed(str(error)), Round(ended="failed")
            finally:
                self._scope = None
            await self._stop_keeping()
            # Not to be interrupted: whoever wants something else of the job wants it of its next coordinator.
            await self._seat.leave(last)
            state = self._seat.state
            self._log.info("job.left", phase=state.phase, round=state.progress.round, error=state.error)
            return end

    async def _last(self, now: Turn) -> tuple[Change, Round | None]:
        """The last change that this office makes to the state, and what is told of it."""
        if now is Turn.FAIL:
            raise JobFailed(EDITED)
        if self._is_gone:
            raise JobFailed(self._is_gone)
        if now is Turn.PAUSE:
            self._phase = "paused"
        if now is Turn.PAUSE or self._is_handing_over:
            await self._save_now()
            return self._noted, None
        summary, model = await (self._stopped() if now is Turn.STOP else self._driven())
        ref = await self._keep_model(model)
        return self._done(summary, ref), Round(ended="done")

    # --- What is written --------------------------------------------------------------------------------

    def _noted(self, state: JobState) -> JobState:
        """How far it is."""
        progress = structs.replace(self._progress, waits_for=self._waits)
        return structs.replace(state, phase=self._phase, progress=progress, checkpoint=self._checkpoint_of(state))

    def _checkpoint_of(self, state: JobState) -> FileRef | None:
        """The last one, with the nodes that others have added meanwhile."""
        mine, there = self._checkpoint, state.checkpoint
        return there if mine is None or (there is not None and there.id == mine.id) else mine

    def _done(self, summary: Summary, model: FileRef) -> Change:
        def change(state: JobState) -> JobState:
            progress = structs.replace(self._progress, waits_for=[])
            return structs.replace(
                state,
                phase="done",
                progress=progress,
                checkpoint=None,
                model=model,
                summary=summary,
                ended_ms=now_ms(self._means.clock),
            )

        return change

    def _failed(self, why: str) -> Change:
        def change(state: JobState) -> JobState:
            progress = structs.replace(self._progress, waits_for=[])
            ended_ms = now_ms(self._means.clock)
            return structs.replace(
                state, phase="failed", progress=progress, checkpoint=None, error=why[:WORDS_MAX], ended_ms=ended_ms
            )

        return change

    async def _tend(self) -> None:
        """Write how far it is, and look after what is nobody's turn. Ends when the office is lost."""
        while True:
            await asyncio.sleep(WRITES_S)
            try:
                is_slow = self._round_began > 0.0 and self._now() - self._round_began > SLOW_S
                waits = (
                    [self._trouble, *self._gathering.waits_for(), *self._links.faults()] if is_slow else [self._trouble]
                )
                self._waits = [line[:LINE_MAX] for line in waits if line][:LINES_MAX]
                if self._site is not None and not self._site.is_there:
                    await self._doubt()
                if self._is_overtaken:
                    await self._raise_fence()
                await self._seat.write(self._noted)
            except Deposed:
                self._has_lost = True
                self._interrupt()
                return

    async def _doubt(self) -> None:
        """The picture has no such version any more: ask the tree itself."""
        assert self._site is not None
        try:
            await self._means.look_up(self._site.name)
        except ZooKeeperError:
            return
        if not self._site.is_there:
            self._is_gone = f"{self._site.dataset} was removed, or cannot be read any more, while the job trained on it"
            self._interrupt()

    # --- The brain --------------------------------------------------------------------------------------

    async def _driven(self) -> tuple[Summary, bytes]:
        """Rounds until the brain says that it is over. Raises `JobFailed`, `BadTraining`."""
        await self._close_brain()  # of an interrupted drive: nobody knows any more what it waits for
        while True:
            try:
                return await self._drive(await self._begun())
            except ProcessEnded as error:
                self._died(error)

    async def _stopped(self) -> tuple[Summary, bytes]:
        """What the brain makes of what there is, after some more questions."""
        while True:
            try:
                brain = self._brain if self._brain is not None else await self._begun()
                brain.send("stop", {"reason": STOPPED})
                brain.send("save")  # what comes before the answer to this comes of the stop, or of what was before
                frame = self._asked_last
                while (heard := await self._hear(brain)).kind != "saved":
                    frame = heard
                return await self._drive(brain, frame)
            except ProcessEnded as error:
                self._died(error)

    async def _save_now(self) -> None:
        """Have the pointer point to what there is now, as far as that can be had."""
        if self._brain is not None:
            try:
                self._brain.send("save")
                while (frame := await self._hear(self._brain)).kind != "saved":
                    if frame.kind == "over":  # its end is the next coordinator's to find
                        return
                if frame.head["phase"] in SAVED_IN:
                    await self._keep(bytes(frame.bodies[0]), frame.head["round"])
            except ProcessEnded as error:
                self._log.warning("brain.ended", error=str(error))
            except DataUnavailable as error:
                self._log.warning("checkpoint.not_kept", error=str(error))

    async def _begun(self) -> Process:
        """A brain that has been told what to do."""
        with suppress(TimeoutError):  # bounded; without them a checkpoint could be asked of nobody
            await self._means.peers.known(KNOWN_S)
        dataset = await self._pinned()
        saved = await self._last_saved()
        self._brain = brain = Process(BRAIN, printed=lambda line: self._log.info("brain.printed", line=line[:500]))
        self._log.info("brain.started", pid=brain.pid, dataset=dataset, checkpoint=saved is not None)
        assert self._site is not None
        self._asked_last, self._context, self._round_took_s = None, "", 0.0
        head = {"job": self._job, "manifest": self._site.edition.manifest}
        brain.send("start", msgspec.to_builtins(head), *([] if saved is None else [saved]))
        return brain

    async def _drive(self, brain: Process, frame: Frame | None = None) -> tuple[Summary, bytes]:
        """From this frame on, or the next that comes."""
        while True:
            if frame is None:
                frame = await self._hear(brain)
            if frame.kind == "over":
                self.telling.add(msgspec.convert(frame.head["rounds"], list[Round]))
                return msgspec.convert(frame.head["summary"], Summary), bytes(frame.bodies[0])
            if frame.kind == "saved":
                if frame.head["phase"] in SAVED_IN:
                    self._keep_later(bytes(frame.bodies[0]), frame.head["round"])
            elif frame.kind == "question":
                self._asked_last = frame
                question = msgspec.convert(frame.head, Question)
                self._note(question)
                if question.context != self._context:
                    self._context = question.context
                    self._links.tell(Context(self._site_name(), list(question.columns)), bytes(frame.bodies[1]))
                if (
                    question.phase in SAVED_IN
                    and self._now() >= self._saves_at
                    and (self._keeping is None or self._keeping.done())
                ):
                    self._saves_at = self._now() + self._means.settings().checkpoint_s
                    brain.send("save")
                answers = await self._gathered(bytes(frame.bodies[0]))
                brain.send("answers", {"number": question.number}, *answers)
            else:
                raise ProcessEnded(f"the brain said {frame.kind[:40]!r}")
            frame = None

    def _note(self, question: Question) -> None:
        """What a question says of how far it is."""
        if question.again is not None:
            self._log.warning("answers.doubted", number=question.number, error=question.again)
        rounds = list(question.rounds)
        if rounds and self._round_took_s > 0.0:
            rows = sum(self._site.rows.values()) if self._site is not None else 0
            paced = structs.replace(
                rounds[-1],
                round_s=round(self._round_took_s, 6),
                rows_s=round(rows / self._round_took_s, 1),
            )
            rounds[-1] = paced
            self._pace = paced
        self.telling.add(rounds)
        if question.progress.round > self._most_rounds:
            self._most_rounds, self._deaths = question.progress.round, 0
        self._progress = structs.replace(question.progress, round_s=self._pace.round_s, rows_s=self._pace.rows_s)
        self._phase = question.phase

    async def _gathered(self, question: bytes) -> list[bytes]:
        """The answers of all parts. What cannot be had now is asked for again, some times."""
        self._round_began = self._now()
        try:
            for pause_s in (*GIVEN_UP_PAUSES_S, None):
                try:
                    answers = await self._gathering.gather(self._seat.fence, question)
                except GivenUp as error:
                    if pause_s is None:
                        raise JobFailed(f"a round could not be completed: {error}") from None
                    self._log.warning("round.given_up", error=str(error), again_s=pause_s)
                    await self._pause_for(f"{error}; asked again in {pause_s:g} s", pause_s)
                else:
                    self._counts["rounds"] += 1
                    return answers
            raise AssertionError
        finally:
            self._round_took_s = self._now() - self._round_began
            self._round_began = 0.0

    async def _hear(self, brain: Process) -> Frame:
        """The next frame. Raises `JobFailed` for a refusal, `ProcessEnded` of one that is dead, or as good as dead."""
        spent_s, until = cpu_s(brain.pid), self._now() + BRAIN_MAX_S
        while True:
            try:
                async with asyncio.timeout(BRAIN_STILL_S):
                    frame = await brain.receive()
            except TimeoutError:
                former_s, spent_s = spent_s, cpu_s(brain.pid)
                if spent_s == former_s or self._now() > until:
                    brain.kill(f"it said nothing for {BRAIN_STILL_S:g} s")
            else:
                if frame.kind == "refused":
                    raise JobFailed(frame.head["error"])
                return frame

    def _died(self, error: ProcessEnded) -> None:
        self._brain = None
        self._counts["brains_lost"] += 1
        self._deaths += 1
        self._log.warning("brain.ended", error=str(error), deaths=self._deaths)
        if self._deaths >= BRAIN_DEATHS_MAX:
            raise JobFailed(f"its brain ended {self._deaths} times without a round between: {error}")

    async def _close_brain(self) -> None:
        if self._brain is not None:
            brain, self._brain = self._brain, None
            brain.kill("nobody needs it any more")
            await brain.close()

    # --- Checkpoints ------------------------------------------------------------------------------------

    async def _last_saved(self) -> bytes | None:
        """Where a new brain goes on from; None: at the beginning, which leads to the same bits."""
        if self._saved is not None or self._checkpoint is None:
            return self._saved
        for pause_s in (*CHECKPOINT_TRIES_S, None):
            try:
                self._saved = await self._means.copies.read(self.job_id, self._checkpoint)
            except DataUnavailable as error:
                if pause_s is None:
                    self._log.error("checkpoint.lost", error=str(error), round=self._checkpoint.round)
                    return None
                await self._pause_for(str(error), pause_s)
            else:
                return self._saved
        raise AssertionError

    def _keep_later(self, data: bytes, number: int) -> None:
        """Keep a checkpoint while rounds go on."""
        self._saved = data
        self._keeping = self._group.create_task(self._keep_beside(data, number))

    async def _keep_beside(self, data: bytes, number: int) -> None:
        try:
            await self._keep(data, number)
        except DataUnavailable as error:
            self._log.warning("checkpoint.not_kept", error=str(error))
        except Deposed:
            self._has_lost = True
            self._interrupt()

    async def _stop_keeping(self) -> None:
        """What is kept from now on is newer."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
            self._keeping = None

    async def _keep(self, data: bytes, number: int) -> None:
        """On enough nodes first, then in the state. Raises `DataUnavailable`, `Deposed`."""
        self._saved = data
        while True:
            ref = await self._copies_of(data, number)
            written_at = self._now()

            def change(state: JobState, ref: FileRef = ref, written_at: float = written_at) -> JobState:
                if self._now() - written_at > POINTED_S:
                    raise TooOld
                return structs.replace(self._noted(state), checkpoint=ref)

            try:
                await self._seat.write(change)
            except TooOld:
                continue  # nodes may have thrown away what nothing pointed to
            self._checkpoint = ref
            self._counts["checkpoints"] += 1
            self._counts["checkpoint_bytes"] += len(data)
            return

    async def _keep_model(self, data: bytes) -> FileRef:
        """Raises `JobFailed` when nobody takes it."""
        for pause_s in (*MODEL_TRIES_S, None):
            try:
                return await self._copies_of(data, self._progress.round)
            except DataUnavailable as error:
                if pause_s is None:
                    raise JobFailed(f"the model could not be kept anywhere: {error}") from None
                await self._pause_for(f"the model cannot be kept: {error}", pause_s)
        raise AssertionError

    async def _copies_of(self, data: bytes, number: int) -> FileRef:
        replicas = self._means.settings().replicas
        return await self._means.copies.write(self.job_id, data, number, replicas, self._links.live)

    # --- The dataset ------------------------------------------------------------------------------------

    async def _pinned(self) -> str:
        """The version to train on, which the state says from now on. Raises `BadTraining`."""
        if self._site is None:
            dataset = self._seat.state.dataset or self._job.dataset
            await self._look_up(dataset)
            dataset = pinned(self._means.atlas, dataset)
            self._site = Site(self._means.atlas, dataset, lambda: sorted(self._means.peers.nodes))
            choose(self._job, self._site.edition.manifest)  # says what is wrong before a process is started
            await self._seat.write(lambda state: structs.replace(self._noted(state), dataset=dataset))
        return self._site.dataset

    async def _look_up(self, dataset: str) -> None:
        while True:
            try:
                await self._means.look_up(dataset.partition("@")[0])
            except ZooKeeperError as error:  # unbounded: there is nobody to ask; who is deposed meanwhile is cancelled
                self._log.info("dataset.not_read", error=str(error))
                await self._pause_for(str(error), AGAIN_S)
            else:
                return

    def _site_name(self) -> str:
        assert self._site is not None
        return self._site.dataset

    def _homes(self) -> dict[int, Home]:
        assert self._site is not None
        return self._site.look()

    def _moved(self) -> None:
        """Nodes came or went, or hold other parts."""
        if self._site is not None:
            self._gathering.moved()
            self._links.look()

    # --- Links ------------------------------------------------------------------------------------------

    def _term(self) -> Term:
        return Term(self.job_id, self._seat.state.czxid, self._seat.fence)

    def _hear_link(self, what: Heard) -> None:
        self._gathering.hear(what)

    def _was_overtaken(self, why: str) -> None:
        self._is_overtaken = True

    async def _raise_fence(self) -> None:
        """A node knows a higher fence than ours, though we hold the office: somebody has removed a state by hand.

        If it was another coordinator, this write says so.
        """
        self._is_overtaken = False
        self._overtakes += 1
        step = 1 << min(self._overtakes, 40)
        await self._seat.write(lambda state: structs.replace(state, fence=state.fence + step))
        self._log.warning("job.fence_raised", fence=self._seat.fence)
        self._links.drop_all()
        self._interrupt()

    async def _pause_for(self, trouble: str, pause_s: float) -> None:
        self._trouble = trouble
        try:
            await asyncio.sleep(pause_s)
        finally:
            self._trouble = ""

    @staticmethod
    def _now() -> float:
        return time.monotonic()  # the loop's own has milliseconds only


def cpu_s(pid: int) -> float:
    """What a process has used of its CPU; 0 of one that is no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
