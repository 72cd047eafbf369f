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
from typing import Protocol

import psutil

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


class Zkd:
    """Our own client, a daemon with two workers, a real ZooKeeper on disk. Its client lives in a thread's loop."""

    name = "zkd"

    def __init__(self, connect_string: str, server_pid: int, daemon_pids: list[int]) -> None:
        import uvloop

        import zkd

        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = zkd.Client(connect_string)
        self._do(self._client.__aenter__())
        self._pids = [server_pid, *daemon_pids]

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
        return self._pids

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
        assert server.pid is not None
        zkd = Zkd(server.connect_string, server.pid, [daemon.pid for daemon in daemons])
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
def celery_cluster() -> Iterator[Celery]:
    if shutil.which("redis-server") is None:
        raise SystemExit("celery needs redis-server: apt-get install redis-server")
    port = free_port()
    broker = f"redis://127.0.0.1:{port}/0"
    with tempfile.TemporaryDirectory() as home:
        redis = subprocess.Popen(
            ["redis-server", "--port", str(port), "--save", "", "--dir", home], stdout=subprocess.DEVNULL
        )
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.celery_app", "worker", "-c", "2", "-P", "prefork"]
        environment = {**os.environ, "ZKD_BENCH_BROKER": broker}
        worker = subprocess.Popen(
            [*command, "--without-gossip", "--without-mingle", "-l", "warning"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            celery = Celery(broker, [redis.pid, worker.pid])
            celery.many(10)
            yield celery
        finally:
            worker.terminate()
            worker.wait()
            redis.terminate()
            redis.wait()


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


CONTENDERS = {"zkd": zkd_cluster, "dask": dask_cluster, "celery": celery_cluster, "kazoo": kazoo_cluster}
