"""Reads every segment of this node again and again, slowly, so that rotten bytes are found while others have good ones.

Each is read from the disk and compared with its checksums within a budget of bytes a second; the store takes what is
damaged out of the way, and the keeper fetches it anew. A round begins at another place after each start, so that
restarts do not always read the same ones first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger as Log

from zkd.core.keeping import Bucket
from zkd.errors import DataUnavailable
from zkd.store import SegmentStore

ROUND_S = 3600.0  # nothing is read more often than this
LOOK_S = 1.0  # between looks for what is due
# What has just come was compared when it did, and to read it from the disk would make those wait who are sending more.
YOUNG_S = 300.0


class Scrubber:
    def __init__(self, store: SegmentStore, bytes_s: Callable[[], int], start: str, log: Log) -> None:
        self._store = store
        self._bytes_s = bytes_s
        self._log = log
        self._read_at: dict[str, float] = {}  # of what came while we were here: so that it is due when it is not young
        self._known = store.ids()
        self._budget = Bucket(0.0)
        self._last = start  # digits of an id
        self.scrubbed = 0
        self.scrubbed_bytes = 0
        self.found = 0

    async def run(self) -> None:
        """Ends only by cancellation."""
        loop = asyncio.get_running_loop()
        while True:
            segment = self.due(loop.time())
            if segment is None:
                await asyncio.sleep(LOOK_S)
                continue
            self._last = segment
            self._read_at[segment] = loop.time()
            try:
                is_good = await self._store.verify(segment, self._paced)
            except DataUnavailable:
                continue  # it went meanwhile
            except OSError as error:  # says nothing about the data
                self._log.warning("segment.not_scrubbed", segment=segment, error=str(error))
                await asyncio.sleep(LOOK_S)
                continue
            self.scrubbed += 1
            if not is_good:
                self.found += 1

    def due(self, now: float) -> str | None:
        """The next one in order that was not read within a round."""
        here = self._store.ids()
        for gone in self._read_at.keys() - here:
            del self._read_at[gone]
        for new in here - self._known:
            self._read_at[new] = now - max(0.0, ROUND_S - YOUNG_S)
        self._known = here
        due = [each for each in here if now - self._read_at.get(each, now - ROUND_S) >= ROUND_S]
        return min((each for each in due if each > self._last), default=None) or min(due, default=None)

    async def _paced(self, size: int) -> None:
        self.scrubbed_bytes += size
        await asyncio.sleep(self._budget.spend(size, self._bytes_s(), asyncio.get_running_loop().time()))
