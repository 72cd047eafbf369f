"""Segments between nodes: what arrives is right and whole, whoever the peer is and however often it is cut."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.store.made import BLOCK, Made, got, in_pieces, make, put
from tests.store.serving import TOKEN, Serving, peer, serving
from zkd.errors import DataContradicts, DataDamaged, DataUnavailable
from zkd.manifests import SegmentRef
from zkd.net import bodies, segments
from zkd.net.fetch import session
from zkd.net.segment_reads import read_files
from zkd.net.segments import fetch, push, verify
from zkd.store import SegmentStore, segment_files
from zkd.store.packing import pack, room_bytes

AUTH = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path / "node") as node:
        yield node


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with session() as http:
        yield http


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(tmp_path / "made", rows=120_000)


async def test_a_segment_goes_to_a_node_and_from_it_to_another(
    node: Serving, http: aiohttp.ClientSession, made: Made, tmp_path: Path
) -> None:
    assert await push(http, node.address, TOKEN, made.directory, made.ref)
    assert not await push(http, node.address, TOKEN, made.directory, made.ref)
    assert await got(node.store, made.id) == made.packed
    other = SegmentStore(tmp_path / "other")
    await fetch(http, [node.address], TOKEN, made.ref, other)
    assert await got(other, made.id) == made.packed
    assert await verify(http, node.address, TOKEN, made.id, 10)
    assert not await verify(http, node.address, TOKEN, "0" * 64, 10)


async def test_what_lies_in_memory_is_sent_as_what_lies_in_a_directory(
    node: Serving, http: aiohttp.ClientSession, made: Made
) -> None:
    columns = segment_files.parse(made.files["segment.json"], made.id).columns
    names = ["rows.npy", "0.npy", "1.npy", "2.npy"]
    headers = [len(segment_files.npy_header(each, made.ref.rows)) for each in (segment_files.ROWS, *columns)]

    def fill(number: int, into: memoryview) -> None:
        into[:] = made.files[names[number]][headers[number] :]

    room = memoryview(bytearray(b"?" * room_bytes(made.ref.rows, columns)))
    packed = pack(room, made.ref.rows, columns, fill)
    assert (packed.ref, packed.text) == (made.ref, made.files["segment.json"])
    begun = made.packed[: len(made.head) + BLOCK + 5]  # it goes on in the middle of a file
    await node.store.receive(made.id, 0, len(made.packed), in_pieces(begun))
    assert await push(http, node.address, TOKEN, packed, packed.ref)
    assert await got(node.store, made.id) == made.packed


async def test_all_of_it_asks_for_the_token(node: Serving, http: aiohttp.ClientSession, made: Made) -> None:
    await put(node.store, made)
    url = f"{node.address}/v1/segments/{made.id}"
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": TOKEN}):
        for method, path in (
            ("GET", ""),
            ("HEAD", ""),
            ("GET", "/manifest"),
            ("GET", "/incoming"),
            ("PUT", ""),
            ("POST", "/verify"),
        ):
            async with http.request(method, url + path, headers=headers) as answer:
                assert answer.status == 401, (method, path)
                assert made.packed[:100] not in await answer.read()
    with pytest.raises(DataUnavailable, match="401"):
        await push(http, node.address, "other", made.directory, made.ref)


async def test_what_is_asked_for_is_what_comes(node: Serving, http: aiohttp.ClientSession, made: Made) -> None:
    await put(node.store, made)
    url, total = f"{node.address}/v1/segments/{made.id}", len(made.packed)
    async with http.head(url, headers=AUTH) as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(total))
    async with http.get(f"{url}/manifest", headers=AUTH) as answer:
        assert await answer.read() == made.files["segment.json"]
    async with http.get(f"{url}/incoming", headers=AUTH) as answer:
        assert await answer.json() == {"received": total}
    async with http.get(url, headers=AUTH) as answer:
        assert (answer.status, await answer.read()) == (200, made.packed)
    for text, start, stop in (
        ("bytes=0-0", 0, 1),
        (f"bytes={BLOCK}-", BLOCK, total),
        ("bytes=-5", total - 5, total),
        (f"bytes=7-{total * 2}", 7, total),
    ):
        async with http.get(url, headers=AUTH | {"Range": text}) as answer:
            assert (answer.status, await answer.read()) == (206, made.packed[start:stop])
            assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{total}"
    for text in (f"bytes={total}-", "bytes=5-4", "bytes=0-1,3-4", "bytes=-", "lines=1-2", f"bytes={'9' * 30}-"):
        async with http.get(url, headers=AUTH | {"Range": text}) as answer:
            assert answer.status == 416, text
    async with http.head(f"{node.address}/v1/segments/{'0' * 64}", headers=AUTH) as answer:
        assert answer.status == 404
    async with http.get(f"{node.address}/v1/segments/{'0' * 64}/incoming", headers=AUTH) as answer:
        assert await answer.json() == {"received": 0}


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e%2fsession", "..%2f..%2fetc%2fpasswd", "A" * 64, "a" * 63, "a" * 64 + "%0a"]
)
@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD"])
async def test_what_is_no_id_is_nowhere(node: Serving, http: aiohttp.ClientSession, name: str, method: str) -> None:
    from yarl import URL

    url = URL(f"{node.address}/v1/segments/{name}", encoded=True)
    async with http.request(method, url, headers=AUTH, data=b"x" if method == "PUT" else None) as answer:
        assert answer.status in (404, 405)


@pytest.mark.parametrize(
    ("content_range", "status"),
    [
        ("bytes 0-9/5", 400),
        ("bytes 5-4/100", 400),
        ("bytes 0-8/100", 400),
        ("bytes 0-10/100", 400),
        ("bytes -1-8/100", 400),
        ("bytes 0-9/*", 400),
        (f"bytes 0-9/{'9' * 19}", 400),
        (f"bytes 0-9/{'9' * 18}", 507),
        ("bytes 100-109/200", 409),
        ("bytes 0-9/10", 400),
        ("bytes 0-9/300", 202),
    ],
)
async def test_a_strange_range_is_refused(
    node: Serving, http: aiohttp.ClientSession, content_range: str, status: int, tmp_path: Path
) -> None:
    url = f"{node.address}/v1/segments/{'0' * 64}"
    async with http.put(url, headers=AUTH | {"Content-Range": content_range}, data=b"ZKDSEG1\n\0\1") as answer:
        assert answer.status == status, await answer.text()
    assert not list((tmp_path / "node/segments").iterdir())


async def test_garbage_is_refused_and_leaves_nothing(
    node: Serving, http: aiohttp.ClientSession, made: Made, tmp_path: Path
) -> None:
    dice = random.Random(8)
    url = f"{node.address}/v1/segments/{made.id}"
    head = len(made.head)
    for round_ in range(60):
        data = bytearray(made.packed)
        place = dice.choice([dice.randrange(16), dice.randrange(head), dice.randrange(len(data))])
        match round_ % 3:
            case 0:
                data[place] ^= 1 << dice.randrange(8)
            case 1:
                data[place:] = dice.randbytes(len(data) - place)
            case 2:
                data += b"\0"
        async with http.get(f"{url}/incoming", headers=AUTH) as answer:
            start = (await answer.json())["received"]
        if data[start:] == made.packed[start:]:
            continue
        headers = AUTH | {
            "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}",
            "Content-Length": str(len(data) - start),
        }
        async with http.put(url, headers=headers, data=in_pieces(bytes(data[start:]))) as answer:
            assert answer.status == 400, (round_, place, await answer.text())
        assert not node.store.has(made.id)
    assert not list((tmp_path / "node/segments").iterdir())
    assert await push(http, node.address, TOKEN, made.directory, made.ref)
    assert await got(node.store, made.id) == made.packed


async def test_who_waits_for_100_sends_nothing_that_is_refused(
    node: Serving, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, port = node.address.removeprefix("http://").split(":")

    async def told(total: int, content_range: str = "", token: str = TOKEN) -> str:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"PUT /v1/segments/{made.id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Expect: 100-continue\r\nContent-Length: {total}\r\n{content_range}\r\n".encode()
        )
        line = (await reader.readline()).decode()
        writer.close()
        return line

    assert " 100 " in await told(len(made.packed))
    assert " 401 " in await told(len(made.packed), token="other")
    assert " 409 " in await told(1000, f"Content-Range: bytes {BLOCK}-{BLOCK + 999}/{len(made.packed)}\r\n")
    assert " 507 " in await told(10**17)
    await put(node.store, made)
    assert " 200 " in await told(len(made.packed))


async def test_a_client_that_is_killed_goes_on_where_it_was(
    node: Serving, http: aiohttp.ClientSession, made: Made
) -> None:
    """The connection ends anywhere, again and again; what was sent once is not sent again, but for a block."""
    dice = random.Random(5)
    host, port = node.address.removeprefix("http://").split(":")
    total, sent = len(made.packed), 0
    for _ in range(12):
        async with http.get(f"{node.address}/v1/segments/{made.id}/incoming", headers=AUTH) as answer:
            start = (await answer.json())["received"]
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"PUT /v1/segments/{made.id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Length: {total - start}\r\nContent-Range: bytes {start}-{total - 1}/{total}\r\n\r\n".encode()
        )
        stop = min(total - 1, start + dice.randrange(BLOCK * 3 // 2))
        writer.write(made.packed[start:stop])
        await writer.drain()
        sent += stop - start
        if dice.random() < 0.5:
            writer.transport.abort()
        writer.close()
        await asyncio.sleep(0.01)
        assert not node.store.has(made.id)
    async with http.get(f"{node.address}/v1/segments/{made.id}/incoming", headers=AUTH) as answer:
        assert (await answer.json())["received"] > 2 * BLOCK
    assert await push(http, node.address, TOKEN, made.directory, made.ref)
    assert await got(node.store, made.id) == made.packed


async def test_what_goes_bad_while_it_is_sent_ends_the_answer(
    node: Serving, http: aiohttp.ClientSession, made: Made, tmp_path: Path
) -> None:
    await put(node.store, made)
    path = node.store.path(made.id) / "0.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    came = bytearray()

    async def read() -> None:
        async with http.get(f"{node.address}/v1/segments/{made.id}", headers=AUTH) as answer:
            assert answer.status == 200
            async for piece in answer.content.iter_any():
                came.extend(piece)

    with pytest.raises(aiohttp.ClientPayloadError):
        await read()
    assert made.packed.startswith(came)
    async with http.get(f"{node.address}/v1/segments/{made.id}", headers=AUTH) as answer:
        assert answer.status == 404
    assert (tmp_path / "node/segments.bad" / made.id / "0.npy").read_bytes() == data
    assert await push(http, node.address, TOKEN, made.directory, made.ref)
    assert await got(node.store, made.id) == made.packed


async def test_what_is_bad_at_once_is_not_there(node: Serving, http: aiohttp.ClientSession, made: Made) -> None:
    await put(node.store, made)
    (node.store.path(made.id) / "0.npy").unlink()
    start = len(made.head) + len(made.files["rows.npy"])
    async with http.get(f"{node.address}/v1/segments/{made.id}", headers=AUTH | {"Range": f"bytes={start}-"}) as answer:
        assert answer.status == 404
    assert not node.store.has(made.id)


async def test_fetching_goes_on_at_another_node(http: aiohttp.ClientSession, made: Made, tmp_path: Path) -> None:
    """The first copy ends in the middle; what came is kept, what was bad is not."""
    fetched: list[int] = []

    async def count(size: int) -> None:
        fetched.append(size)

    async with serving(tmp_path / "a") as a, serving(tmp_path / "b") as b:
        await put(a.store, made)
        await put(b.store, made)
        path = a.store.path(made.id) / "0.npy"
        data = bytearray(path.read_bytes())
        data[BLOCK + 5] ^= 16
        path.write_bytes(data)
        other = SegmentStore(tmp_path / "other")
        await fetch(http, [a.address, b.address], TOKEN, made.ref, other, count)
        assert await got(other, made.id) == made.packed
        assert sum(fetched) < len(made.packed) + BLOCK
        assert (a.store.has(made.id), b.store.has(made.id)) == (False, True)
        numbers = await read_files(http, [a.address, b.address], TOKEN, made.ref, [1])
        assert numbers[1] == {1: made.files["0.npy"]}


@pytest.mark.parametrize("files", [[0], [1], [0, 1, 2, 3], [3, 1], [2, 3], []])
async def test_columns_are_read_alone(node: Serving, http: aiohttp.ClientSession, made: Made, files: list[int]) -> None:
    await put(node.store, made)
    names = ["rows.npy", "0.npy", "1.npy", "2.npy"]
    segment, data = await read_files(http, [node.address], TOKEN, made.ref, files)
    assert segment.rows == made.ref.rows
    assert data == {number: made.files[names[number]] for number in files}


# --- Peers that are no nodes ------------------------------------------------------------------------------


def _range_of(head: bytes) -> int:
    match = re.search(rb"Range: bytes=(\d+)-", head)
    return int(match[1]) if match else 0


class Evil:
    """Peers that have a segment, or say so."""

    def __init__(self, made: Made) -> None:
        self.made = made

    async def silent(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async def continuing(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.Event().wait()

    async def no_http(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\1\2 what? \r\n" * 100)
        writer.close()

    async def slow(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.begin(head, writer)
        for byte in self.made.packed[_range_of(head) :]:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)

    async def stalling(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.begin(head, writer)
        writer.write(self.made.packed[_range_of(head) :][: BLOCK // 2])
        await asyncio.Event().wait()

    async def endless(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"%x\r\n%b\r\n" % (1 << 16, bytes(1 << 16)))
            await writer.drain()

    async def huge(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.begin(head, writer, 10**13)
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()

    async def garbage(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.begin(head, writer)
        writer.write(random.Random(1).randbytes(len(self.made.packed) - _range_of(head)))

    async def flipping(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.begin(head, writer)
        data = bytearray(self.made.packed[_range_of(head) :])
        data[len(data) // 2] ^= 4
        writer.write(data)

    async def other_range(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 5\r\n\r\nhello")

    async def redirecting(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")

    async def short(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.begin(head, writer)
        writer.write(self.made.packed[_range_of(head) :][:5000])
        writer.close()

    async def wordy(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"%x\r\n%b\r\n" % (1 << 16, b"no " * (1 << 14) + bytes(1 << 14)))
            await writer.drain()

    async def begin(self, head: bytes, writer: asyncio.StreamWriter, total: int | None = None) -> None:
        total, start = total or len(self.made.packed), _range_of(head)
        writer.write(
            f"HTTP/1.1 206 Partial\r\nContent-Range: bytes {start}-{total - 1}/{total}\r\n"
            f"Content-Length: {total - start}\r\n\r\n".encode()
        )


def impatient() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=1, sock_read=0.3)
    # aiohttp's clock may run on while a connection waits for its next use; 30 s are longer than that.
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(force_close=True))


EVILS = sorted(name for name in vars(Evil) if not name.startswith("_") and name != "begin")


@pytest.mark.parametrize("name", EVILS)
async def test_a_peer_that_is_none_costs_a_bounded_time_and_is_left_for_a_good_one(
    name: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MIB_S", 0.3)
    async with (
        impatient() as http,
        peer(getattr(Evil(made), name)) as evil,
        serving(tmp_path / "good") as good,
    ):
        began = time.monotonic()
        store = SegmentStore(tmp_path / "store")
        with pytest.raises(DataUnavailable, match=re.escape(evil)):
            await fetch(http, [evil], TOKEN, made.ref, store)
        with pytest.raises(DataUnavailable, match=re.escape(evil)):
            await read_files(http, [evil, evil], TOKEN, made.ref, [1])
        with pytest.raises(DataUnavailable):
            await verify(http, evil, TOKEN, made.id, 0.5)
        assert not store.has(made.id)
        assert time.monotonic() - began < 5
        await put(good.store, made)
        asked = [evil, *[good.address] * 8]  # on a busy machine a good one may be slow for once, too
        await fetch(http, asked, TOKEN, made.ref, store)
        assert await got(store, made.id) == made.packed
        _, data = await read_files(http, asked, TOKEN, made.ref, [1, 3])
        assert data == {1: made.files["0.npy"], 3: made.files["2.npy"]}


@pytest.mark.parametrize("name", ["silent", "no_http", "wordy", "redirecting", "refusing", "continuing"])
async def test_a_node_that_does_not_take_it_costs_a_bounded_time(
    name: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "ANSWER_S", 0.4)
    monkeypatch.setattr(segments, "PAUSE_S", 0.01)
    monkeypatch.setattr(bodies, "MIB_S", 0.3)

    async def refusing(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 507 Full\r\nContent-Length: 12\r\n\r\ndisk is full")

    answer = refusing if name == "refusing" else getattr(Evil(made), name)
    async with impatient() as http, peer(answer) as evil:
        began = time.monotonic()
        with pytest.raises(DataUnavailable, match=re.escape(evil)):
            await push(http, evil, TOKEN, made.directory, made.ref)
        assert time.monotonic() - began < 6


async def test_a_segment_of_another_size_than_the_manifest_says_is_refused(
    node: Serving, http: aiohttp.ClientSession, made: Made, tmp_path: Path
) -> None:
    await put(node.store, made)
    store = SegmentStore(tmp_path / "store")
    for size in (0, 1, made.ref.size - 1, made.ref.size * 2, 10**10):
        lie = SegmentRef(made.id, made.ref.rows, size)
        with pytest.raises(DataContradicts, match="expected"):
            await read_files(http, [node.address], TOKEN, lie, [0])
        if size < made.ref.size - 2**23 or size > made.ref.size:
            with pytest.raises(DataUnavailable, match="expected a segment of"):
                await fetch(http, [node.address], TOKEN, lie, store)


async def test_our_own_files_that_went_bad_are_not_sent(
    node: Serving, http: aiohttp.ClientSession, made: Made, tmp_path: Path
) -> None:
    shutil.copytree(made.directory, tmp_path / "copy")
    path = tmp_path / "copy/0.npy"
    data = bytearray(path.read_bytes())
    data[BLOCK + 77] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataDamaged, match=r"0\.npy: block 1"):
        await push(http, node.address, TOKEN, tmp_path / "copy", made.ref)
    assert not node.store.has(made.id)


async def test_a_restarted_node_goes_on_receiving(made: Made, http: aiohttp.ClientSession, tmp_path: Path) -> None:
    async with serving(tmp_path / "node") as node:
        stop = 2 * BLOCK + 1000
        assert not await node.store.receive(made.id, 0, len(made.packed), in_pieces(made.packed[:stop]))
    taken: list[int] = []

    async def count(size: int) -> None:
        taken.append(size)

    async with serving(tmp_path / "node") as node:
        assert await push(http, node.address, TOKEN, made.directory, made.ref, count)
        assert await got(node.store, made.id) == made.packed
    assert sum(taken) <= len(made.packed) - BLOCK


@pytest.mark.parametrize("how", ["push", "fetch"])
async def test_a_node_that_died_at_the_last_byte_needs_no_byte_more(
    how: str, node: Serving, made: Made, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """All of it had arrived, and was not made durable yet."""
    await push(http, node.address, TOKEN, made.directory, made.ref)
    former = SegmentStore(tmp_path / "dead")
    shutil.copytree(made.directory, tmp_path / "dead/segments.incoming" / made.id)
    assert not former.has(made.id)
    async with serving(tmp_path / "dead") as dead:
        if how == "push":
            await push(http, dead.address, TOKEN, made.directory, made.ref)
        else:
            await fetch(http, [node.address], TOKEN, made.ref, dead.store)
        assert await got(dead.store, made.id) == made.packed
        assert not list((tmp_path / "dead/segments.incoming").iterdir())


async def test_many_at_once_arrive(node: Serving, http: aiohttp.ClientSession, tmp_path: Path) -> None:
    every = [make(tmp_path / str(n), rows=3000, seed=n) for n in range(40)]
    await asyncio.gather(*(push(http, node.address, TOKEN, made.directory, made.ref) for made in every for _ in (1, 2)))
    assert node.store.ids() == {made.id for made in every}
    for made in every:
        assert await got(node.store, made.id) == made.packed
    assert json.loads(every[0].files["segment.json"])["rows"] == 3000


async def test_a_copy_that_rotted_is_taken_anew_from_who_sends_it(
    node: Serving, http: aiohttp.ClientSession, made: Made
) -> None:
    """Who is told that it is there counts it as a good copy."""
    await put(node.store, made)
    path = node.store.path(made.id) / "0.npy"
    data = bytearray(path.read_bytes())
    data[BLOCK // 2] ^= 1
    path.write_bytes(data)
    assert await push(http, node.address, TOKEN, made.directory, made.ref)
    assert await got(node.store, made.id) == made.packed


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "no.such.host.invalid"])
async def test_a_name_that_no_host_can_have_is_a_node_that_is_not_there(
    node: Serving, http: aiohttp.ClientSession, made: Made, tmp_path: Path, host: str
) -> None:
    address = f"http://{host}:80"
    with pytest.raises(DataUnavailable, match=re.escape(host[:20])):
        await push(http, address, TOKEN, made.directory, made.ref)
    with pytest.raises(DataUnavailable):
        await verify(http, address, TOKEN, made.id, 10)
    await put(node.store, made)
    other = SegmentStore(tmp_path / "other")
    await fetch(http, [address, node.address], TOKEN, made.ref, other)
    assert await got(other, made.id) == made.packed


async def test_who_connects_without_a_token_takes_no_more_than_his_share_of_our_files(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkd.net.server.connections_max", lambda: 5)
    async with serving(tmp_path / "node") as node, session() as http:
        host, port = node.address.removeprefix("http://").split(":")
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(9)]
        for _, writer in idle:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: ")
        with pytest.raises(aiohttp.ClientError):
            await http.get(f"{node.address}/healthz")
        ended = [asyncio.create_task(reader.read()) for reader, _ in idle]
        done, _ = await asyncio.wait(ended, timeout=0.5)
        assert len(done) == 4
        for _, writer in idle:
            writer.close()
        await asyncio.wait(ended, timeout=5)
        assert await push(http, node.address, TOKEN, made.directory, made.ref)
