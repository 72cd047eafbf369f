"""How tasks are let through to the nodes: whose turn it is, what they wait for, how many at a time."""

from __future__ import annotations

import asyncio
import json

import msgspec

from tests.node.conftest import Site
from tests.node.submitter import until


async def test_submitters_take_turns_on_a_busy_node(site: Site) -> None:
    daemon = await site.node("a", slots=1)
    user = site.user
    await user.drop({"kernel": "nap", "args": [0.4]}, "blocker")

    async def runs() -> bool:
        return bool(daemon.executor.running())

    await until(runs, 5.0, "the blocker runs")
    for n in range(6):
        await user.drop({"kernel": "nap", "args": [0.1], "submitter": "x"}, f"x{n}")
    await user.drop({"kernel": "nap", "args": [0.1], "submitter": "y"}, "y0")
    await user.result("y0")
    ended = [name for name in await user.session.children(user.paths.results) if name.startswith("x")]
    assert len(ended) <= 2, "the second submitter waited behind all that the first had dropped"
    await asyncio.gather(*(user.result(f"x{n}") for n in range(6)))


async def test_a_task_runs_after_those_it_waits_for(site: Site) -> None:
    await site.node("a")
    await site.node("b")
    trace = str(site.trace())
    await site.user.drop({"kernel": "note", "args": [trace, "third"], "after": ["second", "first"]}, "third")
    await site.user.drop({"kernel": "note", "args": [trace, "second"], "after": ["first"]}, "second")
    await asyncio.sleep(0.3)  # nothing happens, and that is the point
    assert await site.user.is_there(site.user.paths.task("second"))
    await site.user.drop({"kernel": "note", "args": [trace, "first"]}, "first")
    assert (await site.user.result("third")).status == "done"
    assert site.trace().read_text().split() == ["first", "second", "third"]


async def test_what_waits_for_a_cancelled_task_fails_and_so_does_what_waits_for_that(site: Site) -> None:
    await site.node("a")
    assert (await site.user.do("nap", 0)).status == "done"  # somebody leads, and sees what is cancelled
    await site.user.drop({"kernel": "nap", "args": [20]}, "first")
    await site.user.drop({"kernel": "nap", "args": [0], "after": ["first"]}, "second")
    await site.user.drop({"kernel": "nap", "args": [0], "after": ["second"]}, "third")
    await site.user.cancel("first")
    for name, before in (("second", "first, which ended cancelled"), ("third", "second, which ended failed")):
        result = await site.user.result(name)
        assert result.status == "failed"
        assert result.error is not None
        assert (result.error.kind, result.error.message) == ("dependency", f"it was to run after {before}")
    assert (await site.user.dead("second")).error.kind == "dependency"


async def test_a_new_leader_goes_on_waiting(site: Site) -> None:
    first = await site.node("a", slots=1)
    await site.node("b", slots=1)
    await site.user.drop({"kernel": "nap", "args": [0]}, "ended")
    await site.user.result("ended")
    await site.user.drop({"kernel": "nap", "args": [1.5], "node": "b"}, "runs")
    await site.user.drop({"kernel": "nap", "args": [0], "after": ["ended", "runs", "promised"]}, "last")
    await first.drain()
    await site.user.result("runs")
    await site.user.drop({"kernel": "nap", "args": [0]}, "promised")
    assert (await site.user.result("last")).status == "done"


async def test_limits_hold_back_their_kernel_alone_and_change_live(site: Site) -> None:
    daemon = await site.node("a", slots=4)
    user = site.user
    path = user.paths.limit("nap")
    await user.session.create(path, b'{"at_once": 1}')
    ids = [await user.drop({"kernel": "nap", "args": [0.15]}) for _ in range(4)]
    seen = 0

    async def some_ended() -> bool:
        nonlocal seen
        seen = max(seen, len(daemon.executor.running()))
        return len(await user.session.children(user.paths.results)) >= 2

    await until(some_ended, 5.0, "two have ended")
    assert seen == 1
    await user.session.set(path, b"junk", -1)
    await user.session.set(path, b'{"at_once": 0}', -1)
    await asyncio.sleep(0.5)
    held_back = [task_id for task_id in ids if await user.is_there(user.paths.task(task_id))]
    assert held_back
    assert (await user.do("numpy.sum", [1, 2])).status == "done"
    assert [task_id for task_id in ids if await user.is_there(user.paths.task(task_id))] == held_back
    await user.session.delete(path, -1)
    assert {result.status for result in await user.results(ids)} == {"done"}


async def test_a_task_runs_where_its_argument_lies(site: Site) -> None:
    await site.node("a", slots=4)
    await site.node("b", slots=4)
    for made_on in ("a", "b"):
        made = await site.user.do("rows", 200_000, node=made_on)
        assert made.ref is not None
        ref = json.loads(msgspec.json.encode(made.ref))
        results = [await site.user.do("total", ref) for _ in range(4)]
        assert {result.node for result in results} == {made_on}


async def test_a_preferred_node_that_is_busy_delays_a_task_by_little(site: Site) -> None:
    busy = await site.node("a", slots=1)
    await site.node("b", slots=1)
    await site.user.drop({"kernel": "nap", "args": [20], "node": "a"})

    async def runs() -> bool:
        return bool(busy.executor.running())

    await until(runs, 5.0, "the preferred node is busy")
    began = asyncio.get_running_loop().time()
    assert (await site.user.do("nap", 0, prefer=["a"])).node == "b"
    assert asyncio.get_running_loop().time() - began < 3.0
    assert (await site.user.do("nap", 0, prefer=["nowhere"])).node == "b"
