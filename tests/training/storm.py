"""Training jobs on real nodes at which things happen, at moments that a seed decides; and what must be so afterwards.

    faults --> daemons, brains, counters, files, servers         all healed before a round of the storm ends
    job    --> the same model, bit for bit, as in quiet times; its rounds told once and in order; nothing left of it

The bits of a model's file hold its weights and the loss of every round. A part that counted twice in one of them, or
not at all, would show in these.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sklearn.datasets import load_breast_cancer, load_digits

from tests.cluster.conftest import Grid, open_grid
from tests.node.submitter import until
from tests.training.conftest import School, in_the_ring
from zkd.client import Client
from zkd.client.training_job import TrainingJob
from zkd.errors import NoNode, ZkdError, ZooKeeperError
from zkd.jobs import Round
from zkd.zk.apache import ApacheServer

DIGITS, LABELS = load_digits(return_X_y=True)
CANCER, MALIGNANT = load_breast_cancer(return_X_y=True)
PARTS = 16
MODEL_S = 120.0  # for one job, with all that befalls it
GONE_S = 20.0
QUIET_S = 30.0  # for the cluster to be as before, once all is healed

# Long enough to be hit: some hundred rounds each. All that is kept between rounds is in one of them.
MENU: Mapping[str, Mapping[str, Any]] = {
    "descent": {"model": "softmax", "dataset": "digits", "target": "y", "optimizer": "gd", "max_rounds": 400},
    "lbfgs": {"model": "softmax", "dataset": "digits", "target": "y", "optimizer": "lbfgs", "l2": 0.01},
    "net": {"model": "mlp", "dataset": "digits", "target": "y", "hidden": [24], "epochs": 20},
    "held out": {
        "model": "softmax",
        "dataset": "digits",
        "target": "y",
        "optimizer": "nesterov",
        "l2": [10.0, 1.0],
        "validation": {"share": 0.2, "by": "features"},
        "patience": 150,
        "max_rounds": 200,
        "importance": True,
    },
    "private": {
        "model": "logistic",
        "dataset": "cancer",
        "target": "y",
        "optimizer": "sgd",
        "epochs": 80,
        "privacy": {"clip": 1.0, "noise": 1.5, "delta": 1e-5},
    },
    "averages": {"model": "logistic", "dataset": "cancer", "target": "y", "optimizer": "average", "epochs": 200},
}


@dataclass
class Storm:
    school: School
    servers: ApacheServer | None  # None: the embedded one, which nothing happens to
    rng: random.Random
    calm: dict[str, str] = field(default_factory=dict)  # name on the menu -> digest of the model in quiet times
    struck: list[str] = field(default_factory=list)  # what happened, and when
    healing: list[Callable[[], Awaitable[None]]] = field(default_factory=list)  # before it waits for the job's end
    mending: list[Callable[[], Awaitable[None]]] = field(default_factory=list)  # after that
    joined: int = 0
    job: str = ""

    @property
    def grid(self) -> Grid:
        return self.school.grid

    def note(self, words: str) -> None:
        self.struck.append(f"{time.monotonic() % 1000:7.2f} {words}")

    def someone(self) -> str:
        return self.rng.choice([name for name, node in self.grid.nodes.items() if node.process.poll() is None])

    async def coordinator(self) -> str:
        """Of the job that runs; some node, if none does just now, or nobody can say."""
        try:
            found = await self.school.holder(self.job)
        except ZooKeeperError:
            return self.someone()
        return self.someone() if found is None else found.node

    # --- One round --------------------------------------------------------------------------------------

    async def quiet(self, name: str) -> str:
        """The digest of this model where nothing happens."""
        if name not in self.calm:
            job = await self.school.client.train(**MENU[name])
            state = await job.wait(MODEL_S)
            assert state.model is not None
            self.calm[name] = state.model.id
            await job.remove()
        return self.calm[name]

    async def round(self, name: str, faults: int) -> list[str]:
        """Train once while so many things happen; what was wrong afterwards."""
        expected = await self.quiet(name)
        self.struck.clear()
        before = {node: len(data.log()) for node, data in self.grid.nodes.items()}
        job = await self.school.client.train(**MENU[name])
        self.job = job.id
        seen: list[Round] = []
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(_look_on(job, seen))
            for _ in range(faults):
                await asyncio.sleep(self.rng.choice([0.05, 0.3, 0.8]) * self.rng.random() * 2.0)
                kind = self.rng.choice(FAULTS if self.servers is not None else FAULTS_OF_NODES)
                self.note(kind.__name__)
                await kind(self)
            await self._heal()
            try:
                state = await job.wait(MODEL_S)
            except ZkdError as error:
                looking.cancel()
                return [f"it did not end well: {error}", *await self._story(job)]
        await self.grid.user.session.connected(QUIET_S)
        await self.school.client.session.connected(QUIET_S)
        wrong = []
        if state.model is None or state.model.id != expected:
            wrong.append(f"its model has other bits than in quiet times: {state.model}")
        model = await job.model(MODEL_S)
        told, numbers = [each.number for each in model.history], [each.number for each in seen]
        if numbers != told:
            wrong.append(f"rounds were told as {_ranges(numbers)}, the model has {_ranges(told)}")
        if await self.school.holder(job.id) is not None:
            wrong.append("it is over, and has a coordinator")
        wrong += await self._removed(job)
        for mend in self.mending:
            await mend()
        self.mending.clear()
        for node, data in self.grid.nodes.items():
            for line in data.log()[before.get(node, 0) :].splitlines():
                if "Traceback" in line or '"level": "error"' in line or '"level":"error"' in line:
                    wrong.append(f"{node} logged {line[:1500]}")
        return wrong

    async def _heal(self) -> None:
        for heal in self.healing:
            await heal()
        self.healing.clear()
        for node in self.grid.nodes.values():
            if node.process.poll() is None:
                node.resume()
            else:
                node.start()
        for name in self.grid.nodes:
            await self.grid.joined(name, QUIET_S)

    async def _removed(self, job: TrainingJob) -> list[str]:
        """Remove the job; what is left of it."""
        await job.remove()

        async def is_gone() -> bool:
            return (
                await self.school.state(job.id) is None
                and await self.school.holder(job.id) is None
                and await self.school.files(job.id) == {}
                and not any(self.school.children(node, "zkd-brain") for node in self.grid.nodes)
            )

        try:
            await until(is_gone, GONE_S, "gone")
        except (TimeoutError, AssertionError):
            left = await self.school.files(job.id), {n: self.school.children(n, "zkd-brain") for n in self.grid.nodes}
            return [f"removed, but there are {left}, {await self.school.state(job.id)}"]
        return []

    async def _story(self, job: TrainingJob) -> list[str]:
        state = await self.school.state(job.id)
        return [f"state: {state}", f"coordinator: {await self.school.holder(job.id)}"]

    # --- The end ----------------------------------------------------------------------------------------

    async def leftovers(self) -> list[str]:
        """What is left when all jobs are gone and all daemons have been asked to end."""
        client = self.school.client
        left = []
        for directory in (client.paths.jobs, client.paths.job_states, client.paths.coordinators):
            left += [f"znode {directory}/{name}" for name in await client.session.children(directory)]
        for node in self.grid.nodes.values():
            node.signal(signal.SIGTERM)
        for name, node in self.grid.nodes.items():
            code = await asyncio.to_thread(node.wait, QUIET_S)
            left += [f"{name} ended with {code}"] if code else []
        for pid in _processes_below(self.grid.directory):
            left.append(f"process {pid}")
        for node in self.grid.nodes.values():  # not of guests that were killed for good
            left += [f"file {path}" for path in node.data_dir.glob("checkpoints/*/*")]
        return left


async def _look_on(job: TrainingJob, seen: list[Round]) -> None:
    async for each in job:
        seen.append(each)


def _ranges(numbers: list[int]) -> str:
    breaks = [at for at in range(1, len(numbers)) if numbers[at] != numbers[at - 1] + 1]
    edges = [0, *breaks, len(numbers)]
    return ", ".join(f"{numbers[a]}-{numbers[b - 1]}" for a, b in itertools.pairwise(edges) if b > a)


def _processes_below(directory: Path) -> list[int]:
    """Those whose environment says that they keep their data there: daemons, and all that they started."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            is_ours = f"ZKD_NODE__DATA_DIR={directory}/".encode() in environ.read_bytes()
        except OSError:
            continue
        if is_ours:
            found.append(int(environ.parent.name))
    return found


