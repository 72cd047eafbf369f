"""A znode of ours in a directory: ephemeral, sequential, one a session, whatever becomes of the answers.

    <directory>/<mode>-<identity>-<number>

The identity is ours alone and new with each session, so that a creation whose answer was lost is found again and
never made twice (Curator's "protection").
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from zkd.errors import NoNode
from zkd.zk.recipes.footing import INTERRUPTIONS, Footing, delete_by_identity, ensure_directory, listed

if TYPE_CHECKING:
    from collections.abc import Callable

IDENTITY_BYTES = 8


class Place:
    def __init__(
        self, footing: Footing, directory: str, mode: str, data: Callable[[], bytes], *, terms: bytes = b""
    ) -> None:
        """`data` is what our znode says, `terms` what a directory that is not there yet is made with."""
        self.directory = directory
        self.session_id = 0
        self.identity = ""
        self.name = ""  # of our znode, once its creation was answered
        self._footing = footing
        self._session = footing.session
        self._mode = mode
        self._data = data
        self._terms = terms
        self._is_sent = False  # a creation was, and its answer did not come

    @property
    def path(self) -> str:
        return f"{self.directory}/{self.name}"

    async def take(self, session_id: int) -> None:
        """Have our znode in the directory, in this session. Raises what interrupts; then call it again."""
        if session_id != self.session_id:
            self.session_id, self.identity = session_id, secrets.token_hex(IDENTITY_BYTES)
            self.name, self._is_sent = "", False  # what there was went with its session
        if self.name:
            return
        if self._is_sent:
            found = [child for child in await listed(self._session, self.directory) if self.identity in child]
            self._is_sent = False  # after a sync nothing of the former connection is on its way any more
            if found:
                self.name = min(found)
                return
        while True:
            self._is_sent = True
            try:
                created = await self._session.create(
                    f"{self.directory}/{self._mode}-{self.identity}-",
                    self._data(),
                    ephemeral=True,
                    sequential=True,
                    within=session_id,
                )
            except NoNode:
                self._is_sent = False
                await ensure_directory(self._session, self.directory, self._terms)
                continue
            self.name, self._is_sent = created.path.rpartition("/")[2], False
            return

    def lost(self) -> None:
        """Somebody deleted it: the next `take` makes another one."""
        self.name = ""

    async def withdraw(self) -> None:
        """Be gone when this returns, if the servers can be reached; else as soon as they can."""
        if not (self.name or self._is_sent):
            return
        try:
            await delete_by_identity(self._session, self.directory, self.identity, self.session_id)
        except INTERRUPTIONS:
            self.leave()
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Be gone soon, without waiting."""
        if self.name or self._is_sent:
            directory, identity, session_id = self.directory, self.identity, self.session_id

            async def remove() -> None:
                await delete_by_identity(self._session, directory, identity, session_id)

            self._footing.leftovers.leave(session_id, remove)
