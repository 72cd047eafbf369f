"""Differential privacy of rounds: the noise, and what it guarantees.

A round adds up row gradients of norm at most C over rows that were each drawn with probability q, and adds Gaussian
noise of standard deviation sigma x C once. The privacy of T such rounds is counted in Renyi divergences: for whole
orders a, by Mironov, Talwar and Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism"
(arXiv 1908.10530), section 3.3,

    RDP(a) = T / (a - 1) * log sum_k C(a, k) (1 - q)^(a - k) q^k exp((k^2 - k) / (2 sigma^2))

and turned into (epsilon, delta) by Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy"
(arXiv 2004.00010), proposition 12. Neighbours are data sets that differ in one row more or less.

Not covered: what a survey of the data tells (means, scales, ranges), held-out losses, and the low bits of floating
point noise (Mironov, "On significance of the least significant bits", 2012). Whoever knows the run's seed can take the
noise off again: draw it at random, from 128 bits or more, and keep it from those who are given the model.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from zkd.errors import BadTraining
from zkd.models.model import Vector

ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512)


@cache  # of one rate and noise for all rounds of a run
def rdp_of_sampled_gaussian(rate: float, noise: float, order: int) -> float:
    """The Renyi divergence of one round at a whole order of 2 or more."""
    if not (0.0 <= rate <= 1.0 and noise > 0 and order >= 2):
        raise BadTraining(f"privacy: expected a rate from 0 to 1 and noise above 0, got {rate} and {noise}")
    if rate == 0.0:
        return 0.0
    per_order = 1.0 / (2.0 * noise * noise)
    if rate == 1.0:
        return order * per_order
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + (order - k) * math.log1p(-rate)
        + k * math.log(rate)
        + (k * k - k) * per_order
        for k in range(order + 1)
    ]
    largest = max(terms)
    total = math.fsum(math.exp(term - largest) for term in terms)
    return (largest + math.log(total)) / (order - 1)


def epsilon_of(rate: float, noise: float, rounds: int, delta: float) -> float:
    """The smallest epsilon that the accounting can show for `rounds` rounds at `delta`."""
    if not 0.0 < delta < 1.0:
        raise BadTraining(f"privacy: expected a delta between 0 and 1, got {delta}")
    if rounds == 0:
        return 0.0
    shown = (
        rounds * rdp_of_sampled_gaussian(rate, noise, order)
        + math.log1p(-1.0 / order)
        - (math.log(delta) + math.log(order)) / (order - 1)
        for order in ORDERS
    )
    best: float = min(shown)
    return max(0.0, best)


def noise_vector(seed: int, number: int, size: int, deviation: float) -> Vector:
    """The noise of round `number`: the same again when a round is repeated, so that repeating it tells nothing new."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([2, seed, number, 0])))
    return deviation * rng.standard_normal(size)
