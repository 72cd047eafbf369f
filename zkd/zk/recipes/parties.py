"""Parties: who is here now, with what each says of itself. ``sync/parties/<name>/member-<identity>-<number>``.

A member whose session expired comes again in the next one, with another znode; whose znode was deleted, too.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw, Struct

from zkd import codec
from zkd.core.queueing import in_order
from zkd.errors import BadRecord, NoNode, SessionClosed, ZooKeeperError
from zkd.records import Claimant, Member
from zkd.zk.recipes.footing import INTERRUPTIONS, Alarm, Footing, ensure_directory
from zkd.zk.recipes.patience import OUTAGE_MAX_S, persist
from zkd.zk.recipes.place import Place
from zkd.zk.values import Znode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

AGAIN_S = 1.0  # before the next try when something is wrong that another try may not change


class Guest(Struct, frozen=True):
    """A member as the others see it. `value` is what it said of itself, `since_ms` by the servers' clock."""

    znode: str
    claimant: Claimant
    value: Any
    since_ms: int
    session_id: int


class Party:
    """`async with client.party(name, value)`: be a member for the block. To look only, do not enter it."""

    def __init__(self, footing: Footing, directory: str, name: str, value: Any, timeout_s: float | None) -> None:
        self.name = name
        claimant = footing.claimant
        text = codec.encode(Member(claimant.who, claimant.pid, claimant.note, Raw(codec.encode(value))))
        self._what = f"party {name}"
        self._footing = footing
        self._session = footing.session
        self._directory = directory
        self._timeout_s = timeout_s
        self._place = Place(footing, directory, "member", lambda: text)
        self._staying: asyncio.Task[None] | None = None

    @property
    def znode(self) -> str:
        """Our own name among `Guest.znode`; another one with each session."""
        return self._place.name

    async def __aenter__(self) -> Party:
        async def attempt(_: Alarm, session_id: int) -> None:
            await self._place.take(session_id)

        try:
            await persist(self._session, self._what, self._timeout_s, attempt)
        except BaseException:
            self._place.leave()
            raise
        self._staying = self._footing.tasks.create_task(self._stay(), name=f"zkd {self._what}")
        self._footing.leftovers.ends_with(self._staying)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._staying is not None:
            self._staying.cancel()
            await asyncio.wait([self._staying])
        await self._place.withdraw()

    async def _stay(self) -> None:
        """Be there in every session, until cancelled."""
        with Alarm(self._session) as alarm:
            while True:
                try:
                    session_id = await alarm.connected()
                    await self._place.take(session_id)
                    await alarm.get(self._place.path, within=session_id)
                    await alarm.wait()  # without bound: until our znode or our session is another one
                except NoNode:
                    self._place.lost()
                except INTERRUPTIONS:
                    continue
                except SessionClosed:
                    return
                except ZooKeeperError:  # forbidden, over quota: people may mend it
                    await asyncio.sleep(AGAIN_S)

    async def members(self) -> list[Guest]:
        """Who is here, in the order of their coming."""

        async def attempt(_: Alarm, session_id: int) -> list[Guest]:
            try:
                await self._session.sync(self._directory)
                return await self._read(await self._session.children(self._directory))
            except NoNode:
                return []

        return await persist(self._session, self._what, OUTAGE_MAX_S, attempt)

    async def changes(self) -> AsyncIterator[list[Guest]]:
        """Who is here, now and whenever that has changed; across outages. Never ends by itself."""
        last: list[Guest] | None = None
        with Alarm(self._session) as alarm:
            while True:
                await alarm.connected()
                try:
                    guests = await self._read(await alarm.children(self._directory))
                except NoNode:
                    await self._make()
                    continue
                except INTERRUPTIONS:
                    continue
                if guests != last:
                    last = guests
                    yield guests
                await alarm.wait()  # without bound: nobody may come for years

    async def _make(self) -> None:
        """Have something to watch."""
        try:
            await ensure_directory(self._session, self._directory)
        except INTERRUPTIONS:
            return

    async def _read(self, children: list[str]) -> list[Guest]:
        ordered = in_order(children)
        found = []
        znodes = await self._session.get_many([f"{self._directory}/{child}" for child in ordered])
        for child, znode in zip(ordered, znodes, strict=True):
            if isinstance(znode, Znode):
                found.append(_guest(child, znode))
        return found


def _guest(child: str, znode: Znode) -> Guest:
    stat = znode.stat
    value: Any
    try:
        said = codec.decode(znode.data, Member)
        claimant, value = Claimant(said.who, said.pid, said.note), msgspec.json.decode(said.value)
    except BadRecord:  # by hand
        claimant, value = Claimant("?"), znode.data.decode(errors="replace")
    return Guest(child, claimant, value, stat.ctime, stat.ephemeral_owner)
