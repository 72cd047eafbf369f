"""Published values, to the digits that were published."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models.data import LONGLEY, SPECTOR
from zkd.models.explain import explain
from zkd.models.fit import Prepared, RawPart, fit, prepare, split_rows
from zkd.models.partials import Ask, merge, partial, totals
from zkd.models.plan import Plan

# https://www.itl.nist.gov/div898/strd/lls/data/Longley.shtml: certified to 15 digits; intercept first.
NIST = [-3482258.63459582, 15.0618722713733, -0.0358191792925910, -2.02022980381683, -1.03322686717359]
NIST += [-0.0511041056535807, 1829.15146461355]
NIST_ERRORS = [890420.383607373, 84.9149257747669, 0.0334910077722432, 0.488399681651699, 0.214274163161675]
NIST_ERRORS += [0.226073200069370, 455.478499142212]
NIST_DEVIATION = 304.854073561965

GREENE = [-13.02134686, 2.82611259, 0.09515766, 2.37868766]  # GPA, TUCE, PSI after the intercept
GREENE_ERRORS = [4.93132421, 1.26294108, 0.14155421, 1.06456425]
GREENE_LOG_LIKELIHOOD = -12.889634222


def explained(ready: Prepared, optimizer: str):
    outcome = fit(ready, Plan(ready.model, optimizer, l2=0.0, tol=1e-10, max_rounds=5000)).outcome  # type: ignore[arg-type]
    ask = Ask(outcome.w, "hessian")
    at = totals(
        ready.model, merge(partial(ready.model, ask, rows, ready.scaler, part=n) for n, rows in enumerate(ready.parts))
    )
    told = explain(
        ready.model, outcome.w, ready.scaler, l2=0.0, hessian=at.hessian, loss=at.loss, weight=ready.counts.weight
    )
    return outcome, told


def intercept_first(values: np.ndarray) -> list[float]:
    return [values[-1], *values[:-1]]


@pytest.mark.parametrize("parts", [1, 3, 16])
def test_longley_has_its_certified_values(parts: int) -> None:
    ready = prepare("linear", split_rows(RawPart([LONGLEY[:, 1:]], LONGLEY[:, 0]), parts))
    outcome, told = explained(ready, "newton")
    assert intercept_first(told.outputs[0].raw) == pytest.approx(NIST, rel=1e-10)
    assert intercept_first(told.outputs[0].raw_error) == pytest.approx(NIST_ERRORS, rel=1e-10)
    assert told.deviation == pytest.approx(NIST_DEVIATION, rel=1e-11)
    assert outcome.reason in ("tolerance", "stalled", "precision")


def test_spector_has_the_values_of_greene() -> None:
    ready = prepare("logistic", split_rows(RawPart([SPECTOR[:, :3]], SPECTOR[:, 3]), 3))
    for optimizer in ("newton", "lbfgs"):
        outcome, told = explained(ready, optimizer)
        assert intercept_first(told.outputs[0].raw) == pytest.approx(GREENE, abs=6e-9)
        assert intercept_first(told.outputs[0].raw_error) == pytest.approx(GREENE_ERRORS, abs=6e-7)
        assert -outcome.total == pytest.approx(GREENE_LOG_LIKELIHOOD, abs=6e-10)
    psi = told.outputs[0]
    assert psi.ratio[2] == pytest.approx(np.exp(2.37868766), rel=1e-7)
    half = 1.959963984540054 * 1.06456425
    assert (psi.ratio_low[2], psi.ratio_high[2]) == pytest.approx(
        np.exp([2.37868766 - half, 2.37868766 + half]), rel=1e-6
    )


def test_softmax_of_two_classes_is_logistic_regression() -> None:
    raw = RawPart([SPECTOR[:, :3]], SPECTOR[:, 3])
    ready = prepare("softmax", [raw])
    _, told = explained(ready, "newton")
    difference = told.outputs[1].raw - told.outputs[0].raw
    assert intercept_first(difference) == pytest.approx(GREENE, abs=6e-9)
    assert intercept_first(2.0 * told.outputs[1].raw_error) == pytest.approx(GREENE_ERRORS, abs=6e-7)
