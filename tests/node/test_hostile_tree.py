"""What strangers, and people by mistake, may put into the tree or take out of it: no node falls, and it heals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.node.conftest import Site
from tests.node.submitter import Submitter, until
from zkd import codec
from zkd.daemon import Daemon
from zkd.errors import NoNode, NotEmpty
from zkd.paths import Paths
from zkd.records import TASK_BYTES_MAX, Assigned, Assignment
from zkd.zk import Acl, Batch, Create, Perms, Session, Znode

READ_ONLY = [Acl(Perms.READ, "world", "anyone")]

NO_NUMBERS: dict[str, bytes] = {
    "an integer longer than Python converts, beside a repeated name": b'[{"a":1},{"a":2},%b]' % (b"1" * 5_000),
    "an integer out of range beside a reference": b'["\\"blob\\"",{"blob":1},%b]' % (b"1" * 5_000),
    "a float out of range beside a reference": b'["x",1e999,{"blob":1}]',
}


@pytest.mark.parametrize("args", NO_NUMBERS.values(), ids=NO_NUMBERS)
async def test_numbers_that_no_machine_has_bring_no_node_down(site: Site, args: bytes) -> None:
    daemon = await site.node()
    task_id = await site.user.drop(b'{"kernel":"echo","args":%b}' % args)
    assert (await site.user.result(task_id)).status == "rejected"
    assert (await site.user.do("echo", 1)).status == "done"
    assert daemon.phase.value == "serving"


async def test_a_candidate_of_an_odd_name_brings_no_node_down(site: Site) -> None:
    """Its ten last letters are digits to Python, and no number."""
    await site.node("a")
    await site.user.session.create(f"{site.user.paths.candidates}/x-{'²' * 10}")
    await site.node("b")
    assert (await site.user.do("echo", 1, node="b")).status == "done"


async def delete_all(user: Submitter, path: str) -> None:
    """As `deleteall` of zkCli.sh does."""
    while True:
        try:
            for child in await user.session.children(path):
                await delete_all(user, f"{path}/{child}")
            await user.session.delete(path, -1)
            return
        except NotEmpty:
            continue  # it is being mended already
        except NoNode:
            return


@pytest.mark.parametrize(
    "below",
    ["results", "tasks", "nodes", "assign", "status", "dead", "control/candidates", "control/nodes", "control", ""],
)
async def test_a_directory_that_is_deleted_is_made_again(site: Site, below: str) -> None:
    daemons = [await site.node("a"), await site.node("b")]
    paths = site.user.paths
    assert (await site.user.do("nap", 0)).status == "done"
    await delete_all(site.user, f"{paths.root}/{below}".rstrip("/"))

    async def is_done() -> bool:
        for name in ("a", "b"):
            try:
                task_id = await site.user.drop({"kernel": "nap", "args": [0], "node": name})
            except NoNode:
                return False
            if (await site.user.result(task_id)).status != "done":
                return False
        return True

    await until(is_done, 10.0, "both nodes work again")
    assert (await site.user.do("fail", retries=0)).status in ("failed", "rejected")
    assert [daemon.phase.value for daemon in daemons] == ["serving", "serving"]


async def test_a_result_waits_until_its_directory_may_be_written(site: Site) -> None:
    """As with a quota that is used up: nothing is lost, and no slot is forgotten."""
    await site.node("a", slots=2)
    paths = site.user.paths
    await site.user.do("nap", 0)
    open_to_all = [Acl(Perms.ALL, "world", "anyone")]
    await site.user.session.set_acl(paths.results, [Acl(31 - Perms.CREATE, "world", "anyone")], -1)
    ids = [await site.user.drop({"kernel": "nap", "args": [0]}, f"waits-{n}") for n in range(6)]
    ids.append(await site.user.drop(b"junk", "waits-junk"))
    ids.append(await site.user.drop({"kernel": "nap", "args": [0], "delay_s": 60.0}, "waits-cancelled"))
    await site.user.cancel("waits-cancelled")
    await asyncio.sleep(0.5)
    await site.user.session.set_acl(paths.results, open_to_all, -1)
    statuses = [result.status for result in await site.user.results(ids)]
    assert statuses == ["done"] * 6 + ["rejected", "cancelled"]


async def test_a_task_that_may_only_be_read_ends_though_its_attempts_cannot_be_counted(site: Site) -> None:
    await site.node("a", slots=1)
    task_id = await site.user.drop({"kernel": "no_such", "args": [], "retries": 1}, acl=READ_ONLY)
    assert (await site.user.result(task_id)).status == "rejected"
    trace = site.trace()
    failing = {"kernel": "unlucky", "args": [str(trace), 5], "retries": 1}
    result = await site.user.result(await site.user.drop(failing, acl=READ_ONLY))
    assert (result.status, result.error.path if result.error else "") == ("rejected", "$")
    assert (await site.user.do("nap", 0)).status == "done"  # it keeps no slot


async def test_relics_of_another_life_neither_lead_nor_take_work(site: Site) -> None:
    """A tree that was copied or restored has persistent znodes where living ones should be."""
    user = site.user
    for path in user.paths.skeleton():
        await user.session.create(path)
    await user.session.create(f"{user.paths.candidates}/old-0000000000", b"")
    await user.session.create(user.paths.leader, b"{}")
    await user.session.create(user.paths.epoch, b"")
    ghost = json.dumps({"node": "ghost", "incarnation": "x", "slots": 8, "kernels": ["nap"]}).encode()
    await user.session.create(user.paths.node("ghost"), ghost)
    await user.session.create(user.paths.assignment("ghost"), b"")
    await site.node("a")
    await user.session.create(user.paths.node("late"), ghost.replace(b"ghost", b"late"))
    ids = [await user.drop({"kernel": "nap", "args": [0]}) for _ in range(20)]
    assert {result.node for result in await user.results(ids)} == {"a"}


async def test_assignments_of_many_tasks_need_not_fit_into_one_packet(site: Site) -> None:
    """Two nodes of 4,096 slots, and ids as long as they may be: more than a server takes at once."""
    daemon = await site.node("a", slots=1)
    paths = site.user.paths
    for name in ("wide-1", "wide-2"):
        record = {"node": name, "incarnation": "x", "slots": 4096, "kernels": ["elsewhere"]}
        await site.user.session.create(paths.node(name), json.dumps(record).encode(), ephemeral=True)
        await site.user.session.create(paths.assignment(name), b"")
    record = {"node": "greedy", "incarnation": "x", "slots": 10**9, "kernels": ["elsewhere"]}
    await site.user.session.create(paths.node("greedy"), json.dumps(record).encode(), ephemeral=True)
    writes = Batch(site.user.session)
    drops = [writes.commit([Create(paths.task(f"{n:05}{'x' * 123}"), b'{"kernel":"elsewhere"}')]) for n in range(8_000)]
    await asyncio.gather(*drops)

    async def all_given() -> bool:
        size = 0
        for name in ("wide-1", "wide-2"):
            size += len((await site.user.session.get(paths.assignment(name))).data)
        return size > 1_100_000

    await until(all_given, 20.0, "all tasks were given out")
    assert (await site.user.do("nap", 0)).status == "done"
    assert daemon.phase.value == "serving"


async def test_a_root_below_a_locked_directory_can_be_used(site: Site) -> None:
    """Who may not create znodes above ours need not: they are there."""
    user = site.user
    root = f"{site.root}/inner"
    for path in Paths(root).skeleton():
        await user.session.create(path)
    await user.session.set_acl(site.root, READ_ONLY, -1)
    async with Daemon(site.settings("a", zookeeper__root=root)):
        await user.session.create(f"{root}/tasks/t", b'{"kernel":"nap","args":[0]}')

        async def is_done() -> bool:
            return await user.is_there(f"{root}/results/t")

        await until(is_done, 4.0, "the task is done")


async def test_a_task_of_the_largest_size_may_be_tried_again(site: Site) -> None:
    """Its history comes on top of what it was allowed to be."""
    await site.node("a", slots=1)
    text = json.dumps({"kernel": "unlucky", "args": [str(site.trace()), 1], "retries": 2}).encode()
    text = text.replace(b", 1]", b", %b1]" % (b" " * (TASK_BYTES_MAX - len(text))))
    assert len(text) == TASK_BYTES_MAX
    result = await site.user.result(await site.user.drop(text))
    assert (result.status, len(result.attempts)) == ("done", 1), result.error


async def test_an_id_as_large_as_a_packet_that_comes_and_goes_brings_nobody_down(site: Site) -> None:
    """The leader would say that it was cancelled, and that does not fit."""
    daemon = await site.node()
    await site.user.do("nap", 0)
    path = site.user.paths.task("z" * 1_048_300)
    await asyncio.gather(site.user.session.create(path), site.user.session.delete(path, -1))
    assert (await site.user.do("nap", 0)).status == "done"
    assert daemon.phase.value == "serving"


async def test_a_server_that_missed_a_deletion_keeps_no_node_from_work(
    cut_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader reads a task that is long gone, and cannot take it back from a node that came anew.

    Seen with ZooKeeper 3.8.0: a server that rejoined had skipped seven transactions that the others had applied.
    """
    paths = cut_site.user.paths
    ghost = paths.task("ghost")
    stat = (await cut_site.user.session.get("/")).stat._replace(czxid=7, version=0)
    children_stat, get, get_many = Session.children_stat, Session.get, Session.get_many

    async def haunted_children(self: Session, path: str, *args: Any, **kwargs: Any) -> Any:
        names, stat = await children_stat(self, path, *args, **kwargs)
        return [*names, *(["ghost"] if path == paths.tasks else [])], stat

    async def haunted_get(self: Session, path: str, *args: Any, **kwargs: Any) -> Any:
        return Znode(b'{"kernel":"echo"}', stat) if path == ghost else await get(self, path, *args, **kwargs)

    async def haunted_get_many(self: Session, some: Sequence[str]) -> Any:
        found = await get_many(self, some)
        return [
            Znode(b'{"kernel":"echo"}', stat) if path == ghost else got for path, got in zip(some, found, strict=True)
        ]

    async with Daemon(cut_site.settings("a")):
        pass  # makes the tree
    left_behind = Assignment(1, "of a former life", [Assigned("ghost", 7, 0, 1)])
    await cut_site.user.session.set(paths.assignment("a"), codec.encode(left_behind), -1)
    monkeypatch.setattr(Session, "children_stat", haunted_children)
    monkeypatch.setattr(Session, "get", haunted_get)
    monkeypatch.setattr(Session, "get_many", haunted_get_many)
    await cut_site.node("a")
    async with asyncio.timeout(10.0):
        assert (await cut_site.user.do("echo", 1)).status == "done"
