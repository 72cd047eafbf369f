"""What this node has done since it started: counts, times, and the last runs one by one, for those who look on.

The last runs are a window, not a record: what matters of a task stands in its result.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from itertools import islice

from zkd.net.metrics import Histogram, Sample
from zkd.overview.seen import Ran

RUNS_KEPT = 2_000  # 150 bytes each
BUCKETS_S = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0)
KERNELS_MAX = 100  # whose times are told apart; a series of nine numbers each
OTHERS = "other"


class Tally:
    def __init__(self) -> None:
        self.done = 0
        self.failed = 0
        self.by_kernel: dict[tuple[str, str], int] = {}
        self.recent: deque[Ran] = deque(maxlen=RUNS_KEPT)
        self.last = 0  # number of a run
        self._waits = Histogram(BUCKETS_S)
        self._runs: dict[str, Histogram] = {}

    def count(self, kernel: str, status: str) -> None:
        if status == "done":
            self.done += 1
        else:
            self.failed += 1
        key = (kernel, status)
        self.by_kernel[key] = self.by_kernel.get(key, 0) + 1

    def ran(self, task: str, kernel: str, status: str, attempt: int, wait_s: float, run_s: float) -> None:
        self.last += 1
        self.recent.append(Ran(self.last, task, kernel, status, attempt, int(time.time() * 1000), wait_s, run_s))
        self._waits.add(wait_s)
        runs = self._runs.get(kernel)
        if runs is None:
            known = kernel if len(self._runs) < KERNELS_MAX else OTHERS
            runs = self._runs.setdefault(known, Histogram(BUCKETS_S))
        runs.add(run_s)

    def after(self, number: int, most: int) -> list[Ran]:
        """The last runs after this number, at most so many; in their order."""
        fresh = min(self.last - number, len(self.recent), most)
        return list(islice(self.recent, len(self.recent) - fresh, None)) if fresh > 0 else []

    def of(self, task: str) -> list[Ran]:
        return [each for each in self.recent if each.id == task]

    def samples(self) -> Iterator[Sample]:
        for (kernel, status), count in self.by_kernel.items():
            yield "zkd_tasks_total", {"kernel": kernel, "status": status}, count
        yield from self._waits.samples("zkd_task_wait_seconds", {})
        for kernel, runs in self._runs.items():
            yield from runs.samples("zkd_task_run_seconds", {"kernel": kernel})
