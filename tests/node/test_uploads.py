"""Large arrays go ahead of their task over HTTP, and come whole to whichever node runs it."""

from __future__ import annotations

import urllib.error
import urllib.request

import numpy as np

import zkd
from tests.node.conftest import Site
from zkd import codec, records


async def test_a_large_array_arrives_bit_for_bit_wherever_the_task_runs(site: Site) -> None:
    await site.node("a")
    await site.node("b")
    big = np.random.default_rng(1).normal(size=(500, 400))  # 1.6 MB
    async with zkd.Client(site.hosts, root=site.root) as client:
        for node in ("a", "b"):
            back = await client.options(node=node).run("identity", big)
            assert np.array_equal(back, big)
            assert back.dtype == big.dtype
        both = await client.run("numpy.add", big, np.ones(400, np.float32))
        assert np.array_equal(both, big + np.float32(1))


async def test_one_array_named_twice_is_sent_once_and_found_within_lists(site: Site) -> None:
    daemon = await site.node()
    big = np.arange(200_000)
    async with zkd.Client(site.hosts, root=site.root) as client:
        total = await client.run("numpy.concatenate", [big, big])
    assert total.shape == (400_000,)
    assert len(list((daemon.settings.node.data_dir / "cache").iterdir())) == 1


async def test_who_does_not_know_the_token_sends_nothing(site: Site) -> None:
    import asyncio

    daemon = await site.node()
    entry = (await daemon.session.get(f"{site.root}/nodes/a")).data
    url = f"{codec.decode(entry, records.Node).address}/v1/blobs/{'0' * 64}?format=npy"

    def put(token: str) -> int:
        request = urllib.request.Request(url, b"x", {"Authorization": f"Bearer {token}"}, method="PUT")
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    assert await asyncio.to_thread(put, "guess") == 401
    token = (await daemon.session.get(f"{site.root}/control/token")).data.decode()
    assert await asyncio.to_thread(put, token) == 400  # known, and the bytes are not those of the digest
    assert not list((daemon.settings.node.data_dir / "cache").iterdir())
