"""TLS of the data plane: who shows no certificate of the authority gets nothing, and nothing goes in the open."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import aiohttp
import numpy as np
import pytest

import zkd
from tests.faults.certificates import Authority
from tests.node.conftest import Site
from tests.node.submitter import until
from zkd import codec, errors
from zkd.daemon import Daemon
from zkd.net.fetch import session
from zkd.records import Node


def files_of(authority: Authority, name: str) -> dict[str, str]:
    """The settings of a node that shows a certificate of its own."""
    authority.client_context(name)
    directory = authority.directory
    return {"node__tls__ca": str(directory / "authority.pem"), "node__tls__cert": str(directory / f"{name}.pem")}


async def address_of(daemon: Daemon) -> str:
    record = codec.decode((await daemon.session.get(daemon._paths.node(daemon.name))).data, Node)
    assert record.address is not None
    return record.address


async def test_arguments_results_and_datasets_travel_encrypted(site: Site, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    a = await site.node("a", **files_of(authority, "node-a"))
    b = await site.node("b", **files_of(authority, "node-b"))
    assert {(await address_of(node)).partition("://")[0] for node in (a, b)} == {"https"}
    big = np.random.default_rng(1).normal(size=(500, 400))
    table = {"x": np.arange(30_000.0), "y": np.arange(30_000) % 7}
    async with zkd.Client(site.hosts, root=site.root, data_tls=authority.client_context("ann")) as client:
        for node in ("a", "b"):  # one has the argument, the other fetches it
            back = await client.options(node=node).run("identity", big)
            assert np.array_equal(back, big)

        async def both_keep() -> bool:
            return all(len(node.view.atlas.ring.keepers) == 2 for node in (a, b))

        await until(both_keep, 10.0, "both nodes are in the ring")
        await client.datasets.put("table", table, parts=4, replicas=2)
        read = await (await client.datasets.open("table")).read()
        assert np.array_equal(read["x"], table["x"])
        assert np.array_equal(read["y"], table["y"])


async def test_nodes_fetch_from_each_other_encrypted(site: Site, tmp_path: Path) -> None:
    """Parts move to a node that joins, and rows are found by key on any."""
    authority = Authority(tmp_path)
    a = await site.node("a", **files_of(authority, "node-a"))
    table = {"x": np.arange(20_000.0)}
    async with zkd.Client(site.hosts, root=site.root, data_tls=authority.client_context("ann")) as client:

        async def keeps() -> bool:
            return len(a.view.atlas.ring.keepers) == 1

        await until(keeps, 10.0, "the node is in the ring")
        dataset = await client.datasets.put("table", table, parts=16, replicas=1)
        b = await site.node("b", **files_of(authority, "node-b"))

        async def has_some() -> bool:
            return len(b._segments.ids()) > 2

        await until(has_some, 20.0, "parts have moved")
        assert all(await asyncio.gather(*(b._segments.verify(each) for each in b._segments.ids())))
        for key in range(0, 20_000, 1999):
            assert (await dataset.get(key))["x"] == [float(key)]
        assert (await dataset.verify()).bad == []


async def test_who_has_no_certificate_of_ours_gets_nothing(site: Site, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    daemon = await site.node("a", **files_of(authority, "node-a"))
    address = await address_of(daemon)
    bare = ssl.create_default_context(cafile=str(tmp_path / "authority.pem"))
    strange = other.client_context("eve", trusts=authority)
    suspicious = authority.client_context("ann", trusts=other)
    for tls in (bare, strange, suspicious):
        async with session(tls) as http:
            with pytest.raises(aiohttp.ClientError):
                await http.get(f"{address}/healthz")
    async with session() as http:
        with pytest.raises(aiohttp.ClientError):
            await http.get(address.replace("https", "http") + "/healthz")
    async with session(authority.client_context("ann")) as http, http.get(f"{address}/healthz") as answer:
        assert answer.status == 200
    async with zkd.Client(site.hosts, root=site.root) as client:
        with pytest.raises(errors.Unavailable, match="certificate"):
            await client.run("identity", np.zeros(100_000))


async def test_a_client_that_encrypts_sends_nothing_in_the_open(site: Site, tmp_path: Path) -> None:
    """Not even where the tree names a plain address: the token would go with it."""
    daemon = await site.node("a")
    assert (await address_of(daemon)).startswith("http://")
    context = Authority(tmp_path).client_context("ann")
    async with session(context) as http:
        with pytest.raises(aiohttp.NonHttpUrlClientError):
            await http.get(f"{await address_of(daemon)}/healthz")
    async with zkd.Client(site.hosts, root=site.root, data_tls=context) as client:
        with pytest.raises(errors.Unavailable):
            await client.run("identity", np.zeros(100_000))


async def test_without_an_authority_of_clients_the_token_is_enough(site: Site, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = files_of(authority, "node-a")
    daemon = await site.node("a", node__tls__cert=files["node__tls__cert"])
    trusting = ssl.create_default_context(cafile=files["node__tls__ca"])
    async with zkd.Client(site.hosts, root=site.root, data_tls=trusting) as client:
        big = np.arange(100_000.0)
        assert np.array_equal(await client.run("identity", big), big)
    assert (await address_of(daemon)).startswith("https://")
