"""Which requests for predictions are answered together, which wait, and which are refused at once.

    admit -> waiting --take--> in a batch --done--> answered
       \\-> refused              \\--give_back--> waiting again, first of all, each alone

A model's requests wait in a lane. A process takes what waits there, up to a limit of bytes that follows the time that
batches take: it grows by a step while they are faster than the target and shrinks by a third when one is slower (AIMD,
as in Clipper, NSDI 2017). Nothing waits for a batch to fill. Lanes take turns.

Refused is what would have to wait longer than its deadline allows, by the time that bytes took lately, and what the
queues have no room for. Before anything was measured nothing is refused for its deadline.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

REQUEST_BYTES = 512  # what a request costs beside its bytes, in bytes
FIRST_BYTES = 1 << 14  # in a batch, to begin with
STEP_BYTES = 1 << 13  # more, after a full batch that was fast
LEAST_BYTES, MOST_BYTES = 1 << 11, 1 << 25
COLD_GROWTH = 1.5  # until a batch was slow for the first time
SHRINK = 0.7
REQUESTS_MAX = 512  # in a batch
FADE = 0.9  # of what was measured, with each batch
KNOWN_LANES = 1000  # whose measures are remembered

Why = Literal["full", "busy", "late"]  # no room for this model; no room on this node; not before the deadline


@dataclass(eq=False)
class Waiting:
    """A request in a queue. `lane` is what may be answered together."""

    lane: Hashable
    size: int
    arrived: float
    deadline: float
    deaths: int = 0  # of processes that had it


class Refused(NamedTuple):
    why: Why
    wait_s: float  # until there may be room


@dataclass(eq=False)
class Batch:
    lane: Hashable
    requests: list[Waiting]
    size: int
    is_full: bool  # more waited than the limit allowed


@dataclass(eq=False)
class _Lane:
    waiting: deque[Waiting] = field(default_factory=deque)
    size: int = 0  # that waits
    running: int = 0  # batches
    running_size: int = 0
    limit: float = FIRST_BYTES
    is_cold: bool = True
    took_s: float = 0.0  # by so many bytes, both fading
    measured: float = 0.0

    @property
    def s_per_byte(self) -> float:
        return self.took_s / self.measured if self.measured else 0.0

    def backlog_s(self) -> float:
        return (self.size + self.running_size) * self.s_per_byte


class Batching:
    """All queues of a node. `target_s` for a batch; `requests_max` wait for one model and `bytes_max` in all;
    `concurrency` batches of one model run at a time, in `processes`."""

    def __init__(
        self, *, target_s: float, requests_max: int, bytes_max: int, concurrency: int = 1, processes: int = 1
    ) -> None:
        self.target_s = target_s
        self.requests_max = requests_max
        self.bytes_max = bytes_max
        self.concurrency = concurrency
        self.processes = processes
        self._lanes: OrderedDict[Hashable, _Lane] = OrderedDict()  # used longest ago first
        self._turns: OrderedDict[Hashable, _Lane] = OrderedDict()  # those where something waits, in their turn
        self.requests = 0  # that wait
        self.size = 0

    def queued(self, lane: Hashable) -> int:
        """How many requests wait in a lane."""
        return len(self._lanes[lane].waiting) if lane in self._lanes else 0

    def limit(self, lane: Hashable) -> int:
        """The bytes that a batch of this lane may have."""
        return int(self._lanes[lane].limit) if lane in self._lanes else FIRST_BYTES

    def wait_s(self, lane_key: Hashable) -> float:
        """How long a request that comes now would wait: no longer than for all there is, nor than for its own lane and
        as much of each of the others."""
        lane = self._lanes.get(lane_key)
        own_s = 0.0 if lane is None else lane.backlog_s()
        others = [each.backlog_s() for key, each in self._turns.items() if key != lane_key]
        beside_s = sum(min(each, own_s + self.target_s) for each in others)
        return (own_s + beside_s) / self.processes

    def admit(self, request: Waiting, now: float, *, beside: int = 0) -> Refused | None:
        """Have it wait, or say why not; so many bytes wait elsewhere."""
        lane = self._lanes.get(request.lane)
        wait_s = self.wait_s(request.lane)
        if lane is not None and len(lane.waiting) >= self.requests_max:
            return Refused("full", wait_s)
        if self.size + beside + request.size > self.bytes_max and (self.requests or beside):
            return Refused("busy", wait_s)
        own_s = 0.0 if lane is None else (request.size + REQUEST_BYTES) * lane.s_per_byte
        if now + wait_s + own_s > request.deadline:
            return Refused("late", wait_s)
        if lane is None:
            self._forget_lanes()
            lane = self._lanes[request.lane] = _Lane()
        self._lanes.move_to_end(request.lane)
        self._put(lane, request)
        return None

    def forget(self, request: Waiting) -> bool:
        """Nobody waits for it any more. Whether it was in a queue."""
        lane = self._lanes.get(request.lane)
        if lane is None or request not in lane.waiting:
            return False
        lane.waiting.remove(request)
        self._gone(lane, request)
        return True

    def take(self, now: float) -> Batch | None:
        """What is to be answered next; None if nothing waits that may run. What came too late is passed over: whoever
        waits for it knows its deadline, too."""
        for key, lane in list(self._turns.items()):
            if lane.running >= self.concurrency:
                continue
            batch = self._taken(key, lane, now)
            if batch.requests:
                lane.running += 1
                lane.running_size += batch.size
                if lane.waiting:
                    self._turns.move_to_end(key)
                return batch
        return None

    def _taken(self, key: Hashable, lane: _Lane, now: float) -> Batch:
        batch = Batch(key, [], 0, is_full=False)
        while lane.waiting:
            first = lane.waiting[0]
            cost = first.size + REQUEST_BYTES
            is_alone = bool(first.deaths)
            if batch.requests and (batch.size + cost > lane.limit or len(batch.requests) >= REQUESTS_MAX or is_alone):
                batch.is_full = not is_alone
                break
            lane.waiting.popleft()
            self._gone(lane, first)
            if first.deadline <= now:
                continue
            batch.requests.append(first)
            batch.size += cost
            if is_alone:
                break
        return batch

    def done(self, batch: Batch, seconds: float) -> None:
        """A batch was answered, in so many seconds of a process."""
        lane = self._over(batch)
        if lane.measured > 0 or lane.took_s > 0:
            lane.took_s, lane.measured = lane.took_s * FADE, lane.measured * FADE
        lane.took_s += seconds
        lane.measured += batch.size
        if seconds > self.target_s:
            lane.is_cold = False
            if len(batch.requests) > 1:  # of one alone nothing can be taken away
                lane.limit = max(LEAST_BYTES, min(lane.limit, batch.size) * SHRINK)
        elif batch.is_full:
            more = lane.limit * COLD_GROWTH if lane.is_cold else lane.limit + STEP_BYTES
            lane.limit = min(MOST_BYTES, more)

    def give_back(self, batch: Batch, *, is_to_blame: bool) -> None:
        """Its process has died: all wait again, before the others; one after the other if one of them was to blame."""
        lane = self._over(batch)
        for request in reversed(batch.requests):
            request.deaths += is_to_blame
            self._put(lane, request, is_first=True)

    def drop(self, batch: Batch) -> None:
        """It ended without an answer."""
        self._over(batch)

    # --- Counting -----------------------------------------------------------------------------------------------

    def _over(self, batch: Batch) -> _Lane:
        lane = self._lanes[batch.lane]
        lane.running -= 1
        lane.running_size -= batch.size
        return lane

    def _put(self, lane: _Lane, request: Waiting, *, is_first: bool = False) -> None:
        if is_first:
            lane.waiting.appendleft(request)
        else:
            lane.waiting.append(request)
        self._turns.setdefault(request.lane, lane)
        lane.size += request.size + REQUEST_BYTES
        self.size += request.size
        self.requests += 1

    def _gone(self, lane: _Lane, request: Waiting) -> None:
        lane.size -= request.size + REQUEST_BYTES
        self.size -= request.size
        self.requests -= 1
        if not lane.waiting:
            del self._turns[request.lane]

    def _forget_lanes(self) -> None:
        for key, lane in list(self._lanes.items()):
            if len(self._lanes) <= KNOWN_LANES:
                return
            if not lane.waiting and not lane.running:
                del self._lanes[key]
