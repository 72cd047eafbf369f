"""The processes behind `zkd dev`: a ZooKeeper, and daemons that are children of this one."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from zkd.cli.exits import Exit, Stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zkd.zk import Event, StateChange

READY_S = 60.0
STOP_S = 20.0  # a daemon drains for a while; then it is killed


async def serve(nodes: int, port: int, hosts: str | None, directory: Path, root: str, options: list[str]) -> int:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for end in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(end, over.set)
    async with AsyncExitStack() as stack:
        if hosts is None:
            from zkd.zk.server import EmbeddedServer

            try:
                hosts = (await stack.enter_async_context(EmbeddedServer(port=port))).connect_string
            except OSError as error:
                raise Stop(
                    Exit.CONFLICT, f"error: port {port} cannot be used: {error.strerror}\n  --port 0 takes a free one."
                ) from None
        _say(hosts)
        cluster = _Cluster(directory, hosts, options)
        stack.push_async_callback(cluster.stop)
        names = [f"dev-{number + 1}" for number in range(nodes)]
        for name in names:
            await cluster.start(name)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        reports = [tasks.create_task(cluster.report(name)) for name in names]
        ready = tasks.create_task(_wait_until_ready(hosts, root, names))
        stopping = tasks.create_task(over.wait())
        try:
            return await _follow(hosts, ready, stopping, reports)
        finally:
            for task in (ready, stopping, *reports):
                task.cancel()


async def _follow(
    hosts: str, ready: asyncio.Task[None], stopping: asyncio.Task[Literal[True]], reports: Sequence[asyncio.Task[None]]
) -> int:
    """Say when it is ready; return when it is told to stop, or when no node is left."""
    started = time.monotonic()
    pending: set[asyncio.Task[Any]] = {ready, stopping, *reports}
    while True:
        # No bound once it is ready: a cluster runs until it is stopped.
        left = None if ready.done() else max(0.0, started + READY_S - time.monotonic())
        done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if stopping in done:
            return Exit.OK
        if not done:
            click.echo(f"error: the nodes are not ready after {READY_S:g} s\n  --log-level info says more.", err=True)
            return Exit.TIMED_OUT
        if ready in done:
            ready.result()
            _say("ready")
            if sys.stdout.isatty():
                click.echo(f"Try, in another terminal: zkd --hosts {hosts} run numpy.sum '[1, 2, 3]'", err=True)
        if reports and all(report.done() for report in reports):
            click.echo("error: no node is left", err=True)
            return Exit.TASK_FAILED


class _Cluster:
    """The daemons that this command started."""

    def __init__(self, directory: Path, hosts: str, options: list[str]) -> None:
        self._directory = directory
        self._hosts = hosts
        self._options = options
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._is_stopping = False

    async def start(self, name: str) -> None:
        from zkd.zk.apache import dies_with_us

        command = [sys.executable, "-m", "zkd", "daemon", "--hosts", self._hosts, "--name", name]
        command += ["--data-dir", str(self._directory / name), "--http", "127.0.0.1:0", *self._options]
        # A session of its own, so that Ctrl-C in the terminal comes to us alone and they are stopped in order.
        self._children[name] = await asyncio.create_subprocess_exec(
            *dies_with_us(), *command, stdin=asyncio.subprocess.DEVNULL, stdout=2, start_new_session=True
        )

    async def report(self, name: str) -> None:
        """Say so when this one ends and was not told to."""
        code = await self._children[name].wait()
        if not self._is_stopping:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            click.echo(f"node {name} (pid {self._children[name].pid}) {how}", err=True)

    async def stop(self) -> None:
        self._is_stopping = True
        alive = [child for child in self._children.values() if child.returncode is None]
        for child in alive:
            child.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                for child in alive:
                    await child.wait()
        except TimeoutError:
            for child in alive:
                if child.returncode is None:
                    child.kill()
                    await child.wait()


async def _wait_until_ready(hosts: str, root: str, names: list[str]) -> None:
    """Until all of these are there, and one node leads."""
    from zkd.client import Client

    changed = asyncio.Event()

    def hear(_: Event | StateChange) -> None:
        changed.set()

    async with Client(hosts, root) as client:
        client.session.subscribe(hear)
        for path in (client.paths.nodes, client.paths.control):
            await client.session.add_watch(path, hear, recursive=True)
        while True:
            changed.clear()
            if set(names) <= (await client.nodes()).keys() and (not names or await client.leader() is not None):
                return
            await changed.wait()  # the caller bounds it


def _say(text: str) -> None:
    click.echo(text)
    sys.stdout.flush()
