"""Looks at the cluster for those who have the dashboard of this node open: once a second for all of them together.

Nothing is looked at while nobody looks on. A look is a bounded number of reads of the tree, and a question to each
node, or to PEERS_MAX of them in turns, for what only it knows: its last runs, the last lines of its log, what waits
for what at the leader, rounds of training. What is told is kept as JSON text by sections, so that a viewer costs only
the sections that have changed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from structlog.typing import FilteringBoundLogger as Log

from zkd.core.backlog import Backlog
from zkd.errors import Unavailable, ZooKeeperError
from zkd.log import Told
from zkd.overview.changes import Change, changes
from zkd.overview.peers import NotTold, ask
from zkd.overview.seen import Overview, Recent
from zkd.overview.tree import Reader
from zkd.zk import Session

if TYPE_CHECKING:
    import ssl

    import aiohttp

LOOK_S = 1.0
PEERS_MAX = 32  # asked in one look
SHUNNED_S = 10.0  # who gave no answer is not asked for so long
RUNS_MAX = 2_000  # that a new viewer is shown
EVENTS_MAX = 200
STALE_S = 15.0  # what changed since an older look cannot be dated
BEAT_S = 10.0  # a line for viewers at least so often, whatever happens

Asked = Callable[[int, int, str | None], Recent]


class Lookout:
    def __init__(
        self,
        session: Session,
        node: str,
        reader: Reader,
        own: Asked,
        token: Callable[[], str | None],
        log: Log,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`own` gives what this node itself knows, as `GET /v1/recent` does of others."""
        self._session = session
        self._node = node
        self._reader = reader
        self._own = own
        self._token = token
        self._log = log
        self._tls = tls
        self.viewers = 0
        self.looks = 0
        self._wanted = asyncio.Event()
        self._looked = asyncio.Event()
        self._sections: dict[str, tuple[int, bytes]] = {}  # name -> in which look it changed, and its JSON
        self._before: Overview | None = None
        self._before_at = 0.0
        self._events: deque[Change] = deque(maxlen=EVENTS_MAX)
        self._runs: deque[tuple[int, bytes]] = deque(maxlen=RUNS_MAX)  # in which look, and JSON
        self._known: dict[str, tuple[str, int, int]] = {}  # node -> incarnation, numbers of its last run and line
        self._kernels: dict[str, list[tuple[str, str, int]]] = {}  # by node
        self._traffic: dict[str, dict[str, float]] = {}
        self._curves: dict[str, list[tuple[int, float | None, float | None]]] = {}
        self._backlog: Backlog | None = None
        self._shunned: dict[str, float] = {}
        self._turn = 0

    async def run(self) -> None:
        """Ends only by cancellation."""
        from zkd.net.fetch import session as http_session

        while True:
            await self._wanted.wait()  # unbounded: nobody looks
            async with http_session(self._tls, connections=PEERS_MAX) as http:
                while self._is_watched():
                    began = time.monotonic()
                    await self._look(http)
                    await asyncio.sleep(max(LOOK_S / 4, LOOK_S - (time.monotonic() - began)))
            if not self._is_watched():
                self._wanted.clear()

    def _is_watched(self) -> bool:
        return self.viewers > 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is looked at."""
        return not self._wanted.is_set()

    # --- For those who look on --------------------------------------------------------------------------

    async def latest(self) -> bytes:
        """All sections as one JSON object, no older than a look takes."""
        with self._viewing():
            if time.monotonic() - self._before_at > 2 * LOOK_S:
                await self._next_look()
            return self._all()

    async def follow(self) -> AsyncGenerator[bytes]:
        """Server-sent events: all there is, then what changes. Unbounded: as long as somebody looks."""
        seen = 0
        with self._viewing():
            if time.monotonic() - self._before_at > 2 * LOOK_S:
                await self._next_look()
            while True:
                if seen < self.looks:
                    fresh = [name for name, (look, _) in self._sections.items() if look > seen]
                    runs = [text for look, text in self._runs if look > seen]
                    yield self._event("all" if seen == 0 else "some", fresh, runs)
                    seen = self.looks
                try:
                    async with asyncio.timeout(BEAT_S):
                        await self._next_look()
                except TimeoutError:
                    yield b": the tree cannot be read\n\n"

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        yield "zkd_dashboard_viewers", {}, self.viewers
        yield "zkd_dashboard_looks_total", {}, self.looks

    @contextmanager
    def _viewing(self) -> Iterator[None]:
        self.viewers += 1
        self._wanted.set()
        try:
            yield
        finally:
            self.viewers -= 1

    async def _next_look(self) -> None:
        await self._looked.wait()

    def _event(self, name: str, sections: Iterable[str], runs: list[bytes]) -> bytes:
        return b"event: %s\nid: %d\ndata: %s\n\n" % (name.encode(), self.looks, self._object(sections, runs))

    def _all(self) -> bytes:
        return self._object(self._sections, [text for _, text in self._runs])

    def _object(self, sections: Iterable[str], runs: list[bytes]) -> bytes:
        fields = [b'"%s":%s' % (name.encode(), self._sections[name][1]) for name in sections]
        if runs:
            fields.append(b'"runs":[%s]' % b",".join(runs))
        fields.append(b'"at_ms":%d' % int(time.time() * 1000))
        return b"{%s}" % b",".join(fields)

    # --- Looking ----------------------------------------------------------------------------------------

    async def _look(self, http: aiohttp.ClientSession) -> None:
        now: Overview | None = None
        try:
            now = await self._reader.read()
        except ZooKeeperError as error:
            if not isinstance(error, Unavailable):
                self._log.warning("overview.not_read", error=str(error))
        told = await self._ask_all(http, self._before if now is None else now)
        self.looks += 1
        if now is not None:
            if self._before is not None and time.monotonic() - self._before_at < STALE_S:
                self._events.extend(changes(self._before, now))
            self._before, self._before_at = now, time.monotonic()
        for each in told:
            self._take(each)
        if self._before is not None:
            self._publish(self._before)
        looked, self._looked = self._looked, asyncio.Event()
        looked.set()

    async def _ask_all(self, http: aiohttp.ClientSession, overview: Overview | None) -> list[Recent]:
        own = self._own(*self._from(self._node), None)
        token, now = self._token(), time.monotonic()
        if overview is None or token is None:
            return [own]
        others = {
            node.node: node.address
            for node in overview.nodes
            if node.address is not None and node.node != self._node and self._shunned.get(node.node, 0.0) < now
        }
        names = sorted(others)
        turn = [names[(self._turn + number) % len(names)] for number in range(min(PEERS_MAX, len(names)))]
        if overview.leader in others and overview.leader not in turn:
            turn.append(overview.leader)  # who alone knows what waits for what
        self._turn += PEERS_MAX

        async def one(name: str, address: str) -> Recent | None:
            runs, lines = self._from(name)
            try:
                told = await ask(http, address, token, runs=runs, lines=lines)
            except NotTold as error:
                self._shunned[name] = time.monotonic() + SHUNNED_S
                self._log.debug("node.not_asked", of=name, error=str(error))
                return None
            return told if told.node == name else None

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(one(name, others[name])) for name in turn]
        return [own, *(told for each in asked if (told := each.result()) is not None)]

    def _from(self, node: str) -> tuple[int, int]:
        _, runs, lines = self._known.get(node, ("", 0, 0))
        return runs, lines

    def _take(self, told: Recent) -> None:
        _, runs, lines = self._known.get(told.node, ("", 0, 0))
        if told.runs_last < runs or told.lines_last < lines:  # another life: its numbers begin anew
            self._known[told.node] = (told.incarnation, 0, 0)
            return
        self._known[told.node] = (told.incarnation, told.runs_last, told.lines_last)
        for ran in told.runs:
            self._runs.append((self.looks, msgspec.json.encode((told.node, *msgspec.structs.astuple(ran)))))
        self._events.extend(_event_of(told.node, line) for line in told.lines)
        self._kernels[told.node] = told.kernels
        self._traffic[told.node] = told.traffic
        self._curves.update(told.curves)
        if self._before is not None and self._before.leader == told.node:
            self._backlog = told.backlog

    def _publish(self, now: Overview) -> None:
        here = {node.node for node in now.nodes}
        for table in (self._known, self._kernels, self._traffic, self._shunned):
            for gone in table.keys() - here - {self._node}:
                del table[gone]
        jobs = {job.id for job in now.jobs}
        self._curves = {job: curve for job, curve in self._curves.items() if job in jobs}
        server = self._session.server
        self._put(
            "cluster",
            {
                "root": now.root,
                "by": self._node,
                "leader": now.leader,
                "epoch": now.epoch,
                "counts": now.counts,
                "omitted": now.omitted,
                "zookeeper": f"{server[0]}:{server[1]}" if server else None,
                "session": self._session.state.name.lower(),
            },
        )
        for name in ("nodes", "datasets", "jobs", "models", "sync"):
            self._put(name, getattr(now, name))
        self._put("backlog", self._backlog)
        self._put("curves", self._curves)
        self._put("kernels", _summed(self._kernels.values()))
        self._put("traffic", _added(self._traffic.values()))
        self._put("events", sorted(self._events, key=lambda change: change.at_ms))

    def _put(self, name: str, value: Any) -> None:
        text = msgspec.json.encode(value)
        if name not in self._sections or self._sections[name][1] != text:
            self._sections[name] = (self.looks, text)


def _event_of(node: str, line: Told) -> Change:
    words = " ".join(f"{key}={value}" for key, value in line.fields.items() if key != "node")
    grade = line.level if line.level in ("warning", "error") else "info"
    return Change(line.at_ms, line.event, node, words[:400], grade)  # type: ignore[arg-type]  # one of three


def _summed(by_node: Iterable[list[tuple[str, str, int]]]) -> dict[str, dict[str, int]]:
    """kernel -> how runs of it ended -> how many, on all nodes that were asked."""
    found: dict[str, dict[str, int]] = {}
    for counts in by_node:
        for kernel, status, count in counts:
            of_kernel = found.setdefault(kernel, {})
            of_kernel[status] = of_kernel.get(status, 0) + count
    return found


def _added(by_node: Iterable[dict[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for counts in by_node:
        for name, count in counts.items():
            found[name] = found.get(name, 0.0) + count
    return found
