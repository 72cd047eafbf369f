"""A kernel of one's own: a function, a mark, and types that say what it takes.

A daemon loads it by `zkd daemon --module bootstrap` (with this directory on PYTHONPATH). It is still a plain
function, which digits.py calls once more to compare.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np

import zkd

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


@zkd.kernel
def bootstrap_spectrum(
    rows: Matrix, draws: Annotated[int, msgspec.Meta(ge=1)], seed: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Eigenvalues of the covariance of `rows`, descending, for so many resamples of them: draws x columns."""
    rng = np.random.default_rng(seed)
    spectra = np.empty((draws, rows.shape[1]))
    for draw in range(draws):
        sample = rows[rng.integers(len(rows), size=len(rows))]
        sample -= sample.mean(axis=0)
        spectra[draw] = np.linalg.eigvalsh(sample.T @ sample / (len(rows) - 1))[::-1]
        zkd.report((draw + 1) / draws, f"resample {draw + 1} of {draws}")
    return spectra
