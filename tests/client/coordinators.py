"""Coordinators of training jobs, as far as a client sees them, under the test's control.

Each is a node with a real HTTP server. What it says of a job it says as docs/protocol.md has it: an ephemeral znode,
the state by compare-and-set, a stream of rounds, and the file of the model by its digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
from aiohttp import web
from blake3 import blake3

from zkd.codec import decode, encode
from zkd.jobs import Coordinator, FileRef, Job, JobState, Progress, Round, Summary
from zkd.manifests import Column, Head, Manifest, SegmentRef
from zkd.paths import Paths
from zkd.records import Node
from zkd.zk import Create, Delete, Session, ensure_path

TOKEN = "secret"
SEGMENTS = encode([[SegmentRef("0" * 64, 150, 6000)]])
IRIS = Manifest(
    name="iris",
    version=1,
    parts=1,
    replicas=1,
    rows=150,
    size=6000,
    chunks=[blake3(SEGMENTS).hexdigest()],
    label="species",
    columns=[Column("length", "<f8"), Column("width", "<f8"), Column("name", "<U9"), Column("species", "<i8")],
)


@dataclass
class Office:
    """One node's knowledge of a job."""

    rounds: list[Round] = field(default_factory=list)
    is_closed: bool = False  # the stream ends after what is there
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, *rounds: Round) -> None:
        self.rounds += rounds
        self.news.set()

    def close(self) -> None:
        self.is_closed = True
        self.news.set()


