"""A ZooKeeper and some daemons as child processes of this one.

Each child leads a process group of its own, so that Ctrl-C and kill -9 reach only whom they are meant for; and
all of them end with this process, however that ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from zkd.zk.apache import ApacheServer, dies_with_us

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
# A lost node is missed after this long. Short, since here no network is slow and somebody is watching.
SESSION_TIMEOUT_S = 2.0
STOP_S = 10.0


class ClusterError(Exception):
    """A child process did not start, or ended. The message ends with its last words."""


def add_zookeeper_option(parser: argparse.ArgumentParser) -> None:
    """--zookeeper [HOST:PORT], as `Cluster` takes it."""

    def check(text: str) -> str:
        if text not in ("embedded", "apache") and ":" not in text:
            raise argparse.ArgumentTypeError(f"expected HOST:PORT, got {text!r}")
        return text

    parser.add_argument(
        "--zookeeper",
        type=check,
        nargs="?",
        const="apache",
        default="embedded",
        metavar="HOST:PORT",
        help="a real Apache ZooKeeper, started here or running there, instead of the embedded server",
    )


class Cluster:
    """`with Cluster(["a", "b"], logs) as cluster:` gives running processes, not yet a cluster that is ready.

    `zookeeper` is "embedded", "apache" (a real one, started here), or the host:port of one that runs already. Below
    `data` each node has a directory of its own.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        logs: Path,
        *,
        zookeeper: str = "embedded",
        root: str,
        slots: int,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.nodes = list(nodes)
        self.logs = logs
        self.root = root
        self.slots = slots
        self.settings = dict(settings or {})  # ZKD_… of the daemons
        self.zookeeper = zookeeper
        self.hosts = ""
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.logs.mkdir(parents=True, exist_ok=True)
            self.data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zkd-tour-")))
            self.hosts = self._start_zookeeper(stack)
            stack.callback(self.stop_daemons)
            for node in self.nodes:
                self._daemons[node] = self._start_daemon(node)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start_zookeeper(self, stack: ExitStack) -> str:
        if self.zookeeper == "apache":
            return stack.enter_context(ApacheServer()).connect_string
        if self.zookeeper != "embedded":
            return self.zookeeper
        command = [*dies_with_us(), sys.executable, "-m", "zkd.zk.server", "--port", "0", "--tick-s", "0.2"]
        with (self.logs / "zookeeper.log").open("wb") as log:
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
        stack.callback(_end, server, signal.SIGTERM)
        assert server.stdout is not None
        stack.callback(server.stdout.close)
        words = server.stdout.readline().split()  # in-memory ZooKeeper on 127.0.0.1:40123, for …
        if len(words) < 4:
            raise ClusterError(f"the embedded ZooKeeper did not start\n{self.last_words('zookeeper')}")
        return words[3].rstrip(",")

    def _start_daemon(self, node: str) -> subprocess.Popen[bytes]:
        options = ["--hosts", self.hosts, "--root", self.root, "--name", node, "--slots", str(self.slots)]
        options += ["--data-dir", str(self.data / node), "--http", "127.0.0.1:0", "--module", "bootstrap"]
        # Only what is said here counts, not what this machine's own daemon is told.
        env = {name: value for name, value in os.environ.items() if not name.startswith("ZKD_")}
        env |= {
            "ZKD_ZOOKEEPER__SESSION_TIMEOUT_S": str(SESSION_TIMEOUT_S),
            "ZKD_CONFIG": os.devnull,
            "PYTHONPATH": str(KERNELS),
            **self.settings,
        }
        with (self.logs / f"{node}.log").open("wb") as log:
            return subprocess.Popen(
                [*dies_with_us(), sys.executable, "-m", "zkd", "daemon", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
            )

    def wait_until(self, is_ready: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Return when `is_ready`; raise `ClusterError` when a daemon ends or time is up before that."""
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            for node, daemon in self._daemons.items():
                if daemon.poll() is not None:
                    raise ClusterError(f"{node} ended with code {daemon.returncode}\n{self.last_words(node)}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{what}: not within {timeout_s:g} s; the logs are in {self.logs}")
            time.sleep(0.02)

    def kill(self, node: str) -> int:
        """kill -9 this daemon, and it alone: its workers have to notice by themselves. Its process id."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        return daemon.pid

    def is_alive(self, node: str) -> bool:
        return node in self._daemons and self._daemons[node].poll() is None

    def last_words(self, name: str, lines: int = 12) -> str:
        text = (self.logs / f"{name}.log").read_text(errors="replace")
        return "\n".join(f"  {name}: {line}" for line in text.splitlines()[-lines:])

    def stop_daemons(self) -> None:
        """Let all of them drain and leave, at the same time."""
        for daemon in self._daemons.values():
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons.values():
            _end(daemon, signal.SIGTERM)
        self._daemons.clear()


def _end(process: subprocess.Popen[bytes] | subprocess.Popen[str], gently: signal.Signals) -> None:
    """Ask a process to end, and make it and its group do so if it does not."""
    process.send_signal(gently)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
