"""All recipes by name, for one session: ``sync/<kind>/<name>`` below a root."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zkd.paths import NAME_RULE, Paths, is_name
from zkd.records import Claimant
from zkd.zk.recipes.barriers import Barrier, DoubleBarrier
from zkd.zk.recipes.counters import Counter
from zkd.zk.recipes.elections import Election
from zkd.zk.recipes.footing import Footing, Leftovers, listed
from zkd.zk.recipes.locks import Mine, RwLock, Standee, line_at, semaphore
from zkd.zk.recipes.parties import Party
from zkd.zk.recipes.patience import OUTAGE_MAX_S
from zkd.zk.recipes.queues import Queue

if TYPE_CHECKING:
    from zkd.zk.recipes.held import Held
    from zkd.zk.recipes.holding import Holding, Until
    from zkd.zk.session import Session

CLIENT_BYTES = 6


class Recipes:
    """What can be held, counted, met at and queued in. Its few tasks belong to `tasks`; `close` ends them.

    `claimant` is what others read of us at our znodes.
    """

    def __init__(self, session: Session, paths: Paths, tasks: asyncio.TaskGroup, claimant: Claimant) -> None:
        self._session = session
        self._paths = paths
        self._leftovers = Leftovers(session, tasks)
        self._footing = Footing(session, self._leftovers, tasks, claimant, secrets.token_hex(CLIENT_BYTES))
        self._mine: Mine = {}
        self._counters: dict[str, Counter] = {}  # each takes turns with itself

    def close(self) -> None:
        self._leftovers.close()

    def describe(self, note: str) -> None:
        """What others read beside our name, from the next claim on."""
        claimant = Claimant(self._footing.claimant.who, self._footing.claimant.pid, note)
        self._footing = replace(self._footing, claimant=claimant)

    def lock(self, name: str, *, timeout_s: float | None = None, until: Until = "doubt") -> Holding[Held]:
        """Hold the lock `name` alone: ``async with client.lock("name", timeout_s=5) as held: ... held.fence``.

        The first to come holds first. Leaving the block lets the next one in; it is cancelled, and raises `LockLost`,
        when the lock is lost, or in doubt (see `until`). Raises `LockTimeout` after `timeout_s`: None waits for ever,
        0 looks once.
        """
        return RwLock(self._footing, self._path("locks", name), name, self._mine).write(
            timeout_s=timeout_s, until=until
        )

    def rwlock(self, name: str) -> RwLock:
        """The same lock, which many may hold for reading at once: ``async with client.rwlock("name").read()``."""
        return RwLock(self._footing, self._path("locks", name), name, self._mine)

    def semaphore(
        self, name: str, *, leases: int, timeout_s: float | None = None, until: Until = "doubt"
    ) -> Holding[Held]:
        """Hold one of `leases`. All who use the name at a time agree on their number, or get `TermsDisagree`."""
        path = self._path("semaphores", name)
        return semaphore(self._footing, path, name, leases=leases, timeout_s=timeout_s, until=until)

    def election(self, name: str) -> Election:
        """Be one who leads, or see who does: ``async with client.election("name").lead() as term``."""
        return Election(self._footing, self._path("elections", name), name, self._mine)

    def barrier(self, name: str) -> Barrier:
        """A gate: `close`, `open`, `wait`."""
        return Barrier(self._footing, self._path("barriers", name), name)

    def double_barrier(self, name: str, *, count: int, timeout_s: float | None = None) -> DoubleBarrier:
        """A meeting: ``async with client.double_barrier("name", count=3)`` goes in and out with `count` together."""
        return DoubleBarrier(self._footing, self._path("double-barriers", name), name, count, timeout_s)

    def counter(self, name: str) -> Counter:
        """A number that all agree on: `get`, `add`, `compare_and_set`, each change exactly once."""
        if name not in self._counters:
            self._counters[name] = Counter(self._footing, self._path("counters", name), name)
        return self._counters[name]

    def queue(self, name: str) -> Queue:
        """Values for whoever takes them: `put`, and ``async with queue.take() as item``."""
        return Queue(self._footing, self._path("queues", name), name)

    def party(self, name: str, value: Any = None, *, timeout_s: float | None = OUTAGE_MAX_S) -> Party:
        """Be here, in every session: ``async with client.party("name", {"port": 80})``; `members`, `changes`."""
        return Party(self._footing, self._path("parties", name), name, value, timeout_s)

    # --- to look ------------------------------------------------------------------------------------

    async def names(self, kind: str) -> list[str]:
        """The names that are in use, or were a short while ago."""
        return sorted(await listed(self._session, f"{self._paths.sync}/{kind}"))

    async def line(self, kind: str, name: str, part: str = "") -> list[Standee]:
        """Who holds and who waits, in order."""
        return await line_at(self._session, "/".join(filter(None, (self._path(kind, name), part))))

    def _path(self, kind: str, name: str) -> str:
        if not isinstance(name, str) or not is_name(name):
            raise ValueError(f"{kind}: expected a name of {NAME_RULE}, got {name!r}")
        return self._paths.recipe(kind, name)
