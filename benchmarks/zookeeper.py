"""How fast zkd's ZooKeeper session is, beside plain aiozk, kazoo and a raw asyncio client.

    python benchmarks/zookeeper.py [--rounds 5] [--seconds 2] [--netty]

All four talk to one real Apache ZooKeeper with its default settings (NIO, fsync on), in turn, each time in
a new process; the table has the median of the rounds. CPU is that of the client's process, all threads.
`raw` writes prepared frames and counts replies: it neither encodes nor decodes, so it is the floor for a
client in Python on the same loop. Everything but kazoo runs on uvloop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CLIENTS = ("zkd", "raw", "aiozk", "kazoo")
JOBS = ("create", "get", "multi")
IN_FLIGHT = {"create": 256, "get": 256, "multi": 4}
OPS_A_REQUEST = {"create": 1, "get": 1, "multi": 100}
DATA = b"x" * 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--netty", action="store_true", help="run the server on its Netty connection factory")
    parser.add_argument("--one", nargs=3, metavar=("CLIENT", "JOB", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        client, job, port = options.one
        print(json.dumps(measure(client, job, int(port), options.seconds)))
    else:
        compare(options.rounds, options.seconds, options.netty)


def compare(rounds: int, seconds: float, netty: bool) -> None:
    from zkd.zk.apache import ApacheServer, Flags

    figures: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with ApacheServer(flags=Flags(tick_ms=2000, force_sync=True, heap="1g", netty=netty)) as server:
        run("raw", "get", server.port, seconds)  # warms the JVM
        for number in range(rounds):
            for job in JOBS:
                # Another one begins each round, so that none always follows the same neighbour.
                for client in CLIENTS[number % 4 :] + CLIENTS[: number % 4]:
                    figures.setdefault((job, client), []).append(run(client, job, server.port, seconds))
    print(f"{'netty' if netty else 'nio'}, {rounds} rounds of {seconds:g} s, medians; load {os.getloadavg()[0]:.1f}")
    print(f"{'':8}{'in flight':>10}{'client':>8}{'ops/s':>10}{'CPU us/op':>11}{'x aiozk':>9}{'x raw':>7}")
    for job in JOBS:
        ops = {client: [value for value, _ in figures[job, client]] for client in CLIENTS}
        for client in CLIENTS:
            cpu = statistics.median(value for _, value in figures[job, client])
            # Of neighbours in time, since the server's speed drifts over a run (disk, JIT, other load).
            against = "".join(
                f"{statistics.median(a / b for a, b in zip(ops[client], ops[other], strict=True)):{width}.2f}"
                for other, width in (("aiozk", 9), ("raw", 7))
            )
            print(f"{job:8}{IN_FLIGHT[job]:10}{client:>8}{statistics.median(ops[client]):10.0f}{cpu:11.1f}{against}")


def run(client: str, job: str, port: int, seconds: float) -> tuple[float, float]:
    command = [sys.executable, __file__, "--seconds", str(seconds), "--one", client, job, str(port)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    ops, cpu = json.loads(done.stdout.splitlines()[-1])
    return ops, cpu


def measure(client: str, job: str, port: int, seconds: float) -> tuple[float, float]:
    """Operations a second, and the client's CPU in microseconds for each."""
    if client == "kazoo":
        return kazoo(job, port, seconds)
    import uvloop

    work = {"zkd": ours, "raw": raw, "aiozk": plain_aiozk}[client]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work(job, port, seconds))


def paths_for(job: str) -> tuple[str, list[str]]:
    root = f"/bench-{os.getpid()}-{time.time_ns()}"
    return root, [f"{root}/{number}" for number in range(100)]


async def prepared(port: int, root: str, paths: list[str]) -> None:
    from zkd.zk import Create, Session

    async with Session(f"127.0.0.1:{port}") as session:
        await session.connected(10)
        await session.multi([Create(root), *(Create(path, DATA) for path in paths)])


async def keep_in_flight(job: str, seconds: float, request: Callable[[int], Awaitable[Any]]) -> tuple[float, float]:
    """Run `request(n)` from as many coroutines as may be in flight, and count."""
    done = 0
    numbers = iter(range(1_000, 10**9))
    end = time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await request(next(numbers))
            done += 1

    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT[job])))
    return figures_of(job, done, time.perf_counter() - start, time.process_time() - cpu)


def figures_of(job: str, requests: int, wall_s: float, cpu_s: float) -> tuple[float, float]:
    ops = requests * OPS_A_REQUEST[job]
    return ops / wall_s, cpu_s / ops * 1e6


async def ours(job: str, port: int, seconds: float) -> tuple[float, float]:
    from zkd.zk import Session, SetData

    root, paths = paths_for(job)
    await prepared(port, root, paths)
    async with Session(f"127.0.0.1:{port}") as session:
        await session.connected(10)
        requests: dict[str, Callable[[int], Awaitable[Any]]] = {
            "create": lambda n: session.create(f"{root}/{n}", DATA),
            "get": lambda n: session.get(paths[n % 100]),
            "multi": lambda n: session.multi([SetData(path, DATA, -1) for path in paths]),
        }
        return await keep_in_flight(job, seconds, requests[job])


