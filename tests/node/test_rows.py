"""Rows by key from real nodes: over HTTP from the node that has the part, and through the client."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import aiohttp
import numpy as np
import pytest

from tests.node.conftest import Site
from tests.node.depot import Depot
from zkd.arrays import from_json
from zkd.client import Client
from zkd.client.dataset import Dataset
from zkd.core.placement import hash_key, part_of
from zkd.daemon import Daemon
from zkd.errors import DatasetNotFound


def table(rows: int = 5_000, seed: int = 3) -> dict[str, Any]:
    dice = np.random.default_rng(seed)
    ids = dice.integers(-1_000, 1_000, rows)
    return {"id": ids, "x": dice.normal(size=(rows, 4)), "w": np.array([f"w{each}" for each in ids])}


async def put(site: Site, *names: str, rows: int = 5_000) -> tuple[dict[str, Daemon], Client, Dataset, dict[str, Any]]:
    daemons = {name: await site.node(name, 1, data__grace_s=1.0) for name in names}
    depot = Depot(site.user, site.directory, lambda node: site.directory / node)
    await depot.ringed(*names)
    client = await site.stack.enter_async_context(Client(site.hosts, root=site.root))
    written = table(rows)
    return daemons, client, await client.datasets.put("d", written, key="id", parts=8, replicas=2), written


async def asked(site: Site, node: str, path: str, token: str | None = None) -> tuple[int, Any]:
    depot = Depot(site.user, site.directory, lambda node: site.directory / node)
    token = await depot.token() if token is None else token
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as http, http.get(await depot.address(node) + path) as answer:
        return answer.status, from_json(await answer.read()) if answer.content_type == "application/json" else None


async def test_the_node_with_the_part_answers_and_the_others_say_who_has_it(site: Site) -> None:
    _, _, dataset, written = await put(site, "a", "b", "c")
    for key in (0, 7, -999, 5_000_000):
        part = part_of(hash_key(key), 8)
        homes = (await dataset.locate(key)).nodes
        expected = np.flatnonzero(written["id"] == key)
        for node in "abc":
            status, answer = await asked(site, node, f"/v1/datasets/d/1/rows?key={key}&type=int")
            if node in homes:
                assert status == 200
                assert answer["part"] == part
                assert np.array_equal(answer["rows"], expected)
                assert np.array_equal(answer["columns"]["x"], written["x"][expected])
                assert answer["columns"]["w"].tolist() == written["w"][expected].tolist()
            else:
                assert status == 421
                assert (answer["part"], sorted(answer["homes"])) == (part, sorted(homes))
                assert set(answer["holders"]) <= set(homes)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("d/1/rows", 400),
        ("d/1/rows?key=7", 400),
        ("d/1/rows?key=7&type=text", 400),
        ("d/1/rows?key=seven&type=int", 400),
        ("d/1/rows?key=7&type=str", 400),
        ("d/1/rows?key=7&type=int&columns=absent", 400),
        ("d/1/rows?key=%00%ff&type=int", 400),
        ("d/9/rows?key=7&type=int", 404),
        ("d/0/rows?key=7&type=int", 404),
        ("d/x/rows?key=7&type=int", 404),
        ("absent/1/rows?key=7&type=int", 404),
        ("..%2f..%2fcontrol/1/rows?key=7&type=int", 404),
        ("d/99999999999999999999/rows?key=7&type=int", 404),
    ],
)
async def test_what_is_asked_wrongly_is_refused_in_words(cut_site: Site, path: str, status: int) -> None:
    await put(cut_site, "a", "b", rows=100)
    assert (await asked(cut_site, "a", f"/v1/datasets/{path}"))[0] == status
    assert (await asked(cut_site, "a", f"/v1/datasets/{path}", token="guessed"))[0] in (401, 404)


async def test_the_client_finds_rows_by_key_whoever_is_gone_or_damaged(site: Site) -> None:
    _, _, dataset, written = await put(site, "a", "b", "c")

    async def check() -> None:
        for key in range(-20, 20):
            expected = written["x"][written["id"] == key]
            if not len(expected):
                with pytest.raises(DatasetNotFound):
                    await dataset.get(key)
                continue
            assert np.array_equal((await dataset.get(key, columns=["x"]))["x"], expected)

    await check()
    for segment in (site.directory / "a" / "segments").iterdir():  # all of one node's copies rot
        path = segment / "1.npy"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    await check()
    shutil.rmtree(site.directory / "b" / "segments.index")
    await check()


async def test_many_ask_at_once_and_each_gets_his_own(site: Site) -> None:
    daemons, _, dataset, written = await put(site, "a", "b")
    keys = list(range(-200, 200))
    keys = [key for key in keys if (written["id"] == key).any()]
    found = await asyncio.gather(*(dataset.get(key, columns=["w"]) for key in keys))
    for key, columns in zip(keys, found, strict=True):
        assert columns["w"].tolist() == [f"w{key}"] * int((written["id"] == key).sum())
    made = [line for daemon in daemons.values() for line in [daemon.keeping.lookup._open]]
    assert all(len(opened) <= 8 for opened in made)
