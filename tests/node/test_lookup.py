"""Rows by key, on the node that holds their part: exactly those, in the written order, or who else has them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.node.datasets import rank
from tests.store.made import in_pieces
from zkd import log as zkd_log
from zkd.core.atlas import Atlas, Dataset
from zkd.core.datasets import Edition, Held, chunk_digest, mark_of
from zkd.core.placement import hash_key, part_of
from zkd.errors import BadRecord, DataElsewhere, DatasetNotFound, NoWorkers
from zkd.manifests import Column, Keeper, Manifest, Ring, SegmentRef
from zkd.node.lookup import Lookup
from zkd.store import SegmentStore, segment_files
from zkd.store.cells import is_key, key_type, parse_key
from zkd.store.key_index import KeyIndex
from zkd.tables.key_index import build
from zkd.workers.indexer import make_indexes


class Scene:
    """Node `a`, which holds every part of what is written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data_dir = directory / "a"
        self.store = SegmentStore(self.data_dir)
        self.atlas = Atlas()
        self.atlas.ring = Ring(1, [Keeper("a"), Keeper("b")])
        self.made: list[int] = []
        self.lookup = self.start()
        self.count = 0

    def start(self) -> Lookup:
        async def look(_: str) -> None:
            return

        async def make(jobs: Sequence[tuple[Path, Path]]) -> None:
            self.made.append(len(jobs))
            for column, target in jobs:
                await asyncio.to_thread(build, column, target)

        return Lookup("a", self.store, self.atlas, look, self.data_dir, make, zkd_log.get())

    async def write(self, *batches: dict[str, Any], key: str | None, parts: int = 4, replicas: int = 2) -> None:
        """A dataset, of which each batch is a segment in each of its parts."""
        segments: list[list[SegmentRef]] = [[] for _ in range(parts)]
        first = 0
        for batch in batches:
            columns = [Column(name, array.dtype.str, list(array.shape[1:])) for name, array in batch.items()]
            rows = len(next(iter(batch.values())))
            numbers = np.arange(first, first + rows)
            first += rows
            keys = numbers if key is None else batch[key]
            homes = np.array([part_of(hash_key(each), parts) for each in as_keys(keys)], int)
            for part in range(parts):
                chosen = homes == part
                values = [numbers[chosen], *(array[chosen] for array in batch.values())]
                self.count += 1
                directory = self.directory / f"made-{self.count}"
                pieces = [[np.ascontiguousarray(each).tobytes()] for each in values]
                ref = segment_files.write(directory, int(chosen.sum()), columns, pieces)
                await self.receive(directory, ref)
                segments[part].append(ref)
        manifest = Manifest(
            name="d",
            version=1,
            parts=parts,
            replicas=replicas,
            columns=columns,
            rows=first,
            size=0,
            chunks=[chunk_digest(repr(segments).encode())],
            key=key,
        )
        self.atlas.datasets["d"] = Dataset(1, {1: Edition(manifest, tuple(map(tuple, segments)))})
        for layer in self.atlas.layouts():
            self.atlas.placed[layer] = (self.atlas.ring.keepers, rank(*layer, self.atlas.ring.keepers))

    async def receive(self, directory: Path, ref: SegmentRef) -> None:
        text = (directory / "segment.json").read_bytes()
        names = map(segment_files.file_name, range(1 + len(segment_files.parse(text, ref.id).columns)))
        files = [(directory / name).read_bytes() for name in names]
        packed = segment_files.packed_head(text) + b"".join(files)
        assert await self.store.receive(ref.id, 0, len(packed), in_pieces(packed))

    async def rows(self, key: object, kind: str, *columns: str) -> tuple[list[int], dict[str, Any]]:
        got = msgspec.json.decode(await self.lookup.rows("d", 1, str(key), kind, columns))
        return array(got["rows"]).tolist(), {name: array(each) for name, each in got["columns"].items()}

    @property
    def manifest(self) -> Manifest:
        return self.atlas.datasets["d"].editions[1].manifest

    @property
    def refs(self) -> list[SegmentRef]:
        return [ref for part in self.atlas.parts("d") or () for ref in part]


def array(text: dict[str, Any]) -> Any:
    return np.frombuffer(base64.b64decode(text["data"]), text["dtype"]).reshape(text["shape"])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def batch(rows: int, seed: int = 0, keys: Any = None) -> dict[str, Any]:
    dice = np.random.default_rng(seed)
    keys = dice.integers(-50, 50, rows) if keys is None else keys
    return {"id": keys, "x": dice.normal(size=(rows, 3)), "w": dice.integers(0, 99, rows).astype("<U4")}