class CoordinatorNode:
    def __init__(self, name: str) -> None:
        self.name = name
        self.address = ""
        self.offices: dict[str, Office] = {}
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.is_silent = False  # takes questions and never answers
        self.tells_all = False  # whatever it is asked for
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/jobs/{job}/rounds", self._rounds)
        app.router.add_get("/v1/checkpoints/{job}/{id}", self._file)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.address = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _rounds(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        self._expect_token(request)
        while self.is_silent:
            await asyncio.sleep(0.01)
        office = self.offices.get(request.match_info["job"])
        if office is None:
            raise web.HTTPNotFound
        after = int(request.query["after"])
        response = web.StreamResponse()
        await response.prepare(request)
        told = 0
        while True:
            office.news.clear()
            for each in office.rounds[told:]:
                if each.number > after or each.ended or self.tells_all:
                    await response.write(encode(each) + b"\n")
            told = len(office.rounds)
            if office.is_closed:
                return response
            await office.news.wait()

    async def _file(self, request: web.Request) -> web.Response:
        self._expect_token(request)
        data = self.files.get(request.match_info["id"])
        if data is None:
            raise web.HTTPNotFound(text="no such checkpoint on this node\n")
        return web.Response(body=data)

    def _expect_token(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized


class Cluster:
    """Nodes that may coordinate. The test says who does, and what becomes of it."""

    def __init__(self, hosts: str, root: str = "/zkd") -> None:
        self.session = Session(hosts)
        self.paths = Paths(root)
        self.nodes: dict[str, CoordinatorNode] = {}

    async def add(self, *names: str) -> None:
        for name in names:
            node = self.nodes[name] = CoordinatorNode(name)
            await node.start()
            await self.session.create(
                self.paths.node(name), encode(Node(name, "1", 1, address=node.address)), ephemeral=True
            )

    async def keep_iris(self) -> None:
        """A dataset in the tree, of which nobody has a row."""
        paths = self.paths
        for path in (paths.versions("iris"), paths.chunks("iris")):
            await ensure_path(self.session, path)
        await self.session.set(paths.dataset("iris"), encode(Head(1)), -1)
        await self.session.create(paths.version("iris", 1), encode(IRIS))
        await self.session.create(paths.chunk("iris", IRIS.chunks[0]), SEGMENTS)

    async def dropped(self, job: str) -> Job:
        """The job, once it is there."""
        async with asyncio.timeout(5):
            while await self.session.exists(self.paths.job(job)) is None:
                await asyncio.sleep(0.002)
        return decode((await self.session.get(self.paths.job(job))).data, Job)

    async def desired(self, job: str, wish: str) -> None:
        """Until somebody wants this of the job."""
        async with asyncio.timeout(5):
            while decode((await self.session.get(self.paths.job(job))).data, Job).desired != wish:
                await asyncio.sleep(0.002)

    async def take(self, job: str, node: str, *rounds: Round) -> Office:
        """This node takes the job on, from a checkpoint after these rounds."""
        found = await self.session.get(self.paths.job(job))
        office = self.nodes[node].offices[job] = Office()
        office.say(*rounds)
        fence = 1
        if await self.session.exists(self.paths.job_state(job)) is not None:
            fence = (await self.state(job)).fence + 1
        state = JobState(
            czxid=found.stat.czxid,
            terms="0" * 64,
            fence=fence,
            phase="training",
            coordinator=node,
            dataset="iris@1",
            started_ms=found.stat.ctime,
        )
        await ensure_path(self.session, self.paths.job_state(job))
        await self.session.multi(
            [Create(self.paths.coordinator(job), encode(Coordinator(node, fence)), ephemeral=True)]
        )
        await self.session.set(self.paths.job_state(job), encode(state), -1)
        return office

    async def state(self, job: str) -> JobState:
        return decode((await self.session.get(self.paths.job_state(job))).data, JobState)

    async def change(self, job: str, **fields: object) -> None:
        state = await self.state(job)
        await self.session.set(
            self.paths.job_state(job),
            encode(msgspec.structs.replace(state, **fields)),
            -1,  # type: ignore[arg-type]
        )

    async def progress(self, job: str, each: Round) -> None:
        told = Progress(each.number, each.total, each.loss, each.held_loss, each.slope, each.rows_s, each.round_s)
        await self.change(job, progress=told)

    async def lose(self, job: str) -> str:
        """The coordinator is gone: its server, its znodes."""
        node = decode((await self.session.get(self.paths.coordinator(job))).data, Coordinator).node
        await self.nodes[node].stop()
        await self.session.multi([Delete(self.paths.node(node), -1), Delete(self.paths.coordinator(job), -1)])
        return node

    async def end(self, job: str, model: bytes, *holders: str, summary: Summary | None = None) -> None:
        """Done, with a model on these nodes."""
        state = await self.state(job)
        digest = blake3(model).hexdigest()
        for node in holders:
            self.nodes[node].files[digest] = model
        file = FileRef(digest, len(model), list(holders), state.progress.round)
        await self.change(
            job, phase="done", model=file, summary=summary or Summary("tolerance", 3), ended_ms=state.started_ms
        )
        await self._leave(job, "done")

    async def fail(self, job: str, error: str) -> None:
        await self.change(job, phase="failed", error=error)
        await self._leave(job, "failed")

    async def _leave(self, job: str, how: str) -> None:
        znode = await self.session.get(self.paths.coordinator(job))
        office = self.nodes[decode(znode.data, Coordinator).node].offices[job]
        office.say(Round(ended=how))  # type: ignore[arg-type]
        office.close()
        await self.session.delete(self.paths.coordinator(job), -1)


@asynccontextmanager
async def coordinators(hosts: str, *names: str) -> AsyncIterator[Cluster]:
    cluster = Cluster(hosts)
    async with cluster.session:
        await cluster.session.connected(10)
        for path in cluster.paths.skeleton():
            await ensure_path(cluster.session, path)
        await cluster.session.create(cluster.paths.token, TOKEN.encode())
        await cluster.add(*names)
        try:
            yield cluster
        finally:
            for node in cluster.nodes.values():
                await node.stop()


def a_round(number: int, **fields: object) -> Round:
    return Round(number, loss=1.0 / number, total=100.0 / number, slope=10.0**-number, **fields)  # type: ignore[arg-type]
