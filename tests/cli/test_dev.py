"""`zkd dev` starts everything, reports what dies, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import Dev, wait_until
from zkd.cli import run
from zkd.zk.apache import free_port

if TYPE_CHECKING:
    from pathlib import Path


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    """Every process below this one."""
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    parent = int(stat.read().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == pid:
                found += [int(entry), *children(int(entry))]
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_it(tmp_path: Path, how: signal.Signals) -> None:
    dev = Dev(tmp_path / "log", "--nodes", "1")
    family = children(dev.process.pid)
    assert len(family) >= 2  # a daemon, and its workers
    assert dev.stop(how) == (0 if how is not signal.SIGKILL else -9)
    wait_until(lambda: not any(map(alive, family)))
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_node_that_dies_is_reported_and_the_others_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dev = Dev(tmp_path / "log", "--nodes", "2", "--data-dir", str(tmp_path / "data"))
    daemons = [
        pid for pid in children(dev.process.pid) if b"daemon" in _command(pid) and _parent(pid) == dev.process.pid
    ]
    assert len(daemons) == 2
    os.kill(daemons[0], signal.SIGKILL)
    wait_until(
        lambda: re.search(r"node dev-\d \(pid \d+\) was killed by SIGKILL", (tmp_path / "log").read_text()) is not None
    )
    assert run(["--hosts", dev.hosts, "run", "numpy.sum", "[1, 2]", "--timeout", "30"]) == 0
    assert capfd.readouterr().out == "3\n"
    assert dev.stop() == 0
    assert sorted(os.listdir(tmp_path / "data")) == ["dev-1", "dev-2"]


def test_a_port_that_is_taken_exits_6(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dev = Dev(tmp_path / "log", "--nodes", "0")
    assert run(["dev", "--port", dev.hosts.rpartition(":")[2], "--nodes", "0"]) == 6
    assert "--port 0" in capfd.readouterr().err
    assert dev.stop() == 0


def test_it_runs_on_a_real_zookeeper(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dev = Dev(tmp_path / "log", "--nodes", "1", "--zookeeper", "--port", str(free_port()))
    assert run(["--hosts", dev.hosts, "run", "numpy.sum", "[1, 2]", "--timeout", "30"]) == 0
    assert capfd.readouterr().out == "3\n"
    family = children(dev.process.pid)
    assert dev.stop() == 0
    wait_until(lambda: not any(map(alive, family)))


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[1])
