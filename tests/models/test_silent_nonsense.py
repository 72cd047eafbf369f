"""Data that an optimiser could quietly be wrong about: each is refused in words, or comes out right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zkd.errors import BadTraining, NoOptimum
from zkd.models.explain import explain
from zkd.models.fit import Prepared, RawPart, fit, prepare, split_rows
from zkd.models.partials import Ask, partial_of, totals
from zkd.models.plan import Plan
from zkd.models.predict import predict
from zkd.models.story import Outcome

RNG = np.random.default_rng(3)
ROWS = 300
X = RNG.normal(size=(ROWS, 3))
SCORE = X @ [1.0, -2.0, 0.5] + 0.3
TARGETS = {
    "linear": SCORE + 0.1 * RNG.normal(size=ROWS),
    "logistic": (RNG.random(ROWS) < 1.0 / (1.0 + np.exp(-SCORE))).astype(int),
    "softmax": np.digitize(SCORE + RNG.normal(size=ROWS), [-1.0, 1.0]),
    "poisson": RNG.poisson(np.exp(0.3 * SCORE)),
    "svm": (RNG.random(ROWS) < 1.0 / (1.0 + np.exp(-SCORE))).astype(int),
}
KINDS = tuple(TARGETS)


def made(kind: str, x: Any, y: Any = None, *, weight: Any = None, standardise: bool = True) -> Prepared:
    raw = RawPart([np.asarray(x)], TARGETS[kind] if y is None else np.asarray(y), weight)
    return prepare(kind, split_rows(raw, 3), standardise=standardise)  # type: ignore[arg-type]


def fitted(ready: Prepared, optimizer: str = "newton", l2: float = 0.0, **rest: Any) -> Outcome:
    return fit(ready, Plan(ready.model, optimizer, l2=l2, max_rounds=2000, **rest)).outcome  # type: ignore[arg-type]


def weights(ready: Prepared, outcome: Outcome) -> np.ndarray:
    """Of the features as they were given; of softmax without the shift that changes nothing."""
    matrix = outcome.w.reshape(ready.model.shapes[0])[:-1]
    if ready.model.kind == "softmax":
        matrix = matrix - matrix.mean(axis=1, keepdims=True)
    return matrix if ready.scaler is None else matrix / ready.scaler.scale[:, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-12, 1e12, 1e200, 1e300])
def test_a_model_is_the_same_in_any_unit_of_its_features(kind: str, scale: float) -> None:
    plain, scaled = made(kind, X), made(kind, X * scale)
    for l2 in (0.0, 1.0):
        expected, got = fitted(plain, l2=l2), fitted(scaled, l2=l2)
        assert got.reason == "tolerance"
        np.testing.assert_allclose(got.w, expected.w, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["newton", "lbfgs"])
def test_without_scaling_and_penalty_the_optimum_is_still_the_optimum(kind: str, optimizer: str) -> None:
    """Of columns from 1e-6 to 1e6: the first step of large ones is tiny, the slope of small ones is."""
    units = np.array([1e6, 1.0, 1e-6])
    expected = weights(made(kind, X), fitted(made(kind, X), tol=1e-10))
    ready = made(kind, X * units, standardise=False)
    outcome = fitted(ready, optimizer)
    assert not outcome.is_approximate
    np.testing.assert_allclose(weights(ready, outcome) * units[:, None], expected, rtol=1e-6, atol=1e-7)


def test_a_run_that_stopped_far_from_the_optimum_is_called_approximate() -> None:
    ready = made("linear", X * [1e12, 1.0, 1e-12], standardise=False)
    outcome = fitted(ready, "lbfgs", l2=1.0)
    assert outcome.is_approximate or outcome.bound < 1e-6 * np.linalg.norm(outcome.w)


@pytest.mark.parametrize("optimizer", ["newton", "lbfgs"])
def test_a_rare_group_without_events_has_no_optimum_however_many_rows_there_are(optimizer: str) -> None:
    """Its slope is soon small beside that of 100,000 rows, wherever its weight is."""
    rows = 100_000
    rng = np.random.default_rng(1)
    x = np.column_stack([np.arange(rows) < 20, rng.normal(size=rows)]).astype(float)
    for kind, y in (("logistic", rng.integers(0, 2, rows)), ("poisson", rng.poisson(2.0, rows))):
        target = np.where(np.arange(rows) < 20, 0, y)
        with pytest.raises(NoOptimum, match=r"feature 0.*no optimum"):
            fitted(made(kind, x, target), optimizer)


@pytest.mark.parametrize("optimizer", ["newton", "lbfgs"])
def test_an_svm_without_rows_in_its_margin_has_no_single_optimum(optimizer: str) -> None:
    with pytest.raises(NoOptimum, match="many weights do equally well"):
        fitted(made("svm", X, X[:, 0] > 0), optimizer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["newton", "lbfgs"])
def test_constant_columns_change_nothing_and_have_no_weight(kind: str, optimizer: str) -> None:
    """A third of 1e12 is no float: what rounding leaves of it must not pass for an intercept."""
    constants = np.column_stack([X, np.full(ROWS, 1e12 / 3), np.full(ROWS, -7e-13), np.zeros(ROWS)])
    plain, more = made(kind, X), made(kind, constants)
    assert more.constant == (3, 4, 5)
    for l2 in (0.0, 1.0):
        expected, got = fitted(plain, optimizer, l2=l2), fitted(more, optimizer, l2=l2)
        assert not got.is_approximate
        np.testing.assert_allclose(weights(more, got)[:3], weights(plain, expected), atol=1e-6)
        assert not weights(more, got)[3:].any()
    elsewhere = constants[:4] * [1.0, 1.0, 1.0, -5.0, 9e20, 0.0] + [0.0, 0.0, 0.0, 0.0, 0.0, 4.0]
    told = predict(more.model, got.w, [elsewhere], more.scaler).scores
    np.testing.assert_allclose(told, predict(more.model, got.w, [constants[:4]], more.scaler).scores)
    at = totals(more.model, partial_of(more.model, Ask(got.w, "hessian"), enumerate(more.parts), more.scaler))
    for output in explain(more.model, got.w, more.scaler, l2=1.0, hessian=at.hessian, loss=1.0, weight=ROWS).outputs:
        assert not output.raw[3:6].any()
        if output.raw_error is not None:
            assert np.isnan(output.raw_error[3:6]).all()
            assert np.isnan(output.standard_error[3:6]).all()
            assert np.isfinite(output.raw_error[[0, 1, 2, 6]]).all()


def test_rows_of_weight_0_are_no_rows_of_a_class() -> None:
    y = TARGETS["logistic"]
    for l2 in (0.0, 1.0):
        with pytest.raises(BadTraining, match="no training row has 1, only held-out rows or rows of weight 0"):
            fitted(made("logistic", X, y, weight=(y == 0) * 1.0), l2=l2)
    some = np.where(np.arange(ROWS) % 3 == 0, 0.0, 2.0)
    ready = made("logistic", X, y, weight=some)
    used = some > 0
    assert ready.found.target.shares[1] == pytest.approx(y[used].mean())


def test_weights_and_targets_at_the_ends_of_floats_are_refused() -> None:
    for extreme in (1e-300, 1e200):
        with pytest.raises(BadTraining, match="weight: expected a sum from"):
            made("logistic", X, weight=np.full(ROWS, extreme))
        with pytest.raises(BadTraining, match="target: expected the largest value"):
            made("linear", X, TARGETS["linear"] * extreme)
    with pytest.raises(BadTraining, match="exceed what a float can hold"):
        made("linear", np.where(X > 0, 1.7e308, -1.7e308)[:1].repeat(2, axis=0) * [[1], [-1]], [0.0, 1.0])


def test_columns_that_only_look_alike_without_scaling_are_named() -> None:
    ready = made("linear", X + np.array([1e9, 0.0, 0.0]), standardise=False)
    for optimizer in ("newton", "lbfgs"):
        with pytest.raises(NoOptimum, match=r"feature 0, the intercept make up one another.*standardise"):
            fitted(ready, optimizer)
    assert fitted(made("linear", X + np.array([1e9, 0.0, 0.0]))).reason == "tolerance"


def test_newton_needs_few_trials_where_full_steps_go_far_astray() -> None:
    """Rare columns that tell a class for sure, almost unpenalised: halving each step took 54 rounds more."""
    rng = np.random.default_rng(0)
    x = (rng.random((4000, 60)) < 0.004).astype(float)
    y = (rng.random(4000) < 0.03 + 0.9 * x[:, :20].max(axis=1) - 0.03 * x[:, 20:].max(axis=1)).astype(int)
    ready = made("logistic", x, y)
    outcome = fitted(ready, l2=0.1)
    assert outcome.reason == "tolerance"
    assert outcome.rounds <= 25
