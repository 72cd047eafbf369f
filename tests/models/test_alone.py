"""Scores of rows, each as if it were alone."""

from __future__ import annotations

import numpy as np
import pytest

from zkd.models import alone
from zkd.models.model import Model, first_parameters
from zkd.models.predict import attributions, predict
from zkd.models.rows import Scaler

MODELS = [
    Model("linear", 1),
    Model("linear", 50, intercept=False),
    Model("logistic", 101),
    Model("poisson", 7),
    Model("svm", 33),
    Model("softmax", 20, 3),
    Model("softmax", 65, 10),
    Model("mlp", 30, 1, (17,)),
    Model("mlp", 64, 10, (33, 9)),
]


def fitted(model: Model) -> tuple[np.ndarray, Scaler | None, np.ndarray]:
    """Parameters, a scaler for every other one, and rows."""
    rng = np.random.default_rng(model.size)
    w = first_parameters(model, seed=1) if model.kind == "mlp" else rng.standard_normal(model.size)
    scale = np.where(np.arange(model.features) % 7 == 3, np.inf, rng.uniform(0.5, 2.0, model.features))
    scaler = Scaler(rng.standard_normal(model.features), scale) if model.features % 2 else None
    return w, scaler, rng.standard_normal((150, model.features))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.kind}-{model.features}-{model.outputs}")
def test_a_row_has_the_same_bits_whatever_it_is_answered_with(model: Model) -> None:
    w, scaler, rows = fitted(model)
    whole = alone.predictions(model, w, rows, scaler)
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 5, 8, 13, 64, 149):
        for _ in range(3):
            some = rng.permutation(len(rows))[:size]
            buffer = np.empty(rows[some].size + 8)  # at any place in memory
            shift = int(rng.integers(8))
            own = buffer[shift : shift + rows[some].size].reshape(size, -1)
            own[:] = rows[some]
            said = alone.predictions(model, w, own, scaler)
            for mine, all_of_them in zip(said, whole, strict=True):
                assert (mine is None) == (all_of_them is None)
                if mine is not None and all_of_them is not None:
                    assert mine.tobytes() == all_of_them[some].tobytes(), size
    one_by_one = [alone.scores(model, w, row[None, :], scaler)[0] for row in rows]
    assert np.array(one_by_one).tobytes() == whole.scores.tobytes()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.kind}-{model.features}-{model.outputs}")
def test_scores_and_reasons_are_those_of_all_rows_together_but_for_rounding(model: Model) -> None:
    w, scaler, rows = fitted(model)
    together = predict(model, w, [rows], scaler)
    said = alone.predictions(model, w, rows, scaler)
    np.testing.assert_allclose(said.scores, together.scores, rtol=1e-12, atol=1e-12)
    outputs = [place % model.outputs for place in range(20)]
    told, base = alone.reasons(model, w, rows[:20], scaler, np.zeros(model.features), outputs)
    for output in set(outputs):
        some = [place for place in range(20) if outputs[place] == output]
        expected, from_there = attributions(
            model, w, [rows[some]], scaler, output=output, baseline=np.zeros(model.features) if scaler is None else None
        )
        np.testing.assert_allclose(told[some], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(base[some], from_there, rtol=1e-12, atol=1e-12)
    again, _ = alone.reasons(model, w, rows[3:4], scaler, np.zeros(model.features), outputs[3:4])
    assert again[0].tobytes() == told[3].tobytes()


def test_a_row_without_a_score_takes_nobody_along() -> None:
    model = MODELS[-1]
    w, scaler, rows = fitted(model)
    clean = alone.scores(model, w, rows, scaler)
    bad = rows.copy()
    bad[7] = np.nan
    bad[11] = np.inf
    with np.errstate(invalid="ignore"):
        said = alone.scores(model, w, bad, scaler)
    kept = [place for place in range(len(rows)) if place not in (7, 11)]
    assert said[kept].tobytes() == clean[kept].tobytes()
