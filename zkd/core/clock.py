"""The age of a znode, told without comparing anybody's wall clocks.

A znode's times are by the clock of the server that led the ensemble when it was made. So is the modification
time that comes back with every write of ours: it says what that clock showed at that moment of our monotonic one,
and from then on we can tell how old a znode is by the same clock, wherever that clock stands.

Another leader has another clock, which may stand hours away. The upper half of a transaction's number says under
which leader it was made, so one clock is kept for each of them, and none is asked about another's znodes.
"""

from __future__ import annotations

LEADERS_REMEMBERED = 64


class ServerClock:
    """The clocks of the servers that led, as seen through the answers to our writes."""

    def __init__(self) -> None:
        self._offsets_s: dict[int, float] = {}  # leader's epoch -> its clock, less ours
        self._met_at: dict[int, float] = {}  # when we first heard of it

    def observe(self, server_ms: int, now: float, zxid: int = 0) -> None:
        """A write was answered at `now`; its znode says that the server's clock showed `server_ms`."""
        epoch = zxid >> 32
        self._offsets_s[epoch] = server_ms / 1000 - now
        self._met_at.setdefault(epoch, now)
        if len(self._met_at) > LEADERS_REMEMBERED:
            oldest = min(self._met_at)
            del self._met_at[oldest], self._offsets_s[oldest]

    def time(self, now: float) -> float | None:
        """What the present leader's clock shows, in seconds since the epoch: never ahead of it by more than the clocks
        drift apart until the next observation. None before the first one."""
        return now + self._offsets_s[max(self._offsets_s)] if self._offsets_s else None

    def age_s(self, created_ms: int, now: float, czxid: int = 0) -> float:
        """Seconds since the transaction `czxid` made a znode, or fewer: what we cannot know delays but loses nothing.

        Of one made under a leader of whom we never heard we know only that it is older than the next leader is
        known to us; of one made before our first observation, nothing.
        """
        epoch = czxid >> 32
        if epoch in self._offsets_s:
            return max(0.0, now + self._offsets_s[epoch] - created_ms / 1000)
        later = [met_at for other, met_at in self._met_at.items() if other > epoch]
        return max(0.0, now - min(later)) if later else 0.0
