"""Barriers: a gate that is closed while a znode stands, and a meeting that begins and ends together.

sync/barriers/<name>                                  there: closed
sync/double-barriers/<name>                           {"count": 3, "round": 7, "inside": [...]}
sync/double-barriers/<name>/member-<identity>-<n>     who has come and not left
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from zkd import codec
from zkd.core.meeting import GoIn, meeting, still_inside
from zkd.errors import BadRecord, BadVersion, LockLost, LockTimeout, NodeExists, NoNode, TermsDisagree
from zkd.paths import parent
from zkd.records import Meeting
from zkd.zk.recipes.patience import OUTAGE_MAX_S, persist
from zkd.zk.recipes.place import Place
from zkd.zk.session import ensure_path
from zkd.zk.values import ANY_VERSION

if TYPE_CHECKING:
    from types import TracebackType

    from zkd.zk.recipes.footing import Alarm, Footing

COUNT_MAX = 1000


class Barrier:
    """A gate for all who wait at it. It stays as it is when whoever closed it goes."""

    def __init__(self, footing: Footing, path: str, name: str) -> None:
        self.name = name
        self._path = path
        self._footing = footing
        self._session = footing.session

    async def close(self, *, timeout_s: float | None = OUTAGE_MAX_S) -> None:
        """Have all who wait from now on held up; it may be closed already."""

        async def attempt(_: Alarm, session_id: int) -> None:
            while True:
                try:
                    await self._session.create(self._path, codec.encode(self._footing.claimant))
                    return
                except NodeExists:
                    return
                except NoNode:
                    await ensure_path(self._session, parent(self._path))

        await persist(self._session, f"barrier {self.name}", timeout_s, attempt)

    async def open(self, *, timeout_s: float | None = OUTAGE_MAX_S) -> None:
        """Let all in who wait; it may be open already."""

        async def attempt(_: Alarm, session_id: int) -> None:
            try:
                await self._session.delete(self._path, ANY_VERSION)
            except NoNode:
                return

        await persist(self._session, f"barrier {self.name}", timeout_s, attempt)

    async def wait(self, *, timeout_s: float | None = None) -> None:
        """Return when it is open. Raises `LockTimeout`."""

        async def attempt(alarm: Alarm, session_id: int) -> None:
            try:
                await self._session.sync(self._path)  # or a server that lags shows it open still
                while True:
                    alarm.clear()
                    await alarm.get(self._path)
                    await alarm.wait()  # bounded by the caller's deadline, if there is one
                    await alarm.connected()
            except NoNode:
                return

        await persist(self._session, f"barrier {self.name}", timeout_s, attempt)


class DoubleBarrier:
    """`async with`: goes in when `count` have come, and out when all of them have left, died, or lost their session.

    A block that fails leaves at once and waits for nobody. `timeout_s` bounds going in and going out, each.
    """

    def __init__(self, footing: Footing, directory: str, name: str, count: int, timeout_s: float | None) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= COUNT_MAX:
            raise ValueError(f"count: expected an int from 1 to {COUNT_MAX}, got {count!r}")
        self.name = name
        self.round = 0  # how many meetings there were, with this one, since the directory was made
        self._what = f"double barrier {name}"
        self._footing = footing
        self._session = footing.session
        self._directory = directory
        self._count = count
        self._timeout_s = timeout_s
        terms = codec.encode(Meeting(count))
        self._place = Place(footing, directory, "member", lambda: codec.encode(footing.claimant), terms=terms)
        self._inside: list[str] = []

    async def __aenter__(self) -> DoubleBarrier:
        await self.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            await self.leave()
        else:
            await self._place.withdraw()

    async def enter(self) -> None:
        """Come, and return when `count` have. Raises `LockTimeout`, `TermsDisagree`, `LockLost`."""
        try:
            await persist(self._session, self._what, self._timeout_s, self._enter)
        except (LockTimeout, TermsDisagree):
            await self._place.withdraw()
            raise
        except BaseException:
            self._place.leave()
            raise

    async def _enter(self, alarm: Alarm, session_id: int) -> None:
        before = self._place.name
        if self._place.session_id not in (0, session_id) and before and before in (await self._look())[0].inside:
            raise LockLost(f"{self._what}: the session expired while we waited, and the others went in with us")
        while True:
            await self._place.take(session_id)
            try:
                while not await self._try_to_go_in(alarm):
                    await alarm.wait()  # bounded by the caller's deadline, if there is one
                    await alarm.connected()
                return
            except NoNode:
                self._place.lost()  # somebody deleted our znode, or all: come again

    async def _look(self) -> tuple[Meeting, int]:
        try:
            data, stat = await self._session.get(self._directory)
        except NoNode:
            return Meeting(self._count), ANY_VERSION
        return self._decoded(data), stat.version

    def _decoded(self, data: bytes) -> Meeting:
        try:
            said = codec.decode(data, Meeting)
        except BadRecord as error:
            raise TermsDisagree(f"{self._what}: {self._directory} is no double barrier: {error}") from None
        if said.count != self._count:
            raise TermsDisagree(
                f"{self._what}: expected a count of {self._count} as we were told to, "
                f"{self._directory} says {said.count}"
            )
        return said

    async def _try_to_go_in(self, alarm: Alarm) -> bool:
        while True:
            alarm.clear()
            session_id, mine = self._place.session_id, self._place.name
            data, stat = await alarm.get(self._directory, within=session_id)
            said = self._decoded(data)
            if mine in said.inside:
                self.round, self._inside = said.round, said.inside
                return True
            members = await self._session.children(self._directory, within=session_id)
            if mine not in members:
                raise NoNode(self._place.path)
            now = meeting(members, said.inside, self._count)
            if isinstance(now, GoIn):
                text = codec.encode(Meeting(self._count, said.round + 1, now.members))
                with suppress(BadVersion):  # somebody else said so
                    await self._session.set(self._directory, text, stat.version, within=session_id)
                continue
            if not now.leaving:
                return False
            if await self._is_there(now.leaving[0], alarm):
                return False

    async def _is_there(self, member: str, alarm: Alarm) -> bool:
        try:
            await alarm.get(f"{self._directory}/{member}")
        except NoNode:
            return False
        return True

    async def leave(self) -> None:
        """Leave, and return when all who went in with us have. Raises `LockTimeout`; we have left then, too.

        Raises `LockLost` if our session expired meanwhile: the others took us for gone.
        """
        if self._session.session_id != self._place.session_id:
            raise LockLost(f"{self._what}: the session expired while we were in, and the others took us for gone")
        mine, inside = self._place.name, self._inside
        await self._place.withdraw()

        async def attempt(alarm: Alarm, session_id: int) -> None:
            try:
                await self._session.sync(self._directory)
                while True:
                    alarm.clear()
                    if (await self._look())[0].round != self.round:
                        return  # the next ones are in, so all of us had left
                    remaining = still_inside(await self._session.children(self._directory), inside, mine)
                    if not remaining:
                        return
                    if await self._is_there(remaining[0], alarm):
                        await alarm.wait()  # bounded by the caller's deadline, if there is one
                        await alarm.connected()
            except NoNode:
                return

        await persist(self._session, self._what, self._timeout_s, attempt)
