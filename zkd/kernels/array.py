"""Element-wise kernels and reductions under the names that people try first.

More of numpy is there as ``numpy.<name>``; these differ where numpy would be silently wrong: integer
overflow, and float32 sums that lose digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zkd.kernels.declaration import kernel
from zkd.kernels.shapes import Numbers

INT64 = np.iinfo(np.int64)


@kernel("sum")
def total(x: Numbers, axis: int | None = None) -> Any:
    """The sum of all elements, or along one axis.

    Integers are summed exactly: over all elements beyond 64 bits, too; along an axis such a sum raises
    OverflowError. Floats are summed pairwise, in double precision even when they come as float32.
    """
    if x.dtype.kind not in "iu":
        return np.sum(x, axis=axis, dtype=np.result_type(x.dtype, np.float64))
    terms = x.size if axis is None else x.shape[axis]
    if x.size == 0 or (terms * max(int(x.max()), 0) <= INT64.max and terms * min(int(x.min()), 0) >= INT64.min):
        return np.sum(x, axis=axis, dtype=np.int64)
    if axis is None:
        return sum(x.reshape(-1).tolist())
    raise OverflowError("a sum along this axis may exceed 64 bits; send floats, or sum over all elements")


@kernel
def prod(x: Numbers, axis: int | None = None) -> Any:
    """The product of all elements, or along one axis, in double precision (numpy's integers would wrap)."""
    return np.prod(x, axis=axis, dtype=np.result_type(x.dtype, np.float64))


@kernel("min")
def least(x: Numbers, axis: int | None = None) -> Any:
    """The smallest element, or those along one axis; NaN if there is one. Raises ValueError for an empty array."""
    return np.min(x, axis=axis)


@kernel("max")
def greatest(x: Numbers, axis: int | None = None) -> Any:
    """The largest element, or those along one axis; NaN if there is one. Raises ValueError for an empty array."""
    return np.max(x, axis=axis)


@kernel
def add(x: Numbers, y: Numbers) -> Any:
    """`x + y`, element by element; shapes are broadcast as numpy does. Raises ValueError where they do not fit."""
    return np.add(x, y)


@kernel
def multiply(x: Numbers, y: Numbers) -> Any:
    """`x * y`, element by element; shapes are broadcast as numpy does. Raises ValueError where they do not fit."""
    return np.multiply(x, y)


@kernel
def scale(x: Numbers, factor: float) -> Any:
    """`x` times a number, as floats (complex numbers stay complex)."""
    return np.multiply(x, factor, dtype=np.result_type(x.dtype, np.float64))


@kernel
def cumsum(x: Numbers, axis: int | None = None) -> Any:
    """Running sums, in double precision: over the flattened array, or along one axis."""
    return np.cumsum(x, axis=axis, dtype=np.result_type(x.dtype, np.float64))


@kernel
def sort(x: Numbers, axis: int | None = -1) -> Any:
    """The elements in ascending order along an axis (null: all of them, flat). NaNs come last; stable."""
    return np.sort(x, axis=axis, stable=True)
