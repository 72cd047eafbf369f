"""What a fault costs a submitter: promised, median and worst of twenty, on a real ensemble with real daemons.

    python -m benchmarks.failover [--times 20] [--only leader-kill,node-kill] [--plot out/failover.png]

Three synced ZooKeeper servers, three daemons of four slots each with zkd's own session timeout, and a client that
sends 40 small tasks a second. One fault at a time, then everything is whole again before the next. Each fault is
seen twice: by the submitter (the longest time without a result) and by the kernels (when a task that was lost
began again). At the end ZooKeeper's own transaction log is audited (tests.chaos.audit): no result twice, no write of a
session that is over, no write by anybody but the task's owner.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cluster import (
    PATHS,
    TIMEOUT_S,
    Node,
    circumstances,
    entry,
    leader,
    read,
    save,
    server_of,
    three_servers,
    until,
)
from benchmarks.stream import LONG_S, Stream
from tests.chaos.audit import Audit, audit
from tests.chaos.txnlog import committed, data_dirs_of
from zkd.zk import Session
from zkd.zk.apache import ApacheServer, Ensemble

NAMES = ("a", "b", "c")
SLOTS = 4
QUORUM_LOSS_S = 15.0
LOSS_S = TIMEOUT_S + 1.0
FROZEN_S = TIMEOUT_S / 3

Figures = dict[str, float]


@dataclass
class Field:
    """What stands while faults come and go."""

    servers: Ensemble
    nodes: dict[str, Node]
    onlooker: Session
    directory: Path
    streams: int = 0

    def stream(self) -> Stream:
        self.streams += 1
        return Stream(self.servers.connect_string, self.directory / f"trace-{self.streams}")

    async def heal(self) -> None:
        """Everything runs and belongs together again."""
        for server in self.servers.servers:
            if not server.is_running:
                server.start()
            server.resume()
        for server in self.servers.servers:
            await asyncio.to_thread(server.wait_until_serving)
        await self.onlooker.connected(30.0)
        for node in self.nodes.values():
            if node.process.poll() is not None:
                node.start()
            node.resume()
        for node in self.nodes.values():
            await until(lambda node=node: self.is_its_own(node), f"{node.name} is here")  # type: ignore[misc]
        await leader(self.onlooker)

    async def is_its_own(self, node: Node) -> bool:
        """Whether the entry of this node is of the process that runs now."""
        record = await entry(self.onlooker, node.name)
        return record is not None and record["pid"] == node.pid

    async def roles(self) -> tuple[Node, Node]:
        """The node that leads, and one that does not."""
        first = await leader(self.onlooker)
        return self.nodes[first], next(node for name, node in self.nodes.items() if name != first)

    async def incarnations(self) -> dict[str, str]:
        return {name: (await entry(self.onlooker, name) or {}).get("incarnation", "") for name in NAMES}


# --- Faults: each gives its figures in seconds, and asserts what must hold ---------------------------------


async def server_killed(field: Field, stream: Stream) -> Figures:
    """kill -9 of the follower that the submitter is connected to."""
    server = _server_at(field, stream)
    began = time.monotonic()
    server.kill()
    await stream.flows(began)
    return {"client is connected again": _connected(stream, began), "gap in results": stream.gap_s(began)}


async def server_of_leader_killed(field: Field, stream: Stream) -> Figures:
    """kill -9 of the follower that zkd's leader is connected to."""
    node, _ = await field.roles()
    server = await server_of(field.servers, field.onlooker, node.name)
    assert server is not None
    began = time.monotonic()
    server.kill()
    await stream.flows(began)
    return {"gap in results": stream.gap_s(began)}


async def head_killed(field: Field, stream: Stream) -> Figures:
    """kill -9 of the ensemble's leader."""
    server = await asyncio.to_thread(field.servers.leader)
    began = time.monotonic()
    server.kill()
    await stream.flows(began)
    return {"gap in results": stream.gap_s(began)}


async def server_frozen(field: Field, stream: Stream) -> Figures:
    """SIGSTOP of the follower that the submitter is connected to."""
    server = _server_at(field, stream)
    began = time.monotonic()
    server.pause()
    await stream.flows(began)
    return {"client is connected again": _connected(stream, began), "gap in results": stream.gap_s(began)}


