"""What is trained, and how its parameters lie in one vector.

The parameters of a linear model of d features and K outputs are a (d + 1, K) matrix in C order, whose last row are the
intercepts (left out with `intercept=False`); those of a net one such matrix a layer, one after another. Everywhere
else parameters are a vector of float64, and only the functions here know what is where.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from zkd.errors import BadTraining

Vector: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = npt.NDArray[np.float64]
Kind: TypeAlias = Literal["linear", "logistic", "softmax", "poisson", "svm", "mlp"]

KINDS: tuple[Kind, ...] = ("linear", "logistic", "softmax", "poisson", "svm", "mlp")
HIDDEN_MAX = 3
PARAMETERS_MAX = 1 << 24  # 128 MiB; a round moves three times that


@dataclass(frozen=True, slots=True)
class Model:
    """One model's shape. `outputs` is the number of classes of softmax and of a net that tells classes, else 1.

    A net ("mlp") has 1 to 3 `hidden` layers of ReLU; with 1 output it fits numbers by squared loss, with more it tells
    classes by cross-entropy. Raises `BadTraining` for what no model is.
    """

    kind: Kind
    features: int
    outputs: int = 1
    hidden: tuple[int, ...] = ()
    intercept: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadTraining(f"model: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.features < 1:
            raise BadTraining(f"model: expected at least one feature, got {self.features}")
        if self.kind == "softmax" and self.outputs < 2:
            raise BadTraining(f"model: softmax tells 2 classes or more, got {self.outputs}")
        if self.kind not in ("softmax", "mlp") and self.outputs != 1:
            raise BadTraining(f"model: {self.kind} has one output, got {self.outputs}")
        if self.kind == "mlp" and not (1 <= len(self.hidden) <= HIDDEN_MAX and min(self.hidden) >= 1):
            raise BadTraining(
                f"model: a net has 1 to {HIDDEN_MAX} hidden layers, got {list(self.hidden)}; set hidden, such as 32"
            )
        if self.kind == "mlp" and not (self.intercept and self.outputs >= 1):
            raise BadTraining("model: a net has an intercept in each layer and at least one output")
        if self.kind != "mlp" and self.hidden:
            raise BadTraining(f"model: only a net has hidden layers, got {list(self.hidden)} for {self.kind}")
        if self.size > PARAMETERS_MAX:
            raise BadTraining(f"model: expected at most {PARAMETERS_MAX:,} parameters, got {self.size:,}")

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Of each layer's matrix, intercepts included."""
        return _shapes(self.features, self.hidden, self.outputs, self.intercept)[0]

    @property
    def size(self) -> int:
        return _shapes(self.features, self.hidden, self.outputs, self.intercept)[1]

    @property
    def is_convex(self) -> bool:
        return self.kind != "mlp"

    @property
    def has_classes(self) -> bool:
        return self.kind in ("logistic", "softmax", "svm") or (self.kind == "mlp" and self.outputs > 1)

    def layers(self, w: Vector) -> list[Matrix]:
        """The matrices of a parameter vector, as views. Raises `BadTraining` if it has another length."""
        if w.shape != (self.size,) or w.dtype != np.float64:
            raise BadTraining(f"parameters: expected {self.size} float64 for {self.kind}, got {w.dtype} {w.shape}")
        matrices, start = [], 0
        for rows, columns in self.shapes:
            matrices.append(w[start : start + rows * columns].reshape(rows, columns))
            start += rows * columns
        return matrices

    def penalised(self) -> npt.NDArray[np.bool_]:
        """Which parameters a penalty applies to, (size,): all but the intercepts. Not to be written to."""
        return _penalised(self.shapes, self.intercept)

    def idle_directions(self, *, is_penalised: bool) -> Matrix:
        """Orthonormal directions along which the loss never changes, (m, size).

        Softmax has them: the same shift of all classes. A penalty of the weights leaves that of the intercepts.
        """
        if self.kind != "softmax":
            return np.zeros((0, self.size))
        rows = self.shapes[0][0]
        moved = range(self.features if is_penalised else 0, rows)
        directions = np.zeros((len(moved), rows, self.outputs))
        for index, row in enumerate(moved):
            directions[index, row] = self.outputs**-0.5
        return directions.reshape(len(moved), self.size)


@lru_cache(maxsize=64)  # asked for several times a part and round
def _shapes(
    features: int, hidden: tuple[int, ...], outputs: int, intercept: bool
) -> tuple[tuple[tuple[int, int], ...], int]:
    """The shapes of the layers, and how many parameters they have."""
    widths = [features, *hidden, outputs]
    shapes = tuple((fan_in + intercept, width) for fan_in, width in pairwise(widths))
    return shapes, sum(rows * columns for rows, columns in shapes)


@lru_cache(maxsize=2)
def _penalised(shapes: tuple[tuple[int, int], ...], intercept: bool) -> npt.NDArray[np.bool_]:
    mask = np.concatenate([np.repeat(np.arange(rows) < rows - intercept, columns) for rows, columns in shapes])
    mask.flags.writeable = False
    return mask


def first_parameters(model: Model, target: TargetMean | None = None, *, seed: int = 0) -> Vector:
    """Where training starts: zero weights, and the intercept that predicts the mean of the targets, if it is known.

    A net starts at He's normal weights (He et al., "Delving Deep into Rectifiers", 2015), which `seed` alone decides.
    """
    w = np.zeros(model.size)
    layers = model.layers(w)
    if model.kind == "mlp":
        rng = np.random.Generator(np.random.PCG64(seed))
        for layer in layers:
            layer[:-1] = rng.standard_normal(layer[:-1].shape) * (2.0 / (len(layer) - 1)) ** 0.5
        if target is not None and not model.has_classes:
            layers[-1][-1] = target.mean
    elif model.intercept and target is not None:
        layers[0][-1] = _intercept(model, target)
    return w


@dataclass(frozen=True, slots=True)
class TargetMean:
    """The mean of the targets, or the share of rows of each class, by weight, over training rows."""

    mean: float
    shares: tuple[float, ...] = ()


def _intercept(model: Model, target: TargetMean) -> Vector:
    if model.kind == "linear":
        return np.array([target.mean])
    if model.kind == "poisson":
        return np.array([np.log(max(target.mean, 1e-9))])
    if model.kind == "svm":
        return np.array([target.shares[1] - target.shares[0]])
    logs = np.log(np.maximum(target.shares, 1e-9))
    return np.array([logs[1] - logs[0]]) if model.kind == "logistic" else logs - logs.mean()
