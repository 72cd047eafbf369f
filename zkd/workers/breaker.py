"""How long to wait before the next try, when what was started keeps ending at once.

Once is chance: the next try is immediate, because a worker or a fork server that was killed must be back
within a second. From the second failure in a row on, tries become rarer: 0.1 s, 0.2 s, and so on to 10 s.
"""

from __future__ import annotations

from typing import Final

BACKOFF_S: Final = 0.1
BACKOFF_S_MAX: Final = 10.0
FAILURES_APART_S: Final = 60.0  # failures further apart have nothing to do with each other
OPEN_AFTER: Final = 3


class Breaker:
    """The failures in a row of one kind of thing."""

    def __init__(self) -> None:
        self.failures = 0
        self._failed_at = -FAILURES_APART_S

    @property
    def is_open(self) -> bool:
        """Whether this is no chance any more."""
        return self.failures >= OPEN_AFTER

    def fail(self, now: float) -> float:
        """Count a failure and give the seconds to wait."""
        self.failures = self.failures + 1 if now - self._failed_at < FAILURES_APART_S else 1
        self._failed_at = now
        exponent = min(self.failures - 2, 20)
        return min(BACKOFF_S * 2.0**exponent, BACKOFF_S_MAX) if self.failures > 1 else 0.0

    def reset(self) -> None:
        self.failures = 0
