"""CSV: what a column is follows from all of its cells, and what is wrong is said with line and column."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zkd.errors import BadRows
from zkd.tables import csv_files
from zkd.tables.columns import Columns
from zkd.tables.ingest import from_file


def table(path: Path, **options: Any) -> Columns:
    batches = list(from_file(path, **options))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def write(tmp_path: Path, text: str, name: str = "a.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def both(path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[Columns | str]:
    """What comes of a file by way of pyarrow, and without."""
    found: list[Columns | str] = []
    for quick_bytes in (0, 1 << 62):
        monkeypatch.setattr(csv_files, "QUICK_BYTES", quick_bytes)
        try:
            found.append(table(path, **options))
        except BadRows as error:
            found.append(str(error))
    return found


plain_cells = st.one_of(
    st.sampled_from(
        ["", " ", "0", "-0", "007", "1", " 12 ", "+3", "-4.5", "1e5", ".5", "1.", "NaN", "-inf", "Infinity"]
    ),
    st.sampled_from(
        ["true", "False", " true", "99999999999999999999", "9223372036854775808", "1_0", "\u0661", "x;y", "\t1"]
    ),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(st.characters(codec="utf-8", exclude_characters='\0"\r\n,'), max_size=6),
)


@given(st.lists(st.lists(plain_cells, min_size=3, max_size=3), min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_pyarrow_reads_a_plain_file_as_we_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[list[str]], newline: str
) -> None:
    path = write(tmp_path, newline.join(["a,b,c", *map(",".join, rows)]) + newline)
    quick, slow = both(path, monkeypatch)
    if isinstance(slow, str) or isinstance(quick, str):
        assert quick == slow
        return
    assert {name: column.dtype for name, column in quick.items()} == {n: c.dtype for n, c in slow.items()}
    for name in slow:
        assert quick[name].tobytes() == slow[name].tobytes() or np.array_equal(quick[name], slow[name], equal_nan=True)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ('a,b\n1,"x\ny"\n', {}),
        ("a,b\n1,2\n3\n", {}),
        ("a,b\n\n1,2\n\n3,4", {}),
        ("\n\na,b\n1,2\n", {}),
        ("a\r1\r2\r", {}),
        ("1,2\n3,4\n", {"header": None}),
        ("1,2\n3,4\n", {"header": True}),
        ("\ufeffa;b\n1;2\n", {}),
        ("a,b\n", {}),
        ("a,b\n1,2020-01-01\n2,\n", {"dtypes": {"b": "<M8[D]"}}),
        ("a,b\n1,2020-01-01\n2,never\n", {"dtypes": {"b": "<M8[D]"}}),
        ("a,b\n007,1\n12,2\n", {"dtypes": {"a": "U5", "b": "f4"}}),
        ("a,b\n007,1\n12,2\n", {"dtypes": {"a": "U", "b": "i8"}}),
        ("a,b\n007,1\n12,x\n", {"dtypes": {"b": "i8"}}),
        ("a,b\n1,2020-01-01\n", {"dtypes": {"b": "datetime64[D]", "a": "str"}}),
        ("a,b\n1,true\n2,maybe\n", {"dtypes": {"b": "?"}}),
        ("a,b\n1,true\n2,TRUE\n", {"dtypes": {"b": "bool"}}),
        ("a,b\n1,\0\n", {}),
        (f"a,b\n1,{'x' * 5000}\n", {}),
        (f"a,b\n{'9' * 5000},2\n", {}),
    ],
)
def test_pyarrow_leaves_what_it_would_read_otherwise_to_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, options: dict[str, Any]
) -> None:
    quick, slow = both(write(tmp_path, text), monkeypatch, **options)
    assert repr(quick) == repr(slow)


def test_a_large_plain_file_is_read_by_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow_csv = pytest.importorskip("zkd.tables.arrow_csv")
    monkeypatch.setattr(arrow_csv, "BLOCK_BYTES", 1 << 18)
    rows = 100_000
    path = write(tmp_path, "i,x,t\n" + "".join(f"{row},{row / 8},name {row % 9}\n" for row in range(rows)))
    monkeypatch.setattr(csv_files, "_batches", None)  # our own reader
    found = table(path)
    assert np.array_equal(found["i"], np.arange(rows))
    assert np.array_equal(found["x"], np.arange(rows) / 8)
    assert found["t"].tolist()[:2] == ["name 0", "name 1"]


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1", "-2", " 3 "], "int64", [1, -2, 3]),
        (["1", "18446744073709551615"], "uint64", [1, 2**64 - 1]),
        (["-1", "18446744073709551615"], "<U20", ["-1", "18446744073709551615"]),
        (["123456789012345678901"], "<U21", ["123456789012345678901"]),
        (["-9223372036854775808", "9223372036854775807"], "int64", [-(2**63), 2**63 - 1]),
        (["1", "2.5", "1e3", ".5", "+4."], "float64", [1, 2.5, 1000, 0.5, 4]),
        (["1", "inf", "-Infinity"], "float64", [1, np.inf, -np.inf]),
        (["007", "8"], "<U3", ["007", "8"]),
        (["1_000"], "<U5", ["1_000"]),
        (["\u0661"], "<U1", ["\u0661"]),
        (["true", "FALSE"], "bool", [True, False]),
        (["true", "1"], "<U4", ["true", "1"]),
        (["a", "", "ccc"], "<U3", ["a", "", "ccc"]),
        (["NA", "1"], "<U2", ["NA", "1"]),
        (["1\n2", "3"], "<U3", ["1\n2", "3"]),
        (["1\x1f2", "3"], "<U3", ["1\x1f2", "3"]),
    ],
)
def test_types_are_inferred_as_stated(tmp_path: Path, cells: list[str], kind: str, values: list[Any]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["name", "other"], *([cell, "z"] for cell in cells)])
    column = table(write(tmp_path, text.getvalue()))["name"]
    assert column.dtype == np.dtype(kind)
    assert column.tolist() == values


def test_gaps_make_a_column_of_floats(tmp_path: Path) -> None:
    column = table(write(tmp_path, "a,b\n1,x\n,y\n3,z\n"))["a"]
    assert column.dtype == np.float64
    assert np.array_equal(column, [1, np.nan, 3], equal_nan=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1),
            st.floats(),
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
        ),
        min_size=1,
        max_size=40,
    ),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    batch=st.sampled_from([1, 3, 1000]),
)
def test_what_was_written_is_read(tmp_path: Path, rows: list[Any], delimiter: str, batch: int) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_NONNUMERIC).writerows([["i", "x", "t"], *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_files, "BATCH_LINES", batch)
        read = table(write(tmp_path, text.getvalue()), dtypes={"t": "<U8"})
    assert read["i"].tolist() == [i for i, _, _ in rows]
    assert np.array_equal(read["x"], [float(x) for _, x, _ in rows], equal_nan=True)
    assert read["t"].tolist() == [t for _, _, t in rows]


def test_a_column_is_what_all_of_its_batches_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "BATCH_LINES", 2)
    read = table(write(tmp_path, "a,b\n1,1\n2,2\n3,3\n4.5,x\n"))
    assert read["a"].tolist() == [1, 2, 3, 4.5]
    assert read["b"].tolist() == ["1", "2", "3", "x"]


def test_the_first_line_is_a_header_unless_it_has_a_number(tmp_path: Path) -> None:
    assert list(table(write(tmp_path, "a,b\n1,2\n"))) == ["a", "b"]
    assert list(table(write(tmp_path, "x,2\ny,3\n"))) == ["c0", "c1"]
    assert table(write(tmp_path, "a,b\nc,d\n"), header=False)["c0"].tolist() == ["a", "c"]
    assert table(write(tmp_path, "1,2\n3,4\n"), header=True)["2"].tolist() == [4]


def test_gzip_tabs_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress("\ufeffa\tb\r\n1\tx\r\n".encode()))
    read = table(path)
    assert read["a"].tolist() == [1]
    assert read["b"].tolist() == ["x"]


def test_a_header_alone_is_a_table_without_rows(tmp_path: Path) -> None:
    assert {name: len(column) for name, column in table(write(tmp_path, "a,b\n")).items()} == {"a": 0, "b": 0}


def test_given_types_count(tmp_path: Path) -> None:
    read = table(
        write(tmp_path, "a,b,c,d\n1,007,2020-01-01,\n"),
        dtypes={"a": "float32", "b": "int8", "c": "<M8[D]", "d": "S3"},
    )
    assert [column.dtype.str for column in read.values()] == ["<f4", "|i1", "<M8[D]", "|S3"]
    assert read["c"].tolist() == [np.datetime64("2020-01-01").item()]


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("", {}, "a.csv: expected at least one line"),
        ("a,b\n1,2\n1,2,3\n", {}, "a.csv:3: expected 2 cells as in the first line, got 3"),
        ("a,b\n1,2\n\n1\n", {}, "a.csv:4: expected 2 cells"),
        ("a,a\n1,2\n", {}, "a.csv:1: expected each name once, got 'a' twice"),
        ("a,\n1,2\n", {}, "a.csv:1: expected a name for each column, got none for number 2"),
        ('a,b\n1,"2\n', {}, "a.csv:[23]: expected CSV: unexpected end of data"),
        ('a,b\n1,"2"x\n', {}, "a.csv:[12]: expected CSV"),
        ("a,b\n1,2\0\n", {}, "a.csv:2: expected text, got a NUL byte"),
        ("a,b\n1,2\n3,x\n", {"dtypes": {"b": "int64"}}, "a.csv:3: column 'b': expected int64, got 'x'"),
        ("a,b\n1,300\n", {"dtypes": {"b": "uint8"}}, "a.csv:2: column 'b': expected uint8, got '300'"),
        ("a,b\n1,yes\n", {"dtypes": {"b": "bool"}}, "a.csv:2: column 'b': expected bool, got 'yes'"),
        ("a,b\n1,abcd\n", {"dtypes": {"b": "<U3"}}, "a.csv:2: column 'b': expected <U3, got 'abcd'"),
        ("a,b\n1,13/1/2020\n", {"dtypes": {"b": "<M8[D]"}}, "a.csv:2: column 'b': expected datetime64"),
        ("a,b\n1,2\n", {"dtypes": {"z": "int64"}}, "expected a column 'z' among 'a', 'b'"),
        ("a,b\n1,2\n", {"dtypes": {"a": "O"}}, "expected a plain dtype"),
        ("a,b\n1," + "x" * 5000 + "\n", {}, "a.csv:2: column 'b': expected at most 4096 characters, got 5000"),
        ('a,b\n1,"' + "x" * 200_000 + '"\n', {}, "a.csv:2: expected CSV: field larger than field limit"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, options: Any, says: str) -> None:
    with pytest.raises(BadRows, match=says):
        table(write(tmp_path, text), **options)


def test_bytes_that_are_no_utf8_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n1,x\n2,\xff\n")
    with pytest.raises(BadRows, match=r"a\.csv:3: column 'b': expected UTF-8, got b'\\xff'"):
        table(path)


def test_a_column_said_to_be_text_is_as_wide_as_its_widest_cell(tmp_path: Path) -> None:
    read = table(write(tmp_path, "zip,x\n10115,1\n123456,2\n"), dtypes={"zip": "U"})
    assert read["zip"].tolist() == ["10115", "123456"]
    assert read["zip"].dtype == np.dtype("<U6")


def test_a_gzip_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    whole = gzip.compress(b"a,b\n" + b"1,2\n" * 10_000)
    path.write_bytes(whole[:-20])
    with pytest.raises(BadRows, match="expected a gzip file that is whole"):
        table(path)


@pytest.mark.parametrize(
    ("dtype", "cell", "kind"),
    [
        ("datetime64[D]", "2020-02-29", "<M8[D]"),
        ("<M8[D]", "2020-02-29", "<M8[D]"),
        ("timedelta64[s]", "90", "<m8[s]"),
        ("datetime64[10ms]", "2020-02-29T01:02:03.04", "<M8[10ms]"),
        ("str", "007", "<U3"),
    ],
)
def test_dtypes_are_given_as_numpy_spells_or_shows_them(tmp_path: Path, dtype: str, cell: str, kind: str) -> None:
    found = table(write(tmp_path, f"a,b\n{cell},x\n"), dtypes={"a": dtype})["a"]
    assert found.dtype == np.dtype(kind)
    assert found[0] == np.array(cell).astype(kind)
