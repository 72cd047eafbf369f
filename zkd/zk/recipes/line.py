"""A place in a line, until it is our turn: the one way in to all that can be held. `core.queueing` decides whose it is.

Whoever gives up, by deadline or by cancellation at any await, leaves no znode and no watch.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zkd import codec
from zkd.core.queueing import standing
from zkd.errors import LockTimeout, NoNode, TermsDisagree
from zkd.zk.recipes.footing import INTERRUPTIONS, Alarm, Footing
from zkd.zk.recipes.held import Held
from zkd.zk.recipes.place import Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.zk.values import Event


class Line:
    """One wish to hold. `places` may hold at once; `terms` is what the directory must say for all who use it."""

    def __init__(
        self, footing: Footing, what: str, directory: str, mode: str, *, places: int = 1, terms: bytes = b""
    ) -> None:
        self.what = what
        self.directory = directory
        self._footing = footing
        self._session = footing.session
        self._places = places
        self._terms = terms
        self._place = Place(footing, directory, mode, lambda: codec.encode(footing.claimant), terms=terms)
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
                await self._place.withdraw()
                raise LockTimeout(f"{self.what}: not our turn within {timeout_s:g} s") from None
            except TermsDisagree:
                await self._place.withdraw()
                raise
            except BaseException:
                self._place.leave()
                raise
            finally:
                for path, watch in self._watched.items():
                    self._session.forget(path, watch)

    async def _until_held(self, alarm: Alarm, is_try: bool) -> Held:
        while True:
            session_id = await alarm.connected()
            held = None
            try:
                await self._place.take(session_id)
                await self._check_terms()
                held = await self._turn(alarm, is_try)
            except INTERRUPTIONS:
                continue
            except NoNode:
                held = None
            if held is not None:
                return held
            self._place.lost()  # somebody deleted our znode, or all: queue up again, at the end

    async def _check_terms(self) -> None:
        """While our own znode is there the directory stays, and what it says."""
        if self._terms and (said := (await self._session.get(self.directory)).data) != self._terms:
            raise TermsDisagree(
                f"{self.what}: expected {self._terms.decode()} as we were told to, "
                f"{self.directory} says {said.decode(errors='replace')[:200]}"
            )

    async def _turn(self, alarm: Alarm, is_try: bool) -> Held | None:
        """What is ours, when it is; None if our znode is gone."""
        session_id = self._place.session_id
        while True:
            alarm.clear()
            children = await self._session.children(self.directory, within=session_id)
            place = standing(children, self._place.name, self._places)
            if place is None:
                return None
            if place.is_held:
                return await held_at(self._footing, self.what, self._place.path, session_id)
            if is_try:
                raise TimeoutError
            if await self._watch(place.watch, alarm):
                await alarm.wait()  # bounded by the caller's deadline, if there is one
                await alarm.connected()

    async def _watch(self, wanted: tuple[str, ...], alarm: Alarm) -> bool:
        """Watch these. False if one has gone meanwhile, so that we have to look again.

        By reading them, since a watch on what is not there would stay for ever.
        """
        for child in wanted:
            path = f"{self.directory}/{child}"
            if path in self._watched:
                continue

            def saw(_: Event, path: str = path) -> None:
                self._watched.pop(path, None)
                alarm.ring()

            self._watched[path] = saw
            try:
                await self._session.get(path, watch=saw, within=self._place.session_id)
            except NoNode:
                self._watched.pop(path, None)
                return False
            except BaseException:
                self._watched.pop(path, None)
                self._session.forget(path, saw)
                raise
        return True


async def held_at(footing: Footing, what: str, path: str, session_id: int) -> Held | None:
    """What we hold by the znode at `path`, watched from here on; None if it is gone."""
    held = Held(footing, what, path, session_id)
    try:
        znode = await footing.session.get(path, watch=held.saw, within=session_id)
    except NoNode:
        held.forget()
        return None
    except BaseException:
        held.forget()
        raise
    if znode.stat.ephemeral_owner != session_id:
        held.forget()
        return None
    held.granted(znode.stat)
    return held
