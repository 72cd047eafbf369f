"""Where a key is: the client, every daemon and a second implementation say the same, as nodes come and go."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tests.core.placement_twice import key_hash, part_number, placed
from tests.node.conftest import Site
from tests.node.submitter import until
from tests.node.test_ring import ring_of, stands
from zkd.client import Client
from zkd.client.dataset import Dataset
from zkd.daemon import Daemon

KEYS: dict[str, list[Any]] = {
    "ints": [0, 1, -1, 2**62, -(2**63), *random.Random(1).sample(range(10**12), 100)],
    "words": ["", "a", "Zürich", "数", *(f"user-{n}" for n in range(100))],
    "floats": [0.0, 0.5, -1e300, float("inf"), *np.random.default_rng(1).normal(size=100).tolist()],
}


async def agree(site: Site, daemons: list[Daemon], dataset: Dataset, keys: list[Any]) -> None:
    ring = await ring_of(site.user)
    assert ring is not None
    second = placed(dataset.name, dataset.parts, dataset.manifest.replicas, ring.keepers, 0.1)

    async def have_seen_it() -> bool:
        return all(
            each.view.is_settled and each.view.atlas.ring == ring and each.view.atlas.manifest(dataset.name) is not None
            for each in daemons
        )

    await until(have_seen_it, 8.0, "every daemon knows the ring and the dataset")
    for key in keys:
        part = part_number(key_hash(key), dataset.parts)
        location = await dataset.locate(key)
        assert (location.part, location.nodes) == (part, second[part]), key
    for daemon in daemons:
        homes = [daemon.view.atlas.homes(dataset.name, dataset.version, part) for part in range(dataset.parts)]
        assert homes == second, daemon.name


@pytest.mark.parametrize("kind", KEYS)
async def test_client_daemons_and_a_second_implementation_agree(site: Site, kind: str) -> None:
    keys = KEYS[kind]
    daemons = [
        await site.node("a", node__zone="r1", data__weight=2.0),
        await site.node("b", node__zone="r2"),
        await site.node("c", node__zone="r1"),
    ]
    await stands(site.user, "a b c")
    async with Client(site.hosts, site.root) as client:
        values = np.array(keys)
        dataset = await client.datasets.put(kind, {"key": values, "n": np.arange(len(keys))}, key="key", parts=64)
        await agree(site, daemons, dataset, keys)
        for n in (0, 1, 2, 50):
            assert (await dataset.get(keys[n]))["n"].tolist() == [n]
        daemons.append(await site.node("d", node__zone="r3", data__weight=0.5))
        await stands(site.user, "a b c d")
        await agree(site, daemons, await client.datasets.open(kind), keys)
        await site.user.set_state("b", "draining")
        await stands(site.user, "a c d")
        await agree(site, daemons, await client.datasets.open(kind), keys)
