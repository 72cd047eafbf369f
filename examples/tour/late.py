"""Does it arrive more than a quarter of an hour late? What is known when a flight leaves the gate, as numbers.

All 327,346 flights from New York City in 2013 that arrived: how late they left, how far they go, when, from where and
with whom. What is a choice becomes a column of 0 and 1 for each value but the commonest.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np

from tour.data import Array
from tour.flights import fetch

LATE_MIN = 15
TARGET = "late"
ROWS = 327_346
NUMBERS = {"dep_delay": np.int16, "distance": np.int16}
CHOICES = ("origin", "carrier", "month", "hour")


def load(directory: Path) -> dict[str, Array]:
    """The table, `late` its last column."""
    with fetch(directory).open(newline="") as file:
        lines = csv.reader(file)
        names = next(lines)
        places = [names.index(name) for name in ("arr_delay", *NUMBERS, *CHOICES)]
        rows = [[line[place] for place in places] for line in lines]
    arrived = [row for row in rows if row[0] != "NA"]
    assert len(arrived) == ROWS, len(arrived)
    columns = dict(zip(("arr_delay", *NUMBERS, *CHOICES), zip(*arrived, strict=True), strict=True))
    table: dict[str, Array] = {name: np.array(columns[name], np.int16).astype(dtype) for name, dtype in NUMBERS.items()}
    for name in CHOICES:
        texts = np.array(columns[name])
        (commonest, _), *others = Counter(columns[name]).most_common()
        table |= {f"{name} {text}, not {commonest}": texts == text for text, _ in sorted(others)}
    table[TARGET] = np.array(columns["arr_delay"], np.int16) > LATE_MIN
    return table
