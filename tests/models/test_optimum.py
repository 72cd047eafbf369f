"""Training ends at the optimum: that of scikit-learn, of scipy, and of published tables, on real data.

Both bounds of accuracy hold everywhere: max |dw| <= 1e-6 and |dF| / F <= 1e-10.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize
from sklearn.linear_model import ElasticNet, LogisticRegression, PoissonRegressor, Ridge
from sklearn.metrics import accuracy_score, log_loss, r2_score, roc_auc_score

from tests.models.data import loaded, prepared, standardised
from zkd.errors import BadTraining
from zkd.models.explain import explain
from zkd.models.fit import RawPart, fit, prepare, split_rows
from zkd.models.plan import Plan
from zkd.models.predict import predict

EXACT = ("newton", "lbfgs")
FIRST_ORDER = ("gd", "momentum", "nesterov")


def solved(kind: str, name: str, optimizer: str, l2: float, l1: float = 0.0, rounds: int = 5000):
    ready = prepared(kind, name)
    outcome = fit(ready, Plan(ready.model, optimizer, l2=l2, l1=l1, max_rounds=rounds)).outcome
    matrix = outcome.w.reshape(ready.model.shapes[0])
    return outcome, matrix[:-1], matrix[-1]


def near(ours: np.ndarray, theirs: np.ndarray, within: float = 1e-6) -> None:
    assert np.abs(ours - theirs).max() <= within


@pytest.mark.parametrize("optimizer", EXACT + FIRST_ORDER)
@pytest.mark.parametrize("name", ["breast_cancer"])
def test_logistic_ends_at_the_optimum_of_scikit_learn(name: str, optimizer: str) -> None:
    x, y, test_x, test_y = standardised(name)
    oracle = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(x, y)
    outcome, weights, intercept = solved("logistic", name, optimizer, 1.0)
    assert outcome.reason == "tolerance"
    near(weights[:, 0], oracle.coef_[0])
    near(intercept, oracle.intercept_)
    assert outcome.total == pytest.approx(28.3702713488, rel=1e-10)
    assert np.linalg.norm(weights) == pytest.approx(3.84740442537, abs=1e-7)
    near(weights[:3, 0], np.array([-0.48897443514, -0.32712308317, -0.46804147768]))
    assert np.abs(weights[:, 0] - oracle.coef_[0]).max() <= outcome.bound
    ready = prepared("logistic", name)
    raw_x = loaded(name)[2]
    told = predict(ready.model, outcome.w, [raw_x], ready.scaler)
    assert accuracy_score(test_y, told.classes) == pytest.approx(0.98113, abs=5e-6)
    assert log_loss(test_y, told.probabilities) == pytest.approx(0.09561492, abs=5e-7)
    assert roc_auc_score(test_y, told.scores[:, 0]) == pytest.approx(0.991141, abs=5e-7)
    near(told.probabilities, oracle.predict_proba(test_x))


SOFTMAX = {  # F*, |W|, W[0, 0..2], b[0..2], test accuracy
    "iris": (
        28.572173258,
        4.55632445,
        [-1.0365493, 0.9894008, -1.8075725],
        [-0.4808487, 1.9282246, -1.4473759],
        0.96429,
    ),
    "wine": (11.722331915, 3.48380690, [0.7658669, 0.2145545, 0.4558746], [0.3986220, 0.7422907, -1.1409127], 1.0),
    "digits": (96.551374573, 10.3765114, [0.0, 0.0071796, -0.1056655], [-0.1375363, -0.4304702, -0.4004004], 0.97199),
}


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [(name, optimizer) for name in ("iris", "wine") for optimizer in EXACT + FIRST_ORDER] + [("digits", "lbfgs")],
)
def test_softmax_ends_at_the_published_optimum(name: str, optimizer: str) -> None:
    total, norm, first, intercepts, accuracy = SOFTMAX[name]
    outcome, weights, intercept = solved("softmax", name, optimizer, 1.0)
    assert outcome.reason == "tolerance"
    assert outcome.total == pytest.approx(total, rel=1e-10)
    assert np.linalg.norm(weights) == pytest.approx(norm, abs=1e-7)
    near(weights[:3, 0], np.array(first))
    near((intercept - intercept.mean())[:3], np.array(intercepts))
    ready = prepared("softmax", name)
    raw_x, test_y = loaded(name)[2:]
    assert accuracy_score(test_y, predict(ready.model, outcome.w, [raw_x], ready.scaler).classes) == pytest.approx(
        accuracy, abs=5e-6
    )


def test_newton_ends_at_the_optimum_of_digits_with_650_parameters() -> None:
    outcome, weights, _ = solved("softmax", "digits", "newton", 1.0)
    assert outcome.reason == "tolerance"
    assert outcome.rounds <= 12
    assert outcome.total == pytest.approx(96.551374573, rel=1e-10)
    x, y, _, _ = standardised("digits")
    oracle = LogisticRegression(C=1.0, solver="newton-cg", tol=1e-10, max_iter=1000).fit(x, y)
    near(weights.T, oracle.coef_)


@pytest.mark.parametrize("optimizer", [*EXACT, "momentum", "nesterov"])
def test_ridge_ends_at_the_optimum_of_scikit_learn(optimizer: str) -> None:
    x, y, _, _ = standardised("diabetes")
    oracle = Ridge(alpha=1.0, solver="cholesky").fit(x, y)
    outcome, weights, intercept = solved("linear", "diabetes", optimizer, 1.0)
    near(weights[:, 0], oracle.coef_)
    near(intercept, np.array([oracle.intercept_]))
    total = 0.5 * np.sum((oracle.predict(x) - y) ** 2) + 0.5 * np.sum(oracle.coef_**2)
    assert outcome.total == pytest.approx(total, rel=1e-10)


def test_least_squares_gives_the_published_weights() -> None:
    outcome, weights, intercept = solved("linear", "diabetes", "newton", 0.0)
    published = [1.108647788, -10.773990476, 26.365598216, 13.434113088, -21.189703981]
    published += [11.598277364, -2.882600139, 1.165519416, 29.686023777, 2.794765387]
    near(weights[:, 0], np.array(published), 1e-8)
    assert intercept[0] == pytest.approx(151.4958904110, abs=1e-9)
    ready = prepared("linear", "diabetes")
    x, y, test_x, test_y = loaded("diabetes")
    for rows, target, expected in ((x, y, 0.495404758), (test_x, test_y, 0.589520794)):
        told = predict(ready.model, outcome.w, [rows], ready.scaler)
        assert r2_score(target, told.means) == pytest.approx(expected, abs=1e-8)
    assert outcome.rounds <= 4


@pytest.mark.parametrize("optimizer", [*EXACT, "momentum", "nesterov"])
def test_poisson_ends_at_the_optimum_of_scikit_learn(optimizer: str) -> None:
    x, y, _, _ = standardised("diabetes")  # whole numbers from 25 to 346
    oracle = PoissonRegressor(alpha=1.0 / len(x), solver="newton-cholesky", tol=1e-13, max_iter=1000).fit(x, y)
    outcome, weights, intercept = solved("poisson", "diabetes", optimizer, 1.0)
    near(weights[:, 0], oracle.coef_)
    near(intercept, np.array([oracle.intercept_]))
    assert outcome.reason == "tolerance"


@pytest.mark.parametrize("optimizer", [*EXACT, "nesterov"])
def test_the_support_vector_machine_ends_at_the_optimum_of_scipy(optimizer: str) -> None:
    x, y, _, _ = standardised("breast_cancer")
    sign = np.where(y == 1, 1.0, -1.0)

    def total(v: np.ndarray) -> tuple[float, np.ndarray]:
        short = np.maximum(1.0 - sign * (x @ v[:-1] + v[-1]), 0.0)
        slope = -2.0 * sign * short
        return short @ short + 0.5 * v[:-1] @ v[:-1], np.append(x.T @ slope + v[:-1], slope.sum())

    oracle = optimize.minimize(total, np.zeros(31), jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 5000})
    outcome, weights, intercept = solved("svm", "breast_cancer", optimizer, 1.0)
    near(np.append(weights, intercept), oracle.x)
    assert outcome.total == pytest.approx(oracle.fun, rel=1e-10)


@pytest.mark.parametrize("optimizer", ["newton", "gd", "nesterov"])
@pytest.mark.parametrize("l2", [0.0, 3.0])
def test_l1_ends_at_the_optimum_of_scikit_learn_with_the_same_zeros(optimizer: str, l2: float) -> None:
    x, y, _, _ = standardised("diabetes")
    l1 = 2000.0
    n = len(x)
    oracle = ElasticNet(alpha=(l1 + l2) / n, l1_ratio=l1 / (l1 + l2), tol=1e-15, max_iter=1_000_000).fit(x, y)
    _, weights, intercept = solved("linear", "diabetes", optimizer, l2, l1)
    near(weights[:, 0], oracle.coef_)
    near(intercept, np.array([oracle.intercept_]))
    assert np.array_equal(weights[:, 0] == 0.0, oracle.coef_ == 0.0)
    assert 0 < np.count_nonzero(weights == 0.0) < 10


@pytest.mark.parametrize("optimizer", ["newton", "nesterov"])
def test_l1_of_a_logistic_model_satisfies_the_conditions_of_optimality(optimizer: str) -> None:
    x, y, _, _ = standardised("breast_cancer")
    outcome, weights, intercept = solved("logistic", "breast_cancer", optimizer, 0.1, 2.0)
    v = weights[:, 0]
    p = 1.0 / (1.0 + np.exp(-(x @ v + intercept[0])))
    slope = x.T @ (p - y) + 0.1 * v
    assert np.abs(slope[v != 0] + 2.0 * np.sign(v[v != 0])).max() < 1e-6
    assert np.abs(slope[v == 0]).max() <= 2.0
    assert np.count_nonzero(v == 0) > 5
    assert outcome.reason == "tolerance"


def test_row_weights_are_repeated_rows() -> None:
    x, y, _, _ = loaded("breast_cancer")
    times = np.arange(len(x)) % 4
    weighted = prepare("logistic", split_rows(RawPart([x], y, times.astype(float)), 3))
    repeated = prepare("logistic", [RawPart([np.repeat(x, times, axis=0)], np.repeat(y, times))])
    outcomes = [fit(ready, Plan(ready.model, "newton", l2=1.0)).outcome for ready in (weighted, repeated)]
    raw = [
        explain(ready.model, outcome.w, ready.scaler, l2=1.0).outputs[0].raw
        for ready, outcome in zip((weighted, repeated), outcomes, strict=True)
    ]
    np.testing.assert_allclose(raw[0], raw[1], rtol=1e-9, atol=1e-9)


def test_optimisers_take_the_rounds_that_their_kind_takes() -> None:
    """To a weight error of 1e-8; a method that lost its memory, its momentum or its restart needs more."""
    rounds = {optimizer: solved("softmax", "wine", optimizer, 1.0)[0].rounds for optimizer in EXACT + FIRST_ORDER}
    assert rounds["newton"] <= 10
    assert rounds["lbfgs"] <= 50
    assert rounds["nesterov"] <= 180
    assert rounds["gd"] <= 700
    assert rounds["momentum"] <= 700


@pytest.mark.parametrize("optimizer", ["lbfgs", "nesterov", "newton"])
def test_the_certificate_holds_in_every_round(optimizer: str) -> None:
    ready = prepared("logistic", "breast_cancer")
    best = fit(ready, Plan(ready.model, "newton", l2=1.0, tol=1e-12)).outcome.w[:-1]
    steps: list[tuple[float, float]] = []

    def compare(run) -> None:
        at = run.accepted
        steps.append((float(np.linalg.norm(at.w[:-1] - best)), at.slope / 1.0))

    fit(ready, Plan(ready.model, optimizer, l2=1.0), each=compare)
    assert len(steps) > 5
    assert all(distance <= bound + 1e-9 for distance, bound in steps)


@pytest.mark.parametrize(("kind", "name"), [("softmax", "digits"), ("softmax", "wine"), ("svm", "breast_cancer")])
@pytest.mark.parametrize("optimizer", ["nesterov", "lbfgs"])
def test_the_bound_that_is_reported_holds_though_intercepts_are_not_solved(
    kind: str, name: str, optimizer: str
) -> None:
    ready = prepared(kind, name)
    best = fit(ready, Plan(ready.model, "newton", l2=1.0, tol=1e-12)).outcome.w.reshape(ready.model.shapes[0])
    for tol in (1.0, 1e-2, 1e-4):
        outcome = fit(ready, Plan(ready.model, optimizer, l2=1.0, tol=tol)).outcome
        distance = np.linalg.norm(outcome.w.reshape(best.shape)[:-1] - best[:-1])
        assert distance <= 1.01 * outcome.bound
        assert outcome.bound < 4.0 * tol


def test_without_an_intercept_none_is_fitted() -> None:
    x, y, _, _ = standardised("breast_cancer")
    oracle = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12, fit_intercept=False).fit(x, y)
    raw_x, raw_y, _, _ = loaded("breast_cancer")
    ready = prepare("logistic", split_rows(RawPart([raw_x], raw_y), 2), intercept=False)
    near(fit(ready, Plan(ready.model, "lbfgs", l2=1.0)).outcome.w, oracle.coef_[0])


def test_average_is_near_the_optimum_and_says_that_it_is_not_there() -> None:
    exact, _, _ = solved("logistic", "breast_cancer", "newton", 1.0)
    ready = prepared("logistic", "breast_cancer")
    outcome = fit(ready, Plan(ready.model, "average", l2=1.0, epochs=30, batch_rows=32)).outcome
    assert outcome.is_approximate
    assert not exact.is_approximate
    assert exact.total * 1.001 < outcome.total < 3.0 * exact.total
    assert outcome.bound >= np.linalg.norm(outcome.w[:-1] - exact.w[:-1])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_mini_batches_come_close_to_the_optimum(optimizer: str) -> None:
    exact, _, _ = solved("softmax", "wine", "newton", 1.0)
    ready = prepared("softmax", "wine")
    plan = Plan(ready.model, optimizer, l2=1.0, epochs=100, batch_rows=16, max_rounds=10_000)
    outcome = fit(ready, plan).outcome
    assert outcome.reason == "epochs"
    assert exact.total < outcome.total < 1.03 * exact.total


def test_l1_needs_a_proximal_step() -> None:
    ready = prepared("logistic", "breast_cancer")
    with pytest.raises(BadTraining, match="lbfgs has no proximal step"):
        Plan(ready.model, "lbfgs", l1=1.0)
