"""The rows of parts, together again in the order in which they were written.

Every row carries its number, so parts may come in any order and from anywhere. A table is complete when each number
from the first to the last came exactly once; anything else is damage, and never a table with holes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np

from zkd.arrays.dtypes import Array
from zkd.errors import DataDamaged
from zkd.manifests import Column
from zkd.tables.columns import Columns
from zkd.tables.partition import Numbers

# Pieces wait until there is so much of them, and are then put into their places together, window by window: rows of all
# parts that are neighbours in the table. Piece by piece, every write would touch a cache line of its own.
WAITING_BYTES = 256 * 2**20
WINDOW_ROWS_MIN = 1 << 17
WINDOW_ROWS_A_PIECE = 1 << 12  # so that a window is worth its slices
THREADS = 4
# Narrow columns are put there window by window. Where all rows of one are there, they are gathered, which takes two
# thirds of the time.
NARROW_BYTES = 64

Piece = tuple[Numbers, Columns]


class Assembly:
    """A table of so many rows, numbered from 0, to be filled in any order.

    `add` only takes notice of a piece; when it says so, `place` has to be called, in any thread.
    """

    def __init__(self, rows: int, columns: Sequence[Column]) -> None:
        self._columns: Columns = {
            column.name: np.empty((rows, *column.shape), np.dtype(column.dtype).newbyteorder("=")) for column in columns
        }
        self._is_there = np.zeros(rows, np.bool_)
        self._placed = 0
        self._waiting: list[Piece] = []
        self._waiting_bytes = 0
        self._placing = Lock()  # marks of one window, made by two at once, would undo each other

    def add(self, piece: Piece) -> bool:
        """Take in these rows, whose numbers ascend; whether so many wait now that they should be placed."""
        self._waiting.append(piece)
        self._waiting_bytes += piece[0].nbytes + sum(column.nbytes for column in piece[1].values())
        return self._waiting_bytes >= WAITING_BYTES

    def place(self) -> None:
        """Put all that waits where it belongs; one call at a time. `DataDamaged` if a row cannot be there."""
        with self._placing:
            self._place_all()

    def _place_all(self) -> None:
        pieces, self._waiting, self._waiting_bytes = self._waiting, [], 0
        rows = len(self._is_there)
        for numbers, _ in pieces:
            if len(numbers) and not (numbers[0] >= 0 and numbers[-1] < rows and (np.diff(numbers) > 0).all()):
                raise DataDamaged(f"expected rows from 0 to {rows - 1}, each once and in order")
        self._placed += sum(len(numbers) for numbers, _ in pieces)
        window = max(WINDOW_ROWS_MIN, WINDOW_ROWS_A_PIECE * len(pieces))
        cuts = np.arange(0, rows + window, window)
        bounds = [np.searchsorted(numbers, cuts).tolist() for numbers, _ in pieces]
        windows = range(len(cuts) - 1)
        if len(windows) < THREADS:
            self._place(pieces, bounds, windows, window)
            return
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
            turns = [windows[first::THREADS] for first in range(THREADS)]
            for _ in threads.map(lambda some: self._place(pieces, bounds, some, window), turns):
                pass

    def _place(
        self, pieces: Sequence[Piece], bounds: Sequence[Sequence[int]], windows: Iterable[int], size: int
    ) -> None:
        """Fill these windows, of `size` rows each."""
        room = _Room()
        for window in windows:
            slices = [
                (numbers[cut[window] : cut[window + 1]], columns, slice(cut[window], cut[window + 1]))
                for (numbers, columns), cut in zip(pieces, bounds, strict=True)
                if cut[window] < cut[window + 1]
            ]
            if slices:
                self._place_window(window * size, min((window + 1) * size, len(self._is_there)), slices, room)

    def _place_window(
        self, first: int, stop: int, slices: Sequence[tuple[Numbers, Columns, slice]], room: _Room
    ) -> None:
        """Put these rows, which are from `first` to before `stop`, where they belong."""
        rows = np.concatenate([numbers for numbers, _, _ in slices])
        rows -= first
        is_there = np.zeros(stop - first, np.bool_)
        is_there[rows] = True
        self._is_there[first:stop] |= is_there
        is_full = len(rows) == stop - first and bool(is_there.all())
        origin = np.empty(stop - first if is_full else 0, np.intp)
        if is_full:
            origin[rows] = np.arange(len(rows))
        for name, column in self._columns.items():
            into, values = column[first:stop], [columns[name][part] for _, columns, part in slices]
            if into.nbytes >= NARROW_BYTES * len(into):
                for (numbers, _, _), some in zip(slices, values, strict=True):
                    column[numbers] = some
                continue
            together = np.concatenate(values, out=room.of(len(rows), into))
            if is_full:
                together.take(origin, axis=0, out=into, mode="clip")  # with "raise" numpy would copy it once more
            else:
                into[rows] = together

    def finish(self) -> Columns:
        """The table. `DataDamaged` if a row is missing, or was there twice."""
        self.place()
        if not self._is_there.all():
            missing = np.flatnonzero(~self._is_there)
            raise DataDamaged(f"{len(missing)} rows are missing, the first is {int(missing[0])}")
        if self._placed != len(self._is_there):
            raise DataDamaged(f"{self._placed - len(self._is_there)} rows are there twice")
        return self._columns


class _Room:
    """Memory for the values of a window, used for one column after the other: to have it anew costs more than to fill
    it."""

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint8)

    def of(self, rows: int, like: Array) -> Array:
        """Room for so many rows of a column like this."""
        size = rows * like.dtype.itemsize * math.prod(like.shape[1:])
        if size > len(self._block):
            self._block = np.empty(size, np.uint8)
        return self._block[:size].view(like.dtype).reshape(rows, *like.shape[1:])


def merged(columns: Sequence[Column], pieces: Iterable[Piece]) -> Piece:
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
