"""How short the runs of each kernel have been: how many of them may lie ready on one worker's line.

A run that lies behind another waits for it, wherever else there would be room. So only runs of kernels go
ahead that were short many times in a row, and no more than take LEAD_S together; one that was not short,
died or printed something has to prove itself anew.
"""

from __future__ import annotations

from typing import Final

TRUSTED_AFTER: Final = 16  # runs
LEAD_S: Final = 0.001  # a few times what it costs to wake two processes
DEPTH_MAX: Final = 16
SLOWER: Final = 1 / 16  # the weight of a quicker run; a slower one counts at once
KERNELS_MAX: Final = 4096  # names come from outside


class Brevity:
    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}  # kernel -> runs, and about the longest of the latest

    def ran(self, kernel: str, run_s: float) -> None:
        count, longest_s = self._seen.get(kernel, (0, 0.0))
        if run_s >= LEAD_S:
            self.failed(kernel)
        elif count or len(self._seen) < KERNELS_MAX:
            self._seen[kernel] = (count + 1, max(run_s, longest_s + (run_s - longest_s) * SLOWER))

    def failed(self, kernel: str) -> None:
        self._seen.pop(kernel, None)

    def depth(self, kernel: str) -> int:
        """How many runs may be on a line whose first is of this kernel, itself included."""
        count, longest_s = self._seen.get(kernel, (0, 0.0))
        if count < TRUSTED_AFTER:
            return 1
        return max(1, min(DEPTH_MAX, int(LEAD_S / max(longest_s, 1e-6))))
