"""`why` asks the leader and takes its words; when there are none, the tree's picture has to do."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

import zkd
from zkd import codec
from zkd.client import asking
from zkd.records import Leader, Node, Task
from zkd.zk import ensure_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zkd.zk.server import EmbeddedServer

TREE = "No node carries the labels planet=mars."
TOKEN = "s3cret"


class Ears:
    """What a leader was asked, and what it answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.status = 200
        self.text = "It waits for mars.\n"
        self.delay_s = 0.0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, request.headers.get("Authorization", "")))
        await asyncio.sleep(self.delay_s)
        return web.Response(text=self.text, status=self.status)


@pytest.fixture
async def ears() -> AsyncIterator[tuple[Ears, str]]:
    ears = Ears()
    app = web.Application()
    app.add_routes([web.get("/v1/why/{task}", ears.answer)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield ears, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def client(embedded: EmbeddedServer, ears: tuple[Ears, str]) -> AsyncIterator[zkd.Client]:
    """On a tree in which a leader is said to be at that address, and one task waits."""
    async with zkd.Client(embedded.connect_string) as client:
        paths, session = client.paths, client.session
        for path in paths.skeleton():
            await ensure_path(session, path)
        await session.create(paths.node("n1"), codec.encode(Node("n1", "1", 1, address=ears[1], kernels=["k"])))
        await session.create(paths.leader, codec.encode(Leader("n1", "1", 1)))
        await session.create(paths.token, TOKEN.encode())
        await session.create(paths.task("t"), codec.encode(Task("k", labels={"planet": "mars"})))
        yield client


async def test_the_leader_is_asked_and_believed(client: zkd.Client, ears: tuple[Ears, str]) -> None:
    assert await client.why("t") == "It waits for mars."
    assert ears[0].asked == [("/v1/why/t", f"Bearer {TOKEN}")]


@pytest.mark.parametrize("status", [401, 404, 409, 500])
async def test_a_leader_that_does_not_say_leaves_the_tree(
    client: zkd.Client, ears: tuple[Ears, str], status: int
) -> None:
    ears[0].status = status
    assert await client.why("t") == TREE


async def test_a_leader_that_hangs_costs_a_second(
    client: zkd.Client, ears: tuple[Ears, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LEADER_ANSWERS_S", 0.2)
    ears[0].delay_s = 5.0
    started = time.monotonic()
    assert await client.why("t") == TREE
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("missing", ["leader", "token", "node"])
async def test_without_leader_token_or_address_the_tree_has_to_do(client: zkd.Client, missing: str) -> None:
    paths = client.paths
    await client.session.delete({"leader": paths.leader, "token": paths.token, "node": paths.node("n1")}[missing], -1)
    words = {"leader": "nobody leads now", "token": TREE, "node": "No node is here"}[missing]
    assert words in await client.why("t")


async def test_what_has_ended_is_told_without_asking(client: zkd.Client, ears: tuple[Ears, str]) -> None:
    await client.session.create(client.paths.result("t"), b'{"status": "done", "node": "n1", "attempt": 1}')
    assert "It is done" in await client.why("t")
    assert ears[0].asked == []
