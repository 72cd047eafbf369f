"""Which version answers a request to an alias that has a canary, and when that canary is taken back.

A request belongs to the canary by a hash of its key, so that somebody who has met it meets it again, on any node and
after the share was raised. What both versions did is counted side by side, over the same time; a canary has failed when
more of its requests are bad than its limit allows, and significantly more than of the version beside it. The second
half is what makes it fair: callers who send rubbish, or a machine that is short of time, hit both.

Nodes look at the counts again and again, so each look must be wrong very seldom: see `ALPHA`. There is no I/O and no
clock here; whoever routes tells what he saw.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct
from xxhash import xxh3_64_intdigest

from zkd.registry import Alias, Canary, ClassLabel

REQUESTS_MIN = 20  # of each side, before anything is said
ALONE = 10  # so many times that, and nobody waits any longer for requests to the version beside
GENERATION = 1_000  # requests to the canary; what is judged are the last one to two of these
# How seldom one look may find a difference where there is none. A trial is looked at a few times a second for as long
# as it lasts; at 1e-6 a canary that fails all the time is still taken back after REQUESTS_MIN.
ALPHA = 1e-6
Z_ALPHA = 4.753424  # the normal distribution's, one-sided
SLOW_SHARE = 0.01  # what a 99th percentile leaves out
BINS = 10
LABELS_MAX = 20  # the rest is one
KEPT = 500  # predictions a side and generation; beyond, every second one, then every fourth...
SAME = 1e-6  # numbers that differ by less, relatively, are the same prediction

_HASHES = 2.0**64
_TICKS = 20  # of a histogram, a decade: some 12 % wide
_FIRST_S = 1e-5

Histogram: TypeAlias = dict[object, float]  # requests by bin


# --- Routing --------------------------------------------------------------------------------------------------


class Routed(NamedTuple):
    """Who answers a request; `shadow` is another version that gets it too, and whose answer is thrown away."""

    version: int
    is_canary: bool = False
    shadow: int | None = None


def draw(name: str, alias: str, version: int, key: str) -> float:
    """Where a key stands among all of them, from 0 to 1. Each version has its own order: it is not always the same
    people who meet what is new."""
    return float(xxh3_64_intdigest(f"{name}@{alias}/{version}\0{key}".encode()) / _HASHES)


def routed(alias: Alias, drawn: float) -> Routed:
    """`drawn` is the key's `draw` for the canary's version, or a random number for requests without a key."""
    canary = alias.canary
    if canary is None or drawn * 100.0 >= canary.percent:
        return Routed(alias.version)
    return Routed(alias.version, shadow=canary.version) if canary.shadow else Routed(canary.version, is_canary=True)


# --- What was seen --------------------------------------------------------------------------------------------


class Predicted(Struct, frozen=True, omit_defaults=True):
    """What was predicted for the first rows of a request: a few of them are enough to see two versions differ."""

    labels: tuple[ClassLabel, ...] = ()  # of models of classes
    numbers: tuple[float, ...] = ()  # what was expected; of two classes, the probability of the second


class Sample:
    """Evenly thinned: what was seen long ago counts as much as what was seen just now."""

    def __init__(self) -> None:
        self.kept: list[Predicted] = []
        self._seen = 0
        self._stride = 1

    def add(self, predicted: Predicted) -> None:
        if self._seen % self._stride == 0:
            self.kept.append(predicted)
            if len(self.kept) == 2 * KEPT:
                self.kept = self.kept[::2]
                self._stride *= 2
        self._seen += 1


class Side:
    """What one version did."""

    def __init__(self) -> None:
        self.requests = self.errors = self.slow = 0
        self.sample = Sample()
        self.ticks: Counter[int] = Counter()  # of seconds, on a scale of logarithms

    def saw(self, seconds: float, is_error: bool, is_slow: bool, predicted: Predicted | None) -> None:
        self.requests += 1
        self.errors += is_error
        self.slow += is_slow
        self.ticks[max(0, math.ceil(_TICKS * math.log10(max(seconds, _FIRST_S) / _FIRST_S)))] += 1
        if predicted is not None and not is_error:
            self.sample.add(predicted)

    def quantile_s(self, share: float) -> float | None:
        """So much of the requests took no longer, some 12 % too high at most."""
        left = share * self.requests
        for tick in sorted(self.ticks):
            left -= self.ticks[tick]
            if left <= 0:
                return float(_FIRST_S * 10 ** (tick / _TICKS))
        return None


class Generation(NamedTuple):
    canary: Side
    beside: Side


class Verdict(NamedTuple):
    """The limit that a canary is beyond, and how far."""

    limit: Literal["error_share", "p99_ms", "drift"]
    why: str


class Trial:
    """A canary beside a version, on one node, since that node knows of it.

    A shadow's time says nothing, since it runs when there is time; only its errors and predictions are judged.
    """

    def __init__(self, canary: Canary) -> None:
        self.canary = canary
        self.compared = self.differed = 0  # of a shadow's answers, and of those it stands behind
        self._former: Generation | None = None
        self._latest = Generation(Side(), Side())
        self.requests = Counter[bool]()  # is_canary -> how many there were in all
        self.errors = Counter[bool]()

    def saw(self, is_canary: bool, seconds: float, *, is_error: bool, predicted: Predicted | None = None) -> None:
        limit_ms = self.canary.limits.p99_ms
        is_slow = limit_ms is not None and not self.canary.shadow and seconds * 1000.0 > limit_ms
        side = self._latest.canary if is_canary else self._latest.beside
        side.saw(seconds, is_error, is_slow, predicted)
        self.requests[is_canary] += 1
        self.errors[is_canary] += is_error
        if is_canary and side.requests >= GENERATION:
            self._former, self._latest = self._latest, Generation(Side(), Side())

    def compare(self, ours: Predicted, shadows: Predicted) -> None:
        self.compared += 1
        self.differed += not is_same(ours, shadows)

    def sides(self) -> Generation:
        """What is judged: both generations in one."""
        if self._former is None:
            return self._latest
        return Generation(*(_sum(*sides) for sides in zip(self._former, self._latest, strict=True)))

    def verdict(self) -> Verdict | None:
        """Why the canary has to be taken back, if it has to."""
        canary, beside = self.sides()
        limits = self.canary.limits
        if canary.requests < REQUESTS_MIN:
            return None
        is_alone = self.canary.percent >= 100.0 and not self.canary.shadow
        if beside.requests < REQUESTS_MIN and not is_alone and canary.requests < ALONE * REQUESTS_MIN:
            return None
        if limits.error_share is not None and _is_worse(
            canary.errors, canary.requests, beside.errors, beside.requests, limits.error_share
        ):
            return Verdict(
                "error_share",
                f"errors in {canary.errors} of {canary.requests} requests, in {beside.errors} of {beside.requests} "
                f"beside it; the limit is {limits.error_share * 100:g} %",
            )
        if limits.p99_ms is not None and _is_worse(
            canary.slow, canary.requests, beside.slow, beside.requests, SLOW_SHARE
        ):
            return Verdict(
                "p99_ms",
                f"{canary.slow} of {canary.requests} requests computed for more than {limits.p99_ms:g} ms, "
                f"{beside.slow} of {beside.requests} beside it; the limit is 1 %",
            )
        if limits.drift is not None:
            drift = drift_of(beside.sample.kept, canary.sample.kept)
            if drift.psi - drift.noise > limits.drift:
                return Verdict(
                    "drift",
                    f"predictions drift by {drift.psi:.2f} (PSI) over {len(canary.sample.kept)} requests, against "
                    f"{len(beside.sample.kept)} beside it; the limit is {limits.drift:g}",
                )
        return None


def is_same(one: Predicted, other: Predicted) -> bool:
    if one.labels or other.labels:
        return one.labels == other.labels
    return len(one.numbers) == len(other.numbers) and all(
        math.isclose(a, b, rel_tol=SAME, abs_tol=SAME) or (math.isnan(a) and math.isnan(b))
        for a, b in zip(one.numbers, other.numbers, strict=True)
    )


def _sum(one: Side, other: Side) -> Side:
    both = Side()
    both.requests, both.errors = one.requests + other.requests, one.errors + other.errors
    both.slow, both.ticks = one.slow + other.slow, one.ticks + other.ticks
    both.sample.kept = one.sample.kept + other.sample.kept
    return both


# --- Shares ---------------------------------------------------------------------------------------------------


def _is_worse(bad: int, requests: int, bad_beside: int, beside: int, limit: float) -> bool:
    """Whether more of the canary's requests are bad than the limit says, and more than of the version beside it, and
    neither by chance."""
    if bad <= limit * requests or binomial_tail(bad, requests, limit) >= ALPHA:
        return False
    return beside < REQUESTS_MIN or hypergeometric_tail(bad, requests, bad_beside, beside) < ALPHA


def binomial_tail(k: int, n: int, p: float) -> float:
    """The chance of k or more of n, where each is bad with a chance of p."""
    if k <= 0 or p >= 1.0:
        return 1.0
    logs = (_log_choose(n, i) + i * math.log(p) + (n - i) * math.log1p(-p) for i in range(k, n + 1))
    return min(1.0, math.fsum(map(math.exp, logs)))


def hypergeometric_tail(k: int, n: int, k_beside: int, n_beside: int) -> float:
    """The chance that of all that is bad k or more are among these n, if both sides are alike (Fisher's exact test)."""
    bad, total = k + k_beside, _log_choose(n + n_beside, k + k_beside)
    logs = (
        _log_choose(n, i) + _log_choose(n_beside, bad - i) - total
        for i in range(max(k, bad - n_beside), min(n, bad) + 1)
    )
    return min(1.0, math.fsum(map(math.exp, logs)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


# --- Drift ----------------------------------------------------------------------------------------------------


class Drift(NamedTuple):
    psi: float  # population stability index: sum of (p - q) ln(p / q) over bins
    noise: float  # what it would exceed with a chance of ALPHA if both were alike


def drift_of(beside: Sequence[Predicted], canary: Sequence[Predicted]) -> Drift:
    """How far the canary's predictions are from those beside it; numbers in bins with a tenth of the latter each.

    Each request counts once, however many rows it has: those of one are alike. Of two samples of one distribution in B
    bins PSI / (1/n + 1/m) is chi-squared with B - 1 degrees of freedom, nearly (Yurdakul and Naranjo, 2020).
    """
    if not beside or not canary:
        return Drift(0.0, math.inf)
    one, other = _histograms(beside, canary)
    bins = sorted(one.keys() | other.keys(), key=repr)
    n, m = len(canary) + 0.5 * len(bins), len(beside) + 0.5 * len(bins)  # half a request in each, so that none is empty
    psi = 0.0
    for each in bins:
        p, q = (other[each] + 0.5) / n, (one[each] + 0.5) / m
        psi += (p - q) * math.log(p / q)
    free = len(bins) - 1
    return Drift(psi, (1 / len(canary) + 1 / len(beside)) * _chi_squared(free) if free else 0.0)


def _histograms(beside: Sequence[Predicted], canary: Sequence[Predicted]) -> tuple[Histogram, Histogram]:
    if all(each.numbers for each in (*beside, *canary)):
        edges = _edges(sorted((x, 1 / len(each.numbers)) for each in beside for x in each.numbers if not math.isnan(x)))
        binned = [_counted([[_bin(edges, x) for x in each.numbers] for each in side]) for side in (beside, canary)]
        return binned[0], binned[1]
    # Also the label's type: true is not 1.
    named = [[[f"{type(x).__name__} {x}" for x in each.labels] for each in side] for side in (beside, canary)]
    counts = _counted(named[0])
    common = set(sorted(counts, key=lambda label: -counts[label])[:LABELS_MAX])
    labelled = [_counted([[x if x in common else "" for x in each] for each in side]) for side in named]
    return labelled[0], labelled[1]


def _edges(ordered: Sequence[tuple[float, float]]) -> list[float]:
    """Upper ends of bins with equal weight, of values that are in order. Equal values share a bin."""
    total, gone = math.fsum(weight for _, weight in ordered), 0.0
    edges: list[float] = []
    for value, weight in ordered:
        gone += weight
        if gone >= total * (len(edges) + 1) / BINS - 1e-9 and len(edges) < BINS - 1:
            edges.append(value)
    return sorted(set(edges))


def _bin(edges: Sequence[float], value: float) -> int:
    return -1 if math.isnan(value) else bisect_left(edges, value)


def _counted(rows: Sequence[Sequence[object]]) -> Histogram:
    found: Histogram = defaultdict(float)
    for each in rows:
        for value in each:
            found[value] += 1 / len(each)
    return found


def _chi_squared(free: int) -> float:
    """Its upper ALPHA quantile (Wilson and Hilferty, 1931), up to 15 % too high with one degree of freedom, 3 % with
    nine."""
    return float(free * (1 - 2 / (9 * free) + Z_ALPHA * math.sqrt(2 / (9 * free))) ** 3)
