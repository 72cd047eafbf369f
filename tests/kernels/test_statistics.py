"""Statistics by parts equal those of the whole, against plain formulas and numpy."""

from __future__ import annotations

import fractions
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zkd.arrays import from_json, to_json
from zkd.errors import BadRecord
from zkd.kernels import call, load

REGISTRY = load(installed=False)
RNG = np.random.default_rng(3)


def run(name: str, *args: Any, **kwargs: Any) -> Any:
    return from_json(to_json(call(REGISTRY, name, to_json(args), to_json(kwargs))))


def exact_variance(values: Any) -> float:
    """The sample variance in rational arithmetic: no rounding at all."""
    exact = [fractions.Fraction(float(value)) for value in values]
    mean = sum(exact) / len(exact)
    return float(sum((value - mean) ** 2 for value in exact) / (len(exact) - 1))


def test_describe_equals_the_textbook_without_rounding() -> None:
    values = (RNG.normal(size=300) + 1e8).tolist()
    got = run("describe", values)
    assert got["count"] == 300
    assert got["mean"] == pytest.approx(float(sum(map(fractions.Fraction, values)) / 300), rel=1e-15)
    assert got["var"] == pytest.approx(exact_variance(values), rel=1e-12)
    assert got["std"] == pytest.approx(np.sqrt(exact_variance(values)), rel=1e-12)
    assert (got["min"], got["max"]) == (min(values), max(values))


def test_describe_along_an_axis() -> None:
    x = RNG.normal(size=(4, 5, 3))
    for axis in (0, 1, 2, -1):
        got = run("describe", x, axis=axis)
        assert got["count"] == x.shape[axis]
        np.testing.assert_allclose(got["mean"], x.mean(axis=axis), rtol=1e-13)
        np.testing.assert_allclose(got["var"], x.var(axis=axis, ddof=1), rtol=1e-12)
        np.testing.assert_array_equal(got["max"], x.max(axis=axis))
    single = run("describe", [7.0])
    assert single["mean"] == 7
    assert np.isnan(single["var"])


