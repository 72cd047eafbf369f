"""Which rows of a part a round is about, where it is not all of them.

The choice depends on the job's seed, the round's numbers and the part alone, never on the node or on what was chosen
before, so a round can be repeated anywhere. Draws are numpy's Philox, keyed by those numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Number `index` of the `of` mini-batches of an epoch: each part gives its own share of rows to each batch."""

    seed: int
    epoch: int
    index: int
    of: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Each row by itself with probability `rate` (Poisson sampling, which privacy accounting assumes)."""

    seed: int
    round: int
    rate: float


@dataclass(frozen=True, slots=True)
class Local:
    """Descent on each part by itself: `epochs` over it in batches of `batch_rows`. `l2_mean` is l2 / all weight."""

    seed: int
    round: int
    epochs: int
    batch_rows: int
    learning_rate: float
    l2_mean: float


def picked_rows(rows: int, part: int, choice: Batch | Sample | None) -> Indices | None:
    """The numbers of the chosen rows, in ascending order; None for all."""
    if choice is None:
        return None
    if isinstance(choice, Sample):
        rng = _generator(choice.seed, choice.round, part, 1)
        return np.flatnonzero(rng.random(rows) < choice.rate)
    start = rows * choice.index // choice.of
    stop = rows * (choice.index + 1) // choice.of
    return np.sort(_order(rows, choice.seed, choice.epoch, part)[start:stop])


def batches(local: Local, rows: int) -> Iterator[Batch]:
    """The mini-batches of a part's own epochs."""
    of = max(1, -(-rows // local.batch_rows))
    for epoch in range(local.epochs):
        for index in range(of):
            yield Batch(local.seed, (local.round << 16) + epoch, index, of)


@lru_cache(maxsize=64)  # a part's order serves all batches of an epoch; 8 bytes a row
def _order(rows: int, seed: int, epoch: int, part: int) -> Indices:
    order = _generator(seed, epoch, part, 0).permutation(rows)
    order.flags.writeable = False
    return order


def _generator(seed: int, number: int, part: int, use: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([use, seed, number, part])))