async def test_every_row_with_the_key_is_found_in_the_written_order(scene: Scene) -> None:
    batches = [batch(500, 1), batch(300, 2)]
    await scene.write(*batches, key="id")
    whole = {name: np.concatenate([each[name] for each in batches]) for name in batches[0]}
    for key in range(-55, 55):
        rows, columns = await scene.rows(key, "int")
        expected = np.flatnonzero(whole["id"] == key)
        assert rows == expected.tolist()
        for name, values in columns.items():
            assert values.dtype == whole[name].dtype
            assert np.array_equal(values, whole[name][expected])
    assert scene.made == [2, 2, 2, 2]  # once a part


async def test_the_number_of_a_row_is_its_key_where_there_is_no_other(scene: Scene) -> None:
    whole = batch(200)
    await scene.write(whole, key=None)
    for row in (0, 17, 199):
        rows, columns = await scene.rows(row, "int", "x")
        assert rows == [row]
        assert columns.keys() == {"x"}
        assert np.array_equal(columns["x"], whole["x"][row : row + 1])
    rows, columns = await scene.rows(200, "int")
    assert (rows, columns["x"].shape) == ([], (0, 3))


@pytest.mark.parametrize(
    ("keys", "kind", "said"),
    [
        (np.array(["a", "ä", "a\0b", "", "😀", "a"]), "str", ["a", "ä", "a\0b", "", "😀", "b", "a\0"]),
        (np.array([b"a", b"\xff", b"", b"a\0b"]), "bytes", [b"a", b"\xff", b"", b"a\0b", b"zz"]),
        (np.array([0.0, -0.0, 1.5, np.inf, -np.inf, 5e-324]), "float", [0.0, -0.0, 1.5, np.inf, -np.inf, 5e-324, 7.0]),
        (np.array([0.5, 65504.0], "<f2"), "float", [0.5, 65504.0, 1.0]),
        (np.array([0.1, 3.0], "<f4"), "float", [3.0, 0.1, float(np.float32(0.1))]),
        (np.array([0, 2**63, 2**64 - 1], "<u8"), "int", [0, 2**63, 2**64 - 1, -1]),
        (np.array([-1, 5], "<i1"), "int", [-1, 255, 5]),
        (np.array(["2026-01-01", "1969-12-31"], "<M8[D]"), "int", [20454, -1, 0]),
    ],
)
async def test_keys_of_every_type_are_equal_to_themselves_only(
    scene: Scene, keys: Any, kind: str, said: list[Any]
) -> None:
    await scene.write(batch(len(keys), keys=keys), key="id", parts=2)
    for key in said:
        expected = [number for number, each in enumerate(as_keys(keys)) if each == key]
        text = key.hex() if isinstance(key, bytes) else repr(key) if isinstance(key, float) else key
        rows, _ = await scene.rows(text, kind)
        assert rows == expected, key


def as_keys(keys: Any) -> list[Any]:
    """As `hash_key` takes them."""
    plain: list[Any] = (keys.view("<i8") if keys.dtype.kind == "M" else keys).tolist()
    return plain


async def test_keys_with_equal_hashes_are_told_apart(scene: Scene) -> None:
    keys = np.array([2**64 - 1, 5], "<u8")
    await scene.write(batch(2, keys=keys), key="id", parts=1)
    assert hash_key(-1) == hash_key(2**64 - 1)
    assert (await scene.rows(-1, "int"))[0] == []
    assert (await scene.rows(2**64 - 1, "int"))[0] == [0]


async def test_an_index_is_made_once_and_again_when_it_is_missing_or_damaged(scene: Scene) -> None:
    await scene.write(batch(100), key="id", parts=1)
    expected = await scene.rows(7, "int", "id")
    (index,) = (scene.data_dir / "segments.index").iterdir()
    scene.lookup = scene.start()
    assert (await scene.rows(7, "int", "id"))[0] == expected[0]
    assert scene.made == [1]
    for harm in (
        b"",
        b"x" * 10,
        index.read_bytes()[:-1],
        flipped(index.read_bytes(), 40),
        flipped(index.read_bytes(), 3),
    ):
        index.write_bytes(harm)
        scene.made.clear()
        scene.lookup = scene.start()
        assert (await scene.rows(7, "int", "id"))[0] == expected[0]
        assert scene.made == [1]
    index.unlink()
    scene.lookup = scene.start()
    assert (await scene.rows(7, "int", "id"))[0] == expected[0]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


async def test_indexes_go_with_their_segments(scene: Scene) -> None:
    await scene.write(batch(100), key="id", parts=1)
    scene.store.changed = lambda each: None if scene.store.has(each) else scene.lookup.forget(each)
    await scene.rows(7, "int")
    await scene.store.trash(scene.refs[0].id)
    assert list((scene.data_dir / "segments.index").iterdir()) == []
    await scene.store.restore(scene.refs[0].id)
    await scene.rows(7, "int")
    scene.store.changed = lambda _: None
    await scene.store.trash(scene.refs[0].id)
    scene.lookup = scene.start()  # a crash in between leaves one behind
    assert list((scene.data_dir / "segments.index").iterdir()) == []