# --- What happens -----------------------------------------------------------------------------------------


async def coordinator_killed(storm: Storm) -> None:
    await _killed(storm, await storm.coordinator())


async def node_killed(storm: Storm) -> None:
    await _killed(storm, storm.someone())


async def _killed(storm: Storm, name: str) -> None:
    node = storm.grid.nodes[name]
    node.kill()
    storm.note(f"  {name}")
    await asyncio.sleep(storm.rng.random() * 2.0)
    if storm.rng.random() < 0.7:  # else it comes back when all is healed
        node.start()


async def all_killed(storm: Storm) -> None:
    for node in storm.grid.nodes.values():
        node.kill()
    await asyncio.sleep(storm.rng.random())
    for node in storm.grid.nodes.values():
        node.start()


async def daemon_frozen(storm: Storm) -> None:
    name = await storm.coordinator() if storm.rng.random() < 0.5 else storm.someone()
    node = storm.grid.nodes[name]
    node.pause()
    seconds = storm.rng.choice([0.3, 1.5, 4.0])
    storm.note(f"  {name} for {seconds} s")
    await asyncio.sleep(seconds)
    node.resume()


async def brain_killed(storm: Storm) -> None:
    _signal(storm, await storm.coordinator(), "zkd-brain", signal.SIGKILL)