async def head_frozen(field: Field, stream: Stream) -> Figures:
    """SIGSTOP of the ensemble's leader."""
    server = await asyncio.to_thread(field.servers.leader)
    began = time.monotonic()
    server.pause()
    await stream.flows(began)
    return {"gap in results": stream.gap_s(began)}


async def leader_killed(field: Field, stream: Stream) -> Figures:
    """kill -9 of the daemon that leads."""
    node, _ = await field.roles()
    began = time.monotonic()
    node.kill()
    dead = time.monotonic()
    await stream.flows(dead)
    await stream.finish()
    new = min(run.began for run in stream.runs() if _sent_at(stream, run.task) > dead)
    again = _again(stream, node.name, began)
    return {"a new leader dispatches": new - began, "gap in results": stream.gap_s(began), **again}


async def node_killed(field: Field, stream: Stream) -> Figures:
    """kill -9 of a daemon that does not lead."""
    _, node = await field.roles()
    began = time.monotonic()
    node.kill()
    await until(lambda: _is_gone(field, node), f"{node.name} is gone")
    await stream.flows(time.monotonic())
    await stream.finish()
    again = _again(stream, node.name, began)
    assert again, f"{node.name} held nothing when it was killed"
    return {**again, "gap in results": stream.gap_s(began)}


async def leader_stopped(field: Field, stream: Stream) -> Figures:
    """SIGTERM to the daemon that leads."""
    return await _stopped(stream, (await field.roles())[0])


async def node_stopped(field: Field, stream: Stream) -> Figures:
    """SIGTERM to a daemon that does not lead."""
    return await _stopped(stream, (await field.roles())[1])


async def _stopped(stream: Stream, node: Node) -> Figures:
    began = time.monotonic()
    node.signal(signal.SIGTERM)
    assert await asyncio.to_thread(node.wait, 30.0) == 0
    await stream.flows(began)
    return {"gap in results": stream.gap_s(began), "longest wait of a task": _longest_wait(stream, began)}


async def quorum_lost(field: Field, stream: Stream) -> Figures:
    """kill -9 of two servers of three, which come back after 15 s."""
    before = await field.incarnations()
    lost = [await asyncio.to_thread(field.servers.leader)]
    lost.append(next(server for server in field.servers.servers if server not in lost))
    for server in lost:
        server.kill()
    await asyncio.sleep(QUORUM_LOSS_S)
    for server in lost:
        server.start()
    await asyncio.to_thread(field.servers.leader)
    back = time.monotonic()
    await stream.flows(back)
    await field.onlooker.connected(10.0)
    assert await field.incarnations() == before, "a session was lost"
    first = min(end for end in stream.ends() if end > back)
    return {"results come again, after the quorum is back": first - back}


async def node_frozen(field: Field, stream: Stream) -> Figures:
    """SIGSTOP of a daemon for two session timeouts; its kernels go on, and what it publishes late is refused."""
    _, node = await field.roles()
    before = await entry(field.onlooker, node.name)
    assert before is not None
    await until(lambda: _has_just_begun(field, stream, node), f"{node.name} runs something for a while")
    began = time.monotonic()
    node.pause()
    await asyncio.sleep(2 * TIMEOUT_S)
    woke = time.monotonic()
    node.resume()
    await until(lambda: _is_new(field, node, before["incarnation"]), f"{node.name} joins anew")
    back = time.monotonic() - woke
    await stream.flows(woke)
    await stream.finish()
    again = _again(stream, node.name, began)
    lost = {sent.id for sent in stream.sent if sent.result and _lost_at(sent.result, node.name)}
    late = [run for run in stream.runs() if run.task in lost and run.attempt == 1 and run.ended is not None]
    assert late, f"{node.name} had nothing to publish when it woke up"
    for sent in stream.sent:
        assert sent.result is not None
        if sent.id in lost:
            assert sent.result.owner != before["incarnation"], f"{sent.id}: the late result was taken"
    return {**again, "the frozen one takes part again, after it woke up": back}


async def node_restarted(field: Field, stream: Stream) -> Figures:
    """kill -9 of a daemon that does not lead, and its start at once: its former session is ended, not waited for."""
    _, node = await field.roles()
    before = await entry(field.onlooker, node.name)
    assert before is not None
    node.kill()
    began = time.monotonic()
    node.start()
    await until(lambda: _is_new(field, node, before["incarnation"]), f"{node.name} joins anew")
    joined = time.monotonic() - began
    await stream.flows(time.monotonic())
    await stream.finish()
    return {"it is a member again": joined, **_again(stream, node.name, began)}


