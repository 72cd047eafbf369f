"""A run in which everything breaks, judged from outside: by the submitter, by a witness, by ZooKeeper's own log."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from pathlib import Path

from tests.cluster.conftest import Grid, open_grid
from tests.cluster.processes import created_below, wait_for_exit, writes_after_the_end
from zkd.zk.apache import ApacheServer, Flags

TASKS = 800  # at least; as many more as fit into the time of the blows
SEED = 20_261


async def drop_all(grid: Grid, trace: Path, rng: random.Random, enough: asyncio.Event) -> list[str]:
    """Small tasks of several kinds, all the time; some have to fail, and some end their worker."""
    ids: list[str] = []
    while len(ids) < TASKS or not enough.is_set():
        task_id = f"c-{len(ids)}"
        kind = rng.random()
        if kind < 0.02:
            task = {"kernel": "exit_process", "retries": 1}
        elif kind < 0.04:
            task = {"kernel": "absent"}
        elif kind < 0.10:
            task = {"kernel": "nap", "args": [rng.random() * 0.2]}
        else:
            task = {"kernel": "note", "args": [str(trace), task_id], "priority": rng.randrange(3)}
        await grid.user.drop_for_sure(task, task_id)
        ids.append(task_id)
        if len(ids) % 20 == 0:
            await asyncio.sleep(0.2)
    return ids


async def break_things(grid: Grid, server: ApacheServer, rng: random.Random) -> int:
    """Kill, freeze and drain daemons in turn, and ZooKeeper once; how many blows there were."""
    blows = 0
    names = list(grid.nodes)
    for turn in range(7):
        name = await grid.leader() if turn % 2 else rng.choice(names)
        node = grid.nodes[name]
        before = await grid.joined(name)
        if turn == 4:
            server.kill()
            await asyncio.sleep(0.3)
            server.start()
            await asyncio.to_thread(server.wait_until_serving)
        elif turn % 3 == 2:
            node.pause()
            await asyncio.sleep(2.6)  # longer than its session
            node.resume()
        else:
            if turn % 3:
                node.signal(signal.SIGTERM)
                await asyncio.to_thread(node.wait, 10.0)
            else:
                node.kill()
            node.start()
            await grid.joined(name, after=before)
        blows += 1
        await asyncio.sleep(0.2)
    return blows


async def test_chaos_gives_every_task_exactly_one_result(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    directory = tmp_path / "zookeeper"
    directory.mkdir()
    trace = tmp_path / "trace"
    with ApacheServer(directory, flags=Flags(config={"snapCount": "1000000"})) as server:
        async with open_grid(server.connect_string, "/zkd", tmp_path) as grid:
            await grid.start("a", "b", "c", timeout_s=2.0)
            enough = asyncio.Event()
            dropping = asyncio.create_task(drop_all(grid, trace, rng, enough))
            blows = await break_things(grid, server, random.Random(SEED))
            enough.set()
            ids = await dropping
            results = await grid.user.results(ids, 40.0)

            assert blows == 7
            assert await grid.user.session.children(grid.user.paths.tasks) == []
            by_id = dict(zip(ids, results, strict=True))
            statuses = Counter(result.status for result in results)
            assert set(statuses) == {"done", "failed", "rejected"}
            assert {r.error.kind for r in results if r.status == "failed" and r.error} == {"crash"}
            assert all(len([a for a in r.attempts if a.cause == "crash"]) == 2 for r in results if r.status == "failed")

            noted = Counter(trace.read_text().split())
            assert all(by_id[task_id].status == "done" for task_id in noted)
            done = {i for i, r in by_id.items() if r.status == "done" and r.kernel == "note"}
            assert set(noted) == done
            assert sum(noted.values()) < 1.25 * len(noted)  # run again, but only what was interrupted

            for node in grid.nodes.values():
                node.signal(signal.SIGTERM)
            assert await asyncio.to_thread(wait_for_exit, list(grid.nodes.values()), 15.0) == [0, 0, 0]
            dead = await grid.user.session.children(grid.user.paths.dead)
            assert set(dead) == {i for i, r in by_id.items() if r.status == "failed"}
        server.stop()
        created = created_below(directory / "data", "/zkd/results")
        assert set(created) == set(ids)
        assert set(created.values()) == {1}
        assert writes_after_the_end(directory / "data") == []
