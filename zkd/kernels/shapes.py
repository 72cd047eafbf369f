"""Names for the arrays that built-in kernels take, and columns side by side.

`zkd.kernels.binding` checks dtype and dimensions by the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[np.number[Any]]  # any shape; integers stay integers
Floats: TypeAlias = npt.NDArray[np.float64]  # any shape
Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]
Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Labels: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]

ROWS_A_BLOCK = 16_384  # of 100 float64 columns: 13 MB of scratch at most, whatever the size of the part


def rows_of(columns: Sequence[Floats]) -> tuple[int, int]:
    """How many rows these columns have, and how many numbers each row. Raises ValueError where they differ."""
    if not columns or any(column.ndim == 0 for column in columns):
        raise ValueError("expected at least one column, of one number or more a row")
    lengths = sorted({len(column) for column in columns})
    if len(lengths) > 1:
        raise ValueError(f"expected columns of the same rows, got {' and '.join(map(str, lengths))} rows")
    return lengths[0], sum(int(np.prod(column.shape[1:])) for column in columns)


def side_by_side(columns: Sequence[Floats], start: int, stop: int) -> Matrix:
    """These rows as a matrix; of a single one a view, no copy."""
    blocks = [column[start:stop] for column in columns]
    flat = [block.reshape(len(block), int(np.prod(block.shape[1:]))) for block in blocks]
    matrix: Matrix = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
    return matrix