async def test_a_part_that_is_not_here_is_named_with_those_who_have_it(scene: Scene) -> None:
    await scene.write(batch(100), key="id", parts=1)
    scene.atlas.holdings["d"] = {"b": Held("b.1", {1: 1}), "a": Held("a.1", {1: 1})}
    await scene.store.trash(scene.refs[0].id)
    with pytest.raises(DataElsewhere) as elsewhere:
        await scene.rows(7, "int")
    assert (elsewhere.value.part, elsewhere.value.holders, elsewhere.value.homes) == (0, ["b"], ["a", "b"])


async def test_rotten_bytes_are_never_answered(scene: Scene) -> None:
    whole = batch(50_000)
    await scene.write(whole, key="id", parts=1)
    expected = await scene.rows(7, "int", "x")
    path = scene.store.path(scene.refs[0].id) / "1.npy"
    data = path.read_bytes()
    scene.lookup = scene.start()
    with path.open("r+b") as file:
        file.seek(len(data) // 2)
        file.write(bytes([data[len(data) // 2] ^ 1]))
    with pytest.raises(DataElsewhere):
        await scene.rows(7, "int", "x")
    assert not scene.store.has(scene.refs[0].id)
    assert expected[0]


@pytest.mark.parametrize(
    ("key", "kind", "columns"),
    [
        ("7", "str", ()),
        ("7", "bool", ()),
        ("seven", "int", ()),
        ("1e3", "int", ()),
        ("9" * 30, "int", ()),
        (str(2**64), "int", ()),
        ("7", "int", ("absent",)),
        ("7", "int", ("../x",)),
    ],
)
async def test_what_is_said_wrongly_is_refused(scene: Scene, key: str, kind: str, columns: tuple[str, ...]) -> None:
    await scene.write(batch(10), key="id")
    with pytest.raises(BadRecord):
        await scene.rows(key, kind, *columns)


async def test_a_version_that_is_not_there_is_not_found(scene: Scene) -> None:
    with pytest.raises(DatasetNotFound):
        await scene.lookup.rows("d", 9, "7", "int", ())


async def test_text_that_grew_wider_is_answered_in_the_width_of_the_version(scene: Scene) -> None:
    old = {"id": np.array([1, 2]), "w": np.array(["a", "b"], "<U1")}
    new = {"id": np.array([1, 3]), "w": np.array(["long", "c"], "<U4")}
    await scene.write(old, new, key="id", parts=1)
    rows, columns = await scene.rows(1, "int")
    assert rows == [0, 2]
    assert columns["w"].tolist() == ["a", "long"]


async def test_the_process_that_makes_indexes_says_what_is_wrong(tmp_path: Path) -> None:
    np.save(tmp_path / "keys.npy", np.arange(1000))
    target = tmp_path / "index"
    await make_indexes([(tmp_path / "keys.npy", target)])
    index = KeyIndex(target, 1000)
    assert all(index.rows(hash_key(key)) == [key] for key in range(1000))
    assert index.rows(hash_key(1000)) == []
    with pytest.raises(NoWorkers, match="absent"):
        await make_indexes([(tmp_path / "absent.npy", target)])


@settings(deadline=None)
@given(st.text(max_size=20), st.sampled_from(["int", "str", "bytes", "float"]))
def test_any_text_is_a_key_or_refused(text: str, kind: Any) -> None:
    try:
        key = parse_key(text, kind)
    except BadRecord:
        return
    hash_key(key)


def test_columns_that_hold_no_keys_are_refused() -> None:
    for column in (
        Column("x", "|b1"),
        Column("x", "<c16"),
        Column("x", "|V8"),
        Column("x", "<i8", [2]),
        Column("x", "<f16"),
    ):
        with pytest.raises(BadRecord):
            key_type(column)
    assert is_key(b"a\0\0", Column("x", "|S3"), b"a")


async def test_a_version_that_was_removed_and_made_anew_is_another_one(scene: Scene) -> None:
    await scene.write({"id": np.arange(10)}, key="id")
    former = mark_of(scene.manifest)
    assert await scene.lookup.rows("d", 1, "7", "int", (), of=former)
    await scene.write({"id": np.arange(10) * 7}, key="id")
    assert await scene.lookup.rows("d", 1, "7", "int", (), of=mark_of(scene.manifest))
    with pytest.raises(DatasetNotFound, match="d@1 was removed, and made anew"):
        await scene.lookup.rows("d", 1, "7", "int", (), of=former)
