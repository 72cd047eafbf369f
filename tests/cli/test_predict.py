"""`zkd predict` on a cluster of two nodes."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.node.test_predict import MODELS, TABLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ran

    Zkd = Callable[..., Ran]


def test_a_dataset_is_predicted_and_the_model_judged(zkd: Zkd, tmp_path: Path) -> None:
    model, out = tmp_path / "won.safetensors", tmp_path / "out.npz"
    model.write_bytes(MODELS["logistic"].write())
    np.savez(tmp_path / "flowers.npz", **TABLE)
    assert (
        zkd("data", "put", str(tmp_path / "flowers.npz"), "--name", "flowers", "--key", "id", "--parts", "4").code == 0
    )
    try:
        ran = zkd("predict", str(model), "flowers", "--out", "won", "--columns", "prediction")
        assert (ran.code, ran.out, ran.err) == (0, "won@1: 4000 rows, 4 parts, 2 replicas\n", "")
        assert zkd("data", "get", "won", "-O", str(out)).code == 0
        with np.load(out) as read:
            assert read["id"].tolist() == TABLE["id"].tolist()
            assert (read["prediction"] == MODELS["logistic"].predict(TABLE)).mean() > 0.999
        ran = zkd("predict", str(model), "flowers", "--metrics", "--json")
        told = ran.json["metrics"]
        assert told["counted"] == 4000
        assert [line["feature"] for line in told["drift"]][:2] == ["x[0]", "x[1]"]
        assert "accuracy" in zkd("predict", str(model), "flowers", "--metrics").out
    finally:
        for name in ("flowers", "won"):
            zkd("data", "rm", name, "--yes")


def test_rows_from_here_are_answered_by_the_nodes(zkd: Zkd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["softmax"]
    file, table = tmp_path / "kinds.safetensors", tmp_path / "some.npz"
    file.write_bytes(model.write())
    some = {name: column[:1200] for name, column in TABLE.items()}
    np.savez(table, **some)
    labels = model.predict(some).tolist()
    objects = [
        json.dumps({"x": some["x"][row].tolist(), "age": int(some["age"][row]), "rows": float(some["rows"][row])})
        for row in range(3)
    ]
    patient = ("--deadline", "60")  # each node opens the model first
    try:
        assert zkd("model", "push", "kinds", str(file)).code == 0
        assert zkd("model", "alias", "kinds@live").code == 0
        ran = zkd("predict", "kinds@live", "--rows", str(table), "-o", "jsonl", *patient)
        assert ran.code == 0, ran.err
        lines = [json.loads(line) for line in ran.out.splitlines()]
        assert [line["prediction"] for line in lines] == labels
        assert {line["version"] for line in lines} == {1}
        ran = zkd(
            "predict", "kinds", "--row", objects[0], "--row", objects[1], "--want", "prediction", "--json", *patient
        )
        assert ran.json == [{"prediction": label, "version": 1} for label in labels[:2]]
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(objects).encode())))
        ran = zkd("predict", "kinds@1", "--rows", "-", "--want", "attributions", "--json", *patient)
        assert [len(line["attributions"]) for line in ran.json] == [6, 6, 6]
        ran = zkd("predict", "kinds@1", "--row", '{"x": 1}', *patient)
        assert (ran.code, "expected the features" in ran.err) == (2, True)
        ran = zkd("predict", "kinds@1", "--row", "[1]")
        assert (ran.code, "expected a JSON object" in ran.err) == (2, True)
    finally:
        zkd("model", "rm", "kinds", "--yes")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("m", "d"), 2, "expected --out NAME, or --metrics, or both"),
        (("m",), 2, "expected DATASET, --rows or --row"),
        (("m", "d", "--row", "{}"), 2, "expected one of DATASET, --rows and --row"),
        (("m", "d", "--out", "o", "--key", "k"), 2, "--want, --deadline and --key are for --rows and --row"),
        (("nobody@live", "--row", "{}"), 3, "no model nobody"),
        (("m", "d", "--metrics", "--replace"), 2, "without --out nothing is made that has replace"),
        (("nobody", "d", "--out", "o"), 3, "neither a registered model nor a training job 'nobody'"),
        (("./none.safetensors", "d", "--out", "o"), 2, "none.safetensors: No such file"),
    ],
)
def test_what_is_wrong_is_said(zkd: Zkd, args: tuple[str, ...], code: int, said: str) -> None:
    ran = zkd("predict", *args)
    assert ran.code == code
    assert said in ran.err
