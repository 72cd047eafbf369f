"""The rows of parts, together again in the order in which they were written.

Every row carries its number, so parts may come in any order and from anywhere. A table is complete when each number
from the first to the last came exactly once; anything else is damage, and never a table with holes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from zkd.arrays.dtypes import Array
from zkd.errors import DataDamaged
from zkd.manifests import Column
from zkd.tables.columns import Columns
from zkd.tables.partition import Numbers


class Assembly:
    """A table of so many rows, numbered from 0, to be filled by `put` in any order, also from several threads."""

    def __init__(self, rows: int, columns: Sequence[Column]) -> None:
        self.columns: Columns = {
            column.name: np.empty((rows, *column.shape), np.dtype(column.dtype).newbyteorder("=")) for column in columns
        }
        self._is_there = np.zeros(rows, np.bool_)

    def put(self, rows: Numbers, columns: Columns) -> None:
        """Put these rows where they belong. `DataDamaged` if one of them cannot be there, or is there already."""
        if not len(rows):
            return
        if int(rows.min()) < 0 or int(rows.max()) >= len(self._is_there):
            raise DataDamaged(f"row {int(rows.max())}: expected rows below {len(self._is_there)}")
        if self._is_there[rows].any() or (len(rows) > 1 and not (np.diff(rows) > 0).all()):
            raise DataDamaged("a row is there twice")
        self._is_there[rows] = True
        for name, into in self.columns.items():
            into[rows] = columns[name]

    def finish(self) -> Columns:
        """The table. `DataDamaged` if a row is missing."""
        if not self._is_there.all():
            missing = np.flatnonzero(~self._is_there)
            raise DataDamaged(f"{len(missing)} rows are missing, the first is {int(missing[0])}")
        return self.columns


def merged(columns: Sequence[Column], pieces: Iterable[tuple[Numbers, Columns]]) -> tuple[Numbers, Columns]:
    """Some rows, such as those of a few parts, in the order of their numbers; and these numbers."""
    numbers: list[Numbers] = []
    values: dict[str, list[Array]] = {column.name: [] for column in columns}
    for rows, of_piece in pieces:
        numbers.append(rows)
        for name, arrays in values.items():
            arrays.append(of_piece[name])
    if len(numbers) == 1:  # as they lie: a part of one segment needs no copy
        return numbers[0], {name: arrays[0] for name, arrays in values.items()}
    if not numbers:
        empty = {column.name: np.empty((0, *column.shape), np.dtype(column.dtype)) for column in columns}
        return np.empty(0, np.int64), empty
    together = np.concatenate(numbers)
    order = np.argsort(together, kind="stable")
    together = together[order]
    if (np.diff(together) <= 0).any():
        raise DataDamaged("a row is there twice")
    return together, {name: np.concatenate(arrays)[order] for name, arrays in values.items()}
