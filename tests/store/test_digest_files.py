"""Files named by their digest, in a store and over HTTP: what comes is what was named, and nothing else is kept."""

from __future__ import annotations

import asyncio
import pickle
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from blake3 import blake3

from tests.store.serving import TOKEN
from zkd.arrays.tensors import pack
from zkd.core import foreign
from zkd.errors import DataDamaged, DataUnavailable
from zkd.net.file_routes import file_routes
from zkd.net.files import fetch, fetch_into, has, send
from zkd.net.server import serve
from zkd.registry import FILE_BYTES_MAX, FILES_URL
from zkd.store import BlobStore, DigestFiles, SegmentStore

GOOD = pack({"w": np.arange(1000.0)}, {"format": "test"})
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def named(data: bytes) -> str:
    return blake3(data).hexdigest()


@dataclass
class Served:
    store: DigestFiles
    url: str

    def at(self, data: bytes) -> str:
        return f"{self.url}/{named(data)}"


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Served]:
    store = DigestFiles(directory / "models", bytes_max=FILE_BYTES_MAX)

    async def none(*_: object) -> bytes:
        raise AssertionError("nobody asks for these here")

    async def why(_: str) -> tuple[str | None, str | None]:
        return "", None

    blobs, segments = BlobStore(directory), SegmentStore(directory)

    def routes(expect: object) -> object:
        return file_routes(FILES_URL, lambda _: store, expect, foreign.of_bytes, foreign.HEAD_BYTES)  # type: ignore[arg-type]

    async with serve(
        "127.0.0.1", 0, blobs, lambda: TOKEN, lambda: None, list, why, segments, none, None, routes  # type: ignore[arg-type]
    ) as port:  # fmt: skip
        yield Served(store, f"http://127.0.0.1:{port}{FILES_URL}")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as served:
        yield served


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http


def lying(served: Served) -> list[str]:
    directory = served.store.directory
    return [path.name for path in directory.iterdir()] if directory.exists() else []


