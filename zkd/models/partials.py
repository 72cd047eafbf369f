"""What one part contributes to a round: sums over its rows at given parameters.

The same rows, parameters and `Ask` give the same bits on one type of CPU: blocks are fixed, BLAS has one thread in a
worker, and no sum depends on what else the node computes. (Other CPUs round differently, by some 1e-12 of a value.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from zkd.errors import BadTraining
from zkd.models import mlp
from zkd.models.binned import Binned, add, binned, from_arrays
from zkd.models.folding import can_fold, folded, unfold_gradient, unfold_hessian
from zkd.models.losses import ONE_OUTPUT, softmax
from zkd.models.model import Matrix, Model, Vector
from zkd.models.picks import Batch, Local, Sample, batches, picked_rows
from zkd.models.rows import Block, Rows, Scaler, blocks

Wants: TypeAlias = Literal["loss", "gradient", "hessian"]  # each includes those before it

WANTS: tuple[Wants, ...] = ("loss", "gradient", "hessian")
HESSIAN_MAX = 1024  # parameters; beyond, a round would move and factor too much
HEAD = 4  # weight, loss, held-out weight, held-out loss; then the gradient


@dataclass(frozen=True, slots=True)
class Ask:
    """What every part is asked for in one round.

    `w` are the parameters, (model.size,). Of all rows, or of a `batch` or a random `sample` of them; or, with `local`,
    how far the parameters move when the part is trained on by itself. `clip` bounds the norm of each row's gradient.
    """

    w: Vector
    wants: Wants = "gradient"
    batch: Batch | None = None
    sample: Sample | None = None
    local: Local | None = None
    clip: float | None = None


@dataclass(frozen=True, slots=True)
class Partial:
    """Sums over some parts: how many parts and rows, and what was asked for, addable in any order."""

    rows: int
    sums: Binned
    hessian: Binned | None = None

    @property
    def parts(self) -> int:
        return self.sums.count


class Totals(NamedTuple):
    """Sums over all parts, as floats. `hessian` is whole and symmetric, (size, size); losses are without penalty.

    For an ask with `local`, `gradient` is the sum of weight x (moved parameters - w), and `loss` that before moving.
    """

    rows: int
    weight: float
    loss: float
    held_weight: float
    held_loss: float
    gradient: Vector
    hessian: Matrix | None


def partial(model: Model, ask: Ask, rows: Rows, scaler: Scaler | None, *, part: int) -> Partial:
    """The sums of one part, number `part`. An empty part gives zeros. Raises `BadTraining` for what does not fit."""
    _check(model, ask, rows, scaler)
    if ask.local is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            return _moved(model, ask, ask.local, rows, scaler, part)
    picked = picked_rows(len(rows), part, ask.batch or ask.sample)
    with np.errstate(over="ignore", invalid="ignore"):  # a loss may be infinite; the optimiser turns back
        sums = _sums(model, ask, rows, scaler, picked)
    head = np.array([sums.weight, sums.loss, sums.held_weight, sums.held_loss])
    upper = None if sums.hessian is None else sums.hessian[np.triu_indices(model.size)]
    flat = head if ask.wants == "loss" else np.concatenate([head, sums.gradient])
    return Partial(sums.rows, binned(flat), None if upper is None else binned(upper))


def merge(partials: Iterable[Partial]) -> Partial:
    """The sums over all parts of these. Each part must be in one of them only: that is for the caller to see to."""
    items = list(partials)
    hessians = [item.hessian for item in items if item.hessian is not None]
    if len(hessians) not in (0, len(items)):
        raise ValueError("expected a Hessian in all partials or in none")
    return Partial(
        sum(item.rows for item in items), add(item.sums for item in items), add(hessians) if hessians else None
    )


def totals(model: Model, merged: Partial) -> Totals:
    """The sums as floats. A gradient that was not asked for is empty. Raises `BadTraining` for a wrong length."""
    flat = merged.sums.value()
    if flat.size not in (HEAD, HEAD + model.size):
        raise BadTraining(f"partial: expected {HEAD} or {HEAD + model.size} sums, got {flat.size}")
    hessian = None
    if merged.hessian is not None:
        upper = merged.hessian.value()
        if upper.size != model.size * (model.size + 1) // 2:
            raise BadTraining(f"partial: expected the upper half of a {model.size}^2 Hessian, got {upper.size} sums")
        hessian = np.zeros((model.size, model.size))
        hessian[np.triu_indices(model.size)] = upper
        hessian += np.triu(hessian, 1).T
    weight, loss, held_weight, held_loss = flat[:HEAD].tolist()
    return Totals(merged.rows, weight, loss, held_weight, held_loss, flat[HEAD:], hessian)


def _check(model: Model, ask: Ask, rows: Rows, scaler: Scaler | None) -> None:
    if rows.features != model.features:
        raise BadTraining(f"features: the model has {model.features}, the rows have {rows.features}")
    if scaler is not None and not scaler.mean.shape == scaler.scale.shape == (model.features,):
        raise BadTraining(f"scaler: expected {model.features} means and scales, got {scaler.mean.shape}")
    if ask.wants == "hessian" and not (model.is_convex and model.size <= HESSIAN_MAX):
        raise BadTraining(
            f"hessian: expected a linear model of at most {HESSIAN_MAX} parameters, got {model.kind} of {model.size}; "
            "use lbfgs, nesterov or adam"
        )
    if ask.clip is not None and rows.weight is not None:
        raise BadTraining("clip: row weights would stretch what was clipped; leave them out of private training")
    if ask.wants == "hessian" and ask.clip is not None:
        raise BadTraining("hessian: the curvature of clipped rows is not that of any loss; ask for gradients")


def _sums(model: Model, ask: Ask, rows: Rows, scaler: Scaler | None, picked: np.ndarray | None) -> Totals:
    layers = model.layers(ask.w)
    size = model.size
    gradient, hessian = np.zeros(size), np.zeros((size, size)) if ask.wants == "hessian" else None
    fold = scaler if scaler is not None and ask.clip is None and can_fold(model, scaler) else None
    if fold is not None:
        layers, scaler = [folded(layers[0], fold), *layers[1:]], None
    weight = loss = held_weight = held_loss = 0.0
    count = 0
    for block in blocks(rows, scaler, intercept=model.intercept, picked=picked):
        losses = _of_block(model, layers, block, ask, gradient, hessian)
        count += len(losses)
        weight += float(block.weight.sum())
        loss += _weighted(block.weight, losses)
        if block.held_weight is not None:
            held_weight += float(block.held_weight.sum())
            held_loss += _weighted(block.held_weight, losses)
    if fold is not None:
        unfold_gradient(model.layers(gradient)[0], fold)
        if hessian is not None:
            unfold_hessian(hessian, fold, model.outputs)
    return Totals(count, weight, loss, held_weight, held_loss, gradient, hessian)


def _weighted(weight: Vector, losses: Vector) -> float:
    """The sum of weight x loss; a row of weight 0 counts nothing, even with an infinite loss."""
    total = float(weight @ losses)
    if np.isfinite(total):
        return total
    counted = weight > 0
    return float(weight[counted] @ losses[counted])


def _of_block(
    model: Model, layers: list[Matrix], block: Block, ask: Ask, gradient: Vector, hessian: Matrix | None
) -> Vector:
    """The losses of the block's rows; adds to `gradient` and `hessian` what is wanted."""
    if model.kind == "mlp":
        return mlp.of_block(model, layers, block, gradient if ask.wants != "loss" else None, ask.clip)
    x, s = block.x, block.weight
    w = layers[0]
    if model.kind != "softmax":
        losses, slope, curvature = ONE_OUTPUT[model.kind](x @ w[:, 0], block.target, curvature=hessian is not None)
        if ask.wants != "loss":
            error = _clipped(s * slope, np.abs(slope), x, ask.clip)
            gradient += x.T @ error
        if hessian is not None and curvature is not None:
            scaled = x * np.sqrt(s * curvature)[:, None]
            hessian += scaled.T @ scaled
        return losses
    losses, slopes, p = softmax(x @ w, block.target)
    if ask.wants != "loss":
        error = _clipped(s[:, None] * slopes, np.sqrt(np.einsum("ik,ik->i", slopes, slopes)), x, ask.clip)
        gradient += (x.T @ error).ravel()
    if hessian is not None:
        _add_softmax_hessian(hessian, x, s, p)
    return losses


