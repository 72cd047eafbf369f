"""A second copy of what is late, on real nodes: whatever happens to either, one result, and no kernel left behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from msgspec import Raw

from tests.node.conftest import Site
from tests.node.submitter import Witness, until
from zkd.core.stragglers import KNOWN_MIN
from zkd.daemon import Daemon
from zkd.zk import Session
from zkd.zk.server import EmbeddedServer


@pytest.fixture
async def witness(cut_site: Site) -> AsyncIterator[Witness]:
    """Whatever happens, each task has one result."""
    seen = Witness()
    async with Session(cut_site.hosts, timeout_s=20.0) as session:
        await session.connected(10.0)
        for path in ("/zkd", "/zkd/results"):
            if await session.exists(path) is None:
                await session.create(path, b"")
        await seen.watch(session, cut_site.user.paths)
        yield seen
        await session.exists("/zkd")  # all events before this answer have come
    assert all(count == 1 for count in Counter(seen.created).values()), seen.created


async def learned(site: Site) -> None:
    """Let the leader know how long this kernel takes."""
    trace = str(site.trace("quick"))
    ids = [await site.user.drop({"kernel": "unlucky_nap", "args": [trace, 0.01, 0.01]}) for _ in range(KNOWN_MIN + 1)]
    await site.user.results(ids)


async def straggler(site: Site, first: float, then: float, **fields: object) -> str:
    args = [str(site.trace("slow")), first, then]
    return await site.user.drop({"kernel": "unlucky_nap", "args": args, "speculative": True, **fields})


def runs(site: Site) -> int:
    return len(site.trace("slow").read_text().splitlines())


async def both_run(site: Site, *daemons: Daemon) -> None:
    async def they_do() -> bool:
        return all(daemon.executor.running() for daemon in daemons) and runs(site) == 2

    await until(they_do, 6.0, "two nodes run it")


async def none_runs(*daemons: Daemon) -> None:
    async def quiet() -> bool:
        return not any(daemon.executor._held for daemon in daemons)

    await until(quiet, 5.0, "nothing runs any more")


async def test_the_copy_overtakes_and_the_late_one_is_stopped(cut_site: Site, witness: Witness) -> None:
    daemons = await cut_site.node("a", slots=1), await cut_site.node("b", slots=1)
    await learned(cut_site)
    result = await cut_site.user.result(await straggler(cut_site, 60, 0.05))
    assert (result.status, result.value, result.attempt) == ("done", Raw(b"0.05"), 1)
    assert runs(cut_site) == 2
    await none_runs(*daemons)


async def test_two_that_end_together_give_one_result(cut_site: Site, witness: Witness) -> None:
    daemons = await cut_site.node("a", slots=4), await cut_site.node("b", slots=4)
    await learned(cut_site)
    ids = [await straggler(cut_site, 1.65 + 0.01 * n, 0.6) for n in range(4)]
    assert {result.status for result in await cut_site.user.results(ids)} == {"done"}
    await none_runs(*daemons)


async def test_cancelling_stops_both(cut_site: Site, witness: Witness) -> None:
    daemons = await cut_site.node("a", slots=1), await cut_site.node("b", slots=1)
    await learned(cut_site)
    task_id = await straggler(cut_site, 60, 60)
    await both_run(cut_site, *daemons)
    assert await cut_site.user.cancel(task_id)
    assert (await cut_site.user.result(task_id)).status == "cancelled"
    await none_runs(*daemons)


@pytest.mark.parametrize("is_leader", [True, False])
async def test_if_one_is_lost_the_other_ends_it(
    embedded: EmbeddedServer, cut_site: Site, witness: Witness, is_leader: bool
) -> None:
    daemons = await cut_site.node("a", slots=1), await cut_site.node("b", slots=1)
    await learned(cut_site)
    task_id = await straggler(cut_site, 3.0, 3.0)
    await both_run(cut_site, *daemons)
    lost = next(daemon for daemon in daemons if (daemon.election.reign is not None) is is_leader)
    embedded.expire(lost.session.session_id)
    result = await cut_site.user.result(task_id)
    assert (result.status, result.attempt, result.attempts) == ("done", 1, [])
    assert result.node != lost.name
    await none_runs(*daemons)


async def test_if_both_are_lost_it_runs_again(embedded: EmbeddedServer, cut_site: Site, witness: Witness) -> None:
    daemons = await cut_site.node("a", slots=1), await cut_site.node("b", slots=1)
    await learned(cut_site)
    task_id = await straggler(cut_site, 60, 1.5)
    await both_run(cut_site, *daemons)
    for daemon in daemons:
        embedded.expire(daemon.session.session_id)
    result = await cut_site.user.result(task_id, within_s=15.0)
    assert (result.status, result.attempt) == ("done", 2)
    assert [attempt.cause for attempt in result.attempts] == ["node_loss"]


async def test_a_failure_of_one_is_an_attempt_and_shuts_out_the_other(cut_site: Site, witness: Witness) -> None:
    daemons = await cut_site.node("a", slots=1), await cut_site.node("b", slots=1)
    await learned(cut_site)
    task_id = await straggler(cut_site, 60, 60, retries=1, timeout_s=2.5)
    await both_run(cut_site, *daemons)
    result = await cut_site.user.result(task_id, within_s=15.0)
    assert (result.status, result.attempt) == ("failed", 2)
    assert [attempt.cause for attempt in result.attempts] == ["timeout", "timeout"]
    await none_runs(*daemons)


async def test_a_new_leader_knows_of_both(cut_site: Site, witness: Witness) -> None:
    leader = await cut_site.node("leader", slots=1)
    assert (await cut_site.user.do("nap", 0)).status == "done"
    daemons = await cut_site.node("a", slots=1), await cut_site.node("b", slots=1)
    await cut_site.user.set_state("leader", "cordoned")
    await asyncio.sleep(0.2)
    await learned(cut_site)
    task_id = await straggler(cut_site, 3.5, 3.5)
    await both_run(cut_site, *daemons)
    await leader.drain()
    result = await cut_site.user.result(task_id)
    assert (result.status, result.attempt, result.attempts) == ("done", 1, [])
    assert runs(cut_site) == 2
    await none_runs(*daemons)
