"""The accountant against the definition it accounts for, by numerical integration, and against known cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from zkd.errors import BadTraining
from zkd.models.privacy import epsilon_of, noise_vector, rdp_of_sampled_gaussian


def divergence_by_integration(rate: float, noise: float, order: int) -> float:
    """E over N(0, s^2) of (mixture / N(0, s^2))^order, the larger of the two directions (Mironov et al., theorem 5)."""

    def inside(x: float) -> float:
        ratio = (1 - rate) + rate * math.exp((2 * x - 1) / (2 * noise**2))
        return stats.norm.pdf(x, 0, noise) * ratio**order

    value, _ = integrate.quad(inside, -30 * noise, 30 * noise + order, limit=500)
    return math.log(value) / (order - 1)


@pytest.mark.parametrize(("rate", "noise", "order"), [(0.01, 1.0, 2), (0.01, 1.0, 8), (0.1, 2.0, 16), (0.5, 4.0, 32)])
def test_the_divergence_is_what_integration_says(rate: float, noise: float, order: int) -> None:
    assert rdp_of_sampled_gaussian(rate, noise, order) == pytest.approx(
        divergence_by_integration(rate, noise, order), rel=1e-6
    )


def test_all_rows_give_the_gaussian_mechanism_and_none_cost_nothing() -> None:
    assert rdp_of_sampled_gaussian(1.0, 2.0, 10) == 10 / 8
    assert rdp_of_sampled_gaussian(0.0, 2.0, 10) == 0.0
    assert rdp_of_sampled_gaussian(1.0 - 1e-12, 2.0, 10) == pytest.approx(10 / 8)
    assert epsilon_of(0.1, 1.0, 0, 1e-5) == 0.0


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (4.0, 1), (10.0, 50)])
def test_epsilon_is_no_less_than_the_exact_one_of_the_gaussian_mechanism_and_not_much_more(
    noise: float, rounds: int
) -> None:
    """Balle and Wang (arXiv 1805.06530), theorem 8; T rounds of all rows are one with noise / sqrt(T)."""
    delta, scale = 1e-5, noise / math.sqrt(rounds)

    def gap(epsilon: float) -> float:
        near, far = 0.5 / scale - epsilon * scale, -0.5 / scale - epsilon * scale
        return stats.norm.cdf(near) - math.exp(epsilon) * stats.norm.cdf(far) - delta

    exact = optimize.brentq(gap, 1e-6, 100)
    assert exact <= epsilon_of(1.0, noise, rounds, delta) <= 1.15 * exact + 0.02


def test_the_example_of_abadi_is_within_what_they_report() -> None:
    """Abadi et al. (arXiv 1607.00133), section 3.2: q = 0.01, sigma = 4, 10,000 steps, delta 1e-5: about 1.26."""
    assert 0.9 < epsilon_of(0.01, 4.0, 10_000, 1e-5) < 1.26


def test_the_noise_of_a_round_is_the_same_when_it_is_repeated_and_no_other_rounds() -> None:
    first = noise_vector(2**90, 3, 100_000, 2.0)
    assert np.array_equal(first, noise_vector(2**90, 3, 100_000, 2.0))
    assert abs(np.corrcoef(first, noise_vector(2**90, 4, 100_000, 2.0))[0, 1]) < 0.02
    assert first.std() == pytest.approx(2.0, rel=0.01)


def test_numbers_that_promise_nothing_are_refused() -> None:
    for rate, noise in ((-0.1, 1.0), (1.1, 1.0), (0.5, 0.0)):
        with pytest.raises(BadTraining, match="rate from 0 to 1"):
            rdp_of_sampled_gaussian(rate, noise, 2)
    with pytest.raises(BadTraining, match="delta between 0 and 1"):
        epsilon_of(0.5, 1.0, 1, 0.0)
