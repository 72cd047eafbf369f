"""Sums that are the same, to the last bit, in any order and grouping, and as exact as sums of floats can be."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zkd.errors import BadTraining
from zkd.models.binned import FOLD, add, binned, from_arrays

RNG = np.random.default_rng(5)


def grouped(vectors: list[np.ndarray], groups: int, seed: int) -> np.ndarray:
    """The sum by nodes that each add their own vectors, which came to them in any order."""
    rng = random.Random(seed)
    nodes: list[list[np.ndarray]] = [[] for _ in range(groups)]
    for number in rng.sample(range(len(vectors)), len(vectors)):
        nodes[number % groups if groups < len(vectors) else number].append(vectors[number])
    sums = [add(map(binned, node)) for node in nodes if node]
    rng.shuffle(sums)
    return add(sums).value()


def wild(count: int, width: int) -> list[np.ndarray]:
    """Vectors whose elements differ by many orders of magnitude, with zeros, and cancel each other."""
    vectors = [RNG.normal(size=width) * 10.0 ** RNG.integers(-30, 30, width) for _ in range(count)]
    for vector in vectors:
        vector[RNG.random(width) < 0.1] = 0.0
    return vectors + [-vector for vector in vectors[: count // 2]]


@pytest.mark.parametrize("seed", range(10))
def test_the_sum_is_the_same_for_1_2_3_and_8_nodes_and_any_order(seed: int) -> None:
    vectors = wild(60, 40)
    first = grouped(vectors, 1, 0)
    for groups in (1, 2, 3, 8, 90):
        assert grouped(vectors, groups, seed).tobytes() == first.tobytes()


def test_zeros_cost_small_numbers_nothing() -> None:
    assert add(binned(np.array([value])) for value in (0.0, 1e-30, -0.0, 1e-30)).value()[0] == 2e-30


def test_plain_sums_differ() -> None:
    """What this is for: the same vectors, added as floats."""
    vectors = wild(60, 40)
    sums = {sum(random.Random(seed).sample(vectors, len(vectors))).tobytes() for seed in range(10)}
    assert len(sums) > 1


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_each_partial_costs_at_most_one_unit_of_the_largest(values: list[float]) -> None:
    total = add(binned(np.array([value])) for value in values).value()[0]
    assert abs(total - math.fsum(values)) <= (len(values) + 1) * max(map(abs, values)) * 2.0**-52


def test_one_vector_is_itself_to_one_unit() -> None:
    for vector in (wild(1, 1000)[0], np.array([0.0, -0.0, 5e-324, -1e-310, 1.7e308, 1.0, -1.0, 0.1])):
        assert np.all(np.abs(binned(vector).value() - vector) <= np.abs(vector) * 2.0**-52)


def test_whole_numbers_of_16_384_parts_are_summed_exactly() -> None:
    parts = [binned(np.array([1.0, 0.5, 2.0**25 - 1, 2.0**52 + 1]))] * 16_384
    assert add(parts).value().tolist() == [16_384.0, 8_192.0, (2.0**25 - 1) * 16_384, (2.0**52 + 1) * 16_384]


def test_a_sum_beyond_the_largest_float_is_infinite() -> None:
    assert np.isinf(add([binned(np.array([1e308]))] * 20).value()[0])


def test_what_is_not_finite_stays_so_whatever_is_added() -> None:
    vectors = [np.array(v) for v in ([1.0, 2.0, np.inf], [np.nan, 3.0, -np.inf], [1e300, 4.0, 0.0])]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        value = add(binned(vectors[number]) for number in order).value()
        assert np.isnan(value[[0, 2]]).all()
        assert value[1] == 9.0


def test_sums_travel_as_plain_arrays() -> None:
    total = add(map(binned, wild(3, 50)))
    arrays = total.arrays()
    assert arrays["digits"].dtype == np.int32
    back = from_arrays(arrays, total.count)
    assert back.value().tobytes() == total.value().tobytes()
    many = add([binned(np.array([2.0**25 - 1]))] * 200)
    assert many.arrays()["digits"].dtype == np.float64
    assert from_arrays(many.arrays(), 200).value() == many.value()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tops": np.zeros(3, np.int64)}, "int16 tops"),
        ({"digits": np.zeros((2, 3))}, "digits for each of 3"),
        ({"digits": np.full((FOLD, 3), 0.5)}, "whole digits"),
        ({"digits": np.full((FOLD, 3), 2.0**30)}, "whole digits"),
        ({"tops": np.full(3, 900, np.int16)}, "tops from"),
    ],
)
def test_sums_that_nobody_can_have_made_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    arrays = binned(np.ones(3)).arrays() | change
    with pytest.raises(BadTraining, match=message):
        from_arrays(arrays, 1)


def test_vectors_of_different_lengths_are_not_added() -> None:
    with pytest.raises(ValueError, match="3 elements, got 2"):
        add([binned(np.ones(3)), binned(np.ones(2))])
