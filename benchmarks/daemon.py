"""What a daemon costs: time to ready, memory and CPU when idle, and CPU a task in the leader and in a node.

    python -m benchmarks.daemon [-n 10000] [--rounds 3] [--netty]

Two daemons with one worker each on a real, fsyncing ZooKeeper; the first one leads. A bare submitter drops n
tasks in transactions of a hundred and counts the results as events, so that what is left is zkd and the server.
The server's own counters say how many packets a task costs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.contenders import cpu_s, memory_mb, own_cpu_s, packets, wait_until
from zkd.zk import Create, Event, EventType, Session
from zkd.zk.apache import ApacheServer, Flags

IDLE_S = 10.0


def start(name: str, connect_string: str, home: Path, slots: int) -> tuple[subprocess.Popen[bytes], float]:
    """A daemon, and the seconds until it was ready."""
    log = home / f"{name}.log"
    command = [sys.executable, "-m", "zkd", "--hosts", connect_string, "daemon", "--name", name]
    began = time.perf_counter()
    with log.open("w") as file:
        daemon = subprocess.Popen([*command, "--slots", str(slots), "--data-dir", str(home / name)], stderr=file)
    wait_until(lambda: "daemon.ready" in log.read_text(), name)
    return daemon, time.perf_counter() - began


async def drop(connect_string: str, n: int, prefix: str) -> float:
    """Drop n tasks, wait for their results, return the seconds it took."""
    async with Session(connect_string, timeout_s=20) as session:
        await session.connected(10)
        left = n
        done = asyncio.Event()

        def saw(event: Event) -> None:
            nonlocal left
            if event.type is EventType.CREATED:
                left -= 1
                if left == 0:
                    done.set()

        await session.add_watch("/zkd/results", saw, recursive=True)
        body = b'{"kernel":"identity","args":["' + b"x" * 60 + b'"]}'
        began = time.perf_counter()
        for first in range(0, n, 100):
            last = min(n, first + 100)
            await session.multi([Create(f"/zkd/tasks/{prefix}-{number}", body) for number in range(first, last)])
        await asyncio.wait_for(done.wait(), 300)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--netty", action="store_true", help="the server's Netty connection factory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        flags = Flags(force_sync=True, long_lived=True, heap="1000m", tick_ms=2000, netty=options.netty)
        with ApacheServer(home / "zookeeper", flags=flags) as server:
            alone, ready_s = start("alone", server.connect_string, home, 2)
            time.sleep(2)
            before = cpu_s([alone.pid])
            time.sleep(IDLE_S)
            print(f"ready after {ready_s:.2f} s; idle with 2 workers: {memory_mb([alone.pid]):.0f} MB PSS, ", end="")
            print(f"{(cpu_s([alone.pid]) - before) / IDLE_S * 100:.2f} % of a core")
            alone.terminate()
            alone.wait()
            daemons = [start(name, server.connect_string, home, 1)[0] for name in ("leader", "follower")]
            figures: dict[str, list[float]] = {}
            for number in range(options.rounds + 1):
                pids = {"leader": daemons[0].pid, "follower": daemons[1].pid, "server": server.pid or 0}
                cpu = {name: own_cpu_s(pid) for name, pid in pids.items()}
                everything = cpu_s(list(pids.values()))
                counted = packets(server)
                elapsed = asyncio.run(drop(server.connect_string, options.n, f"r{number}"))
                if number == 0:
                    continue  # warm-up: the JVM compiles, the workers touch their pages
                found = {f"CPU us a task, {name}": own_cpu_s(pid) - cpu[name] for name, pid in pids.items()}
                found["CPU us a task, all with workers"] = cpu_s(list(pids.values())) - everything
                for what, seconds in found.items():
                    figures.setdefault(what, []).append(seconds / options.n * 1e6)
                figures.setdefault("tasks/s", []).append(options.n / elapsed)
                for what, was, now in zip(("received", "sent"), counted, packets(server), strict=True):
                    figures.setdefault(f"packets {what} by the server a task", []).append((now - was) / options.n)
            for what, values in sorted(figures.items()):
                middle = statistics.median(values)
                print(f"{what}: {middle:,.2f} [{min(values):,.2f}-{max(values):,.2f}]")
            for daemon in daemons:
                daemon.terminate()
                daemon.wait()


if __name__ == "__main__":
    main()
