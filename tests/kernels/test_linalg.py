"""Linear algebra against numpy, scikit-learn, and matrices made to hurt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge

from zkd.arrays import from_json, to_json
from zkd.errors import BadRecord
from zkd.kernels import call, load

REGISTRY = load(installed=False)
RNG = np.random.default_rng(5)


def run(name: str, *args: Any, **kwargs: Any) -> Any:
    return from_json(to_json(call(REGISTRY, name, to_json(args, exact=True), to_json(kwargs, exact=True)), exact=True))


def hilbert(size: int) -> Any:
    return 1.0 / (np.arange(size)[:, None] + np.arange(size) + 1.0)


def test_products_do_not_wrap() -> None:
    assert run("dot", [2**40, 1], [2**40, 1]) == 2.0**80
    np.testing.assert_array_equal(run("dot", np.array([100, 100], np.int8), np.array([100, 100], np.int8)), 20_000)
    a, b = RNG.normal(size=(3, 4)), RNG.normal(size=(4, 2))
    np.testing.assert_array_equal(run("matmul", a, b), a @ b)
    np.testing.assert_array_equal(run("dot", a, b[:, 0]), a @ b[:, 0])
    np.testing.assert_array_equal(run("matmul", np.stack([a, a]), b), np.stack([a @ b, a @ b]))
    with pytest.raises(ValueError, match=r"mismatch|aligned"):
        run("matmul", a, a)


def test_a_norm_neither_overflows_nor_vanishes() -> None:
    assert run("norm", [3.0, 4.0]) == 5
    assert run("norm", [3e200, 4e200]) == pytest.approx(5e200)
    assert run("norm", [3e-200, 4e-200]) == pytest.approx(5e-200)
    assert run("norm", []) == 0
    assert run("norm", [0.0]) == 0
    assert np.isnan(run("norm", [np.nan, 1.0]))
    assert run("norm", [1.0, -np.inf]) == np.inf
    a = RNG.normal(size=(3, 4))
    assert run("norm", a) == pytest.approx(np.linalg.norm(a))
    for order in (1, 2, "fro", "nuc"):
        assert run("norm", a, order) == pytest.approx(np.linalg.norm(a, order))
    assert run("norm", a, "inf") == pytest.approx(np.linalg.norm(a, np.inf))
    np.testing.assert_allclose(run("norm", a, 1, 0), np.linalg.norm(a, 1, 0))
    with pytest.raises(BadRecord):
        run("norm", a, "max")


def test_solve_solves_and_refuses_what_has_no_answer() -> None:
    a = RNG.normal(size=(5, 5))
    x = RNG.normal(size=5)
    np.testing.assert_allclose(run("solve", a, a @ x), x, rtol=1e-10)
    np.testing.assert_allclose(run("solve", a, a @ np.eye(5)), np.eye(5), atol=1e-10)
    for singular in ([[1.0, 2.0], [2.0, 4.0]], hilbert(14), np.zeros((2, 2))):
        with pytest.raises(np.linalg.LinAlgError, match=r"[Ss]ingular"):
            run("solve", singular, np.ones(len(singular)))
    with pytest.raises(ValueError, match="square"):
        run("solve", [[1.0, 2.0]], [1.0])
    with pytest.raises(ValueError, match="as many rows"):
        run("solve", a, [1.0])


def test_lstsq_finds_the_least_norm_solution() -> None:
    a, b = RNG.normal(size=(9, 3)), RNG.normal(size=9)
    got = run("lstsq", a, b)
    np.testing.assert_allclose(got["solution"], LinearRegression(fit_intercept=False).fit(a, b).coef_, rtol=1e-10)
    assert got["rank"] == 3
    assert got["residuals"] == pytest.approx(np.sum((b - a @ got["solution"]) ** 2))
    flat = run("lstsq", [[1.0, 1.0]], [2.0])
    np.testing.assert_allclose(flat["solution"], [1.0, 1.0])
    assert flat["rank"] == 1


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 100.0])
@pytest.mark.parametrize("targets", [1, 3])
def test_ridge_is_scikit_learns(alpha: float, intercept: bool, targets: int) -> None:
    x, y = RNG.normal(size=(40, 5)) + 3, RNG.normal(size=(40, targets) if targets > 1 else 40)
    got = run("ridge", x, y, alpha, intercept=intercept)
    oracle = Ridge(alpha=alpha, fit_intercept=intercept, solver="svd").fit(x, y)
    np.testing.assert_allclose(got["coef"], oracle.coef_.T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got["intercept"], oracle.intercept_, rtol=1e-9, atol=1e-12)


def test_ridge_does_not_square_the_condition() -> None:
    x = np.vander(np.linspace(0, 1, 60), 9)  # condition 1e6: the normal equations keep 4 digits
    truth = np.arange(1.0, 10.0)
    got = run("ridge", x, x @ truth, 0.0, intercept=False)
    np.testing.assert_allclose(got["coef"], truth, rtol=1e-8)


def test_ridge_of_dependent_columns_needs_a_penalty() -> None:
    x = np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
    with pytest.raises(np.linalg.LinAlgError, match="alpha > 0"):
        run("ridge", x, [1.0, 2.0, 3.0], 0.0)
    assert np.isfinite(run("ridge", x, [1.0, 2.0, 3.0], 1e-3)["coef"]).all()
    wide = run("ridge", [[1.0, 2.0, 3.0]], [6.0], 0.5, intercept=False)  # fewer rows than columns
    np.testing.assert_allclose(wide["coef"], np.array([1, 2, 3]) * 6 / 14.5, rtol=1e-12)
    with pytest.raises(BadRecord, match=">= 0"):
        run("ridge", x, [1.0, 2.0, 3.0], -1)
    with pytest.raises(ValueError, match="one target a row"):
        run("ridge", x, [1.0])


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (4, 4)])
def test_svd_rebuilds_the_matrix_with_fixed_signs(shape: tuple[int, int]) -> None:
    a = RNG.normal(size=shape)
    got = run("svd", a)
    np.testing.assert_allclose(got["u"] * got["s"] @ got["vt"], a, atol=1e-13)
    np.testing.assert_allclose(got["s"], np.linalg.svd(a, compute_uv=False), rtol=1e-13)
    for row in got["vt"]:
        assert row[np.abs(row).argmax()] > 0
    few = run("svd", a, k=2)
    assert (few["u"].shape, few["s"].shape, few["vt"].shape) == ((shape[0], 2), (2,), (2, shape[1]))
    # Eckart and Young: the error of the best approximation is the first singular value left out.
    error = np.linalg.norm(a - few["u"] * few["s"] @ few["vt"], 2)
    assert error == pytest.approx(got["s"][2])
    with pytest.raises(BadRecord, match=">= 1"):
        run("svd", a, k=0)


def test_pca_is_scikit_learns() -> None:
    x = RNG.normal(size=(50, 4)) @ RNG.normal(size=(4, 4)) + 7
    got = run("pca", x, 3)
    oracle = PCA(3, svd_solver="full").fit(x)
    np.testing.assert_allclose(np.abs(got["components"]), np.abs(oracle.components_), atol=1e-12)
    np.testing.assert_allclose(got["explained_variance"], oracle.explained_variance_, rtol=1e-12)
    np.testing.assert_allclose(got["explained_variance_ratio"], oracle.explained_variance_ratio_, rtol=1e-12)
    np.testing.assert_allclose(got["singular_values"], oracle.singular_values_, rtol=1e-12)
    np.testing.assert_allclose(got["mean"], x.mean(axis=0))
    still = run("pca", [[1.0, 2.0], [1.0, 2.0]])
    assert still["explained_variance_ratio"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="2 rows"):
        run("pca", [[1.0]])


def test_eigh_is_in_descending_order_with_fixed_signs() -> None:
    a = RNG.normal(size=(5, 5))
    a = a + a.T
    got = run("eigh", a)
    np.testing.assert_allclose(got["values"], np.linalg.eigvalsh(a)[::-1], rtol=1e-12)
    np.testing.assert_allclose(got["vectors"] * got["values"] @ got["vectors"].T, a, atol=1e-12)
    for column in got["vectors"].T:
        assert column[np.abs(column).argmax()] > 0
    assert run("eigh", a, k=2)["vectors"].shape == (5, 2)
    with pytest.raises(ValueError, match="symmetric"):
        run("eigh", [[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match="square"):
        run("eigh", [[1.0, 2.0]])
