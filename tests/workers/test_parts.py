"""A run on a part of a dataset: maps of its files, read-only, and clear words when they are not as they should be."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.workers.running import open_pool
from zkd.arrays import save_npy
from zkd.workers import Call, ColumnFiles, Failed, Finished, Lacking, Outcome, PartFiles, Pool, Rejected

X = np.arange(12.0).reshape(4, 3)
Y = np.array([1, 2, 3, 4], np.int32)


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Pool]:
    async with open_pool(tmp_path / "blobs", modules=("on_parts",)) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()


def column(
    path: Path, name: str, *segments: Any, dtype: str | None = None, row: list[int] | None = None
) -> ColumnFiles:
    """A column whose rows lie in so many files."""
    files = []
    for number, rows in enumerate(segments):
        files.append(str(path / f"{name}.{number}.npy"))
        save_npy(rows, files[-1])
    first = segments[0] if segments else None
    return ColumnFiles(
        name,
        dtype or first.dtype.str,
        row if row is not None else list(first.shape[1:]),
        files,
    )


def overwrite(spoilt: ColumnFiles, data: bytes) -> None:
    Path(spoilt.files[0]).write_bytes(data)


async def run(pool: Pool, kernel: str, *columns: ColumnFiles, is_table: bool = False, **fields: Any) -> Outcome:
    call = Call(kernel=kernel, part=PartFiles(list(columns), is_table), task_id="t", **fields)
    return await pool.run(call, timeout_s=20.0)


def value_of(outcome: Outcome) -> Any:
    assert isinstance(outcome, Finished), outcome
    return json.loads(outcome.value or b"null")


async def test_columns_are_maps_that_cannot_be_written(workers: Pool, tmp_path: Path) -> None:
    both = column(tmp_path, "x", X), column(tmp_path, "y", Y)
    value = value_of(await run(workers, "seen", *both))
    assert value == [["<f8", [4, 3], 66.0, False, True], ["<i4", [4], 10.0, False, True]]
    spoilt = await run(workers, "spoil", both[0])
    assert isinstance(spoilt, Failed)
    assert "read-only" in spoilt.message


async def test_rows_of_several_segments_are_one_behind_the_other(workers: Pool, tmp_path: Path) -> None:
    parts = column(tmp_path, "x", X[:1], X[1:], X[:0])
    assert value_of(await run(workers, "seen", parts)) == [["<f8", [4, 3], 66.0, False, False]]


async def test_a_part_without_rows_has_columns_without_rows(workers: Pool, tmp_path: Path) -> None:
    none = column(tmp_path, "x", dtype="<f8", row=[3]), column(tmp_path, "z", X[:0])
    value = value_of(await run(workers, "seen", *none))
    assert value == [["<f8", [0, 3], 0.0, False, False]] * 2


async def test_without_columns_one_object_has_them_all(workers: Pool, tmp_path: Path) -> None:
    both = column(tmp_path, "x", X), column(tmp_path, "y", Y)
    assert value_of(await run(workers, "table", *both, is_table=True)) == {"x": 66.0, "y": 10.0}
    twice = await run(workers, "table", *both, is_table=True, args=b"[2]")
    assert value_of(twice) == {"x": 132.0, "y": 20.0}


async def test_arguments_come_after_the_columns(workers: Pool, tmp_path: Path) -> None:
    x = column(tmp_path, "x", X)
    assert value_of(await run(workers, "matrix", x, args=b"[1.5]")) == 67.5
    assert value_of(await run(workers, "matrix", x, kwargs=b'{"y": 2}')) == 68


@pytest.mark.parametrize(
    ("kernel", "names", "fields", "path", "says"),
    [
        ("matrix", "y", {}, "$.columns[0]", "2 dimensions"),
        ("matrix", "xxx", {}, "$.columns[2]", "at most 2"),
        ("matrix", "xx", {"args": b"[1]"}, "$.args[0]", "at most 2"),
        ("matrix", "x", {"kwargs": b'{"x": 1}'}, "$.kwargs.x", "here and in $.columns[0]"),
        ("table", "x", {}, "$.columns[0]", "an object"),
        ("nothing", "x", {}, "$.kernel", "unknown kernel"),
    ],
)
async def test_columns_that_a_kernel_does_not_take_are_refused_with_their_place(
    workers: Pool, tmp_path: Path, kernel: str, names: str, fields: dict[str, bytes], path: str, says: str
) -> None:
    columns = {"x": column(tmp_path, "x", X), "y": column(tmp_path, "y", Y)}
    outcome = await run(workers, kernel, *(columns[name] for name in names), **fields)
    assert isinstance(outcome, Rejected), outcome
    assert outcome.path == path
    assert says in outcome.message


async def test_a_file_that_is_not_as_it_should_be_is_no_fault_of_the_kernel(workers: Pool, tmp_path: Path) -> None:
    good = column(tmp_path, "x", X)
    gone = ColumnFiles("x", "<f8", [3], [*good.files, str(tmp_path / "gone.npy")])
    short = column(tmp_path, "short", X)
    os.truncate(short.files[0], os.stat(short.files[0]).st_size - 8)
    text = column(tmp_path, "text", X)
    overwrite(text, b"no npy file")
    for bad in (gone, short, text, ColumnFiles("x", "<f4", [3], good.files), ColumnFiles("x", "<f8", [4], good.files)):
        outcome = await run(workers, "seen", bad)
        assert isinstance(outcome, Lacking), outcome
        assert "npy" in outcome.message
    assert value_of(await run(workers, "seen", good))[0][2] == 66.0
