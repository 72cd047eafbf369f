"""A canary gets its share and keeps its people; one that is worse is taken back, one that is not never is."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from zkd.core import canary as core
from zkd.core.canary import GENERATION, KEPT, REQUESTS_MIN, Predicted, Routed, Sample, Trial, Verdict, draw, routed
from zkd.registry import Alias, Canary, CanaryLimits

LIMITS = CanaryLimits(error_share=0.05, p99_ms=50.0, drift=0.2)
KEYS = st.text(max_size=40)
PERCENTS = st.floats(0.01, 100.0)


def on(percent: float, *, shadow: bool = False, limits: CanaryLimits = LIMITS) -> Alias:
    return Alias(1, Canary(version=2, percent=percent, shadow=shadow, limits=limits))


# --- Routing ------------------------------------------------------------------------------------------------


@given(key=KEYS, percent=PERCENTS, more=PERCENTS)
def test_who_met_the_canary_meets_it_again_also_when_its_share_is_raised(key: str, percent: float, more: float) -> None:
    drawn = draw("m", "live", 2, key)
    assert 0.0 <= drawn <= 1.0
    assert drawn == draw("m", "live", 2, key)
    low, high = sorted((percent, more))
    if routed(on(low), drawn).is_canary:
        assert routed(on(high), drawn) == Routed(2, is_canary=True)


@given(key=KEYS, percent=PERCENTS)
def test_a_shadow_answers_nobody_and_gets_the_requests_that_a_canary_would_answer(key: str, percent: float) -> None:
    drawn = draw("m", "live", 2, key)
    seen = routed(on(percent, shadow=True), drawn)
    assert (seen.version, seen.is_canary) == (1, False)
    assert (seen.shadow == 2) == routed(on(percent), drawn).is_canary


@pytest.mark.parametrize("percent", [1.0, 10.0, 50.0, 99.0])
def test_the_share_is_what_was_asked_for(percent: float) -> None:
    n = 20_000
    hits = sum(routed(on(percent), draw("m", "live", 2, f"user-{number}")).is_canary for number in range(n))
    assert stats.binomtest(hits, n, percent / 100).pvalue > 1e-6


def test_all_is_all_and_without_a_canary_there_is_one_version() -> None:
    assert all(routed(on(100.0), draw("m", "live", 2, str(number))).is_canary for number in range(1_000))
    assert routed(Alias(7), 0.0) == Routed(7)


def test_each_version_and_alias_has_its_own_order_of_people() -> None:
    def of(name: str, alias: str, version: int) -> set[int]:
        return {key for key in range(2_000) if draw(name, alias, version, str(key)) < 0.1}

    first = of("m", "live", 2)
    for other in (of("m", "live", 3), of("m", "test", 2), of("n", "live", 2)):
        assert len(first & other) < 60  # a tenth of 200, by chance


# --- Shares -------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 300), p=st.floats(0.001, 1.0), share=st.floats(0, 1))
def test_the_binomial_tail_is_that_of_scipy(n: int, p: float, share: float) -> None:
    k = round(share * n)
    assert core.binomial_tail(k, n, p) == pytest.approx(stats.binom.sf(k - 1, n, p), rel=1e-8, abs=1e-300)


@given(n=st.integers(1, 200), m=st.integers(1, 200), one=st.floats(0, 1), other=st.floats(0, 1))
def test_the_test_against_the_other_version_is_that_of_scipy(n: int, m: int, one: float, other: float) -> None:
    k, j = round(one * n), round(other * m)
    expected = stats.hypergeom.sf(k - 1, n + m, k + j, n)
    assert core.hypergeometric_tail(k, n, j, m) == pytest.approx(expected, rel=1e-7, abs=1e-300)


def fill(trial: Trial, is_canary: bool, requests: int, bad: int = 0, *, seconds: float = 0.01) -> None:
    for number in range(requests):
        trial.saw(is_canary, seconds, is_error=number < bad)


def said(trial: Trial) -> str:
    verdict = trial.verdict()
    return "" if verdict is None else verdict.why


def test_a_canary_that_fails_always_is_taken_back_after_its_first_requests() -> None:
    trial = Trial(on(10.0).canary)  # type: ignore[arg-type]
    fill(trial, False, 180)
    fill(trial, True, REQUESTS_MIN - 1, REQUESTS_MIN)
    assert trial.verdict() is None
    fill(trial, True, 1, 1)
    assert trial.verdict() == Verdict(
        "error_share", "errors in 20 of 20 requests, in 0 of 180 beside it; the limit is 5 %"
    )


def test_a_slow_canary_is_taken_back() -> None:
    trial = Trial(on(10.0).canary)  # type: ignore[arg-type]
    fill(trial, False, 300)
    fill(trial, True, 20)
    assert trial.verdict() is None
    fill(trial, True, 10, seconds=0.06)
    assert trial.verdict() == Verdict(
        "p99_ms", "10 of 30 requests computed for more than 50 ms, 0 of 300 beside it; the limit is 1 %"
    )


@pytest.mark.parametrize("seconds", [0.01, 0.5])
def test_what_hits_both_is_not_the_canarys(seconds: float) -> None:
    trial = Trial(on(50.0).canary)  # type: ignore[arg-type]
    for is_canary in (True, False):
        fill(trial, is_canary, 300, 150, seconds=seconds)
    assert trial.verdict() is None


def test_one_that_is_beyond_its_limit_by_chance_is_not_taken_back() -> None:
    trial = Trial(on(10.0).canary)  # type: ignore[arg-type]
    fill(trial, False, 2_000)  # none of which was bad
    fill(trial, True, 250, 15)  # 6 %
    assert trial.verdict() is None
    fill(trial, True, 250, 60)
    assert said(trial).startswith("errors in 75 of 500 requests, in 0 of 2000 beside it")


def test_a_shadows_time_says_nothing() -> None:
    trial = Trial(on(100.0, shadow=True).canary)  # type: ignore[arg-type]
    fill(trial, False, 300)
    fill(trial, True, 300, seconds=9.0)
    assert trial.verdict() is None


def test_without_limits_nothing_is_taken_back() -> None:
    trial = Trial(on(50.0, limits=CanaryLimits()).canary)  # type: ignore[arg-type]
    fill(trial, False, 300)
    fill(trial, True, 300, 300, seconds=9.0)
    assert trial.verdict() is None


@pytest.mark.parametrize(("percent", "requests"), [(100.0, REQUESTS_MIN), (99.0, core.ALONE * REQUESTS_MIN)])
def test_with_nothing_beside_it_the_limit_alone_counts(percent: float, requests: int) -> None:
    trial = Trial(on(percent).canary)  # type: ignore[arg-type]
    fill(trial, True, requests - 1, requests)
    assert trial.verdict() is None
    fill(trial, True, 1, 1)
    assert trial.verdict() is not None


@pytest.mark.parametrize("seed", range(2))
def test_a_canary_as_good_as_the_other_is_never_taken_back(seed: int) -> None:
    """Also where both are close to the limits, over many generations, looked at all the time."""
    chance = random.Random(seed)
    trial = Trial(on(20.0).canary)  # type: ignore[arg-type]
    for number in range(12_000):
        seconds = 0.2 if chance.random() < 0.01 else 0.01
        predicted = Predicted(numbers=(chance.gauss(0, 1),))
        trial.saw(chance.random() < 0.2, seconds, is_error=chance.random() < 0.05, predicted=predicted)
        if number % 100 == 0:
            assert trial.verdict() is None


def test_one_that_turns_bad_late_is_taken_back_however_good_it_was() -> None:
    trial = Trial(on(50.0).canary)  # type: ignore[arg-type]
    for _ in range(5):
        fill(trial, False, GENERATION)
        fill(trial, True, GENERATION)
    assert trial.verdict() is None
    fill(trial, False, 300)
    fill(trial, True, 300, 300)
    assert said(trial).startswith("errors in 300 of 1300 requests, in 0 of 1300 beside it")
    assert trial.requests == {True: 5_300, False: 5_300}


# --- Drift --------------------------------------------------------------------------------------------------


def numbers(chance: random.Random, count: int, mean: float = 0.0) -> list[Predicted]:
    return [Predicted(numbers=(chance.gauss(mean, 1), chance.gauss(mean, 1))) for _ in range(count)]


def test_drift_is_the_population_stability_index() -> None:
    beside = [Predicted(labels=("a",))] * 5_000 + [Predicted(labels=("b",))] * 5_000
    canary = [Predicted(labels=("a",))] * 8_000 + [Predicted(labels=("b",))] * 2_000
    expected = (0.8 - 0.5) * math.log(0.8 / 0.5) + (0.2 - 0.5) * math.log(0.2 / 0.5)
    assert core.drift_of(beside, canary).psi == pytest.approx(expected, rel=1e-3)
    chance = random.Random(1)
    shifted = core.drift_of(numbers(chance, 20_000), numbers(chance, 20_000, 0.5)).psi
    assert shifted == pytest.approx(0.25, abs=0.03)  # of two normal distributions: the squared distance of means


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_samples_of_one_distribution_stay_within_the_noise(seed: int) -> None:
    chance = random.Random(seed)
    n, m = chance.randint(20, 300), chance.randint(20, 600)
    drift = core.drift_of(numbers(chance, m), numbers(chance, n))
    assert drift.psi < drift.noise
    labels = [Predicted(labels=(chance.choice("aaabbc"),)) for _ in range(n + m)]
    drift = core.drift_of(labels[n:], labels[:n])
    assert drift.psi < drift.noise


@given(
    beside=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=40),
    canary=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=40),
)
def test_drift_is_a_number_whatever_is_predicted(beside: list[float], canary: list[float]) -> None:
    drift = core.drift_of([Predicted(numbers=(x,)) for x in beside], [Predicted(numbers=(x,)) for x in canary])
    assert 0.0 <= drift.psi < math.inf


def test_a_canary_that_predicts_something_else_is_taken_back() -> None:
    chance = random.Random(2)
    trial = Trial(on(20.0).canary)  # type: ignore[arg-type]
    for _ in range(400):
        trial.saw(False, 0.01, is_error=False, predicted=Predicted(numbers=(chance.gauss(0, 1),)))
    for _ in range(100):
        trial.saw(True, 0.01, is_error=False, predicted=Predicted(numbers=(chance.gauss(3, 1),)))
    assert said(trial).startswith("predictions drift by ")
    assert said(trial).endswith(" over 100 requests, against 400 beside it; the limit is 0.2")


def test_a_request_of_many_rows_counts_once() -> None:
    one, many = Predicted(numbers=(1.0,)), Predicted(numbers=(1.0,) * 8)
    other, others = Predicted(numbers=(2.0,)), Predicted(numbers=(2.0,) * 8)
    alike = core.drift_of([one, other] * 50, [one, other] * 50)
    assert core.drift_of([one, others] * 50, [many, other] * 50) == pytest.approx(alike)


def test_true_is_not_one_and_many_labels_are_some() -> None:
    assert core.drift_of([Predicted(labels=(True,))] * 50, [Predicted(labels=(1,))] * 50).psi > 5
    some = [Predicted(labels=(number % 500,)) for number in range(2_000)]
    assert core.drift_of(some, some).psi == pytest.approx(0.0)
    # One tells numbers, the other labels alone: the labels are compared.
    both = [Predicted(labels=("a",), numbers=(0.3,))] * 50
    assert core.drift_of(both, [Predicted(labels=("a",))] * 50).psi == pytest.approx(0.0)


def test_what_is_kept_is_bounded_and_old_and_new_alike() -> None:
    sample = Sample()
    for number in range(50 * KEPT):
        sample.add(Predicted(numbers=(float(number),)))
    assert KEPT <= len(sample.kept) < 2 * KEPT
    kept = [each.numbers[0] for each in sample.kept]
    assert min(kept) == 0.0
    assert sum(kept) / len(kept) == pytest.approx(25 * KEPT, rel=0.02)


# --- Shown --------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-4, 10.0), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_quantiles_are_right_within_their_bins(seconds: list[float], share: float) -> None:
    trial = Trial(on(50.0).canary)  # type: ignore[arg-type]
    for each in seconds:
        trial.saw(True, each, is_error=False)
    true = sorted(seconds)[max(0, math.ceil(share * len(seconds) - 1e-9) - 1)]
    told = trial.sides().canary.quantile_s(share)
    assert told is not None
    assert true * (1 - 1e-9) <= told <= true * 1.13
    assert trial.sides().beside.quantile_s(share) is None


def test_a_shadows_answers_are_compared() -> None:
    trial = Trial(on(50.0, shadow=True).canary)  # type: ignore[arg-type]
    trial.compare(Predicted(labels=("a",), numbers=(0.1,)), Predicted(labels=("a",), numbers=(0.4,)))
    trial.compare(Predicted(labels=("a",)), Predicted(labels=("b",)))
    trial.compare(Predicted(numbers=(1.0,)), Predicted(numbers=(1.0 + 1e-9,)))
    trial.compare(Predicted(numbers=(1.0,)), Predicted(numbers=(1.1,)))
    trial.compare(Predicted(numbers=(1.0,)), Predicted(numbers=(1.0, 2.0)))
    assert (trial.compared, trial.differed) == (5, 3)
