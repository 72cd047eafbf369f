"""A training job that was dropped, in the hands of the program that looks on or waits for its model.

It is an id and a way to look: it can be dropped, made again from the id, in another process, and the job goes on
regardless.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from zkd.client.desired import change
from zkd.client.dropbox import ANY_VERSION, OUTAGE_MAX_S
from zkd.client.following import rounds_of, watching
from zkd.client.job_status import JobStatus, desired_text, paths_of, status_of
from zkd.client.outstanding import NO_ANSWER
from zkd.errors import (
    DataUnavailable,
    JobFailed,
    JobNotFound,
    MultiFailed,
    NoNode,
    OutcomeUnknown,
    ResultTimeout,
    ZooKeeperError,
)
from zkd.zk import Check, Delete

if TYPE_CHECKING:
    from zkd.client.client import Client
    from zkd.client.dropbox import DropBox
    from zkd.client.model import Model
    from zkd.client.plane import Plane
    from zkd.jobs import Desired, JobState, Round
    from zkd.paths import JobId
    from zkd.zk import Op

LOOK_AGAIN_S = 15.0  # with nothing heard: watches of lost connections are not replayed
FETCH_S = 30.0  # so long a model is looked for on the nodes that have it, and on those that take copies meanwhile
FETCH_AGAIN_S = 0.5


class TrainingJob:
    """A job that was dropped. `async for round in job` gives its rounds, `await job.model()` what comes of it."""

    def __init__(
        self,
        client: Client,
        box: DropBox,
        plane: Plane,
        name: JobId,
        czxid: int,
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        self.id = name
        self.left_out = dict(left_out or {})  # columns that nobody asked to leave out, and why
        self._client = client
        self._box = box
        self._plane = plane
        self._czxid = czxid  # of this life of the id

    def __repr__(self) -> str:
        return f"<TrainingJob {self.id}>"

    # --- Looking ------------------------------------------------------------------------------------------

    async def status(self) -> JobStatus:
        """How far it is now. Raises `JobNotFound` if it was removed."""
        found = await self._look()
        if found is None:
            raise JobNotFound(f"the job {self.id} was removed")
        return found

    def __aiter__(self) -> AsyncIterator[Round]:
        return self.rounds()

    async def rounds(self, after: int = 0) -> AsyncGenerator[Round]:
        """Every round after this one, once and in order, until the job ends, whichever nodes open them.

        Ends also when the job fails or is removed: `model` says so. Leaving early leaves the job alone.
        """
        told = rounds_of(self._client, self._box, self._plane, self.id, self._look, self._history, after)
        async with aclosing(told):
            async for each in told:
                yield each

    async def statuses(self) -> AsyncGenerator[JobStatus]:
        """How far it is, whenever that changes, until it has ended. Raises `JobNotFound` if it is removed."""
        async with watching(self._client, self._box, self.id) as heard:
            while True:
                heard.changed.clear()
                found = await self.status()
                yield found
                if found.has_ended:
                    return
                await heard.wait(LOOK_AGAIN_S)

    async def wait(self, timeout: float | None = None) -> JobState:
        """How it ended, waiting up to `timeout` seconds; by default as long as it takes.

        Raises `JobFailed` with the reason if it failed or was removed, `ResultTimeout` (the job goes on).
        """
        last: JobStatus | None = None
        try:
            async with asyncio.timeout(timeout), aclosing(self.statuses()) as statuses:
                async for each in statuses:
                    last = each
        except JobNotFound:
            raise JobFailed(f"{self.id} was removed before it ended") from None
        except TimeoutError:
            raise ResultTimeout(f"{self.id} has not ended after {timeout:g} s; it goes on") from None
        assert last is not None
        assert last.state is not None
        if last.phase == "failed":
            raise JobFailed(f"{self.id} failed: {last.state.error or 'nobody said why'}")
        return last.state

    async def model(self, timeout: float | None = None) -> Model:
        """The model, when the job has ended. Raises as `wait`, and `DataUnavailable` if no node has its file."""
        from zkd.client.model import Model

        return await asyncio.to_thread(Model, await self.model_file(timeout))

    async def model_file(self, timeout: float | None = None) -> bytes:
        """The model's file, whose digest was checked. Raises as `model`."""
        state = await self.wait(timeout)
        give_up = time.monotonic() + FETCH_S
        while True:
            if state.model is None:
                raise JobFailed(f"{self.id} ended without a model{f': {state.error}' if state.error else ''}")
            try:
                return await self._plane.checkpoint(self.id, state.model)
            except DataUnavailable:
                if time.monotonic() > give_up:
                    raise
            await asyncio.sleep(FETCH_AGAIN_S)  # other nodes take a copy when one is lost: until FETCH_S
            state = await self.wait()

    # --- Steering -----------------------------------------------------------------------------------------

    async def pause(self) -> bool:
        """Have it write a checkpoint and wait. False: it had ended before."""
        return await self._want("pause")

    async def resume(self) -> bool:
        """Have it go on where it was paused. False: it had ended before."""
        return await self._want("run")

    async def stop(self) -> bool:
        """Have it end with what there is: `model` gives that. False: it had ended before."""
        return await self._want("stop")

    async def cancel(self) -> bool:
        """Have it end, and leave nothing of it. False: it had ended before, and its model stays; see `remove`."""
        return await self._remove(is_cancel=True)

    async def remove(self) -> bool:
        """Remove the job, its checkpoints and its model, however far it is. False: it was gone."""
        return await self._remove(is_cancel=False)

    async def _want(self, desired: Desired) -> bool:
        if (await self.status()).has_ended:
            return False
        try:
            await change(self._box, self._client.paths.job(self.id), lambda text: desired_text(text, desired))
        except NoNode:
            raise JobNotFound(f"the job {self.id} was removed") from None
        return True

    async def _remove(self, *, is_cancel: bool) -> bool:
        paths = self._client.paths
        give_up = time.monotonic() + OUTAGE_MAX_S
        was_sent = False
        while True:
            job, state, _ = await self._read()
            if isinstance(job, ZooKeeperError) or job.stat.czxid != self._czxid:
                return was_sent  # by us, if the answer was lost
            ops: list[Op] = [Delete(paths.job(self.id), ANY_VERSION)]
            if is_cancel and not isinstance(state, ZooKeeperError):
                seen = status_of(self.id, job, state, NoNode())
                if seen is not None and seen.has_ended:
                    return False
                ops.append(Check(paths.job_state(self.id), state.stat.version))  # it may end in this moment
            try:
                await self._box.session.multi(ops)
                return True
            except MultiFailed:
                if time.monotonic() >= give_up:
                    raise
            except NO_ANSWER as error:
                was_sent = was_sent or isinstance(error, OutcomeUnknown)
                await self._box.catch_up(give_up, error)

    # --- Reading ------------------------------------------------------------------------------------------

    async def _look(self) -> JobStatus | None:
        """None: this life of the job is over."""
        job, state, coordinator = await self._read()
        if not isinstance(job, ZooKeeperError) and job.stat.czxid != self._czxid:
            return None
        return status_of(self.id, job, state, coordinator)

    async def _read(self) -> list[Any]:
        give_up = time.monotonic() + OUTAGE_MAX_S
        while True:
            try:
                return await self._client.session.get_many(paths_of(self._client.paths, self.id))
            except NO_ANSWER as error:
                await self._box.catch_up(give_up, error)

    async def _history(self) -> Sequence[Round]:
        return (await self.model()).history
