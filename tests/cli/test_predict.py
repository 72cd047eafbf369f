"""`zkd predict` on a cluster of two nodes."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("m", "d"), 2, "expected --out NAME, or --metrics, or both"),
        (("m", "d", "--metrics", "--replace"), 2, "without --out nothing is made that has replace"),
        (("nobody", "d", "--out", "o"), 3, "neither a registered model nor a training job 'nobody'"),
        (("./none.safetensors", "d", "--out", "o"), 2, "none.safetensors: No such file"),
    ],
)
def test_what_is_wrong_is_said(zkd: Zkd, args: tuple[str, ...], code: int, said: str) -> None:
    ran = zkd("predict", *args)
    assert ran.code == code
    assert said in ran.err