async def chunks(data: bytes, size: int = 100) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def test_what_is_sent_is_there_and_can_be_fetched(
    served: Served, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    await send(http, served.at(GOOD), TOKEN, GOOD)
    await send(http, served.at(GOOD), TOKEN, GOOD)  # again is no harm
    assert await fetch(http, [served.at(GOOD)], TOKEN, named(GOOD), len(GOOD)) == GOOD
    assert await has(http, served.at(GOOD), TOKEN, len(GOOD))
    assert not await has(http, served.at(GOOD), TOKEN, len(GOOD) + 1)
    assert not await has(http, served.at(b"other"), TOKEN, 5)
    other = DigestFiles(tmp_path / "other", bytes_max=1 << 20)
    await fetch_into(other, http, [served.at(b"gone"), served.at(GOOD)], TOKEN, named(GOOD), len(GOOD))
    assert await other.read(named(GOOD)) == GOOD


@pytest.mark.parametrize(
    ("data", "claimed", "words"),
    [
        (GOOD, GOOD + b"x", "others"),  # the bytes of another name
        (GOOD[:-1], GOOD, "others"),
        (pickle.dumps({"a": 1}), pickle.dumps({"a": 1}), "this is a pickle; zkd runs no code"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        (b"x", b"x", "got 1 bytes"),
        (bytes(9), bytes(9), "a header of 0 bytes"),
    ],
)
async def test_other_bytes_are_refused_and_leave_nothing(
    served: Served, http: aiohttp.ClientSession, data: bytes, claimed: bytes, words: str
) -> None:
    with pytest.raises(DataUnavailable, match=f"HTTP 400: .*{words}"):
        await send(http, served.at(claimed), TOKEN, data)
    assert lying(served) == []


async def test_who_has_no_token_learns_and_changes_nothing(served: Served, http: aiohttp.ClientSession) -> None:
    await send(http, served.at(GOOD), TOKEN, GOOD)
    for method in ("GET", "HEAD", "PUT"):
        async with http.request(method, served.at(GOOD), data=b"x" if method == "PUT" else None) as answer:
            assert answer.status == 401
    for bad in ("..%2f..%2fetc%2fpasswd", "x" * 64, named(GOOD).upper(), named(GOOD)[:-1]):
        async with http.put(f"{served.url}/{bad}", data=GOOD, headers=BEARER) as answer:
            assert answer.status == 404
    assert lying(served) == [named(GOOD)]


async def test_a_claim_of_10_gb_costs_neither_memory_nor_disk(served: Served, http: aiohttp.ClientSession) -> None:
    tracemalloc.start()
    try:
        head = {**BEARER, "Content-Length": str(10 * 2**30)}
        reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.split(":")[2].split("/")[0]))
        lines = "".join(f"{name}: {text}\r\n" for name, text in head.items())
        writer.write(f"PUT {FILES_URL}/{named(b'x')} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode() + bytes(1024))
        assert b" 507 " in await reader.readline()
        writer.close()
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    async with http.put(served.at(GOOD), data=chunks(GOOD), headers=BEARER) as answer:  # chunked: of no known length
        assert answer.status == 411
    assert lying(served) == []


async def test_who_stops_in_the_middle_leaves_nothing(served: Served) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", int(served.url.split(":")[2].split("/")[0]))
    lines = "".join(f"{name}: {text}\r\n" for name, text in {**BEARER, "Content-Length": str(len(GOOD))}.items())
    writer.write(f"PUT {FILES_URL}/{named(GOOD)} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode() + GOOD[:5000])
    await writer.drain()
    for _ in range(200):
        if lying(served):
            break
        await asyncio.sleep(0.01)
    writer.transport.abort()
    for _ in range(200):
        if not lying(served):
            break
        await asyncio.sleep(0.01)
    assert lying(served) == []


async def test_bytes_that_rotted_are_not_given_and_not_kept(
    served: Served, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    await send(http, served.at(GOOD), TOKEN, GOOD)
    path = served.store.directory / named(GOOD)
    assert served.store.path(named(GOOD)) == path
    path.write_bytes(GOOD[:-1] + b"\xff")
    assert served.store.path(named(GOOD)) is None  # somebody wrote to it
    with pytest.raises(DataUnavailable, match="404"):
        await fetch(http, [served.at(GOOD)], TOKEN, named(GOOD), len(GOOD))
    assert not path.exists()
    await send(http, served.at(GOOD), TOKEN, GOOD)
    path.write_bytes(GOOD[1:] + GOOD[:1])
    assert not await has(http, served.at(GOOD), TOKEN, len(GOOD))
    await send(http, served.at(GOOD), TOKEN, GOOD)
    path.write_bytes(bytes(len(GOOD)))
    with pytest.raises(DataDamaged):
        await served.store.verify(named(GOOD))
    # Bytes that rot without a trace in the file's times are found on the way, and never given whole.
    large = pack({"w": np.arange(500_000.0)}, {"format": "test"})
    await send(http, served.at(large), TOKEN, large)
    path = served.store.directory / named(large)
    path.write_bytes(large[:100] + b"?" + large[101:])
    stat = path.stat()
    served.store._verified[named(large)] = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    assert await has(http, served.at(large), TOKEN, len(large))
    with pytest.raises(DataUnavailable, match="cannot be fetched"):
        await fetch(http, [served.at(large)], TOKEN, named(large), len(large))
    assert not path.exists()
    path = served.store.directory / named(GOOD)
    # A former life's files are believed when they have been read, and not before.
    await send(http, served.at(GOOD), TOKEN, GOOD)
    (served.store.directory / "half.1.tmp").write_bytes(b"half")
    again = DigestFiles(served.store.directory, bytes_max=1 << 20)
    again.clear_arrivals()
    assert (again.ids(), again.path(named(GOOD))) == ({named(GOOD)}, None)
    assert await again.verify(named(GOOD)) == len(GOOD)
    assert again.path(named(GOOD)) == path
    assert not (served.store.directory / "half.1.tmp").exists()


async def test_a_peer_that_lies_is_left_for_the_next_one(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    async with serving(tmp_path / "a") as liar, serving(tmp_path / "b") as honest:
        path = liar.store.directory / named(GOOD)
        await send(http, honest.at(GOOD), TOKEN, GOOD)
        async with serving(tmp_path / "c") as other:
            longer = GOOD + b"x"
            await send(http, other.at(longer), TOKEN, longer)
            urls = [other.at(longer), liar.at(GOOD), honest.at(GOOD)]
            assert await fetch(http, urls, TOKEN, named(GOOD), len(GOOD)) == GOOD
            with pytest.raises(DataUnavailable, match=r"expected .* bytes, got"):
                await fetch(http, urls[:1], TOKEN, named(GOOD), len(GOOD))
        assert not path.exists()
