"""Plain CSV files by pyarrow's reader, ten times as fast: cells come in columns, and are looked at all at once.

Plain is a file without quotes, NULs and compression, in UTF-8, whose rows have one length. What a column is, and what
its values are, is decided by the rules of `zkd.tables.csv_files`; whatever these read in another way than pyarrow does,
or refuse, is `NotPlain`, and read by them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from zkd.arrays.dtypes import Array
from zkd.tables.columns import TEXT_WIDTH_MAX, Columns

BLOCK_BYTES = 4 * 2**20

Dtype = np.dtype[np.generic]
Convert = Callable[[Dtype, Sequence[str]], Array]  # of columns whose dtype was given; ValueError, OverflowError


class NotPlain(Exception):
    """Read it otherwise."""


def expect_plain(path: Path) -> None:
    """Raises `NotPlain` for what pyarrow would, or might, read in another way."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as text:
        if text.find(b'"') >= 0 or text.find(b"\0") >= 0 or text[:1] in b"\r\n":
            raise NotPlain
        if text.find(b"\r") >= 0 and re.search(rb"\r(?!\n)", text):
            raise NotPlain


class Reader:
    """`kinds` looks at all of the file, `batches` reads it again. Both raise `NotPlain`, and the second never does if
    the first did not."""

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        delimiter: str,
        given: Mapping[str, Dtype],
        convert: Convert,
        *,
        has_header: bool,
        patterns: tuple[str, str, str],
    ) -> None:
        """`patterns` are what a cell has to be, so that all of them are truth values, whole numbers or numbers."""
        self._path = path
        self._names = list(names)
        self._delimiter = delimiter
        self._given = given
        self._convert = convert
        self._has_header = has_header
        self._patterns = patterns

    def kinds(self) -> list[Dtype]:
        guesses = [_Guess(self._patterns) for _ in self._names]
        rows = 0
        for batch in self._read():
            rows += len(batch)
            for name, guess, cells in zip(self._names, guesses, batch.columns, strict=True):
                guess.see_width(cells)
                if name not in self._given:
                    guess.see(cells)
                elif self._given[name].itemsize:
                    self._expect(self._given[name], cells)
        if not rows:
            raise NotPlain
        found = []
        for name, guess in zip(self._names, guesses, strict=True):
            kind = self._given.get(name)
            found.append(guess.dtype() if kind is None else kind if kind.itemsize else guess.text())
        return found

    def batches(self, kinds: Sequence[Dtype]) -> Iterator[Columns]:
        for batch in self._read():
            yield {
                name: self._array(kind, cells)
                for name, kind, cells in zip(self._names, kinds, batch.columns, strict=True)
            }

    def _read(self) -> Iterator[Any]:
        try:
            reader = pacsv.open_csv(
                self._path,
                pacsv.ReadOptions(
                    column_names=self._names, skip_rows=int(self._has_header), block_size=BLOCK_BYTES, use_threads=False
                ),
                pacsv.ParseOptions(delimiter=self._delimiter, quote_char=False, newlines_in_values=False),
                pacsv.ConvertOptions(
                    column_types={name: pa.string() for name in self._names}, strings_can_be_null=False, null_values=[]
                ),
            )
            yield from (batch for batch in reader if len(batch))
        except pa.ArrowException:
            raise NotPlain from None

    def _expect(self, dtype: Dtype, cells: Any) -> None:
        """`NotPlain` unless the cells of a column whose dtype was given can be read as that by `_array`."""
        number = {np.dtype(np.bool_): 0, np.dtype(np.int64): 1, np.dtype(np.float64): 2}.get(dtype)
        if number is not None and not _all(cells, self._patterns[number]):
            raise NotPlain
        self._array(dtype, cells)

    def _array(self, dtype: Dtype, cells: Any) -> Array:
        try:
            if dtype == np.int64 or dtype == np.float64:
                return _numbers(cells, dtype)
            if dtype == np.bool_:
                return _native(pc.equal(pc.ascii_lower(cells), "true"))
            return self._convert(dtype, cells.to_pylist())
        except (pa.ArrowException, ValueError, OverflowError):
            raise NotPlain from None


def _numbers(cells: Any, dtype: Dtype) -> Array:
    """Of cells that are all such numbers, perhaps with spaces; `ArrowInvalid` if one is too large."""
    plain = pc.ascii_trim(cells, " ")
    if dtype == np.int64:
        return _native(pc.cast(plain, pa.int64()))
    return _native(pc.cast(pc.if_else(pc.equal(plain, ""), "nan", plain), pa.float64()))


def _native(values: Any) -> Array:
    array: Array = values.to_numpy(zero_copy_only=False)
    return array


def _all(cells: Any, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(cells, rf"\A(?:{pattern})\z")).as_py())


class _Guess:
    def __init__(self, patterns: tuple[str, str, str]) -> None:
        self._patterns = patterns
        self._bool = self._whole = self._number = True
        self._width = 1

    def see_width(self, cells: Any) -> None:
        width = pc.max(pc.utf8_length(cells)).as_py()
        if width > TEXT_WIDTH_MAX:
            raise NotPlain
        self._width = max(self._width, width)

    def see(self, cells: Any) -> None:
        self._bool = self._bool and _all(cells, self._patterns[0])
        self._whole = self._whole and _all(cells, self._patterns[1])
        self._number = self._number and (self._whole or _all(cells, self._patterns[2]))
        try:
            if self._whole:
                _numbers(cells, np.dtype(np.int64))
            elif self._number:
                _numbers(cells, np.dtype(np.float64))
        except pa.ArrowException:
            raise NotPlain from None

    def dtype(self) -> Dtype:
        if self._bool or self._whole or self._number:
            return np.dtype(np.bool_ if self._bool else np.int64 if self._whole else np.float64)
        return self.text()

    def text(self) -> Dtype:
        return np.dtype(f"<U{self._width}")
