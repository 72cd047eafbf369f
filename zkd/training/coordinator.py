"""One job, while this node coordinates it: does what its user wants now, writes how far it is, ends in order.

No arithmetic is done here and no vector looked into: that is the brain's (`zkd.training.lesson`). What the user wants
interrupts at any moment; whatever is then under way is asked for again some time, or not. Only the last write, which
gives up the office, is not to be interrupted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import structs
from structlog.typing import FilteringBoundLogger as Log

from zkd.core.asks import Home
from zkd.core.atlas import Atlas
from zkd.core.clock import ServerClock
from zkd.core.jobs import EDITED, Turn, Words, turn
from zkd.core.terms import choose
from zkd.errors import BadTraining, ZooKeeperError
from zkd.jobs import Round
from zkd.leading import Deposed
from zkd.net.rounds import Term
from zkd.paths import JobId
from zkd.settings import Training
from zkd.training.account import Account, JobFailed
from zkd.training.copies import Copies
from zkd.training.gathering import Gathering
from zkd.training.lesson import Lesson
from zkd.training.links import Here, Links
from zkd.training.peers import Peers
from zkd.training.saves import Saves
from zkd.training.seat import Change, Seat
from zkd.training.site import Site, pinned
from zkd.training.telling import Telling

if TYPE_CHECKING:
    import aiohttp

WRITES_S = 1.0  # between writes of how far it is
AGAIN_S = 0.1  # before the next try to read a dataset's znodes
KNOWN_S = 10.0  # for who is here to be read


@dataclass(frozen=True, slots=True)
class Means:
    """What the coordinators of a node have in common."""

    here: Here
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
        self._log = log = means.log.bind(job=seat.job_id)
        self._counts = counts
        self._is_handing_over = False
        self._doing = Turn.GO_ON, False
        self._scope: asyncio.Timeout | None = None  # of what can be interrupted
        self._has_lost = False  # the office, as a write has found out
        self._is_gone = ""  # what is wrong with the dataset since we began
        self._is_overtaken = False
        self._overtakes = 0
        self._site: Site | None = None
        self._lesson: Lesson | None = None
        self._account = Account(seat.state, means.clock, self._waits_for)
        self._links = Links(
            means.here,
            means.http,
            means.peers,
            means.token,
            lambda: Term(seat.job_id, seat.state.czxid, seat.fence),
            lambda: frozenset() if self._site is None else self._site.nodes(),
            lambda what: self._gathering.hear(what),
            self._was_overtaken,
            log,
        )
        self._gathering = Gathering(self._links, self._homes, counts, log)
        self._saves = Saves(
            seat, self._account, means.copies, means.settings, lambda: self._links.live, self._lose, counts, log
        )

    @property
    def job_id(self) -> JobId:
        return self._seat.job_id

    @property
    def telling(self) -> Telling:
        return self._account.telling

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

    def _lose(self) -> None:
        self._has_lost = True
        self._interrupt()

    # --- Life -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the job is over, paused, gone, or handed over. Raises `Deposed`."""
        deposed: Deposed | None = None
        end: Round | None = None
        async with AsyncExitStack() as stack:
            stack.enter_context(self._means.peers.followed(self._moved))
            stack.callback(self._means.follow(self._moved))
            group = await stack.enter_async_context(asyncio.TaskGroup())
            beside = [group.create_task(self._links.run()), group.create_task(self._tend())]
            self._lesson = Lesson(
                self._job,
                self._account,
                self._saves,
                self._links,
                self._gathering,
                lambda: self._seat.fence,
                group,
                self._counts,
                self._log,
            )
            try:
                end = await self._work(self._lesson)
            except Deposed as error:
                deposed = error
            finally:
                for task in beside:
                    task.cancel()
                self.telling.end(end)
                await self._lesson.close()
        if deposed is not None:
            raise deposed

    async def _work(self, lesson: Lesson) -> Round | None:
        """The line that says how the job ended; None if it goes on some time."""
        while True:
            await self._saves.stop()
            if self._has_lost:
                raise Deposed
            now = self._turn()  # from here to the scope nobody else has a turn, so no word is missed
            if now is Turn.END:
                await lesson.close()
                await self._seat.remove()
                self._log.info("job.removed")
                return None
            self._doing = now, self._is_handing_over
            try:
                async with asyncio.timeout(None) as self._scope:
                    last, end = await self._last(lesson, now)
            except TimeoutError:
                if self._scope is None or not self._scope.expired():
                    raise
                continue
            except (JobFailed, BadTraining) as error:
                last, end = self._account.failed(str(error)), Round(ended="failed")
            finally:
                self._scope = None
            await self._saves.stop()
            await self._seat.leave(last)
            state = self._seat.state
            self._log.info("job.left", phase=state.phase, round=state.progress.round, error=state.error)
            return end

    async def _last(self, lesson: Lesson, now: Turn) -> tuple[Change, Round | None]:
        """The last change that this office makes to the state, and what is told of it."""
        if now is Turn.FAIL:
            raise JobFailed(EDITED)
        if self._is_gone:
            raise JobFailed(self._is_gone)
        if now is Turn.PAUSE or self._is_handing_over:
            await lesson.save()
            return (self._account.paused if now is Turn.PAUSE else self._account.handed_over), None
        with suppress(TimeoutError):  # bounded; without them a checkpoint could be asked of nobody
            await self._means.peers.known(KNOWN_S)
        site = await self._pin()
        summary, model = await (lesson.stop(site) if now is Turn.STOP else lesson.run(site))
        ref = await self._saves.keep_model(model, summary.rounds)
        return self._account.done(summary, ref), Round(ended="done")

    async def _tend(self) -> None:
        """Write how far it is, and look after what is nobody's turn. Ends when the office is lost."""
        while True:
            await asyncio.sleep(WRITES_S)
            try:
                if self._site is not None and not self._site.is_there:
                    await self._doubt(self._site)
                if self._is_overtaken:
                    await self._raise_fence()
                await self._seat.write(self._account.noted)
            except Deposed:
                self._lose()
                return

    def _waits_for(self) -> list[str]:
        return [] if self._lesson is None else self._lesson.waits_for()

    # --- The dataset ------------------------------------------------------------------------------------

    async def _pin(self) -> Site:
        """The version to train on, which the state says from now on. Raises `BadTraining`."""
        if self._site is None:
            dataset = self._seat.state.dataset or self._job.dataset
            await self._look_up(dataset.partition("@")[0])
            dataset = pinned(self._means.atlas, dataset)
            site = Site(self._means.atlas, dataset, lambda: sorted(self._means.peers.nodes))
            choose(self._job, site.edition.manifest)  # says what is wrong before a process is started
            await self._seat.write(lambda state: structs.replace(self._account.noted(state), dataset=dataset))
            self._site = site
        return self._site

    async def _look_up(self, name: str) -> None:
        while True:
            try:
                await self._means.look_up(name)
            except ZooKeeperError as error:  # unbounded: there is nobody to ask; who is deposed meanwhile is cancelled
                self._log.info("dataset.not_read", error=str(error))
                with self._account.waiting(str(error)):
                    await asyncio.sleep(AGAIN_S)
            else:
                return

    async def _doubt(self, site: Site) -> None:
        """The picture has no such version any more: ask the tree itself."""
        try:
            await self._means.look_up(site.name)
        except ZooKeeperError:
            return
        if not site.is_there:
            self._is_gone = f"{site.dataset} was removed, or cannot be read any more, while the job trained on it"
            self._interrupt()

    def _homes(self) -> dict[int, Home]:
        assert self._site is not None
        return self._site.look()

    def _moved(self) -> None:
        """Nodes came or went, or hold other parts."""
        if self._site is not None:
            self._gathering.moved()
            self._links.look()

    # --- The fence --------------------------------------------------------------------------------------

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
