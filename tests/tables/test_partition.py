"""Rows by part and back again: nothing lost, nothing twice, in the order in which they were written."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkd.core.placement import hash_key, part_of
from zkd.errors import BadRows, DataDamaged
from zkd.manifests import Column
from zkd.tables import assemble, partition
from zkd.tables.assemble import Assembly, merged
from zkd.tables.columns import Columns
from zkd.tables.partition import Partition

PLENTY = 1 << 30

rows_of_text = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9), st.floats(allow_nan=False)),
    max_size=60,
)


def batch_of(rows: list[tuple[str, float]]) -> Columns:
    return {
        "name": np.array([name for name, _ in rows], "U") if rows else np.empty(0, "U1"),
        "x": np.array([[x, x] for _, x in rows], np.float64).reshape(-1, 2),
    }


@given(st.lists(rows_of_text, min_size=1, max_size=5), st.sampled_from([1, 2, 8, 512]), st.integers(1, 3000))
def test_every_row_is_in_the_part_of_its_key_in_written_order_however_often_it_is_spilled(
    batches: list[list[tuple[str, float]]], parts: int, buffer_bytes: int
) -> None:
    written = [row for batch in batches for row in batch]
    with (
        TemporaryDirectory() as directory,
        Partition(parts, "name", Path(directory), buffer_bytes=buffer_bytes) as sorted_,
    ):
        for batch in batches:
            sorted_.add(batch_of(batch))
        assert sorted_.rows == len(written)
        found = []
        for part in range(parts):
            numbers, names, values = sorted_.whole(part)
            assert len(numbers) == sorted_.counts[part]
            assert (np.diff(numbers) > 0).all()
            for number, name, pair in zip(numbers.tolist(), names.tolist(), values.tolist(), strict=True):
                assert part_of(hash_key(name), parts) == part
                assert (name, pair[0], pair[1]) == (written[number][0], written[number][1], written[number][1])
                found.append(number)
        assert sorted(found) == list(range(len(written)))


@given(st.lists(rows_of_text, min_size=1, max_size=4), st.integers(1, 3000), st.randoms())
def test_parts_in_any_order_make_the_table_that_was_written(
    batches: list[list[tuple[str, float]]], buffer_bytes: int, random: Any
) -> None:
    with TemporaryDirectory() as directory, Partition(16, "name", Path(directory), buffer_bytes=buffer_bytes) as parts:
        for batch in batches:
            parts.add(batch_of(batch))
        whole = Assembly(parts.rows, parts.columns)
        pieces = []
        for part in random.sample(range(16), 16):
            numbers, names, values = parts.whole(part)
            if whole.add((numbers, {"name": names, "x": values})):
                whole.place()
            pieces.append((numbers, {"name": names, "x": values}))
        expected = batch_of([row for batch in batches for row in batch])
        for table in (whole.finish(), merged(parts.columns, pieces)[1]):
            assert table["name"].tolist() == expected["name"].tolist()
            assert np.array_equal(table["x"], expected["x"])


@pytest.mark.parametrize("kind", ["?", "i1", ">i4", "u8", "f2", ">f8", "c16", "M8[ns]", "m8[D]", "U3", ">U3", "S5"])
@pytest.mark.parametrize("buffer_bytes", [1, PLENTY])
def test_every_plain_type_comes_back_little_endian(tmp_path: Path, kind: str, buffer_bytes: int) -> None:
    values = np.arange(100).astype(kind)
    with Partition(4, None, tmp_path, buffer_bytes=buffer_bytes) as parts:
        parts.add({"x": values})
        whole = Assembly(100, parts.columns)
        for part in range(4):
            numbers, of_part = parts.whole(part)
            assert of_part.dtype.str == np.dtype(kind).newbyteorder("<").str
            whole.add((numbers, {"x": of_part}))
    assert (whole.finish()["x"] == values).all()


def test_without_a_key_the_number_of_the_row_is_the_key_and_goes_on(tmp_path: Path) -> None:
    with Partition(8, None, tmp_path, buffer_bytes=PLENTY, first_row=1000) as parts:
        parts.add({"x": np.arange(50)})
        parts.add({"x": np.arange(50)})
        for part in range(8):
            for number in parts.whole(part)[0].tolist():
                assert part_of(hash_key(number), 8) == part
                assert 1000 <= number < 1100


@pytest.mark.parametrize("buffer_bytes", [PLENTY, 20_000, 1])
def test_a_part_is_filled_into_memory_as_it_would_be_written(tmp_path: Path, buffer_bytes: int) -> None:
    with Partition(4, "k", tmp_path, buffer_bytes=buffer_bytes) as parts:
        for width in (1, 9, 3):
            rows = np.arange(500)
            texts = np.array(["x" * (width - row % 2) for row in rows], f"U{width}")
            parts.add({"k": rows, "t": texts, "v": rows[:, None] * [1.0, 2.0], "none": np.empty((500, 0), "f4")})
        for part in range(4):
            for number, pieces in enumerate(parts.buffers(part)):
                written = b"".join(map(bytes, pieces))
                room = bytearray(len(written))
                parts.fill(part, number, memoryview(room))
                assert room == written


def test_threads_that_sort_leave_the_order_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "CHUNK_ROWS", 1000)
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(partition, "THREADS", threads)
        monkeypatch.setattr("os.cpu_count", lambda: 4)
        with Partition(8, "k", tmp_path, buffer_bytes=50_000) as parts:
            parts.add({"k": np.arange(20_500) % 977, "x": np.arange(20_500)})
            found.append([[array.tolist() for array in parts.whole(part)] for part in range(8)])
    assert found[0] == found[1]


def test_memory_stays_below_what_was_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "CHUNK_BYTES", 2 << 20)
    monkeypatch.setattr(partition, "PIECE_BYTES", 1 << 20)
    buffer_bytes, batch_rows = 8 << 20, 50_000
    batch_bytes = batch_rows * 16
    tracemalloc.start()
    try:
        with Partition(64, "k", tmp_path, buffer_bytes=buffer_bytes) as parts:
            for start in range(0, 6_000_000, batch_rows):
                parts.add({"k": np.arange(start, start + batch_rows), "x": np.ones(batch_rows)})
            for part in range(64):
                for buffers in parts.buffers(part):
                    for _ in buffers:
                        pass
            assert parts.spilled_bytes > 10 * buffer_bytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < buffer_bytes + batch_bytes + 4 * (2 << 20) + 2 * (1 << 20)


def test_one_part_that_has_all_rows_is_spilled_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "CHUNK_BYTES", 2 << 20)
    monkeypatch.setattr(partition, "PIECE_BYTES", 1 << 20)
    buffer_bytes = 32 << 20
    tracemalloc.start()
    try:
        with Partition(1, None, tmp_path, buffer_bytes=buffer_bytes) as parts:
            for _ in range(100):
                parts.add({"x": np.ones((5000, 15))})
            assert parts.spilled_bytes > buffer_bytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < buffer_bytes + 5000 * 15 * 8 + 4 * (2 << 20) + 2 * (1 << 20)


def test_what_is_spilled_has_no_name_that_could_be_left_behind(tmp_path: Path) -> None:
    with Partition(4, None, tmp_path, buffer_bytes=1) as parts:
        parts.add({"x": np.arange(1000)})
        assert parts.spilled_bytes == 16_000
        assert list(tmp_path.iterdir()) == []


OBJECTS = np.array([1, "a"], object)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({}, "expected 1 to 4096 columns, got 0"),
        ({"k": [1, 2], "x": [1]}, r"column 'x': expected 2 rows, as many as column 'k' has, got 1"),
        ({"k": [1, 2], "x": OBJECTS}, "column 'x': dtype object is not plain data"),
        ({"k": [1, 2], "x": np.zeros(2, "i4,f8")}, r"column 'x': dtype .* is not plain data"),
        ({"k": [1, 2], "x": np.ma.masked_array([1, 2])}, "column 'x': a masked array would lose its mask"),
        ({"k": [1, 2], "x": np.zeros(2, np.longdouble)}, "another format on other machines"),
        ({"k": [1, 2], "x": [[1], [2, 3]]}, "column 'x': expected an array or even lists"),
        ({"k": [1, 2], "x": 5}, "column 'x': expected an array with a row for each row, got one value"),
        ({"k": [1, 2], "x": np.array([0, 7], "u1").view("?")}, "column 'x': expected booleans as bytes 0 and 1"),
        ({"k": [1, 2], "x": np.array(["a", "b" * 5000])}, "expected text of at most 4096 characters"),
        ({"k": [1, 2], "": [1, 2]}, "expected names of 1 to 128 printable characters"),
        ({"k": [1, 2], "a\nb": [1, 2]}, "expected names of 1 to 128 printable characters"),
        ({"k": [1, 2], 5: [1, 2]}, "expected names of 1 to 128 printable characters, got 5"),
        ({"x": [1, 2]}, "key: expected one of the columns 'x', got 'k'"),
        ({"k": [True, False]}, "column 'k': a key is a number, a date, text or bytes, got bool"),
        ({"k": [[1], [2]]}, r"column 'k': a key is one value a row, this has the shape \[1\]"),
        ({"k": [1.0, np.nan]}, r"column 'k': NaN equals nothing.*\(row 1, counted from 0\)"),
        ([1, 2], "rows: expected a mapping of names to arrays, got a list"),
    ],
)
def test_bad_rows_are_refused_in_words_and_leave_nothing(tmp_path: Path, batch: Any, says: str) -> None:
    with Partition(4, "k", tmp_path, buffer_bytes=PLENTY) as parts:
        with pytest.raises(BadRows, match=says):
            parts.add(batch)
        assert (parts.rows, parts.columns) == (0, [])
        parts.add({"k": [1, 2], "x": [1.0, 2.0]})


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"k": [1]}, "expected 'k', 'x' as in the rows before; 'x' is missing"),
        ({"k": [1], "x": [1.0], "y": [1]}, "as in the rows before; 'y' is new"),
        ({"k": [1], "x": [1]}, "column 'x': expected float64 as in the rows before, got int64"),
        ({"k": [1], "x": [[1.0]]}, r"column 'x': expected rows of shape \[\] as before, got shape \[1\]"),
    ],
)
def test_batches_that_differ_are_refused(tmp_path: Path, batch: Any, says: str) -> None:
    with Partition(4, "k", tmp_path, buffer_bytes=PLENTY) as parts:
        parts.add({"k": [1, 2], "x": [1.0, 2.0]})
        with pytest.raises(BadRows, match=says):
            parts.add(batch)
        assert parts.rows == 2


COLUMNS = [Column("x", "<i8")]


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([[0, 2]], "1 rows are missing, the first is 1"),
        ([[0, 1, 2], [1]], "1 rows are there twice"),
        ([[0, 1], [1, 2]], "1 rows are there twice"),
        ([[0, 1, 1, 2]], "each once and in order"),
        ([[0, 2, 1]], "each once and in order"),
        ([[0, 1, 2, 3]], "expected rows from 0 to 2"),
        ([[-1, 0, 1]], "expected rows from 0 to 2"),
    ],
)
def test_a_table_with_holes_or_doubles_is_damage(pieces: list[list[int]], says: str) -> None:
    table = Assembly(3, COLUMNS)
    for rows in pieces:
        table.add((np.array(rows), {"x": np.array(rows)}))
    with pytest.raises(DataDamaged, match=says):
        table.finish()


def test_parts_with_a_row_twice_are_damage() -> None:
    with pytest.raises(DataDamaged, match="twice"):
        merged(COLUMNS, [(np.array([1]), {"x": np.array([1])})] * 2)


@pytest.mark.parametrize("waiting_bytes", [1, 100_000, 1 << 30])
def test_rows_find_their_places_however_many_wait(monkeypatch: pytest.MonkeyPatch, waiting_bytes: int) -> None:
    monkeypatch.setattr(assemble, "WAITING_BYTES", waiting_bytes)
    monkeypatch.setattr(assemble, "WINDOW_ROWS_MIN", 1000)
    monkeypatch.setattr(assemble, "WINDOW_ROWS_A_PIECE", 10)
    part_of_row = np.random.default_rng(1).integers(0, 16, 20_001)
    columns = [Column("x", "<i8"), Column("v", "<f4", [2]), Column("w", "<i8", [10]), Column("t", "<U7")]
    table = Assembly(20_001, columns)
    placed = 0
    for part in range(16):
        rows = np.flatnonzero(part_of_row == part)
        wide = rows[:, None] + np.arange(10)
        pair = np.stack([rows, -rows], 1).astype("f4")
        if table.add((rows, {"x": rows * 3, "v": pair, "w": wide, "t": (rows // 30).astype("U")})):
            table.place()
            placed += 1
    assert placed == (16 if waiting_bytes == 1 else 0 if waiting_bytes == 1 << 30 else placed)
    found = table.finish()
    assert np.array_equal(found["x"], 3 * np.arange(20_001))
    assert np.array_equal(found["v"][:, 1], -np.arange(20_001).astype("f4"))
    assert np.array_equal(found["w"], np.arange(20_001)[:, None] + np.arange(10))
    assert np.array_equal(found["t"], (np.arange(20_001) // 30).astype("U7"))


def test_no_parts_are_an_empty_table() -> None:
    numbers, table = merged([Column("x", "<f4", [2])], [])
    assert (numbers.shape, table["x"].shape, table["x"].dtype) == ((0,), (0, 2), np.dtype("f4"))
