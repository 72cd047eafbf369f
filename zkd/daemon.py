"""Composes a node: one TaskGroup that owns everything, from the first connection to the last.

    session --- membership --- election --- dispatcher, reaper, scheduler, steward, sweeper (while leading)
          \\---- executor --- pool of workers        \\--- heartbeat
           \\--- HTTP

`Daemon` runs a node inside anybody's asyncio program and touches neither signals nor logging; `zkd.service`
makes a service of it.

Order of an orderly stop: say so, stand down as leader, take nothing new, let work finish or hand it back,
leave the cluster, close the session. The session outlives the work, or others would do it a second time.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from enum import Enum
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd import log as zkd_log
from zkd.access import policy
from zkd.core import foreign
from zkd.core.admission import Room
from zkd.core.backlog import backlog
from zkd.core.clock import ServerClock
from zkd.credentials import read_auth, serving_context, tls_context
from zkd.endings import Endings
from zkd.errors import BadRecord, BadSettings, NoNode, ResultLost, ZkdError, ZooKeeperError
from zkd.holder.parts import Parts
from zkd.holder.provision import Provision
from zkd.inference import Inference
from zkd.keeping import Keeping
from zkd.manifests import SegmentRef
from zkd.node.dispatcher import Dispatcher
from zkd.node.election import Election, Reign
from zkd.node.executor import Executor
from zkd.node.heartbeat import Heartbeat, memory_bytes
from zkd.node.lookout import Lookout
from zkd.node.membership import Membership
from zkd.node.reaper import Reaper
from zkd.node.scheduler import Scheduler
from zkd.node.steward import Steward
from zkd.node.sweeper import Sweeper
from zkd.overview.recent import curve_of, traffic_of
from zkd.overview.seen import Recent
from zkd.overview.tree import Reader
from zkd.paths import Paths, TaskId, is_name
from zkd.records import BlobRef, Leader, Node, NodeState, NodeStatus, OperatorState, Task
from zkd.registry import FILE_BYTES_MAX, FILES_URL
from zkd.serving import tasks as serving_tasks
from zkd.settings import Settings, address, load, machine_bytes
from zkd.store import BlobStore, CheckpointStore, ConfigFile, DigestFiles, Home, SegmentCache, SegmentStore
from zkd.trainer import Trainer
from zkd.training.answers import Answers
from zkd.training.counters import Counters
from zkd.tuning import Tuning
from zkd.workers import Limits, Outcome, Pool, sandbox
from zkd.zk import Credentials, Event, Session, State, StateChange, end_session
from zkd.zk.batch import Batch

# How long a finished task waits to be published together with others, when many finish. Publishing one by one
# costs the server a synced write each.
LINGER_S = 0.003
# So much of its time a leader gives to those who ask why a task waits: it looks at all that waits for each of them.
EXPLAINING_SHARE = 0.05
# What those who look on are told at once. A page that is opened shows so many runs, and lines of the log, of each node.
RUNS_AT_ONCE = 400
LINES_AT_ONCE = 50
LINES_OF_TASK = 500
KERNELS_TOLD = 200
SWEEP_S = 60.0  # how often files of results that are gone are looked for


class Phase(Enum):
    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Daemon:
    """A node. `async with Daemon(settings) as daemon:` runs it until the block ends; leaving it stops in order.

    Entering returns when the node can take work, and raises what kept it from that: `BadSettings`, or
    `Unavailable` when ZooKeeper was not there within `patience_s`; None waits for as long as it takes.
    What stands below ``config/`` in the tree takes the place of defaults, never of what `origins` says that somebody
    gave (`load_with_origins`); without `origins`, never of what is not the default.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        patience_s: float | None = 30.0,
        origins: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = load() if settings is None else settings
        self._origins = origins
        self.name = self.settings.node.name
        self.phase = Phase.STARTING
        self._patience_s = patience_s
        self._log: Log = zkd_log.get(node=self.name)
        self._started = time.monotonic()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._drained = False
        self._state: NodeState = "active"
        self._state_drain: asyncio.Task[None] | None = None
        self._address: str | None = None
        self._explains_from = 0.0
        self._stack = AsyncExitStack()
        self._group: asyncio.TaskGroup | None = None
        self._paths = Paths(self.settings.zookeeper.root)
        self._kernels: list[str] = []
        self._version = version("zkd")
        self.session: Session

    # --- Life -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException as error:
            try:
                await self._stack.__aexit__(type(error), error, error.__traceback__)
            except BaseExceptionGroup as group:
                raise _only_cause(group) from None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self.drain()
        finally:
            self.phase = Phase.STOPPED
            try:
                await self._stack.__aexit__(kind, error, traceback)
            except BaseExceptionGroup as group:
                raise _only_cause(group) from None
            self._log.info("daemon.stopped")

    async def _start(self) -> None:
        stack = self._stack
        self._home = stack.enter_context(Home(self.settings.node.data_dir))
        file = ConfigFile(self.settings.node.data_dir)
        self.tuning = Tuning(self.settings, self._origins, file, self._version, self._log, self._retuned)
        await self.tuning.begin()
        settings = self.settings = self.tuning.settings
        self.on_settings()
        node = settings.node
        store = BlobStore(node.data_dir)
        self._store = store
        self._segments = SegmentStore(node.data_dir)
        self._model_files = DigestFiles(node.data_dir / "models", bytes_max=FILE_BYTES_MAX)
        self._model_files.clear_arrivals()
        self._checkpoints = CheckpointStore(node.data_dir)
        # The HTTP server takes as long to import as the workers take to get warm; they are other processes.
        http = asyncio.get_running_loop().run_in_executor(None, import_module, "zkd.net.server")
        self._pool = await stack.enter_async_context(
            Pool(
                node.slots,
                blob_dir=store.results,
                made_dir=self._segments.made,
                modules=settings.workers.modules,
                limits=Limits(
                    memory=settings.workers.memory,
                    blas_threads=settings.workers.threads,
                    recycle_tasks=settings.workers.recycle_tasks,
                    recycle_age_s=settings.workers.recycle_age_s,
                    writable=_writable(settings),
                ),
                log=self._log,
            )
        )
        self._kernels = sorted(kernel.name for kernel in self._pool.kernels)
        await http
        await self._start_http()
        await self._end_former_session()
        zookeeper = settings.zookeeper
        self.session = await stack.enter_async_context(
            Session(
                zookeeper.hosts,
                timeout_s=zookeeper.session_timeout_s,
                auth=(auth := read_auth(zookeeper)),
                tls=tls_context(zookeeper.tls),
                acl=policy(zookeeper.access, self._paths, is_proved=bool(auth or zookeeper.tls)),
            )
        )
        self._compose()
        stack.callback(self.session.subscribe(self._session_changed))
        self._group = await stack.enter_async_context(_Tasks())
        await self._wait_for_zookeeper()
        for work in (
            self.membership.run(self._joined),
            self.election.run(lambda: self.membership.incarnation, self._lead),
            self.executor.run(),
            self.heartbeat.run(),
            self.keeping.run(),
            self.trainer.run(),
            self.counters.run(),
            self.serving.run(),
            self.tuning.run(self.session),
            self.lookout.run(),
            self._follow_operator(),
            self._sweep(),
        ):
            self._group.create_task(work)
        await self.membership.joined.wait()  # bounded: it joins, or raises and takes the group down
        self.phase = Phase.SERVING
        self.heartbeat.hurry()
        self._log.info("daemon.ready", slots=node.slots, kernels=len(self._kernels), http=self._address)

    def _compose(self) -> None:
        session, paths, name, settings = self.session, self._paths, self.name, self.settings
        boot = os.urandom(4).hex()
        clock = ServerClock()
        endings = Endings(session, paths, Batch(session, linger_s=LINGER_S), self._log)
        self.membership = Membership(session, paths, self._record, boot, self._log)
        data_dir = settings.node.data_dir
        self.keeping = Keeping(
            session,
            paths,
            name,
            self._segments,
            self._model_files,
            data_dir,
            boot,
            lambda: self.membership.incarnation,
            self._token,
            lambda: self.settings.data,
            self._log,
            self._data_tls,
        )
        self.view = self.keeping.view
        atlas, look_up = self.view.atlas, self.view.look
        parts = Parts(atlas, self._segments, look_up, SegmentCache(data_dir), lambda: self.settings.data.stores)
        training = settings.training
        memory = machine_bytes() // 4 if training.memory is None else training.memory
        self.counters = Counters(parts, training.workers or settings.node.slots, memory, self._log)
        self.answers = Answers(self.counters)
        provision = Provision(session, paths, parts, self._fetch_segment)
        self.executor = Executor(
            session,
            paths,
            name,
            self._pool,
            settings.node.slots,
            endings,
            self._store,
            clock,
            self._log,
            self._fetch,
            lambda: self.settings.tasks.timeout_s,
            lambda: self._address,
            self.membership.refresh,
            provision,
            {serving_tasks.KERNEL: self._predict},
        )
        self.trainer = Trainer(
            session,
            paths,
            name,
            self.view,
            self._checkpoints,
            self.answers,
            clock,
            self._token,
            lambda: self.settings.training,
            lambda: self.phase is Phase.SERVING and self._state == "active",
            self.membership.joined,
            self._log,
            self._data_tls,
        )
        serving = settings.serving
        self.serving = Inference(
            session,
            paths,
            name,
            self.keeping.registry,
            self.keeping.model_keeper,
            self.trainer.peers,
            self._token,
            lambda: self.settings.serving,
            machine_bytes() // 8 if serving.memory is None else serving.memory,
            self._not_serving,
            self._log,
            self._data_tls,
        )
        self.election = Election(session, paths, name, clock, self._log, lambda: self.settings.tasks.queue_max)
        self.dispatcher = Dispatcher(
            session, paths, name, endings, clock, self._log, self.executor.feed, self._room, atlas, look_up
        )
        self._stack.callback(self.view.subscribe(self.dispatcher.datasets_changed))
        self.reaper = Reaper(
            session,
            paths,
            clock,
            self._log,
            lambda: self.settings.tasks.result_ttl_s,
            lambda: self.settings.tasks.dead_ttl_s,
            lambda: Room(self.settings.tasks.results_max, self.settings.tasks.results_bytes_max),
        )
        self.scheduler = Scheduler(session, paths, clock, self._log)
        self.sweeper = Sweeper(session, paths, self._log)
        self.steward = Steward(session, paths, self._log, lambda: self.settings.data.grace_s)
        reader = Reader(session, paths, atlas)
        self.lookout = Lookout(session, name, reader, self._recent, self._token, self._log, self._data_tls)
        self.heartbeat = Heartbeat(session, paths, name, clock, self._log, self._status)

    async def _wait_for_zookeeper(self) -> None:
        waited_s = 0.0
        while self._patience_s is None or waited_s < self._patience_s:
            step_s = 1.0 if self._patience_s is None else min(1.0, self._patience_s - waited_s)
            with suppress(ZooKeeperError):
                await self.session.connected(step_s)
                return
            if self.session.state is State.CLOSED:
                break
            waited_s += step_s
            self._log.info("zookeeper.awaited", hosts=self.settings.zookeeper.hosts, waited_s=waited_s)
            self.on_waiting(waited_s)
        await self.session.connected(0.01)

    def on_waiting(self, waited_s: float) -> None:
        """ZooKeeper has not been there for so long. A service tells its supervisor."""

    async def drain(self) -> None:
        """Take no new work, finish or hand back what there is, leave the cluster. Twice does nothing more."""
        if self._drained:
            return
        self._drained = True
        self.phase = Phase.STOPPING
        self._log.info("daemon.draining", running=len(self.executor.running()), queued=self.executor.queued())
        assert self._group is not None
        self.membership.refresh()
        drain = self._group.create_task(self._drain())
        cut = self._group.create_task(self._stop_now.wait())
        await asyncio.wait({drain, cut}, return_when=asyncio.FIRST_COMPLETED)
        drain.cancel()
        cut.cancel()

    async def _drain(self) -> None:
        await self.election.resign()
        await self.trainer.drain()
        self.answers.close("the node stops")
        await self.executor.drain(self.settings.node.drain_timeout_s)
        await self.serving.drain(self.settings.node.drain_timeout_s)
        await self.executor.hand_back_strays()
        await self.heartbeat.remove()

    async def run(self) -> None:
        """Serve until `stop` is called. Use inside ``async with``."""
        await self._stop.wait()  # unbounded: that is what a daemon is for

    def stop(self, *, now: bool = False) -> None:
        """Stop in order; `now`: without waiting for running tasks, which others will run again."""
        self._stop.set()
        if now:
            self._stop_now.set()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    def apply(self, settings: Settings, origins: Mapping[str, str] | None = None) -> list[str]:
        """Take over what the machine says now, as far as it may change while it runs; gives the changed keys that need
        a restart."""
        return self.tuning.reload(settings, origins)

    def _retuned(self) -> None:
        self.settings = self.tuning.settings
        self.heartbeat.hurry()
        self.election.look()
        self.on_settings()

    def on_settings(self) -> None:
        """`settings` are others now, or news of them were refused. A service has its log follow."""

    # --- Parts ------------------------------------------------------------------------------------------

    async def _lead(self, reign: Reign) -> None:
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(self.reaper.run(reign.check, self._ended, self._is_wanted)),
                group.create_task(self.scheduler.run(reign.session_id, reign.check)),
                group.create_task(self.steward.run(reign.session_id, reign.epoch, reign.check)),
                group.create_task(self.sweeper.run(reign.check)),
            ]
            try:
                await self.dispatcher.lead(reign.session_id, reign.epoch, reign.check)
            finally:
                self.executor.unfed()
                for work in beside:
                    work.cancel()

    def _room(self) -> Room:
        tasks = self.settings.tasks
        return Room(tasks.queue_max, tasks.queue_bytes_max)

    def _ended(self) -> dict[str, float | None]:
        mind = self.dispatcher.mind
        return {} if mind is None else mind.ended

    def _is_wanted(self, task_id: TaskId) -> bool:
        mind = self.dispatcher.mind
        return mind is None or mind.wants(task_id)  # while it loads, nobody knows

    def _joined(self, incarnation: str, session_id: int) -> None:
        self.executor.joined(incarnation, session_id)
        credentials = self.session.credentials
        if credentials is not None:
            try:
                self._home.remember_session(self._cluster, credentials.session_id, credentials.password)
            except OSError as error:  # a full disk, say; then a successor waits for this session's end
                self._log.warning("session.not_remembered", error=str(error))

    def _session_changed(self, change: StateChange) -> None:
        self._log.info("session.changed", state=change.state.name.lower(), session=f"{change.session_id:#x}")
        if change.state in (State.EXPIRED, State.CLOSED):
            self.executor.left()

    def _record(self, incarnation: str) -> Node:
        node = self.settings.node
        return Node(
            node=node.name,
            incarnation=incarnation,
            slots=node.slots,
            labels=node.labels,
            zone=node.zone,
            memory=memory_of(self.settings),
            address=self._address,
            host=platform.node(),
            pid=os.getpid(),
            version=self._version,
            draining=self.phase is Phase.STOPPING or self._state == "draining",
            weight=self.settings.data.weight,
            data=str(node.data_dir / "segments"),
            kernels=self._kernels,
            missed=list(self.executor.missed),
        )

    def _status(self) -> NodeStatus | None:
        incarnation = self.membership.incarnation
        if incarnation is None or self._drained:
            return None
        return NodeStatus(
            node=self.name,
            incarnation=incarnation,
            state=self._state,
            slots=self.settings.node.slots,
            slots_used=self.executor.slots_used,
            queued=self.executor.queued(),
            running=self.executor.running(),
            done=self.executor.tally.done,
            failed=self.executor.tally.failed,
            memory_bytes=memory_bytes(),
            load_1m=round(os.getloadavg()[0], 2),
            uptime_s=round(time.monotonic() - self._started, 1),
            loop_lag_s=round(self.heartbeat.lag_s, 4),
            published_at=datetime.now(UTC).isoformat(timespec="seconds"),
            config=self.tuning.standing(),
        )

    async def _follow_operator(self) -> None:
        """Do what ``control/nodes/<node>`` says: active, draining, cordoned."""
        path = self._paths.node_state(self.name)
        wake = asyncio.Event()
        wake.set()

        def saw(_: Event | StateChange) -> None:
            wake.set()

        unsubscribe = self.session.subscribe(saw)
        try:
            await self.membership.joined.wait()
            while True:
                await wake.wait()
                wake.clear()
                if self.session.state is not State.CONNECTED:
                    continue
                try:
                    wanted: NodeState = "active"
                    if await self.session.exists(path, watch=saw) is not None:
                        wanted = codec.decode((await self.session.get(path)).data, OperatorState).state
                except NoNode:
                    continue
                except BadRecord as error:
                    self._log.warning("node.state_unreadable", error=str(error))
                    continue
                except ZooKeeperError as error:
                    self._log.info("node.state_not_read", error=str(error))
                    continue
                if wanted != self._state:
                    self._become(wanted)
        finally:
            unsubscribe()

    def _become(self, wanted: NodeState) -> None:
        self._log.info("node.state_changed", old=self._state, new=wanted)
        self._state = wanted
        self.membership.refresh()
        self.trainer.office.look()
        if self._drained:
            return
        if self._state_drain is not None:
            self._state_drain.cancel()  # the next word of the operator counts at once
            self._state_drain = None
        if wanted == "draining":
            self.trainer.office.hand_over()
            assert self._group is not None
            self._state_drain = self._group.create_task(self.executor.drain(self.settings.node.drain_timeout_s))
        else:
            self.executor.resume()

    async def _fetch(self, ref: BlobRef) -> str:
        """The path of a local file with this blob, fetched from another node if need be."""
        here = self._store.find(ref.blob)
        if here is not None:
            return str(here)
        from zkd.net.fetch import opened, session

        tried = []
        async with session(self._data_tls) as http:
            for node in ref.nodes:
                # The address is what that node itself says, not what the task says: a task must not make us
                # knock at other doors.
                url = await self._blob_url(node, ref.blob)
                if url is None:
                    tried.append(f"{node} is not here")
                    continue
                try:
                    async with opened(http, url) as chunks:
                        return str(await self._store.receive(ref.blob, ref.size, ref.format, chunks))
                except ResultLost as error:
                    tried.append(f"{node}: {error}")
        raise ResultLost(f"blob {ref.blob}: {'; '.join(tried) or 'no node serves it over HTTP'}")

    async def _fetch_segment(self, ref: SegmentRef, nodes: Sequence[str]) -> None:
        """Bring a segment here at once, for a task that waits for it. Raises `DataUnavailable`, `OSError`."""
        from zkd.net.fetch import session
        from zkd.net.segments import fetch

        addresses = [found for node in nodes if node != self.name and (found := await self._address_of(node))]
        async with session(self._data_tls) as http:
            await fetch(http, addresses, self.membership.token or "", ref, self._segments)

    async def _blob_url(self, node: str, blob: str) -> str | None:
        address = await self._address_of(node)
        return None if address is None else f"{address}/v1/blobs/{blob}"

    async def _address_of(self, node: str) -> str | None:
        """Of its data plane, as that node itself says."""
        if not is_name(node):
            return None
        try:
            return codec.decode((await self.session.get(self._paths.node(node))).data, Node).address
        except (ZooKeeperError, BadRecord):
            return None

    async def _sweep(self) -> None:
        """Remove the files of results that are no longer in the tree."""
        while True:
            await asyncio.sleep(SWEEP_S)
            if self.session.state is not State.CONNECTED:
                continue
            try:
                for task_id, files in self._store.task_ids().items():
                    if await self.session.exists(self._paths.result(task_id)) is not None:
                        continue
                    if self.executor.holds(task_id):
                        continue  # it waits to be published, however old its file is
                    for file in files:
                        self._store.drop(file)
            except ZooKeeperError as error:
                self._log.info("blobs.not_swept", error=str(error))
            except OSError as error:
                self._log.warning("blobs.not_swept", error=str(error))

    # --- HTTP -------------------------------------------------------------------------------------------

    async def _start_http(self) -> None:
        from zkd.net.bringing import bring_routes
        from zkd.net.checkpoint_routes import checkpoint_routes
        from zkd.net.dashboard import dashboard_routes, is_loopback, recent_routes
        from zkd.net.file_routes import file_routes
        from zkd.net.job_routes import job_routes
        from zkd.net.predict_routes import predict_routes
        from zkd.net.round_routes import round_routes
        from zkd.net.server import serve

        host, port = address(self.settings.node.http)
        tls = serving_context(self.settings.node.tls)
        self._data_tls = tls_context(self.settings.node.tls, section="node.tls")
        try:
            port = await self._stack.enter_async_context(
                serve(
                    host,
                    port,
                    self._store,
                    self._token,
                    self._not_ready,
                    self._samples,
                    self._why,
                    self._segments,
                    lambda *asked: self.keeping.rows(*asked),  # made later; until then nobody has the token
                    tls,
                    lambda expect: [
                        *bring_routes(self._segments, self._fetch_segment, expect),
                        *file_routes(
                            FILES_URL, lambda _: self._model_files, expect, foreign.of_bytes, foreign.HEAD_BYTES
                        ),
                        *checkpoint_routes(self._checkpoints, expect),
                        *job_routes(lambda *asked: self.trainer.follow(*asked), expect),
                        *predict_routes(
                            lambda *asked: self.serving.predict_body(*asked),
                            lambda ref: self.serving.describe(ref),
                            lambda *asked: self.serving.ensembles.answer(*asked),
                            expect,
                        ),
                        *round_routes(lambda *caller: self.answers.receive(*caller), expect),
                        *recent_routes(lambda *asked: codec.encode(self._recent(*asked)), expect),
                        *dashboard_routes(
                            lambda: self.lookout.latest(),
                            lambda: self.lookout.follow(),
                            lambda: None if self.phase is Phase.STARTING else self.settings.node.dashboard,
                            self._token,
                            is_local=is_loopback(host),
                        ),
                    ],
                )
            )
        except OSError as error:
            raise BadSettings(f"node.http: cannot listen on {self.settings.node.http}: {error.strerror}") from None
        if host in ("0.0.0.0", "::"):
            host = platform.node()
        self._address = f"http{'' if tls is None else 's'}://{f'[{host}]' if ':' in host else host}:{port}"

    def _token(self) -> str | None:
        return self.membership.token if self.phase is not Phase.STARTING else None

    async def _predict(self, task: Task, task_id: TaskId, timeout_s: float) -> Outcome:
        """What came of a task for the model server."""
        return await serving_tasks.predict(
            self.serving.predict, self._store.results, self._fetch, task, task_id, timeout_s
        )

    def _not_serving(self) -> str | None:
        """Why this node answers no requests for predictions."""
        if self.phase is not Phase.SERVING:
            return f"the node is {self.phase.value}"
        return "the node is being drained" if self._state == "draining" else None

    async def _why(self, task_id: str) -> tuple[str | None, str | None]:
        """What the leader knows of a task's waiting, None if it has no time for that; or who leads, if we do not."""
        mind, now = self.dispatcher.mind, time.monotonic()
        if self.election.reign is None:
            try:
                return "", codec.decode((await self.session.get(self._paths.leader)).data, Leader).node
            except (ZooKeeperError, BadRecord):
                return "", "nobody"
        if mind is None or now < self._explains_from:
            return None, None
        words = mind.why(task_id, asyncio.get_running_loop().time())
        self._explains_from = now + (time.monotonic() - now) / EXPLAINING_SHARE
        return words, None

    def _not_ready(self) -> str | None:
        if self.phase is not Phase.SERVING:
            return str(self.phase.value)
        if self.session.state is not State.CONNECTED:
            return f"the ZooKeeper session is {self.session.state.name.lower()}"
        if self._pool.degraded:
            return "worker processes do not start"
        return None if self._state == "active" else str(self._state)

    def _samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        node = self.settings.node
        yield "zkd_build_info", {"version": self._version, "node": node.name}, 1
        yield "zkd_uptime_seconds", {}, time.monotonic() - self._started
        yield "zkd_resident_memory_bytes", {}, memory_bytes()
        if self.phase is Phase.STARTING:
            return
        for state in State:
            yield "zkd_zk_session_state", {"state": state.name.lower()}, float(self.session.state is state)
        yield "zkd_leader", {}, float(self.election.reign is not None)
        yield "zkd_slots", {}, node.slots
        yield "zkd_slots_used", {}, self.executor.slots_used
        yield "zkd_tasks_queued", {}, self.executor.queued()
        mind = self.dispatcher.mind
        if mind is not None:  # while this node leads
            yield "zkd_leader_tasks", {}, mind.admission.total.tasks
            yield "zkd_leader_task_bytes", {}, mind.admission.total.size
            for what, size in self.dispatcher.sizes().items():
                yield "zkd_leader_size", {"of": what}, size
            yield "zkd_leader_size", {"of": "results"}, self.reaper.known
            yield "zkd_tasks_refused_total", {}, mind.admission.refused
        yield "zkd_loop_lag_seconds", {}, self.heartbeat.lag_s
        schedules, malformed = self.scheduler.schedules()
        yield "zkd_schedules", {}, schedules
        yield "zkd_schedules_malformed", {}, malformed
        yield "zkd_schedule_slots_total", {"outcome": "fired"}, self.scheduler.fired
        yield "zkd_schedule_slots_total", {"outcome": "skipped"}, self.scheduler.skipped
        yield from self.tuning.samples()
        yield from self.steward.samples()
        yield from self.keeping.samples()
        yield from self.trainer.samples()
        yield from self.counters.samples()
        yield from self.serving.samples()
        yield from self.executor.tally.samples()
        yield from self.lookout.samples()

    def _recent(self, runs: int, lines: int, task: str | None) -> Recent:
        """What only this node knows, beyond these numbers; of one task, if it is said which."""
        tally, now = self.executor.tally, asyncio.get_running_loop().time()
        told, last = zkd_log.recent(self.name, lines, LINES_AT_ONCE if task is None else LINES_OF_TASK, task)
        if task is not None:
            return Recent(node=self.name, runs=tally.of(task), lines=told)
        mind = self.dispatcher.mind
        return Recent(
            node=self.name,
            incarnation=self.membership.incarnation or "",
            runs=tally.after(runs, RUNS_AT_ONCE),
            runs_last=tally.last,
            lines=told,
            lines_last=last,
            kernels=[(kernel, status, count) for (kernel, status), count in tally.by_kernel.items()][:KERNELS_TOLD],
            backlog=backlog(mind, now) if mind is not None and self.election.reign is not None else None,
            curves={job: curve_of(rounds) for job, rounds in self.trainer.told().items()},
            traffic=traffic_of(self._samples()),
        )

    async def _end_former_session(self) -> None:
        """End the session of our former life, so that its entry in nodes/ does not outlive it by a timeout."""
        zookeeper = self.settings.zookeeper
        former = self._home.former_session(self._cluster)
        if former is None:
            return
        try:
            was_alive = await end_session(
                zookeeper.hosts, Credentials(*former), auth=read_auth(zookeeper), tls=tls_context(zookeeper.tls)
            )
        except ZkdError as error:
            self._log.info("session.former_not_ended", error=str(error))
            return
        self._home.forget_session()
        self._log.info("session.former_ended", was_alive=was_alive)

    @property
    def _cluster(self) -> str:
        return f"{self.settings.zookeeper.hosts}{self.settings.zookeeper.root}"


def _writable(settings: Settings) -> tuple[Path, ...] | None:
    """Where kernels may change files; None: they are not shut in."""
    if not settings.workers.sandbox:
        return None
    if not sandbox.version():
        raise BadSettings("workers.sandbox: this kernel has no Landlock, or a filter of system calls forbids it")
    return tuple(settings.workers.writable)


class _Tasks(asyncio.TaskGroup):
    """A group whose long-lived tasks end with its block, not the block with them."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in list(self._tasks):
            task.cancel()
        await super().__aexit__(kind, error, traceback)


def memory_of(settings: Settings) -> int | None:
    """Bytes for all kernels of this node together, if anybody has said."""
    node, workers = settings.node, settings.workers
    if node.memory is None and workers.memory is not None:
        return node.slots * workers.memory
    return node.memory


def _only_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error inside nested groups, so that people can catch it by its name; the group if there are more."""
    causes = list(_leaves(group))
    return causes[0] if len(causes) == 1 else group


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
