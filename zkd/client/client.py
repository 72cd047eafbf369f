"""What a program imports: `async with zkd.Client(hosts) as client: await client.run("numpy.sum", [1, 2, 3])`.

A client is one ZooKeeper session and nothing else: no server of its own, no threads, no event loop policy. It
reads the same tree that zkCli.sh shows and writes only what any other client could write. Work with the tree
that has no method here goes through `client.session`, the raw ZooKeeper session.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from zkd import codec
from zkd.access import policy
from zkd.client import asking
from zkd.client.again import retry
from zkd.client.calls import Calls, TaskOptions
from zkd.client.central import CentralSettings
from zkd.client.config import Config
from zkd.client.datasets import Datasets
from zkd.client.desired import change, say, unsay, whoami
from zkd.client.dropbox import OUTAGE_MAX_S, DropBox
from zkd.client.handles import Handle
from zkd.client.jobs import Jobs
from zkd.client.models import Models
from zkd.client.outcomes import Blobs
from zkd.client.outstanding import NO_ANSWER
from zkd.client.plane import Plane
from zkd.client.predictions import Predictions
from zkd.client.predictor import Predictor
from zkd.client.room import told
from zkd.client.schedules import Scheduled, When, paused_text, scheduled
from zkd.client.training_job import TrainingJob
from zkd.client.uploads import Uploads
from zkd.errors import BadRecord, NoNode, Overloaded, TaskNotFound, Unavailable, ZooKeeperError
from zkd.paths import DEFAULT_ROOT, JobId, NodeId, Paths, TaskId
from zkd.records import (
    Claimant,
    Dead,
    Leader,
    Limit,
    Node,
    NodeState,
    NodeStatus,
    OperatorState,
    Result,
    ScheduleState,
    Task,
)
from zkd.zk import Session
from zkd.zk.recipes import Recipes

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
    from types import TracebackType

    from zkd.client.dataset import Dataset
    from zkd.client.terms import Terms
    from zkd.settings import Access
    from zkd.zk import Znode

DEFAULT_HOSTS = "127.0.0.1:2181"
CONNECT_TIMEOUT_S = 10.0
SLOTS_KNOWN_FOR_S = 5.0
RECIPES = (
    *("lock", "rwlock", "semaphore", "election", "party"),
    *("barrier", "double_barrier", "counter", "queue"),
)

T = TypeVar("T")


class Client:
    """A connection to the cluster below `root`, for as long as its ``async with`` block.

    `hosts` is ``host:port,host:port``; by default $ZKD_HOSTS, else a ZooKeeper on this machine. Entering waits
    up to `connect_timeout_s` for a connection and raises `Unavailable` if there is none. Later failures of
    servers and connections are bridged: a call goes on when the connection is back. `submitter` names whose tasks
    these are, for taking turns with others'. `tls` is for ZooKeeper, `data_tls` for what goes to nodes by HTTP;
    `access` says with which ACLs znodes are made (docs/security.md).
    """

    def __init__(
        self,
        hosts: str | None = None,
        root: str = DEFAULT_ROOT,
        *,
        submitter: str | None = None,
        session_timeout_s: float = 6.0,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        auth: Sequence[tuple[str, bytes]] = (),
        tls: ssl.SSLContext | None = None,
        data_tls: ssl.SSLContext | None = None,
        access: Access | None = None,
    ) -> None:
        self.hosts = hosts or os.environ.get("ZKD_HOSTS") or DEFAULT_HOSTS
        self.paths = Paths(root)
        self.data_tls = data_tls
        self.session_timeout_s = session_timeout_s  # as asked for; `session.timeout_s` is what the server gave
        acl = policy(access, self.paths, is_proved=bool(auth or tls))
        self.session = Session(self.hosts, timeout_s=session_timeout_s, auth=auth, tls=tls, acl=acl)
        self._submitter = submitter
        self._connect_timeout_s = connect_timeout_s
        self._stack = AsyncExitStack()
        self._slots = (0, 0.0)  # of the cluster, and when that was read

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What `__aenter__` makes is missing before it: say so, not which of our attributes it was."""
            made = (
                "_calls",
                "_box",
                "_blobs",
                "datasets",
                "jobs",
                "models",
                "config",
                "settings",
                "_predictions",
                "sync",
            )
            if name in (*made, *RECIPES):
                raise RuntimeError("this zkd.Client is not connected: use it inside `async with zkd.Client(...)`")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.session)
            try:
                await self.session.connected(self._connect_timeout_s)
            except Unavailable as error:
                raise Unavailable(None, f"{self.hosts}: {error.detail}") from None
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._box = DropBox(self.session, self.paths, tasks)
            self._blobs = Blobs(self.data_tls)
            uploads = Uploads(self._blobs, self.nodes, self._token)
            whose = TaskOptions() if self._submitter is None else TaskOptions(submitter=self._submitter)
            self._calls = Calls(self._box, self._blobs, uploads, self.slots, whose)
            keeper = tasks.create_task(self._box.outstanding.keep(), name="zkd client keeper")
            stack.callback(keeper.cancel)
            stack.callback(self.session.subscribe(self._box.outstanding.on_state))
            plane = Plane(self)
            self.datasets = Datasets(self, self._box, plane)
            self.jobs = Jobs(self, self._box, plane)
            self.models = Models(self, self._box, plane)
            self.config = Config(self, self._box)
            self.settings = CentralSettings(self, self._box)
            self._predictions = Predictions(self, self._box, plane, self._calls, uploads)
            self._offer(Recipes(self.session, self.paths, tasks, Claimant(whoami(), os.getpid())))
            stack.callback(self.sync.close)
            stack.push_async_callback(plane.close)
            stack.push_async_callback(self._blobs.close)
            stack.push_async_callback(self._box.close)
            stack.callback(self._box.outstanding.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _offer(self, recipes: Recipes) -> None:
        """Locks and the like, under the names that `Recipes` explains; docs/synchronisation.md has a table of them."""
        self.sync = recipes
        self.lock, self.rwlock, self.semaphore = recipes.lock, recipes.rwlock, recipes.semaphore
        self.election, self.party = recipes.election, recipes.party
        self.barrier, self.double_barrier = recipes.barrier, recipes.double_barrier
        self.counter, self.queue = recipes.counter, recipes.queue

    # --- kernels ------------------------------------------------------------------------------------

    def options(self, **options: Any) -> Calls:
        """`run`, `submit`, `map`, `imap` and `map_parts` with these task options (`TaskOptions` lists them)."""
        return self._calls.options(**options)

    async def run(self, kernel: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run a kernel on some node and return its value. See `Calls.run`."""
        return await self._calls.run(kernel, *args, **kwargs)

    async def submit(self, kernel: str, /, *args: Any, **kwargs: Any) -> Handle:
        """Drop a task and return its handle as soon as it is accepted. See `Calls.submit`."""
        return await self._calls.submit(kernel, *args, **kwargs)

    async def map(
        self, kernel: str, items: Iterable[Any], /, *args: Any, chunk: int | None = None, **kwargs: Any
    ) -> list[Any]:
        """[kernel(item, *args, **kwargs) for item in items], in order, many items to a task. See `Calls.map`."""
        return await self._calls.map(kernel, items, *args, chunk=chunk, **kwargs)

    def imap(
        self, kernel: str, items: Iterable[Any] | AsyncIterable[Any], /, *args: Any, chunk: int = 1, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """The values of a stream of items, in order, as they come. See `Calls.imap`."""
        return self._calls.imap(kernel, items, *args, chunk=chunk, **kwargs)

    async def map_parts(
        self,
        kernel: str,
        dataset: str | Dataset,
        /,
        *args: Any,
        columns: Sequence[str] | None = None,
        parts: Iterable[int] | None = None,
        combine: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """The values of a kernel for each part of a dataset, in order, or combined. See `Calls.map_parts`."""
        return await self._calls.map_parts(
            kernel, dataset, *args, columns=columns, parts=parts, combine=combine, **kwargs
        )

    async def train(
        self, model: str, dataset: str | Dataset, *, name: JobId | None = None, **terms: Unpack[Terms]
    ) -> TrainingJob:
        """Drop a training job and return as soon as it is accepted. See `Jobs.train`."""
        return await self.jobs.train(model, dataset, name=name, **terms)

    async def predict(self, model: Any, dataset: str | Dataset, *, out: str, **options: Any) -> Dataset:
        """Make a dataset of what a model says of another one. See `Predictions.predict`."""
        return await self._predictions.predict(model, dataset, out=out, **options)

    async def evaluate(self, model: Any, dataset: str | Dataset) -> dict[str, Any]:
        """How good a model is on a dataset. See `Predictions.evaluate`."""
        return await self._predictions.evaluate(model, dataset)

    def predictor(self, model: str | Sequence[str], **options: Any) -> Predictor:
        """Answers of a served model within a deadline, inside ``async with client.predictor("iris@live") as p``.

        `model` is NAME, NAME@VERSION or NAME@ALIAS, or a list of those whose answers are combined: `combine` is "mean",
        "weighted" (by `weights`) or "vote", and a `quorum` of them is enough. `deadline_s` bounds each request, 1 s by
        default; `hedge=False` asks no second node for what is merely late. `want` and `missing` are defaults of its
        requests, `cache_bytes` remembers so much of answers, `at_once` bounds what is on its way. See `Predictor`.
        """
        return Predictor(self, model, **options)

    async def drop(self, task: Task | bytes) -> Handle:
        """Drop a task that is ready made, as a record or as JSON. Raises `BadRecord` if it is none."""
        text = codec.encode(task) if isinstance(task, Task) else task
        codec.decode_task(text)
        name = self._box.new_id()
        return Handle(self._box, self._blobs, name, await self._box.drop(name, text))

    async def check_room(self) -> bool:
        """Whether so much waits already that a task dropped now may be refused; raises `Overloaded` if it will be.

        Calls that drop many hold back by themselves. This is for who drops one and goes away.
        """
        queued, limit = await self._box.room.queued_and_limit()
        if limit and queued >= limit:
            raise Overloaded(told(queued, limit), kind="overloaded")
        return bool(limit) and queued >= limit // 2

    # --- tasks by id --------------------------------------------------------------------------------

    def handle(self, task: TaskId) -> Handle:
        """The handle of a task that anyone submitted. Nothing is read until it is used."""
        return Handle(self._box, self._blobs, task)

    async def result(self, task: TaskId, timeout: float | None = None) -> Any:
        """The value of a task, waiting up to `timeout` seconds. See `Handle.result`."""
        return await self.handle(task).result(timeout)

    async def cancel(self, task: TaskId) -> bool:
        """Cancel a task. True: it will not end otherwise. False: it had ended, or there is none."""
        return await self.handle(task).cancel()

    async def retry(self, task: TaskId) -> None:
        """Put a dead task back into the drop box, with all its attempts before it. Raises `TaskNotFound`."""
        await retry(self._box, task)

    async def why(self, task: TaskId) -> str:
        """In words, what a task waits for or how it ended, or when a schedule fires next. Raises `TaskNotFound`."""
        text = await asking.why(self, self._box, task)
        if not text:
            raise TaskNotFound(f"there is neither task nor result {task} below {self.paths.root}")
        return text

    # --- what is there ------------------------------------------------------------------------------

    async def tasks(self) -> list[TaskId]:
        """The ids in the drop box: waiting or running."""
        return await self._names(self.paths.tasks)

    async def results(self) -> list[TaskId]:
        """The ids whose result is kept."""
        return await self._names(self.paths.results)

    async def dead(self) -> list[TaskId]:
        """The ids of the tasks whose attempts are used up."""
        return await self._names(self.paths.dead)

    async def task(self, task: TaskId) -> Task:
        """A task in the drop box, as it was dropped. Raises `TaskNotFound`, `BadRecord`."""
        try:
            return codec.decode_task((await self._box.read(self.paths.task(task))).data)
        except NoNode:
            raise TaskNotFound(f"there is no task {task} below {self.paths.root}") from None

    async def outcome(self, task: TaskId) -> Result | None:
        """The result of a task whatever its status, or None if it has none."""
        return await self._maybe(self.paths.result(task), Result)

    async def dead_task(self, task: TaskId) -> Dead | None:
        """A dead task with its history, or None."""
        return await self._maybe(self.paths.dead_task(task), Dead)

    async def nodes(self) -> dict[NodeId, Node]:
        """The nodes that are here now."""
        return await self.records(self.paths.nodes, Node)

    async def read(self, path: str) -> Znode:
        """What stands at `path`, waiting for a connection if need be. Raises `NoNode`."""
        return await self._box.read(path)

    async def _token(self) -> str:
        return (await self._box.read(self.paths.token)).data.decode()

    async def statuses(self) -> dict[NodeId, NodeStatus]:
        """The last heartbeat of each node, also of those that have gone."""
        return await self.records(self.paths.statuses, NodeStatus)

    async def node_states(self) -> dict[NodeId, OperatorState]:
        """The states that operators have set."""
        return await self.records(self.paths.node_states, OperatorState)

    async def leader(self) -> Leader | None:
        """Who leads, if anyone does now."""
        return await self._maybe(self.paths.leader, Leader)

    async def slots(self) -> int:
        """The slots of all nodes together, known to be right within a few seconds."""
        slots, read_at = self._slots
        if read_at == 0.0 or time.monotonic() - read_at > SLOTS_KNOWN_FOR_S:
            slots = sum(node.slots for node in (await self.nodes()).values())
            self._slots = (slots, time.monotonic())
        return slots

    # --- what is wanted -----------------------------------------------------------------------------

    async def set_node_state(self, node: NodeId, state: NodeState, *, reason: str = "") -> None:
        """Have a node drained, cordoned or active again; remembered also while the node is away."""
        await say(self._box, self.paths.node_state(node), codec.encode(OperatorState(state, whoami(), reason)))

    async def limits(self) -> dict[str, Limit]:
        """How much of which kernel's work the cluster takes on."""
        return await self.records(self.paths.limits, Limit)

    async def set_limit(
        self,
        kernel: str,
        *,
        per_s: float | None = None,
        burst: int | None = None,
        at_once: int | None = None,
        reason: str = "",
    ) -> None:
        """Bound the starts of a kernel a second, and the runs of it at once, over the whole cluster."""
        text = codec.encode(Limit(per_s, burst, at_once, whoami(), reason))
        codec.decode(text, Limit)  # a bad bound is an error of this line
        await say(self._box, self.paths.limit(kernel), text)

    async def unset_limit(self, kernel: str) -> bool:
        """Lift the limit of a kernel; whether there was one."""
        return await unsay(self._box, self.paths.limit(kernel))

    async def schedule(self, name: str, when: When, kernel: str, /, *args: Any, **kwargs: Any) -> None:
        """Have a task dropped again and again, from the next slot on. See `Calls.schedule`."""
        await self._calls.schedule(name, when, kernel, *args, **kwargs)

    async def unschedule(self, name: str) -> bool:
        """End a schedule; whether there was one. What it dropped goes on."""
        return await unsay(self._box, self.paths.schedule(name))

    async def pause_schedule(self, name: str, *, is_paused: bool = True) -> None:
        """Pause a schedule, or let it fire again. Raises `NoNode`, `BadRecord`."""
        await change(self._box, self.paths.schedule(name), lambda text: paused_text(text, is_paused))

    async def schedules(self) -> dict[str, Scheduled]:
        """The recurring tasks: when each is due next, what it did so far, why it does not fire."""
        names = await self._names(self.paths.schedules)
        return {name: seen for name in names if (seen := await self.scheduled(name)) is not None}

    async def scheduled(self, name: str) -> Scheduled | None:
        """One recurring task, or None."""
        try:
            found = await self._box.read(self.paths.schedule(name))
        except NoNode:
            return None
        try:
            state = await self._maybe(self.paths.schedule_state(name), ScheduleState)
        except BadRecord:
            state = None
        return scheduled(name, found.data, found.stat.mtime, found.stat.czxid, state)

    # --- reading ------------------------------------------------------------------------------------

    async def _maybe(self, path: str, kind: type[T]) -> T | None:
        try:
            return codec.decode((await self._box.read(path)).data, kind)
        except NoNode:
            return None

    async def _names(self, path: str) -> list[str]:
        give_up = time.monotonic() + OUTAGE_MAX_S
        while True:
            try:
                return sorted(await self.session.children(path))
            except NoNode:
                return []
            except NO_ANSWER as error:
                await self._box.catch_up(give_up, error)

    async def records(self, directory: str, kind: type[T]) -> dict[str, T]:
        """Every record below `directory`; what went meanwhile, or is no such record, is left out."""
        names = await self._names(directory)
        give_up = time.monotonic() + OUTAGE_MAX_S
        while True:
            try:
                znodes = await self.session.get_many([f"{directory}/{name}" for name in names])
                break
            except NO_ANSWER as error:
                await self._box.catch_up(give_up, error)
        found: dict[str, T] = {}
        for name, znode in zip(names, znodes, strict=True):
            if not isinstance(znode, ZooKeeperError):
                try:
                    found[name] = codec.decode(znode.data, kind)
                except BadRecord:
                    continue
        return found
