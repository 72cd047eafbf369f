"""Queues: first in, first out; an item stays until the one who took it says that it is done.

    sync/queues/<name>/items/item-<number>    {"value": ..., "id": ...}; its version counts how often it was taken
    sync/queues/<name>/taken/item-<number>    ephemeral: who has it now
    sync/queues/<name>/takers/                who waits for one, in a line: only the first looks, so a put wakes one
    sync/queues/<name>/ids/<id>               an item of this identity is here: no second one is let in
    sync/queues/<name>/receipts/<identity>    ephemeral, for a moment: that a put was applied, should its answer be lost

A taker that dies, or whose block fails, gives the item back. The fence of a taking is the version that it gave to the
item; done is a deletion of just this version, so whoever lost an item in the meantime cannot end it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw

from zkd import codec
from zkd.core.queueing import in_order
from zkd.errors import BadRecord, LockLost, LockTimeout, MultiFailed, NodeExists, NoNode, OutcomeLost, TooLarge
from zkd.paths import NAME_RULE, is_name
from zkd.records import Queued
from zkd.zk.recipes.footing import INTERRUPTIONS, Alarm, Footing, delete_if_there, ensure_directory, listed
from zkd.zk.recipes.holding import Holding, Until
from zkd.zk.recipes.line import Line, held_at
from zkd.zk.recipes.patience import OUTAGE_MAX_S, persist
from zkd.zk.recipes.place import IDENTITY_BYTES
from zkd.zk.values import ANY_VERSION, Check, Create, Delete, SetData, Stat

if TYPE_CHECKING:
    from zkd.zk.recipes.held import Held
    from zkd.zk.values import Op

ITEM_BYTES_MAX = 256 * 1024


class Item:
    """An item in our hands. `deliveries` is how often it was taken, with this time; it is the `fence`, too.

    `value` is the JSON that was put. Leaving the block ends the item; a block that fails gives it back.
    """

    def __init__(self, footing: Footing, queue: str, held: Held, name: str, queued: Queued, version: int) -> None:
        self.name = name
        self.id = queued.id
        self.value: Any = msgspec.json.decode(queued.value)
        self.fence = self.deliveries = version
        self.tell, self.loss, self.when_over = held.tell, held.loss, held.when_over
        self._held = held
        self._queue = queue
        self._footing = footing

    def __repr__(self) -> str:
        return f"<Item {self.name} id={self.id} deliveries={self.deliveries}>"

    @property
    def is_sure(self) -> bool:
        """Whether nobody else can have it at this moment."""
        return self._held.is_sure

    @property
    def check(self) -> Check:
        """For the head of a transaction on this ensemble, which is then applied only while we have the item."""
        return Check(f"{self._queue}/items/{self.name}", self.fence)

    async def release(self) -> None:
        """End it: it is taken out of the queue. Raises `LockLost` if it was given to another, or nobody can say."""
        self._held.forget()  # from here on the server knows better
        if self._held.is_lost:
            raise self.loss()
        item, session_id = f"{self._queue}/items/{self.name}", self._held.session_id
        ops: list[Op] = [Delete(item, self.fence), Delete(self._held.path, ANY_VERSION)]
        if self.id is not None:
            ops.append(Delete(f"{self._queue}/ids/{self.id}", ANY_VERSION))
        is_sent = False

        async def attempt(_: Alarm, now: int) -> bool:
            nonlocal is_sent
            if now != session_id:
                return False
            if is_sent:
                await self._footing.session.sync(self._queue)
                if await self._footing.session.exists(item) is None:
                    return True
            is_sent = True
            try:
                await self._footing.session.multi(ops, within=session_id)
            except MultiFailed:
                return False
            return True

        try:
            is_done = await persist(self._footing.session, self._held.what, self._footing.session.timeout_s, attempt)
        except LockTimeout as error:
            self._held.abandon()
            raise LockLost(f"{error}; whether {self.name} is done nobody can say") from None
        except BaseException:
            self._held.abandon()
            raise
        if not is_done:
            raise LockLost(f"{self._held.what}: {self.name} was not ours any more when it was done; it may come again")
        self._held.done()

    async def release_quietly(self) -> None:
        """Give it back: the next taker gets it."""
        await self._held.release_quietly()


class Taking:
    """One wish for an item."""

    def __init__(self, footing: Footing, directory: str, name: str) -> None:
        self.what = f"queue {name}"
        self.directory = directory
        self._footing = footing
        self._session = footing.session
        self._identity = secrets.token_hex(IDENTITY_BYTES)
        self._claimed = ""  # the item that we may have taken, without having heard so

    async def hold(self, timeout_s: float | None) -> Item:
        """Wait for an item. With 0 look once."""
        is_try = timeout_s is not None and timeout_s <= 0
        until = None if timeout_s is None else time.monotonic() + (self._session.timeout_s if is_try else timeout_s)
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            try:
                head = await Line(self._footing, self.what, f"{self.directory}/takers", "taker").hold(
                    0.0 if is_try else left
                )
            except LockTimeout:
                raise LockTimeout(f"{self.what}: nothing to take within {timeout_s:g} s") from None
            try:
                async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
                    item = await self._first(head, is_try)
            except TimeoutError:
                self._let_go(head)
                raise LockTimeout(f"{self.what}: nothing to take within {timeout_s:g} s") from None
            except BaseException:
                self._let_go(head)
                raise
            if item is not None:
                return item
            self._let_go(head)  # the session is another one: queue up again

    def _let_go(self, head: Held) -> None:
        head.abandon()
        if not self._claimed:
            return
        taken, session_id = f"{self.directory}/taken/{self._claimed}", head.session_id

        async def give_back() -> None:
            with suppress(NoNode):
                await self._session.sync(taken)
                if (await self._session.get(taken, within=session_id)).data == self._identity.encode():
                    await delete_if_there(self._session, taken, session_id)

        self._footing.leftovers.leave(session_id, give_back)
        self._claimed = ""

    async def _first(self, head: Held, is_try: bool) -> Item | None:
        """The first item that nobody has; None when our place at the head is gone."""
        with Alarm(self._session) as alarm:
            while True:
                if await alarm.connected() != head.session_id or head.is_lost:
                    return None
                try:
                    if self._claimed:  # and its answer was lost
                        item = await self._taken_before(head)
                        if item is not None:
                            return item
                    item = await self._look(head, alarm)
                    if item is not None:
                        return item
                    if is_try:
                        raise TimeoutError
                    await alarm.wait()  # bounded by the caller's deadline, if there is one
                except INTERRUPTIONS:
                    continue
                except NoNode:
                    await make(self._footing, self.directory)

    async def _look(self, head: Held, alarm: Alarm) -> Item | None:
        while True:
            names = in_order(await alarm.children(f"{self.directory}/items"))
            taken = set(await alarm.children(f"{self.directory}/taken"))
            free = next((name for name in names if name not in taken), None)
            if free is None:
                return None
            item = await self._claim(head, free)
            if item is not None or head.is_lost:
                return item

    async def _claim(self, head: Held, name: str) -> Item | None:
        path = f"{self.directory}/items/{name}"
        try:
            data, stat = await self._session.get(path)
        except NoNode:
            return None  # done meanwhile
        queued = decoded(data)
        ops: list[Op] = [
            Delete(head.path, ANY_VERSION),
            SetData(path, data, stat.version),
            Create(f"{self.directory}/taken/{name}", self._identity.encode(), ephemeral=True),
        ]
        self._claimed = name
        try:
            done = await self._session.multi(ops, within=head.session_id)
        except MultiFailed:
            self._claimed = ""
            return None
        moved = done[1]
        assert isinstance(moved, Stat)
        return await self._have(head, name, queued, moved.version)

    async def _taken_before(self, head: Held) -> Item | None:
        name, taken = self._claimed, f"{self.directory}/taken/{self._claimed}"
        await self._session.sync(self.directory)
        try:
            if (await self._session.get(taken, within=head.session_id)).data != self._identity.encode():
                raise NoNode(taken)
            path = f"{self.directory}/items/{name}"
            data, stat = await self._session.get(path)
        except NoNode:
            self._claimed = ""
            return None
        return await self._have(head, name, decoded(data), stat.version)

    async def _have(self, head: Held, name: str, queued: Queued, version: int) -> Item | None:
        held = await held_at(self._footing, self.what, f"{self.directory}/taken/{name}", head.session_id)
        if held is None:
            self._claimed = ""
            return None
        head.done()
        self._claimed = ""
        return Item(self._footing, self.directory, held, name, queued, version)


def decoded(data: bytes) -> Queued:
    """An item; what somebody put in by hand, and is none, is its own text: it must not hold up those behind it."""
    try:
        return codec.decode(data, Queued)
    except BadRecord:
        return Queued(Raw(codec.encode(data.decode(errors="replace"))))


async def put(
    footing: Footing, directory: str, name: str, value: Any, identity: str | None, timeout_s: float | None
) -> bool:
    """Put an item in, exactly once; whether it was, or one of this identity is here already."""
    if identity is not None and not is_name(identity):
        raise ValueError(f"id: expected {NAME_RULE}, got {identity!r}")
    data = codec.encode(Queued(Raw(codec.encode(value)), identity))
    if len(data) > ITEM_BYTES_MAX:
        raise TooLarge(directory, f"an item of {len(data)} bytes, at most {ITEM_BYTES_MAX}")
    receipt = f"{directory}/receipts/{secrets.token_hex(IDENTITY_BYTES)}"
    ops: list[Op] = [
        Create(f"{directory}/items/item-", data, sequential=True),
        Create(receipt, ephemeral=True),
    ]
    if identity is not None:
        ops.append(Create(f"{directory}/ids/{identity}"))
    sent_in = 0  # the session in which a try was sent whose answer did not come

    async def attempt(_: Alarm, session_id: int) -> bool:
        nonlocal sent_in
        session = footing.session
        if sent_in:
            await session.sync(directory)
            if sent_in != session_id:
                raise OutcomeLost(f"queue {name}: the session expired before the answer came; give items an id")
            if await session.exists(receipt) is not None:
                return True
            sent_in = 0
        while True:
            try:
                sent_in = session_id
                await session.multi(ops, within=session_id)
                sent_in = 0
                return True
            except MultiFailed as error:
                sent_in = 0
                if isinstance(error.cause, NodeExists):
                    return False
                if not isinstance(error.cause, NoNode):
                    raise error.cause from None
            await make(footing, directory)

    try:
        return await persist(footing.session, f"queue {name}", timeout_s, attempt)
    finally:
        session_id = footing.session.session_id

        async def tidy() -> None:
            await delete_if_there(footing.session, receipt, session_id)

        footing.leftovers.leave(session_id, tidy)


async def make(footing: Footing, directory: str) -> None:
    for part in ("", "/items", "/taken", "/receipts", "/ids"):
        await ensure_directory(footing.session, f"{directory}{part}")


class Queue:
    """Values for whoever takes them, one for each. For thousands, not millions: tasks have a drop box of their own."""

    def __init__(self, footing: Footing, directory: str, name: str) -> None:
        self.name = name
        self._directory = directory
        self._footing = footing

    async def put(self, value: Any, *, id: str | None = None, timeout_s: float | None = OUTAGE_MAX_S) -> bool:  # noqa: A002
        """Put `value` in, anything that is JSON. False: an item of this `id` is here already, and this one is not.

        Exactly once: where the session ends before an answer came, and nobody can tell, `OutcomeLost` is raised;
        with an `id` it can be put again then, which does nothing while the former one is here.
        """
        return await put(self._footing, self._directory, self.name, value, id, timeout_s)

    def take(self, *, timeout_s: float | None = None, until: Until = "doubt") -> Holding[Item]:
        """``async with queue.take() as item``: have the first item that nobody has. It is out of the queue when the
        block ends, and goes back to its place when the block fails or this program dies; until then nobody else gets
        it. What may happen twice is told by `Item.deliveries`. Raises `LockTimeout`; `LockLost` as a lock does."""
        return Holding(Taking(self._footing, self._directory, self.name), timeout_s, until, None)

    async def length(self) -> int:
        """How many items are here, also those that somebody has."""

        async def attempt(_: Alarm, session_id: int) -> int:
            return len(await listed(self._footing.session, f"{self._directory}/items"))

        return await persist(self._footing.session, f"queue {self.name}", OUTAGE_MAX_S, attempt)
