"""Models on datasets over three nodes: the bits of one process, all or nothing, clear words for what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.node.conftest import Site
from tests.node.submitter import until
from zkd.client import Client
from zkd.client.dataset import Dataset
from zkd.daemon import Daemon
from zkd.errors import (
    BadModel,
    BadRows,
    BadTraining,
    DatasetExists,
    DatasetNotFound,
    DataUnavailable,
    ModelNotFound,
)
from zkd.jobs import Job, Summary
from zkd.models import evaluation, outputs
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
    source = await client.datasets.put("flowers", TABLE, key="id", parts=4, replicas=2)
    for name, model in MODELS.items():
        out = await client.predict(model, "flowers", out=f"flowers-{name}")
        assert (out.parts, out.rows, out.manifest.key, out.manifest.replicas) == (4, ROWS, "id", 2)
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
        await full(out)


async def full(dataset: Dataset) -> None:
    """Until its nodes have said what they hold: both copies are durable before, and said to be a little later."""

    async def is_full() -> bool:
        return (await dataset.stat()).health == "full"

    await until(is_full, 30.0, f"{dataset.name} is full")


async def test_the_same_again_is_what_is_there_and_another_needs_to_be_asked_for(site: Site, client: Client) -> None:
    await nodes(site, "a", "b")
    await client.datasets.put("flowers", TABLE, parts=4)
    await client.models.push("m", MODELS["linear"])
    await client.models.push("m", MODELS["softmax"])
    await client.models.alias("m@live", 1)
    first = await client.predict("m@live", "flowers", out="said")
    assert first.manifest.origin is not None
    assert (first.manifest.origin.dataset, first.manifest.origin.name) == ("flowers@1", "m@1")
    done = len(await client.results())
    again = await client.predict("m@1", "flowers@1", out="said")
    assert (again.version, again.segments, len(await client.results())) == (1, first.segments, done)
    for other in ({"model": "m@2"}, {"columns": ["score"]}, {"missing": "propagate"}):
        with pytest.raises(DatasetExists, match="another dataset said"):
            await client.predict(**{"model": "m@live", "dataset": "flowers", "out": "said", **other})
    other_model = await client.predict("m@2", "flowers", out="said", replace=True, columns=["prediction"])
    assert (other_model.version, [column.name for column in other_model.columns]) == (2, ["prediction"])
    assert set((await other_model.read())["prediction"].tolist()) <= {"ant", "bee", "wasp"}
    # The same name and number, and other rows: nothing of it is taken for the former.
    await client.datasets.rm("flowers")
    await client.datasets.put("flowers", {name: column[::-1] for name, column in TABLE.items()}, parts=4)
    with pytest.raises(DatasetExists):
        await client.predict("m@2", "flowers", out="said", columns=["prediction"])
    whole = await client.predict("m@1", "flowers", out="anew")
    np.testing.assert_allclose((await whole.read())["score"], MODELS["linear"].scores(TABLE)[::-1, 0], rtol=1e-12)


async def test_an_interrupted_run_leaves_nothing_to_see_and_is_done_again(site: Site, client: Client) -> None:
    await nodes(site, "a", "b")
    await client.datasets.put("flowers", TABLE, parts=32)
    begun = asyncio.Event()
    running = asyncio.create_task(
        client.predict(MODELS["mlp"], "flowers", out="said", progress=lambda now: now.parts_done > 1 and begun.set())
    )
    await asyncio.wait_for(begun.wait(), 10.0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert "said" not in await client.datasets.list()
    await until(lambda: nothing(client), 10.0, "its tasks are cancelled")
    out = await client.predict(MODELS["mlp"], "flowers", out="said")
    assert out.version == 1
    assert (await out.verify()).bad == []


async def nothing(client: Client) -> bool:
    return await client.tasks() == []


async def test_rows_without_a_score_are_refused_by_number_or_go_through(site: Site, client: Client) -> None:
    await nodes(site, "a")
    table = {name: column.copy() for name, column in TABLE.items()}
    table["x"][[7, 3100], 2] = np.nan
    table["rows"][9] = np.inf
    source = await client.datasets.put("holes", table, parts=4)
    for model in (MODELS["linear"], MODELS["softmax"]):
        with pytest.raises(BadRows, match=r"rows?: \d+ rows? with a missing or infinite number in .*: \d+"):
            await client.predict(model, "holes", out="said")
    assert "said" not in await client.datasets.list()
    bad = [7, 9, 3100]
    for name in ("linear", "logistic", "softmax", "mlp"):
        out = await client.predict(MODELS[name], "holes", out=f"{name}-said", missing="propagate")
        read = await out.read()
        expected = await here(MODELS[name], source, missing="propagate")
        for column, values in expected.items():
            np.testing.assert_array_equal(read[column], values)
        prediction = read["prediction"][bad]
        assert all(each == "" for each in prediction) if prediction.dtype.kind == "U" else np.isnan(prediction).all()
        known = np.delete(np.arange(ROWS), [7, 9, 3100])
        assert np.isnan(read["score"][bad]).all()
        assert not np.isnan(read["score"][known]).any()
        if name != "linear":
            assert read["prediction"][known].tolist() == MODELS[name].predict(TABLE)[known].tolist()


async def test_what_does_not_fit_is_said_before_anything_is_done(site: Site, client: Client, tmp_path: Path) -> None:
    await nodes(site, "a")
    put, linear = client.datasets.put, MODELS["linear"]
    await put("flowers", TABLE, parts=2)
    await put("less", {"x": TABLE["x"], "y": TABLE["y"]}, parts=2)
    await put("wide", TABLE | {"x": TABLE["x"][:, :3]}, parts=2)
    await put("text", TABLE | {"age": TABLE["age"].astype("U3")}, parts=2)
    await put("scored", TABLE | {"score": TABLE["id"]}, key="score", parts=2)
    for dataset, match in (
        ("less", "expected the columns age, rows, too; less@1 has x, y"),
        ("wide", r"expected 4 numbers a row in 'x', got the shape \[3\]"),
        ("text", "expected numbers in 'age', got <U"),
    ):
        with pytest.raises(BadTraining, match=match):
            await client.predict(linear, dataset, out="said")
    with pytest.raises(BadTraining, match="gives prediction, score; got 'probabilities'"):
        await client.predict(linear, "flowers", out="said", columns=["probabilities"])
    with pytest.raises(BadRows, match="give a prefix"):
        await client.predict(linear, "scored", out="said")
    made = await client.predict(linear, "scored", out="prefixed", prefix="model_", columns=["score"])
    assert [column.name for column in made.columns] == ["score", "model_score"]
    with pytest.raises(BadRows, match="expected refuse or propagate"):
        await client.predict(linear, "flowers", out="said", missing="drop")
    with pytest.raises(BadRows, match="expected 1 to 16"):
        await client.predict(linear, "flowers", out="said", replicas=0)
    with pytest.raises(BadRows, match="name"):
        await client.predict(linear, "flowers", out="../said")
    with pytest.raises(DataUnavailable, match="2 replicas need 2 nodes"):
        await client.predict(linear, "flowers", out="said", replicas=2)
    await client.models.push("m", linear)
    for model in ("nobody", "m@7", "m@live"):
        with pytest.raises(ModelNotFound):
            await client.predict(model, "flowers", out="said")
    for dataset in ("nothing", "flowers@9"):
        with pytest.raises(DatasetNotFound):
            await client.predict("m", dataset, out="said")
    for name, data in (("bad.safetensors", linear.write()[:-8]), ("bad.pkl", b"\x80\x04\x95")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadModel):
            await client.predict(tmp_path / name, "flowers", out="said")
    (tmp_path / "m.safetensors").write_bytes(linear.write())
    by_path = await client.predict(str(tmp_path / "m.safetensors"), "flowers", out="said")
    assert by_path.rows == ROWS
    assert await client.tasks() == []


async def test_metrics_are_those_of_all_rows_in_one_place(site: Site, client: Client) -> None:
    from sklearn import metrics

    await nodes(site, "a", "b")
    await client.datasets.put("flowers", TABLE, key="id", parts=4)
    told = await client.evaluate(MODELS["logistic"], "flowers")
    y, p = TABLE["won"], MODELS["logistic"].probabilities(TABLE)
    assert (told["rows"], told["counted"], told["unscored"], told["unknown"]) == (ROWS, ROWS, 0, 0)
    assert told["accuracy"] == metrics.accuracy_score(y, MODELS["logistic"].predict(TABLE))
    assert told["log_loss"] == pytest.approx(metrics.log_loss(y, p), rel=1e-9)
    assert told["brier"] == pytest.approx(2 * metrics.brier_score_loss(y, p[:, 1]), rel=1e-9)
    assert abs(told["auc"] - metrics.roc_auc_score(y, p[:, 1])) <= told["auc_error"] + 1e-12 < 0.01
    assert told["confusion"] == metrics.confusion_matrix(y, MODELS["logistic"].predict(TABLE)).tolist()
    assert sum(line["rows"] for line in told["calibration"]) == ROWS
    scaler = MODELS["logistic"].scaler
    assert scaler is not None
    x = np.column_stack([TABLE["x"], TABLE["age"], TABLE["rows"]])
    for place, line in enumerate(told["drift"]):
        assert line["shift"] == pytest.approx((x[:, place].mean() - scaler.mean[place]) / scaler.scale[place])
        assert line["spread"] == pytest.approx(x[:, place].std() / scaler.scale[place])
    told = await client.evaluate(MODELS["softmax"], "flowers")
    p = MODELS["softmax"].probabilities(TABLE)
    assert told["log_loss"] == pytest.approx(
        metrics.log_loss(TABLE["kind"], p, labels=["ant", "bee", "wasp"]), rel=1e-9
    )
    told = await client.evaluate(MODELS["linear"], "flowers")
    said = MODELS["linear"].predict(TABLE)
    assert told["rmse"] == pytest.approx(metrics.root_mean_squared_error(TABLE["y"], said))
    assert told["r2"] == pytest.approx(metrics.r2_score(TABLE["y"], said))
    await client.datasets.put("blind", {name: TABLE[name] for name in ("x", "age", "rows")}, parts=2)
    with pytest.raises(BadTraining, match="expected the column 'y'"):
        await client.evaluate(MODELS["linear"], "blind")


def test_sums_of_parts_do_not_depend_on_how_parts_are_paired() -> None:
    model = MODELS["logistic"]
    target = TABLE["won"].astype(float)
    target[::50] = np.nan
    target[1::50] = 7.0
    table = TABLE | {"won": target}
    cuts = [0, 1, 5, 900, 900, 2500, ROWS]
    partials = [
        evaluation.evaluated(model, {name: column[a:b] for name, column in table.items()}, target[a:b])
        for a, b in pairwise(cuts)
    ]
    by_parts = evaluation.report(model, evaluation.combined(partials))
    whole = evaluation.report(model, evaluation.evaluated(model, table, target))
    assert (whole["missing"], whole["unknown"], whole["counted"]) == (80, 80, ROWS - 160)
    for name in ("accuracy", "confusion", "auc", "auc_error", "missing", "unknown"):
        assert by_parts[name] == whole[name]
    assert by_parts["log_loss"] == pytest.approx(whole["log_loss"], rel=1e-12)
