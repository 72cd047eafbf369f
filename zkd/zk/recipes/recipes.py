"""All recipes by name, for one session: ``sync/<kind>/<name>`` below a root."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from zkd.paths import NAME_RULE, Paths, is_name
from zkd.records import Claimant
from zkd.zk.recipes.elections import Election
from zkd.zk.recipes.footing import Footing, Leftovers, listed
from zkd.zk.recipes.locks import Mine, RwLock, Standee, line_at, semaphore

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

    # --- to look ------------------------------------------------------------------------------------

    async def names(self, kind: str) -> list[str]:
        """The names that are in use, or were a short while ago."""
        return sorted(await listed(self._session, f"{self._paths.sync}/{kind}"))

    async def line(self, kind: str, name: str) -> list[Standee]:
        """Who holds and who waits, in order."""
        return await line_at(self._session, self._path(kind, name))

    def _path(self, kind: str, name: str) -> str:
        if not isinstance(name, str) or not is_name(name):
            raise ValueError(f"{kind}: expected a name of {NAME_RULE}, got {name!r}")
        return self._paths.recipe(kind, name)