def _server_at(field: Field, stream: Stream) -> ApacheServer:
    where = stream.client.session.server
    assert where is not None
    return next(server for server in field.servers.servers if server.port == where[1])


def _connected(stream: Stream, fault_at: float) -> float:
    return min(at for at in stream.connected_at if at > fault_at) - fault_at


def _sent_at(stream: Stream, task: str) -> float:
    return next((sent.sent_at for sent in stream.sent if sent.id == task), 0.0)


def _lost_at(result: Any, node: str) -> bool:
    return any(attempt.cause == "node_loss" and attempt.node == node for attempt in result.attempts)


def _again(stream: Stream, node: str, fault_at: float) -> Figures:
    """When the first and the last of what this node held began anew."""
    lost = {sent.id for sent in stream.sent if sent.result and _lost_at(sent.result, node)}
    starts = [run.began - fault_at for run in stream.runs() if run.task in lost and run.attempt == 2]
    return {"each of its tasks runs again": max(starts), "the first of them": min(starts)} if starts else {}


def _longest_wait(stream: Stream, fault_at: float) -> float:
    """From sending to result, without the run itself, of what was on its way or sent after the fault."""
    waits = [
        sent.ended_at - sent.sent_at - sent.result.run_s
        for sent in stream.sent
        if sent.result is not None and sent.ended_at > fault_at
    ]
    return max(waits)


async def _has_just_begun(field: Field, stream: Stream, node: Node) -> bool:
    """Whether it runs a task that will end while it is frozen."""
    assignment = await read(field.onlooker, PATHS.assignment(node.name)) or {"tasks": []}
    long = {sent.id for sent in stream.sent if sent.seconds == LONG_S}
    held = {line[0] for line in assignment["tasks"]} & long
    now = time.monotonic()
    return any(run.task in held and run.ended is None and now - run.began < LONG_S / 2 for run in stream.runs())


async def _is_gone(field: Field, node: Node) -> bool:
    return await entry(field.onlooker, node.name) is None


async def _is_new(field: Field, node: Node, former: str) -> bool:
    record = await entry(field.onlooker, node.name)
    return record is not None and record["incarnation"] != former


# --- The table ---------------------------------------------------------------------------------------------

Fault = Callable[[Field, Stream], Awaitable[Figures]]


@dataclass(frozen=True)
class Row:
    """A fault, and what is promised of each figure that it gives; the others are there to be seen."""

    does: Fault
    promised_s: dict[str, float]


ROWS: dict[str, Row] = {
    "server-kill": Row(server_killed, {"client is connected again": 0.5}),
    "leaders-server-kill": Row(server_of_leader_killed, {}),
    "ensemble-leader-kill": Row(head_killed, {}),
    "server-freeze": Row(server_frozen, {"client is connected again": FROZEN_S}),
    "ensemble-leader-freeze": Row(head_frozen, {}),
    "leader-kill": Row(leader_killed, {"a new leader dispatches": LOSS_S, "each of its tasks runs again": LOSS_S}),
    "node-kill": Row(node_killed, {"each of its tasks runs again": LOSS_S}),
    "leader-stop": Row(leader_stopped, {"gap in results": 1.0, "longest wait of a task": 1.0}),
    "node-stop": Row(node_stopped, {"gap in results": 1.0, "longest wait of a task": 1.0}),
    "quorum-loss": Row(quorum_lost, {}),
    "node-freeze": Row(node_frozen, {"each of its tasks runs again": LOSS_S}),
    "node-restart": Row(node_restarted, {}),
}
NEEDS_FOLLOWER = {"server-kill", "server-freeze"}


async def once(field: Field, name: str) -> Figures:
    """One fault, from a whole cluster to a whole cluster."""
    while True:
        async with field.stream() as stream:
            await stream.flows(0.0)
            if name in NEEDS_FOLLOWER and _server_at(field, stream) is await asyncio.to_thread(field.servers.leader):
                continue  # another client will be at another server
            if name == "leaders-server-kill":
                await _leave_the_head(field)
            await asyncio.sleep(0.5)
            figures = await ROWS[name].does(field, stream)
            await field.heal()
            await stream.finish()
            stream.check()
            return figures


