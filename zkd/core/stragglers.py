"""Which running tasks take so long that a second copy may be quicker, judged by others of their kernel.

Twice the median of what its kernel took lately, and a second at least: slow machines and unlucky placements are
overtaken, and what is long by nature is left alone (Dean and Ghemawat, MapReduce, 2004, section 3.6).
"""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque

KNOWN_MIN = 5  # times of a kernel before one of its tasks counts as late
TIMES_KEPT = 64
KERNELS_KEPT = 1_000
LATE_FACTOR = 2.0
LATE_MIN_S = 1.0
LOOK_AGAIN_S = 1.0  # while there is no spare slot, or too few times are known


class Times:
    """How long the last tasks of each kernel were held until they ended."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def ended(self, kernel: str, took_s: float) -> None:
        times = self._times.get(kernel)
        if times is None:
            times = self._times[kernel] = deque(maxlen=TIMES_KEPT)
            if len(self._times) > KERNELS_KEPT:
                self._times.popitem(last=False)
        times.append(took_s)

    def late_after_s(self, kernel: str) -> float | None:
        """How long one may take before it is late; None: too few are known."""
        times = self._times.get(kernel, ())
        if len(times) < KNOWN_MIN:
            return None
        return max(LATE_MIN_S, LATE_FACTOR * statistics.median(times))
