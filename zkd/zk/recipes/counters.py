"""Counters: `sync/counters/<name>`, changed by compare-and-set, each change exactly once.

A write whose answer was lost may have been applied, and others may have written since. So the value carries, for each
program that changed it lately, the number of its last change: reading back tells, whoever wrote after us, in this
session or the next.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from zkd import codec
from zkd.errors import BadRecord, BadVersion, NodeExists, NoNode, OutcomeLost
from zkd.paths import parent
from zkd.records import Count
from zkd.zk.recipes.patience import OUTAGE_MAX_S, persist
from zkd.zk.session import ensure_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.zk.recipes.footing import Alarm, Footing

VALUE_MIN, VALUE_MAX = -(2**63), 2**63 - 1
PROGRAMS_MAX = 64  # whose last changes are kept: as many others would have to write within one outage of ours
CONTENTION_S = 0.002  # after a write that came too late; more with each


class Counter:
    """One number that all agree on. `timeout_s` bounds how long an outage is waited out; then `LockTimeout`."""

    def __init__(self, footing: Footing, path: str, name: str) -> None:
        self.name = name
        self._path = path
        self._footing = footing
        self._changes = 0
        self._turn = asyncio.Lock()  # one change at a time from this program: it has one entry in `last`
        self._rng = random.Random()

    async def get(self, *, timeout_s: float | None = OUTAGE_MAX_S) -> int:
        """The value; 0 if nobody has counted yet."""

        async def attempt(_: Alarm, session_id: int) -> int:
            await self._sync()
            return (await self._read())[0].value

        return await persist(self._footing.session, f"counter {self.name}", timeout_s, attempt)

    async def add(self, amount: int = 1, *, timeout_s: float | None = OUTAGE_MAX_S) -> int:
        """Add, exactly once, and return the value that this made.

        Raises `OutcomeLost` where nobody can tell any more: more than 64 other programs changed the counter while
        we had no connection; and `LockTimeout`, after which it may or may not have been added.
        """
        _refuse_other_than_int(amount, "amount")
        made = await self._change(lambda value: value + amount, timeout_s)
        assert made is not None
        return made

    async def compare_and_set(self, expected: int, value: int, *, timeout_s: float | None = OUTAGE_MAX_S) -> bool:
        """Set it if it is `expected`; whether it was. Exactly once, as `add`."""
        _refuse_other_than_int(expected, "expected")
        _refuse_other_than_int(value, "value")
        return await self._change(lambda now: value if now == expected else None, timeout_s) is not None

    async def _change(self, change: Callable[[int], int | None], timeout_s: float | None) -> int | None:
        wrote: int | None = None  # by an earlier try, whose answer did not come
        late = 0

        async def attempt(_: Alarm, session_id: int) -> int | None:
            nonlocal wrote, late
            if wrote is not None:
                await self._sync()
            while True:
                count, version = await self._read()
                if wrote is not None and self._is_applied(count):
                    return wrote
                wrote = None
                value = change(count.value)
                if value is None:
                    return None
                if not VALUE_MIN <= value <= VALUE_MAX:
                    raise ValueError(f"counter {self.name}: {value} does not fit into 64 bits")
                wrote = value
                try:
                    await self._write(Count(value, self._mark(count)), version, session_id)
                    return value
                except (BadVersion, NodeExists):
                    wrote, late = None, late + 1
                    await asyncio.sleep(self._rng.uniform(0, CONTENTION_S * min(late, 32)))
                except NoNode:
                    wrote = None
                    await ensure_path(self._footing.session, parent(self._path))

        async with self._turn:
            self._changes += 1
            return await persist(self._footing.session, f"counter {self.name}", timeout_s, attempt)

    def _is_applied(self, count: Count) -> bool:
        last = count.last.get(self._footing.client)
        if last is None and len(count.last) >= PROGRAMS_MAX:
            raise OutcomeLost(
                f"counter {self.name}: the answer was lost, and {PROGRAMS_MAX} other programs wrote since"
            )
        return last == self._changes

    def _mark(self, count: Count) -> dict[str, int]:
        last = {client: change for client, change in count.last.items() if client != self._footing.client}
        last[self._footing.client] = self._changes
        return dict(list(last.items())[-PROGRAMS_MAX:])

    async def _sync(self) -> None:
        try:
            await self._footing.session.sync(self._path)
        except NoNode:
            return

    async def _read(self) -> tuple[Count, int | None]:
        """What stands there, and its version; None where nothing is."""
        try:
            data, stat = await self._footing.session.get(self._path)
        except NoNode:
            return Count(), None
        text = data.strip()
        if text.lstrip(b"-").isdigit():  # written by hand, or by another program
            text = b'{"value":%s}' % text
        try:
            return codec.decode(text, Count), stat.version
        except BadRecord as error:
            raise BadRecord(self._path, f'expected a counter such as {{"value": 7}}, or 7; {error}') from error

    async def _write(self, count: Count, version: int | None, session_id: int) -> None:
        if version is None:
            await self._footing.session.create(self._path, codec.encode(count), within=session_id)
        else:
            await self._footing.session.set(self._path, codec.encode(count), version, within=session_id)


def _refuse_other_than_int(number: int, what: str) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{what}: expected an int, got {number!r}")
