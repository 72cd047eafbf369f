"""Which of the tasks in a node's hands run: also when very many of them have become worthless while they waited."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.workers.running import open_pool
from zkd.core.lifecycle import Step
from zkd.holder.held import Held
from zkd.holder.runs import Runs
from zkd.records import Assigned, Task
from zkd.workers import Outcome, TimedOut


async def test_many_that_expired_while_they_waited_end_one_by_one(tmp_path: Path) -> None:
    held: dict[str, Held] = {}
    ended: list[str] = []

    def heard(one: Held, outcome: Outcome) -> None:
        assert isinstance(outcome, TimedOut)
        one.advance(Step.ENDED)
        ended.append(one.line.id)

    async with open_pool(tmp_path, 1) as pool:
        runs = Runs(
            pool,
            1,
            held,
            ended=heard,
            do=lambda _, doing: doing.close(),
            fetch=lambda _: asyncio.sleep(0, ""),
            timeout_s=lambda: 10.0,
        )
        runs.is_stopped = False
        for number in range(2_000):  # more than a stack has room for
            one = held[f"t{number}"] = Held(Assigned(f"t{number}", number, 0, 1))
            one.task = Task(kernel="short", not_after_s=1.0)
            one.expires_at = 0.0
            one.advance(Step.READ)
            runs.push(one, one.task)
        runs.start_what_fits()
    assert ended == [f"t{number}" for number in range(2_000)]
    assert runs.slots_taken == 0
