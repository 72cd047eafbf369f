"""Reductions that neither wrap nor lose digits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zkd.arrays import from_json, to_json
from zkd.errors import BadRecord
from zkd.kernels import call, load

REGISTRY = load(installed=False)


def run(name: str, *args: Any, **kwargs: Any) -> Any:
    return from_json(to_json(call(REGISTRY, name, to_json(args, exact=True), to_json(kwargs, exact=True))))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
@settings(deadline=None)
def test_a_sum_of_integers_is_exact(values: list[int]) -> None:
    assert run("sum", values) == sum(values)
    assert run("sum", np.array(values)) == sum(values)


def test_a_sum_that_could_wrap_along_an_axis_is_refused() -> None:
    large = np.full((2, 2), 2**62)
    assert run("sum", large) == 2**64
    with pytest.raises(OverflowError, match="64 bits"):
        run("sum", large, axis=0)
    assert run("sum", np.array([[-(2**63), 1]]), axis=0) == [-(2**63), 1]
    assert run("sum", np.array([200, 100], np.uint8)) == 300
    assert run("sum", np.array([2**64 - 1, 1], np.uint64)) == 2**64
    assert run("sum", [[1, 2], [3, 4]], axis=1) == [3, 7]
    assert run("sum", [[1, 2], [3, 4]], 0) == [4, 6]


def test_single_precision_is_summed_in_double() -> None:
    values = np.full(1_000_000, 0.1, np.float32)
    exact = math.fsum(values.tolist())
    assert run("sum", values) == pytest.approx(exact, rel=1e-12)
    assert run("mean", values) == pytest.approx(exact / len(values), rel=1e-12)
    assert run("cumsum", values)[-1] == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("sum", ([],), 0.0),
        ("sum", (3,), 3),
        ("sum", ([1 + 2j, 1],), 2 + 2j),
        ("prod", ([2, 3, 4],), 24.0),
        ("prod", (np.full(5, 2**30),), 2.0**150),
        ("min", ([3, 1, 2],), 1),
        ("max", ([[3, 1], [2, 5]], 0), [3, 5]),
        ("add", ([1, 2], 1), [2, 3]),
        ("add", ([[1], [2]], [10, 20]), [[11, 21], [12, 22]]),
        ("multiply", ([1.5, 2], [2, 2]), [3.0, 4.0]),
        ("scale", ([1, 2], 0.5), [0.5, 1.0]),
        ("cumsum", ([1, 2, 3],), [1.0, 3.0, 6.0]),
        ("sort", ([3, 1, 2],), [1, 2, 3]),
        ("sort", ([[3, 1], [0, 2]], None), [0, 1, 2, 3]),
        ("identity", ({"a": [1, None]},), {"a": [1, None]}),
        ("echo", (1, [2]), {"args": [1, [2]], "kwargs": {}}),
    ],
)
def test_simple_kernels_give_what_anyone_expects(name: str, args: Any, expected: Any) -> None:
    assert run(name, *args) == expected


@pytest.mark.parametrize("name", ["min", "max", "mean", "describe"])
def test_nothing_has_no_smallest_element(name: str) -> None:
    with pytest.raises(ValueError, match=r"zero-size|at least one"):
        run(name, [])


def test_text_is_no_number() -> None:
    with pytest.raises(BadRecord, match=r"\[0\]: expected number, got the text 'a'"):
        run("sum", ["a"])
