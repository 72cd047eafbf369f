"""How good a model is on rows that have the target, as sums over parts that add up: no row leaves its node.

    partial = evaluated(trained, columns, target)      what one part gives, as JSON can carry it
    total = combined([partial, ...])                   of all parts, in their order
    told = report(trained, total)                      what people read

The area under the ROC curve comes from a histogram of scores whose bins are the leading bits of their floating-point
form (8 of the mantissa: 0.4 % wide), so that it needs neither the range nor a second pass; `auc_error` bounds how far
the exact one can be, as pairs within a bin count as ties. Means and spreads merge by Chan, Golub and LeVeque.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zkd.errors import BadTraining
from zkd.models.model import Matrix, Vector
from zkd.models.outputs import without_score
from zkd.models.predict import Predictions
from zkd.models.rows import Array, blocks, rows_of
from zkd.models.trained import Trained

CALIBRATION_BINS = 10
KEY_BITS = 20  # of a score: sign, exponent, 8 bits of mantissa
LEAST = 1e-15  # a probability of 0 for what happened would make the mean infinite
Partial = dict[str, Any]


# --- of a part ----------------------------------------------------------------------------------------


def evaluated(trained: Trained, columns: Mapping[str, Array], target: Array) -> Partial:
    """What these rows give. Rows without a score or a target are counted and left out.

    Raises `BadTraining` for columns or targets that do not fit.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # of rows without a score
        said = trained.predictions(columns)
    if target.shape != (len(said.scores),):
        raise BadTraining(f"target: expected {len(said.scores)} values, one a row, got shape {target.shape}")
    unscored = without_score(said)
    drift = _drift(trained, columns)
    of = _classes if trained.model.has_classes else _numbers
    told, counted = of(trained, said, target, ~unscored)
    return {"rows": len(target), "unscored": int(unscored.sum()), **counted, **told, "features": drift}


def _numbers(trained: Trained, said: Predictions, target: Array, scored: Array) -> tuple[Partial, Partial]:
    if target.dtype.kind not in "biuf":
        raise BadTraining(f"target: expected numbers in {trained.target}, got {target.dtype}")
    assert said.means is not None
    y = target.astype(np.float64)
    known = np.isfinite(y)
    kept = known & scored
    y, away = y[kept], said.means[kept] - y[kept]
    told: Partial = {"target": _spread(y[:, None]), "squares": float(away @ away), "away": float(np.abs(away).sum())}
    told["bias"] = float(away.sum())
    if trained.model.kind == "poisson":
        mean = np.maximum(said.means[kept], LEAST)
        logs = np.where(y > 0, y * np.log(np.where(y > 0, y, 1.0) / mean), 0.0)
        told["deviance"] = float(2.0 * (logs - (y - mean)).sum())
    return told, {"missing": int((~known & scored).sum()), "counted": int(kept.sum())}


