"""CSV files as batches of columns. Read twice: once to see what the columns are, once for the values.

What a column is, is decided by all of its cells, by the first of these rules that fits every one:

    true, false (in any case)                                     bool
    whole numbers without leading zeros, of at most 64 bits       int64, or uint64 if that is what they fit
    numbers with point or exponent, nan, inf, empty cells         float64; an empty cell is NaN
    anything else                                                 text, as wide as the widest; an empty cell is ""

So 007 stays text, and so do whole numbers of more than 64 bits: no digit is lost unasked. Spaces around numbers do
not count. `dtypes` says what some columns are instead; `U` is text as wide as the widest cell.

The first line is a header unless it has a cell that is a number; columns without a header are c0, c1, ... The
delimiter is the one of , ; | and tab that is most frequent in the first line. Files are UTF-8, quoted with double
quotes, and may be gzipped. With pyarrow at hand large ones without quotes are read by it (`zkd.tables.arrow_csv`).
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zkd.arrays.dtypes import Array, parse_dtype
from zkd.errors import BadRecord, BadRows
from zkd.tables.columns import KINDS, TEXT_WIDTH_MAX, Columns, refuse_bad_names

BATCH_LINES = 1 << 15
QUICK_BYTES = 1 << 20  # smaller ones are not worth the import
DELIMITERS = ",;\t|"
SHOWN = 40  # characters of a bad cell
NAMED_MAX = 8  # columns in a message
ANY_TEXT = np.dtype("<U0")  # as wide as the widest cell

_END = "\x1f"  # after each cell, where a whole column is looked at in one go
_WHOLE = r"(?:0|-?[1-9][0-9]*)"
_NUMBER = r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_BOOL = r"(?i:true|false)"
_ANY_NUMBER = rf"(?:{_NUMBER}|[+-]?(?i:nan|inf|infinity)|)"
_BOOLS = re.compile(rf"(?:{_BOOL}{_END})*+\Z")
_WHOLES = re.compile(rf"(?: *+{_WHOLE} *+{_END})*+\Z")
_NUMBERS = re.compile(rf"(?: *+{_ANY_NUMBER} *+{_END})*+\Z")
_BY_NAME = {"datetime64[": "<M8[", "timedelta64[": "<m8["}  # as numpy shows them, too
_IS_NUMBER = re.compile(rf" *{_NUMBER} *\Z")


class _Batch(NamedTuple):
    lines: list[int]  # where in the file each row ends
    columns: list[tuple[str, ...]]  # the cells of each column


def read(path: Path, *, header: bool | None, dtypes: Mapping[str, str]) -> Iterator[Columns]:
    """The rows of a CSV file. Raises `BadRows` with line and column for what cannot be read."""
    names = _names(path, header)
    refuse_bad_names(names)
    given = _given(path, names, dtypes)
    has_header, rows = _has_header(path, header), 0
    quick = _quick(path, names, given, has_header=has_header)
    if quick is not None:
        yield from quick
        return
    guesses = [_Guess() for _ in names]
    for batch in _batches(path, len(names), has_header):
        rows += len(batch.lines)
        for name, guess, cells in zip(names, guesses, batch.columns, strict=True):
            if name not in given:
                guess.see(cells)
            guess.check_width(path, name, cells, batch.lines)
    kinds = [_kind(given.get(name), guess) for name, guess in zip(names, guesses, strict=True)]
    if not rows:
        yield {name: np.empty(0, kind) for name, kind in zip(names, kinds, strict=True)}
    for batch in _batches(path, len(names), has_header):
        yield {
            name: _converted(path, name, kind, cells, batch.lines)
            for name, kind, cells in zip(names, kinds, batch.columns, strict=True)
        }


def _quick(
    path: Path, names: Sequence[str], given: Mapping[str, np.dtype[np.generic]], *, has_header: bool
) -> Iterator[Columns] | None:
    """The rows by way of pyarrow, if it is there, for a large file that it reads as we do."""
    if path.name.lower().endswith(".gz") or path.stat().st_size < QUICK_BYTES:
        return None
    try:
        from zkd.tables import arrow_csv
    except ImportError:
        return None
    patterns = (_BOOL, f" *{_WHOLE} *", f" *{_ANY_NUMBER} *")
    try:
        arrow_csv.expect_plain(path)
        reader = arrow_csv.Reader(
            path, names, _delimiter(path), given, _array, has_header=has_header, patterns=patterns
        )
        return reader.batches(reader.kinds())
    except arrow_csv.NotPlain:
        return None


# --- Lines --------------------------------------------------------------------------------------------------


def _open(path: Path) -> io.TextIOWrapper:
    file = gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # noqa: SIM115
    # Bytes that are no UTF-8 come as lone surrogates, so that the line can be named.
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each row with the number of the line that it ends on; empty lines are passed over."""
    line = 0
    try:
        with _open(path) as file:
            delimiter = max(DELIMITERS, key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                line = reader.line_num
                if "\0" in "".join(cells):
                    raise BadRows(f"{path}:{line}", "expected text, got a NUL byte")
                if cells:
                    yield line, cells
    except csv.Error as error:
        raise BadRows(f"{path}:{line + 1}", f"expected CSV: {error}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadRows(f"{path}:{line + 1}", f"expected a gzip file that is whole: {error}") from None


def _delimiter(path: Path) -> str:
    with _open(path) as file:
        return max(DELIMITERS, key=file.readline().count)


def _first(path: Path) -> list[str]:
    for _, cells in _lines(path):
        return cells
    raise BadRows(str(path), "expected at least one line")


def _has_header(path: Path, header: bool | None) -> bool:
    return not any(_IS_NUMBER.match(cell) for cell in _first(path)) if header is None else header


def _names(path: Path, header: bool | None) -> list[str]:
    first = _first(path)
    if not _has_header(path, header):
        return [f"c{number}" for number in range(len(first))]
    names = [cell.strip() for cell in first]
    for number, name in enumerate(names):
        if not name:
            raise BadRows(f"{path}:1", f"expected a name for each column, got none for number {number + 1}")
        if name in names[:number]:
            raise BadRows(f"{path}:1", f"expected each name once, got {name!r} twice")
    return names


def _batches(path: Path, width: int, has_header: bool) -> Iterator[_Batch]:
    lines: list[int] = []
    rows: list[list[str]] = []
    for line, cells in _lines(path):
        if has_header:
            has_header = False
            continue
        if len(cells) != width:
            raise BadRows(f"{path}:{line}", f"expected {width} cells as in the first line, got {len(cells)}")
        lines.append(line)
        rows.append(cells)
        if len(rows) == BATCH_LINES:
            yield _Batch(lines, list(zip(*rows, strict=True)))
            lines, rows = [], []
    if rows:
        yield _Batch(lines, list(zip(*rows, strict=True)))


# --- What a column is ---------------------------------------------------------------------------------------


class _Guess:
    """What a column may be, by the cells seen so far."""

    def __init__(self) -> None:
        self._bool = self._whole = self._number = True
        self._least, self._most = 0, 0
        self.width = 1
        self._is_empty = True

    def see(self, cells: Sequence[str]) -> None:
        self._is_empty = False
        text = _END.join(cells) + _END
        is_plain = text.count(_END) == len(cells)  # no cell has the mark in it
        self._bool = self._bool and is_plain and _BOOLS.match(text) is not None
        self._whole = self._whole and is_plain and _WHOLES.match(text) is not None
        self._number = self._number and is_plain and _NUMBERS.match(text) is not None
        if self._whole:
            if max(map(len, cells)) > 4000:  # past what Python reads as a number
                self._whole = self._number = False
                return
            numbers = list(map(int, cells))
            self._least, self._most = min(self._least, *numbers), max(self._most, *numbers)

    def check_width(self, path: Path, name: str, cells: Sequence[str], lines: Sequence[int]) -> None:
        longest = max(map(len, cells))
        if longest > TEXT_WIDTH_MAX:
            line = next(line for cell, line in zip(cells, lines, strict=True) if len(cell) == longest)
            raise BadRows(
                f"{path}:{line}: column {name!r}", f"expected at most {TEXT_WIDTH_MAX} characters, got {longest}"
            )
        self.width = max(self.width, longest)

    def dtype(self) -> np.dtype[np.generic]:
        if self._is_empty:
            return np.dtype(np.float64)
        if self._bool:
            return np.dtype(np.bool_)
        if self._whole:
            if self._least >= -(2**63) and self._most < 2**63:
                return np.dtype(np.int64)
            if self._least >= 0 and self._most < 2**64:
                return np.dtype(np.uint64)
        elif self._number:
            return np.dtype(np.float64)
        return np.dtype(f"<U{self.width}")


def _kind(given: np.dtype[np.generic] | None, guess: _Guess) -> np.dtype[np.generic]:
    if given is None:
        return guess.dtype()
    return np.dtype(f"<U{guess.width}") if given == ANY_TEXT else given


def _given(path: Path, names: Sequence[str], dtypes: Mapping[str, str]) -> dict[str, np.dtype[np.generic]]:
    given: dict[str, np.dtype[np.generic]] = {}
    for name, text in dtypes.items():
        if name not in names:
            raise BadRows(str(path), f"expected a column {name!r} among {', '.join(map(repr, names[:NAMED_MAX]))}")
        if text in ("U", "str"):
            given[name] = ANY_TEXT
            continue
        head, bracket, unit = text.partition("[")
        try:
            given[name] = parse_dtype(_BY_NAME.get(head + bracket, head + bracket) + unit, f"dtypes[{name!r}]")
        except BadRecord as error:
            raise BadRows(error.where, error.expected) from None
        if given[name].kind not in KINDS:
            raise BadRows(f"dtypes[{name!r}]", f"expected a dtype that can be read from text, got {text}")
    return given


# --- Values -------------------------------------------------------------------------------------------------


def _converted(path: Path, name: str, dtype: np.dtype[np.generic], cells: Sequence[str], lines: Sequence[int]) -> Array:
    try:
        return _array(dtype, cells)
    except (ValueError, OverflowError):
        pass
    for cell, line in zip(cells, lines, strict=True):
        try:
            _array(dtype, [cell])
        except UnicodeEncodeError:
            octets = cell.encode(errors="surrogateescape")[:SHOWN]
            raise BadRows(f"{path}:{line}: column {name!r}", f"expected UTF-8, got {octets!r}") from None
        except (ValueError, OverflowError):
            raise BadRows(f"{path}:{line}: column {name!r}", f"expected {dtype}, got {cell[:SHOWN]!r}") from None
    raise AssertionError("a column cannot be read whose cells can be")


def _array(dtype: np.dtype[np.generic], cells: Sequence[str]) -> Array:
    """The cells as an array; ValueError or OverflowError if one is no such value."""
    if dtype.kind == "U":
        if max(map(len, cells)) > dtype.itemsize // 4:
            raise ValueError("wider than the column")
        array = np.array(cells, dtype)
        "".join(cells).encode()  # refuses what was no UTF-8
        return array
    if dtype.kind == "S":
        octets = [cell.encode() for cell in cells]
        if max(map(len, octets)) > dtype.itemsize:
            raise ValueError("wider than the column")
        return np.array(octets, dtype)
    if dtype.kind == "b":
        truths = [cell.strip().lower() for cell in cells]
        if not {"true", "false"}.issuperset(truths):
            raise ValueError("neither true nor false")
        return np.array([truth == "true" for truth in truths])
    if dtype.kind in "iu":
        return np.array(list(map(int, cells)), dtype)
    if dtype.kind == "f":
        return np.array([float(cell) if cell and not cell.isspace() else np.nan for cell in cells], dtype)
    if dtype.kind == "c":
        return np.array(list(map(complex, cells)), dtype)
    return np.array([cell.strip() or "NaT" for cell in cells]).astype(dtype)