def _clipped(error: Matrix, slope_norm: Vector, x: Matrix, clip: float | None) -> Matrix:
    """Slopes scaled down where a row's gradient, slope x its features, is longer than `clip`."""
    if clip is None:
        return error
    norms = slope_norm * np.sqrt(np.einsum("ij,ij->i", x, x))
    shrink = np.minimum(1.0, clip / np.maximum(norms, 1e-300))
    clipped: Matrix = error * (shrink if error.ndim == 1 else shrink[:, None])
    return clipped


def _add_softmax_hessian(hessian: Matrix, x: Matrix, s: Vector, p: Matrix) -> None:
    """``sum_i s_i (diag(p_i) - p_i p_i') (x) x_i x_i'``, with parameters ordered feature by feature, then class."""
    features, classes = x.shape[1], p.shape[1]
    root = np.sqrt(s)[:, None]
    both = ((root * x)[:, :, None] * p[:, None, :]).reshape(len(x), features * classes)
    hessian -= both.T @ both
    of_class = hessian.reshape(features, classes, features, classes)
    for k in range(classes):
        scaled = x * (root * np.sqrt(p[:, k : k + 1]))
        of_class[:, k, :, k] += scaled.T @ scaled


def _moved(model: Model, ask: Ask, local: Local, rows: Rows, scaler: Scaler | None, part: int) -> Partial:
    """Plain descent on this part alone, and how far it came, times the part's weight."""
    before = _sums(model, Ask(ask.w, "loss"), rows, scaler, None)
    w = ask.w.copy()
    mask = model.penalised()
    for batch in batches(local, len(rows)):
        here = _sums(model, Ask(w, "gradient"), rows, scaler, picked_rows(len(rows), part, batch))
        if here.weight > 0:
            w -= local.learning_rate * (here.gradient / here.weight + local.l2_mean * np.where(mask, w, 0.0))
    head = np.array([before.weight, before.loss, before.held_weight, before.held_loss])
    return Partial(len(rows), binned(np.concatenate([head, before.weight * (w - ask.w)])))


