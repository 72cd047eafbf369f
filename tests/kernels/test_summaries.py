"""Summaries of parts, put together, equal those of the whole: exactly where that can be, else to a stated bound."""

from __future__ import annotations

import fractions
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from zkd.arrays import from_json, to_json
from zkd.errors import BadRecord
from zkd.kernels import call, load

REGISTRY = load(installed=False)
RNG = np.random.default_rng(4)
REAL: dict[str, Callable[[], Any]] = {
    "digits": lambda: load_digits(return_X_y=True),
    "breast cancer": lambda: load_breast_cancer(return_X_y=True),
    "diabetes": lambda: load_diabetes(return_X_y=True),
}


def run(name: str, *args: Any, **kwargs: Any) -> Any:
    return from_json(to_json(call(REGISTRY, name, to_json(args, exact=True), to_json(kwargs, exact=True))))


def cut(rows: int, parts: int, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """Which rows are in which part, as hashing deals them; some parts are empty when there are many."""
    dealt = np.random.default_rng(seed).integers(0, parts, rows)
    return [np.flatnonzero(dealt == part) for part in range(parts)]


def rank_errors(sketch: Any, x: Any) -> int:
    """How many rows the rank of any value of `x` is off, by counting."""
    worst = 0
    for values, weights, column in zip(
        np.asarray(sketch["values"], float).T, np.asarray(sketch["weights"]).T, x.T, strict=True
    ):
        asked, order = np.unique(column), np.argsort(values, kind="stable")
        up_to = np.concatenate([[0], np.cumsum(weights[order])])  # weight of the first so many values
        said = up_to[np.searchsorted(values[order], asked, side="right")]
        worst = max(worst, int(np.abs(said - np.searchsorted(np.sort(column), asked, side="right")).max(initial=0)))
    return worst


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("parts", [1, 7, 64])
def test_means_and_covariances_of_real_data_are_numpys(name: str, parts: int) -> None:
    x, _ = REAL[name]()
    summaries = [run("moments", x[rows], cross=True) for rows in cut(len(x), parts)]
    whole = run("combine_moments", summaries)
    assert whole["count"] == len(x)
    np.testing.assert_allclose(whole["mean"], x.mean(axis=0), rtol=1e-12, atol=1e-15)
    found, expected = np.asarray(run("combine_covariance", summaries)), np.cov(x, rowvar=False)
    scale = np.sqrt(np.outer(np.diagonal(expected), np.diagonal(expected)))
    np.testing.assert_array_less(np.abs(found - expected), 1e-12 * scale + 1e-300)


def test_columns_side_by_side_are_a_matrix() -> None:
    x, y = REAL["diabetes"]()
    together = run("moments", np.column_stack([x, y]), cross=True)
    assert run("moments", x, y, cross=True) == together
    assert run("moments", *x.T, y, cross=True) == together
    with pytest.raises(ValueError, match="same rows, got 441 and 442"):
        run("moments", x, y[1:])
    with pytest.raises(ValueError, match="at least one column"):
        run("moments")
    with pytest.raises(ValueError, match="cross"):
        run("combine_covariance", [run("moments", x)])


@pytest.mark.parametrize("parts", [1, 5, 300])
def test_histograms_add_up_exactly(parts: int) -> None:
    x, _ = REAL["breast cancer"]()
    edges = np.histogram_bin_edges(x, 40)
    summaries = [run("histogram", x[rows], bins=40, range=[edges[0], edges[-1]]) for rows in cut(len(x), parts)]
    whole = run("combine_histograms", summaries)
    np.testing.assert_array_equal(whole["counts"], np.histogram(x, edges)[0])
    again = run("combine_histograms", [whole, run("histogram", np.zeros(0), bins=40, range=[edges[0], edges[-1]])])
    np.testing.assert_array_equal(again["counts"], whole["counts"])


def test_histograms_that_do_not_add_up_are_refused() -> None:
    one = run("histogram", [1.0, 2.0, 5.0], bins=3)
    with pytest.raises(ValueError, match="same edges"):
        run("combine_histograms", [one, run("histogram", [1.0, 9.0], bins=3)])
    with pytest.raises(ValueError, match="densities"):
        run("combine_histograms", [run("histogram", [1.0, 2.0, 5.0], bins=3, density=True)])
    with pytest.raises(ValueError, match="at least one"):
        run("combine_histograms", [])


@pytest.mark.parametrize("parts", [1, 7, 64])
def test_groups_of_real_data_are_numpys(parts: int) -> None:
    x, y = REAL["digits"]()
    rows = cut(len(x), parts)
    whole = run("combine_group_sums", [run("group_sums", y[some], x[some, 20], x[some, 43] / 3) for some in rows])
    np.testing.assert_array_equal(whole["keys"], np.arange(10))
    np.testing.assert_array_equal(whole["counts"], np.bincount(y))
    exact = [[sum(map(fractions.Fraction, column[y == digit].tolist())) for digit in range(10)]
             for column in (x[:, 20], x[:, 43] / 3)]  # fmt: skip
    np.testing.assert_array_equal(whole["sums"][0], [float(total) for total in exact[0]])
    np.testing.assert_allclose(whole["sums"][1], [float(total) for total in exact[1]], rtol=1e-14)


def test_groups_by_text_and_sums_of_whole_numbers_are_exact() -> None:
    names = np.array(["ab", "b", "", "ab", "äöü", "b"])
    counts = np.array([1, 2**53 + 1, 3, 4, 5, 2**53], np.int64)
    summaries = [run("group_sums", names[some], counts[some]) for some in ([0, 1], [], [2, 3, 4, 5])]
    whole = run("combine_group_sums", summaries)
    assert list(whole["keys"]) == ["", "ab", "b", "äöü"]
    assert list(whole["counts"]) == [1, 2, 2, 1]
    assert [int(total) for total in whole["sums"][0]] == [3, 5, 2**54 + 1, 5]
    with pytest.raises(OverflowError):
        run("group_sums", [1, 1], np.array([2**62, 2**62]))


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="one key a row"):
        run("group_sums", [[1, 2]])
    with pytest.raises(ValueError, match="columns of 2 numbers"):
        run("group_sums", [1, 2], [1.0])
    with pytest.raises(ValueError, match="same columns"):
        run("combine_group_sums", [run("group_sums", [1], [1.0]), run("group_sums", [1])])
    with pytest.raises(BadRecord, match="keys"):
        run("combine_group_sums", [{"counts": [1], "sums": []}])


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-1e300, 1e300)), max_size=40))
@settings(deadline=None, max_examples=60)
def test_a_sum_over_parts_of_one_row_is_rounded_once(rows: list[tuple[int, float]]) -> None:
    summaries = [run("group_sums", [key], [value]) for key, value in rows] or [run("group_sums", [])]
    whole = run("combine_group_sums", summaries)
    for key, total in zip(whole["keys"], whole["sums"][0] if whole["sums"] else [], strict=True):
        assert float(total) == float(sum(fractions.Fraction(value) for each, value in rows if each == key))


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("parts", [1, 7, 64])
def test_quantiles_of_few_rows_are_numpys(name: str, parts: int) -> None:
    x, _ = REAL[name]()
    x = x[:1024]
    sketch = run("combine_quantile_sketches", [run("quantile_sketch", x[rows]) for rows in cut(len(x), parts)])
    q = [0.0, 0.01, 0.25, 0.5, 0.9, 1.0]
    got = run("sketch_quantiles", sketch, q)
    assert got["rank_error"] == 0
    np.testing.assert_array_equal(np.asarray(got["values"], float), np.quantile(x, q, axis=0))


