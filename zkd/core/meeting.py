"""Who goes in at a double barrier, and when: one rule on the list of members and what was decided last.

The first `count` members in the order of their coming go in together, as soon as none of those who went in before is
still there. Whoever joins makes the last znode of all that are there, so the one who completes a meeting sees that it
does: nobody else need watch for arrivals. A member that died before counts until its session ends; one that dies
inside has left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zkd.core.queueing import in_order


class GoIn(NamedTuple):
    members: list[str]


class Wait(NamedTuple):
    """Until somebody comes, or until the last one named here has left."""

    leaving: list[str]


def meeting(members: Sequence[str], inside: Sequence[str], count: int) -> GoIn | Wait:
    """What is to happen now. `inside` are those who went in last."""
    ordered = in_order(members)
    leaving = [member for member in ordered if member in set(inside)]
    waiting = [member for member in ordered if member not in set(inside)]
    if len(waiting) < count:
        return Wait([])
    return Wait(leaving) if leaving else GoIn(waiting[:count])


def still_inside(members: Sequence[str], inside: Sequence[str], mine: str) -> list[str]:
    """Those who have not left yet, but for us; the next after us first, so that each watches another one."""
    here = set(members)
    after = list(inside).index(mine) if mine in inside else 0
    turned = [*inside[after:], *inside[:after]]
    return [member for member in turned if member in here and member != mine]
