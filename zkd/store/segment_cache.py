"""Copies of segments that lie at a URL, on a node that works on them: a store of its own, bounded, gone when not used.

    <data_dir>/remote/segments*    as of any store

What was used lately stays: a run maps its files some time after it was told their names. So when the cache is full
of such, nothing more is brought, and tasks go elsewhere or wait.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from zkd.errors import DataDamaged, DataUnavailable
from zkd.manifests import SegmentRef
from zkd.store.segments import SegmentStore

CACHE_BYTES_MAX = 16 * 2**30
DISK_SHARE = 0.25  # and no more of the disk than this
USED_LATELY_S = 600.0
REMEMBERED = 1000  # segments that were let go, while runs may have them mapped


class SegmentCache:
    def __init__(self, data_dir: Path, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self.store = SegmentStore(data_dir / "remote")
        self._bytes_max = min(bytes_max, int(self.store.disk_bytes() * DISK_SHARE))
        self._used: dict[str, float] = {}  # id -> when, of this process; the rest was not used lately
        self._sizes: dict[str, int] = {}
        self._let_go: deque[object] = deque(maxlen=REMEMBERED)

    def use(self, segment_id: str) -> None:
        """It is about to be used: it stays for a while."""
        self._used[segment_id] = time.monotonic()

    async def make_room(self, ref: SegmentRef) -> None:
        """Let go of what was not used for longest, until there is room for this one. Raises `DataUnavailable`."""
        self.use(ref.id)
        now = time.monotonic()
        here = {each: await self._size(each) for each in self.store.ids() if each != ref.id}
        total = ref.size + sum(here.values())
        for segment_id in sorted(here, key=lambda each: self._used.get(each, 0.0)):
            if total <= self._bytes_max:
                break
            if now - self._used.get(segment_id, -USED_LATELY_S) < USED_LATELY_S:
                break
            life = self.store.life(segment_id)
            try:
                await self.store.verified(segment_id)
            except DataDamaged:
                total -= here[segment_id]
                continue
            self._let_go.append(life)
            await self.store.trash(segment_id)
            await self.store.remove(segment_id)
            self._used.pop(segment_id, None)
            self._sizes.pop(segment_id, None)
            total -= here[segment_id]
        if total > self._bytes_max:
            self._used.pop(ref.id, None)
            raise DataUnavailable(
                f"the cache of {self._bytes_max} bytes has no room for {ref.size} more: the rest was used in the last "
                f"{USED_LATELY_S:g} s"
            )

    def was_let_go(self, life: object) -> bool:
        """Whether this life of a segment ended for want of room, good to the last: who still reads it reads right."""
        return any(each is life for each in self._let_go)

    async def _size(self, segment_id: str) -> int:
        if segment_id not in self._sizes:
            self._sizes[segment_id] = await self.store.size_on_disk(segment_id)
        return self._sizes[segment_id]
