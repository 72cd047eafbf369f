"""Locks, read-write locks and semaphores: three ways to stand in a line.

sync/locks/<name>/write-<identity>-<number>, read-<identity>-<number>      a lock is a read-write lock that is
                                                                           only ever taken for writing
sync/semaphores/<name>/lease-<identity>-<number>       the znode <name> says how many leases there are
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from zkd import codec
from zkd.core.queueing import holders, in_order, is_shared
from zkd.errors import BadRecord, NoNode
from zkd.records import Claimant, SemaphoreTerms
from zkd.zk.recipes.footing import Footing
from zkd.zk.recipes.holding import Holding, Until
from zkd.zk.recipes.line import Line
from zkd.zk.values import Znode

if TYPE_CHECKING:
    from zkd.zk.recipes.held import Held
    from zkd.zk.session import Session

LEASES_MAX = 1000  # a waiter watches as many znodes

Mine = dict[str, asyncio.Task[object]]


class RwLock:
    """Many may read at once, or one may write. Who came first goes first, so writers are not starved."""

    def __init__(self, footing: Footing, directory: str, name: str, mine: Mine) -> None:
        self.name = name
        self._footing = footing
        self._directory = directory
        self._mine = mine

    def read(self, *, timeout_s: float | None = None, until: Until = "doubt") -> Holding[Held]:
        """Hold it together with others who read."""
        line = Line(self._footing, f"lock {self.name} for reading", self._directory, "read")
        return Holding(line, timeout_s, until, self._mine)

    def write(self, *, timeout_s: float | None = None, until: Until = "doubt") -> Holding[Held]:
        """Hold it alone."""
        line = Line(self._footing, f"lock {self.name}", self._directory, "write")
        return Holding(line, timeout_s, until, self._mine)


def semaphore(
    footing: Footing, directory: str, name: str, *, leases: int, timeout_s: float | None, until: Until
) -> Holding[Held]:
    """One of `leases` that may be held at once."""
    if isinstance(leases, bool) or not isinstance(leases, int) or not 1 <= leases <= LEASES_MAX:
        raise ValueError(f"leases: expected an int from 1 to {LEASES_MAX}, got {leases!r}")
    terms = codec.encode(SemaphoreTerms(leases))
    return Holding(
        Line(footing, f"semaphore {name}", directory, "lease", places=leases, terms=terms), timeout_s, until, None
    )


class Standee(msgspec.Struct, frozen=True):
    """Somebody in a line, for people: whether it holds, for how long it is there, and what it says of itself."""

    znode: str
    mode: str
    is_held: bool
    fence: int
    since_ms: int
    session_id: int
    claimant: Claimant


async def line_at(session: Session, directory: str) -> list[Standee]:
    """Who stands in a line, in order. What went while it was read is left out."""
    try:
        children, said = await session.children(directory), (await session.get(directory)).data
    except NoNode:
        return []
    places = 1
    if said:
        try:
            places = codec.decode(said, SemaphoreTerms).leases
        except BadRecord:
            places = 1
    ordered = in_order(children)
    held = set(holders(children, places))
    found = []
    for child, znode in zip(ordered, await session.get_many([f"{directory}/{c}" for c in ordered]), strict=True):
        if not isinstance(znode, Znode):
            continue
        try:
            claimant = codec.decode(znode.data, Claimant)
        except BadRecord:
            claimant = Claimant(znode.data.decode(errors="replace")[:80] or "?")
        mode = "read" if is_shared(child) else child.partition("-")[0]
        stat = znode.stat
        found.append(Standee(child, mode, child in held, stat.czxid, stat.ctime, stat.ephemeral_owner, claimant))
    return found
