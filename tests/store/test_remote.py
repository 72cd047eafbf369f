"""Segments at a URL, a shared directory or an S3 server: what comes from there is what went there, or an error."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.store.buckets import aws, s3_server
from tests.store.made import Made, got, make
from zkd.errors import BadRecord, DataDamaged, DataUnavailable
from zkd.manifests import SegmentRef
from zkd.net import places, remote
from zkd.net.places import check_url, is_within
from zkd.net.remote import Remote
from zkd.store import SegmentStore

__all__ = ["aws", "s3_server"]  # fixtures


class Where:
    """One of the two, and a way around zkd to its objects."""

    def __init__(self, url: str, directory: Path | None, aws: Any) -> None:
        self.url = url
        self._directory = directory
        self._aws = aws

    def get(self, name: str) -> bytes:
        if self._directory is not None:
            return (self._directory / name).read_bytes()
        data: bytes = self._aws.get_object(Bucket="zkd", Key=f"some/where/{name}")["Body"].read()
        return data

    def set(self, name: str, data: bytes) -> None:
        if self._directory is not None:
            (self._directory / name).write_bytes(data)
        else:
            self._aws.put_object(Bucket="zkd", Key=f"some/where/{name}", Body=data)

    def names(self) -> list[str]:
        if self._directory is not None:
            return sorted(os.listdir(self._directory)) if self._directory.exists() else []
        listed = self._aws.list_objects_v2(Bucket="zkd").get("Contents", [])
        return sorted(each["Key"].rpartition("/")[2] for each in listed)


@pytest.fixture(params=["file", "s3"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    if request.param == "file":
        return Where(f"file://{tmp_path}/shared/zkd", tmp_path / "shared/zkd", None)
    return Where("s3://zkd/some/where", None, request.getfixturevalue("aws"))


async def test_what_is_put_there_comes_back_whole_and_by_column(where: Where, tmp_path: Path) -> None:
    place = Remote(where.url)
    for seed, rows in enumerate((1, 1000, 120_000)):
        made = make(tmp_path / str(rows), rows=rows, seed=seed)
        await place.put(made.directory, made.ref)
        await place.put(made.directory, made.ref)  # twice is once
        assert where.get(made.id) == made.packed
        store = SegmentStore(tmp_path / f"store-{rows}")
        await place.fetch(made.ref, store)
        assert await got(store, made.id) == made.packed
        segment, files = await place.read_files(made.ref, [0, 2])
        assert segment.rows == rows
        assert files == {0: made.files["rows.npy"], 2: made.files["1.npy"]}
        assert await place.verify(made.ref)
    assert len(where.names()) == 3


async def test_a_large_one_goes_in_pieces(where: Where, tmp_path: Path) -> None:
    made = make(tmp_path / "made", rows=250_000, wide=17)  # 38 MB: an upload of three parts
    place = Remote(where.url)
    await place.put(made.directory, made.ref)
    assert where.get(made.id) == made.packed
    store = SegmentStore(tmp_path / "store")
    await place.fetch(made.ref, store)
    assert await store.verify(made.id)


async def test_what_is_damaged_there_is_not_read(where: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    made = make(tmp_path / "made", rows=40)
    place = Remote(where.url)
    await place.put(made.directory, made.ref)
    dice = random.Random(4)
    heads = len(made.head)
    for round_ in range(60):
        data = bytearray(made.packed)
        if round_ % 4 == 3:
            del data[dice.randrange(len(data)) :]
        else:
            data[dice.randrange(heads if round_ % 4 == 0 else len(data))] ^= 1 << dice.randrange(8)
        where.set(made.id, bytes(data))
        with pytest.raises((DataDamaged, DataUnavailable)):
            await place.read_files(made.ref, [0, 1, 2, 3])
        with pytest.raises((DataDamaged, DataUnavailable)):
            await place.fetch(made.ref, SegmentStore(tmp_path / f"store-{round_}"))
        assert not SegmentStore(tmp_path / f"store-{round_}").ids()
    assert not await place.verify(made.ref)
    await place.put(made.directory, made.ref)
    assert await place.verify(made.ref)
    other = make(tmp_path / "other", rows=40, seed=1)
    where.set(made.id, other.packed)
    assert not await place.verify(made.ref)


async def test_fetching_goes_on_where_it_was(where: Where, tmp_path: Path) -> None:
    made = make(tmp_path / "made", rows=120_000)
    place = Remote(where.url)
    await place.put(made.directory, made.ref)
    data = bytearray(made.packed)
    data[-100] ^= 1
    where.set(made.id, bytes(data))
    store = SegmentStore(tmp_path / "store")
    with pytest.raises(DataDamaged):
        await place.fetch(made.ref, store)
    received = await store.received(made.id)
    assert received > len(made.packed) // 2
    where.set(made.id, made.packed)
    await place.fetch(made.ref, store)
    assert await got(store, made.id) == made.packed


async def test_a_put_that_fails_half_way_leaves_nothing(where: Where, tmp_path: Path) -> None:
    made = make(tmp_path / "made", rows=250_000, wide=17)
    path = made.directory / "0.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataDamaged):
        await Remote(where.url).put(made.directory, made.ref)
    assert where.names() == []


async def test_what_is_not_there_is_told(where: Where, tmp_path: Path) -> None:
    made = make(tmp_path / "made", rows=40)
    place = Remote(where.url)
    with pytest.raises(DataDamaged, match="is not at"):
        await place.read_files(made.ref, [0])
    assert not await place.verify(made.ref)
    await place.put(made.directory, made.ref)
    lie = SegmentRef(made.id, made.ref.rows, made.ref.size + 8)
    with pytest.raises(DataDamaged, match="it has other ones"):
        await place.read_files(lie, [0])


async def test_a_server_that_is_away_is_told_in_bounded_time(
    aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    made: Made = make(tmp_path / "made", rows=40)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(places, "S3_CONFIG", {"connect_timeout": 1, "read_timeout": 1, "retries": {"max_attempts": 1}})
    with pytest.raises(DataUnavailable, match="s3://zkd/x"):
        await Remote("s3://zkd/x").put(made.directory, made.ref)
    with pytest.raises(DataUnavailable, match="s3://zkd/x"):
        await Remote("s3://zkd/x").read_files(made.ref, [0])


async def test_a_bucket_that_is_not_there_is_told(aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    made = make(tmp_path / "made", rows=40)
    with pytest.raises(DataUnavailable, match="bucket"):
        await Remote("s3://other/x").put(made.directory, made.ref)


async def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    made = make(tmp_path / "made", rows=40)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(places, "write_all", full)
    with pytest.raises(DataUnavailable, match="No space left"):
        await Remote(f"file://{tmp_path}/shared").put(made.directory, made.ref)
    assert os.listdir(tmp_path / "shared") == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/shared",
        "http://169.254.169.254/latest",
        "ftp://host/x",
        "file://shared/x",
        "file://",
        "file:///",
        "file:///a/../etc",
        "s3://",
        "s3:///",
        "s3://bucket/../other",
        "s3://bucket/./x",
        "simplecache::s3://bucket/x",
        "s3://bucket/x::file:///etc",
        "s3://user:secret@bucket/x",
        "s3://bucket/x?y",
        "s3://bucket/x#y",
        "s3://bucket/x\n",
        "s3://bucket/" + "x" * 1000,
        "zip:///a.zip",
        "reference:///x",
    ],
)
def test_what_is_no_place_is_refused(url: str) -> None:
    with pytest.raises(BadRecord, match="expected file:///directory or s3://bucket/prefix"):
        check_url(url)


def test_a_place_is_within_what_is_allowed_or_not() -> None:
    allowed = ["s3://zkd/data/", "file:///shared"]
    assert all(is_within(url, allowed) for url in ("s3://zkd/data", "s3://zkd/data/x/y", "file:///shared/a"))
    assert not any(is_within(url, allowed) for url in ("s3://zkd", "s3://zkd/database", "file:///", "file:///shared2"))
    assert not is_within("s3://zkd/data", [])