def _classes(trained: Trained, said: Predictions, target: Array, scored: Array) -> tuple[Partial, Partial]:
    assert said.classes is not None
    place, missing = _places(trained, target)
    known = (place >= 0) & scored
    count = len(trained.classes)
    y, guess = place[known], said.classes[known]
    told: Partial = {"confusion": np.bincount(y * count + guess, minlength=count * count).reshape(count, count)}
    if said.probabilities is not None:
        p = said.probabilities[known]
        right = p[np.arange(len(y)), y]
        told["log_loss"] = float(-np.log(np.maximum(right, LEAST)).sum())
        told["brier"] = float((np.square(p).sum(axis=1) - 2.0 * right + 1.0).sum())
        sure, hit = (p[:, 1], y == 1) if count == 2 else (p.max(axis=1), y == guess)
        bins = np.minimum((sure * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
        told["calibration"] = [
            np.bincount(bins, minlength=CALIBRATION_BINS).astype(np.float64),
            np.bincount(bins, sure, CALIBRATION_BINS),
            np.bincount(bins, hit.astype(np.float64), CALIBRATION_BINS),
        ]
    if count == 2:
        z = said.scores[known]
        told["curve"] = _curve(z[:, -1] - z[:, 0] if z.shape[1] == 2 else z[:, 0], y == 1)
    counts = {"missing": int((missing & scored).sum()), "unknown": int((scored & ~missing & (place < 0)).sum())}
    return told, counts | {"counted": len(y)}


def _places(trained: Trained, target: Array) -> tuple[Array, Array]:
    """Which class each target is, -1 for none; and which targets are missing."""
    labels = np.array(trained.classes)
    is_text = labels.dtype.kind == "U"
    if target.dtype.kind not in ("U" if is_text else "biuf"):
        raise BadTraining(
            f"target: expected {'text' if is_text else 'numbers'} in {trained.target}, got {target.dtype}"
        )
    missing = target == "" if is_text else np.isnan(target) if target.dtype.kind == "f" else np.zeros(len(target), bool)
    if is_text:
        missing &= "" not in trained.classes
    order = np.argsort(labels)
    at = np.minimum(np.searchsorted(labels[order], target), len(labels) - 1)
    found = order[at]
    return np.where(labels[found] == target, found, -1), missing


def _curve(scores: Vector, is_positive: Array) -> list[Array]:
    """Scores in rising bins that are not empty: the bin, how many negatives, how many positives."""
    bits = (scores + 0.0).view(np.uint64)  # -0.0 is 0.0
    ordered = np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))
    bins, which = np.unique((ordered >> np.uint64(64 - KEY_BITS)).astype(np.int64), return_inverse=True)
    positives = np.bincount(which, is_positive, len(bins)).astype(np.int64)
    return [bins, np.bincount(which, minlength=len(bins)) - positives, positives]


def _drift(trained: Trained, columns: Mapping[str, Array]) -> Partial:
    """Count, mean and squared deviations of each feature, of its finite values."""
    given = trained.columns_of(columns)
    rows = rows_of(given, np.zeros(len(given[0])))
    total = _spread(np.empty((0, rows.features)))
    for block in blocks(rows, None, intercept=False):
        total = _merged(total, _spread(block.x))
    return total


def _spread(x: Matrix) -> Partial:
    finite = np.isfinite(x)
    count = finite.sum(axis=0).astype(np.float64)
    kept = np.where(finite, x, 0.0)
    mean = kept.sum(axis=0) / np.maximum(count, 1.0)
    away = np.where(finite, kept - mean, 0.0)
    return {"count": count, "mean": mean, "m2": np.square(away).sum(axis=0)}


# --- of all -------------------------------------------------------------------------------------------


