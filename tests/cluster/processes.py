"""Daemons as child processes, to be killed, frozen and restarted, and what the ensemble's own log says of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from zkd.zk.apache import class_path, dies_with_us, java

MODULES = Path(__file__).parents[1] / "node" / "modules"
ROOT = Path(__file__).parents[2]


class DaemonProcess:
    """One `zkd daemon`. Its worker processes die with it, however it ends."""

    def __init__(self, hosts: str, root: str, name: str, directory: Path, *, slots: int, timeout_s: float) -> None:
        self.name = name
        self.log_path = directory / f"{name}.log"
        self.data_dir = directory / f"{name}-data"
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{MODULES}",
            "ZKD_ZOOKEEPER__HOSTS": hosts,
            "ZKD_ZOOKEEPER__ROOT": root,
            "ZKD_ZOOKEEPER__SESSION_TIMEOUT_S": str(timeout_s),
            "ZKD_NODE__NAME": name,
            "ZKD_NODE__SLOTS": str(slots),
            "ZKD_NODE__DATA_DIR": str(self.data_dir),
            "ZKD_NODE__DRAIN_TIMEOUT_S": "5",
            "ZKD_WORKERS__MODULES": "mischief",
            "ZKD_LOG__FORMAT": "json",
        }
        self.prefix: tuple[str, ...] = ()  # goes before the command, to run it somewhere else: in a network namespace
        self.command: tuple[str, ...] = ("zkd", "daemon")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} was never started"
        return self._process

    def start(self) -> None:
        assert self._process is None or self._process.poll() is not None, f"{self.name} runs already"
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*dies_with_us(), *self.prefix, sys.executable, "-m", *self.command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait for the process to be gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """Freeze the daemon; its kernels go on."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def wait(self, within_s: float) -> int:
        """The exit code."""
        return self.process.wait(within_s)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


# --- The second witness -----------------------------------------------------------------------------------

_RECORD = re.compile(r"^\S+, \S+.*? session (0x[0-9a-f]+) cxid \S+ zxid (0x[0-9a-f]+) (\w+) ?")


def transactions(data_dir: Path) -> Iterator[tuple[str, str, str]]:
    """(session, kind, text) of every transaction in a server's log, in the order in which they were committed."""
    logs = sorted(data_dir.glob("version-2/log.*"), key=lambda path: int(path.suffix[1:], 16))
    for log in logs:
        tool = [java(), "-cp", class_path(), "org.apache.zookeeper.server.persistence.TxnLogToolkit", "-d", str(log)]
        done = subprocess.run(tool, capture_output=True, text=True, errors="replace", timeout=60, check=False)
        record: tuple[str, str, list[str]] | None = None
        for line in done.stdout.split("\n"):
            start = _RECORD.match(line)
            if start:
                if record is not None:
                    yield record[0], record[1], "\n".join(record[2])
                record = (start[1], start[3], [line[start.end(2) :]])
            elif record is not None:
                record[2].append(line)
        if record is not None:
            yield record[0], record[1], "\n".join(record[2])


def created_below(data_dir: Path, directory: str) -> Counter[str]:
    """How often each child of `directory` was created, by the server's own account."""
    # Inside a transaction of several the tool prints a path as it is in the log, behind its length in four bytes.
    create = re.compile(rf"create\w*(?: |:.{{4}}){re.escape(directory)}/([A-Za-z0-9_.:-]+)", re.DOTALL)
    counts: Counter[str] = Counter()
    for _, kind, text in transactions(data_dir):
        if kind.startswith(("create", "multi")) and "error:" not in text:
            counts.update(create.findall(text))
    return counts


def writes_after_the_end(data_dir: Path) -> list[str]:
    """Transactions of sessions that were over. There must be none."""
    over: set[str] = set()
    late = []
    for session, kind, text in transactions(data_dir):
        if session in over and kind not in ("closeSession", "error"):
            late.append(f"{session} {kind} {text[:200]}")
        if kind == "closeSession":
            over.add(session)
    return late


def wait_for_exit(processes: list[DaemonProcess], within_s: float) -> list[int]:
    deadline = time.monotonic() + within_s
    return [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
