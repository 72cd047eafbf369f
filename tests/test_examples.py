"""What the examples promise in their headers: they are run as people run them, as programs of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from kazoo.client import KazooClient

import zkd
from zkd import settings
from zkd.zk.apache import ApacheServer
from zkd.zk.server import EmbeddedServer

EXAMPLES = Path(__file__).parent.parent / "examples"
INFERENCE_S = 110.0  # 10 s of processors; 21 s with others on two cores
TRAINING_S = 180.0  # 20 s of processors; 38 s with five others on two cores, 76 s niced beside eleven
TOUR_S = 100.0  # 20 s on two busy cores, 46 s on two with five times more to do than they can


def start(example: str, *options: object, directory: Path) -> subprocess.Popen[str]:
    """Start an example; all files that it and its children make lie below `directory`."""
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / example), *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(directory)},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = TOUR_S) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def still_running(directory: Path) -> list[str]:
    """The command lines of processes that name this directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it has just ended
            if str(directory) in command:
                found.append(command)
    return found


def wait_until(is_so: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.02)


# --- digits.py --------------------------------------------------------------------------------------------


def test_the_tour_survives_a_kill_and_every_number_is_right(tmp_path: Path) -> None:
    code, output = finish(start("digits.py", "--out", tmp_path / "out", directory=tmp_path))
    assert code == 0, output
    assert output.splitlines()[-1].startswith("digits: all well, "), output
    assert "kill -9" in output
    assert "OFF" not in output
    assert (tmp_path / "out" / "digits.png").read_bytes().startswith(b"\x89PNG")
    wait_until(lambda: not still_running(tmp_path), 5.0)


def test_the_tour_finds_out_when_somebody_rewrites_a_result(apache: ApacheServer, tmp_path: Path) -> None:
    tour = start("digits.py", "--zookeeper", apache.connect_string, "--out", tmp_path / "out", directory=tmp_path)
    intruder = KazooClient(apache.connect_string)
    intruder.start(10)
    try:
        rewritten = threading.Event()

        def rewrite() -> bool:
            for root in intruder.get_children("/"):
                # With the first round under way, the result of the SVD has been read.
                if root.startswith("zkd-digits-") and intruder.exists(f"/{root}/results/round-000-part-0"):
                    text, _ = intruder.get(f"/{root}/results/svd")
                    intruder.set(f"/{root}/results/svd", text)
                    rewritten.set()
            return rewritten.is_set() or tour.poll() is not None

        wait_until(rewrite)
        code, output = finish(tour)
        assert code == 1, output
        assert [line for line in output.splitlines() if line.startswith("OFF")] == [
            line for line in output.splitlines() if "no result was written twice" in line and "WRONG" not in line
        ], output
        assert output.splitlines()[-1].startswith("digits: WRONG, no result was written twice"), output
        assert not [root for root in intruder.get_children("/") if root.startswith("zkd-digits-")]
    finally:
        tour.kill()
        intruder.stop()
        intruder.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_tour_that_is_stopped_leaves_no_process_behind(how: signal.Signals, tmp_path: Path) -> None:
    tour = start("digits.py", "--out", tmp_path / "out", directory=tmp_path)
    assert tour.stdout is not None
    for line in tour.stdout:
        if line.startswith("moments"):
            break
    assert still_running(tmp_path)
    tour.send_signal(how)
    code, output = finish(tour)
    assert code == (128 + how if how is signal.SIGTERM else -how), output
    wait_until(lambda: not still_running(tmp_path), 10.0)


# --- flights.py -------------------------------------------------------------------------------------------


def test_datasets_survive_a_kill_and_rot_to_the_bit(apache: ApacheServer, tmp_path: Path) -> None:
    tour = start("flights.py", "--zookeeper", apache.connect_string, "--out", tmp_path / "out", directory=tmp_path)
    code, output = finish(tour)
    assert code == 0, output
    assert output.splitlines()[-1].startswith("flights: all well, 338,573 rows"), output
    assert "kill -9" in output
    assert "OFF" not in output
    assert (tmp_path / "out" / "flights.png").read_bytes().startswith(b"\x89PNG")
    wait_until(lambda: not still_running(tmp_path), 5.0)
    onlooker = KazooClient(apache.connect_string)
    onlooker.start(10)
    try:
        assert not [root for root in onlooker.get_children("/") if root.startswith("zkd-flights-")]
    finally:
        onlooker.stop()
        onlooker.close()


# --- training.py ------------------------------------------------------------------------------------------


def test_training_ends_at_the_optimum_though_its_coordinator_is_killed(tmp_path: Path) -> None:
    code, output = finish(start("training.py", "--out", tmp_path / "out", directory=tmp_path), TRAINING_S)
    assert code == 0, output
    assert output.splitlines()[-1].startswith("training: all well, 2 models of 329,143 rows, "), output
    assert "kill -9" in output
    assert "OFF" not in output
    assert (tmp_path / "out" / "training.svg").read_text().startswith("<svg")
    wait_until(lambda: not still_running(tmp_path), 5.0)


# --- inference.py -----------------------------------------------------------------------------------------


def test_a_model_is_served_through_a_kill_and_a_bad_version_is_taken_back(tmp_path: Path) -> None:
    code, output = finish(start("inference.py", "--out", tmp_path / "out", directory=tmp_path), INFERENCE_S)
    assert code == 0, output
    assert output.splitlines()[-1].startswith("inference: all well, "), output
    assert "kill -9" in output
    assert "OFF" not in output
    wait_until(lambda: not still_running(tmp_path), 5.0)


# --- The small ones ---------------------------------------------------------------------------------------


@pytest.fixture
async def node(embedded: EmbeddedServer, tmp_path: Path) -> AsyncIterator[str]:
    """Where a ZooKeeper with one daemon below /zkd is."""
    async with running_node(embedded.connect_string, "/zkd", tmp_path):
        yield embedded.connect_string


def running_node(hosts: str, root: str, directory: Path) -> zkd.Daemon:
    overrides = {"zookeeper.hosts": hosts, "zookeeper.root": root, "node.name": "here", "node.slots": 1}
    return zkd.Daemon(settings.load(env={}, overrides=overrides | {"node.data_dir": str(directory / "data")}))


async def test_a_node_runs_inside_a_program_with_a_kernel_of_its_own(tmp_path: Path) -> None:
    code, output = await asyncio.to_thread(finish, start("embed.py", directory=tmp_path))
    assert code == 0, output
    assert output.splitlines()[-1].startswith("pi is about 3.14"), output


async def test_a_client_needs_kazoo_only(node: str, tmp_path: Path) -> None:
    code, output = await asyncio.to_thread(finish, start("drop_task.py", node, directory=tmp_path))
    assert (code, output.splitlines()[-1]) == (0, "6"), output


async def test_a_client_hears_why_its_task_was_rejected(node: str, tmp_path: Path) -> None:
    code, output = await asyncio.to_thread(finish, start("drop_task.py", node, "numpy.summ", directory=tmp_path))
    assert code == 1, output
    assert "did you mean 'numpy.sum'?" in output


async def test_a_client_may_be_zookeepers_own_command_line(apache: ApacheServer, zk_root: str, tmp_path: Path) -> None:
    async with running_node(apache.connect_string, zk_root, tmp_path):
        command = ["sh", str(EXAMPLES / "zkcli.sh"), apache.connect_string, zk_root]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert '"status":"done"' in done.stdout
    assert '"value":6.0' in done.stdout
