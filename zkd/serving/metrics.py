"""What is counted of requests for predictions. Models come over the wire, so that no more than some are named."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Final

from zkd.net.metrics import Histogram

NAMED_MAX: Final = 200  # models in all their versions; those beyond are called "other"
MODELS_MAX: Final = 1000  # whose latencies are remembered
LAST: Final = 64  # requests that a median is of,
STALE: Final = 16  # and how many come before it is found anew
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
REQUESTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Latencies:
    """How long the last requests for each model took."""

    def __init__(self) -> None:
        self._last: dict[str, deque[float]] = {}
        self._medians: dict[str, tuple[int, float]] = {}  # and how many requests ago that was found

    def add(self, model: str, seconds: float) -> None:
        if model not in self._last and len(self._last) >= MODELS_MAX:
            self._last.clear()
            self._medians.clear()
        self._last.setdefault(model, deque(maxlen=LAST)).append(seconds)

    def median_ms(self, model: str) -> float:
        """0 before anything was measured."""
        last = self._last.get(model)
        if not last:
            return 0.0
        age, median = self._medians.get(model, (STALE, 0.0))
        if age >= min(STALE, len(last)):
            age, median = 0, round(sorted(last)[len(last) // 2] * 1e3, 3)
        self._medians[model] = age + 1, median
        return median


class Metrics:
    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._rows: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, Histogram] = {}
        self._named: set[tuple[str, str]] = set()
        self._shed: Counter[str] = Counter()
        self._batches = Histogram(REQUESTS)
        self._batch_seconds = Histogram(SECONDS)
        self._batched_rows = 0

    def ended(self, model: str, version: int, kind: str, took_s: float, rows: int) -> None:
        name, number = self._label(model, version)
        self._requests[name, number, kind] += 1
        self._rows[name, number] += rows
        if kind != "ok":
            return
        if name not in self._seconds:
            self._seconds[name] = Histogram(SECONDS)
        self._seconds[name].add(took_s)

    def unrouted(self, kind: str) -> None:
        """A request that came to no version."""
        self._requests["", "", kind] += 1

    def batch(self, requests: int, rows: int, seconds: float) -> None:
        self._batches.add(requests)
        self._batch_seconds.add(seconds)
        self._batched_rows += rows

    def shed(self, why: str) -> None:
        self._shed[why] += 1

    def _label(self, model: str, version: int) -> tuple[str, str]:
        label = model, str(version)
        if label not in self._named:
            if len(self._named) >= NAMED_MAX:
                return "other", ""
            self._named.add(label)
        return label

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for (model, version, code), count in self._requests.items():
            yield "zkd_predict_requests_total", {"model": model, "version": version, "code": code}, count
        for (model, version), count in self._rows.items():
            yield "zkd_predict_rows_total", {"model": model, "version": version}, count
        for model, seconds in self._seconds.items():
            yield from seconds.samples("zkd_predict_seconds", {"model": model})
        for why, count in self._shed.items():
            yield "zkd_predict_shed_total", {"why": why}, count
        yield from self._batches.samples("zkd_predict_batch_requests", {})
        yield from self._batch_seconds.samples("zkd_predict_batch_seconds", {})
        yield "zkd_predict_batch_rows_total", {}, self._batched_rows
