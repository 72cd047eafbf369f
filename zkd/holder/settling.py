"""How a task leaves our hands: what its outcome means is published, recorded, or left to who has it now.

The usual end is sent at once, together with the others of the same turn, and its answer is a callback. An end
that is refused, a cancellation, a retry, a task that is handed back are coroutines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from structlog.typing import FilteringBoundLogger as Log

from zkd.core.lifecycle import Publish, State, Step, TryAgain, handed_back
from zkd.endings import Ending, Endings, cancelled
from zkd.errors import BadRecord, ZooKeeperError
from zkd.holder.held import Held
from zkd.holder.tally import Tally
from zkd.holder.verdicts import obituary_of, refusal_of, result_of, verdict_of
from zkd.paths import NodeId, Paths
from zkd.records import Dead, Result, Task
from zkd.store import BlobStore
from zkd.workers import Failed, Finished, Outcome
from zkd.zk import Session

NOT_WRITABLE = BadRecord("$", "expected a znode that zkd may write, to count its attempts: its ACL does not let it")


class Settling:
    def __init__(
        self,
        session: Session,
        paths: Paths,
        node: NodeId,
        endings: Endings,
        store: BlobStore,
        log: Log,
        address: Callable[[], str | None],
        *,
        finish: Callable[[Held, Step], None],
        do: Callable[[Held, Coroutine[Any, Any, None]], None],
        in_callback: Callable[..., None],
    ) -> None:
        """`finish` takes a task off the list, `do` owns coroutines, `in_callback` what raises in a callback."""
        self._session = session
        self._paths = paths
        self._node = node
        self._endings = endings
        self._store = store
        self._log = log
        self._address = address
        self._finish = finish
        self._do = do
        self._in_callback = in_callback
        self.incarnation: str | None = None
        self.session_id = 0
        self.is_stopped = True  # nothing is begun
        self.tally = Tally()

    def settle(self, held: Held, task: Task, outcome: Outcome) -> None:
        held.advance(Step.ENDED)
        line = held.line
        if isinstance(outcome, Finished) and outcome.blob is not None:
            blob = outcome.blob
            try:
                self._store.keep(blob.path, line.id, blob.sha256, blob.format)
            except OSError as error:
                outcome = Failed("OSError", f"the result cannot be kept as a file: {error}", "", outcome.run_s)
        has_expired = held.expires_at is not None and held.expires_at <= asyncio.get_running_loop().time()
        verdict = verdict_of(task, outcome, self._node, has_expired=has_expired)
        if isinstance(verdict, TryAgain):
            self._log.info("task.attempt_failed", id=line.id, attempt=line.attempt, cause=verdict.attempts[-1].cause)
            self._do(held, self._record(held, task, verdict))
            return
        self._end(held, task, outcome, verdict)

    def refuse(self, held: Held, bad: BadRecord) -> None:
        """The task is not one that can be run."""
        held.advance(Step.ENDED)
        refusal = refusal_of(held.line, bad, node=self._node, owner=self.incarnation)
        self._do(held, self._publish(held, refusal, None))

    def _end(self, held: Held, task: Task, outcome: Outcome, verdict: Publish) -> None:
        """Send the ending at once, together with the others of this turn; a refusal is another matter."""
        result = result_of(
            held, task, outcome, verdict, node=self._node, owner=self.incarnation, address=self._address()
        )
        dead = obituary_of(task, verdict, result.finished_at)
        if dead is not None:
            self._do(held, self._publish(held, result, dead))
            return
        sent = self._endings.send(held.line.id, held.line.version, result, within=self.session_id)
        sent.add_done_callback(partial(self._in_callback, self._sent, held, result))

    def _sent(self, held: Held, result: Result, sent: asyncio.Future[Any]) -> None:
        if not sent.cancelled() and sent.exception() is None:
            self._was_published(held, result)
        elif not self.is_stopped and held.state is State.PUBLISHING:
            # The same transaction again: what it says then tells how it went.
            self._do(held, self._publish(held, result, None))

    async def _publish(self, held: Held, result: Result, dead: Dead | None) -> None:
        line = held.line
        ending = await self._endings.end(line.id, line.version, result, dead, within=self.session_id)
        if ending is Ending.WRITTEN:
            self._was_published(held, result)
        elif ending is Ending.GONE:
            await self.was_cancelled(held)
        else:
            self._log.info("task.not_ours", id=line.id, attempt=line.attempt, because=ending.value)
            self._finish(held, Step.DROPPED)

    def _was_published(self, held: Held, result: Result) -> None:
        line = held.line
        self.tally.count(result.kernel or "", result.status)
        if held.task is not None and held.started:
            kernel, wait_s, run_s = held.task.kernel, result.wait_s, result.run_s
            self.tally.ran(line.id, kernel, result.status, line.attempt, wait_s, run_s)
        if result.status == "done":
            self._log.debug("task.done", id=line.id, attempt=line.attempt)
        else:
            why = result.error.message if result.error else ""
            self._log.info("task.ended", id=line.id, attempt=line.attempt, status=result.status, error=why)
        self._finish(held, Step.PUBLISHED)

    def _note(self, held: Held, status: str) -> None:
        """Tell those who look on of a run that has no result of its own."""
        if held.task is not None and held.started:
            run_s = asyncio.get_running_loop().time() - held.started
            wait_s = held.started - held.since
            self.tally.ran(held.line.id, held.task.kernel, status, held.line.attempt, wait_s, run_s)

    async def was_cancelled(self, held: Held) -> None:
        """The task's znode is gone. Either our own commit took it, its answer lost; or somebody cancelled it."""
        line, me = held.line, self.incarnation or ""
        result = cancelled(me, line.czxid, line.attempt, held.task, self._node)
        ending = await self._endings.end_deleted(line.id, result, within=self.session_id)
        if ending is Ending.WRITTEN:
            self.tally.count(result.kernel or "", "cancelled")
            self._note(held, "cancelled")
            self._log.info("task.cancelled", id=line.id, attempt=line.attempt)
        self._finish(held, Step.PUBLISHED)

    async def let_go(self, held: Held) -> None:
        """Our line was taken out of assign/: the task was cancelled, or moved on to somebody else.

        Nobody else finds out which while we live, so a lost connection only delays the question.
        """
        is_there: bool | None = None
        while is_there is None:
            try:
                is_there = await self._session.exists(self._paths.task(held.line.id)) is not None
            except ZooKeeperError:
                await asyncio.sleep(0.05)
                if not await self._endings.reconnected(self.session_id):
                    is_there = True  # the leader has lost us, and sees to what we held
        if is_there:
            self._finish(held, Step.DROPPED)
        else:
            await self.was_cancelled(held)

    async def _record(self, held: Held, task: Task, verdict: TryAgain) -> None:
        """Write the attempt into the task. Its version moves on, which ends our hold; the leader takes over."""
        line = held.line
        ending = await self._endings.record_attempts(
            line.id, line.version, task, verdict.attempts, within=self.session_id
        )
        if ending is Ending.WRITTEN:
            self.tally.count(task.kernel, verdict.attempts[-1].cause)
            self._note(held, verdict.attempts[-1].cause)
        elif ending is Ending.GONE:
            await self.was_cancelled(held)
            return
        elif ending is Ending.STUCK:
            refusal = refusal_of(line, NOT_WRITABLE, node=self._node, owner=self.incarnation)
            await self._publish(held, refusal, None)
            return
        self._finish(held, Step.DROPPED)

    async def hand_back(self, held: Held) -> None:
        task = held.task
        assert task is not None
        held.advance(Step.ENDED)
        self._log.info("task.handed_back", id=held.line.id)
        await self._record(held, task, handed_back(task, self._node))

    async def was_stopped(self, held: Held) -> None:
        if held.state is not State.RUNNING:
            return  # dropped meanwhile
        if held.stopped_for == "drain":
            await self.hand_back(held)
        else:
            held.advance(Step.ENDED)
            await self.let_go(held)
