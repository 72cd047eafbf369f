"""Which rows are held out: a fixed choice by hash, the same wherever and whenever it is made.

By key, all rows of one key are on one side. By content, all rows with the same features are, so that no row that is
held out was also trained on, not even where the same thing was written down twice. (Official splits exist of which a
quarter of the test rows is in the training rows, too.)

The hash is mixed once more with the split's seed: which part a row lies in says nothing about its side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from zkd.errors import BadTraining
from zkd.models.rows import Array, Mask

Hashes = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


def held_out(hashes: Hashes, share: float, *, seed: int = 0) -> Mask:
    """The rows to hold out: about `share` of all hashes; equal hashes are on one side. Raises `BadTraining`."""
    if not 0.0 <= share < 1.0:
        raise BadTraining(f"held out: expected a share of at least 0 and below 1, got {share}")
    mixed = splitmix64(hashes ^ splitmix64(np.array([seed], np.uint64)))
    return (mixed >> np.uint64(11)) < np.uint64(int(share * 2.0**53))


def content_hashes(columns: Sequence[Array]) -> Hashes:
    """A hash of each row's features: equal for rows whose numbers are equal, whatever their dtype; -0.0 is 0.0."""
    total: Hashes | None = None
    for column in columns:
        wide = column if column.ndim == 2 else column[:, None]
        for index in range(wide.shape[1]):
            bits = (wide[:, index].astype(np.float64) + 0.0).view(np.uint64)
            total = splitmix64(bits) if total is None else splitmix64(total ^ bits)
    if total is None:
        raise BadTraining("held out: expected at least one column to hash, got none")
    return total


def straddling(hashes: Hashes, held: Mask) -> int:
    """How many held-out rows have a hash that a training row has, too."""
    return int(np.count_nonzero(np.isin(hashes[held], hashes[~held])))


def splitmix64(x: Hashes) -> Hashes:
    """Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014; over a whole array."""
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> _30)) * _FIRST
        x = (x ^ (x >> _27)) * _SECOND
    return x ^ (x >> _31)
