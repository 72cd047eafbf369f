"""Gradients against finite differences, optima against scikit-learn, parts against the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from zkd.arrays import from_json, to_json
from zkd.errors import BadRecord
from zkd.kernels import call, load

REGISTRY = load(installed=False)
RNG = np.random.default_rng(11)
X = RNG.normal(size=(60, 3))
Y = RNG.integers(0, 4, size=60)
BINARY = (Y > 1).astype(np.int64)


def run(name: str, *args: Any, **kwargs: Any) -> Any:
    return from_json(to_json(call(REGISTRY, name, to_json(args, exact=True), to_json(kwargs, exact=True)), exact=True))


CASES = [
    ("softmax_gradient", RNG.normal(size=(3, 4)), Y),
    ("softmax_gradient", RNG.normal(size=(4, 4)), Y),
    ("logistic_gradient", RNG.normal(size=3), BINARY),
    ("logistic_gradient", RNG.normal(size=4), BINARY),
]


@pytest.mark.parametrize(("name", "weights", "labels"), CASES)
def test_the_gradient_is_the_slope_of_the_loss(name: str, weights: Any, labels: Any) -> None:
    got = run(name, weights, X, labels)
    assert got["count"] == 60
    assert got["gradient"].shape == weights.shape
    step = 1e-6
    for index in np.ndindex(weights.shape):
        ahead, behind = weights.copy(), weights.copy()
        ahead[index] += step
        behind[index] -= step
        slope = (run(name, ahead, X, labels)["loss"] - run(name, behind, X, labels)["loss"]) / (2 * step)
        assert got["gradient"][index] == pytest.approx(slope, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("name", "weights", "labels"), CASES)
def test_parts_add_up_to_the_whole(name: str, weights: Any, labels: Any) -> None:
    whole = run(name, weights, X, labels)
    parts = [run(name, weights, X[part], labels[part]) for part in (slice(0, 7), slice(7, 7), slice(7, 60))]
    assert sum(part["count"] for part in parts) == whole["count"]
    assert sum(part["loss"] for part in parts) == pytest.approx(whole["loss"], rel=1e-13)
    np.testing.assert_allclose(sum(part["gradient"] for part in parts), whole["gradient"], rtol=1e-11, atol=1e-12)


def test_blocks_add_up_to_the_whole() -> None:
    rows, labels = RNG.normal(size=(40_000, 2)), RNG.integers(0, 3, size=40_000)
    weights = RNG.normal(size=(2, 3))
    scores = rows @ weights
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    got = run("softmax_gradient", weights, rows, labels)
    assert got["loss"] == pytest.approx(-np.log(p[np.arange(40_000), labels]).sum(), rel=1e-12)
    np.testing.assert_allclose(got["gradient"], rows.T @ (p - np.eye(3)[labels]), rtol=1e-9, atol=1e-9)


def test_the_optimum_is_scikit_learns() -> None:
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(X, BINARY)
    best = np.append(oracle.coef_[0], oracle.intercept_)
    assert np.abs(run("logistic_gradient", best, X, BINARY)["gradient"]).max() < 1e-3
    got = run("predict_logistic", best, X)
    np.testing.assert_allclose(got["probabilities"], oracle.predict_proba(X)[:, 1], rtol=1e-10)
    np.testing.assert_array_equal(got["labels"], oracle.predict(X))

    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(X, Y)
    best = np.vstack([oracle.coef_.T, oracle.intercept_])
    assert np.abs(run("softmax_gradient", best, X, Y)["gradient"]).max() < 1e-3
    got = run("predict_softmax", best, X)
    np.testing.assert_allclose(got["probabilities"], oracle.predict_proba(X), rtol=1e-10)
    np.testing.assert_array_equal(got["labels"], oracle.predict(X))


def test_two_classes_of_softmax_are_logistic_regression() -> None:
    w = RNG.normal(size=3)
    logistic = run("logistic_gradient", w, X, BINARY)
    softmax = run("softmax_gradient", np.column_stack([np.zeros(3), w]), X, BINARY)
    assert softmax["loss"] == pytest.approx(logistic["loss"], rel=1e-13)
    np.testing.assert_allclose(softmax["gradient"][:, 1], logistic["gradient"], rtol=1e-10, atol=1e-12)


def test_extreme_scores_overflow_nowhere() -> None:
    with np.errstate(all="raise", under="ignore"):
        sure = run("softmax_gradient", [[1e4, -1e4]], [[1.0], [-1.0]], [0, 0])
        assert sure["loss"] == pytest.approx(2e4)
        assert np.isfinite(sure["gradient"]).all()
        wrong = run("logistic_gradient", [1e4], [[1.0], [-1.0]], [0, 1])
        assert wrong["loss"] == pytest.approx(2e4)
        right = run("logistic_gradient", [1e4], [[1.0], [-1.0]], [1, 0])
        assert right["loss"] == 0
        assert run("predict_logistic", [1e4], [[1.0], [-1.0], [0.0]])["probabilities"].tolist() == [1.0, 0.0, 0.5]
        assert run("predict_softmax", [[1e4, -1e4]], [[1.0]])["probabilities"].tolist() == [[1.0, 0.0]]


def test_no_rows_give_nothing() -> None:
    got = run("softmax_gradient", np.zeros((3, 2)), np.zeros((0, 3)), np.zeros(0, np.int64))
    assert (got["loss"], got["count"]) == (0.0, 0)
    assert not got["gradient"].any()
    assert run("predict_softmax", np.zeros((3, 2)), np.zeros((0, 3)))["probabilities"].shape == (0, 2)


@pytest.mark.parametrize(
    ("name", "args", "error", "says"),
    [
        ("softmax_gradient", (np.zeros((5, 2)), X, Y), ValueError, "3 or 4 rows of weights, got 5"),
        ("softmax_gradient", (np.zeros((3, 2)), X, Y), ValueError, "labels from 0 to 1"),
        ("softmax_gradient", (np.zeros((3, 2)), X, -BINARY), ValueError, "labels from 0 to 1, got -1"),
        ("softmax_gradient", (np.zeros((3, 4)), X, Y[:5]), ValueError, "one label a row"),
        ("softmax_gradient", (np.zeros((3, 0)), X, Y), ValueError, "at least one class"),
        ("softmax_gradient", (np.zeros(3), X, Y), BadRecord, "2 dimensions"),
        ("softmax_gradient", (np.zeros((3, 4)), X, Y + 0.5), BadRecord, "int64"),
        ("logistic_gradient", (np.zeros(3), X, Y), ValueError, "labels 0 and 1"),
        ("logistic_gradient", (np.zeros((3, 1)), X, BINARY), BadRecord, "1 dimensions"),
        ("predict_softmax", (np.zeros((7, 2)), X), ValueError, "rows of weights"),
    ],
)
def test_shapes_and_labels_that_do_not_fit_are_refused(name: str, args: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        run(name, *args)


def test_descent_over_parts_learns_iris_like_data() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    y = rng.integers(0, 3, size=300)
    x = centres[y] + rng.normal(size=(300, 2))
    weights = np.zeros((3, 3))
    for _ in range(200):
        parts = [run("softmax_gradient", weights, x[i::3], y[i::3]) for i in range(3)]
        weights -= sum(part["gradient"] for part in parts) / sum(part["count"] for part in parts)
    accuracy = np.mean(run("predict_softmax", weights, x)["labels"] == y)
    oracle = LogisticRegression(C=np.inf).fit(x, y).score(x, y)
    assert accuracy >= oracle - 0.01
