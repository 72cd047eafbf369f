"""Rows that workers make: taken in by their node when asked for, brought by others, and never believed unseen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from tests.node.conftest import Site
from tests.node.test_predict import TABLE
from zkd.client import Client
from zkd.daemon import Daemon
from zkd.errors import TaskFailed
from zkd.manifests import SegmentRef
from zkd.net.bringing import SourceLost, bring

MISCHIEF = """
import zkd
from zkd.kernels import Rows, current_task

@zkd.kernel
def doubled(x):
    return Rows({"twice": 2 * x, "row": current_task().numbers()}, {"sum": float(x.sum())})

@zkd.kernel
def too_few(x):
    return Rows({"x": x[1:]})
"""


@pytest.fixture
async def client(site: Site, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    (site.directory / "making.py").write_text(MISCHIEF)
    monkeypatch.syspath_prepend(site.directory)
    async with Client(site.hosts, site.root) as client:
        yield client


async def made(client: Client, part: int = 0) -> tuple[SegmentRef, str]:
    value, node = await client._calls.on_part("doubled", "flowers@1", part, columns=["y"])
    assert node is not None
    return SegmentRef(*value["segment"]), node


def place(daemon: Daemon, ref: SegmentRef) -> Path:
    return daemon._segments.made / ref.id


async def test_rows_are_brought_from_who_made_them_and_nothing_bad_is_taken(site: Site, client: Client) -> None:
    modules = ["mischief", "making"]
    daemons = {name: await site.node(name, workers__modules=modules) for name in ("a", "b")}
    await nodes_know(client, 2)
    await client.datasets.put("flowers", {"y": TABLE["y"]}, parts=4, replicas=2)
    token = (await client.read(client.paths.token)).data.decode()
    addresses = {name: str(node.address) for name, node in (await client.nodes()).items()}
    async with aiohttp.ClientSession() as http:
        ref, maker = await made(client)
        other = "b" if maker == "a" else "a"
        stores = {name: daemon._segments for name, daemon in daemons.items()}
        assert not stores[maker].has(ref.id), "nobody has asked for it"
        with pytest.raises(SourceLost, match="no worker of this node made"):
            await bring(http, addresses[other], token, ref, [])
        with pytest.raises(SourceLost, match="cannot be fetched"):
            await bring(http, addresses[other], token, ref, [maker, "nobody"])
        await asyncio.gather(*(bring(http, addresses[maker], token, ref, []) for _ in range(4)))
        await bring(http, addresses[other], token, ref, [maker])
        await bring(http, addresses[other], token, ref, [])
        for store in stores.values():
            assert await store.verify(ref.id)
            found = np.load(store.path(ref.id) / "0.npy")
            np.testing.assert_array_equal(found, 2 * TABLE["y"][np.load(store.path(ref.id) / "rows.npy")])
            np.testing.assert_array_equal(
                np.load(store.path(ref.id) / "1.npy"), np.load(store.path(ref.id) / "rows.npy")
            )
        assert (await made(client))[0] == ref, "the same rows are the same segment"

        ref, maker = await made(client, 1)
        column = place(daemons[maker], ref) / "0.npy"
        column.write_bytes(column.read_bytes()[:-1] + b"?")
        with pytest.raises(SourceLost):
            await bring(http, addresses[maker], token, ref, [])
        assert not stores[maker].has(ref.id), "what was written to is not taken"
        assert (await made(client, 1))[0] == ref

        url = f"{addresses['a']}/v1/segments/{ref.id}/bring"
        headers = {"Authorization": f"Bearer {token}"}
        for body, status in ((b"{", 400), (b'{"size": -1}', 400), (b"[]", 400), (b" " * 100_000, 413)):
            async with http.post(url, data=body, headers=headers) as answer:
                assert answer.status == status, body[:20]
        body = json.dumps({"size": 1, "from": ["http://127.0.0.1:1", "../a"]}).encode()
        async with http.post(url.replace(ref.id, "0" * 64), data=body, headers=headers) as answer:
            assert answer.status == 502, "names that no node can have"
        async with http.post(url, data=b'{"size": 1}') as answer:
            assert answer.status == 401
        async with http.post(f"{addresses['a']}/v1/segments/..%2f..%2fx/bring", data=b"{}", headers=headers) as answer:
            assert answer.status == 404
    with pytest.raises(TaskFailed, match="expected columns of the part's"):
        await client.map_parts("too_few", "flowers", columns=["y"])
    with pytest.raises(TaskFailed, match="for a part of a dataset only"):
        await client.run("too_few", [1.0, 2.0])


async def nodes_know(client: Client, count: int) -> None:
    async with asyncio.timeout(20.0):
        while await client.session.exists(client.paths.ring) is None:
            await asyncio.sleep(0.05)
        while len(json.loads((await client.read(client.paths.ring)).data)["keepers"]) < count:
            await asyncio.sleep(0.05)
