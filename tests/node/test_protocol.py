"""The znode protocol as its users see it: a task is dropped, a result appears."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.node.conftest import Site
from tests.node.submitter import submitting
from zkd.core.clock import ServerClock
from zkd.daemon import Daemon
from zkd.node import reaper
from zkd.records import Attempt


def value(result: Any) -> Any:
    assert result.status == "done", result.error
    return json.loads(bytes(result.value))


MODES: list[dict[str, Any]] = [
    {},
    {"sequential": True},
    {"ephemeral": True},
    {"ephemeral": True, "sequential": True},
    {"ttl_ms": 60_000},
]


async def test_a_task_of_every_create_mode_is_done(site: Site) -> None:
    await site.node()
    for n, mode in enumerate(MODES):
        task_id = await site.user.drop({"kernel": "numpy.sum", "args": [[1, 2, 3]]}, f"job-{n}-", **mode)
        result = await site.user.result(task_id)
        assert value(result) == 6
        assert not await site.user.is_there(site.user.paths.task(task_id))


async def test_tasks_that_were_dropped_before_any_node_came_are_done(site: Site) -> None:
    async with submitting(site.hosts, site.root) as early:
        parts = site.root.strip("/").split("/")
        for n in range(len(parts)):
            await early.session.create("/" + "/".join(parts[: n + 1]))
        await early.session.create(early.paths.tasks)
        ids = [await early.drop({"kernel": "nap", "args": [0]}) for _ in range(5)]
    await site.node()
    assert [result.status for result in await site.user.results(ids)] == ["done"] * 5


async def test_a_result_says_who_did_what_and_when(site: Site) -> None:
    daemon = await site.node()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    task_id = await site.user.drop({"kernel": "who", "traceparent": trace, "ttl_s": 77.0})
    result = await site.user.result(task_id)
    assert (result.node, result.attempt, result.kernel, result.traceparent) == ("a", 1, "who", trace)
    assert (result.ttl_s, result.attempts, result.error, result.ref) == (77.0, [], None, None)
    assert result.owner == daemon.membership.incarnation
    assert result.czxid > 0
    assert result.finished_at.startswith("20")
    seen_id, attempt, fence = value(result)
    assert (seen_id, attempt) == (task_id, 1)
    assert fence.startswith(f"{result.czxid:x}.0.")


async def test_positional_and_named_arguments_arrive(site: Site) -> None:
    await site.node()
    result = await site.user.do("echo", 1, [2.5, None], {"a": "ü"}, kwargs={"deep": {"er": [True]}})
    assert value(result) == {"args": [1, [2.5, None], {"a": "ü"}], "kwargs": {"deep": {"er": [True]}}}


async def test_items_are_one_call_each_in_their_order(site: Site) -> None:
    await site.node()
    task_id = await site.user.drop({"kernel": "numpy.add", "items": [1, 2, 3], "args": [10]})
    assert value(await site.user.result(task_id)) == [11, 12, 13]


async def test_the_more_urgent_goes_first_then_the_older(site: Site) -> None:
    await site.node(slots=1)
    trace = site.trace()
    gate = await site.user.drop({"kernel": "nap", "args": [0.5]})
    ids = []
    for text, priority in (("d", -1), ("c", 0), ("a", 7), ("e", -1), ("b", 7)):
        ids.append(await site.user.drop({"kernel": "note", "args": [str(trace), text], "priority": priority}))
    await site.user.results([gate, *ids])
    assert trace.read_text().split() == ["a", "b", "c", "d", "e"]


async def test_a_delayed_task_starts_no_earlier_and_not_much_later(site: Site) -> None:
    await site.node()
    loop = asyncio.get_running_loop()
    started = loop.time()
    await site.user.do("nap", 0, delay_s=1.0)
    assert 0.95 <= loop.time() - started < 3.0


async def test_a_task_that_waits_too_long_expires(site: Site) -> None:
    await site.node(slots=1)
    gate = await site.user.drop({"kernel": "nap", "args": [1.5]})
    late = await site.user.drop({"kernel": "nap", "args": [0], "not_after_s": 0.5})
    result = await site.user.result(late)
    assert (result.status, result.error.kind if result.error else "") == ("expired", "expired")
    assert value(await site.user.result(gate)) == 1.5


async def test_a_task_that_runs_past_its_time_expires(site: Site) -> None:
    await site.node()
    result = await site.user.do("nap", 30, not_after_s=0.7)
    assert (result.status, result.node) == ("expired", "a")


async def test_a_task_for_a_label_or_a_node_runs_there_and_nowhere_else(site: Site) -> None:
    await site.node("a", node__labels={"disk": "hdd"})
    await site.node("b", node__labels={"disk": "ssd"})
    for _ in range(3):
        assert (await site.user.do("nap", 0, labels={"disk": "ssd"})).node == "b"
        assert (await site.user.do("nap", 0, node="a")).node == "a"
    waiting = await site.user.drop({"kernel": "nap", "args": [0], "node": "c"})
    await site.user.do("nap", 0.2)
    assert await site.user.is_there(site.user.paths.task(waiting))
    await site.node("c")
    assert (await site.user.result(waiting)).node == "c"


async def test_wide_tasks_never_run_beside_others(site: Site) -> None:
    daemon = await site.node(slots=2)
    ids = [await site.user.drop({"kernel": "nap", "args": [0.1], "slots": 1 + n % 2}) for n in range(6)]
    most = 0
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(site.user.results(ids))
        while not waiting.done():
            most = max(most, daemon.executor.slots_used)
            await asyncio.sleep(0.005)
    assert most == 2


async def test_more_memory_than_asked_for_is_not_given(site: Site) -> None:
    await site.node()
    result = await site.user.do("rows", 2**27, memory=300 * 2**20)
    assert (result.status, result.error.kind if result.error else "") == ("failed", "MemoryError")
    assert value(await site.user.do("nap", 0)) == 0


# --- Attempts ---------------------------------------------------------------------------------------------


async def test_a_retried_task_has_its_history_in_its_result(site: Site) -> None:
    await site.node(slots=3)

    async def tried(how: str) -> None:
        trace = site.trace(how)
        result = await site.user.do("unlucky", str(trace), 2, how, retries=2, timeout_s=1.0)
        assert value(result) == 3
        assert (result.attempt, [attempt.cause for attempt in result.attempts]) == (3, [how, how])
        assert {attempt.node for attempt in result.attempts} == {"a"}
        assert trace.read_text().split() == ["1", "2", "3"]

    await asyncio.gather(tried("error"), tried("crash"), tried("timeout"))


async def test_used_up_retries_end_in_the_dead_letters_with_the_task_as_it_was(site: Site) -> None:
    await site.node()
    trace = site.trace()
    task = {"kernel": "unlucky", "args": [str(trace), 9], "retries": 1, "priority": 3}
    task_id = await site.user.drop(task)
    result = await site.user.result(task_id)
    history = [Attempt("error", "a", "try 1 of 9"), Attempt("error", "a", "try 2 of 9")]
    assert (result.status, result.attempt, result.attempts) == ("failed", 2, history)
    assert result.error is not None
    assert (result.error.kind, result.error.message) == ("ValueError", "try 2 of 9")
    assert "unlucky" in (result.error.traceback or "")
    dead = await site.user.dead(task_id)
    assert json.loads(bytes(dead.task)) == task
    assert (dead.attempts, dead.error.message) == (history, "try 2 of 9")
    assert len(trace.read_text().split()) == 2


async def test_arguments_that_do_not_fit_are_rejected_without_a_retry(site: Site) -> None:
    await site.node()
    result = await site.user.do("nap", "long", retries=5)
    assert result.status == "rejected"
    assert result.error is not None
    assert result.error.path is not None
    assert result.error.path.startswith("$.args[0]")
    assert not await site.user.is_there(site.user.paths.dead_task("t-1"))


# --- One result an id -------------------------------------------------------------------------------------


async def test_an_id_dropped_again_is_answered_by_the_result_that_is_kept(site: Site) -> None:
    await site.node()
    trace = site.trace()
    await site.user.drop({"kernel": "note", "args": [str(trace), "first"]}, "same")
    first = await site.user.result("same")
    await site.user.drop({"kernel": "note", "args": [str(trace), "second"]}, "same")
    await site.user.gone(site.user.paths.task("same"))
    assert await site.user.result("same") == first
    assert trace.read_text().split() == ["first"]


async def test_an_id_dropped_again_after_its_result_was_removed_runs_again(site: Site) -> None:
    await site.node()
    for n in range(3):
        await site.user.drop({"kernel": "echo", "args": [n]}, "same")
        assert value(await site.user.result("same"))["args"] == [n]
        await site.user.session.delete(site.user.paths.result("same"), -1)


async def test_a_rejected_id_that_is_dropped_again_is_answered_too(site: Site) -> None:
    await site.node()
    await site.user.drop(b"junk", "same")
    first = await site.user.result("same")
    await site.user.drop({"kernel": "nap", "args": [0]}, "same")
    await site.user.gone(site.user.paths.task("same"))
    assert await site.user.result("same") == first


async def test_results_go_when_their_time_is_over_and_not_before(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "ROUND_S", 0.1)
    await site.node(tasks__dead_ttl_s=1.0)
    brief = await site.user.drop({"kernel": "nap", "args": [0], "ttl_s": 0.5})
    lasting = await site.user.drop({"kernel": "nap", "args": [0]})
    dead = await site.user.drop({"kernel": "exit_process", "ttl_s": 0.5})
    await site.user.results([brief, lasting, dead])
    paths = site.user.paths
    assert await site.user.is_there(paths.dead_task(dead))
    await site.user.gone(paths.result(brief))
    await site.user.gone(paths.result(dead))
    await site.user.gone(paths.dead_task(dead))
    assert await site.user.is_there(paths.result(lasting))


async def test_a_new_leader_reaps_by_the_results_own_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "ROUND_S", 0.1)
    async with Daemon(site.settings()):
        brief = await site.user.drop({"kernel": "nap", "args": [0], "ttl_s": 1.0})
        lasting = await site.user.drop({"kernel": "nap", "args": [0], "ttl_s": 60.0})
        await site.user.results([brief, lasting])
    await site.node("b")
    await site.user.gone(site.user.paths.result(brief))
    assert await site.user.is_there(site.user.paths.result(lasting))


async def test_a_server_with_a_clock_far_ahead_costs_no_result(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server of the ensemble may lead after a new election, and its clock may stand elsewhere."""
    monkeypatch.setattr(reaper, "ROUND_S", 0.1)
    monkeypatch.setattr(reaper, "JUST_MET_S", 1.5)
    async with Daemon(site.settings()):
        kept = await site.user.drop({"kernel": "nap", "args": [0], "ttl_s": 30.0})
        await site.user.results([kept])
    ahead = ServerClock.age_s
    monkeypatch.setattr(ServerClock, "age_s", lambda *told: ahead(*told) + 3600)
    met = asyncio.get_running_loop().time()
    await site.node("b")
    await site.user.gone(site.user.paths.result(kept))
    assert asyncio.get_running_loop().time() - met >= 1.5
