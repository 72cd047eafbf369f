"""Tables made of a seed, so that two processes can have the same one without sending it."""

from __future__ import annotations

from typing import Any

import numpy as np

Table = dict[str, Any]


def table(seed: int, rows: int) -> Table:
    dice = np.random.default_rng(seed)
    return {
        "k": dice.permutation(rows * 7)[:rows].astype("<i8") + 1_000_000 * seed,
        "x": dice.normal(size=(rows, 3)),
        "y": dice.integers(0, 10, rows).astype("i1"),
        "w": np.array([f"w{n}" for n in dice.integers(0, 1000, rows)], "<U4"),
    }


def together(tables: list[Table]) -> Table:
    return {name: np.concatenate([each[name] for each in tables]) for name in tables[0]}


def difference(found: Table, expected: Table) -> str | None:
    """How two tables differ, bit by bit."""
    if found.keys() != expected.keys():
        return f"expected the columns {list(expected)}, got {list(found)}"
    for name, values in expected.items():
        if found[name].shape != values.shape:
            return f"{name}: expected {values.shape}, got {found[name].shape}"
        if found[name].astype(values.dtype).tobytes() != values.tobytes():
            return f"{name}: {int((found[name] != values).sum())} values differ"
    return None
