"""A steady stream of small tasks, and what its submitter sees of a fault: when each result came, and the gaps.

One task in `LONG_EACH` runs for a second, so that every node always holds something to lose; the others run for
20 ms. The kernel leaves a trace of every run by the machine's monotonic clock, which all processes share: what
ran again, and when, is told by the kernels and not by zkd.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import zkd
from benchmarks.cluster import ROOT
from zkd.records import Result
from zkd.zk import State, StateChange

LONG_EACH = 10
LONG_S = 1.0
SHORT_S = 0.02
KEPT_S = 300.0


@dataclass
class Sent:
    """One task of the stream."""

    id: str = ""
    seconds: float = 0.0
    sent_at: float = field(default_factory=time.monotonic)
    accepted_at: float = 0.0
    ended_at: float = 0.0
    result: Result | None = None


@dataclass(frozen=True)
class Run:
    """One line of the kernels' trace: a run that began, and when it ended, if it did."""

    task: str
    attempt: int
    began: float
    ended: float | None


class Stream:
    """`async with Stream(hosts, trace) as stream:` sends tasks until the block ends; then all have ended."""

    def __init__(self, hosts: str, trace: Path, *, rate: float = 40.0) -> None:
        self.client = zkd.Client(hosts, ROOT)
        self.trace = trace
        self.sent: list[Sent] = []
        self.connected_at: list[float] = []
        self._rate = rate
        self._sending: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Stream:
        await self.client.__aenter__()
        self.client.session.subscribe(self._changed)
        self._sending = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._sending is not None
        self._sending.cancel()
        with suppress(asyncio.CancelledError):
            await self._sending
        await self.client.__aexit__(None, None, None)

    async def finish(self, within_s: float = 60.0) -> None:
        """Send no more, and wait for what was sent."""
        assert self._sending is not None
        self._rate = 0.0
        async with asyncio.timeout(within_s):
            await self._sending

    def _changed(self, change: StateChange) -> None:
        if change.state is State.CONNECTED:
            self.connected_at.append(time.monotonic())

    async def _send(self) -> None:
        began = time.monotonic()
        count = 0
        async with asyncio.TaskGroup() as group:
            while self._rate:
                while count < (time.monotonic() - began) * self._rate and self._rate:
                    count += 1
                    group.create_task(self._one(LONG_S if count % LONG_EACH == 0 else SHORT_S))
                await asyncio.sleep(0.5 / max(1.0, self._rate))

    async def _one(self, seconds: float) -> None:
        sent = Sent(seconds=seconds)
        self.sent.append(sent)
        handle = await self.client.options(ttl_s=KEPT_S).submit("traced", str(self.trace), seconds)
        sent.id, sent.accepted_at = handle.id, time.monotonic()
        sent.result = await handle.outcome()
        sent.ended_at = time.monotonic()

    # --- What was seen ----------------------------------------------------------------------------------

    def ends(self) -> list[float]:
        return sorted(sent.ended_at for sent in self.sent if sent.ended_at)

    def gap_s(self, fault_at: float) -> float:
        """The longest time without a result that ended after the fault."""
        ends = self.ends()
        return max((later - earlier for earlier, later in pairwise(ends) if later > fault_at), default=0.0)

    async def flows(self, since: float, *, ends: int = 20, within_s: float = 60.0) -> None:
        """Wait until so many tasks that were sent after this moment have ended."""
        async with asyncio.timeout(within_s):
            while sum(1 for sent in self.sent if sent.ended_at and sent.sent_at > since) < ends:
                await asyncio.sleep(0.05)

    def runs(self) -> Iterator[Run]:
        """Every run that the kernels know of."""
        began: dict[tuple[str, int], float] = {}
        ended: dict[tuple[str, int], float] = {}
        for line in self.trace.read_text().splitlines() if self.trace.exists() else ():
            task, attempt, at, what = line.split()
            (began if what == "began" else ended)[task, int(attempt)] = float(at)
        for (task, attempt), at in began.items():
            yield Run(task, attempt, at, ended.get((task, attempt)))

    def check(self) -> None:
        """Nothing lost, nothing that ended otherwise than done, and no cause but what faults explain."""
        for sent in self.sent:
            result = sent.result
            assert result is not None, f"{sent.id or 'a task that was not accepted'} has not ended"
            assert result.status == "done", f"{sent.id}: {result.status}: {result.error}"
            causes = {attempt.cause for attempt in result.attempts}
            assert causes <= {"node_loss", "drain"}, f"{sent.id}: {result.attempts}"
