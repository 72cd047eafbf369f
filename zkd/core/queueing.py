"""Who holds what a line of sequential znodes grants, and whom the others watch.

One rule serves election, locks, read-write locks and semaphores. A claim is *blocked* by those that were made before
it: by all of them, or, if it is a shared one, by the exclusive ones alone. It holds while fewer than `places` block
it. Else it watches the `places` nearest of those that block it: while these are there it cannot hold, so nothing else
that happens need wake it, and a departure wakes at most `places` exclusive claims, or the shared ones that were
waiting for just that one (the ZooKeeper recipes' answer to the herd effect). To watch fewer would be to sleep on:
holders of a semaphore leave in any order.

That others see more or less than we do does no harm: whoever stands before us was there when our own znode was
made, whatever server we read it from, and what has left never comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

DIGITS = 10  # ZooKeeper appends %010d; past 2**31 it wraps to a sign, which sorts first as it should not
SHARED = "read-"  # how the names of shared claims begin


class Standing(NamedTuple):
    is_held: bool
    watch: tuple[str, ...]  # the children to watch while waiting, none of which may go unnoticed


def sequence(child: str) -> int:
    """The number that ZooKeeper appended to this child's name."""
    if not is_queued(child):
        raise ValueError(f"expected a child name that ends in {DIGITS} digits, got {child!r}")
    return int(child[-DIGITS:])


def is_queued(child: str) -> bool:
    """Whether ZooKeeper may have made this name; anybody may have made any other."""
    tail = child[-DIGITS:]
    return len(tail) == DIGITS and tail.isascii() and tail.isdigit()


def is_shared(child: str) -> bool:
    return child.startswith(SHARED)


def in_order(children: Sequence[str]) -> list[str]:
    """The claims among `children`, the first first."""
    return sorted(filter(is_queued, children), key=sequence)


def standing(children: Sequence[str], mine: str, places: int = 1) -> Standing | None:
    """Where `mine` stands among `children`, or None when it is no longer there."""
    if mine not in children:
        return None
    ordered = in_order(children)
    ahead = ordered[: ordered.index(mine)]
    blocking = [other for other in ahead if not is_shared(other)] if is_shared(mine) else ahead
    if len(blocking) < places:
        return Standing(True, ())
    return Standing(False, tuple(blocking[-places:]))


def holders(children: Sequence[str], places: int = 1) -> list[str]:
    """Those among `children` that hold."""
    found, exclusive = [], 0
    for place, child in enumerate(in_order(children)):
        blocking = exclusive if is_shared(child) else place
        if blocking < places:
            found.append(child)
        exclusive += not is_shared(child)
    return found
