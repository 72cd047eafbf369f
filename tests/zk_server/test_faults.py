"""The faults that tests of clients switch on do what they say, and end when they should."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.zk_server.raw_client import Closed, RawClient, encode
from zkd.zk.server import EmbeddedServer, Op


async def connected(server: EmbeddedServer) -> RawClient:
    client = RawClient(server.port)
    await asyncio.to_thread(client.connect)
    return client


async def ask(client: RawClient, *step: object) -> int:
    return (await asyncio.to_thread(client.ask, *encode(*step))).error  # type: ignore[arg-type]


async def test_cut_before_loses_the_request(embedded: EmbeddedServer) -> None:
    client, other = await connected(embedded), await connected(embedded)
    embedded.cut_before(Op.CREATE)
    with pytest.raises(Closed):
        await ask(client, "create", "/a", b"", 0)
    assert await ask(other, "exists", "/a") == -101
    assert await ask(other, "create", "/a", b"", 0) == 0  # once is once
    other.close()
    client.close()


async def test_cut_after_loses_only_the_reply(embedded: EmbeddedServer) -> None:
    client, other = await connected(embedded), await connected(embedded)
    assert await ask(other, "add_watch", "/", 1) == 0
    embedded.cut_after(Op.MULTI, times=2, path="/a")
    assert await ask(client, "multi", [("create", "/other", b"", 0)]) == 0
    client.post(*encode("exists", "/"))
    client.post(*encode("multi", [("create", "/a", b"", 0)]))
    client.post(*encode("exists", "/"))
    assert (await asyncio.to_thread(client.reply)).error == 0  # what came before is answered
    with pytest.raises(Closed):
        await asyncio.to_thread(client.reply)
    assert (await asyncio.to_thread(other.await_event)).path == "/other"
    assert (await asyncio.to_thread(other.await_event)).path == "/a"
    again = RawClient(embedded.port)
    await asyncio.to_thread(again.connect, 10_000, client.session_id, client.password)
    assert again.session_id == client.session_id
    with pytest.raises(Closed):
        await ask(again, "multi", [("set", "/a", b"", 0)])
    assert await ask(other, "set", "/a", b"", 1) == 0
    for each in (client, other, again):
        each.close()


async def test_expire_ends_a_session_at_once(embedded: EmbeddedServer) -> None:
    client, other = await connected(embedded), await connected(embedded)
    await ask(client, "create", "/e", b"", 1)
    await ask(other, "exists", "/e", True)
    embedded.expire(client.session_id)
    assert (await asyncio.to_thread(other.await_event)).kind == 2
    await asyncio.to_thread(client.await_close)
    again = RawClient(embedded.port)
    await asyncio.to_thread(again.connect, 10_000, client.session_id, client.password)
    assert again.session_id == 0
    for each in (client, other, again):
        each.close()


async def test_delayed_answers_come_late_and_in_order(embedded: EmbeddedServer) -> None:
    client = await connected(embedded)
    embedded.delay(0.1)
    begun = time.monotonic()
    xids = [client.post(*encode("exists", "/")) for _ in range(5)]
    assert (await asyncio.to_thread(client.reply)).xid == xids[0]
    assert time.monotonic() - begun >= 0.099
    embedded.delay(0)
    xids.append(client.post(*encode("exists", "/")))
    assert [(await asyncio.to_thread(client.reply)).xid for _ in xids[1:]] == xids[1:]
    client.close()


async def test_partition_hides_the_server_until_it_heals(embedded: EmbeddedServer) -> None:
    inside, outside = await connected(embedded), await connected(embedded)
    await ask(inside, "add_watch", "/", 1)
    embedded.partition(inside.session_id)
    inside.post(*encode("create", "/late", b"", 0))
    assert await ask(outside, "create", "/a", b"", 0) == 0
    assert await ask(outside, "exists", "/late") == -101
    inside.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(inside.reply)
    inside.socket.settimeout(10)
    embedded.heal()
    assert (await asyncio.to_thread(inside.reply)).error == 0
    assert [event.path for event in inside.take_events()] == ["/a", "/late"]
    embedded.partition()
    late = RawClient(embedded.port, timeout_s=0.05)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(late.connect)
    late.socket.settimeout(10)
    embedded.heal()
    assert (await asyncio.to_thread(late.frame))[:4] == bytes(4)
    for each in (inside, outside, late):
        each.close()


async def test_partitioned_session_expires(zk_root: str) -> None:
    async with EmbeddedServer(tick_s=0.05) as server:
        inside, outside = RawClient(server.port), await connected(server)
        await asyncio.to_thread(inside.connect, 200)
        await ask(inside, "create", zk_root, b"", 1)
        await ask(outside, "exists", zk_root, True)
        server.partition(inside.session_id)
        assert (await asyncio.to_thread(outside.await_event)).kind == 2
        server.heal()
        await asyncio.to_thread(inside.await_close)
        inside.close()
        outside.close()


async def test_refusing_server_cuts_all_and_takes_none(embedded: EmbeddedServer) -> None:
    client = await connected(embedded)
    embedded.refuse()
    await asyncio.to_thread(client.await_close)
    refused = RawClient(embedded.port)
    with pytest.raises(Closed):
        await asyncio.to_thread(refused.connect)
    refused.close()
    embedded.refuse(False)
    again = await connected(embedded)
    assert await ask(again, "exists", "/") == 0
    again.close()
    client.close()
