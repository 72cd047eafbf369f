"""A whole cluster for a test: a ZooKeeper in a thread, nodes as processes, and switches to break them.

The ZooKeeper is the embedded one unless `hosts` names another. Nodes find modules where this program finds them.
Everything ends with the block, and with this process however that ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from zkd.errors import Unavailable, ZkdError
from zkd.zk.apache import dies_with_us

if TYPE_CHECKING:
    from zkd.client import Client
    from zkd.records import Node
    from zkd.zk.server import EmbeddedServer

T = TypeVar("T")

READY_S = 30.0  # a node is ready in one second; a crowded machine takes longer
STOP_S = 20.0  # to drain; then it is killed
LOOK_S = 0.05
LAST_LINES = 20


class ClusterFailed(ZkdError):
    """The cluster did not get to where a test needs it. The message ends with what the nodes said last."""


class LocalCluster:
    """Nodes named `names` (by default one, "a") below `root`; `modules` are those with their kernels.

    `settings` are those of every node, as in zkd.toml with dots: ``{"node.slots": 1, "workers.timeout_s": 5}``. Methods
    block and may be called from any thread but not from a coroutine's; there, use `client` and the rest in a thread.
    """

    def __init__(
        self,
        *names: str,
        modules: Sequence[str] = (),
        settings: Mapping[str, object] | None = None,
        hosts: str | None = None,
        root: str | None = None,
        session_timeout_s: float = 4.0,
    ) -> None:
        self.names = names or ("a",)
        self.root = root or f"/zkd-test-{uuid.uuid4().hex[:12]}"
        self._hosts = hosts
        self._settings = {
            "node.slots": 1,
            "node.drain_timeout_s": 2.0,
            "zookeeper.session_timeout_s": session_timeout_s,
            **({"workers.modules": ",".join(modules)} if modules else {}),
            **(settings or {}),
        }
        self._server: EmbeddedServer | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._frozen: set[str] = set()
        self._stack = ExitStack()
        self._loop: asyncio.AbstractEventLoop
        self._client: Client
        self.directory: Path

    @property
    def hosts(self) -> str:
        """The connect string."""
        assert self._hosts is not None, "known when the cluster has been started"
        return self._hosts

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zkd-test-")))
            self._start_loop(stack)
            if self._hosts is None:
                self._start_server(stack)
            stack.callback(self._stop_nodes)
            for name in self.names:
                self.start(name, wait=False)
            self.wait_for(*self.names)
            self._client = self._call(self._open_client())
            stack.callback(lambda: self._call(self._client.__aexit__(None, None, None)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # --- Work -------------------------------------------------------------------------------------------

    def run(self, kernel: str, *args: Any, **kwargs: Any) -> Any:
        """The value of a kernel for these arguments, as `Client.run` gives it, within 30 s."""
        return self.result(self.submit(kernel, *args, **kwargs))

    def submit(self, kernel: str, *args: Any, **kwargs: Any) -> str:
        """Drop a task; gives its id."""

        async def drop() -> str:
            return (await self._client.submit(kernel, *args, **kwargs)).id

        return self._call(drop())

    def result(self, task_id: str, timeout_s: float = READY_S) -> Any:
        """The value of a task. Raises what `Handle.result` raises, `ResultTimeout` after `timeout_s`, too."""
        return self._call(self._client.handle(task_id).result(timeout_s))

    def client(self) -> Client:
        """A client of one's own, for ``async with``."""
        from zkd.client import Client

        return Client(self.hosts, self.root)

    def call(self, function: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """What a coroutine function makes of the cluster's client: ``cluster.call(lambda c: c.datasets.list())``."""
        return self._call(function(self._client))

    # --- Nodes ------------------------------------------------------------------------------------------

    def nodes(self) -> dict[str, Node]:
        """Those that are there, as the tree says."""

        async def read() -> dict[str, Node]:
            async with self.client() as client:
                return dict(await client.nodes())

        return self._call(read())

    def wait_for(self, *names: str, within_s: float = READY_S) -> None:
        """Until these are there, and one leads. Raises `ClusterFailed`."""

        async def are_there() -> bool:
            async with self.client() as client:
                return set(names) <= (await client.nodes()).keys() and await client.leader() is not None

        deadline = time.monotonic() + within_s
        while True:
            try:
                if self._call(are_there()):
                    return
            except Unavailable:
                pass  # as long as a test keeps ZooKeeper away
            ended = [name for name in names if self._processes[name].poll() is not None]
            if ended or time.monotonic() > deadline:
                why = f"{ended[0]} ended with {self._processes[ended[0]].poll()}" if ended else f"not in {within_s:g} s"
                said = "\n".join(f"--- {name}\n{self.last_words(name)}" for name in ended or names)
                raise ClusterFailed(f"expected the nodes {', '.join(names)}: {why}\n{said}")
            time.sleep(LOOK_S)

    def start(self, name: str, *, wait: bool = True) -> None:
        """Start a node, a new one, too, or one that ended. It keeps its data."""
        if name in self._processes and self._processes[name].poll() is None:
            raise ClusterFailed(f"the node {name} runs already")
        given = self._settings | {
            "node.name": name,
            "node.data_dir": str(self.directory / name),
            "node.http": "127.0.0.1:0",
        }
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "ZKD_HOSTS": self.hosts,
            "ZKD_ROOT": self.root,
            **{f"ZKD_{key.upper().replace('.', '__')}": _shown(value) for key, value in given.items()},
        }
        environment.pop("ZKD_CONFIG", None)
        with self._log_path(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*dies_with_us(), sys.executable, "-m", "zkd", "daemon"],
                env=environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.wait_for(name)

    def stop(self, name: str) -> int:
        """Ask a node to drain and end; gives its exit code."""
        process = self._running(name)
        process.terminate()
        self.thaw(name)
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ClusterFailed(f"{name} did not stop within {STOP_S:g} s\n{self.last_words(name)}") from None

    def kill(self, name: str) -> None:
        """kill -9. Others notice when its session is over."""
        process = self._running(name)
        process.kill()
        process.wait()
        self._frozen.discard(name)

    def freeze(self, name: str) -> None:
        """SIGSTOP: it is there and does nothing, and its session runs out. Its kernels go on."""
        self._running(name).send_signal(signal.SIGSTOP)
        self._frozen.add(name)

    def thaw(self, name: str) -> None:
        """Let a frozen node go on."""
        if name in self._frozen:
            self._running(name).send_signal(signal.SIGCONT)
            self._frozen.discard(name)

    def log(self, name: str) -> str:
        """All that a node has logged, over all its lives."""
        path = self._log_path(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def last_words(self, name: str, lines: int = LAST_LINES) -> str:
        return "\n".join(self.log(name).splitlines()[-lines:])

    # --- ZooKeeper --------------------------------------------------------------------------------------

    def expire(self, name: str) -> None:
        """End the session of a node now, as after a long silence: it comes back with another."""
        node = self.nodes().get(name)
        if node is None:
            raise ClusterFailed(f"expected a node {name}, got {', '.join(sorted(self.nodes())) or 'none'}")
        self._in_server(lambda server: server.expire(int(node.incarnation.partition(".")[0], 16)))

    def cut_connections(self) -> None:
        """Break every connection to ZooKeeper once. Sessions live on."""
        self._in_server(lambda server: server.drop_connections())

    def keep_zookeeper_away(self) -> None:
        """Refuse all connections, until `let_zookeeper_back`."""
        self._in_server(lambda server: server.refuse())

    def let_zookeeper_back(self) -> None:
        """End this and any delay."""
        self._in_server(lambda server: server.heal())

    def delay_zookeeper(self, seconds: float) -> None:
        """Answer everything this much later; 0 ends it."""
        self._in_server(lambda server: server.delay(seconds))

    # --- Inside -----------------------------------------------------------------------------------------

    def _in_server(self, do: Callable[[EmbeddedServer], None]) -> None:
        server = self._server
        if server is None:
            raise ClusterFailed("expected the embedded ZooKeeper; what is done to yours is yours to do")

        async def there() -> None:
            do(server)

        self._call(there())

    def _start_loop(self, stack: ExitStack) -> None:
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="zkd-test-cluster", daemon=True)
        thread.start()

        def end() -> None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

        stack.callback(end)

    def _start_server(self, stack: ExitStack) -> None:
        from zkd.zk.server import EmbeddedServer

        self._server = server = EmbeddedServer()
        self._call(server.start())
        self._hosts = server.connect_string

        def end() -> None:
            self._call(server.stop())
            self._server = self._hosts = None

        stack.callback(end)

    async def _open_client(self) -> Client:
        return await self.client().__aenter__()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Every call has a limit of its own."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _running(self, name: str) -> subprocess.Popen[bytes]:
        process = self._processes.get(name)
        if process is None or process.poll() is not None:
            raise ClusterFailed(f"expected a node {name} that runs, got one that {'ended' if process else 'never did'}")
        return process

    def _stop_nodes(self) -> None:
        alive = [process for process in self._processes.values() if process.poll() is None]
        for process in alive:
            process.terminate()
            process.send_signal(signal.SIGCONT)  # one that is frozen would not hear of it
        deadline = time.monotonic() + STOP_S
        for process in alive:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _log_path(self, name: str) -> Path:
        return self.directory / f"{name}.log"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
