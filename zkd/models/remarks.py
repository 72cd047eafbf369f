"""What people should know of a job's data, in words: features that say nothing or too much, rows that are on both sides
of the split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from zkd.models.answers import Straddle
from zkd.models.spread import Suspicion, told_apart

SAMPLED_ROWS: Final = 1 << 16  # whose features are compared across a split by key; 8 bytes each are sent
SHOWN_MAX: Final = 5  # features in a line


@dataclass(frozen=True, slots=True)
class Straddled:
    """Held-out rows whose features a training row has, too, of so many; both of each so manieth row's features."""

    rows: int
    of: int
    each: int


def sampling(rows: int) -> int:
    """Of each so manieth row's features it is seen whether they are on both sides of a split by key."""
    return max(1, -(-rows // SAMPLED_ROWS))


def straddled(samples: Sequence[Straddle], each: int) -> Straddled:
    """What all parts' samples say; which rows are in them depends on nothing but their features."""
    trained = np.unique(np.concatenate([sample.trained for sample in samples]))
    held = np.concatenate([sample.held for sample in samples])
    counts = np.concatenate([sample.counts for sample in samples])
    return Straddled(int(counts[np.isin(held, trained)].sum()), int(counts.sum()), each)


def remarks(
    names: Sequence[str],
    target: str,
    constant: Sequence[int],
    suspicions: Sequence[Suspicion],
    classes: int,
    both: Straddled | None,
) -> list[str]:
    """A line each, for people. `classes` that the target has; 0 where it is numbers."""
    lines = []
    if constant:
        lines.append(f"constant among training rows: {_some([names[place] for place in constant])}")
    if suspicions:
        said = [
            f"{names[each.feature]} ({each.measure} {each.value:.4g}"
            + (")" if each.label is None else f" for {each.label})")
            for each in suspicions
        ]
        lines.append(f"says almost all about {target} by itself, did it leak? {_some(said)}")
    if classes > 2 and not told_apart(len(names), classes):
        lines.append(f"too many classes and features to see whether one says almost all about {target} by itself")
    if both is not None and both.rows:
        sample = "" if both.each == 1 else f" in a sample of 1 in {both.each}"
        lines.append(
            f"{both.rows} of {both.of} held-out rows{sample} have the very features of a training row; "
            "`by` features in `validation` keeps such rows on one side"
        )
    return lines


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:SHOWN_MAX]) + (f" and {len(items) - SHOWN_MAX} more" if len(items) > SHOWN_MAX else "")
