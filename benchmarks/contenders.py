"""The systems that `benchmarks.tasks` sets side by side, each behind the same four calls.

Each runs its own servers on this machine, in processes of their own, with two workers: what it takes to hand
one trivial call to a worker process and get its value back. zkd and the kazoo queue keep every task on disk
(a real, fsyncing ZooKeeper); the others keep it in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil

if TYPE_CHECKING:
    from zkd.zk.apache import ApacheServer

PAYLOAD = "x" * 60  # about 100 bytes a task with what is around it


class Contender(Protocol):
    """Ready to work between entering and leaving its context."""

    name: str

    def many(self, n: int) -> None:
        """Submit n tasks and wait for all of their values."""

    def one(self) -> None:
        """Submit one task and wait for its value."""

    def pids(self) -> list[int]:
        """The processes at the top of everything that works for it, servers included."""


# What a part of a contender has used so far, by name: CPU seconds, or packets.
Parts = dict[str, float]


def own_cpu_s(pid: int) -> float:
    """CPU seconds used so far by this process alone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def cpu_s(pids: list[int]) -> float:
    """CPU seconds used so far by these processes and everything below them, each counted once."""
    total = 0.0
    for process in _all_of(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def memory_mb(pids: list[int]) -> float:
    """Proportional set size of these processes and everything below them."""
    total = 0
    for process in _all_of(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 2**20


def _all_of(pids: list[int]) -> set[psutil.Process]:
    found = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(pid)
            found |= {top, *top.children(recursive=True)}
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(is_true: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {timeout_s} s")
        time.sleep(0.02)


def packets(server: ApacheServer) -> tuple[float, float]:
    """How many this server has received and sent so far."""
    from zkd.zk.apache import ask

    lines = dict(line.split("\t", 1) for line in ask(server.port, b"mntr").splitlines() if "\t" in line)
    return float(lines["zk_packets_received"]), float(lines["zk_packets_sent"])


class Zkd:
    """Our own client, a daemon with two workers, a real ZooKeeper on disk. Its client lives in a thread's loop."""

    name = "zkd"

    def __init__(self, server: ApacheServer, daemon_pids: list[int]) -> None:
        import uvloop

        import zkd

        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = zkd.Client(server.connect_string)
        self._do(self._client.__aenter__())
        assert server.pid is not None
        self._server = server
        self._server_pid, self._daemon_pids = server.pid, daemon_pids

    def _do(self, doing: object) -> object:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(300)  # type: ignore[arg-type]

    def many(self, n: int) -> None:
        async def run() -> None:
            await asyncio.gather(*(self._client.run("identity", PAYLOAD) for _ in range(n)))

        self._do(run())

    def one(self) -> None:
        self._do(self._client.run("identity", PAYLOAD))

    def items(self, n: int) -> None:
        """The same as one `client.map`: many items to a znode."""
        self._do(self._client.map("identity", [PAYLOAD[:8]] * n))

    def pids(self) -> list[int]:
        return [self._server_pid, *self._daemon_pids]

    def parts(self) -> Parts:
        """CPU seconds of each kind of process, and packets at the server."""
        daemons = sum(map(own_cpu_s, self._daemon_pids))
        received, sent = packets(self._server)
        return {
            "client": own_cpu_s(os.getpid()),
            "ZooKeeper": own_cpu_s(self._server_pid),
            "daemons, one of them leading": daemons,
            "workers": cpu_s(self._daemon_pids) - daemons,
            "packets received by ZooKeeper": received,
            "packets sent by ZooKeeper": sent,
        }

    def close(self) -> None:
        self._do(self._client.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@contextlib.contextmanager
def zkd_cluster(nodes: int = 1) -> Iterator[Zkd]:
    from zkd.zk.apache import ApacheServer, Flags

    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(
            ApacheServer(home / "zookeeper", flags=Flags(force_sync=True, long_lived=True, heap="1000m"))
        )
        daemons = []
        for number in range(nodes):
            name = f"bench-{number}"
            log = stack.enter_context((home / f"{name}.log").open("w"))
            command = [sys.executable, "-m", "zkd", "--hosts", server.connect_string, "daemon"]
            command += ["--name", name, "--slots", str(2 // nodes), "--data-dir", str(home / name)]
            daemon = subprocess.Popen(command, stderr=log)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
            daemons.append(daemon)
            wait_until(lambda file=log.name: "daemon.ready" in Path(file).read_text(), f"daemon {name}")  # type: ignore[misc]
        zkd = Zkd(server, [daemon.pid for daemon in daemons])
        stack.callback(zkd.close)
        zkd.many(10)
        yield zkd


class Dask:
    name = "dask"

    def __init__(self) -> None:
        from distributed import Client, LocalCluster

        self._cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
        self._client = Client(self._cluster)

    def many(self, n: int) -> None:
        self._client.gather(self._client.map(_same, [PAYLOAD] * n, pure=False))

    def one(self) -> None:
        self._client.submit(_same, PAYLOAD, pure=False).result()

    def pids(self) -> list[int]:
        # Its scheduler runs in this very process, so only its nannies and workers stand apart.
        return [nanny.pid for nanny in self._cluster.workers.values() if nanny.pid]

    def close(self) -> None:
        self._client.close()
        self._cluster.close()


def _same(value: str) -> str:
    return value


@contextlib.contextmanager
def dask_cluster() -> Iterator[Dask]:
    dask = Dask()
    try:
        dask.many(10)
        yield dask
    finally:
        dask.close()


class Celery:
    name = "celery"

    def __init__(self, broker: str, pids: list[int]) -> None:
        from benchmarks.celery_app import app, same

        app.conf.update(broker_url=broker, result_backend=broker)
        self._same = same
        self._pids = pids

    def many(self, n: int) -> None:
        handles = [self._same.delay(PAYLOAD) for _ in range(n)]
        for handle in handles:
            handle.get(timeout=300)

    def one(self) -> None:
        self._same.delay(PAYLOAD).get(timeout=30)

    def pids(self) -> list[int]:
        return self._pids


@contextlib.contextmanager
def redis_server(name: str) -> Iterator[tuple[str, int]]:
    """A Redis of its own without a disk: its URL and its process."""
    if shutil.which("redis-server") is None:
        raise SystemExit(f"{name} needs redis-server: apt-get install redis-server")
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        redis = subprocess.Popen(
            ["redis-server", "--port", str(port), "--save", "", "--dir", home], stdout=subprocess.DEVNULL
        )
        try:
            yield f"redis://127.0.0.1:{port}/0", redis.pid
        finally:
            redis.terminate()
            redis.wait()


@contextlib.contextmanager
def consumer(command: list[str], broker: str) -> Iterator[int]:
    """A process that works for a broker: its pid."""
    environment = {**os.environ, "ZKD_BENCH_BROKER": broker}
    worker = subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield worker.pid
    finally:
        worker.terminate()
        worker.wait()


@contextlib.contextmanager
def celery_cluster() -> Iterator[Celery]:
    command = ["celery", "-A", "benchmarks.celery_app", "worker", "-c", "2", "-P", "prefork"]
    command += ["--without-gossip", "--without-mingle", "-l", "warning"]
    with redis_server("celery") as (broker, redis), consumer(command, broker) as worker:
        celery = Celery(broker, [redis, worker])
        celery.many(10)
        yield celery


class Taskiq:
    name = "taskiq"

    def __init__(self, broker: str, pids: list[int]) -> None:
        os.environ["ZKD_BENCH_BROKER"] = broker
        from benchmarks.taskiq_app import broker as app
        from benchmarks.taskiq_app import same

        self._app = app
        self._same = same
        self._pids = pids
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(app.startup())

    def many(self, n: int) -> None:
        async def run() -> None:
            tasks = [await self._same.kiq(PAYLOAD) for _ in range(n)]
            for task in tasks:
                await task.wait_result(check_interval=0.002, timeout=300)

        self._loop.run_until_complete(run())

    def one(self) -> None:
        async def run() -> None:
            await (await self._same.kiq(PAYLOAD)).wait_result(check_interval=0.001, timeout=30)

        self._loop.run_until_complete(run())

    def pids(self) -> list[int]:
        return self._pids

    def close(self) -> None:
        self._loop.run_until_complete(self._app.shutdown())
        self._loop.close()


@contextlib.contextmanager
def taskiq_cluster() -> Iterator[Taskiq]:
    command = ["taskiq", "worker", "benchmarks.taskiq_app:broker", "--workers", "2"]
    with redis_server("taskiq") as (broker, redis), consumer(command, broker) as worker:
        taskiq = Taskiq(broker, [redis, worker])
        try:
            taskiq.many(10)
            yield taskiq
        finally:
            taskiq.close()


class Ray:
    """Tasks, as `@ray.remote` functions; with `actors` calls to two actors in turn, which is Ray's quickest way."""

    name = "ray"

    def __init__(self, pids: list[int], actors: int) -> None:
        import ray

        self._ray = ray
        self._pids = pids
        remote: Any = ray.remote(_same)
        self._targets = [remote] if not actors else [ray.remote(_Actor).remote().same for _ in range(actors)]

    def many(self, n: int) -> None:
        targets = self._targets
        self._ray.get([targets[number % len(targets)].remote(PAYLOAD) for number in range(n)])

    def one(self) -> None:
        self._ray.get(self._targets[0].remote(PAYLOAD))

    def pids(self) -> list[int]:
        return self._pids


class _Actor:
    def same(self, value: str) -> str:
        return value


@contextlib.contextmanager
def ray_cluster(actors: int = 0) -> Iterator[Ray]:
    import ray

    # Tasks and actors share one: a program has no more.
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", ignore_reinit_error=True)
    try:
        children = psutil.Process().children()
        cluster = Ray([child.pid for child in children if "/ray/" in " ".join(child.cmdline())], actors)
        cluster.many(10)
        yield cluster
    finally:
        ray.shutdown()


class LockingQueue:
    """The textbook way on ZooKeeper: kazoo's LockingQueue, two consumers, results as znodes."""

    name = "kazoo-queue"

    def __init__(self, connect_string: str, pids: list[int]) -> None:
        from kazoo.client import KazooClient

        self._client = KazooClient(connect_string)
        self._client.start()
        self._client.ensure_path("/answers")
        self._queue = self._client.LockingQueue("/queue")
        self._pids = pids

    def many(self, n: int) -> None:
        self._queue.put_all([PAYLOAD.encode()] * n)
        wait_until(lambda: len(self._client.get_children("/answers")) >= n, f"{n} answers", 600)
        for child in self._client.get_children("/answers"):
            self._client.delete(f"/answers/{child}")

    def one(self) -> None:
        came = threading.Event()
        self._client.get_children("/answers", watch=lambda _: came.set())
        self._queue.put(PAYLOAD.encode())
        came.wait(30)
        for child in self._client.get_children("/answers"):
            self._client.delete(f"/answers/{child}")

    def pids(self) -> list[int]:
        return self._pids

    def close(self) -> None:
        self._client.stop()
        self._client.close()


@contextlib.contextmanager
def kazoo_cluster() -> Iterator[LockingQueue]:
    from zkd.zk.apache import ApacheServer, Flags

    with (
        tempfile.TemporaryDirectory() as home,
        ApacheServer(home, flags=Flags(force_sync=True, long_lived=True, heap="1000m")) as server,
    ):
        consumers = [
            subprocess.Popen([sys.executable, "-m", "benchmarks.kazoo_consumer", server.connect_string]) for _ in "12"
        ]
        assert server.pid is not None
        queue = LockingQueue(server.connect_string, [server.pid, *(consumer.pid for consumer in consumers)])
        try:
            queue.many(10)
            yield queue
        finally:
            queue.close()
            for consumer in consumers:
                consumer.terminate()
                consumer.wait()


CONTENDERS = {
    "zkd": zkd_cluster,
    "dask": dask_cluster,
    "celery": celery_cluster,
    "taskiq": taskiq_cluster,
    "kazoo": kazoo_cluster,
    "ray": ray_cluster,
    "ray-actors": lambda: ray_cluster(actors=2),
}
