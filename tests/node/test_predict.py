"""Models on datasets over three nodes: the bits of one process, all or nothing, clear words for what is wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from tests.node.conftest import Site
from tests.node.submitter import until
from zkd.client import Client
from zkd.client.dataset import Dataset
from zkd.daemon import Daemon
from zkd.jobs import Job, Summary
from zkd.models import outputs
from zkd.models.model import Model
from zkd.models.rows import Scaler
from zkd.models.trained import Trained

NAMES = ("a", "b", "c")
RNG = np.random.default_rng(5)
ROWS = 4_000
TABLE: dict[str, np.ndarray[Any, Any]] = {
    "id": RNG.permutation(10 * ROWS)[:ROWS],
    "x": RNG.standard_normal((ROWS, 4)),
    "age": RNG.integers(0, 90, ROWS).astype(np.int16),
    "kind": np.array(["bee", "ant", "wasp"])[RNG.integers(0, 3, ROWS)],
    "rows": RNG.standard_normal(ROWS),  # the name that the numbers of rows go by where no column has it
}
TABLE["y"] = 2.0 * TABLE["x"][:, 0] - 0.1 * TABLE["age"] + RNG.standard_normal(ROWS)
TABLE["won"] = (TABLE["y"] > TABLE["y"].mean()).astype(np.int64)
FEATURES = (("x", 4), ("age", 0), ("rows", 0))


def trained(kind: Any, target: str, classes: tuple[Any, ...] = (), **shape: Any) -> Trained:
    rng = np.random.default_rng(0)
    model = Model(kind, 6, **shape)
    scaler = Scaler(rng.standard_normal(6), rng.uniform(0.5, 2.0, 6))
    return Trained(
        model,
        0.3 * rng.standard_normal(model.size),
        scaler,
        np.zeros(6),
        classes,
        FEATURES,
        target,
        "",
        Job(model=kind, dataset=""),
        Summary(reason="made", rounds=0),
        0,
        0,
        0.0,
        (),
        (),
    )


MODELS = {
    "linear": trained("linear", "y"),
    "logistic": trained("logistic", "won", (0, 1)),
    "softmax": trained("softmax", "kind", ("ant", "bee", "wasp"), outputs=3),
    "svm": trained("svm", "won", (0, 1)),
    "mlp": trained("mlp", "kind", ("ant", "bee", "wasp"), outputs=3, hidden=(8,)),
}


@pytest.fixture
async def client(site: Site) -> AsyncIterator[Client]:
    async with Client(site.hosts, site.root) as client:
        yield client


async def nodes(site: Site, *names: str) -> dict[str, Daemon]:
    started = {name: await site.node(name) for name in names or NAMES}

    async def are_in_the_ring() -> bool:
        return all(
            started.keys() <= {keeper.node for keeper in daemon.view.atlas.ring.keepers} for daemon in started.values()
        )

    await until(are_in_the_ring, 10.0, "all nodes keep data, and know it")
    return started


async def here(model: Trained, source: Dataset, **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The same arithmetic in this process, part by part, in the order in which the rows were written."""
    whole: dict[str, np.ndarray[Any, Any]] = {}
    for number in range(source.parts):
        part = await source.part(number)
        said = outputs.outputs_of(model, part.columns, outputs.names_of(model), **options)
        for name, array in said.items():
            column = whole.setdefault(name, np.empty((source.rows, *array.shape[1:]), array.dtype))
            column[part.rows] = array
    return whole


async def test_predictions_are_a_dataset_with_the_bits_of_one_process(site: Site, client: Client) -> None:
    await nodes(site)
    source = await client.datasets.put("flowers", TABLE, key="id", parts=16, replicas=2)
    for name, model in MODELS.items():
        out = await client.predict(model, "flowers", out=f"flowers-{name}")
        assert (out.parts, out.rows, out.manifest.key, out.manifest.replicas) == (16, ROWS, "id", 2)
        expected = await here(model, source)
        read = await out.read()
        assert list(read) == ["id", *expected]
        np.testing.assert_array_equal(read["id"], TABLE["id"])
        for column, values in expected.items():
            assert read[column].dtype == values.dtype, (name, column)
            np.testing.assert_array_equal(read[column], values, err_msg=f"{name} {column}")
        whole = model.predictions(TABLE)
        np.testing.assert_allclose(read["score"].reshape(ROWS, -1), whole.scores, rtol=1e-12, atol=1e-12)
        row = await out.get(int(TABLE["id"][17]))
        assert row["prediction"].tolist() == read["prediction"][17:18].tolist()
        assert (await out.verify()).bad == []
        assert (await out.stat()).health == "full"
