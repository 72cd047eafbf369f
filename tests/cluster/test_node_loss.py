"""A node that is lost takes no task with it."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.cluster.conftest import TIMEOUT_S, Grid
from tests.cluster.processes import DaemonProcess
from zkd.records import Result


def losses(result: Result) -> list[str]:
    return [attempt.node for attempt in result.attempts if attempt.cause == "node_loss"]


async def test_tasks_of_a_killed_node_are_done_elsewhere_in_time(grid: Grid) -> None:
    await grid.start("a")
    await grid.start("b")
    assert await grid.leader() == "a"
    ids = [await grid.user.drop({"kernel": "nap", "args": [0.4]}) for _ in range(12)]
    held = await grid.running_on("b")
    killed = time.monotonic()
    grid.nodes["b"].kill()
    results = await grid.user.results(ids)
    took_s = time.monotonic() - killed
    assert {result.status for result in results} == {"done"}
    assert took_s < TIMEOUT_S + 1.0 + 12 * 0.4 / 2
    by_id = dict(zip(ids, results, strict=True))
    lost = {task_id for task_id, result in by_id.items() if losses(result)}
    assert lost
    assert lost <= set(held) | {task_id for task_id, result in by_id.items() if result.node == "a"}
    assert all((losses(by_id[t]), by_id[t].attempt, by_id[t].node) == (["b"], 2, "a") for t in lost)
    assert sorted(grid.witness.created) == sorted(ids)


async def test_a_killed_leader_is_replaced_in_time_and_its_tasks_are_done(grid: Grid) -> None:
    await grid.start("a")
    await grid.start("b", "c")
    assert await grid.leader() == "a"
    ids = [await grid.user.drop({"kernel": "nap", "args": [0.2]}) for _ in range(40)]
    await grid.running_on("a")
    killed = time.monotonic()
    grid.nodes["a"].kill()
    for n in range(5):
        ids.append(await grid.user.drop({"kernel": "nap", "args": [0.0]}, f"meanwhile-{n}"))
    await grid.leader(other_than="a")
    assert time.monotonic() - killed < TIMEOUT_S + 1.0
    results = await grid.user.results(ids)
    assert {result.status for result in results} == {"done"}
    assert {tuple(losses(result)) for result in results} == {(), ("a",)}
    assert sorted(grid.witness.created) == sorted(ids)


async def test_a_node_that_restarts_at_once_does_not_wait_for_its_former_session(grid: Grid) -> None:
    """The session timeout is so long that only ending the former session explains it."""
    await grid.start("a", timeout_s=30.0)
    before = await grid.joined("a")
    ids = [await grid.user.drop({"kernel": "nap", "args": [0.3]}) for _ in range(6)]
    await grid.running_on("a")
    grid.nodes["a"].kill()
    started = time.monotonic()
    grid.nodes["a"].start()
    await grid.joined("a", after=before)
    assert time.monotonic() - started < 5.0
    results = await grid.user.results(ids, 10.0)
    assert time.monotonic() - started < 8.0
    assert {result.status for result in results} == {"done"}
    assert {attempt.cause for result in results for attempt in result.attempts} == {"node_loss"}
    assert sorted(grid.witness.created) == sorted(ids)


async def test_a_name_and_a_directory_belong_to_one_daemon(grid: Grid) -> None:
    """Each mistake is refused with the exit code that systemd does not restart on; the first goes on."""
    await grid.start("a")
    same_name = DaemonProcess(grid.hosts, grid.root, "a", grid.directory / "elsewhere", slots=2, timeout_s=1.0)
    same_name.log_path.parent.mkdir()
    same_directory = DaemonProcess(grid.hosts, grid.root, "a", grid.directory, slots=2, timeout_s=1.0)
    same_directory.environment["ZKD_NODE__NAME"] = "other"
    same_directory.log_path = grid.directory / "same_directory.log"
    try:
        for process in (same_name, same_directory):
            process.start()
        assert await asyncio.to_thread(same_directory.wait, 10.0) == 78
        assert "in use by another zkd daemon" in same_directory.log()
        result = await grid.user.do("nap", 0)
        assert (result.status, result.node) == ("done", "a")
        assert await asyncio.to_thread(same_name.wait, 15.0) == 78
        assert "in use by another daemon" in same_name.log()
    finally:
        same_name.kill()
        same_directory.kill()
    assert (await grid.user.do("nap", 0)).status == "done"


async def test_a_frozen_node_that_wakes_up_changes_nothing(grid: Grid) -> None:
    """Its kernels go on while it sleeps; what they gave is thrown away, since others have the tasks."""
    await grid.start("a")
    await grid.start("b")
    trace = grid.directory / "trace"
    ids = [await grid.user.drop({"kernel": "nap", "args": [0.5, str(trace)]}) for _ in range(8)]
    held = await grid.running_on("b")
    before = await grid.joined("b")
    grid.nodes["b"].pause()
    results = await grid.user.results(ids)
    grid.nodes["b"].resume()
    await grid.joined("b", after=before)
    assert {result.status for result in results} == {"done"}
    assert {result.node for result, task_id in zip(results, ids, strict=True) if task_id in held} == {"a"}
    after = await grid.user.results(ids)
    assert after == results
    assert (await grid.user.do("nap", 0, node="b")).node == "b"
    assert sorted(set(grid.witness.created)) == sorted([*ids, "t-9"])
    assert len(grid.witness.created) == len(ids) + 1


async def test_a_frozen_leader_is_replaced_and_its_late_writes_change_nothing(grid: Grid) -> None:
    await grid.start("a")
    await grid.start("b")
    assert await grid.leader() == "a"
    ids = [await grid.user.drop({"kernel": "nap", "args": [0.1]}) for _ in range(30)]
    before = await grid.joined("a")
    frozen = time.monotonic()
    grid.nodes["a"].pause()
    assert await grid.leader(other_than="a") == "b"
    assert time.monotonic() - frozen < TIMEOUT_S + 1.0
    ids += [await grid.user.drop({"kernel": "nap", "args": [0.1]}) for _ in range(30)]
    await asyncio.sleep(max(0.0, 2 * TIMEOUT_S - (time.monotonic() - frozen)))  # what the test is about
    epoch = (await grid.user.session.get(grid.user.paths.epoch)).data
    grid.nodes["a"].resume()
    results = await grid.user.results(ids)
    await grid.joined("a", after=before)
    assert {result.status for result in results} == {"done"}
    assert (await grid.user.session.get(grid.user.paths.epoch)).data == epoch
    assert await grid.leader() == "b"
    assert (await grid.user.do("nap", 0, node="a")).node == "a"
    assert sorted(grid.witness.created) == sorted([*ids, f"t-{len(ids) + 1}"])
    assert grid.nodes["a"].process.poll() is None


async def test_workers_do_not_outlive_a_killed_daemon(grid: Grid) -> None:
    await grid.start("a")
    trace = grid.directory / "pids"
    await grid.user.drop({"kernel": "ignore_sigterm", "args": [str(trace)]})
    await grid.user.drop({"kernel": "nap", "args": [60, str(trace)]})
    deadline = time.monotonic() + 8.0
    while not trace.exists() or len(trace.read_text().split()) < 2:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    grid.nodes["a"].signal(signal.SIGKILL)
    pids = [int(pid) for pid in trace.read_text().split()]
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        await asyncio.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
