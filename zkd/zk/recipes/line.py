"""A place in a line of ephemeral sequential znodes, until it is our turn: the one way in to all that can be held.

    <directory>/<mode>-<identity>-<number>      mode: read, write, lease, candidate, taker

The identity is ours alone and new with each session, so that a creation whose answer was lost is found again and
never made twice (Curator's "protection"). The number decides, by `core.queueing`. Whoever gives up, by deadline or by
cancellation at any await, leaves no znode.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from zkd import codec
from zkd.core.queueing import standing
from zkd.errors import LockTimeout, NoNode, TermsDisagree
from zkd.zk.recipes.footing import INTERRUPTIONS, Alarm, Footing, delete_by_identity, ensure_directory, listed
from zkd.zk.recipes.held import Held

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.zk.values import Event

IDENTITY_BYTES = 8


class Line:
    """One wish to hold. `places` may hold at once; `terms` is what the directory must say for all who use it."""

    def __init__(
        self, footing: Footing, what: str, directory: str, mode: str, *, places: int = 1, terms: bytes = b""
    ) -> None:
        self.what = what
        self.directory = directory
        self._footing = footing
        self._session = footing.session
        self._mode = mode
        self._places = places
        self._terms = terms
        self._session_id = 0
        self._identity = ""
        self._name = ""  # of our znode, once its creation was answered
        self._is_sent = False  # a creation was, and its answer did not come
        self._watched: dict[str, Callable[[Event], None]] = {}

    async def hold(self, timeout_s: float | None) -> Held:
        """Wait for our turn. With 0 look once, for which the servers get a session timeout at most.

        Raises `LockTimeout`, `TermsDisagree`, `SessionClosed`, and what the ACL or a quota forbids.
        """
        is_try = timeout_s is not None and timeout_s <= 0
        with Alarm(self._session) as alarm:
            try:
                async with asyncio.timeout(self._session.timeout_s if is_try else timeout_s):
                    return await self._until_held(alarm, is_try)
            except TimeoutError:
                await self._withdraw()
                raise LockTimeout(f"{self.what}: not our turn within {timeout_s:g} s") from None
            except TermsDisagree:
                await self._withdraw()
                raise
            except BaseException:
                self._leave()
                raise
            finally:
                for path, watch in self._watched.items():
                    self._session.forget(path, watch)

    async def _until_held(self, alarm: Alarm, is_try: bool) -> Held:
        while True:
            session_id = await alarm.connected()
            if session_id != self._session_id:
                self._session_id, self._identity = session_id, secrets.token_hex(IDENTITY_BYTES)
                self._name, self._is_sent = "", False  # what there was went with its session
            try:
                if not self._name:
                    await self._enter()
                    await self._check_terms()
                held = await self._turn(alarm, is_try)
            except INTERRUPTIONS:
                continue
            except NoNode:
                held = None
            if held is not None:
                return held
            self._name = ""  # somebody deleted our znode, or all: queue up again, at the end

    async def _enter(self) -> None:
        """Have one znode in the line, whatever became of an earlier try in this session."""
        if self._is_sent:
            found = [child for child in await listed(self._session, self.directory) if self._identity in child]
            self._is_sent = False  # after a sync nothing of the former connection is on its way any more
            if found:
                self._name = min(found)
                return
        while True:
            self._is_sent = True
            try:
                created = await self._session.create(
                    f"{self.directory}/{self._mode}-{self._identity}-",
                    codec.encode(self._footing.claimant),
                    ephemeral=True,
                    sequential=True,
                    within=self._session_id,
                )
            except NoNode:
                self._is_sent = False
                await ensure_directory(self._session, self.directory, self._terms)
                continue
            self._name, self._is_sent = created.path.rpartition("/")[2], False
            return

    async def _check_terms(self) -> None:
        """While our own znode is there the directory stays, and what it says."""
        if self._terms and (said := (await self._session.get(self.directory)).data) != self._terms:
            raise TermsDisagree(
                f"{self.what}: expected {self._terms.decode()} as we were told to, "
                f"{self.directory} says {said.decode(errors='replace')[:200]}"
            )

    async def _turn(self, alarm: Alarm, is_try: bool) -> Held | None:
        """What is ours, when it is; None if our znode is gone."""
        while True:
            alarm.clear()
            children = await self._session.children(self.directory, within=self._session_id)
            place = standing(children, self._name, self._places)
            if place is None:
                return None
            if place.is_held:
                return await self._take()
            if is_try:
                raise TimeoutError
            if await self._watch(place.watch, alarm):
                await alarm.wait()  # bounded by the caller's deadline, if there is one
                await alarm.connected()
            if self._session.session_id != self._session_id:
                return None

    async def _watch(self, wanted: tuple[str, ...], alarm: Alarm) -> bool:
        """Watch these. False if one has gone meanwhile, so that we have to look again.

        By reading them, since a watch on what is not there would stay for ever.
        """
        for child in wanted:
            path = f"{self.directory}/{child}"
            if path in self._watched:
                continue

            def saw(event: Event, path: str = path) -> None:
                self._watched.pop(path, None)
                alarm.ring()

            self._watched[path] = saw
            try:
                await self._session.get(path, watch=saw, within=self._session_id)
            except NoNode:
                self._watched.pop(path, None)
                return False
            except BaseException:
                self._watched.pop(path, None)
                self._session.forget(path, saw)
                raise
        return True

    async def _take(self) -> Held | None:
        held = Held(self._footing, self.what, f"{self.directory}/{self._name}", self._session_id, self._identity)
        try:
            znode = await self._session.get(held.path, watch=held.saw, within=self._session_id)
        except NoNode:
            held.forget()
            return None
        except BaseException:
            held.forget()
            raise
        held.granted(znode.stat)
        return held

    async def _withdraw(self) -> None:
        """Be out of the line when this returns, if the servers can be reached."""
        if not (self._name or self._is_sent):
            return
        try:
            await delete_by_identity(self._session, self.directory, self._identity, self._session_id)
        except INTERRUPTIONS:
            self._leave()
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        if self._name or self._is_sent:
            self._footing.leftovers.leave(self.directory, self._identity, self._session_id)
