"""`client.train` and `client.jobs`: drop training jobs, find them again.

    job = await client.train("logistic", dataset="adult", target="income", l2=1.0)
    async for each in job:
        print(each.number, each.loss)
    model = await job.model()

A job is a znode at ``jobs/<id>``; the nodes do the rest, and it goes on without this program.
"""

from __future__ import annotations

import asyncio
import os
import time
from difflib import get_close_matches
from typing import TYPE_CHECKING, Unpack

from zkd import codec
from zkd.client.desired import whoami
from zkd.client.dropbox import OUTAGE_MAX_S
from zkd.client.job_status import JobStatus, paths_of, status_of
from zkd.client.outstanding import NO_ANSWER
from zkd.client.terms import Terms, check, job_of
from zkd.client.training_job import TrainingJob
from zkd.errors import (
    BadTraining,
    DatasetNotFound,
    JobExists,
    JobNotFound,
    MultiFailed,
    NodeExists,
    NoNode,
    OutcomeUnknown,
)
from zkd.paths import NAME_RULE, JobId, is_name
from zkd.zk import Create, ensure_path

if TYPE_CHECKING:
    from zkd.client.client import Client
    from zkd.client.dataset import Dataset
    from zkd.client.dropbox import DropBox
    from zkd.client.plane import Plane
    from zkd.core.terms import Chosen
    from zkd.jobs import Job

THERE_MAX = 12  # names of datasets in a message


class Jobs:
    """`client.jobs`."""

    def __init__(self, client: Client, box: DropBox, plane: Plane) -> None:
        self._client = client
        self._box = box
        self._plane = plane

    async def train(
        self, model: str, dataset: str | Dataset, *, name: JobId | None = None, **terms: Unpack[Terms]
    ) -> TrainingJob:
        """Drop a training job, and return as soon as it is accepted.

        `dataset` is ``NAME``, whose current version is taken, or ``NAME@VERSION``. Raises `BadTraining`,
        `DatasetNotFound`, `JobExists`: then nothing was dropped. What only the rows can tell is seen later, and ends
        the job before its first round. `name` is the job's id; by default one that nobody has, and then a call that is
        cancelled leaves no job.
        """
        checked, chosen = await self.check(model, dataset, **terms)
        job = name or f"{model}-{os.urandom(4).hex()}"
        if not is_name(job):
            raise BadTraining(f"name: expected {NAME_RULE}, got {job[:150]!r}")
        try:
            czxid = await self._drop(job, codec.encode(checked))
        except asyncio.CancelledError:
            if name is None:  # nobody will ever know this id
                self._box.take_back(self._client.paths.job(job))
            raise
        return TrainingJob(self._client, self._box, self._plane, job, czxid, chosen.left_out)

    async def check(self, model: str, dataset: str | Dataset, **terms: Unpack[Terms]) -> tuple[Job, Chosen]:
        """What `train` would drop, and the columns that it is about. Raises what that would raise."""
        text = dataset if isinstance(dataset, str) else f"{dataset.name}@{dataset.version}"
        job = job_of(model, text, terms, whoami())
        try:
            manifest = (await self._client.datasets.open(text)).manifest
        except DatasetNotFound as error:
            raise DatasetNotFound(f"{error}; {await self._there_is(text.partition('@')[0])}") from None
        return job, check(job, manifest)

    async def get(self, name: JobId) -> TrainingJob:
        """The job of this id, whoever dropped it. Raises `JobNotFound`."""
        try:
            found = await self._box.read(self._client.paths.job(name)) if is_name(name) else None
        except NoNode:
            found = None
        if found is None:
            raise JobNotFound(f"there is no job {name} below {self._client.paths.root}")
        return TrainingJob(self._client, self._box, self._plane, name, found.stat.czxid)

    async def names(self) -> list[JobId]:
        """The ids of all jobs that are there."""
        give_up = time.monotonic() + OUTAGE_MAX_S
        while True:
            try:
                return sorted(await self._client.session.children(self._client.paths.jobs))
            except NoNode:
                return []
            except NO_ANSWER as error:
                await self._box.catch_up(give_up, error)

    async def list(self) -> dict[JobId, JobStatus]:
        """All jobs that are there, also those that are done: they and their models stay until they are removed."""
        names = await self.names()
        wanted = [path for name in names for path in paths_of(self._client.paths, name)]
        give_up = time.monotonic() + OUTAGE_MAX_S
        while True:
            try:
                found = await self._client.session.get_many(wanted)
                break
            except NO_ANSWER as error:
                await self._box.catch_up(give_up, error)
        seen = (status_of(name, *found[at : at + 3]) for at, name in zip(range(0, len(found), 3), names, strict=True))
        return {status.id: status for status in seen if status is not None}

    async def _there_is(self, name: str) -> str:
        """What to say of a dataset, or of a version, that is not there."""
        there = await self._client.datasets.list()
        if name in there:
            return f"there are the versions {', '.join(map(str, await self._client.datasets.versions(name)))}"
        near = get_close_matches(name, there, n=1)
        return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(there)[:THERE_MAX]) or 'none'}"

    async def _drop(self, name: JobId, text: bytes) -> int:
        """Create the job's znode; its czxid. Accepted when this returns, across lost connections."""
        path = self._client.paths.job(name)
        give_up = time.monotonic() + OUTAGE_MAX_S
        was_sent = False
        while True:
            try:
                await self._box.session.multi([Create(path, text)])
                break
            except MultiFailed as error:
                if isinstance(error.cause, NodeExists):
                    if was_sent and (await self._box.read(path)).data == text:
                        break  # the answer to our first try was lost
                    raise JobExists(f"there is a job {name} already; choose another id, or remove it first") from None
                if not isinstance(error.cause, NoNode):
                    raise error.cause from None
                await ensure_path(self._box.session, self._client.paths.jobs)  # the first job of this root
            except NO_ANSWER as error:
                was_sent = was_sent or isinstance(error, OutcomeUnknown)
                await self._box.catch_up(give_up, error)
        return (await self._box.read(path)).stat.czxid
