"""Coefficients in both units, how sure they are, and what they mean as odds.

Standard errors are those of the estimator that was used: with the Hessian H of all that was minimised and D of the
losses alone, the covariance is ``H^-1 D H^-1`` (times the residual variance for linear models), the textbook inverse
where nothing is penalised. With a penalty the estimates are biased towards 0, which no standard error shows. None is
given for l1, svm and nets, for which it has no such meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from zkd.models.model import Matrix, Model, Vector
from zkd.models.newton import lifted, solved
from zkd.models.rows import Scaler


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Of one output; features first, the intercept last (NaN without one), (features + 1,) each.

    `raw` multiplies features as they were stored, `standard` standardised ones. `ratio` is exp(raw): the odds ratio of
    one more unit for logistic and softmax, the ratio of rates for poisson; its limits hold with `confidence`.
    """

    raw: Vector
    standard: Vector
    raw_error: Vector | None
    standard_error: Vector | None
    ratio: Vector | None
    ratio_low: Vector | None
    ratio_high: Vector | None
    confidence: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """`outputs` has one entry an output. `deviation` is the residual standard deviation of a linear model."""

    outputs: tuple[Coefficients, ...]
    deviation: float | None = None


def explain(
    model: Model,
    w: Vector,
    scaler: Scaler | None,
    *,
    l2: float,
    l1: float = 0.0,
    hessian: Matrix | None = None,
    loss: float = np.nan,
    weight: float = np.nan,
    confidence: float = 0.95,
) -> Explanation:
    """What the parameters of a linear model mean.

    `hessian` is that of the losses at `w`, without penalty (`Totals.hessian`); without it there are no standard errors.
    `loss` and `weight` are the sums over training rows there; weights count rows. Raises `NoOptimum` where the Hessian
    is singular. Intercepts of softmax are shifted to add up to 0.
    """
    if model.kind == "mlp":
        raise ValueError("a net has no coefficients; use permutation importance and attributions")
    matrix = model.layers(w)[0]
    if model.kind == "softmax":
        matrix = matrix - matrix.mean(axis=1, keepdims=True)
    raw = _raw(model, matrix, scaler)
    covariance, deviation = None, None
    if hessian is not None and l1 == 0.0 and model.kind != "svm":
        covariance = _covariance(model, hessian, l2)
        if model.kind == "linear":
            deviation = float(np.sqrt(2.0 * loss / max(weight - model.size, 1.0)))
            covariance = covariance * deviation**2
    quantile = NormalDist().inv_cdf(0.5 + 0.5 * confidence)
    told = []
    to_raw = None if covariance is None else _raw(model, np.eye(len(matrix)), scaler)
    for output in range(model.outputs):
        errors = raw_errors = None
        if covariance is not None and hessian is not None and to_raw is not None:
            own = covariance[output :: model.outputs, output :: model.outputs]
            is_idle = np.diag(hessian)[output :: model.outputs] == 0.0  # a constant column's: nothing was estimated
            errors = np.where(is_idle, np.nan, np.sqrt(np.diag(own).clip(min=0.0)))
            raw_errors = np.where(is_idle, np.nan, _deviations(to_raw, own))
        told.append(_told(model, raw[:, output], matrix[:, output], raw_errors, errors, quantile, confidence))
    return Explanation(tuple(told), deviation)


def _deviations(rows: Matrix, covariance: Matrix) -> Vector:
    """Of these sums of parameters. Scaled by powers of two, which change no digit: columns may be of 1e200."""
    _, exponents = np.frexp(np.abs(rows).max(axis=1))
    scaled = np.ldexp(rows, -exponents[:, None])
    return np.asarray(np.ldexp(np.sqrt(np.diag(scaled @ covariance @ scaled.T).clip(min=0.0)), exponents))


def _told(
    model: Model,
    raw: Vector,
    standard: Vector,
    raw_error: Vector | None,
    error: Vector | None,
    quantile: float,
    confidence: float,
) -> Coefficients:
    ratio = low = high = None
    with np.errstate(over="ignore"):
        if model.kind in ("logistic", "softmax", "poisson"):
            ratio = np.exp(raw)
            if raw_error is not None:
                low, high = np.exp(raw - quantile * raw_error), np.exp(raw + quantile * raw_error)
    columns = [raw, standard, raw_error, error, ratio, low, high]
    filled = [_with_place(model, column) for column in columns]
    assert filled[0] is not None
    assert filled[1] is not None
    return Coefficients(filled[0], filled[1], filled[2], filled[3], filled[4], filled[5], filled[6], confidence)


def _with_place(model: Model, column: Vector | None) -> Vector | None:
    """With NaN for the intercept that a model does not have."""
    return column if column is None or model.intercept else np.append(column, np.nan)


def _raw(model: Model, matrix: Matrix, scaler: Scaler | None) -> Matrix:
    """Standardised coefficients, the intercept last, as raw ones; a column an output."""
    if scaler is None:
        return matrix
    raw = matrix.copy()
    raw[: model.features] /= scaler.scale[:, None]
    if model.intercept:
        raw[-1] -= scaler.mean @ raw[: model.features]
    return raw


def _covariance(model: Model, hessian: Matrix, l2: float) -> Matrix:
    penalised = hessian + np.diag(np.where(model.penalised(), l2, 0.0))
    idle = model.idle_directions(is_penalised=l2 > 0)
    inverse = solved(lifted(model, penalised, is_penalised=l2 > 0), np.eye(model.size))
    covariance: Matrix = inverse @ hessian @ inverse if l2 > 0 else inverse
    # Along directions in which the loss never changes nothing was estimated: classes are told against their mean.
    keep = np.eye(model.size) - idle.T @ idle
    covariance = keep @ covariance @ keep
    return 0.5 * (covariance + covariance.T)


def named(coefficients: Coefficients, names: Sequence[str]) -> list[tuple[str, float, float, float]]:
    """Name, raw coefficient, its standard error (NaN if unknown) and the standardised one; largest of these first."""
    rows = [*names, "(intercept)"]
    error = coefficients.raw_error
    errors = np.full(len(rows), np.nan) if error is None else error
    order = np.argsort(-np.abs(coefficients.standard[:-1]), kind="stable").tolist()
    return [
        (rows[index], float(coefficients.raw[index]), float(errors[index]), float(coefficients.standard[index]))
        for index in [*order, len(names)]
    ]
