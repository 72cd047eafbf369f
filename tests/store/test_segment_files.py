"""The format of segments: what numpy writes is what we say it is, and a segment.json that lies is none."""

from __future__ import annotations

import io
import itertools
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from blake3 import blake3
from xxhash import xxh3_64_intdigest

from zkd.errors import DataDamaged
from zkd.manifests import BLOCK_BYTES, Column, Segment, SegmentRef
from zkd.store import segment_checks, segment_files
from zkd.store.segment_files import blocks, npy_header, npy_size

DTYPES = ["<f8", "<f4", "<f2", "<i8", "<u2", "|u1", "|b1", "<c16", "<M8[ns]", "<m8[25s]", "<M8", "<U7", "|S3", "|V5"]


def column_of(array: np.ndarray[Any, Any], name: str) -> Column:
    return Column(name, array.dtype.str, list(array.shape[1:]))


def saved(directory: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> SegmentRef:
    directory.mkdir()
    rows = len(next(iter(arrays.values())))
    np.save(directory / "rows.npy", np.arange(rows, dtype="<i8"))
    for number, array in enumerate(arrays.values()):
        np.save(directory / f"{number}.npy", array)
    return segment_files.build(directory, rows, [column_of(array, name) for name, array in arrays.items()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (1,), (999_999,), (3, 2), (5, 0), (2, 1, 4), (10**7, 0), (1,) * 40])
def test_a_header_is_the_one_that_numpy_writes(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.empty(shape, dtype)
    file = io.BytesIO()
    np.save(file, array)
    column = column_of(array, "x")
    assert column.dtype == dtype
    assert file.getvalue().startswith(npy_header(column, shape[0]))
    assert len(file.getvalue()) == npy_size(column, shape[0])


@pytest.mark.parametrize(
    "dtype", [">f8", "f8", "<f3", "|O", "<i1", "|f8", "<U0", "<U", "<f8,<f8", "<M8[x]", "", "<f8\n"]
)
def test_a_dtype_has_one_spelling(dtype: str) -> None:
    with pytest.raises(DataDamaged, match="expected a dtype such as"):
        npy_size(Column("x", dtype), 3)


def test_made_of_files_or_of_bytes_it_is_the_same_segment(tmp_path: Path) -> None:
    numbers = np.random.default_rng(5).normal(size=(300_000, 3))
    labels = np.arange(300_000, dtype="<i2")
    ref = saved(tmp_path / "files", {"x": numbers, "y": labels})
    pieces = memoryview(numbers).cast("B")  # type: ignore[arg-type]
    cuts = [0, 1, 5, BLOCK_BYTES - 128, BLOCK_BYTES, 3 * BLOCK_BYTES + 7, len(pieces)]
    written = segment_files.write(
        tmp_path / "bytes",
        300_000,
        [Column("x", "<f8", [3]), Column("y", "<i2")],
        [
            [np.arange(300_000, dtype="<i8").data],
            [pieces[a:b] for a, b in itertools.pairwise(cuts)],
            [labels.tobytes()],
        ],
        durable=True,
    )
    assert written == ref
    for name in ("segment.json", "rows.npy", "0.npy", "1.npy"):
        assert (tmp_path / "files" / name).read_bytes() == (tmp_path / "bytes" / name).read_bytes()
    segment = segment_checks.check(tmp_path / "bytes", ref.id)
    assert ref == SegmentRef(ref.id, 300_000, segment_files.size_of(segment))
    for file, name in zip(segment.files, ("rows.npy", "0.npy", "1.npy"), strict=True):
        data = (tmp_path / "bytes" / name).read_bytes()
        assert (file.size, file.blake3) == (len(data), blake3(data).hexdigest())
        starts = range(0, len(data), BLOCK_BYTES)
        assert file.blocks == [xxh3_64_intdigest(data[start : start + BLOCK_BYTES]) for start in starts]


def test_files_that_are_not_what_the_columns_say_make_no_segment(tmp_path: Path) -> None:
    for number, (array, column) in enumerate(
        [
            (np.zeros(3), Column("x", "<f4")),
            (np.zeros((3, 2)), Column("x", "<f8")),
            (np.zeros(4), Column("x", "<f8")),
            (np.asfortranarray(np.zeros((3, 2))), Column("x", "<f8", [2])),
        ]
    ):
        directory = tmp_path / str(number)
        directory.mkdir()
        np.save(directory / "rows.npy", np.arange(3))
        np.save(directory / "0.npy", array)
        with pytest.raises(DataDamaged, match=r"expected an \.npy file that begins with"):
            segment_files.build(directory, 3, [column])
        assert not (directory / "segment.json").exists()
    with pytest.raises(ValueError, match="expected 152 bytes with the header, got 144"):
        segment_files.write(tmp_path / "short", 3, [], [[bytes(16)]])


def test_the_blocks_of_a_range_are_those_that_it_touches() -> None:
    files = [BLOCK_BYTES * 3 + 5, 128, BLOCK_BYTES, BLOCK_BYTES - 1]
    segment = Segment(0, [], [segment_files.SegmentFile(n, "0" * 64, [0] * segment_files.blocks_of(n)) for n in files])
    head, every = 700, [(number, index) for number, n in enumerate(files) for index in range(-(-n // BLOCK_BYTES))]
    places = list(blocks(segment, head, 0, 700 + sum(files)))
    assert [(place.file, place.block) for place in places] == every
    assert places[0].start == 700
    assert all(a.start + a.size == b.start for a, b in itertools.pairwise(places))
    dice = random.Random(2)
    for _ in range(2000):
        start, stop = sorted(dice.randrange(700 + sum(files) + 1) for _ in range(2))
        touched = [place for place in places if place.start < stop and place.start + place.size > start]
        if start < stop:
            assert list(blocks(segment, head, start, stop)) == touched


LIES: list[tuple[str, dict[str, Any]]] = [
    ("10 GB", {"files": [{"size": 10_000_000_000}]}),
    ("negative", {"rows": -1}),
    ("negative size", {"files": [{"size": -152}]}),
    ("more rows", {"rows": 4}),
    ("all rows", {"rows": 2**63}),
    ("a block less", {"files": [{"blocks": []}]}),
    ("a block more", {"files": [{"blocks": [1, 2]}]}),
    ("no files", {"files": []}),
    ("a file more", {"files": [{}, {}, {}]}),
    ("a name that escapes as a digest", {"files": [{"blake3": "../../../../etc/passwd"}]}),
    ("objects", {"columns": [{"dtype": "|O"}]}),
    ("a negative axis", {"columns": [{"shape": [-1]}]}),
    ("a large axis", {"columns": [{"shape": [2**62, 2**62]}]}),
    ("many axes", {"columns": [{"shape": [1] * 64}]}),
    ("a column twice", {"columns": [{}, {}], "files": [{}, {}, {}]}),
    ("a nameless column", {"columns": [{"name": ""}]}),
    ("more fields", {"path": "/etc/passwd"}),
    ("an array", []),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("what", "lie"), LIES, ids=[what for what, _ in LIES])
def test_a_manifest_that_lies_is_refused_even_under_its_own_digest(tmp_path: Path, what: str, lie: Any) -> None:
    ref = saved(tmp_path / "good", {"x": np.zeros(3)})
    told = msgspec.json.decode((tmp_path / "good" / "segment.json").read_bytes())
    if isinstance(lie, dict):
        for name, value in lie.items():
            if isinstance(value, list):
                true = told[name]
                told[name] = [{**true[min(n, len(true) - 1)], **given} for n, given in enumerate(value)]
                if value and len(value) < len(true):
                    told[name] += true[len(value) :]
            else:
                told[name] = value
    else:
        told = lie
    text = msgspec.json.encode(told)
    with pytest.raises(DataDamaged, match=r"segment\.json"):
        segment_files.parse(text, blake3(text).hexdigest())
    with pytest.raises(DataDamaged, match="another digest"):
        segment_files.parse(text, ref.id)


def test_a_manifest_is_refused_that_is_spelled_otherwise_too_long_or_no_json(tmp_path: Path) -> None:
    ref = saved(tmp_path / "good", {"x": np.zeros(3)})
    good = (tmp_path / "good" / "segment.json").read_bytes()
    assert segment_files.parse(good, ref.id).rows == 3
    for text in (
        good + b"\n",
        good.replace(b'"rows":3', b'"rows":9,"rows":3'),
        good.replace(b'"rows":3', b'"rows":3.0'),
        b"",
        b"\xff" * 40,
        b"[" * 100_000,
        b" " * (segment_files.SEGMENT_JSON_BYTES_MAX + 1),
    ):
        with pytest.raises(DataDamaged):
            segment_files.parse(text, blake3(text).hexdigest())
