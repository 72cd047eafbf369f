"""What the number of nodes costs: one real leader over 10, 100 and 1,000 stand-ins (benchmarks.standins).

The leader is cordoned and runs nothing itself. A steady stream first, at a rate that even ten nodes do with ease, so
that what differs is the number of nodes alone; then a flood; then all nodes restart at once. What the idle cluster
costs is measured before, and taken off what the stream costs.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.cluster import PATHS, Node, counters, entry, leader, one_server, own_cpu_s, read, rss_mb, until
from benchmarks.endurance import metrics
from zkd.zk import Create, Session
from zkd.zk.apache import ApacheServer

IDLE_S = 15.0
STREAM_S = 10.0
STREAM_RATE = 300
FLOOD = 20_000
TASK = b'{"kernel":"identity","args":["' + b"x" * 60 + b'"]}'
LONG_S = 300.0

Figures = dict[str, float]
SERVER = ("cnt_updatelatency", "cnt_readlatency", "packets_received", "packets_sent")


class Meter:
    """What the leader and the server have done since the last look."""

    def __init__(self, server: ApacheServer, lead: Node) -> None:
        self._server = server
        self._pids = {"leader": lead.pid, "server": server.pid or 0}
        self._last = self._look()

    def _look(self) -> Figures:
        counted = counters(self._server)
        found = {name: counted.get(name, 0.0) for name in SERVER}
        found["events sent"] = found["packets_sent"] - found["packets_received"]  # each request has one reply
        for name, pid in self._pids.items():
            found[f"CPU of the {name}"] = own_cpu_s(pid)
        return found | {"s": time.monotonic()}

    def since(self) -> Figures:
        now, last = self._look(), self._last
        self._last = now
        return {name: value - last[name] for name, value in now.items()}


NAMES = {
    "cnt_updatelatency": "transactions",
    "cnt_readlatency": "read packets",
    "packets_received": "packets received",
    "packets_sent": "packets sent",
}


def a_task(spent: Figures, idle: Figures, n: int) -> Figures:
    """Of a stretch, what each of its n tasks cost beyond what time alone costs."""
    found = {}
    for name, value in spent.items():
        if name != "s":
            each = (value - idle[name] * spent["s"] / idle["s"]) / n
            is_cpu = name.startswith("CPU")
            found[f"{NAMES.get(name, name)}{', us' if is_cpu else ''} a task"] = each * (1e6 if is_cpu else 1)
    return found


async def breadth(directory: Path, count: int) -> dict[str, Figures]:
    with ExitStack() as stack:
        server = stack.enter_context(one_server(directory / "zookeeper"))
        lead = Node(server.connect_string, "leader", directory, slots=1)
        lead.start()
        stack.callback(lead.kill)
        async with Session(server.connect_string, timeout_s=30.0) as session:
            await session.connected(30.0)
            await lead.ready(session)
            await leader(session)
            await session.create(PATHS.node_state("leader"), b'{"state":"cordoned"}')
            record = await entry(session, "leader")
            assert record is not None
            kernels = directory / "kernels"
            kernels.write_text("\n".join(record["kernels"]))
            crowd = stack.enter_context(_standins(server, count, kernels))
            found = {"joining": await _joining(crowd, record["address"], count, server, lead, b"")}
            found |= await _working(session, server, lead)
            found["restarting"] = await _joining(crowd, record["address"], count, server, lead, b"restart\n")
            found["leader"] = {"MB": rss_mb(lead.pid)}
            return found


def _standins(server: ApacheServer, count: int, kernels: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.standins", server.connect_string, str(count), str(kernels)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def _joining(
    crowd: subprocess.Popen[bytes], address: str, count: int, server: ApacheServer, lead: Node, command: bytes
) -> Figures:
    """Until all are members, and until the leader knows all of them."""
    assert crowd.stdin is not None
    assert crowd.stdout is not None
    meter = Meter(server, lead)
    began = time.monotonic()
    crowd.stdin.write(command)
    crowd.stdin.flush()
    joined = await asyncio.to_thread(crowd.stdout.readline)
    assert joined, "the stand-ins have ended"

    async def knows_all() -> bool:
        found = await asyncio.to_thread(metrics, address)
        return found.get('leader_size{of="members"}') == count + 1

    await until(knows_all, f"the leader knows {count} nodes", LONG_S, every_s=0.1)
    spent = meter.since()
    return {
        "s until all had joined": float(joined),
        "s until the leader knew": time.monotonic() - began,
        "CPU of the leader, s": spent["CPU of the leader"],
        "CPU of the server, s": spent["CPU of the server"],
        "transactions": spent["cnt_updatelatency"],
        "events sent": spent["events sent"],
    }


async def _working(session: Session, server: ApacheServer, lead: Node) -> dict[str, Figures]:
    await _stream(session, 2.0)  # and the JVM has compiled what it needs
    await asyncio.sleep(3.0)
    meter = Meter(server, lead)
    await asyncio.sleep(IDLE_S)
    idle = meter.since()
    tasks = await _stream(session, STREAM_S)
    stream = meter.since()
    began = time.monotonic()
    await _flood(session, FLOOD)
    took = time.monotonic() - began
    flood = meter.since()
    return {
        "idle, a second": {
            f"{NAMES.get(name, name)}{', %' if name.startswith('CPU') else ''}": value
            / idle["s"]
            * (100 if name.startswith("CPU") else 1)
            for name, value in idle.items()
            if name != "s"
        },
        f"{STREAM_RATE} tasks/s": a_task(stream, idle, tasks),
        f"{FLOOD:,} at once": {"tasks/s": FLOOD / took, **a_task(flood, idle, FLOOD)},
    }


async def _stream(session: Session, seconds: float) -> int:
    """Tasks at a steady rate; how many there were, when all have ended."""
    began = time.monotonic()
    prefix = f"s{int(began * 1000)}"
    count = 0
    async with asyncio.TaskGroup() as group:
        while (now := time.monotonic()) < began + seconds:
            while count < (now - began) * STREAM_RATE:
                count += 1
                group.create_task(_created(session, f"{prefix}-{count}"))
            await asyncio.sleep(0.002)
    await _all_ended(session)
    return count


async def _created(session: Session, name: str) -> Any:
    return await session.create(PATHS.task(name), TASK)


async def _flood(session: Session, count: int) -> None:
    for first in range(0, count, 100):
        await session.multi([Create(PATHS.task(f"f-{number}"), TASK) for number in range(first, first + 100)])
    await _all_ended(session)


async def _all_ended(session: Session) -> None:
    async def is_empty() -> bool:
        stat = await session.exists(PATHS.tasks)
        return stat is not None and stat.num_children == 0

    await until(is_empty, "all have ended", LONG_S, every_s=0.05)
    assert await read(session, PATHS.leader)
