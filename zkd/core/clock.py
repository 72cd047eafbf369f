"""The age of a znode, told without comparing anybody's wall clocks.

A znode's times are the server's. So is the modification time that comes back with every write of ours: it
says what the server's clock showed at that moment of our monotonic one, and from then on we can tell how
old a znode is by the server's own clock, wherever that clock stands.
"""

from __future__ import annotations


class ServerClock:
    """The server's clock as seen through the answers to our writes."""

    def __init__(self) -> None:
        self._offset_s: float | None = None

    def observe(self, server_ms: int, now: float) -> None:
        """A write was answered at `now`; its znode says that the server's clock showed `server_ms`."""
        self._offset_s = server_ms / 1000 - now

    def time(self, now: float) -> float | None:
        """What the server's clock shows, in seconds since the epoch: never ahead of it by more than the clocks drift
        apart until the next observation. None before the first one."""
        return None if self._offset_s is None else now + self._offset_s

    def age_s(self, created_ms: int, now: float) -> float:
        """Seconds since the server made a znode; 0 before the first observation, which delays but loses nothing."""
        if self._offset_s is None:
            return 0.0
        return max(0.0, now + self._offset_s - created_ms / 1000)
