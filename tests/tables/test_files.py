"""Arrays, files of numpy's, Parquet and Arrow as batches."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from zkd.errors import BadRows
from zkd.tables import arrow_files, ingest
from zkd.tables.columns import Columns
from zkd.tables.ingest import batches, from_file


def joined(found: Any) -> Columns:
    listed = list(found)
    return {name: np.concatenate([batch[name] for batch in listed]) for name in listed[0]}


def same(one: Columns, other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], np.asarray(other[name])) for name in one)


# --- numpy's ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "BATCH_BYTES", 1000)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("array", [np.arange(5000), np.asfortranarray(np.arange(600.0).reshape(200, 3)), np.empty(0)])
def test_an_npy_file_is_the_column_x(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "a.npy", array)
    assert same(joined(from_file(tmp_path / "a.npy")), {"x": array})


def test_fields_of_a_structured_npy_file_are_columns(tmp_path: Path) -> None:
    array = np.zeros(10, [("a", "<i4"), ("b", "<f8", (2,))])
    array["a"] = np.arange(10)
    np.save(tmp_path / "a.npy", array)
    assert same(joined(from_file(tmp_path / "a.npy")), {"a": array["a"], "b": array["b"]})


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_an_npz_file_are_columns(tmp_path: Path, save: Any) -> None:
    table = {
        "X": np.asfortranarray(np.random.default_rng(1).random((700, 3))),
        "y": np.arange(700, dtype=">i2"),
        "t": np.array([f"row {n}" for n in range(700)]),
    }
    save(tmp_path / "a.npz", **table)
    found = list(from_file(tmp_path / "a.npz"))
    assert len(found) > 5
    assert same(joined(found), table)


def test_bad_numpy_files_are_refused(tmp_path: Path) -> None:
    def refused(name: str, says: str) -> None:
        with pytest.raises(BadRows, match=says):
            list(from_file(tmp_path / name))

    np.save(tmp_path / "objects.npy", np.array([1, "a"], object), allow_pickle=True)
    refused("objects.npy", "expected a plain dtype")
    np.save(tmp_path / "one.npy", np.array(5))
    refused("one.npy", "got a single value")
    (tmp_path / "short.npy").write_bytes(
        (np.save(tmp_path / "w.npy", np.arange(9)), (tmp_path / "w.npy"))[1].read_bytes()[:-4]
    )
    refused("short.npy", "expected 72 bytes")
    (tmp_path / "text.npz").write_text("no archive")
    refused("text.npz", "expected an .npz file")
    np.savez(tmp_path / "uneven.npz", a=np.arange(3), b=np.arange(4))
    refused("uneven.npz", "expected 3 rows, as .*a.npy has, got 4")
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        np.save(tmp_path / "big.npy", np.arange(1000))
        archive.writestr("a.npy", (tmp_path / "big.npy").read_bytes()[:500])
    refused("lies.npz", "the file is cut short")


def test_files_of_other_kinds_and_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(BadRows, match=r"expected a file named \*.csv, "):
        from_file(tmp_path / "a.xlsx")
    with pytest.raises(FileNotFoundError):
        from_file(tmp_path / "none.csv")
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(BadRows, match="expected a plain file"):
        from_file(tmp_path / "dir.csv")


@pytest.mark.parametrize("source", [5, "rows", np.arange(3)])
def test_what_is_no_table_is_refused(source: Any) -> None:
    with pytest.raises(BadRows, match="expected"):
        batches(source)


# --- Arrow's ------------------------------------------------------------------------------------------------

TABLE = {
    "i": pa.array(range(200), pa.int16()),
    "f": pa.array([None, *map(float, range(199))], pa.float32()),
    "b": pa.array([n % 2 == 0 for n in range(200)]),
    "t": pa.array([None if n == 7 else f"text {n}" for n in range(200)]),
    "d": pa.array([f"kind {n % 3}" for n in range(200)]).dictionary_encode(),
    "when": pa.array(np.arange(200).astype("M8[us]")),
    "day": pa.array(np.arange(200).astype("M8[D]")),
    "v": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(600.0)), 3),
    "raw": pa.array([f"{n}".encode() for n in range(200)]),
}


def expected() -> dict[str, Any]:
    return {
        "i": np.arange(200, dtype="i2"),
        "b": np.arange(200) % 2 == 0,
        "t": np.array(["" if n == 7 else f"text {n}" for n in range(200)]),
        "d": np.array([f"kind {n % 3}" for n in range(200)]),
        "when": np.arange(200).astype("M8[us]"),
        "day": np.arange(200).astype("M8[D]"),
        "v": np.arange(600.0).reshape(200, 3),
        "raw": np.array([f"{n}".encode() for n in range(200)]),
    }


def stream(table: Any, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.parquet", lambda table, path: pa.parquet.write_table(table, path, row_group_size=64)),
        ("a.feather", lambda table, path: pa.feather.write_feather(table, str(path), chunksize=50)),
        ("a.arrow", stream),
    ],
)
def test_parquet_and_arrow_files_are_read(
    tmp_path: Path, name: str, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_files, "BATCH_ROWS", 30)
    write(pa.table(TABLE), tmp_path / name)
    found = joined(from_file(tmp_path / name))
    f = found.pop("f")
    assert f.dtype == np.float32
    assert np.array_equal(f, [np.nan, *range(199)], equal_nan=True)
    assert same(found, expected())
    assert (found["i"].dtype, found["day"].dtype) == (np.dtype("i2"), np.dtype("M8[D]"))


def test_tables_in_memory_are_batches() -> None:
    table = pa.table({"i": TABLE["i"]})
    for source in (table, table.to_reader(50), table.to_batches()[0]):
        assert same(joined(batches(source)), {"i": np.arange(200)})


def test_a_table_without_rows_has_its_columns(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table(TABLE).slice(0, 0), tmp_path / "a.parquet")
    found = joined(from_file(tmp_path / "a.parquet"))
    assert list(found) == list(TABLE)
    assert {len(column) for column in found.values()} == {0}
    assert found["v"].shape == (0, 3)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([1, None, 3]), "column 'x': expected int64 in every row, 1 missing from row 1 on; fill them"),
        (pa.array([[1], [2, 3]]), "column 'x': expected numbers, truth values.* got list"),
        (pa.array([{"a": 1}]), "column 'x': expected .* got struct"),
        (pa.array(["a\0"]), "column 'x': expected text that does not end in a NUL, got one in row 0"),
        (pa.array(["a", "b" * 5000]), "column 'x': expected at most 4096 characters, got 5000 in row 1"),
    ],
)
def test_what_numpy_cannot_hold_is_refused(column: Any, says: str) -> None:
    with pytest.raises(BadRows, match=says):
        list(batches(pa.table({"x": column})))


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(BadRows, match=r"expected a \.parquet file"):
        list(from_file(tmp_path / "a.parquet"))


def test_without_pyarrow_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BadRows, match=r"pip install 'zkd\[arrow\]'"):
        list(from_file(tmp_path / "a.parquet"))
