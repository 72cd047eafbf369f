"""Tasks on datasets over three nodes: where the parts are, as numpy says, whatever happens to nodes and files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from tests.node.conftest import Site
from zkd.client import Client
from zkd.client.dataset import Dataset
from zkd.daemon import Daemon

REAL: dict[str, Callable[[], Any]] = {
    "digits": lambda: load_digits(return_X_y=True),
    "breast_cancer": lambda: load_breast_cancer(return_X_y=True),
    "diabetes": lambda: load_diabetes(return_X_y=True),
}


@pytest.fixture
async def client(site: Site) -> AsyncIterator[Client]:
    async with Client(site.hosts, site.root) as client:
        yield client


async def three(site: Site) -> dict[str, Daemon]:
    return {name: await site.node(name) for name in ("a", "b", "c")}


async def kept(client: Client, name: str, parts: int = 8, replicas: int = 2) -> tuple[Any, Any, Dataset]:
    x, y = REAL[name]()
    made = await client.datasets.put(name, {"x": x, "y": y}, parts=parts, replicas=replicas, label="y")
    return x, y, made


@pytest.mark.parametrize("name", REAL)
async def test_moments_by_parts_are_numpys(site: Site, client: Client, name: str) -> None:
    await three(site)
    x, y, made = await kept(client, name)
    moments = await client.map_parts("moments", made, columns=["x", "y"], cross=True, combine="combine_moments")
    both = np.column_stack([x, y])
    assert moments["count"] == len(x)
    np.testing.assert_allclose(moments["mean"], both.mean(axis=0), rtol=1e-12, atol=1e-15)
    covariance = await client.map_parts("moments", name, columns=["x", "y"], cross=True, combine="combine_covariance")
    expected = np.cov(both, rowvar=False)
    spread = np.sqrt(np.diagonal(expected))
    assert (np.abs(covariance - expected) <= 1e-12 * np.outer(spread, spread)).all()
