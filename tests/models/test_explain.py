"""What a model says of itself and of rows: coefficients in both units, errors, odds, importance, attributions."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression

from tests.models.data import loaded, prepared, standardised
from zkd.errors import BadTraining
from zkd.models.explain import explain, named
from zkd.models.fit import RawPart, fit, prepare, split_rows
from zkd.models.importance import REPEATS, importance, losses_of, permuted_losses
from zkd.models.model import Model, first_parameters
from zkd.models.partials import Ask, merge, partial, totals
from zkd.models.plan import Plan
from zkd.models.predict import attributions, predict, scores
from zkd.models.rows import Scaler, rows_of

RNG = np.random.default_rng(2)


def trained(kind: str, name: str, l2: float):
    ready = prepared(kind, name)
    outcome = fit(ready, Plan(ready.model, "newton", l2=l2)).outcome
    ask = Ask(outcome.w, "hessian")
    at = totals(
        ready.model, merge(partial(ready.model, ask, rows, ready.scaler, part=n) for n, rows in enumerate(ready.parts))
    )
    return ready, outcome, at


def test_raw_coefficients_predict_from_rows_as_they_were_stored() -> None:
    for kind, name in (("linear", "diabetes"), ("softmax", "wine")):
        ready, outcome, at = trained(kind, name, 1.0)
        told = explain(ready.model, outcome.w, ready.scaler, l2=1.0, hessian=at.hessian, loss=at.loss, weight=at.weight)
        x = loaded(name)[2]
        by_hand = np.column_stack([x @ one.raw[:-1] + one.raw[-1] for one in told.outputs])
        z = scores(ready.model, outcome.w, [x], ready.scaler)
        if kind == "softmax":
            z = z - z.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(by_hand, z, rtol=1e-9, atol=1e-9)


def test_standard_errors_of_a_ridge_are_those_of_repeated_experiments() -> None:
    """The same rows with fresh noise, again and again: the spread of the estimates is what was promised."""
    x = standardised("diabetes")[0]
    truth = RNG.normal(size=10)
    l2 = 30.0
    estimates, promised = [], []
    for _ in range(300):
        y = x @ truth + RNG.normal(size=len(x)) * 5.0
        ready = prepare("linear", [RawPart([x], y)])
        outcome = fit(ready, Plan(ready.model, "newton", l2=l2)).outcome
        at = totals(ready.model, partial(ready.model, Ask(outcome.w, "hessian"), ready.parts[0], ready.scaler, part=0))
        told = explain(ready.model, outcome.w, ready.scaler, l2=l2, hessian=at.hessian, loss=at.loss, weight=at.weight)
        estimates.append(told.outputs[0].raw)
        promised.append(told.outputs[0].raw_error)
    ratio = np.std(estimates, axis=0)[:10] / np.mean(promised, axis=0)[:10]
    assert np.all((ratio > 0.85) & (ratio < 1.15))


def test_least_squares_errors_are_those_of_the_textbook_formula() -> None:
    ready, outcome, at = trained("linear", "diabetes", 0.0)
    told = explain(ready.model, outcome.w, ready.scaler, l2=0.0, hessian=at.hessian, loss=at.loss, weight=at.weight)
    x, y, _, _ = loaded("diabetes")
    design = np.column_stack([x, np.ones(len(x))])
    oracle = LinearRegression().fit(x, y)
    variance = np.sum((oracle.predict(x) - y) ** 2) / (len(x) - 11)
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * variance)
    np.testing.assert_allclose(told.outputs[0].raw_error, errors, rtol=1e-8)
    assert told.deviation == pytest.approx(np.sqrt(variance), rel=1e-10)
    assert told.outputs[0].ratio is None


def test_columns_of_any_scale_have_the_standard_errors_of_their_plain_ones() -> None:
    x, y, _, _ = loaded("diabetes")
    errors = []
    for scale in (1.0, 2.0**600, 2.0**-600):
        ready = prepare("linear", [RawPart([x[:, :3] * scale], y)])
        outcome = fit(ready, Plan(ready.model, "newton", l2=1.0)).outcome
        ask = Ask(outcome.w, "hessian")
        at = totals(ready.model, merge([partial(ready.model, ask, ready.parts[0], ready.scaler, part=0)]))
        told = explain(ready.model, outcome.w, ready.scaler, l2=1.0, hessian=at.hessian, loss=at.loss, weight=at.weight)
        raw = told.outputs[0].raw_error
        assert raw is not None
        errors.append(np.append(raw[:-1] * scale, raw[-1]))
    assert np.isfinite(errors[0]).all()
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-12)
    np.testing.assert_allclose(errors[2], errors[0], rtol=1e-12)


def test_poisson_ratios_are_of_rates_and_limits_hold_them() -> None:
    ready, outcome, at = trained("poisson", "diabetes", 0.0)
    told = explain(ready.model, outcome.w, ready.scaler, l2=0.0, hessian=at.hessian).outputs[0]
    np.testing.assert_allclose(told.ratio, np.exp(told.raw))
    assert np.all((told.ratio_low < told.ratio) & (told.ratio < told.ratio_high))


def test_where_errors_mean_nothing_none_are_given() -> None:
    ready, outcome, at = trained("svm", "breast_cancer", 1.0)
    told = explain(ready.model, outcome.w, ready.scaler, l2=1.0, hessian=at.hessian).outputs[0]
    assert told.raw_error is None
    assert told.ratio is None
    ready, outcome, at = trained("logistic", "breast_cancer", 1.0)
    assert (
        explain(ready.model, outcome.w, ready.scaler, l2=1.0, l1=1.0, hessian=at.hessian).outputs[0].raw_error is None
    )
    net = Model("mlp", 3, 2, (4,))
    with pytest.raises(ValueError, match="a net has no coefficients"):
        explain(net, first_parameters(net), None, l2=0.0)


def test_coefficients_are_listed_with_the_largest_first() -> None:
    ready, outcome, _ = trained("logistic", "breast_cancer", 1.0)
    told = explain(ready.model, outcome.w, ready.scaler, l2=1.0).outputs[0]
    rows = named(told, [f"f{index}" for index in range(30)])
    assert rows[-1][0] == "(intercept)"
    sizes = [abs(row[3]) for row in rows[:-1]]
    assert sizes == sorted(sizes, reverse=True)


# --- predictions --------------------------------------------------------------------------------------


def test_predictions_do_not_depend_on_how_rows_are_stored() -> None:
    ready, outcome, _ = trained("softmax", "wine", 1.0)
    x = loaded("wine")[2]
    whole = predict(ready.model, outcome.w, [x], ready.scaler)
    apart = predict(ready.model, outcome.w, list(x.T), ready.scaler)
    assert np.array_equal(whole.scores, apart.scores)
    np.testing.assert_allclose(whole.probabilities.sum(axis=1), 1.0, rtol=1e-15)
    with pytest.raises(BadTraining, match="the model has 13, the rows have 12"):
        predict(ready.model, outcome.w, [x[:, 1:]], ready.scaler)


def test_probabilities_of_sure_rows_are_exact_on_both_sides() -> None:
    model = Model("logistic", 1, intercept=False)
    told = predict(model, np.array([1.0]), [np.array([50.0, -50.0, 2000.0])], None)
    np.testing.assert_allclose(told.probabilities[:, 0], [np.exp(-50), 1.0, 0.0], rtol=1e-15)
    np.testing.assert_allclose(told.probabilities[:, 1], [1.0, np.exp(-50), 1.0], rtol=1e-15)


@pytest.mark.parametrize("kind", ["softmax", "mlp"])
def test_attributions_add_up_to_the_score(kind: str) -> None:
    x, y, test_x, _ = loaded("wine")
    ready = prepare(kind, split_rows(RawPart([x], y), 2), hidden=(8, 6) if kind == "mlp" else (), tells_classes=True)  # type: ignore[arg-type]
    outcome = fit(ready, Plan(ready.model, "lbfgs", l2=0.1, max_rounds=100)).outcome
    for output in range(3):
        told, base = attributions(ready.model, outcome.w, [test_x], ready.scaler, output=output)
        z = scores(ready.model, outcome.w, [test_x], ready.scaler)[:, output]
        spread = np.ptp(z)
        assert np.abs(told.sum(axis=1) + base - z).max() <= (1e-12 if kind == "softmax" else 0.01) * spread
    with pytest.raises(ValueError, match="output from 0 to 2"):
        attributions(ready.model, outcome.w, [test_x], ready.scaler, output=3)


def test_attributions_can_start_from_any_row() -> None:
    x, y, test_x, _ = loaded("wine")
    ready = prepare("mlp", [RawPart([x / 100.0], y)], hidden=(8,), tells_classes=True, standardise=False)
    outcome = fit(ready, Plan(ready.model, "lbfgs", l2=0.1, max_rounds=60)).outcome
    base = x.mean(axis=0) / 100.0
    told, start = attributions(ready.model, outcome.w, [test_x / 100.0], None, output=1, baseline=base)
    z = scores(ready.model, outcome.w, [test_x / 100.0], None)[:, 1]
    assert start == pytest.approx(scores(ready.model, outcome.w, [base[None, :]], None)[0, 1])
    assert np.abs(told.sum(axis=1) + start - z).max() < 0.01 * np.ptp(z)


def test_linear_attributions_are_weight_times_distance_from_the_mean() -> None:
    ready, outcome, _ = trained("linear", "diabetes", 1.0)
    x = loaded("diabetes")[2]
    told, base = attributions(ready.model, outcome.w, [x], ready.scaler)
    raw = explain(ready.model, outcome.w, ready.scaler, l2=1.0).outputs[0].raw
    np.testing.assert_allclose(told, raw[:-1] * (x - ready.scaler.mean), rtol=1e-9, atol=1e-12)
    assert base == pytest.approx(loaded("diabetes")[1].mean(), rel=1e-9)


# --- importance ---------------------------------------------------------------------------------------


def test_permutation_importance_is_that_of_scikit_learn() -> None:
    ready, outcome, _ = trained("linear", "diabetes", 1.0)
    told = importance(
        permuted_losses(ready.model, outcome.w, rows, ready.scaler, part=n) for n, rows in enumerate(ready.parts)
    )
    x, y, _, _ = standardised("diabetes")
    oracle = LinearRegression().fit(x, y)
    oracle.coef_, oracle.intercept_ = outcome.w[:-1], outcome.w[-1]
    theirs = permutation_importance(oracle, x, y, scoring="neg_mean_squared_error", n_repeats=30, random_state=0)
    rise = 2.0 * told.rise  # our loss is half the square
    assert np.argmax(rise) == np.argmax(theirs.importances_mean)
    np.testing.assert_allclose(rise, theirs.importances_mean, atol=0.15 * theirs.importances_mean.max())
    assert told.loss == pytest.approx(0.5 * np.mean((oracle.predict(x) - y) ** 2), rel=1e-12)


def test_importance_looks_at_held_out_rows_and_does_not_depend_on_nodes() -> None:
    x, y, _, _ = loaded("wine")
    held = np.arange(len(x)) % 3 == 0
    ready = prepare(
        "mlp",
        split_rows(RawPart([x, np.random.default_rng(2).normal(size=len(x))], y, held_out=held), 4),
        hidden=(8,),
        tells_classes=True,
    )
    outcome = fit(ready, Plan(ready.model, "lbfgs", l2=1.0, max_rounds=60)).outcome
    parts = [permuted_losses(ready.model, outcome.w, rows, ready.scaler, part=n) for n, rows in enumerate(ready.parts)]
    one, other = importance(parts), importance(parts[::-1])
    assert one.rise.tobytes() == other.rise.tobytes()
    assert one.loss == pytest.approx(outcome.held_loss, rel=1e-9)
    assert abs(one.rise[13]) < 0.25 * one.rise.max()  # noise, seen by 47 rows
    with pytest.raises(BadTraining, match="rows of some weight"):
        importance([permuted_losses(ready.model, outcome.w, prepare_empty(), ready.scaler, part=0)])


def prepare_empty():
    from zkd.models.rows import rows_of

    return rows_of([np.zeros((0, 14))], np.zeros(0))


def test_coefficients_of_many_features_take_memory_for_each_and_not_for_each_pair() -> None:
    model = Model("logistic", 20_000)
    scaler = Scaler(np.full(model.features, 3.0), np.full(model.features, 2.0))
    w = np.ones(model.size)
    tracemalloc.start()
    try:
        own = explain(model, w, scaler, l2=1.0).outputs[0]
        assert tracemalloc.get_traced_memory()[1] < 20 * w.nbytes
    finally:
        tracemalloc.stop()
    assert np.all(own.raw[:-1] == 0.5)
    assert own.raw[-1] == pytest.approx(1.0 - 0.5 * 3.0 * model.features, rel=1e-12)


def test_importance_of_a_nets_features_is_the_rise_of_its_loss_with_each_shuffled() -> None:
    x, y, _, _ = loaded("wine")
    model = Model("mlp", x.shape[1], 3, (6, 5))
    w, scaler = first_parameters(model, seed=1), Scaler(x.mean(axis=0), x.std(axis=0))
    rows = rows_of([x], y.astype(np.float64))
    told = importance([permuted_losses(model, w, rows, scaler, part=4, seed=9)])
    for feature in (0, 7, 12):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([3, 9, feature, 4])))
        losses = []
        for _ in range(REPEATS):
            shuffled = x.copy()
            shuffled[:, feature] = rng.permutation(x[:, feature])
            losses.append(losses_of(model, scores(model, w, [shuffled], scaler), rows.target).mean())
        assert told.rise[feature] == pytest.approx(np.mean(losses) - told.loss, rel=1e-9)
