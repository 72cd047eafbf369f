"""A kernel of one's own for embed.py: how often points thrown at a square hit the circle in it."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

import zkd


@zkd.kernel
def circle_hits(seed: int, throws: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]) -> int:
    """How many of `throws` random points of the unit square lie in the quarter circle."""
    points = np.random.default_rng(seed).random((throws, 2))
    return int((np.square(points).sum(axis=1) <= 1.0).sum())
