"""Kernels that say what they were given of a part."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

import zkd


@zkd.kernel
def seen(*columns: npt.NDArray[Any]) -> list[Any]:
    """Of each column: its type, rows, sum, whether it can be written, whether it is a map of a file."""
    return [[c.dtype.str, list(c.shape), float(c.sum()), c.flags.writeable, is_mapped(c)] for c in columns]


@zkd.kernel
def table(columns: dict[str, npt.NDArray[Any]], factor: int = 1) -> dict[str, Any]:
    return {name: float(column.sum()) * factor for name, column in columns.items()}


@zkd.kernel
def spoil(column: npt.NDArray[Any]) -> None:
    column[0] = 0


@zkd.kernel
def matrix(x: np.ndarray[tuple[int, int], np.dtype[np.float64]], y: float = 0.0) -> float:
    return float(x.sum()) + y


def is_mapped(array: Any) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)