def combined(parts: Sequence[Partial]) -> Partial:
    """The sum of what parts gave, pair by pair in their order; it can be combined again. `BadTraining` for none."""
    if not parts:
        raise BadTraining("expected at least one part, got none")
    while len(parts) > 1:
        pairs = [_added(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = [*pairs, *parts[len(pairs) * 2 :]]
    return parts[0]


def _added(a: Partial, b: Partial) -> Partial:
    if a.keys() != b.keys():
        raise BadTraining("expected parts that were evaluated by the same model")
    return {name: _sum(name, a[name], b[name]) for name in a}


def _sum(name: str, a: Any, b: Any) -> Any:
    if name in ("features", "target"):
        return _merged(a, b)
    if name == "curve":
        return _curves(a, b)
    if isinstance(a, list):
        return [np.asarray(one) + np.asarray(other) for one, other in zip(a, b, strict=True)]
    return a + b if isinstance(a, int | float) else np.asarray(a) + np.asarray(b)


def _curves(a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
    both = np.concatenate([np.asarray(a[0], np.int64), np.asarray(b[0], np.int64)])
    bins, which = np.unique(both, return_inverse=True)
    sums = [np.zeros(len(bins), np.int64), np.zeros(len(bins), np.int64)]
    for total, one, other in zip(sums, a[1:], b[1:], strict=True):
        np.add.at(total, which, np.concatenate([np.asarray(one, np.int64), np.asarray(other, np.int64)]))
    return [bins, *sums]


def _merged(a: Partial, b: Partial) -> Partial:
    counts = np.asarray(a["count"], np.float64), np.asarray(b["count"], np.float64)
    total = counts[0] + counts[1]
    share = counts[1] / np.maximum(total, 1.0)
    apart = np.asarray(b["mean"], np.float64) - np.asarray(a["mean"], np.float64)
    return {
        "count": total,
        "mean": np.asarray(a["mean"]) + apart * share,
        "m2": np.asarray(a["m2"]) + np.asarray(b["m2"]) + np.square(apart) * counts[0] * share,
    }


# --- for people ---------------------------------------------------------------------------------------


def report(trained: Trained, total: Partial) -> dict[str, Any]:
    """Numbers by name, all plain: counts of rows, what the kind of model has, and `drift`, a line a feature."""
    told: dict[str, Any] = {name: int(total[name]) for name in ("rows", "counted", "unscored", "missing")}
    if "unknown" in total:
        told["unknown"] = int(total["unknown"])
    count = max(1, told["counted"])
    if trained.model.has_classes:
        told |= _told_of_classes(trained, total, count)
    else:
        told |= _told_of_numbers(total, count)
    return told | {"drift": _told_drift(trained, total["features"])}


def _told_of_numbers(total: Partial, count: int) -> dict[str, Any]:
    squares, spread = float(total["squares"]), float(np.asarray(total["target"]["m2"])[0])
    told = {"rmse": (squares / count) ** 0.5, "mae": float(total["away"]) / count, "bias": float(total["bias"]) / count}
    told["r2"] = 1.0 - squares / spread if spread > 0 else float("nan")
    if "deviance" in total:
        told["deviance"] = float(total["deviance"]) / count
    return told


def _told_of_classes(trained: Trained, total: Partial, count: int) -> dict[str, Any]:
    confusion = np.asarray(total["confusion"]).reshape(len(trained.classes), -1)
    told: dict[str, Any] = {"accuracy": float(np.trace(confusion)) / count}
    if "log_loss" in total:
        told |= {"log_loss": float(total["log_loss"]) / count, "brier": float(total["brier"]) / count}
        rows, sure, hits = (np.asarray(each, np.float64) for each in total["calibration"])
        told["calibration_error"] = float(np.abs(sure - hits).sum()) / count
        some = np.maximum(rows, 1.0)
        told["calibration"] = [
            {"from": place / CALIBRATION_BINS, "rows": int(rows[place]), "said": said, "was": was}
            for place, (said, was) in enumerate(zip((sure / some).tolist(), (hits / some).tolist(), strict=True))
            if rows[place]
        ]
    if "curve" in total:
        told |= _told_curve(total["curve"])
    return told | {"classes": list(trained.classes), "confusion": confusion.astype(int).tolist()}


def _told_curve(curve: Sequence[Any]) -> dict[str, float]:
    _, negatives, positives = (np.asarray(each, np.float64) for each in curve)
    pairs = negatives.sum() * positives.sum()
    if not pairs:
        return {"auc": float("nan"), "auc_error": 0.0}
    below = np.cumsum(negatives) - negatives
    ties = float((negatives * positives).sum())
    return {"auc": float((positives * below).sum() + ties / 2) / float(pairs), "auc_error": ties / 2 / float(pairs)}


def _told_drift(trained: Trained, found: Partial) -> list[dict[str, Any]]:
    """Each feature now and in training: `shift` are standard deviations of training, `spread` the ratio of both."""
    count, mean = np.asarray(found["count"], np.float64), np.asarray(found["mean"], np.float64)
    deviation = np.sqrt(np.asarray(found["m2"], np.float64) / np.maximum(count, 1.0))
    before, scale = (trained.mean, None) if trained.scaler is None else (trained.scaler.mean, trained.scaler.scale)
    lines = []
    for place, name in enumerate(trained.names):
        line: dict[str, Any] = {"feature": name, "mean": float(mean[place]), "trained_mean": float(before[place])}
        if scale is not None and np.isfinite(scale[place]):
            line["shift"] = float((mean[place] - before[place]) / scale[place])
            line["spread"] = float(deviation[place] / scale[place])
        lines.append(line)
    return lines
