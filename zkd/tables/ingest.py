"""Files and iterators as batches of rows, a few megabytes each, so that a file may be larger than memory.

    .csv .tsv .txt, also .gz     `zkd.tables.csv_files`: types are inferred, or given
    .npy                         one array: the column ``x``; a structured one: a column for each field
    .npz                         a column for each array in it
    .parquet .arrow .feather     `zkd.tables.arrow_files`, which needs pyarrow

A batch is a dict of arrays of one length. Iterators give batches themselves; `pyarrow` tables and readers count as
iterators.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from zkd.arrays.dtypes import Array
from zkd.arrays.files import open_npy, read_npy_header
from zkd.errors import BadRecord, BadRows
from zkd.tables.columns import Columns, refuse_bad_names

BATCH_BYTES = 8 * 2**20
ONE_ARRAY = "x"  # the column of a .npy file, which has no names

CSV_ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
ARROW_ENDINGS = (".parquet", ".pq", ".arrow", ".feather", ".ipc")
ENDINGS = (*CSV_ENDINGS, ".npy", ".npz", *ARROW_ENDINGS)


def from_file(
    path: str | os.PathLike[str], *, header: bool | None = None, dtypes: Mapping[str, str] | None = None
) -> Iterator[Columns]:
    """The rows of a file, in batches. `header` and `dtypes` are for CSV (`csv_files.read`). Raises `BadRows`."""
    file = Path(path)
    name = file.name.lower()
    if not name.endswith(ENDINGS):
        raise BadRows(str(file), f"expected a file named *{', *'.join(ENDINGS)}")
    if file.exists() and not file.is_file():
        raise BadRows(str(file), "expected a plain file, which can be read twice")
    file.stat()  # FileNotFoundError now, not with the first batch
    if name.endswith(CSV_ENDINGS):
        from zkd.tables import csv_files

        return csv_files.read(file, header=header, dtypes=dtypes or {})
    if header is not None or dtypes:
        raise BadRows(str(file), "`header` and `dtypes` are for CSV; this file says them itself")
    if name.endswith(".npy"):
        return in_batches(from_npy(file))
    if name.endswith(".npz"):
        return _from_npz(file)
    from zkd.tables import arrow_files

    return arrow_files.read(file)


def batches(source: Any) -> Iterator[Columns]:
    """The batches of a mapping of arrays, of an iterable of such mappings, or of a pyarrow table or reader."""
    if isinstance(source, Mapping):
        return iter([dict(source)])
    if type(source).__module__.partition(".")[0] == "pyarrow":
        from zkd.tables import arrow_files

        return arrow_files.batches(source)
    if isinstance(source, np.ndarray):
        raise BadRows("rows", 'expected names for the columns, such as {"x": array}, got an array alone')
    if isinstance(source, str | bytes) or not isinstance(source, Iterable):
        kind = type(source).__name__
        raise BadRows("rows", f"expected a mapping of arrays, an iterator of these, or the path of a file, got {kind}")
    return iter(source)


def in_batches(columns: Columns) -> Iterator[Columns]:
    """Arrays, which may be memory maps, cut into batches of BATCH_BYTES."""
    rows = len(next(iter(columns.values())))
    wide = sum(array.nbytes for array in columns.values()) // max(1, rows)
    step = max(1, BATCH_BYTES // max(1, wide))
    for start in range(0, max(1, rows), step):
        yield {name: array[start : start + step] for name, array in columns.items()}


def from_npy(path: Path) -> Columns:
    """A .npy file as columns, mapped and not read."""
    try:
        array = open_npy(path, str(path))
    except BadRecord as error:
        raise BadRows(error.where, error.expected) from None
    if array.ndim == 0:
        raise BadRows(str(path), "expected an array with a row for each row, got a single value")
    if array.dtype.names is None:
        return {ONE_ARRAY: array}
    refuse_bad_names(array.dtype.names)
    return {name: array[name] for name in array.dtype.names}


def _from_npz(path: Path) -> Iterator[Columns]:
    """Each member is read as it is needed: a batch's worth of each at a time."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.removesuffix(".npy") for entry in archive.namelist()]
            refuse_bad_names(names)
            members = [_Member(f"{path}: {entry}", archive.open(entry)) for entry in archive.namelist()]
            rows = members[0].rows
            for member in members:
                if member.rows != rows:
                    raise BadRows(member.where, f"expected {rows} rows, as {members[0].where} has, got {member.rows}")
            step = max(1, BATCH_BYTES // max(1, sum(member.row_bytes for member in members)))
            for start in range(0, max(1, rows), step):
                count = min(step, rows - start)
                yield {name: member.read(count) for name, member in zip(names, members, strict=True)}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise BadRows(str(path), f"expected an .npz file: {error}") from None


class _Member:
    """One array of an .npz file, read from front to back."""

    def __init__(self, where: str, file: IO[bytes]) -> None:
        self.where = where
        self._file = file
        self._whole: Array | None = None
        try:
            dtype, shape, order = read_npy_header(file, where)
        except BadRecord as error:
            raise BadRows(error.where, error.expected) from None
        if not shape or dtype.names is not None:
            raise BadRows(where, "expected an array with a row for each row, without fields")
        self.rows, self._shape, self._dtype = shape[0], shape[1:], dtype
        self.row_bytes = dtype.itemsize * int(np.prod(self._shape, dtype=object))
        self._at = 0
        if order == "F" and len(shape) > 1:  # its rows are spread over all of it
            self._whole = self._take(self.rows).reshape(-1).reshape(shape, order="F")

    def read(self, rows: int) -> Array:
        self._at += rows
        if self._whole is not None:
            return self._whole[self._at - rows : self._at]
        return self._take(rows)

    def _take(self, rows: int) -> Array:
        size = rows * self.row_bytes
        data = self._file.read(size)
        if len(data) != size:
            raise BadRows(self.where, f"expected {size} more bytes, got {len(data)}: the file is cut short")
        if not size:
            return np.empty((rows, *self._shape), self._dtype)
        return np.frombuffer(data, self._dtype).reshape(rows, *self._shape)
