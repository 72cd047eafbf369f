"""Rows by part: batches go in as they were written, the rows of each part come out in that order.

A batch is cut into chunks that fit the processor's cache, each chunk is sorted by part (a radix sort of small
integers) and kept whole: a part is a slice of every chunk. Gathering from the whole of a large array instead takes
ten times as long. When the chunks have `buffer_bytes`, they go to a file, part after part.

Memory stays below `buffer_bytes`, one batch of the caller's, a chunk for each of THREADS (CHUNK_BYTES and what sorting
takes), and PIECE_BYTES for each part that is being read. Files take as much room as the rows do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zkd.arrays.dtypes import Array
from zkd.errors import BadRows
from zkd.manifests import Column
from zkd.tables.columns import Columns, checked, described, joined, refuse_bad_key, row_bytes, stored_dtype
from zkd.tables.hashing import hash_column, part_numbers

CHUNK_ROWS = 1 << 17
CHUNK_BYTES = 16 * 2**20
THREADS = 4  # chunks that are sorted at the same time, or as many as there are processors
ALIGNMENT = 64  # of an array in a chunk
PIECE_BYTES = 4 * 2**20
ROW_NUMBER = Column("", "<i8")
ROW_NUMBER_BYTES = 8

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Chunk:
    """Some rows, sorted by part."""

    arrays: list[Array]  # the numbers of the rows, then each column
    bounds: list[int]  # where each part begins, and the end

    @property
    def size(self) -> int:
        return sum(array.nbytes for array in self.arrays)


@dataclass(frozen=True)
class _Run:
    """Chunks that went to a file: for each array its rows, part after part."""

    fd: int
    bounds: list[int]
    starts: list[int]  # where each array begins in the file
    columns: list[Column]  # as they were then: text may have grown wider since


class Partition:
    """`add` the batches in order, then ask for `part(n)`. `directory` is used when the rows outgrow `buffer_bytes`.

    `key` names the column that decides; None: the number of the row does, which counts from `first_row`. With
    `columns` the batches have to be of these, as those of an earlier version. `close` when done, or use ``with``.
    """

    def __init__(
        self,
        parts: int,
        key: str | None,
        directory: Path,
        *,
        buffer_bytes: int,
        label: str | None = None,
        first_row: int = 0,
        columns: Iterable[Column] = (),
    ) -> None:
        assert parts > 0, "at least one part"
        assert parts & (parts - 1) == 0, "a power of two"
        self.parts = parts
        self.columns = list(columns)
        self.rows = 0
        self.counts = np.zeros(parts, np.int64)  # rows of each part
        self._key, self._label = key, label
        self._directory = directory
        self._buffer_bytes = buffer_bytes
        self._first_row = first_row
        self._chunks: list[_Chunk] = []
        self._buffered = 0
        self._runs: list[_Run] = []

    def __enter__(self) -> Partition:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for run in self._runs:
            os.close(run.fd)
        self._runs.clear()
        self._chunks.clear()

    @property
    def spilled_bytes(self) -> int:
        return sum(os.fstat(run.fd).st_size for run in self._runs)

    def add(self, batch: Any) -> int:
        """Take in these rows, which follow those before; how many they are. Raises `BadRows`, having taken none."""
        columns = checked(batch)
        wanted = joined(self.columns, columns) if self.columns else [described(*pair) for pair in columns.items()]
        refuse_bad_key(columns, self._key, self._label)
        count = len(next(iter(columns.values())))
        chunk_rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // (row_bytes(wanted) + ROW_NUMBER_BYTES)))
        # Bad keys are found before anything of the batch is kept.
        cuts = [(start, min(start + chunk_rows, count)) for start in range(0, count, chunk_rows)]
        numbers = [self._part_numbers(columns, start, stop) for start, stop in cuts]
        self.columns, first = wanted, self._first_row + self.rows
        sort = partial(_sorted, columns, [column.name for column in wanted], self.parts, first)
        threads = min(THREADS, os.cpu_count() or 1, len(cuts))
        if threads < 2:
            for cut, parts in zip(cuts, numbers, strict=True):
                self._keep(sort(cut, parts))
            return count
        with ThreadPoolExecutor(threads, "zkd-sort") as pool:
            for at in range(0, len(cuts), threads):  # no further ahead of what may have to be spilled
                for chunk in list(pool.map(sort, cuts[at : at + threads], numbers[at : at + threads])):
                    self._keep(chunk)
        return count

    def _part_numbers(self, columns: Columns, start: int, stop: int) -> Array:
        if self._key is None:
            keys: Array = np.arange(self._first_row + self.rows + start, self._first_row + self.rows + stop)
        else:
            keys = columns[self._key][start:stop]
        where = f"column {self._key!r}" if self._key is not None else "key"
        return part_numbers(hash_column(keys, first_row=self._first_row + self.rows + start, where=where), self.parts)

    def _keep(self, chunk: _Chunk) -> None:
        self.counts += np.diff(chunk.bounds)
        self.rows += chunk.bounds[-1]
        self._chunks.append(chunk)
        self._buffered += chunk.size
        if self._buffered >= self._buffer_bytes:
            self._spill()

    # --- Parts ------------------------------------------------------------------------------------------

    def pieces(self, part: int) -> list[Iterator[Array]]:
        """The numbers of the rows of this part, then each column: all in bounded pieces, C order, little-endian."""
        return [self._pieces(part, index) for index in range(1 + len(self.columns))]

    def buffers(self, part: int) -> list[Iterator[memoryview]]:
        """The bytes of `pieces`, for a file."""
        return [map(octets, pieces) for pieces in self.pieces(part)]

    def fill(self, part: int, number: int, into: memoryview, *, after: Sequence[tuple[Numbers, Columns]] = ()) -> None:
        """Put the bytes of `buffers(part)[number]` there, which are as many; `after` other rows, if there are some."""
        if not into:  # rows of nothing
            return
        column = self._all[number]
        array = np.frombuffer(into, column.dtype).reshape(-1, *column.shape)
        at = 0
        others = (numbers if number == 0 else columns[column.name] for numbers, columns in after)
        for piece in chain(others, self._spilled(part, number)):
            array[at : at + len(piece)] = piece
            at += len(piece)
        slices = self._slices(part, number)
        if slices:
            np.concatenate(slices, out=array[at:])

    def whole(self, part: int) -> list[Array]:
        """`pieces`, each as one array."""
        return [
            _concatenated(list(pieces), column) for pieces, column in zip(self.pieces(part), self._all, strict=True)
        ]

    @property
    def _all(self) -> list[Column]:
        return [ROW_NUMBER, *self.columns]

    def _pieces(self, part: int, index: int) -> Iterator[Array]:
        column = self._all[index]
        yield from self._spilled(part, index)
        together: list[Array] = []
        size = 0
        for piece in self._slices(part, index):
            together.append(piece)
            size += piece.nbytes
            if size >= PIECE_BYTES:
                yield _concatenated(together, column)
                together, size = [], 0
        if size:
            yield _concatenated(together, column)

    def _spilled(self, part: int, index: int) -> Iterator[Array]:
        for run in self._runs:
            yield from _read(run, part, index, self._all[index])

    def _slices(self, part: int, index: int) -> list[Array]:
        """The rows of a part that were not spilled, chunk by chunk."""
        return [chunk.arrays[index][chunk.bounds[part] : chunk.bounds[part + 1]] for chunk in self._chunks]

    # --- More than memory holds ---------------------------------------------------------------------------

    def _spill(self) -> None:
        """Move the chunks to a file of their own, which has no name: it goes when we do."""
        fd = os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            starts, at = [], 0
            for index, column in enumerate(self._all):
                starts.append(at)
                for piece in self._in_order(index, column):
                    at += _write_all(fd, octets(piece))
        except BaseException:
            os.close(fd)
            raise
        bounds = np.sum([chunk.bounds for chunk in self._chunks], axis=0).tolist()
        self._runs.append(_Run(fd, bounds, starts, list(self.columns)))
        self._chunks, self._buffered = [], 0

    def _in_order(self, index: int, column: Column) -> Iterator[Array]:
        """The rows of all chunks, part after part."""
        together: list[Array] = []
        size = 0
        for part in range(self.parts):
            for chunk in self._chunks:
                piece = chunk.arrays[index][chunk.bounds[part] : chunk.bounds[part + 1]]
                if len(piece):
                    together.append(piece)
                    size += piece.nbytes
                if size >= PIECE_BYTES:  # of few parts one may have all the rows
                    yield _concatenated(together, column)
                    together, size = [], 0
        if together:
            yield _concatenated(together, column)


def _sorted(columns: Columns, names: Sequence[str], parts: int, first: int, cut: tuple[int, int], of: Array) -> _Chunk:
    """The rows from `cut` to `cut`, by the part that each is `of`; the first of the batch has the number `first`."""
    start, stop = cut
    order = np.argsort(of, kind="stable")
    values = [columns[name][start:stop] for name in names]
    # One block of memory: several MiB at once are had for a third of what many small ones cost.
    places, size = [], _aligned(ROW_NUMBER_BYTES * len(order))
    for array in values:
        places.append(size)
        size += _aligned(array.nbytes)
    block = np.empty(size, np.uint8)
    numbers = block[: ROW_NUMBER_BYTES * len(order)].view(np.int64)
    np.add(order, first + start, out=numbers)
    arrays: list[Array] = [numbers]
    for array, at in zip(values, places, strict=True):
        wanted = stored_dtype(array.dtype)
        if wanted != array.dtype or not array.nbytes:
            arrays.append(array.take(order, axis=0).astype(wanted, copy=False))
            continue
        into = block[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
        arrays.append(array.take(order, axis=0, out=into, mode="clip"))  # with "raise" numpy would copy it once more
    return _Chunk(arrays, [0, *np.cumsum(np.bincount(of, minlength=parts)).tolist()])


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _read(run: _Run, part: int, index: int, column: Column) -> Iterator[Array]:
    """The rows of a part, as they lie in a file, in the width that they have by now."""
    then = [ROW_NUMBER, *run.columns][index]
    item = np.dtype((then.dtype, tuple(then.shape)))
    if not item.itemsize:
        yield np.empty((run.bounds[part + 1] - run.bounds[part], *column.shape), column.dtype)
        return
    at, stop = (run.starts[index] + row * item.itemsize for row in (run.bounds[part], run.bounds[part + 1]))
    step = max(1, PIECE_BYTES // item.itemsize) * item.itemsize
    while at < stop:
        piece = _read_all(run.fd, min(step, stop - at), at)
        at += len(piece)
        yield np.frombuffer(piece, then.dtype).reshape(-1, *then.shape).astype(column.dtype, copy=False)


def _concatenated(pieces: list[Array], column: Column) -> Array:
    if not pieces:
        return np.empty((0, *column.shape), column.dtype)
    if len(pieces) == 1:
        return pieces[0].astype(column.dtype, copy=False)
    return np.concatenate(pieces, dtype=np.dtype(column.dtype))


def octets(array: Array) -> memoryview:
    """The bytes of a contiguous array, whatever its dtype."""
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")


def _write_all(fd: int, data: memoryview) -> int:
    size = len(data)
    while data:
        data = data[os.write(fd, data) :]
    return size


def _read_all(fd: int, size: int, at: int) -> bytearray:
    whole = bytearray(size)
    view = memoryview(whole)
    while view:
        got = os.preadv(fd, [view], at)
        if not got:
            raise BadRows("rows", "what was written to a temporary file is not there any more")
        view, at = view[got:], at + got
    return whole
