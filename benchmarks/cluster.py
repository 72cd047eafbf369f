"""A real ZooKeeper ensemble and real daemons, for benchmarks that kill, freeze, count and compare.

The ensemble syncs to disk and has the ticks that an ensemble for zkd should have: a frozen server is found out
by its peers in two seconds (tickTime 500 ms, syncLimit 4). The daemons are `zkd daemon` processes as an operator
would start them, with the session timeout that zkd has by default.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.cluster.processes import DaemonProcess
from zkd.errors import NoNode, OutcomeUnknown, SessionExpired, Unavailable
from zkd.paths import NodeId, Paths
from zkd.settings import Settings
from zkd.zk import Session
from zkd.zk.apache import ApacheServer, Ensemble, Flags, ask, ensemble

TOP = Path(__file__).parents[1]
OUT = TOP / "out"
ROOT = "/zkd"
PATHS = Paths(ROOT)
TIMEOUT_S = Settings().zookeeper.session_timeout_s
FLAGS = Flags(
    tick_ms=500,
    force_sync=True,
    long_lived=True,
    heap="1000m",  # the log of the ensemble stays on: what was never committed is told by it
    config={"syncLimit": "4", "initLimit": "10"},
)
NO_ANSWER = (Unavailable, OutcomeUnknown, SessionExpired)


class Node(DaemonProcess):
    """A daemon as an operator would run it, with the kernels of benchmarks."""

    def __init__(self, hosts: str, name: NodeId, directory: Path, *, slots: int, **environment: str) -> None:
        super().__init__(hosts, ROOT, name, directory, slots=slots, timeout_s=TIMEOUT_S)
        for key in ("ZKD_ZOOKEEPER__SESSION_TIMEOUT_S", "ZKD_NODE__DRAIN_TIMEOUT_S"):
            del self.environment[key]
        self.environment |= {"PYTHONPATH": str(TOP), "ZKD_WORKERS__MODULES": "benchmarks.kernels", **environment}

    @property
    def pid(self) -> int:
        return self.process.pid

    async def ready(self, session: Session, *, after: str = "") -> str:
        """Wait for its entry in nodes/, by another incarnation than `after`; the new one."""

        async def joined() -> str:
            record = await entry(session, self.name)
            return "" if record is None or record["incarnation"] == after else str(record["incarnation"])

        return str(await until(joined, f"{self.name} joins"))


def three_servers(directory: Path) -> Ensemble:
    return ensemble(3, directory, flags=FLAGS)


def one_server(directory: Path, **flags: Any) -> ApacheServer:
    directory.mkdir(parents=True, exist_ok=True)
    return ApacheServer(directory, flags=replace(FLAGS, **flags))


async def entry(session: Session, name: NodeId) -> dict[str, Any] | None:
    """What stands at nodes/<name>."""
    return await read(session, PATHS.node(name))


async def read(session: Session, path: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((await session.get(path)).data)
    except NoNode:
        return None
    return found


async def leader(session: Session, *, other_than: str = "") -> NodeId:
    """Wait for somebody to lead; who."""

    async def who() -> str:
        found = await read(session, PATHS.leader)
        return "" if found is None or found["node"] == other_than else str(found["node"])

    return str(await until(who, "somebody leads"))


async def server_of(servers: Ensemble, session: Session, node: NodeId) -> ApacheServer | None:
    """The server to which this node is connected."""
    stat = await session.exists(PATHS.node(node))
    if stat is None:
        return None
    sid = f"sid={stat.ephemeral_owner & 0xFFFFFFFFFFFFFFFF:#x},"
    for server in servers.servers:
        if sid in await asyncio.to_thread(ask, server.port, b"cons"):
            return server
    return None


async def until(
    condition: Callable[[], Awaitable[Any]], what: str, within_s: float = 60.0, every_s: float = 0.02
) -> Any:
    """Ask again and again until the answer is true; the answer."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            answer = await condition()
        except NO_ANSWER:
            answer = None
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s} s: {what}")
        await asyncio.sleep(every_s)


# --- What a figure is worth depends on where it was taken ---------------------------------------------


def circumstances(command: str) -> dict[str, Any]:
    """When, where and of what: goes into every file of figures."""
    return {
        "command": command,
        "commit": _said(["git", "-C", str(TOP), "describe", "--always", "--dirty"]),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores of {_cpu_model()}, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_1m": round(os.getloadavg()[0], 2),
        "session_timeout_s": TIMEOUT_S,
        "zookeeper": f"Apache, tickTime {FLAGS.tick_ms} ms, forceSync, heap {FLAGS.heap}",
    }


def _cpu_model() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def _said(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "?"


def save(name: str, found: dict[str, Any], table: str) -> None:
    """The figures as JSON and as a Markdown table, both in out/; the table also to the terminal."""
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(found, indent=1))
    said = found["circumstances"]
    foot = f"`{said['command']}` at {said['commit']}, {said['at']}, {said['machine']}, load {said['load_1m']}."
    (OUT / f"{name}.md").write_text(f"{table}\n\n{foot}\n")
    print(f"{table}\n\n{foot}")


# --- Counters of processes and of the server ----------------------------------------------------------


def own_cpu_s(pid: int) -> float:
    """CPU seconds of this process, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def counters(server: ApacheServer) -> dict[str, float]:
    """The numbers in the server's `mntr`."""
    found = {}
    for line in ask(server.port, b"mntr", 5.0).splitlines():
        name, _, value = line.partition("\t")
        try:
            found[name.removeprefix("zk_")] = float(value)
        except ValueError:
            continue
    return found
