"""Who connects to a node and says nothing, or a letter now and then, is cut off; who works is not."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from tests.store.made import Made, make, put
from tests.store.serving import TOKEN, Serving, serving
from zkd.net import idle
from zkd.net.fetch import session

HALF = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "IDLE_S", 0.5)
    monkeypatch.setattr(idle, "LOOK_S", 0.1)


async def connect(node: Serving) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = node.address.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize("says", [b"", HALF, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + HALF])
async def test_who_sends_no_whole_head_is_cut_off(tmp_path: Path, says: bytes) -> None:
    async with serving(tmp_path) as node:
        guests = [await connect(node) for _ in range(20)]
        for _, writer in guests:
            writer.write(says)

        async def drip() -> None:
            while says:
                await asyncio.sleep(0.1)
                for _, writer in guests:
                    with suppress(ConnectionError):
                        writer.write(b"a")

        dripping = asyncio.ensure_future(drip())
        try:
            async with asyncio.timeout(5):
                for reader, _ in guests:
                    with suppress(ConnectionError):
                        said = await reader.read()
                        assert said.count(b"200 OK") == says.count(b"\r\n\r\n")
        finally:
            dripping.cancel()
        for _, writer in guests:
            writer.close()


async def test_who_reads_slowly_or_comes_again_is_not(tmp_path: Path) -> None:
    made: Made = make(tmp_path / "made", rows=400_000)
    async with serving(tmp_path / "node") as node, session() as http:
        await put(node.store, made)
        reader, writer = await connect(node)
        writer.write(
            f"GET /v1/segments/{made.id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        for _ in range(10):
            await asyncio.sleep(0.12)
            async with http.get(f"{node.address}/healthz") as answer:  # the same connection each time
                assert answer.status == 200
        got = 0
        while piece := await reader.read(1 << 20):
            got += len(piece)
            if got > len(made.packed):  # the head is before it
                break
        writer.close()
        assert got > len(made.packed) > 8 << 20