async def plain_aiozk(job: str, port: int, seconds: float) -> tuple[float, float]:
    import aiozk

    root, paths = paths_for(job)
    await prepared(port, root, paths)
    client = aiozk.ZKClient(f"127.0.0.1:{port}")
    await client.start()

    async def multi(n: int) -> None:
        transaction = client.begin_transaction()
        for path in paths:
            transaction.set_data(path, DATA)
        await transaction.commit()

    requests: dict[str, Callable[[int], Awaitable[Any]]] = {
        "create": lambda n: client.create(f"{root}/{n}", DATA),
        "get": lambda n: client.get(paths[n % 100]),
        "multi": multi,
    }
    try:
        return await keep_in_flight(job, seconds, requests[job])
    finally:
        await client.close()


class Blaster(asyncio.Protocol):
    """Writes frames that others prepared, and counts the replies."""

    def __init__(self, frame: Callable[[int], bytes], in_flight: int) -> None:
        self.frame = frame
        self.in_flight = in_flight
        self.done = self.number = 0
        self.rest = b""
        self.greeted = asyncio.get_running_loop().create_future()
        self.is_over = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(struct.pack("!iiqiqi", 45, 0, 0, 10_000, 0, 16) + bytes(17))

    def start(self) -> None:
        self.write(self.in_flight)

    def write(self, count: int) -> None:
        frames = [self.frame(self.number + offset + 1) for offset in range(count)]
        self.number += count
        self.transport.write(b"".join(frames))

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        at = count = 0
        while len(data) - at >= 4:
            stop = at + 4 + int.from_bytes(data[at : at + 4], "big")
            if stop > len(data):
                break
            at = stop
            count += 1
        self.rest = data[at:]
        if not self.greeted.done():
            self.greeted.set_result(None)
            return
        self.done += count
        if count and not self.is_over:
            self.write(count)


async def raw(job: str, port: int, seconds: float) -> tuple[float, float]:
    from zkd.zk import SetData, multi, wire

    root, paths = paths_for(job)
    await prepared(port, root, paths)
    gets = [wire.encode_path(path, False) for path in paths]
    tail = struct.pack("!i", len(DATA)) + DATA + wire.encode_create("", b"", False, False, False, None, None)[1][8:]
    sets = multi.encode_multi([SetData(path, DATA, -1) for path in paths])

    def create(n: int) -> bytes:
        path = b"%b/%010d" % (root.encode(), n)
        return b"%b%b%b%b" % (
            wire.HEAD.pack(12 + len(path) + len(tail), n, wire.CREATE2),
            struct.pack("!i", len(path)),
            path,
            tail,
        )

    frames: dict[str, Callable[[int], bytes]] = {
        "create": create,
        "get": lambda n: wire.HEAD.pack(len(gets[n % 100]) + 8, n, wire.GET) + gets[n % 100],
        "multi": lambda n: wire.HEAD.pack(len(sets) + 8, n, wire.MULTI) + sets,
    }
    loop = asyncio.get_running_loop()
    _, blaster = await loop.create_connection(lambda: Blaster(frames[job], IN_FLIGHT[job]), "127.0.0.1", port)
    await blaster.greeted
    start, cpu = time.perf_counter(), time.process_time()
    blaster.start()
    await asyncio.sleep(seconds)
    figures = figures_of(job, blaster.done, time.perf_counter() - start, time.process_time() - cpu)
    blaster.is_over = True
    blaster.transport.close()
    return figures


def kazoo(job: str, port: int, seconds: float) -> tuple[float, float]:
    import threading

    from kazoo.client import KazooClient

    root, paths = paths_for(job)
    asyncio.run(prepared(port, root, paths))
    client = KazooClient(f"127.0.0.1:{port}")
    client.start()
    slots = threading.Semaphore(IN_FLIGHT[job])
    done = 0

    def finished(result: Any) -> None:
        nonlocal done
        done += 1
        slots.release()

    def request(n: int) -> Any:
        if job == "create":
            return client.create_async(f"{root}/{n}", DATA)
        if job == "get":
            return client.get_async(paths[n % 100])
        transaction = client.transaction()
        for path in paths:
            transaction.set_data(path, DATA)
        return transaction.commit_async()

    start, cpu = time.perf_counter(), time.process_time()
    number = 1_000
    while time.perf_counter() - start < seconds:
        slots.acquire()
        number += 1
        request(number).rawlink(finished)
    figures = figures_of(job, done, time.perf_counter() - start, time.process_time() - cpu)
    client.stop()
    return figures


if __name__ == "__main__":
    main()
