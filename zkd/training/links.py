"""A coordinator's links to the nodes that hold parts of its dataset: made, kept up, made again when they are lost.

A node is live for a job while it is a member of the cluster and its link is up. What comes over the links is told to
one listener, as events of the round machine; an event of a former round costs nothing there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from structlog.typing import FilteringBoundLogger as Log

from zkd.errors import DataUnavailable
from zkd.net.round_frames import Context, Overtaken
from zkd.paths import NodeId
from zkd.training.answers import Answers
from zkd.training.frames import Buffer
from zkd.training.here import HereLink
from zkd.training.peers import Peers

if TYPE_CHECKING:
    import aiohttp

    from zkd.net.rounds import Link, Term

AGAIN_S = 0.1  # before the second try at a node, and twice as long before each further one,
AGAIN_MAX_S = 2.0  # up to this


@dataclass(frozen=True, slots=True)
class Came:
    """An answer, as it came."""

    node: NodeId
    round: int
    ask: int
    parts: tuple[int, ...]
    partials: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    node: NodeId
    round: int
    ask: int
    why: str


@dataclass(frozen=True, slots=True)
class Moved:
    """These nodes are live from now on. Told in order: a node that comes back at once was away all the same."""

    live: frozenset[NodeId]


Heard = Came | Refused | Moved


class Here(NamedTuple):
    """The node that this is: its own counters need no wire."""

    node: NodeId
    answers: Answers


class Links:
    """`wanted` are the nodes to keep a link to; call `look` when they have changed."""

    def __init__(
        self,
        here: Here,
        http: aiohttp.ClientSession,
        peers: Peers,
        token: Callable[[], str | None],
        term: Callable[[], Term],
        wanted: Callable[[], frozenset[NodeId]],
        heard: Callable[[Heard], None],
        overtaken: Callable[[str], None],
        log: Log,
    ) -> None:
        self._here = here
        self._http = http
        self._peers = peers
        self._token = token
        self._term = term
        self._wanted = wanted
        self._heard = heard
        self._overtaken = overtaken
        self._log = log
        self._wake = asyncio.Event()
        self._context: tuple[Context, bytes] | None = None
        self._up: dict[NodeId, Link | HereLink] = {}
        self._kept: dict[NodeId, tuple[str, asyncio.Task[None]]] = {}
        self._faults: dict[NodeId, str] = {}
        self._is_over = False
        self.live: frozenset[NodeId] = frozenset()

    def faults(self) -> list[str]:
        """Why some nodes are not live, for people."""
        return [self._faults[node] for node in sorted(self._faults)]

    def look(self) -> None:
        """Other nodes may be here, or wanted."""
        self._wake.set()

    def tell(self, context: Context, body: bytes) -> None:
        """What the asks from now on are about, to all nodes; those that come later hear it first."""
        self._context = context, body
        for link in self._up.values():
            link.tell(context, body)
        self._wake.set()

    def ask(self, node: NodeId, number: int, ask: int, parts: Sequence[int], question: bytes) -> None:
        """Says nothing to a node that is not live any more: an event has told so, or is about to."""
        if node in self._up:
            self._up[node].ask(number, ask, parts, question)

    def forget(self, node: NodeId, number: int, ask: int) -> None:
        if node in self._up:
            self._up[node].forget(number, ask)

    def drop_all(self) -> None:
        """Make all links anew, as somebody with another fence."""
        for _, task in self._kept.values():
            task.cancel()
        self._kept.clear()
        self._wake.set()

    async def run(self) -> None:
        """Ends only by cancellation."""
        async with asyncio.TaskGroup() as group:
            try:
                while True:
                    self._wake.clear()
                    self._follow(group)
                    await self._wake.wait()  # unbounded: nodes come and go when they like
            finally:
                self._is_over = True

    def _follow(self, group: asyncio.TaskGroup) -> None:
        if self._context is None:
            return
        wanted = self._wanted()
        addresses = {
            name: node.address
            for name, node in self._peers.nodes.items()
            if name in wanted and node.address is not None
        }
        for name, (address, task) in list(self._kept.items()):
            if addresses.get(name) != address or task.done():
                task.cancel()
                del self._kept[name]
                self._faults.pop(name, None)
        for name, address in addresses.items():
            if name not in self._kept:
                self._kept[name] = address, group.create_task(self._keep(name, address))
        self._count()

    async def _keep(self, node: NodeId, address: str) -> None:
        again_s = AGAIN_S
        while True:
            assert self._context is not None
            link = self._link(node, address)
            try:
                await link.connect(*self._context)
            except Overtaken as error:
                self._faults[node] = str(error)
                self._overtaken(str(error))
            except DataUnavailable as error:
                if self._faults.get(node) != str(error):
                    self._log.info("job.node_not_linked", node=node, error=str(error))
                self._faults[node] = str(error)
            else:
                again_s = AGAIN_S
                self._faults.pop(node, None)
                self._up[node] = link
                self._count()
                try:
                    await link.run()
                finally:
                    if self._up.get(node) is link:
                        del self._up[node]
                    self._count()
            await asyncio.sleep(again_s)
            again_s = min(2 * again_s, AGAIN_MAX_S)

    def _link(self, node: NodeId, address: str) -> Link | HereLink:
        """One that is not connected yet."""
        from zkd.net.rounds import Link

        term = self._term()
        if node == self._here.node:
            return HereLink(
                self._here.answers, term, node, answered=self._answered, failed=self._failed, lost=self._lost
            )
        token = self._token() or ""
        return Link(
            self._http, address, token, term, node, answered=self._answered, failed=self._failed, lost=self._lost
        )

    def _count(self) -> None:
        live = frozenset(self._up.keys() & self._peers.nodes.keys())
        if live != self.live:
            self.live = live
            self._heard(Moved(live))

    def _answered(self, node: NodeId, number: int, ask: int, parts: Sequence[int], partials: Sequence[Buffer]) -> None:
        self._heard(Came(node, number, ask, tuple(parts), tuple(partials)))

    def _failed(self, node: NodeId, number: int, ask: int, why: str) -> None:
        self._heard(Refused(node, number, ask, why))

    def _lost(self, node: NodeId, why: str) -> None:
        self._faults[node] = f"{node}: {why}"
        if not self._is_over:
            self._log.info("job.link_lost", node=node, error=why)
