"""The connection is cut at the worst moment: a commit was made and its answer is lost, or it was never made."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.node.conftest import Site
from tests.node.submitter import Witness, until
from zkd.zk.server import EmbeddedServer
from zkd.zk.server.wire import Op

# Which request is cut: by its kind and by the path of its first operation.
WHERE = {
    "a result is published or a try recorded": (Op.MULTI, "/zkd/tasks"),
    "a leader writes": (Op.MULTI, "/zkd/control"),
    "tasks are read": (Op.MULTI_READ, "/zkd/tasks"),
    "an assignment is read": (Op.GET_DATA, "/zkd/assign"),
    "a heartbeat is written": (Op.SET_DATA, "/zkd/status"),
}


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_cut_at_any_request_gives_each_task_one_result(
    embedded: EmbeddedServer, cut_site: Site, when: str
) -> None:
    site, witness = cut_site, Witness()
    await witness.watch(site.user.session, site.user.paths)
    daemons = [await site.node("a"), await site.node("b")]
    trace = site.trace()
    expected = {}
    for n, (op, path) in enumerate(WHERE.values()):
        embedded.faults.cut(when, op, 2, path)  # type: ignore[arg-type]
        connections = sum(daemon.session.epoch for daemon in daemons)
        ids = []
        for m in range(8):
            task = {"kernel": "note", "args": [str(trace), f"{n}-{m}"]}
            if m == 7:
                task = {"kernel": "unlucky", "args": [str(site.trace(f"unlucky-{n}")), 1], "retries": 2}
            ids.append(await site.user.drop(task, f"cut-{n}-{m}"))
        for result in await site.user.results(ids):
            assert result.status == "done"
            expected[result.czxid] = result
        embedded.faults.heal()
        if op is not Op.SET_DATA:  # a heartbeat may not have been due
            assert sum(daemon.session.epoch for daemon in daemons) > connections, "nothing was cut"
    assert len(expected) == len(WHERE) * 8
    assert sorted(witness.created) == sorted(f"cut-{n}-{m}" for n in range(len(WHERE)) for m in range(8))
    losses = [attempt for result in expected.values() for attempt in result.attempts if attempt.cause != "error"]
    assert losses == [], "a cut connection is no lost node"
    runs = trace.read_text().split()
    assert len(runs) == len(set(runs)), "a lost answer is no reason to run again"


async def test_an_expired_session_costs_a_run_and_no_result(embedded: EmbeddedServer, cut_site: Site) -> None:
    site, witness = cut_site, Witness()
    await witness.watch(site.user.session, site.user.paths)
    leader = await site.node("a")
    other = await site.node("b")
    ids = [await site.user.drop({"kernel": "nap", "args": [0.3]}, f"x-{n}") for n in range(8)]
    for daemon in (other, leader):
        incarnation = daemon.membership.incarnation

        async def runs(daemon=daemon) -> bool:  # type: ignore[no-untyped-def]
            return bool(daemon.executor.running())

        await until(runs, 5.0, f"{daemon.name} runs something")
        embedded.expire(daemon.session.session_id)

        async def is_back(daemon=daemon, incarnation=incarnation) -> bool:  # type: ignore[no-untyped-def]
            return daemon.membership.incarnation not in (None, incarnation)

        await until(is_back, 5.0, f"{daemon.name} joined again")
    results = await site.user.results(ids)
    assert {result.status for result in results} == {"done"}
    assert sorted(witness.created) == sorted(ids)
    assert {attempt.cause for result in results for attempt in result.attempts} == {"node_loss"}


async def test_a_node_cut_off_from_zookeeper_publishes_when_it_is_back(
    embedded: EmbeddedServer, cut_site: Site
) -> None:
    """Shorter than its session: the kernel goes on, its outcome waits, nobody runs it again."""
    site = cut_site
    await site.node("a")
    b = await site.node("b")
    trace = site.trace()
    task_id = await site.user.drop({"kernel": "nap", "args": [0.5, str(trace)], "node": "b"})
    await until(lambda: _written(trace), 5.0, "it runs")
    embedded.faults.partition({b.session.session_id})
    await asyncio.sleep(1.2)
    embedded.heal()
    result = await site.user.result(task_id)
    assert (result.status, result.node, result.attempts) == ("done", "b", [])
    assert json.loads(bytes(result.value)) == 0.5
    assert len(trace.read_text().split()) == 1


async def _written(trace: Path) -> bool:
    return trace.stat().st_size > 0  # noqa: ASYNC240


async def test_a_holder_whose_task_moved_on_meanwhile_cannot_publish(embedded: EmbeddedServer, cut_site: Site) -> None:
    """Its session lives and its kernel is done: the version of the task's znode alone keeps the stale outcome out."""
    site = cut_site
    await site.node("a")
    b = await site.node("b")
    trace = site.trace()
    task_id = await site.user.drop({"kernel": "nap", "args": [0.4, str(trace)], "node": "b"})
    await until(lambda: _written(trace), 5.0, "it runs")
    embedded.partition(b.session.session_id)
    new = json.dumps({"kernel": "echo", "args": ["new"], "node": "b"}).encode()
    await site.user.session.set(site.user.paths.task(task_id), new, 0)

    async def is_over() -> bool:
        return not b.executor.running()

    await until(is_over, 5.0, "the first run is over")
    embedded.heal()
    result = await site.user.result(task_id)
    assert (result.status, result.kernel, result.node) == ("done", "echo", "b")
