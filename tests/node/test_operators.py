"""What operators do to nodes through the tree, and what else may stand there."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.node.conftest import Site
from tests.node.submitter import until
from zkd.daemon import Daemon
from zkd.errors import BadSettings
from zkd.node import membership
from zkd.zk import Acl, Perms

SEALED = [Acl(Perms.ALL, "digest", "nobody:AAAAAAAAAAAAAAAAAAAAAAAAAAA=")]


async def became(daemon: Daemon, state: str) -> None:
    async def has() -> bool:
        return daemon._state == state

    await until(has, 4.0, f"{daemon.name} is {state}")


async def test_a_cordoned_node_finishes_what_it_has_and_takes_nothing_new(site: Site) -> None:
    daemon = await site.node("a", slots=1)
    held = await site.user.drop({"kernel": "nap", "args": [0.5]})
    await until(lambda: running(daemon), 4.0, "it runs")
    await site.user.set_state("a", "cordoned")
    await became(daemon, "cordoned")
    waiting = await site.user.drop({"kernel": "nap", "args": [0]})
    assert (await site.user.result(held)).node == "a"
    await asyncio.sleep(0.3)  # nothing happens, and that is the point
    assert await site.user.is_there(site.user.paths.task(waiting))
    await site.node("b", slots=1)
    assert (await site.user.result(waiting)).node == "b"
    await site.user.set_state("a", "active")
    assert (await site.user.do("nap", 0, node="a")).node == "a"


async def running(daemon: Daemon) -> bool:
    return bool(daemon.executor.running())


@pytest.mark.parametrize("leads", [True, False])
async def test_draining_a_node_under_load_leaves_no_task_behind(site: Site, leads: bool) -> None:
    """Whatever the leader gave it before it knew is handed back too, though the node stays."""
    first = await site.node("a")
    second = await site.node("b")
    drained = first if leads else second
    ids = []
    for n in range(120):
        ids.append(await site.user.drop({"kernel": "nap", "args": [0.01]}))
        if n == 60:
            await site.user.set_state(drained.name, "draining")
    results = await site.user.results(ids)
    assert {result.status for result in results} == {"done"}
    assert {attempt.cause for result in results for attempt in result.attempts} <= {"drain"}
    assert {result.attempt for result in results} == {1}
    await became(drained, "draining")
    assert not drained.executor.running()
    assert (await site.user.do("nap", 0)).node != drained.name
    await site.user.session.delete(site.user.paths.node_state(drained.name), -1)
    assert (await site.user.do("nap", 0, node=drained.name)).node == drained.name


async def test_a_drain_can_be_called_off(site: Site) -> None:
    """The operator's second word counts at once, not when the drain would have ended."""
    daemon = await site.node("a", slots=2, node__drain_timeout_s=30.0)
    long = await site.user.drop({"kernel": "nap", "args": [20]})
    await until(lambda: running(daemon), 4.0, "it runs")
    await site.user.set_state("a", "draining")
    await became(daemon, "draining")
    await site.user.set_state("a", "active")
    assert (await site.user.do("nap", 0, within_s=4.0)).node == "a"
    assert await site.user.cancel(long)


async def test_a_state_that_makes_no_sense_changes_nothing(site: Site) -> None:
    await site.node("a")
    paths = site.user.paths
    for data in (b"", b"junk", b'{"state":"asleep"}', b"[" * 100_000, b"\xff"):
        for name in ("a", "nobody", "-"):
            if await site.user.is_there(paths.node_state(name)):
                await site.user.session.set(paths.node_state(name), data, -1)
            else:
                await site.user.session.create(paths.node_state(name), data)
        assert (await site.user.do("nap", 0)).status == "done"


async def test_foreign_znodes_among_the_nodes_harm_nobody(site: Site) -> None:
    daemon = await site.node("a")
    paths = site.user.paths
    good = (await site.user.session.get(paths.node("a"))).data
    entries = {
        "junk": b"junk",
        "empty": b"",
        "deep": b"[" * 100_000,
        "liar": good,
        "greedy": json.dumps({"node": "greedy", "incarnation": "x", "slots": -5}).encode(),
        "typed": json.dumps({"node": "typed", "incarnation": "x", "slots": "many"}).encode(),
        "unknown": json.dumps({"node": "unknown", "incarnation": "x", "slots": 1, "future": True}).encode(),
    }
    for name, data in entries.items():
        await site.user.session.create(paths.node(name), data, ephemeral=True)
        await site.user.session.create(paths.status(name), data)
        await site.user.session.create(paths.assignment(name), data)
    await site.user.session.create(paths.node("sealed"), b"x", acl=SEALED)
    await site.user.session.create(paths.node_state("sealed"), b"x", acl=SEALED)
    await site.user.session.create(f"{paths.nodes}/junk-with-child", b"")
    await site.user.session.create(f"{paths.nodes}/junk-with-child/child", b"")
    await site.user.session.create(f"{paths.results}/foreign", b"junk")
    await site.user.session.create(f"{paths.dead}/foreign", b"junk")
    for _ in range(5):
        assert (await site.user.do("nap", 0)).node == "a"
    await site.node("b")  # one that has to make its picture from all this
    await daemon.drain()
    assert (await site.user.do("nap", 0, node="b")).node == "b"


async def test_assignments_that_are_damaged_are_mended(site: Site) -> None:
    await site.node("a")
    await site.node("b")
    paths = site.user.paths
    for name in ("a", "b"):
        await site.user.session.set(paths.assignment(name), b"junk", -1)
        assert (await site.user.do("nap", 0, node=name)).node == name
        await site.user.session.delete(paths.assignment(name), -1)
        assert (await site.user.do("nap", 0, node=name)).node == name


async def test_a_node_whose_entry_was_deleted_comes_back(site: Site) -> None:
    await site.node("a")
    await site.node("b")
    for name in ("b", "a"):
        await site.user.session.delete(site.user.paths.node(name), -1)
        result = await site.user.do("nap", 0, node=name)
        assert (result.status, result.node) == ("done", name)


async def test_a_leader_whose_entries_were_deleted_is_replaced(site: Site) -> None:
    await site.node("a")
    paths = site.user.paths
    for directory in (paths.candidates, None):
        if directory is None:
            await site.user.session.delete(paths.leader, -1)
        else:
            for child in await site.user.session.children(directory):
                await site.user.session.delete(f"{directory}/{child}", -1)
        assert (await site.user.do("nap", 0)).status == "done"
    await site.user.session.set(paths.epoch, b"stolen", -1)  # as another leader would
    assert (await site.user.do("nap", 0)).status == "done"
    await site.node("b")
    assert (await site.user.do("nap", 0, node="b")).status == "done"


async def test_a_name_in_use_and_a_directory_in_use_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "PREDECESSOR_GRACE_S", 0.2)
    await site.node("a")
    with pytest.raises(BadSettings, match="in use by another zkd daemon"):
        await site.node("a")
    with pytest.raises(BadSettings, match=r"'a' is in use by another daemon: host .*, process \d+"):
        async with Daemon(site.settings("a", node__data_dir=str(site.directory / "b"), **SHORT)):
            pass
    assert (await site.user.do("nap", 0)).node == "a"


SHORT = {"zookeeper__session_timeout_s": 1.0}
