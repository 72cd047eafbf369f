"""Makes what a node tells of itself short enough to be told once a second."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from zkd.jobs import Round

POINTS_MAX = 200  # of a curve

Point = tuple[int, float | None, float | None]


def curve_of(rounds: Sequence[Round]) -> list[Point]:
    """Round, mean loss and held-out loss of the rounds that count, thinned; the last one is always there."""
    told = [each for each in rounds if each.is_accepted and each.ended is None]
    step = max(1, -(-len(told) // POINTS_MAX))
    kept = told[(len(told) - 1) % step :: step] if told else []
    return [(each.number, _finite(each.loss), _finite(each.held_loss)) for each in kept]


def traffic_of(samples: Iterable[tuple[str, dict[str, str], float]]) -> dict[str, float]:
    """Requests answered, by model and version."""
    found: dict[str, float] = {}
    for name, labels, value in samples:
        if name == "zkd_predict_requests_total":
            of = f"{labels['model']}@{labels['version']}"
            found[of] = found.get(of, 0.0) + value
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
