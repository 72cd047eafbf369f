"""A node's model server: requests for predictions in, answers out, whichever version of a model they are about.

    ask -> the version's file, fetched if need be -> queue (zkd.core.batching) -> process -> answer

The daemon looks at no number: rows go as they came to a process, answers as they come from it to whoever asked. Each
request ends before its deadline, with an answer or with `NotPredicted`. What a process took with it when it ended is
asked once more, of the next one; a request whose process ended twice has failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

from blake3 import blake3
from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.batching import Batch, Batching, Waiting
from zkd.core.loaded import Loaded
from zkd.core.registry import ModelRef, Registered
from zkd.errors import DataUnavailable, NotPredicted
from zkd.registry import ModelVersion
from zkd.serving.lookups import Lookups, Models
from zkd.serving.metrics import Latencies, Metrics
from zkd.serving.replica import Outcome, Replica
from zkd.serving.requests import Request

if TYPE_CHECKING:
    from pathlib import Path

    from zkd.settings import Serving

T = TypeVar("T")

IDLE_S: Final = 60.0  # without a request
LOOK_S: Final = 0.1  # at processes that owe something
DEATHS_MAX: Final = 2  # of processes, from one request
RETRY_S: Final = 0.1  # at least, after a refusal
DESCRIBE_S: Final = 1.0  # for a model that is not known here yet
HEAVY_BYTES: Final = 1 << 18  # a request with more is answered by another process, so that small ones pass it
KEYS_MAX: Final = 1000


class Files(Protocol):
    """Where models lie; see `zkd.node.model_keeper`."""

    def path(self, file_id: str) -> Path | None: ...

    async def bring(self, file_id: str, size: int) -> None:
        """Returns when it is here. Raises `DataUnavailable` when nobody has it."""


class Route(NamedTuple):
    """The version that is asked."""

    number: int
    version: ModelVersion
    is_canary: bool = False


class _Lane(NamedTuple):
    """What may be answered together."""

    model: str
    is_explained: bool
    is_heavy: bool


@dataclass(eq=False)
class _Bench:
    """Requests that wait, and the processes that answer them; heavy ones have their own of both."""

    queue: Batching
    replicas: list[Replica]
    held: Batch | None = None  # taken, and there was no room for its model


@dataclass(eq=False)
class _Pending:
    """A request on its way."""

    request: Request
    version: ModelVersion
    about: dict[str, Any]
    model: str  # its name in processes: its file, and what the registry says of it
    future: asyncio.Future[tuple[Outcome, memoryview]]


class ModelServer:
    """`not_serving` says why this node answers nothing, or None. `is_spare`: others go before it."""

    def __init__(
        self,
        node: str,
        models: Models,
        files: Files,
        settings: Callable[[], Serving],
        memory: int,
        log: Log,
        *,
        not_serving: Callable[[], str | None] = lambda: None,
        is_spare: bool = False,
    ) -> None:
        self._node = node
        self._files = files
        self._settings = settings
        self._log = log
        self._not_serving = not_serving
        self._benches = tuple(self._bench(is_heavy=is_heavy, is_spare=is_spare) for is_heavy in (False, True))
        self._replicas = [replica for bench in self._benches for replica in bench.replicas]
        self._loaded = Loaded(memory)
        self._pending: dict[Waiting, _Pending] = {}
        self._group: asyncio.TaskGroup | None = None
        self._lookups = Lookups(models)
        self._used_at = 0.0
        self._closed_for = ""
        self._latencies = Latencies()
        self._keys: dict[int, tuple[ModelVersion, str]] = {}
        self.metrics = Metrics()

    def _bench(self, *, is_heavy: bool, is_spare: bool) -> _Bench:
        first = self._settings()
        processes = 1 if is_heavy else first.processes
        queue = Batching(
            target_s=first.target_ms / 1e3,
            requests_max=first.queue_max,
            bytes_max=first.queue_bytes_max,
            concurrency=first.concurrency or 2 * processes,
            processes=processes,
        )
        numbers = range(first.processes, first.processes + 1) if is_heavy else range(processes)
        return _Bench(
            queue,
            [Replica(number, first.threads, is_spare, self._log, self._answered, self._ended) for number in numbers],
        )

    async def run(self) -> None:
        """Look after the processes. Ends only by cancellation, and then none is left."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = self._lookups.group = group
                while True:
                    await asyncio.sleep(LOOK_S if self._pending else 10 * LOOK_S)
                    for replica in self._replicas:
                        replica.look(loop.time())
                    if not self._pending and loop.time() - self._used_at >= IDLE_S:
                        self._retire()
        finally:
            self._group = self._lookups.group = None
            self.close("the node stops")
            await asyncio.gather(*(replica.gone() for replica in self._replicas))  # in a second, or they are killed

    def close(self, why: str) -> None:
        """Nothing more is taken. What was, is answered."""
        self._closed_for = self._closed_for or why

    async def drain(self, within_s: float) -> None:
        """Take nothing more, and return when all is answered; or after so long, when it is refused."""
        self.close("the node stops")
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._pending:
                    await asyncio.wait({pending.future for pending in self._pending.values()})
                    await asyncio.sleep(0)
        for pending in list(self._pending.values()):
            if not pending.future.done():
                pending.future.set_exception(NotPredicted("draining", "the node stops", RETRY_S))

    # --- Requests ---------------------------------------------------------------------------------------

    def deadline(self, request: Request, arrived: float) -> float:
        return arrived + (request.deadline_s or self._settings().deadline_ms / 1e3)

    async def ask(
        self, ref: ModelRef, route: Route, request: Request, arrived: float, deadline: float
    ) -> tuple[Outcome, memoryview, str]:
        """Have one version asked, and counted. Raises `NotPredicted` for what is not the request's fault."""
        loop = asyncio.get_running_loop()
        kind, outcome = "gone", Outcome()
        try:
            outcome, body = await self._asked(ref, route, request, arrived, deadline)
            kind = outcome.kind or "ok"
        except NotPredicted as error:
            kind = error.kind
            raise
        finally:
            took_s = loop.time() - arrived
            self.metrics.ended(ref.name, route.number, kind, took_s, outcome.rows)
            if kind == "ok":
                self._latencies.add(ref.name, took_s)
        load = self.load_of(ref.name)
        return outcome, body, f"queued={load['queued']:g}; p50_ms={load['p50_ms']:g}"

    async def _asked(
        self, ref: ModelRef, route: Route, request: Request, arrived: float, deadline: float
    ) -> tuple[Outcome, memoryview]:
        loop = asyncio.get_running_loop()
        self._used_at = loop.time()
        if why := self._closed_for or (None if request.is_task else self._not_serving()):
            raise NotPredicted("draining", why, 1.0)
        version = route.version
        if version.file.size > self._loaded.bytes_max:
            raise NotPredicted(
                "failed",
                f"{ref}: a model of {version.file.size} bytes, where serving.memory is {self._loaded.bytes_max}",
            )
        key = self._key(version)
        if key not in self._loaded:  # else it is looked at when a process is given its requests
            await self._here(version, deadline)
        is_explained, size = "attributions" in (request.want or ()), len(request.rows) + request.files_bytes
        is_heavy = size > HEAVY_BYTES or (is_explained and version.kind == "mlp")
        waiting = Waiting(_Lane(key, is_explained, is_heavy), size, arrived, deadline)
        queue, other = self._benches[is_heavy].queue, self._benches[not is_heavy].queue
        refused = queue.admit(waiting, loop.time(), beside=other.size)
        if refused is not None:
            self.metrics.shed(refused.why)
            raise NotPredicted(refused.why, REFUSALS[refused.why], max(RETRY_S, refused.wait_s))
        about = {
            "model": ref.name,
            "version": route.number,
            "alias": ref.alias,
            "is_canary": route.is_canary,
            "node": self._node,
        }
        pending = self._pending[waiting] = _Pending(request, version, about, key, loop.create_future())
        late = NotPredicted("deadline", f"no answer within {deadline - arrived:.3f} s")
        timer = loop.call_at(deadline, self._fail, (waiting,), late)
        try:
            self._pump()
            return await pending.future  # bounded by the timer
        finally:
            timer.cancel()
            del self._pending[waiting]
            queue.forget(waiting)

    async def found(self, name: str, choose: Callable[[Registered], T], deadline: float) -> T:
        """See `zkd.serving.lookups`; who finds nothing is counted here."""
        try:
            return await self._lookups.found(name, choose, deadline)
        except NotPredicted as error:
            self.metrics.unrouted(error.kind)
            raise

    async def _here(self, version: ModelVersion, deadline: float) -> None:
        if self._files.path(version.file.id) is not None:
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self._files.bring(version.file.id, version.file.size)
        except TimeoutError:
            raise NotPredicted("fetching", "the model's file is being fetched", 1.0) from None
        except DataUnavailable as error:
            raise NotPredicted("fetching", f"the model's file cannot be had now: {error}", 1.0) from None

    async def describe(self, ref: ModelRef) -> dict[str, Any]:
        """What is served under this name. Raises `NotPredicted`."""
        until = asyncio.get_running_loop().time() + DESCRIBE_S
        model, number = await self.found(ref.name, lambda model: (model, model.number(ref)), until)
        version = model.versions[number]
        alias = None if ref.alias is None else model.aliases[ref.alias]
        return {
            "model": ref.name,
            "version": number,
            "alias": ref.alias,
            "canary": None if alias is None else alias.canary,
            "kind": version.kind,
            "features": [{"name": feature.name, "width": feature.width} for feature in version.features],
            "outputs": version.outputs,
            "classes": version.classes,
            "file": version.file,
            "node": self._node,
            "is_here": self._files.path(version.file.id) is not None,
            "load": self.load_of(ref.name),
        }

    def load_of(self, name: str) -> dict[str, float]:
        """What a client compares two nodes by."""
        return {"queued": len(self._pending), "p50_ms": self._latencies.median_ms(name)}

    # --- Batches ----------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Give processes what waits. Never waits itself."""
        benches = sorted(self._benches, key=lambda bench: bench.held is None)  # who waits for memory has it first
        for bench in benches:
            self._fill(bench)
            if bench.held is not None:
                break
        for bench in self._benches:
            if (bench.queue.requests or bench.held is not None) and self._group is not None:
                idle = next((replica for replica in bench.replicas if not replica.is_served), None)
                if idle is not None and not any(replica.has_room for replica in bench.replicas):
                    idle.is_served = True
                    self._group.create_task(idle.serve(self._ready))

    def _fill(self, bench: _Bench) -> None:
        now = asyncio.get_running_loop().time()
        for replica in bench.replicas:
            while replica.has_room:
                batch, bench.held = bench.held or bench.queue.take(now), None
                if batch is None:
                    return
                if not self._give(replica, batch):
                    bench.held = batch
                    return

    def _ready(self) -> bool:
        self._pump()
        return bool(self._pending)

    def _give(self, replica: Replica, batch: Batch) -> bool:
        """Whether there was room for its model."""
        batch.requests[:] = [each for each in batch.requests if self._is_wanted(each)]
        if not batch.requests:
            self._queue_of(batch).drop(batch)
            return True
        all_pending = [self._pending[each] for each in batch.requests]
        version = all_pending[0].version
        key = all_pending[0].model
        path = self._files.path(version.file.id)
        if path is None:
            self._queue_of(batch).drop(batch)
            self._fail(batch.requests, NotPredicted("fetching", "the model's file went, and is fetched again", 1.0))
            return True
        in_use = set[str]().union(*(each.in_use for each in self._replicas))
        going = self._loaded.use(key, version.file.size, in_use)
        if going is None:
            return False
        for each in self._replicas:
            for other in going:
                each.drop(other)
        replica.load(key, str(path), version)
        asks = [
            {
                "form": each.request.form,
                "want": each.request.want,
                "missing": each.request.missing,
                "arrived": waiting.arrived,
                "about": each.about,
                "files": dict(each.request.files),
            }
            for each, waiting in zip(all_pending, batch.requests, strict=True)
        ]
        replica.give(batch, key, asks, [each.request.rows for each in all_pending])
        return True

    def _queue_of(self, batch: Batch) -> Batching:
        assert isinstance(batch.lane, _Lane)
        return self._benches[batch.lane.is_heavy].queue

    def _is_wanted(self, waiting: Waiting) -> bool:
        """Whether anybody waits for it. Who has hung up learns nothing, and costs no more."""
        pending = self._pending.get(waiting)
        if pending is None or pending.future.done():
            return False
        if pending.request.is_gone():
            pending.future.set_exception(NotPredicted("gone", "who asked has gone"))
            return False
        return True

    def _key(self, version: ModelVersion) -> str:
        """One model: a file, and what is said of it. Two records of one file may differ, and one of them lies."""
        known = self._keys.get(id(version))
        if known is None or known[0] is not version:
            if len(self._keys) >= KEYS_MAX:
                self._keys.clear()
            said = codec.encode([version.file, version.kind, version.features, version.outputs, version.classes])
            known = self._keys[id(version)] = version, blake3(said).hexdigest()
        return known[1]

    def _answered(
        self, batch: Batch, seconds: float, outcomes: Sequence[Outcome], bodies: Sequence[memoryview]
    ) -> None:
        self._queue_of(batch).done(batch, seconds)
        self.metrics.batch(len(batch.requests), sum(each.rows for each in outcomes), seconds)
        for waiting, outcome, body in zip(batch.requests, outcomes, bodies, strict=True):
            pending = self._pending.get(waiting)
            if pending is not None and not pending.future.done():
                pending.future.set_result((outcome, body))
        self._pump()

    def _ended(self, replica: Replica, lost: Sequence[Batch], how: str) -> None:
        """A process has died, with these batches; the first is to blame."""
        for place, batch in reversed(list(enumerate(lost))):
            is_first = place == 0
            dead = [each for each in batch.requests if is_first and each.deaths + 1 >= DEATHS_MAX]
            batch.requests[:] = [each for each in batch.requests if each in self._pending and each not in dead]
            self._queue_of(batch).give_back(batch, is_to_blame=is_first)
            self._fail(dead, NotPredicted("failed", f"its process ended {DEATHS_MAX} times: {how}"[:1000]))
        self._pump()

    def _fail(self, requests: Sequence[Waiting], error: NotPredicted) -> None:
        for each in requests:
            pending = self._pending.get(each)
            if pending is not None and not pending.future.done():
                pending.future.set_exception(error)

    def _retire(self) -> None:
        for replica in self._replicas:
            replica.retire()
        self._loaded.close_all()

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        yield "zkd_serving_processes", {}, sum(replica.is_alive for replica in self._replicas)
        yield "zkd_serving_process_deaths_total", {}, sum(replica.died for replica in self._replicas)
        yield "zkd_serving_requests_waiting", {}, len(self._pending)
        yield "zkd_serving_models_loaded", {}, len(self._loaded)
        yield "zkd_serving_models_loaded_bytes", {}, self._loaded.size
        yield "zkd_serving_models_evicted_total", {}, self._loaded.evicted
        yield from self.metrics.samples()


REFUSALS: Final = {
    "full": "as many requests wait for this model as may: serving.queue_max",
    "busy": "as many bytes of requests wait as may: serving.queue_bytes_max",
    "late": "there is too much before it to meet its deadline",
}
