"""What depth and breadth cost: 100,000 tasks dropped at once, a new leader at that depth, 1,000 nodes.

    python -m benchmarks.scale [--only depth,takeover,fairness,overload,nodes] [--tasks 100000] [--nodes 10,1000]

One synced Apache ZooKeeper. `depth`: a plain client creates the znodes one by one, 256 on their way at a time, and two
real daemons of one slot each work them off. `takeover`: the same, and the leader is killed once all are accepted.
`fairness`: another submitter's hundred tasks come behind them. `overload`: a fifth of them may wait at most.
`nodes`: one real leader and light stand-ins for the other nodes: real sessions over sockets, each with its entry and a
watch on its assign/, that end what they are given at once (benchmarks.standins). Counted are the server's own figures.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.breadth import breadth
from benchmarks.cluster import (
    PATHS,
    Node,
    circumstances,
    counters,
    leader,
    one_server,
    own_cpu_s,
    rss_mb,
    save,
    until,
)
from zkd.errors import ZooKeeperError
from zkd.zk import Session
from zkd.zk.apache import ApacheServer

IN_FLIGHT = 256
OTHERS = 100
QUEUE_MAX = 20_000  # of `overload`
SAMPLE_S = 0.5
TASK = b'{"kernel":"identity","args":["' + b"x" * 60 + b'"]}'

Figures = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """A moment of a run."""

    at: float
    queued: int
    ended: int
    leader_mb: float
    server_mb: float


@dataclass
class Field:
    server: ApacheServer
    nodes: list[Node]
    session: Session

    async def queued(self) -> int:
        return await _children(self.session, PATHS.tasks)

    async def ended(self) -> int:
        return await _children(self.session, PATHS.results)

    def pids(self) -> dict[str, int]:
        assert self.server.pid is not None
        return {"server": self.server.pid} | {node.name: node.pid for node in self.nodes}


async def _children(session: Session, path: str) -> int:
    stat = await session.exists(path)
    return 0 if stat is None else stat.num_children


@contextmanager
def standing(directory: Path, names: list[str], **environment: str) -> Iterator[tuple[ApacheServer, list[Node]]]:
    directory.mkdir(exist_ok=True)
    with ExitStack() as stack:
        server = stack.enter_context(one_server(directory / "zookeeper"))
        nodes = [Node(server.connect_string, name, directory, slots=1, **environment) for name in names]
        for node in nodes:
            node.start()
            stack.callback(node.kill)
        yield server, nodes


async def drop(session: Session, n: int, prefix: str, task: bytes = TASK) -> float:
    """Create n tasks, each by a request of its own; the seconds until the last was accepted."""
    room = asyncio.Semaphore(IN_FLIGHT)
    began = time.monotonic()

    def accepted(done: asyncio.Future[Any]) -> None:
        room.release()
        done.result()

    last: asyncio.Future[Any] | None = None
    for number in range(n):
        await room.acquire()
        last = asyncio.ensure_future(session.create(f"{PATHS.tasks}/{prefix}-{number}", task))
        last.add_done_callback(accepted)
    for _ in range(IN_FLIGHT):
        await room.acquire()
    return time.monotonic() - began


# --- Depth -------------------------------------------------------------------------------------------------


async def depth(field: Field, n: int) -> tuple[Figures, list[Sample]]:
    """All at once, and the rate while the queue gets shorter."""
    samples: list[Sample] = []
    await drop(field.session, 3000, "warm")
    await until(lambda: _has_ended(field, 3000), "the warm-up has ended")
    base = await field.ended()
    lead = next(node for node in field.nodes if node.name == "leader")
    before, cpu = counters(field.server), {name: own_cpu_s(pid) for name, pid in field.pids().items()}
    began = time.monotonic()
    dropping = asyncio.create_task(drop(field.session, n, "deep"))
    while not samples or samples[-1].ended < n:
        await asyncio.sleep(SAMPLE_S)
        samples.append(
            Sample(
                time.monotonic() - began,
                await field.queued(),
                await field.ended() - base,
                rss_mb(lead.pid),
                rss_mb(field.pids()["server"]),
            )
        )
    took = time.monotonic() - began
    figures = {
        "seconds until all were accepted": await dropping,
        "seconds until all had ended": took,
        "tasks/s": n / took,
        "deepest queue": max(sample.queued for sample in samples),
        "leader, most MB": max(sample.leader_mb for sample in samples),
        "server, most MB": max(sample.server_mb for sample in samples),
        **{f"tasks/s, {what}": rate for what, rate in rates(samples).items()},
        **costs(before, counters(field.server), n),
        **{f"CPU us a task, {name}": (own_cpu_s(pid) - cpu[name]) / n * 1e6 for name, pid in field.pids().items()},
    }
    return figures, samples


async def _has_ended(field: Field, n: int) -> bool:
    return await field.ended() >= n


def rates(samples: list[Sample]) -> Figures:
    """The rate of ends while the queue was deep, and while it was nearly empty, after all were accepted."""
    top = max(samples, key=lambda sample: sample.queued)
    falling = [sample for sample in samples if sample.at >= top.at]
    found = {}
    for what, most, least in (("first third of the depth", 1.0, 2 / 3), ("last third", 1 / 3, 0.02)):
        part = [sample for sample in falling if least <= sample.queued / max(1, top.queued) <= most]
        if len(part) > 1:
            found[what] = (part[-1].ended - part[0].ended) / (part[-1].at - part[0].at)
    return found


def costs(before: Figures, after: Figures, n: int) -> Figures:
    """What the server did for each task, by its own counters."""

    def more(name: str) -> float:
        return (after.get(name, 0.0) - before.get(name, 0.0)) / n

    return {
        "events sent a task": more("packets_sent") - more("packets_received"),  # each request has one reply
        "transactions a task": more("cnt_updatelatency"),
        "read packets a task": more("cnt_readlatency"),
        "packets received a task": more("packets_received"),
        "packets sent a task": more("packets_sent"),
    }


# --- Take-over ---------------------------------------------------------------------------------------------


async def takeover(field: Field, n: int) -> Figures:
    """Kill the leader when all are accepted; what the next one needs until it dispatches."""
    accepted = await drop(field.session, n, "over")
    queued, ended = await field.queued(), await field.ended()
    lead, other = field.nodes
    lead.kill()
    killed = time.monotonic()
    await leader(field.session, other_than=lead.name)
    elected = time.monotonic()
    stalled = await field.ended()
    await until(lambda: _has_ended(field, stalled + 100), "a hundred more have ended")
    dispatches = time.monotonic()
    most = rss_mb(other.pid)
    while await field.queued():
        most = max(most, rss_mb(other.pid))
        await asyncio.sleep(SAMPLE_S)
    assert await field.ended() == n, f"{n} tasks, {await field.ended()} results"
    return {
        "seconds until all were accepted": accepted,
        "queued when the leader was killed": queued,
        "ended by then": ended,
        "seconds from the kill to the election": elected - killed,
        "seconds from the election to the hundredth end": dispatches - elected,
        "new leader, most MB": most,
        "seconds until all had ended": time.monotonic() - killed,
    }


# --- Fairness ----------------------------------------------------------------------------------------------


async def fairness(field: Field, n: int) -> Figures:
    """A hundred tasks of somebody else, dropped behind all of these."""
    accepted = await drop(field.session, n, "bulk", _of("bulk"))
    queued, ended = await field.queued(), await field.ended()
    began = time.monotonic()
    await drop(field.session, OTHERS, "small", _of("small"))
    paths = [PATHS.result(f"small-{number}") for number in range(OTHERS)]

    async def are_there() -> bool:
        return not any(isinstance(got, ZooKeeperError) for got in await field.session.get_many(paths))

    await until(are_there, "the small submitter's tasks have ended", 300.0)
    small = time.monotonic() - began
    await until(lambda: _has_ended(field, n + OTHERS), "all have ended", 300.0, every_s=SAMPLE_S)
    took = time.monotonic() - began
    return {
        "seconds until all were accepted": accepted,
        "queued when the other one came": queued,
        f"seconds until his {OTHERS} had ended": small,
        "seconds until all had ended, which he would have waited in a line": took,
        "ended before he came": ended,
    }


def _of(submitter: str) -> bytes:
    return TASK.replace(b"{", b'{"submitter":"' + submitter.encode() + b'",', 1)


# --- Overload ----------------------------------------------------------------------------------------------


async def overload(field: Field, n: int) -> Figures:
    """Many more than may wait: what is refused, how soon, and that the cluster does its work meanwhile."""
    meter, lead = counters(field.server), field.nodes[0]
    cpu = own_cpu_s(lead.pid)
    deepest, began = 0, time.monotonic()
    dropping = asyncio.create_task(drop(field.session, n, "flood", _of("flood")))
    while not dropping.done() or await field.queued():
        deepest = max(deepest, await field.queued())
        await asyncio.sleep(0.1)
    took = time.monotonic() - began
    refused = 0
    for first in range(0, n, 1000):
        paths = [PATHS.result(f"flood-{number}") for number in range(first, min(n, first + 1000))]
        found = await field.session.get_many(paths)
        refused += sum(b'"rejected"' in got.data[:30] for got in found if not isinstance(got, ZooKeeperError))
    return {
        "may wait": QUEUE_MAX,
        "dropped": n,
        "seconds until all were accepted": await dropping,
        "refused": refused,
        "deepest queue": deepest,
        "seconds until all had ended": took,
        "CPU us a task, leader": (own_cpu_s(lead.pid) - cpu) / n * 1e6,
        "packets received a task": (counters(field.server)["packets_received"] - meter["packets_received"]) / n,
        "server MB": rss_mb(field.pids()["server"]),
    }


# --- All of it ---------------------------------------------------------------------------------------------


async def on_field(directory: Path, what: Any, *args: Any, **environment: str) -> Any:
    with standing(directory, ["leader"], **environment) as (server, nodes):
        async with Session(server.connect_string, timeout_s=30.0) as session:
            await session.connected(30.0)
            await nodes[0].ready(session)
            await leader(session)
            follower = Node(server.connect_string, "follower", directory, slots=1, **environment)
            follower.start()
            nodes.append(follower)
            try:
                await follower.ready(session)
                return await what(Field(server, nodes, session), *args)
            finally:
                follower.kill()


def rows(figures: Figures) -> str:
    return "\n".join(f"| {what} | {value:,.{2 if value < 100 else 0}f} |" for what, value in figures.items())


def across(wide: dict[int, dict[str, Figures]]) -> str:
    """A column for each number of nodes, and how much the last is of the first."""
    counts = list(wide)
    lines = [f"| | {' | '.join(f'{count:,} nodes' for count in counts)} | |", "|---" * (len(counts) + 2) + "|"]
    for part, figures in wide[counts[0]].items():
        for what, first in figures.items():
            values = [wide[count][part][what] for count in counts]
            times = f"{values[-1] / first:.2f}x" if first > 0 and what.endswith("a task") else ""
            shown = " | ".join(f"{value:,.{2 if abs(value) < 100 else 0}f}" for value in values)
            lines.append(f"| {part}: {what} | {shown} | {times} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="depth,takeover,fairness,overload,nodes")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--nodes", default="10,100,1000")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    only = options.only.split(",")
    said = circumstances(f"python -m benchmarks.scale --only {options.only} --tasks {options.tasks}")
    found: dict[str, Any] = {"circumstances": said}
    text = []
    with tempfile.TemporaryDirectory(prefix="zkd-scale-") as home:
        if "depth" in only:
            figures, samples = uvloop.run(on_field(Path(home, "depth"), depth, options.tasks))
            found["depth"] = figures | {
                "samples": [[s.at, s.queued, s.ended, s.leader_mb, s.server_mb] for s in samples]
            }
            text.append(f"| {options.tasks:,} tasks dropped at once | |\n|---|---|\n{rows(figures)}")
            print(text[-1], flush=True)
        if "takeover" in only:
            figures = uvloop.run(on_field(Path(home, "takeover"), takeover, options.tasks))
            found["takeover"] = figures
            text.append(f"| the leader killed at this depth | |\n|---|---|\n{rows(figures)}")
            print(text[-1], flush=True)
        if "fairness" in only:
            figures = uvloop.run(on_field(Path(home, "fairness"), fairness, options.tasks))
            found["fairness"] = figures
            text.append(f"| another submitter behind them | |\n|---|---|\n{rows(figures)}")
            print(text[-1], flush=True)
        if "overload" in only:
            room = {"ZKD_TASKS__QUEUE_MAX": str(QUEUE_MAX)}
            figures = uvloop.run(on_field(Path(home, "overload"), overload, options.tasks, **room))
            found["overload"] = figures
            text.append(f"| more than may wait | |\n|---|---|\n{rows(figures)}")
            print(text[-1], flush=True)
        if "nodes" in only:
            counts = [int(count) for count in options.nodes.split(",")]
            wide: dict[int, dict[str, Figures]] = {}
            for count in counts:
                Path(home, f"nodes-{count}").mkdir()
                wide[count] = uvloop.run(breadth(Path(home, f"nodes-{count}"), count))
                print(count, wide[count], flush=True)
            found["nodes"] = {str(count): figures for count, figures in wide.items()}
            text.append(across(wide))
    save("scale", found, "\n\n".join(text))


if __name__ == "__main__":
    main()
