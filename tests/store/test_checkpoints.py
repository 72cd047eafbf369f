"""Checkpoints and models on a disk, and between nodes: the bytes that were written, or none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from blake3 import blake3

from tests.store.serving import TOKEN, serving
from zkd.errors import DataDamaged, DataUnavailable
from zkd.jobs import FileRef
from zkd.net.checkpoints import fetch, send
from zkd.store import CheckpointStore

DATA = bytes(range(256)) * 9000  # two MiB, and a bit
ID = blake3(DATA).hexdigest()


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def test_what_was_written_is_read_also_in_the_next_life(tmp_path: Path) -> None:
    assert await CheckpointStore(tmp_path).write("j", DATA) == ID
    store = CheckpointStore(tmp_path)
    assert store.has("j", ID)
    assert await store.read("j", ID) == DATA
    assert list(store.ages()["j"]) == [ID]
    store.remove("j", ID)
    assert store.ages() == {}


async def test_a_rotten_file_is_removed_and_taken_anew(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    await store.write("j", DATA)
    path = tmp_path / "checkpoints" / "j" / ID
    path.write_bytes(DATA[:-1] + b"?")
    with pytest.raises(DataDamaged):
        await store.read("j", ID)
    assert not store.has("j", ID)
    path.write_bytes(b"")
    assert await store.receive("j", ID, len(DATA), pieces(DATA))
    assert await store.read("j", ID) == DATA
    assert not await store.receive("j", ID, len(DATA), pieces(b"never read"))


async def test_other_bytes_are_no_file(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for size, data in ((len(DATA), DATA[:-1]), (len(DATA), DATA + b"?"), (3, b"abc"), (0, b"")):
        with pytest.raises(DataDamaged):
            await store.receive("j", ID, size, pieces(data))
    assert [path.name for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()] == []


async def test_a_name_from_outside_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / ID).write_bytes(DATA)
    store = CheckpointStore(tmp_path)
    for job, file_id in (("..", ID), ("j", "../../x"), ("", ID), ("j/../..", ID), ("j", ID.upper())):
        assert not store.has(job, file_id)
        with pytest.raises(DataUnavailable):
            await store.read(job, file_id)
        store.remove(job, file_id)
    assert (tmp_path / ID).exists()


async def test_what_came_half_is_gone_in_the_next_life(tmp_path: Path) -> None:
    await CheckpointStore(tmp_path).write("j", DATA)
    half = tmp_path / "checkpoints" / "j" / f"{'a' * 64}.1.tmp"
    half.write_bytes(b"half")
    assert list(CheckpointStore(tmp_path).ages()["j"]) == [ID]
    assert not half.exists()


async def test_files_go_from_node_to_node(tmp_path: Path) -> None:
    async with serving(tmp_path) as one, aiohttp.ClientSession() as http:
        await send(http, one.address, TOKEN, "j", ID, DATA)
        await send(http, one.address, TOKEN, "j", ID, DATA)
        ref = FileRef(ID, len(DATA), ["one"], 4)
        nobody = "http://127.0.0.1:9"
        assert await fetch(http, [nobody, one.address], TOKEN, "j", ref) == DATA
        url = f"{one.address}/v1/checkpoints/j/{ID}"
        async with http.head(url, headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
            assert (answer.status, answer.content_length) == (200, len(DATA))
        for refused in (http.get(url), http.head(url), http.put(url, data=b"abc")):
            async with refused as answer:
                assert answer.status == 401
        with pytest.raises(DataUnavailable, match="no such file"):
            await fetch(http, [one.address], TOKEN, "j", FileRef("0" * 64, 5, [], 4))
        with pytest.raises(DataUnavailable, match="expected 5 bytes"):
            await fetch(http, [one.address], TOKEN, "j", FileRef(ID, 5, [], 4))
        with pytest.raises(DataUnavailable, match="expected its"):
            await send(http, one.address, TOKEN, "j", "0" * 64, DATA)
        (tmp_path / "checkpoints" / "j" / ID).write_bytes(DATA[::-1])
        with pytest.raises(DataUnavailable, match="404"):
            await fetch(http, [one.address], TOKEN, "j", ref)
        with pytest.raises(DataUnavailable, match="no node"):
            await fetch(http, [], TOKEN, "j", ref)