@given(st.lists(st.integers(0, 60), min_size=0, max_size=6), st.sampled_from([0.0, 1e9, -1e12]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_parts_combine_to_the_whole_however_it_was_cut(cuts: list[int], shift: float, cross: bool) -> None:
    x = np.random.default_rng(len(cuts)).normal(size=(60, 3)) + shift
    edges = [0, *sorted(cuts), 60]
    parts = [x[start:end] for start, end in pairwise(edges)]  # empty ones, too
    whole = run("combine_moments", [run("moments", part, cross=cross) for part in parts])
    assert whole["count"] == 60
    np.testing.assert_allclose(whole["mean"], x.mean(axis=0), rtol=1e-14, atol=1e-15)
    covariance = np.asarray(whole["m2"]) / 59
    expected = np.cov(x - x.mean(axis=0), rowvar=False)
    # A mean of 10**k deviations costs k digits, as Chan et al. prove. A sum of squares would lose 2k: all of them.
    lost = 10 * np.finfo(np.float64).eps * max(abs(shift), 1.0)
    np.testing.assert_allclose(covariance, expected if cross else np.diagonal(expected), rtol=lost, atol=lost)
    np.testing.assert_array_equal(whole["min"], x.min(axis=0))
    np.testing.assert_array_equal(whole["max"], x.max(axis=0))


def test_blocks_of_a_long_part_combine_as_parts_do() -> None:
    x = RNG.normal(size=(40_000, 2)) * [1, 1e6] + [1e7, 0]
    got = run("moments", x)
    assert got["count"] == 40_000
    np.testing.assert_allclose(np.asarray(got["m2"]) / 39_999, x.var(axis=0, ddof=1), rtol=1e-8)


def test_large_means_do_not_cancel() -> None:
    values = [1e9 + 4, 1e9 + 7, 1e9 + 13, 1e9 + 16]  # Wikipedia's example, variance 30
    parts = [run("moments", [[value]]) for value in values]
    assert run("combine_moments", parts)["m2"][0] / 3 == 30
    assert run("describe", values)["var"] == 30


def test_a_mean_that_no_double_can_be_costs_the_variance_nothing() -> None:
    values = [1e15, 1e15 + 1, 1e15 + 1]  # doubles are 0.125 apart here, the mean is 2/3 past the first
    assert run("describe", values)["var"] == pytest.approx(1 / 3, rel=1e-12)
    matrix = [[value, -value] for value in values]
    np.testing.assert_allclose(run("covariance", matrix), [[1 / 3, -1 / 3], [-1 / 3, 1 / 3]], rtol=1e-12)


def test_no_rows_are_the_neutral_element() -> None:
    empty = run("moments", np.zeros((0, 2)))
    assert empty["count"] == 0
    part = run("moments", [[1.0, 2.0], [3.0, 5.0]])
    assert run("combine_moments", [empty, part, empty]) == part
    assert run("combine_moments", [empty, empty])["count"] == 0


def test_parts_that_do_not_belong_together_are_refused() -> None:
    one, two = run("moments", [[1.0]]), run("moments", [[1.0, 2.0]])
    with pytest.raises(ValueError, match="same columns"):
        run("combine_moments", [one, two])
    with pytest.raises(ValueError, match="same columns"):
        run("combine_moments", [two, run("moments", [[1.0, 2.0]], cross=True)])
    with pytest.raises(ValueError, match="at least one part"):
        run("combine_moments", [])
    with pytest.raises(BadRecord, match="count"):
        run("combine_moments", [one | {"count": -1}])
    with pytest.raises(BadRecord, match="missing required field"):
        run("combine_moments", [{"count": 1}])


def test_covariance_and_correlation_are_numpys() -> None:
    x = RNG.normal(size=(50, 4)) @ RNG.normal(size=(4, 4))
    np.testing.assert_allclose(run("covariance", x), np.cov(x, rowvar=False), rtol=1e-12)
    np.testing.assert_allclose(run("covariance", x, ddof=0), np.cov(x, rowvar=False, ddof=0), rtol=1e-12)
    np.testing.assert_allclose(run("correlation", x), np.corrcoef(x, rowvar=False), rtol=1e-12)
    constant = np.asarray(run("correlation", [[1.0, 1.0], [2.0, 1.0]]))
    assert constant[0, 0] == 1
    assert np.isnan(constant[0, 1])
    with pytest.raises(ValueError, match="rows"):
        run("covariance", [[1.0]])
    with pytest.raises(ValueError, match="2 rows"):
        run("correlation", [[1.0]])


def test_histograms_over_the_same_edges_add_up() -> None:
    x = RNG.normal(size=500)
    edges = [-3.0, -1.0, 0.0, 0.5, 4.0]
    counts, _ = np.histogram(x, edges)
    parts = [run("histogram", part.tolist(), edges)["counts"] for part in np.split(x, 5)]
    np.testing.assert_array_equal(np.sum(parts, axis=0), counts)
    assert run("histogram", [1, 2, 1], 2, range=[0, 4]) == {"counts": [2, 1], "edges": [0.0, 2.0, 4.0]}
    with pytest.raises(BadRecord, match=">= 1"):
        run("histogram", [1], 0)
    with pytest.raises(ValueError, match="monoton"):
        run("histogram", [1], [2.0, 1.0])


def test_quantiles_interpolate() -> None:
    assert run("quantiles", [1, 2, 3, 4], 0.5) == 2.5
    assert run("quantiles", [1, 2, 3, 4], [0, 0.25, 1]) == [1, 1.75, 4]
    assert run("quantiles", [[1, 2], [3, 4]], 0.5, axis=0) == [2, 3]
    with pytest.raises(ValueError, match="0, 1"):
        run("quantiles", [1.0], 1.5)


def test_class_means_are_those_of_each_class() -> None:
    got = run("class_means", [[1, 2], [3, 4], [5, 9]], [1, 0, 1])
    assert got == {"labels": [0, 1], "counts": [1, 2], "means": [[3, 4], [3, 5.5]]}
    with pytest.raises(ValueError, match="one label a row"):
        run("class_means", [[1.0]], [0, 1])
    with pytest.raises(BadRecord, match="int64"):
        run("class_means", [[1.0]], [0.5])


def test_standardize_gives_mean_zero_and_deviation_one() -> None:
    x = RNG.normal(size=(30, 2)) * 5 + 3
    found = run("describe", x, axis=0)
    z = np.asarray(run("standardize", x, found["mean"], found["std"]))
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(z.std(axis=0, ddof=1), 1, rtol=1e-13)
    assert run("standardize", [[5.0]], [4.0], [0.0]) == [[1.0]]


def test_moments_are_readable_by_any_client() -> None:
    text = to_json(call(REGISTRY, "moments", b"[[[1,2],[3,5]]]"))
    assert msgspec.json.decode(text) == {
        "count": 2, "mean": [2.0, 3.5], "m2": [2.0, 4.5], "min": [1.0, 2.0], "max": [3.0, 5.0]
    }  # fmt: skip
