"""What one part contributes to a round: sums over its rows at given parameters.

The same rows, parameters and `Ask` give the same bits on one type of CPU: blocks are fixed, BLAS has one thread in a
worker, and no sum depends on what else the node computes. (Other CPUs round differently, by some 1e-12 of a value.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from zkd.errors import BadTraining
from zkd.models import mlp
from zkd.models.binned import Binned, add, binned_rows
from zkd.models.folding import folded, is_foldable, unfold_gradient, unfold_hessian
from zkd.models.losses import ONE_OUTPUT, softmax
from zkd.models.model import Matrix, Model, Vector
from zkd.models.picks import Batch, Local, Sample, batches, picked_rows
from zkd.models.rows import Block, Rows, Scaler, blocks

Wants: TypeAlias = Literal["loss", "gradient", "hessian"]  # each includes those before it

WANTS: tuple[Wants, ...] = ("loss", "gradient", "hessian")
HESSIAN_MAX = 1024  # parameters; beyond, a round would move and factor too much
GATHERED_FLOATS = 1 << 20
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
    return partial_of(model, ask, [(part, rows)], scaler)


def partial_of(model: Model, ask: Ask, parts: Iterable[tuple[int, Rows]], scaler: Scaler | None) -> Partial:
    """The sums of several parts by their numbers, at least one: what merging their partials gives, but quicker."""
    view = _view(model, ask.w, scaler, can_fold=ask.clip is None)
    count, sums, hessians = 0, _Gathered(model, view.fold if ask.local is None else None), _Gathered(model)
    choice = ask.batch or ask.sample
    with np.errstate(over="ignore", invalid="ignore"):  # a loss may be infinite; the optimiser turns back
        for part, rows in parts:
            _check(model, ask, rows, scaler)
            if ask.local is not None:
                own = _moved(model, ask, ask.local, rows, scaler, part)
            else:
                own = _sums(model, ask, view, rows, None if choice is None else picked_rows(len(rows), part, choice))
            count += own.rows
            line = np.empty(HEAD if ask.wants == "loss" else HEAD + model.size)
            line[:HEAD] = own.weight, own.loss, own.held_weight, own.held_loss
            if ask.wants != "loss":
                line[HEAD:] = own.gradient
            sums.take(line)
            if own.hessian is not None:
                hessians.take(own.hessian[np.triu_indices(model.size)])
        return Partial(count, sums.whole(), hessians.whole() if hessians.is_used else None)


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


class _Gathered:
    """Vectors that are cut into digits many at a time, some 8 MB of them; gradients in a folded layer are unfolded."""

    def __init__(self, model: Model, fold: Scaler | None = None) -> None:
        self._model, self._fold = model, fold
        self._vectors: list[Vector] = []
        self._done: list[Binned] = []

    @property
    def is_used(self) -> bool:
        return bool(self._vectors or self._done)

    def take(self, vector: Vector) -> None:
        self._vectors.append(vector)
        if len(self._vectors) * vector.size >= GATHERED_FLOATS:
            self._done = [self.whole()]
            self._vectors = []

    def whole(self) -> Binned:
        if not self._vectors:
            return add(self._done)
        lines = np.array(self._vectors)
        if self._fold is not None and lines.shape[1] > HEAD:
            rows, columns = self._model.shapes[0]
            first = lines[:, HEAD : HEAD + rows * columns]
            unfold_gradient(first.reshape(len(lines), rows, columns), self._fold)
        return add([*self._done, binned_rows(lines)])


class _View(NamedTuple):
    """Parameters as rows meet them: `fold` is the scaler that is in them already, `scaler` the one that rows need."""

    layers: list[Matrix]
    fold: Scaler | None
    scaler: Scaler | None


def _view(model: Model, w: Vector, scaler: Scaler | None, *, can_fold: bool) -> _View:
    layers = model.layers(w)
    if scaler is None or not can_fold or not is_foldable(model, scaler):
        return _View(layers, None, scaler)
    return _View([folded(layers[0], scaler), *layers[1:]], scaler, None)


def _sums(model: Model, ask: Ask, view: _View, rows: Rows, picked: np.ndarray | None) -> Totals:
    size, fold = ask.w.size, view.fold
    gradient, hessian = np.zeros(size), np.zeros((size, size)) if ask.wants == "hessian" else None  # the former folded
    weight = loss = held_weight = held_loss = 0.0
    count = 0
    is_plain = rows.weight is None  # all weights are 1: n of them add up to n
    for block in blocks(rows, view.scaler, intercept=model.intercept, picked=picked):
        losses = _of_block(model, view.layers, block, ask, gradient, hessian)
        count += len(losses)
        weight += len(losses) if is_plain and block.held_weight is None else float(block.weight.sum())
        loss += _weighted(block.weight, losses)
        if block.held_weight is not None:
            held_weight += float(block.held_weight.sum())
            held_loss += _weighted(block.held_weight, losses)
    if fold is not None and hessian is not None:
        unfold_hessian(hessian, fold, model.outputs)
    return Totals(count, weight, loss, held_weight, held_loss, gradient, hessian)


def _weighted(weight: Vector, losses: Vector) -> float:
    """The sum of weight x loss; a row of weight 0 counts nothing, even with an infinite loss."""
    total = float(weight @ losses)
    if math.isfinite(total):
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


def _moved(model: Model, ask: Ask, local: Local, rows: Rows, scaler: Scaler | None, part: int) -> Totals:
    """Plain descent on this part alone, and how far it came, times the part's weight."""
    before = _sums(model, Ask(ask.w, "loss"), _view(model, ask.w, scaler, can_fold=True), rows, None)
    w, mask = ask.w.copy(), model.penalised()
    for batch in batches(local, len(rows)):
        view = _view(model, w, scaler, can_fold=True)
        here = _sums(model, Ask(w, "gradient"), view, rows, picked_rows(len(rows), part, batch))
        if view.fold is not None:
            unfold_gradient(model.layers(here.gradient)[0], view.fold)
        if here.weight > 0:
            w -= local.learning_rate * (here.gradient / here.weight + local.l2_mean * np.where(mask, w, 0.0))
    return before._replace(rows=len(rows), gradient=before.weight * (w - ask.w))
