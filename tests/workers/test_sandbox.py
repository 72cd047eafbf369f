"""What kernels can still do whose workers are shut in. Not skipped without Landlock: nothing was tried then."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workers.running import open_pool, run
from zkd.daemon import Daemon
from zkd.errors import BadSettings
from zkd.settings import load
from zkd.workers import Finished, sandbox


@dataclass
class Street:
    """What a kernel might meddle with."""

    scratch: Path
    elsewhere: Path
    port: int
    bystander: subprocess.Popen[bytes]

    async def meddle(self, blobs: Path, writable: tuple[Path, ...] | None) -> dict[str, str]:
        async with open_pool(blobs, 1, modules=("meddler",), writable=writable) as pool:
            outcome = await run(pool, "meddle", str(self.scratch), str(self.elsewhere), self.port, self.bystander.pid)
            assert isinstance(outcome, Finished), outcome
            large = await run(pool, "numpy.arange", 300_000)
            assert isinstance(large, Finished), large
            assert large.blob is not None, "values in files are written as ever"
        said: dict[str, str] = json.loads(outcome.value or b"")
        return said


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    scratch, elsewhere = tmp_path / "scratch", tmp_path / "elsewhere"
    scratch.mkdir()
    elsewhere.mkdir()
    (elsewhere / "old").write_text("as it was")
    with socket.create_server(("127.0.0.1", 0)) as listener, subprocess.Popen(["/bin/sleep", "60"]) as bystander:
        yield Street(scratch, elsewhere, listener.getsockname()[1], bystander)
        bystander.kill()


async def test_who_is_shut_in_writes_where_he_was_told_and_reaches_nobody(street: Street, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    said = await street.meddle(tmp_path / "blobs", (street.scratch, tmp_path / "not-there"))
    assert said.pop("child") != "0"
    assert said.pop("scratch") == "done"
    assert said.pop("read") == "as it was"
    assert set(said.values()) == {"PermissionError"}, said
    assert street.bystander.poll() is None
    assert [path.name for path in street.elsewhere.iterdir()] == ["old"]


async def test_who_is_not_can_do_all_of_that(street: Street, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    said = await street.meddle(tmp_path / "blobs", None)
    assert (said["create"], said["append"], said["connect"], said["kill"]) == ("done",) * 4
    assert street.bystander.wait(10.0) != 0


async def test_a_node_that_cannot_shut_its_workers_in_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "version", lambda: 0)
    settings = load(None, {}, {"workers.sandbox": True, "node.data_dir": str(tmp_path / "data")})
    with pytest.raises(BadSettings, match=r"workers\.sandbox: this kernel has no Landlock"):
        async with Daemon(settings):
            pytest.fail("it has started")


def test_directories_may_be_named_in_the_environment() -> None:
    settings = load(None, {"ZKD_WORKERS__SANDBOX": "true", "ZKD_WORKERS__WRITABLE": "/srv/a,~/b"})
    assert settings.workers.sandbox
    assert settings.workers.writable == [Path("/srv/a"), Path.home() / "b"]
