"""Keeps the segments of a part few, however often rows are appended: the last ones are put together with the new rows.

What is merged is written anew, and only the new version lists it: versions that are there keep the segments that they
have. A segment is merged with what came after it when that has become as much, so a row is written again a few times
in all, not with each append.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zkd.errors import DataDamaged, DataUnavailable

if TYPE_CHECKING:
    from zkd.client.dataset import Dataset
    from zkd.tables.assemble import Piece

SEGMENTS_MAX = 8  # of a part, as long as they are not large
MERGED_BYTES_MAX = 256 * 2**20  # of one that is made of several; it is in memory while it is sent
MERGES_AT_ONCE = 2


def to_merge(sizes: Sequence[int], new: int) -> int:
    """How many of a part's last segments, of these sizes, are to be put together with `new` bytes of rows."""
    if len(sizes) < SEGMENTS_MAX:
        return 0
    count = 0
    for size in reversed(sizes):
        if (count and size > new) or new + size > MERGED_BYTES_MAX:
            break
        new += size
        count += 1
    return count


class Merging:
    """The segments of the version that rows are appended to."""

    def __init__(self, old: Dataset) -> None:
        self._old = old
        self._merged: dict[int, int] = {}  # part -> how many of its segments are in its new one
        self.turns = asyncio.Semaphore(MERGES_AT_ONCE)

    def count(self, part: int, size: int) -> int:
        """How many segments would go into the new one, if this has `size` bytes without them."""
        return to_merge([ref.size for ref in self._old.segments[part]], size)

    async def read(self, part: int, count: int) -> list[Piece]:
        """The rows of the last `count` segments, for the new one. None, if they cannot be read now: then they stay."""
        try:
            pieces = await self._old.pieces(part, self._old.segments[part][-count:])
        except (DataUnavailable, DataDamaged):
            return []
        self._merged[part] = count
        return pieces

    def kept(self, part: int) -> int:
        """How many of the part's segments the new version has in common with the old."""
        return len(self._old.segments[part]) - self._merged.get(part, 0)
