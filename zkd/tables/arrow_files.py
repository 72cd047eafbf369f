"""Parquet and Arrow files, and pyarrow's tables, as batches of columns. The only importer of pyarrow.

Numbers, truth values, dates, times, text and bytes become the numpy types of the same width; lists of one fixed size
become a column with such rows; dictionaries their values. A missing float is NaN, a missing time NaT, a missing text
empty. Other missing values, and types that numpy has no plain data for, are refused with the column's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zkd.arrays.dtypes import Array
from zkd.errors import BadRows
from zkd.tables.columns import TEXT_WIDTH_MAX, Columns, refuse_bad_names

BATCH_ROWS = 1 << 16


def pyarrow() -> Any:
    """The package, or `BadRows` that says how to get it."""
    try:
        import pyarrow  # 30 MB, so only where it is needed
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise BadRows("pyarrow", "not installed; Parquet and Arrow need it: pip install 'zkd[arrow]'") from None
    return pyarrow


def read(path: Path) -> Iterator[Columns]:
    """The rows of a file, in batches. Raises `BadRows`."""
    pa = pyarrow()
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            with pa.parquet.ParquetFile(path) as file:
                yield from _converted(file.schema_arrow, file.iter_batches(BATCH_ROWS), str(path))
            return
        with pa.memory_map(str(path)) as source:
            try:
                reader = pa.ipc.open_file(source)
                found = (reader.get_batch(number) for number in range(reader.num_record_batches))
            except pa.ArrowInvalid:  # a stream, which has no directory at its end
                source.seek(0)
                reader = found = pa.ipc.open_stream(source)
            yield from _converted(reader.schema, found, str(path))
    except pa.ArrowException as error:
        raise BadRows(str(path), f"expected a {path.suffix} file: {str(error).splitlines()[0][:200]}") from None


def batches(source: Any) -> Iterator[Columns]:
    """The rows of a pyarrow Table, RecordBatch, RecordBatchReader or Dataset."""
    if hasattr(source, "to_batches"):
        return _converted(source.schema, iter(source.to_batches()), "rows")
    if hasattr(source, "to_pydict"):
        return _converted(source.schema, iter([source]), "rows")
    if hasattr(source, "read_next_batch"):
        return _converted(source.schema, source, "rows")
    raise BadRows("rows", f"expected a pyarrow Table, RecordBatch or reader, got a {type(source).__name__}")


def _converted(schema: Any, found: Any, where: str) -> Iterator[Columns]:
    refuse_bad_names(schema.names)
    row, is_empty = 0, True
    for batch in found:
        for start in range(0, batch.num_rows, BATCH_ROWS):  # a file may be one batch of all its rows
            some = batch.slice(start, BATCH_ROWS)
            yield {
                name: _column(column, f"{where}: column {name!r}", row)
                for name, column in zip(schema.names, some.columns, strict=True)
            }
            row += some.num_rows
            is_empty = False
    if is_empty:
        pa = pyarrow()
        yield {field.name: _column(pa.array([], field.type), f"{where}: column {field.name!r}", 0) for field in schema}


def _column(column: Any, where: str, row: int) -> Array:
    pa = pyarrow()
    kinds, kind = pa.types, column.type
    if kinds.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if kinds.is_fixed_size_list(kind):
        _refuse_missing(column, where, row)
        inner = _column(column.flatten(), where, row * kind.list_size)
        return inner.reshape(len(column), kind.list_size, *inner.shape[1:])
    if kinds.is_integer(kind) or kinds.is_boolean(kind):
        _refuse_missing(column, where, row)
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if kinds.is_floating(kind):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if kinds.is_timestamp(kind) or kinds.is_duration(kind) or kinds.is_date(kind):
        array: Array = np.asarray(column.to_numpy(zero_copy_only=False))
        return array
    if any(test(kind) for test in (kinds.is_string, kinds.is_large_string, kinds.is_string_view)):
        return _text(column, where, row, "U")
    if any(test(kind) for test in (kinds.is_binary, kinds.is_large_binary, kinds.is_fixed_size_binary)):
        _refuse_missing(column, where, row)
        return _text(column, where, row, "S")
    raise BadRows(where, f"expected numbers, truth values, times, text, bytes or lists of one size, got {kind}")


def _refuse_missing(column: Any, where: str, row: int) -> None:
    if column.null_count:
        first = row + int(np.flatnonzero(np.asarray(column.is_null()))[0])
        advice = "fill them, or cast the column to double"
        raise BadRows(
            where, f"expected {column.type} in every row, {column.null_count} missing from row {first} on; {advice}"
        )


def _text(column: Any, where: str, row: int, kind: str) -> Array:
    texts = column.to_pylist()
    empty: str | bytes = "" if kind == "U" else b""
    nul: Any = "\0" if kind == "U" else b"\0"
    texts = [empty if text is None else text for text in texts]
    width = max(map(len, texts), default=1)
    if width > TEXT_WIDTH_MAX:
        at = row + next(number for number, text in enumerate(texts) if len(text) == width)
        raise BadRows(where, f"expected at most {TEXT_WIDTH_MAX} characters, got {width} in row {at}")
    for number, text in enumerate(texts):
        if text.endswith(nul):  # numpy fills with these, and would take it for filling
            raise BadRows(where, f"expected text that does not end in a NUL, got one in row {row + number}")
    return np.array(texts, f"{kind}{max(1, width)}")


def write(columns: Columns, path: Path) -> None:
    """Write the rows to a .parquet or .arrow file; columns whose rows have one axis become lists of one size."""
    pa = pyarrow()
    arrays = {}
    for name, column in columns.items():
        try:
            flat = pa.array(np.ascontiguousarray(column.reshape(-1)))
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise BadRows(f"column {name!r}", f"expected what {path.suffix} can hold: {error}") from None
        for length in reversed(column.shape[1:]):
            flat = pa.FixedSizeListArray.from_arrays(flat, length)
        arrays[name] = flat
    table = pa.table(arrays)
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path)
        return
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