async def counters_killed(storm: Storm) -> None:
    _signal(storm, storm.someone(), "zkd-counter", signal.SIGKILL)


async def child_frozen(storm: Storm) -> None:
    name, kind = await storm.coordinator(), storm.rng.choice(["zkd-brain", "zkd-counter"])
    pids = _signal(storm, name, kind, signal.SIGSTOP)
    if storm.rng.random() < 0.5:  # else somebody has to find out
        await asyncio.sleep(storm.rng.random() * 2.0)
        for pid in pids:
            _kill(pid, signal.SIGCONT)


def _signal(storm: Storm, name: str, kind: str, number: signal.Signals) -> list[int]:
    pids = storm.school.children(name, kind)
    storm.note(f"  {number.name} for {len(pids)} {kind} of {name}")
    for pid in pids:
        _kill(pid, number)
    return pids


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


async def paused_and_resumed(storm: Storm) -> None:
    try:
        await storm.school.want(storm.job, "pause")
        await asyncio.sleep(storm.rng.random() * 2.0)
        await storm.school.want(storm.job, "run")
    except ZooKeeperError as error:
        storm.note(f"  not quite: {type(error).__name__}")
        storm.healing.append(lambda: _running(storm))


async def _running(storm: Storm) -> None:
    async with asyncio.timeout(QUIET_S):
        while True:
            try:
                return await storm.school.want(storm.job, "run")
            except NoNode:
                return None
            except ZooKeeperError:
                await asyncio.sleep(0.2)


async def node_joined(storm: Storm) -> None:
    """A node that leaves again when all is healed."""
    storm.joined += 1
    name = f"guest{storm.joined}"
    storm.note(f"  {name}")
    await storm.grid.start(name, slots=1, **ENVIRONMENT)

    async def leave() -> None:
        node = storm.grid.nodes[name]
        node.resume()
        node.kill()
        del storm.grid.nodes[name]

    storm.healing.append(leave)


async def segment_rotted(storm: Storm) -> None:
    """A bit of a segment is another one: on disk, below whoever has it open."""
    name = storm.someone()
    segments = [path for path in storm.grid.nodes[name].data_dir.glob("segments/**/*") if path.is_file()]
    whole = [path for path in segments if path.stat().st_size > 512]
    if not whole:
        return
    path = storm.rng.choice(sorted(whole))
    at = storm.rng.randrange(path.stat().st_size)
    storm.note(f"  byte {at} of {path.relative_to(storm.grid.directory)}")
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << storm.rng.randrange(8)]))

    async def mend() -> None:
        """Two rotten copies of one part would be lost data, which no job could do anything about."""
        if path.exists():
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([byte]))

    storm.mending.append(mend)


async def server_killed(storm: Storm) -> None:
    assert storm.servers is not None
    await asyncio.to_thread(storm.servers.kill)
    await asyncio.sleep(storm.rng.random() * 3.0)
    await asyncio.to_thread(storm.servers.start)
    await asyncio.to_thread(storm.servers.wait_until_serving)


async def server_frozen(storm: Storm) -> None:
    assert storm.servers is not None
    storm.servers.pause()
    await asyncio.sleep(storm.rng.choice([0.5, 3.0]))
    storm.servers.resume()


Fault = Callable[[Storm], Awaitable[None]]
FAULTS_OF_NODES: list[Fault] = [
    coordinator_killed,
    node_killed,
    all_killed,
    daemon_frozen,
    brain_killed,
    counters_killed,
    child_frozen,
    paused_and_resumed,
    node_joined,
    segment_rotted,
]
FAULTS: list[Fault] = [*FAULTS_OF_NODES, server_killed, server_frozen]
ENVIRONMENT = {"ZKD_WORKERS__MODULES": "", "ZKD_TRAINING__CHECKPOINT_S": "0.3", "ZKD_DATA__GRACE_S": "60"}


@asynccontextmanager
async def storm_over(
    hosts: str, root: str, directory: Path, servers: ApacheServer | None, seed: int
) -> AsyncIterator[Storm]:
    """Three nodes with two data sets of 16 parts on two nodes each."""
    async with AsyncExitStack() as stack:
        grid = await stack.enter_async_context(open_grid(hosts, root, directory))
        await grid.start("a", "b", "c", slots=1, **ENVIRONMENT)
        await in_the_ring(grid, 3)
        client = await stack.enter_async_context(Client(hosts, root))
        await client.datasets.put("digits", {"x": DIGITS, "y": LABELS}, parts=PARTS, replicas=2)
        await client.datasets.put("cancer", {"x": CANCER, "y": MALIGNANT}, parts=PARTS, replicas=2)
        yield Storm(School(grid, client), servers, random.Random(seed))
