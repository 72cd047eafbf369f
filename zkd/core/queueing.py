"""Who holds what a queue of sequential znodes grants, and whom the others watch.

One rule serves election and, with more than one place, semaphores: sort by the sequence number that
ZooKeeper appended; the first `places` hold; everyone else watches the znode whose departure would let
them in, and nobody else's, so that one departure wakes one waiter (the ZooKeeper recipes' answer to the
herd effect).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

DIGITS = 10  # ZooKeeper appends %010d; past 2**31 it wraps to a sign, which sorts first as it should not


class Standing(NamedTuple):
    is_held: bool
    watch: str | None  # the child to watch while waiting


def sequence(child: str) -> int:
    """The number that ZooKeeper appended to this child's name."""
    if not is_queued(child):
        raise ValueError(f"expected a child name that ends in {DIGITS} digits, got {child!r}")
    return int(child[-DIGITS:])


def is_queued(child: str) -> bool:
    """Whether ZooKeeper may have made this name; anybody may have made any other."""
    tail = child[-DIGITS:]
    return len(tail) == DIGITS and tail.isascii() and tail.isdigit()


def standing(children: Sequence[str], mine: str, places: int = 1) -> Standing | None:
    """Where `mine` stands among `children`, or None when it is no longer there."""
    if mine not in children:
        return None
    ordered = sorted(filter(is_queued, children), key=sequence)
    place = ordered.index(mine)
    if place < places:
        return Standing(True, None)
    return Standing(False, ordered[place - places])
