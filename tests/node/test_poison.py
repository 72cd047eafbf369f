"""A kernel that harms its process harms one task: its own, which ends with the dead."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.node.conftest import Site
from zkd.errors import NoNode

POISON: dict[str, tuple[dict[str, Any], str]] = {
    "exit_process": ({}, "crash"),
    "segfault": ({}, "crash"),
    "eat_memory": ({"memory": 300 * 2**20}, "MemoryError"),
    "loop": ({"timeout_s": 0.5}, "timeout"),
    "stick_in_c": ({"timeout_s": 0.5}, "timeout"),
    "ignore_sigterm": ({"timeout_s": 0.5}, "timeout"),
}


async def test_poison_ends_with_the_dead_and_costs_no_other_task_anything(site: Site) -> None:
    daemon = await site.node(slots=2)
    trace = site.trace()
    bad = {}
    for kernel, (fields, kind) in POISON.items():
        args = [str(trace)] if kernel == "ignore_sigterm" else []
        bad[await site.user.drop({"kernel": kernel, "args": args, "retries": 1, **fields}, kernel)] = kind
    good = [await site.user.drop({"kernel": "echo", "args": [n]}, f"good-{n}") for n in range(40)]
    results = await site.user.results(good)
    assert [json.loads(bytes(result.value))["args"] for result in results] == [[n] for n in range(40)]
    assert all((result.status, result.attempts) == ("done", []) for result in results)
    for task_id, result in zip(bad, await site.user.results(list(bad), 25.0), strict=True):
        assert result.error is not None
        assert (result.status, result.error.kind, result.attempt) == ("failed", bad[task_id], 2), task_id
        assert len(result.attempts) == 2
        assert (await site.user.dead(task_id)).error == result.error
    assert (await site.user.do("echo", 1)).status == "done"
    assert daemon.phase.value == "serving"


async def test_every_attempt_is_in_the_tree_before_the_next_begins(site: Site) -> None:
    """So that a kernel that takes its whole node along is counted too, by whoever comes next."""
    await site.node()
    trace = site.trace()
    task_id = await site.user.drop({"kernel": "unlucky", "args": [str(trace), 3, "crash"], "retries": 3})
    seen: list[int] = []
    while not await site.user.is_there(site.user.paths.result(task_id)):
        before = len(trace.read_text().split())
        try:
            task = json.loads((await site.user.session.get(site.user.paths.task(task_id))).data)
        except NoNode:
            break
        seen.append(len(task.get("attempts", [])) - (before - 1))
        await asyncio.sleep(0.005)
    assert min(seen) >= 0, "a run began whose predecessor was not yet written down"
    assert (await site.user.result(task_id)).attempt == 4
