"""A table to a file, .npz, .npy for a single column, .csv, .parquet or .arrow: the way back of `zkd.tables.ingest`.

The file has its name when it is complete, so that nobody takes half of a table for all of it.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import IO, Any

import numpy as np

from zkd.arrays import save_npy
from zkd.arrays.dtypes import Array
from zkd.errors import BadRows
from zkd.tables.columns import Columns

ENDINGS = (".npz", ".npy", ".csv", ".parquet", ".arrow")
LINES = 10_000  # of CSV that are made at a time


def expect_ending(path: Path) -> None:
    """`BadRows` for a file that nothing could be written to, before anything is read."""
    if path.suffix not in ENDINGS:
        raise BadRows(str(path), f"expected a file named *{', *'.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise BadRows(str(path), f"there is no directory {path.parent}")


def to_file(columns: Columns, path: Path) -> None:
    """Write the rows to a file. It is complete when it has its name."""
    expect_ending(path)
    half_written = path.with_name(f".{path.name}.tmp{path.suffix}")
    try:
        if path.suffix == ".npz":
            np.savez(half_written, allow_pickle=False, **columns)
        elif path.suffix == ".npy":
            if len(columns) != 1:
                raise BadRows(str(path), f"expected one column for .npy, got {len(columns)}: choose one, or use .npz")
            save_npy(next(iter(columns.values())), half_written)
        elif path.suffix == ".csv":
            with half_written.open("w", newline="", encoding="utf-8") as file:
                to_csv(columns, file)
        else:
            _to_arrow(columns, half_written)
        half_written.rename(path)
    finally:
        half_written.unlink(missing_ok=True)


def to_csv(columns: Columns, file: IO[str]) -> None:
    """The rows as CSV with a header. A column whose rows have a shape becomes one for each element: X.0, X.1."""
    flat: dict[str, Array] = {}
    for name, column in columns.items():
        if column.ndim == 1:
            flat[name] = column
        else:
            elements = column.reshape(len(column), -1)
            flat |= {f"{name}.{number}": elements[:, number] for number in range(elements.shape[1])}
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(flat)
    for start in range(0, len(next(iter(flat.values()))), LINES):
        writer.writerows(zip(*(_cells(column[start : start + LINES]) for column in flat.values()), strict=True))


def _cells(column: Array) -> list[Any]:
    if column.dtype.kind == "S":
        return [octets.decode(errors="backslashreplace") for octets in column.tolist()]
    if column.dtype.kind in "mM":
        return list(np.datetime_as_string(column).tolist() if column.dtype.kind == "M" else column.astype(np.int64))
    if column.dtype.kind == "b":
        return ["true" if truth else "false" for truth in column.tolist()]
    return list(column.tolist()) if column.dtype.itemsize != 4 or column.dtype.kind != "f" else list(column)


def _to_arrow(columns: Columns, path: Path) -> None:
    from zkd.tables.arrow_files import write

    write(columns, path)