async def _leave_the_head(field: Field) -> None:
    """See to it that zkd's leader is connected to a follower, by moving the ensemble's leadership."""
    while True:
        head = await asyncio.to_thread(field.servers.leader)
        node, _ = await field.roles()
        if await server_of(field.servers, field.onlooker, node.name) not in (head, None):
            return
        await asyncio.to_thread(head.restart)
        await asyncio.sleep(1.0)


async def measure(names: list[str], times: int, directory: Path, found: dict[str, dict[str, list[float]]]) -> None:
    with ExitStack() as stack:
        servers = stack.enter_context(three_servers(directory))
        nodes = {name: Node(servers.connect_string, name, directory, slots=SLOTS) for name in NAMES}
        for node in nodes.values():
            node.start()
            stack.callback(node.kill)
        async with Session(servers.connect_string, timeout_s=30.0) as onlooker:
            await onlooker.connected(30.0)
            field = Field(servers, nodes, onlooker, directory)
            await field.heal()
            for number in range(times):
                for name in names:
                    for what, seconds in (await once(field, name)).items():
                        found.setdefault(name, {}).setdefault(what, []).append(seconds)
                    latest = {what: round(values[-1], 3) for what, values in found[name].items()}
                    print(f"{number + 1}/{times} {name}: {latest}", flush=True)
            created = await onlooker.children(PATHS.results)
            print(f"{len(created)} results stand", flush=True)
        servers.stop()


def witness(directory: Path) -> Audit:
    """What ZooKeeper's own log says, of all three servers: results created, and every rule that a write broke."""
    return audit(committed(data_dirs_of(directory)), PATHS)


def table(found: dict[str, dict[str, list[float]]], times: int) -> str:
    lines = [f"| fault | seen | promised | median | worst of {times} |", "|---|---|---|---|---|"]
    for name, row in ROWS.items():
        story = (row.does.__doc__ or "").split(";")[0].rstrip(".")
        for what, values in found.get(name, {}).items():
            promised = row.promised_s.get(what)
            is_broken = promised is not None and max(values) > promised
            worst = f"{'**' if is_broken else ''}{max(values):.2f} s{'**' if is_broken else ''}"
            limit = "" if promised is None else f"{promised:.1f} s"
            lines.append(f"| {story} | {what} | {limit} | {statistics.median(values):.2f} s | {worst} |")
            story = ""
    return "\n".join(lines)


def plot(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [(name, what, values) for name in ROWS for what, values in found.get(name, {}).items()]
    picture, axis = pyplot.subplots(figsize=(9, 0.32 * len(rows) + 1.0), layout="constrained")
    for at, (name, what, values) in enumerate(rows):
        axis.plot(values, [at] * len(values), "|", color="#2a6f97", markersize=9)
        promised = ROWS[name].promised_s.get(what)
        if promised is not None:
            axis.plot([promised], [at], "D", color="#c1121f", markersize=4)
    axis.set_yticks(range(len(rows)), [f"{name}: {what}" for name, what, _ in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("seconds after the fault; a diamond is what is promised")
    axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--only", default=",".join(ROWS), help="comma-separated rows")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--keep", type=Path, help="a directory for the servers' data and the daemons' logs")
    parser.add_argument("--name", default="failover", help="of the files in out/")
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = set(names) - ROWS.keys()
    if unknown:
        parser.error(f"--only: expected some of {', '.join(ROWS)}, got {', '.join(sorted(unknown))}")
    said = circumstances(f"python -m benchmarks.failover --times {options.times} --only {options.only}")
    directory = options.keep or Path(tempfile.mkdtemp(prefix="zkd-failover-"))
    directory.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list[float]]] = {}
    try:
        asyncio.run(measure(names, options.times, directory, found))
        found_by_log = witness(directory)
    except BaseException:
        print(f"the servers' data and the daemons' logs are in {directory}", flush=True)
        raise
    text = table(found, options.times)
    broken = [str(violation) for violation in found_by_log.violations]
    text += (
        f"\n\nSession timeout {TIMEOUT_S:g} s. ZooKeeper's transaction log has {found_by_log.created:,} tasks and "
        f"{found_by_log.results:,} results; created twice, written late or by somebody else: {len(broken)}."
    )
    log = {"tasks": found_by_log.created, "results": found_by_log.results, "broken": broken}
    save(options.name, {"circumstances": said, "rows": found, "log": log}, text)
    if options.plot:
        plot(found, options.plot)
    if options.keep is None:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
