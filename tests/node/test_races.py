"""Two things in one turn of the loop, or one of them while the connection is gone: nothing stays behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.node.conftest import Site
from tests.node.submitter import until
from zkd import codec
from zkd.core import dispatch
from zkd.core.clock import ServerClock
from zkd.core.lifecycle import State
from zkd.daemon import Daemon
from zkd.errors import Unavailable
from zkd.node import dispatcher
from zkd.node.election import Election, Reign
from zkd.records import Result
from zkd.zk import Create, Delete, Session, values
from zkd.zk.server import EmbeddedServer
from zkd.zk.server.wire import Op


async def is_running(daemon: Daemon) -> bool:
    return bool(daemon.executor.running())


async def test_a_task_that_is_stopped_in_the_turn_of_its_start_keeps_no_slot(
    cut_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = await cut_site.node(slots=1)
    executor = daemon.executor
    start = executor._runs.start_what_fits
    stopped: list[str] = []

    def start_and_stop() -> None:
        start()
        for held in list(executor._held.values()):
            if held.state is State.RUNNING and not stopped:
                stopped.append(held.line.id)
                executor._stop(held, "drain")

    monkeypatch.setattr(executor._runs, "start_what_fits", start_and_stop)
    task_id = await cut_site.user.drop({"kernel": "nap", "args": [0]})

    async def is_free() -> bool:
        return bool(stopped) and executor.slots_used == 0 and not executor._held

    await until(is_free, 4.0, "its slot is free")
    result = await cut_site.user.result(task_id)  # it was handed back, and nothing else is wrong with it
    assert (result.status, result.attempts[0].cause) == ("done", "drain")


async def test_a_cancelled_task_has_a_result_though_the_connection_was_lost_meanwhile(
    embedded: EmbeddedServer, cut_site: Site
) -> None:
    daemon = await cut_site.node(slots=1)
    task_id = await cut_site.user.drop({"kernel": "nap", "args": [60]})
    await until(lambda: is_running(daemon), 4.0, "it runs")
    embedded.faults.cut("before", Op.EXISTS, 1, cut_site.user.paths.task(task_id))
    assert await cut_site.user.cancel(task_id)
    assert (await cut_site.user.result(task_id)).status == "cancelled"
    assert not embedded.faults.has_cuts


async def test_a_running_task_outlives_the_loss_of_its_assignment(cut_site: Site) -> None:
    """Somebody deletes assign/a; the leader notices with its next write, and makes it again with what it held."""
    daemon = await cut_site.node("a", slots=2)
    paths, trace = cut_site.user.paths, cut_site.trace()
    running = await cut_site.user.drop({"kernel": "nap", "args": [1.5, str(trace)]})
    await until(lambda: is_running(daemon), 4.0, "it runs")
    await cut_site.user.session.delete(paths.assignment("a"), -1)
    assert (await cut_site.user.do("nap", 0)).status == "done"
    assert (await cut_site.user.result(running)).status == "done"
    assert len(trace.read_text().split()) == 1


async def test_a_task_that_is_given_again_while_it_is_let_go_runs_again(cut_site: Site) -> None:
    """An assignment that was emptied by mistake and mended at once names the same line as before."""
    daemon = await cut_site.node("a", slots=2)
    paths = cut_site.user.paths
    trace = cut_site.trace()
    task_id = await cut_site.user.drop({"kernel": "ignore_sigterm", "args": [str(trace)]})

    async def has_begun() -> bool:
        return bool(trace.read_text())

    await until(has_begun, 4.0, "it runs")
    kept = (await cut_site.user.session.get(paths.assignment("a"))).data
    await cut_site.node("b", slots=1)
    await daemon.election.resign()  # now it is not fed, and reads what stands there
    await cut_site.user.do("nap", 0, node="b")
    before = trace.read_text()
    await cut_site.user.session.set(
        paths.assignment("a"),
        b'{"epoch":1,"incarnation":"%s","tasks":[]}' % (daemon.membership.incarnation or "").encode(),
        -1,
    )

    async def is_let_go() -> bool:
        return not daemon.executor.running() or all(held.stopped_for for held in daemon.executor._held.values())

    await until(is_let_go, 4.0, "it is being stopped")
    await cut_site.user.session.set(paths.assignment("a"), kept, -1)

    async def runs_again() -> bool:
        return len(trace.read_text()) > len(before)

    await until(runs_again, 6.0, "it runs again")
    assert await cut_site.user.cancel(task_id)
    assert (await cut_site.user.result(task_id)).status == "cancelled"


async def test_a_task_that_is_cancelled_while_its_holder_is_dying_has_a_result(
    embedded: EmbeddedServer, cut_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the holder will publish nothing is known only when its session is over."""
    monkeypatch.setattr(dispatch, "ORPHAN_GRACE_S", 0.5)
    await cut_site.node("a")
    lost = await cut_site.node("b")
    task_id = await cut_site.user.drop({"kernel": "nap", "args": [60], "node": "b"})
    await until(lambda: is_running(lost), 4.0, "it runs")
    embedded.partition(lost.session.session_id)
    assert await cut_site.user.cancel(task_id)
    await asyncio.sleep(1.5)  # longer than a holder takes that lives, shorter than a session
    embedded.expire(lost.session.session_id)
    assert (await cut_site.user.result(task_id)).status == "cancelled"
    embedded.heal()


