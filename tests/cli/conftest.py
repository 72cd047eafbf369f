"""A cluster as `zkd dev` makes it, one for each worker of the run, and the command run in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from zkd.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Dev:
    """A running `zkd dev`."""

    def __init__(self, log: Path, *options: str) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("ZKD_")}
        env["ZKD_ZOOKEEPER__SESSION_TIMEOUT_S"] = "2"  # a node that was killed is soon known to be gone
        self._log = log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zkd", "dev", "--port", "0", "--slots", "1", *options],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=env,
        )
        assert self.process.stdout is not None
        self.hosts = self.process.stdout.readline().strip()
        self.ready = self.process.stdout.readline().strip()
        assert self.ready == "ready", log.read_text()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()
        return code


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    directory = tmp_path_factory.mktemp("dev")
    (directory / "cli_kernels.py").write_text(KERNELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{directory}:{os.environ.get('PYTHONPATH', '')}")
        dev = Dev(directory / "log", "--nodes", "2", "--module", "cli_kernels")
    yield dev
    dev.stop()


KERNELS = '''
"""Kernels that behave as tests want."""
import time
import zkd

@zkd.kernel("test.nap")
def nap(seconds: float) -> float:
    """Sleep, telling how far it is."""
    zkd.report(0.5, "half asleep")
    time.sleep(seconds)
    return seconds

@zkd.kernel("test.fail")
def fail(message: str) -> None:
    """Raise a ValueError."""
    raise ValueError(message)
'''


@dataclass
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def zkd(dev: Dev, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run a command against the cluster."""
    for name in list(os.environ):
        if name.startswith("ZKD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ZKD_HOSTS", dev.hosts)

    def command(*arguments: str) -> Ran:
        capfd.readouterr()
        code = run(arguments)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return command


def wait_until(true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
