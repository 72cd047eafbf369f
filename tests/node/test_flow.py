"""How tasks are let through to the nodes: whose turn it is, what they wait for, how many at a time."""

from __future__ import annotations

import asyncio

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
