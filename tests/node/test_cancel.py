"""Deleting a task's znode cancels it, wherever it is; then its result says so, and its kernel stops."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.node.conftest import Site
from tests.node.submitter import submitting, until


def text(trace: Path) -> str:
    return trace.read_text()


async def pids(trace: Path, count: int = 1) -> list[int]:
    async def written() -> list[int] | None:
        lines = text(trace).split()
        return [int(line) for line in lines] if len(lines) >= count else None

    return await until(written, 8.0, f"{count} kernels run")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def stopped(pid: int, within_s: float) -> None:
    async def is_gone() -> bool:
        return not is_alive(pid)

    await until(is_gone, within_s, f"process {pid} ended")


async def test_a_queued_a_delayed_and_an_unread_task_are_cancelled(site: Site) -> None:
    await site.node(slots=1)
    trace = site.trace()
    gate = await site.user.drop({"kernel": "nap", "args": [60, str(trace)]})
    await pids(trace)
    queued = await site.user.drop({"kernel": "nap", "args": [0]})
    delayed = await site.user.drop({"kernel": "nap", "args": [0], "delay_s": 60})
    elsewhere = await site.user.drop({"kernel": "nap", "args": [0], "node": "absent", "ttl_s": 99.0})
    unread = [await site.user.drop({"kernel": "nap", "args": [0]}, f"unread-{n}") for n in range(5)]
    await asyncio.gather(*(site.user.cancel(task_id) for task_id in unread))
    for task_id in (queued, delayed, elsewhere, *unread):
        await site.user.cancel(task_id)
        result = await site.user.result(task_id, 3.0)
        assert (result.status, result.attempt) == ("cancelled", 0)
    assert (await site.user.result(elsewhere)).ttl_s == 99.0
    assert await site.user.cancel(gate)
    assert (await site.user.result(gate)).status == "cancelled"


async def test_a_task_that_is_dropped_and_cancelled_in_one_breath_has_a_result(site: Site) -> None:
    await site.node()
    await site.user.do("nap", 0)  # somebody leads: before that nobody would see it come and go
    ids = [f"brief-{n}" for n in range(20)]
    sent = []
    for task_id in ids:
        sent.append(asyncio.ensure_future(site.user.drop({"kernel": "nap", "args": [0]}, task_id)))
        sent.append(asyncio.ensure_future(site.user.cancel(task_id)))
        await asyncio.sleep(0)
    await asyncio.gather(*sent)
    results = await site.user.results(ids)
    assert {result.status for result in results} <= {"cancelled", "done"}


async def test_a_running_kernel_is_stopped_within_two_seconds(site: Site) -> None:
    await site.node(slots=2)
    trace = site.trace()
    for kernel, args in (("nap", [60, str(trace)]), ("ignore_sigterm", [str(trace)])):
        trace.write_text("")
        task_id = await site.user.drop({"kernel": kernel, "args": args, "ttl_s": 50.0})
        (pid,) = await pids(trace)
        loop = asyncio.get_running_loop()
        started = loop.time()
        assert await site.user.cancel(task_id)
        await stopped(pid, 4.0)
        assert loop.time() - started < 2.0, kernel
        result = await site.user.result(task_id)
        assert (result.status, result.node, result.attempt, result.ttl_s) == ("cancelled", "a", 1, 50.0)
    assert (await site.user.do("nap", 0)).status == "done"


async def test_a_task_that_is_cancelled_when_nobody_leads_any_more_does_not_delay_its_nodes_end(site: Site) -> None:
    daemon = await site.node(slots=1, node__drain_timeout_s=30.0)
    trace = site.trace()
    task_id = await site.user.drop({"kernel": "nap", "args": [60, str(trace)]})
    (pid,) = await pids(trace)
    draining = asyncio.ensure_future(daemon.drain())
    async with asyncio.timeout(4.0):
        while daemon.election.reign is not None:
            await asyncio.sleep(0.01)
    assert await site.user.cancel(task_id)
    await stopped(pid, 4.0)
    assert (await site.user.result(task_id)).status == "cancelled"
    await asyncio.wait_for(draining, 4.0)


async def test_a_task_goes_with_its_submitter_when_it_is_ephemeral(site: Site) -> None:
    await site.node(slots=1)
    trace = site.trace()
    async with submitting(site.hosts, site.root) as brief:
        running = await brief.drop({"kernel": "nap", "args": [60, str(trace)]}, "running", ephemeral=True)
        (pid,) = await pids(trace)
        queued = await brief.drop({"kernel": "nap", "args": [60]}, "queued", ephemeral=True)
    for task_id in (queued, running):
        assert (await site.user.result(task_id, 4.0)).status == "cancelled"
    await stopped(pid, 2.0)


async def test_a_task_whose_ttl_is_over_is_cancelled(site: Site) -> None:
    await site.node()
    task_id = await site.user.drop({"kernel": "nap", "args": [0], "delay_s": 60}, ttl_ms=300)
    assert (await site.user.result(task_id, 8.0)).status == "cancelled"


async def test_cancel_and_finish_race_and_both_sides_know_who_won(site: Site) -> None:
    await site.node(slots=2)
    await site.user.do("nap", 0)
    statuses = []
    for n in range(60):
        task_id = await site.user.drop({"kernel": "echo", "args": [n]}, f"race-{n}")
        await asyncio.sleep((n % 12) * 0.0006)
        won = await site.user.cancel(task_id)
        result = await site.user.result(task_id)
        assert (result.status == "cancelled") == won, result
        statuses.append(result.status)
    assert set(statuses) == {"cancelled", "done"}, "one side always won, so this was no race"


async def test_a_cancelled_task_of_a_retry_keeps_its_history(site: Site) -> None:
    await site.node(slots=1)
    trace = site.trace()
    task_id = await site.user.drop({"kernel": "unlucky", "args": [str(trace), 99], "retries": 99})
    await pids(trace, 3)
    await site.user.cancel(task_id)
    result = await site.user.result(task_id)
    assert result.status == "cancelled"
    assert not await site.user.is_there(site.user.paths.dead_task(task_id))
    assert len(result.attempts) <= len(text(trace).split())


async def test_a_task_that_an_administrator_rewrites_runs_as_it_says_now(site: Site) -> None:
    """Its version moved on: whoever ran the old text is stopped, and publishes nothing."""
    await site.node(slots=1)
    trace = site.trace()
    task_id = await site.user.drop({"kernel": "nap", "args": [60, str(trace)]})
    (pid,) = await pids(trace)
    await site.user.session.set(site.user.paths.task(task_id), b'{"kernel":"echo","args":["new"]}', 0)
    result = await site.user.result(task_id)
    assert (result.status, result.kernel) == ("done", "echo")
    await stopped(pid, 2.0)


async def test_cancelling_at_any_moment_of_a_retry_gives_a_result(site: Site) -> None:
    """Between a failed attempt's record and the leader's reading of it, nobody holds the task."""
    await site.node(slots=2)
    await site.user.do("nap", 0)  # somebody leads
    trace = site.trace()
    for n in range(16):
        task_id = await site.user.drop({"kernel": "unlucky", "args": [str(trace), 999], "retries": 99})
        await asyncio.sleep(0.1 + n * 0.013)  # around the back-off's end and the attempts after it
        await site.user.cancel(task_id)
        assert (await site.user.result(task_id)).status == "cancelled"
