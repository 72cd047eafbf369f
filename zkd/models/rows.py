"""The rows of one part, checked once, and given out in blocks that are float64, standardised and in cache.

Blocks begin at multiples of one number of rows that depends on nothing but the number of features: the last bits of a
partial depend on where blocks end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from zkd.errors import BadTraining
from zkd.models.model import Matrix, Vector

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Mask: TypeAlias = npt.NDArray[np.bool_]
Indices: TypeAlias = npt.NDArray[np.int64]

BLOCK_FLOATS = 1 << 15  # 256 KiB: a block and what is computed from it stay in the second cache
BLOCK_ROWS_MIN, BLOCK_ROWS_MAX = 64, 4096


@dataclass(frozen=True, slots=True)
class Scaler:
    """``(x - mean) / scale``, both (features,), of the training rows alone.

    A scale is never 0; that of a column without spread is infinite, which makes it 0 whatever it holds.
    """

    mean: Vector
    scale: Vector


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one part. `target` are numbers, or class numbers from 0 (0 and 1 for logistic and svm).

    `columns` are arrays of n rows with 1 or more features each, n x k. Rows of weight 0 and held-out rows have no part
    in the sums over training rows; the losses of held-out rows are summed apart.
    """

    columns: tuple[Array, ...]
    target: Vector
    weight: Vector | None = None
    held_out: Mask | None = None
    whole: Matrix | None = None  # the columns side by side, with a last one of ones: blocks are cut from it uncopied

    def __len__(self) -> int:
        return len(self.target)

    @property
    def features(self) -> int:
        if self.whole is not None:
            return int(self.whole.shape[1]) - 1
        return sum(1 if column.ndim == 1 else column.shape[1] for column in self.columns)


class Block(NamedTuple):
    x: Matrix  # (n, features + 1) with a last column of ones, or (n, features); not to be written to, nor kept
    target: Vector
    weight: Vector  # 0 for held-out rows
    held_weight: Vector | None  # 0 for training rows


def rows_of(columns: Sequence[Any], target: Any, *, weight: Any = None, held_out: Any = None) -> Rows:
    """Rows from arrays or lists. Raises `BadTraining` for shapes and dtypes that cannot be trained on."""
    checked = tuple(_column(index, column) for index, column in enumerate(columns))
    if not checked:
        raise BadTraining("features: expected at least one column, got none")
    y = _vector("target", target)
    for index, column in enumerate(checked):
        if len(column) != len(y):
            raise BadTraining(f"features[{index}]: expected {len(y)} rows as in the target, got {len(column)}")
    weights = None if weight is None else _vector("weight", weight)
    if weights is not None:
        if len(weights) != len(y):
            raise BadTraining(f"weight: expected {len(y)} rows as in the target, got {len(weights)}")
        if not np.all(np.isfinite(weights)) or np.any(weights < 0):
            raise BadTraining("weight: expected finite numbers, none below 0")
    held = None if held_out is None else np.asarray(held_out)
    if held is not None and (held.dtype != np.bool_ or held.shape != y.shape):
        raise BadTraining(f"held_out: expected {len(y)} booleans, got {held.dtype} {held.shape}")
    return Rows(checked, y, weights, held)


def stacked(rows: Rows) -> Rows:
    """The same rows with all features in one float64 matrix, which blocks are cut from in one go.

    Worth its memory, 8 bytes a value and one more a row, where many rounds go over them: blocks that need not be
    standardised one by one are not even copied. Partials have the same bits.
    """
    whole = np.ones((len(rows), rows.features + 1))
    _fill(whole[:, :-1], rows.columns, slice(None))
    whole.flags.writeable = False
    return Rows((whole[:, :-1],), rows.target, rows.weight, rows.held_out, whole)


def block_rows(features: int) -> int:
    """How many rows a block has."""
    return min(max(BLOCK_FLOATS // (features + 1), BLOCK_ROWS_MIN), BLOCK_ROWS_MAX)


def blocks(rows: Rows, scaler: Scaler | None, *, intercept: bool, picked: Indices | None = None) -> Iterator[Block]:
    """The rows, or those `picked`, block by block, as float64 and standardised."""
    features, total = rows.features, len(rows) if picked is None else len(picked)
    step = block_rows(features)
    whole = rows.whole if intercept and scaler is None and picked is None else None
    buffer = np.ones((min(step, total), features + intercept)) if whole is None else None
    inverse = None if scaler is None else 1.0 / scaler.scale
    for start in range(0, total, step):
        stop = min(start + step, total)
        chosen: slice | Indices = slice(start, stop) if picked is None else picked[start:stop]
        if buffer is None:
            assert whole is not None
            x = whole[start:stop]
        else:
            x = buffer[: stop - start]
            _fill(x[:, :features], rows.columns, chosen)
            if scaler is not None and inverse is not None:
                x[:, :features] -= scaler.mean
                x[:, :features] *= inverse
        weight = np.ones(stop - start) if rows.weight is None else rows.weight[chosen]
        if rows.held_out is None:
            yield Block(x, rows.target[chosen], weight, None)
        else:
            held = rows.held_out[chosen]
            yield Block(x, rows.target[chosen], np.where(held, 0.0, weight), np.where(held, weight, 0.0))


def _fill(x: Matrix, columns: Sequence[Array], chosen: slice | Indices) -> None:
    at = 0
    for column in columns:
        width = 1 if column.ndim == 1 else column.shape[1]
        piece = column[chosen]
        x[:, at : at + width] = piece[:, None] if piece.ndim == 1 else piece
        at += width


def _column(index: int, values: Any) -> Array:
    column = np.asarray(values)
    if column.dtype.kind not in "fiub" or column.dtype.itemsize > 8:
        raise BadTraining(f"features[{index}]: expected numbers, got {column.dtype}; encode text as numbers first")
    if column.ndim not in (1, 2) or (column.ndim == 2 and column.shape[1] < 1):
        raise BadTraining(f"features[{index}]: expected rows, or rows x columns, got shape {column.shape}")
    return column


def _vector(name: str, values: Any) -> Vector:
    vector = np.asarray(values)
    if vector.dtype.kind not in "fiub" or vector.dtype.itemsize > 8:
        raise BadTraining(f"{name}: expected numbers, got {vector.dtype}")
    if vector.ndim != 1:
        raise BadTraining(f"{name}: expected one number a row, got shape {vector.shape}")
    return vector.astype(np.float64, copy=False)
