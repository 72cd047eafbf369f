"""Names for the arrays that built-in kernels take. `zkd.kernels.binding` checks dtype and dimensions by them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[np.number[Any]]  # any shape; integers stay integers
Floats: TypeAlias = npt.NDArray[np.float64]  # any shape
Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]
Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Labels: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]

ROWS_A_BLOCK = 16_384  # of 100 float64 columns: 13 MB of scratch at most, whatever the size of the part