def wire(partial: Partial) -> dict[str, np.ndarray]:
    """A partial as named arrays of plain data, for whoever sends it."""
    arrays = {"counts": np.array([partial.rows, partial.parts], np.int64)}
    arrays |= {f"sums.{name}": array for name, array in partial.sums.arrays().items()}
    if partial.hessian is not None:
        arrays |= {f"hessian.{name}": array for name, array in partial.hessian.arrays().items()}
    return arrays


def from_wire(arrays: Mapping[str, np.ndarray]) -> Partial:
    """What `wire` gave, from somebody else. Raises `BadTraining` for anything that it cannot have been."""
    expected = {"counts", "sums.digits", "sums.tops"}
    hessian = {"hessian.digits", "hessian.tops"}
    if set(arrays) not in (expected, expected | hessian):
        raise BadTraining(
            f"partial: expected the arrays {', '.join(sorted(expected))}, got {', '.join(sorted(arrays))}"
        )
    counts = arrays["counts"]
    if counts.dtype != np.int64 or counts.shape != (2,) or counts.min() < 0:
        raise BadTraining("partial: expected two counts as int64, none below 0")
    rows, parts = counts.tolist()
    groups = [
        from_arrays({"digits": arrays[f"{group}.digits"], "tops": arrays[f"{group}.tops"]}, parts)
        for group in ("sums", "hessian")
        if f"{group}.tops" in arrays
    ]
    return Partial(rows, groups[0], groups[1] if len(groups) == 2 else None)