@pytest.mark.parametrize("parts", [1, 3, 16, 200])
def test_ranks_of_many_rows_are_within_the_bound_that_is_stated(parts: int) -> None:
    rows = 50_000
    x = np.column_stack([RNG.normal(size=rows), RNG.exponential(size=rows) ** 3, RNG.integers(0, 50, rows)])
    size = 128
    sketch = run("combine_quantile_sketches", [run("quantile_sketch", x[some], size=size) for some in cut(rows, parts)])
    assert len(sketch["values"]) == size
    assert rank_errors(sketch, x) <= sketch["rank_error"] <= 1.5 * rows / size
    got = run("sketch_quantiles", sketch, [0.0, 0.37, 0.5, 0.99, 1.0])
    values = np.asarray(got["values"])
    np.testing.assert_array_equal(values[[0, -1]], [x.min(axis=0), x.max(axis=0)])
    for place, q in ((1, 0.37), (2, 0.5), (3, 0.99)):
        for column in range(3):
            below, upto = (x[:, column] < values[place, column]).sum(), (x[:, column] <= values[place, column]).sum()
            allowed = got["rank_error"] * rows + 1
            assert below - allowed <= q * rows <= upto + allowed


@given(st.lists(st.integers(0, 8), min_size=0, max_size=90), st.integers(2, 9), st.integers(1, 6), st.integers(0, 9))
@settings(deadline=None, max_examples=150)
def test_the_stated_bound_holds_for_any_rows_and_any_parts(values: list[int], size: int, parts: int, seed: int) -> None:
    x = np.array(values, float).reshape(-1, 1)
    summaries = [run("quantile_sketch", x[rows], size=size) for rows in cut(len(x), parts, seed)]
    sketch = run("combine_quantile_sketches", summaries)
    assert sketch["count"] == len(x)
    assert int(np.asarray(sketch["weights"]).sum()) == len(x)
    assert rank_errors(sketch, x) <= sketch["rank_error"]
    twice = run("combine_quantile_sketches", [run("combine_quantile_sketches", summaries[:2]), *summaries[2:]])
    assert rank_errors(twice, x) <= twice["rank_error"]


def test_sketches_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        run("quantile_sketch", [1.0, float("nan")])
    with pytest.raises(ValueError, match="0 to 1"):
        run("sketch_quantiles", run("quantile_sketch", [1.0]), [1.5])
    with pytest.raises(ValueError, match="at least one row"):
        run("sketch_quantiles", run("quantile_sketch", np.zeros(0)), [0.5])
    one, two = run("quantile_sketch", [1.0]), run("quantile_sketch", [[1.0, 2.0]])
    with pytest.raises(ValueError, match="same columns"):
        run("combine_quantile_sketches", [one, two])
    with pytest.raises(ValueError, match="a weight for each"):
        run("combine_quantile_sketches", [one | {"weights": [[1], [1]]}])


def test_the_same_parts_give_the_same_bits() -> None:
    x, y = REAL["digits"]()
    for name, args in (("quantile_sketch", (x,)), ("moments", (x,)), ("group_sums", (y, x[:, 3]))):
        once, again = ([run(name, *(each[rows] for each in args)) for rows in cut(len(x), 9)] for _ in range(2))
        combine = {"quantile_sketch": "combine_quantile_sketches", "moments": "combine_moments"}
        combined = [to_json(run(combine.get(name, "combine_group_sums"), parts)) for parts in (once, again)]
        assert combined[0] == combined[1]
