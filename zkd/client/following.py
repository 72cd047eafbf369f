"""Follows a job from coordinator to coordinator: what changes in the tree, and its rounds as they come.

Rounds come by HTTP from the node that opens them, which says all that there are after a number. A coordinator that is
lost leaves a stream that ends, or never ends: its znode going tells. Another one takes over from a checkpoint and does
some rounds again, with the same bits; those that were seen are passed over. What no coordinator has any more is in the
model's file.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from zkd import codec
from zkd.client.dropbox import OUTAGE_MAX_S
from zkd.client.outstanding import NO_ANSWER
from zkd.errors import BadRecord, NoNode, ZooKeeperError
from zkd.jobs import Round
from zkd.records import Node

if TYPE_CHECKING:
    from zkd.client.client import Client
    from zkd.client.dropbox import DropBox
    from zkd.client.job_status import JobStatus
    from zkd.client.plane import Plane
    from zkd.paths import JobId, NodeId

ANSWER_S = 5.0  # until a coordinator begins to answer
SILENCE_S = 30.0  # no round for so long: ask again, which costs a request
AGAIN_S = 0.5  # a coordinator that does not answer is asked again
LOOK_AGAIN_S = 15.0
LINE_BYTES_MAX = 64 * 1024

T = TypeVar("T")


class Heard:
    """What the tree said since the last look: `changed`, and `moved` if another coordinator is there, or none."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.moved = False
        self._bound: asyncio.Timeout | None = None

    def hear(self, _: object) -> None:
        self.changed.set()

    def hear_move(self, _: object) -> None:
        self.moved = True
        self.changed.set()
        if self._bound is not None:
            self._bound.reschedule(asyncio.get_running_loop().time())

    async def wait(self, at_most_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self.changed.wait()

    async def before(self, work: Callable[[], Awaitable[T]], at_most_s: float) -> T:
        """What `work` gives before the coordinator moves and within so long. Raises `TimeoutError`."""
        if self.moved:
            raise TimeoutError
        try:
            async with asyncio.timeout(at_most_s) as self._bound:
                return await work()
        finally:
            self._bound = None


@asynccontextmanager
async def watching(client: Client, box: DropBox, name: JobId) -> AsyncIterator[Heard]:
    """Hear of the job's znodes within the block. A new connection is news, too: what happened before is not told."""
    heard, paths, session = Heard(), client.paths, client.session
    watches = {paths.job(name): heard.hear, paths.job_state(name): heard.hear, paths.coordinator(name): heard.hear_move}
    unsubscribe = session.subscribe(heard.hear)
    give_up = time.monotonic() + OUTAGE_MAX_S
    try:
        for path, callback in watches.items():
            while True:
                try:
                    await session.add_watch(path, callback)
                    break
                except NO_ANSWER as error:
                    await box.catch_up(give_up, error)
        yield heard
    finally:
        unsubscribe()
        for path, callback in watches.items():
            with suppress(ZooKeeperError):  # without a connection it is forgotten here, which is all that matters
                await session.remove_watch(path, callback)


async def rounds_of(
    client: Client,
    box: DropBox,
    plane: Plane,
    name: JobId,
    look: Callable[[], Awaitable[JobStatus | None]],
    history: Callable[[], Awaitable[Sequence[Round]]],
    after: int,
) -> AsyncGenerator[Round]:
    """Every round after this one, once and in order, until the job has ended or is removed."""
    last = after
    async with watching(client, box, name) as heard:
        while True:
            heard.moved = False
            heard.changed.clear()
            seen = await look()
            if seen is None:
                return
            # Whoever opened the last rounds may still say what they were.
            node = seen.state.coordinator if seen.has_ended and seen.state is not None else seen.coordinator
            address = None if node is None else await _address(box, node)
            if address is not None:
                moves = None if seen.has_ended else heard
                async with aclosing(_lines(plane, address, name, last, moves)) as lines:
                    async for line in lines:
                        if line.ended is not None:
                            return
                        if line.number > last:
                            last = line.number
                            yield line
            if seen.has_ended:
                if seen.phase == "done":
                    for each in await history():
                        if each.number > last:
                            last = each.number
                            yield each
                return
            await heard.wait(LOOK_AGAIN_S if address is None else AGAIN_S)


async def _lines(plane: Plane, address: str, name: JobId, after: int, heard: Heard | None) -> AsyncGenerator[Round]:
    """What the node says, until it says no more, or what is none, or somebody else is the coordinator."""
    import aiohttp

    moves = heard or Heard()
    patience = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_S)  # the rest is bounded here
    try:
        url, headers = f"{address}/v1/jobs/{name}/rounds", await plane.headers()
        ask = partial(
            plane.http.get, url, params={"after": str(after)}, headers=headers, timeout=patience, allow_redirects=False
        )
        async with await moves.before(ask, ANSWER_S) as answer:
            if answer.status != 200:
                return
            rest = b""
            while piece := await moves.before(answer.content.readany, SILENCE_S):
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    yield codec.decode(line, Round)
                if len(rest) > LINE_BYTES_MAX:
                    return
    except (aiohttp.ClientError, TimeoutError, OSError, BadRecord, NoNode):
        return  # the tree says who is to be asked next


async def _address(box: DropBox, node: NodeId) -> str | None:
    try:
        return codec.decode((await box.read(box.paths.node(node))).data, Node).address
    except (NoNode, BadRecord):
        return None
