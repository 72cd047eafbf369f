"""Recurring tasks while their leaders are killed: each slot is dropped once or counted, by ZooKeeper's own log."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import pairwise
from pathlib import Path

from tests.cluster.conftest import TIMEOUT_S, open_grid
from tests.cluster.processes import created_below, writes_after_the_end
from tests.node.submitter import until
from zkd.core.schedules import slot_name, slot_of
from zkd.records import ScheduleState
from zkd.zk.apache import ApacheServer, Flags

NAMES = ("often", "rarely")
# Where in a second the leader is killed: just before its slot, in the middle of it, and just after.
BLOWS = (0.98, 0.001, 0.01)


FROZEN_S = 2.6  # longer than a session; then it wakes and believes that it leads


async def fraction_of_a_second(wanted: float) -> None:
    """Servers and tests share a clock here."""
    await asyncio.sleep((wanted - time.time()) % 1.0)


async def test_no_slot_is_lost_or_doubled_when_leaders_are_killed_and_frozen_around_it(tmp_path: Path) -> None:
    directory = tmp_path / "zookeeper"
    directory.mkdir()
    with ApacheServer(directory, flags=Flags(config={"snapCount": "1000000"})) as server:
        async with open_grid(server.connect_string, "/zkd", tmp_path) as grid:
            await grid.start("a", "b", "c")
            paths, session = grid.user.paths, grid.user.session
            for name, every_s in zip(NAMES, (1, 2), strict=True):
                schedule = {"every_s": every_s, "task": {"kernel": "numpy.sum", "args": [[1]]}}
                await session.create(paths.schedule(name), json.dumps(schedule).encode())

            async def state(name: str) -> ScheduleState | None:
                found = await grid.user.session.exists(paths.schedule_state(name))
                if found is None:
                    return None
                return ScheduleState(**json.loads((await session.get(paths.schedule_state(name))).data))

            async def fired(count: int) -> None:
                async def enough() -> bool:
                    found = await state("often")
                    return found is not None and found.fired >= count

                await until(enough, 30.0, f"{count} slots fired")

            await fired(2)
            for blow in BLOWS:
                before = await state("often")
                assert before is not None
                name = await grid.leader()
                await fraction_of_a_second(blow)
                grid.nodes[name].kill()
                await grid.leader(other_than=name)
                grid.nodes[name].start()
                await fired(before.fired + 2)
            name = await grid.leader()
            await fraction_of_a_second(0.98)
            grid.nodes[name].pause()
            await asyncio.sleep(FROZEN_S)
            grid.nodes[name].resume()
            await fired(10)
            last: dict[str, ScheduleState] = {}
            for name in NAMES:
                paused = b'{"every_s": 1, "task": {"kernel": "numpy.sum"}, "paused": true}'
                await session.set(paths.schedule(name), paused, -1)

                async def is_paused(name: str = name) -> ScheduleState | None:
                    found = await state(name)
                    return found if found is not None and found.timing == "paused" else None

                last[name] = await until(is_paused, 10.0, f"{name} is paused")

            async def finished() -> bool:
                return await session.children(paths.tasks) == []

            await until(finished, 20.0, "every task has ended")
            results = await grid.user.results(sorted(grid.witness.created))
            assert {result.status for result in results} == {"done"}
            assert len(grid.witness.created) == len(set(grid.witness.created))
            created = created_below(directory / "data", "/zkd/tasks")
            assert set(created) == set(grid.witness.created)
            assert set(created.values()) == {1}, "a slot was dropped twice"
            for name, every_s in zip(NAMES, (1, 2), strict=True):
                slots = sorted(slot_of(task.rpartition(".")[2]) for task in created if task.startswith(f"{name}."))
                assert slot_name(slots[-1]) == last[name].slot
                assert len(slots) == last[name].fired
                assert (slots[-1] - slots[0]) // every_s + 1 == last[name].fired + last[name].skipped
                # A killed leader is missed until its session is over and another has taken office.
                assert max(later - earlier for earlier, later in pairwise(slots)) <= TIMEOUT_S + 6.0
        server.stop()
        assert writes_after_the_end(directory / "data") == []
