"""Promises of a node's counters: real processes over a real segment store."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.training.shelf import Problem, ask, counting, shelved, visit


def parts_of(count: int, rows: int = 500, wide: int = 4, seed: int = 0) -> list[list[dict[str, np.ndarray]]]:
    dice = np.random.default_rng(seed)
    return [
        [{"x": dice.normal(size=(rows + 17 * part, wide)), "y": dice.integers(0, 2, rows + 17 * part).astype("i1")}]
        for part in range(count)
    ]


async def test_partials_of_counters_are_those_of_one_process(tmp_path: Path) -> None:
    parts = parts_of(5)
    problem = Problem(parts)
    async with shelved(tmp_path) as shelf, counting(shelf) as (_, answers):
        await shelf.put("d", parts)
        link, caller = visit(answers, problem)
        for number in range(4):
            ask(link, number, range(5), problem.question(number))
            partials = await caller.partials(number)
            assert len(partials) == 2, "one a counter"
            problem.check(partials, range(5), number)
        link.close()