async def test_what_a_lost_node_had_finished_does_not_hold_up_what_it_had_not(
    embedded: EmbeddedServer, cut_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, paths = cut_site.user, cut_site.user.paths
    leader = await cut_site.node("a", slots=1)
    written: list[str] = []
    multi = leader.session.multi

    async def counted(ops: Sequence[values.Op], **how: Any) -> Any:
        written.extend(op.path for op in ops if isinstance(op, Create))
        return await multi(ops, **how)

    monkeypatch.setattr(leader.session, "multi", counted)
    async with Session(embedded.connect_string, timeout_s=5.0) as other:
        await other.connected(5.0)
        record = {"node": "b", "incarnation": "x", "slots": 4096, "kernels": ["elsewhere"]}
        await user.session.create(paths.assignment("b"), b"")
        await other.create(paths.node("b"), json.dumps(record).encode(), ephemeral=True)
        ids = [await user.drop({"kernel": "elsewhere"}) for _ in range(300)]

        async def has_all() -> bool:
            given = (await other.get(paths.assignment("b"))).data
            return all(task_id.encode() in given for task_id in ids)

        await until(has_all, 4.0, "all were given to b")
        result = codec.encode(Result(status="done"))
        await asyncio.gather(
            *(other.multi([Delete(paths.task(it), 0), Create(paths.result(it), result)]) for it in ids[2:])
        )
        assert await user.cancel(ids[1])
        await asyncio.sleep(0.3)  # the leader has seen all of this
    await user.set_state("b", "cordoned")

    async def is_taken_back() -> bool:
        return (await user.session.get(paths.task(ids[0]))).stat.version > 0

    await until(is_taken_back, 2.0, "the one that b had not finished is free again")
    assert (await user.result(ids[1])).status == "cancelled"
    assert [path for path in written if path.startswith(paths.results)] == [paths.result(ids[1])]


async def test_a_node_that_resigns_while_it_queues_up_leaves_no_candidate(
    embedded: EmbeddedServer, cut_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next leader would wait for it until its drain is over."""
    daemon = await cut_site.node("a")
    session, candidates = daemon.session, cut_site.user.paths.candidates
    create = session.create
    resigned = asyncio.Event()

    async def create_and_resign(path: str, *args: Any, **how: Any) -> Any:
        created = await create(path, *args, **how)
        if path.startswith(candidates):
            await daemon.election.resign()
            resigned.set()
        return created

    monkeypatch.setattr(session, "create", create_and_resign)
    embedded.expire(session.session_id)
    async with asyncio.timeout(8.0):
        await resigned.wait()

    async def is_gone() -> bool:
        return not await cut_site.user.session.children(candidates)

    await until(is_gone, 2.0, "nobody stands")
    assert not await cut_site.user.is_there(cut_site.user.paths.leader)


async def test_a_leader_that_lost_its_session_hears_no_more_of_tasks(embedded: EmbeddedServer, cut_site: Site) -> None:
    """What it heard nobody would ever take, and it would grow for as long as the daemon lives."""
    former = await cut_site.node("a")
    other = await cut_site.node("b")
    await cut_site.user.do("nap", 0)
    embedded.expire(former.session.session_id)

    async def leads() -> bool:
        return other.election.reign is not None and former.membership.incarnation is not None

    await until(leads, 8.0, "b leads, and a is back")
    for _ in range(5):
        await cut_site.user.do("nap", 0)
    assert former.election.reign is None
    assert former.dispatcher._events == []


@pytest.mark.parametrize("turns", range(4))
async def test_a_reign_ends_when_it_is_cancelled_as_the_connection_is_lost(
    cut_site: Site, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    daemon = await cut_site.node()
    await until(lambda: leads(daemon), 4.0, "it leads")
    dispatcher, reign = daemon.dispatcher, daemon.election.reign
    assert reign is not None
    await daemon.election.resign()

    async def decide(*_: object) -> None:
        cancel_after(turns, asyncio.current_task())
        raise Unavailable

    monkeypatch.setattr(dispatcher, "_decide", decide)
    leading = asyncio.get_running_loop().create_task(dispatcher.lead(reign.session_id, reign.epoch, reign.check))
    await asyncio.wait({leading}, timeout=1.0)
    assert leading.cancelled()


async def leads(daemon: Daemon) -> bool:
    return daemon.election.reign is not None


def cancel_after(turns: int, task: asyncio.Task[Any] | None) -> None:
    assert task is not None
    if turns == 0:
        task.cancel()
    else:
        asyncio.get_running_loop().call_soon(cancel_after, turns - 1, task)


@pytest.mark.parametrize("turns", range(5))
async def test_an_election_ends_when_it_is_cancelled_in_the_moment_that_wakes_it(cut_site: Site, turns: int) -> None:
    daemon = await cut_site.node()
    election = Election(daemon.session, cut_site.user.paths, "other", ServerClock(), daemon._log)

    async def lead(_: Reign) -> None:
        raise AssertionError("it does not stand")

    await election.resign()
    running = asyncio.get_running_loop().create_task(election.run(lambda: None, lead))
    await asyncio.sleep(0.01)
    election._wake.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running}, timeout=1.0)
    assert running.cancelled()


async def test_what_comes_does_not_wait_until_a_new_leader_has_read_all_there_was(
    cut_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "READ_AT_ONCE", 2)
    monkeypatch.setattr(dispatcher, "READ_AT_ONCE_FIRST", 2)
    monkeypatch.setattr(dispatcher, "READS_IN_FLIGHT", 1)
    order: list[str] = []
    read = dispatcher.Dispatcher._read

    async def slowly(self: dispatcher.Dispatcher, mind: dispatch.Dispatch, task_ids: list[str]) -> None:
        order.extend(task_ids)
        await asyncio.sleep(0.005)
        await read(self, mind, task_ids)

    monkeypatch.setattr(dispatcher.Dispatcher, "_read", slowly)
    site = cut_site
    async with Daemon(site.settings("first")):
        await site.user.do("nap", 0)
    order.clear()
    body = b'{"kernel":"nap","labels":{"no":"where"}}'
    names = [f"waiting-{number}" for number in range(800)]
    await site.user.session.multi([Create(site.user.paths.task(name), body) for name in names])
    node = await site.node()
    while not order:
        await asyncio.sleep(0.001)
    probe = await site.user.drop({"kernel": "nap", "args": [0]}, "probe")
    assert (await site.user.result(probe)).status == "done"
    while node.dispatcher.sizes()["to_read"]:
        await asyncio.sleep(0.01)
    assert order.index(probe) < 700
    assert set(order) == {*names, probe}


async def test_a_task_that_is_given_and_cancelled_while_its_node_does_not_look_has_a_result(
    embedded: EmbeddedServer, cut_site: Site
) -> None:
    """The node finds a list as if nothing had been, and the leader a holder that lives."""
    await cut_site.node("a", slots=1)
    other = await cut_site.node("b", slots=1)
    user, assignment = cut_site.user, cut_site.user.paths.assignment("b")
    assert (await user.do("nap", 0, node="b")).status == "done"

    async def stands(task_id: str) -> bool:
        return task_id.encode() in (await user.session.get(assignment)).data

    async def stands_not(task_id: str) -> bool:
        return not await stands(task_id)

    embedded.partition(other.session.session_id)
    given = await user.drop({"kernel": "nap", "args": [0], "node": "b"})
    await until(lambda: stands(given), 2.0, "it is given to b")
    assert await user.cancel(given)
    await until(lambda: stands_not(given), 2.0, "it is taken out again")
    embedded.heal()
    assert (await user.result(given)).status == "cancelled"
    assert (await user.do("nap", 0, node="b")).status == "done"
