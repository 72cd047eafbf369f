"""A hop to a warm worker and back, and how many go through two of them, beside Python's own pool.

    python benchmarks/workers.py [--rounds 5] [--json]

Contenders take turns within one run and the order is reversed every round, so that what else the machine
does meets all of them. `pipes` is the floor: two bare processes that send a line back, with nothing around.
The executor starts its workers by forkserver with numpy imported, as zkd does; its calls are the same sum.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import uvloop

from zkd.workers import Call, Finished, Pool

WORKERS = 2
HOPS = 2_000
CALLS = 20_000
IN_FLIGHT = 64
ARRAY_BYTES = 80 * 10**6
SUMS = 15

Hop = Callable[[], Awaitable[object]]
Figures = dict[str, float]


def nothing() -> None:
    """What every contender's worker does."""


async def latency(hop: Hop) -> tuple[float, float]:
    """p50 and p99 of one call at a time, in microseconds."""
    for _ in range(100):
        await hop()
    taken = []
    for _ in range(HOPS):
        began = time.perf_counter()
        await hop()
        taken.append(time.perf_counter() - began)
    taken.sort()
    return taken[len(taken) // 2] * 1e6, taken[len(taken) * 99 // 100] * 1e6


async def throughput(hop: Hop) -> float:
    """Calls a second with 64 in flight."""
    left = iter(range(CALLS))

    async def stream() -> None:
        for _ in left:
            await hop()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as streams:
        for _ in range(IN_FLIGHT):
            streams.create_task(stream())
    return CALLS / (time.perf_counter() - began)


async def measure(hop: Hop) -> Figures:
    p50, p99 = await latency(hop)
    before = cpu_s(os.getpid())
    per_s = await throughput(hop)
    return {"p50_us": p50, "p99_us": p99, "per_s": per_s, "cpu_us": (cpu_s(os.getpid()) - before) / CALLS * 1e6}


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and all its living descendants, by the kernel's ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = (path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    total = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total + sum(cpu_s(int(child)) for line in children for child in line)


async def with_pool() -> Figures:
    call = Call(kernel="identity", args=b"[1]")
    with tempfile.TemporaryDirectory() as directory:
        async with Pool(WORKERS, blob_dir=Path(directory)) as pool:

            async def hop() -> None:
                outcome = await pool.run(call, timeout_s=60)
                assert isinstance(outcome, Finished), outcome

            return await measure(hop)


async def with_executor() -> Figures:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["numpy", "zkd.kernels"])
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(WORKERS, mp_context=context) as executor:
        return await measure(lambda: loop.run_in_executor(executor, nothing))


async def with_pipes() -> Figures:
    """Bare processes and sockets, one call in flight each."""
    loop = asyncio.get_running_loop()
    free: list[socket.socket] = []
    waiting: list[asyncio.Future[socket.socket]] = []
    pids = []
    for _ in range(WORKERS):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            while data := theirs.recv(65536):
                theirs.send(data)
            os._exit(0)
        theirs.close()
        ours.setblocking(False)
        free.append(ours)
        pids.append(pid)
    sockets = list(free)

    async def hop() -> None:
        if free:
            sock = free.pop()
        else:
            turn: asyncio.Future[socket.socket] = loop.create_future()
            waiting.append(turn)
            sock = await turn
        answer: asyncio.Future[bytes] = loop.create_future()
        loop.add_reader(sock, lambda: answer.set_result(sock.recv(65536)))
        sock.send(b'{"kernel":"identity","args":[1]}')
        await answer
        loop.remove_reader(sock)
        if waiting:
            waiting.pop(0).set_result(sock)
        else:
            free.append(sock)

    figures = await measure(hop)
    for sock in sockets:
        sock.close()
    for pid in pids:
        os.waitpid(pid, 0)  # noqa: ASYNC222 - they have ended
    return figures


async def resident_sum() -> Figures:
    """The sum of a large array that lies in a file: through a worker, and in this process from a memory map."""
    import numpy

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "array.npy"
        numpy.save(path, numpy.ones(ARRAY_BYTES // 8))
        sha256 = "0" * 64
        reference = {"blob": sha256, "size": path.stat().st_size, "format": "npy"}
        call = Call(kernel="numpy.sum", args=json.dumps([reference]).encode(), files={sha256: str(path)})
        async with Pool(1, blob_dir=Path(directory)) as pool:
            plain, through = [], []
            for _ in range(SUMS):
                began = time.perf_counter()
                numpy.load(path, mmap_mode="r").sum()
                plain.append(time.perf_counter() - began)
                began = time.perf_counter()
                outcome = await pool.run(call, timeout_s=60)
                through.append(time.perf_counter() - began)
                assert isinstance(outcome, Finished), outcome
    return {"memory_map_ms": statistics.median(plain) * 1e3, "worker_ms": statistics.median(through) * 1e3}


CONTENDERS: dict[str, tuple[Callable[[Any], Any], Callable[[], Awaitable[Figures]]]] = {
    "zkd, uvloop": (uvloop.run, with_pool),
    "zkd, asyncio": (asyncio.run, with_pool),
    "ProcessPoolExecutor": (asyncio.run, with_executor),
    "pipes": (asyncio.run, with_pipes),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments = parser.parse_args()
    seen: dict[str, list[Figures]] = {name: [] for name in CONTENDERS}
    order = list(CONTENDERS)
    for round_number in range(arguments.rounds):
        for name in order if round_number % 2 == 0 else reversed(order):
            run, contender = CONTENDERS[name]
            seen[name].append(run(contender()))
            print(f"round {round_number + 1} {name}: {seen[name][-1]}", file=sys.stderr)
    sums = [asyncio.run(resident_sum()) for _ in range(arguments.rounds)]
    medians = {name: _median(figures) for name, figures in seen.items()}
    if arguments.json:
        print(json.dumps({"hop": medians, "sum_80_mb": _median(sums), "rounds": arguments.rounds}))
        return
    base = medians["ProcessPoolExecutor"]
    print("| contender | p50 us | p99 us | calls/s | CPU us a call | p50 to executor | calls to executor |")
    print("|---|---|---|---|---|---|---|")
    for name, it in medians.items():
        cells = f"{it['p50_us']:.0f} | {it['p99_us']:.0f} | {it['per_s']:,.0f} | {it['cpu_us']:.0f}"
        print(f"| {name} | {cells} | {it['p50_us'] / base['p50_us']:.2f} | {it['per_s'] / base['per_s']:.1f}x |")
    total = _median(sums)
    ratio = total["worker_ms"] / total["memory_map_ms"]
    print(f"\nsum of a resident 80 MB array: {total['worker_ms']:.1f} ms by a worker, ", end="")
    print(f"{total['memory_map_ms']:.1f} ms from a memory map here: {ratio:.2f}x")


def _median(figures: list[Figures]) -> Figures:
    return {name: statistics.median(it[name] for it in figures) for name in figures[0]}


if __name__ == "__main__":
    main()
