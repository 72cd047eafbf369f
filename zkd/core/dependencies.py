"""Tasks that wait for others to be done, and when to look whether these are.

A dependency is a task that is there, or has a result, or is promised: somebody may drop it later. While it is
there nothing is done; when it goes its result is looked at, at once. One that is neither there nor has a result
is looked at after a pause that doubles: the result of a cancelled task comes a little later than its deletion,
and a promised one may never come. What no task waits for costs nothing.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Container, Iterable

from zkd.paths import TaskId

LOOK_FIRST_S = 0.1
LOOK_MAX_S = 60.0


class Dependencies:
    def __init__(self, there: Container[TaskId]) -> None:
        self._there = there  # tasks that have not ended
        self.pending: dict[TaskId, set[TaskId]] = {}  # task -> what it still waits for; nothing, and it may go
        self._named: dict[TaskId, frozenset[TaskId]] = {}  # task -> all that it was to wait for
        self._wanted: Counter[TaskId] = Counter()  # how many tasks name it
        self._dependents: dict[TaskId, set[TaskId]] = {}  # and the other way round
        self._pauses: dict[TaskId, float] = {}  # of each that is waited for
        self._looks: list[tuple[float, TaskId]] = []

    def __contains__(self, task: TaskId) -> bool:
        """Whether a task that has not begun names this one, so that the next leader, too, has to find its result."""
        return task in self._wanted

    def add(self, task: TaskId, after: Iterable[TaskId], now: float) -> None:
        """From now on it waits for these. Whether they have ended already is looked at from `now` on."""
        self.pending[task] = set(after)
        self._named[task] = frozenset(self.pending[task])
        self._wanted.update(self._named[task])
        for awaited in self.pending[task]:
            self._dependents.setdefault(awaited, set()).add(task)
            if awaited not in self._pauses:
                self._look_at(awaited, now)

    def forget(self, task: TaskId) -> None:
        """It waits no longer, whatever the reason."""
        for named in self._named.pop(task):
            self._wanted[named] -= 1
            if not self._wanted[named]:
                del self._wanted[named]
        for awaited in self.pending.pop(task, ()):
            dependents = self._dependents[awaited]
            dependents.discard(task)
            if not dependents:
                del self._dependents[awaited]
                self._pauses.pop(awaited, None)

    def gone(self, task: TaskId, now: float) -> None:
        """The task's znode is no longer there: its result is, or soon will be."""
        if task in self._dependents:
            self._look_at(task, now)

    def _look_at(self, task: TaskId, now: float) -> None:
        self._pauses[task] = LOOK_FIRST_S
        heapq.heappush(self._looks, (now, task))

    def not_ended(self, task: TaskId, now: float) -> None:
        """It was looked at, and has no result."""
        pause = self._pauses.get(task)
        if pause is not None and task not in self._there:
            heapq.heappush(self._looks, (now + pause, task))
            self._pauses[task] = min(LOOK_MAX_S, 2 * pause)

    def ended(self, task: TaskId) -> list[TaskId]:
        """It has ended. Those that waited for it do so no longer."""
        dependents = sorted(self._dependents.get(task, ()))
        for dependent in dependents:
            pending = self.pending[dependent]
            pending.discard(task)
        self._dependents.pop(task, None)
        self._pauses.pop(task, None)
        return dependents

    def due(self, now: float) -> list[TaskId]:
        """Whose results are to be looked at now."""
        due: dict[TaskId, None] = {}
        while self._looks and self._looks[0][0] <= now:
            task = heapq.heappop(self._looks)[1]
            if task in self._pauses and task not in self._there:
                due[task] = None
        return list(due)

    def timer(self) -> float | None:
        while self._looks and (self._looks[0][1] not in self._pauses or self._looks[0][1] in self._there):
            heapq.heappop(self._looks)  # a task that is there is looked at when it goes
        return self._looks[0][0] if self._looks else None

    def cycle(self, task: TaskId, after: Collection[TaskId]) -> list[TaskId] | None:
        """The way from this task over what it waits for back to itself, if there is one.

        Sought from both ends in turn, so that the shorter one bounds the work: whoever drops a long chain, from
        either end, pays a step for each.
        """
        ahead: dict[TaskId, TaskId] = dict.fromkeys(after, task)  # -> from where it was reached
        behind: dict[TaskId, TaskId] = {task: task}  # -> what it waits for, on the way to `task`
        fronts = [list(ahead), [task]]
        met = next((awaited for awaited in ahead if awaited in behind), None)
        while met is None and fronts[0] and fronts[1]:
            one = fronts[0].pop()
            for awaited in self.pending.get(one, ()):
                if awaited not in ahead:
                    ahead[awaited] = one
                    fronts[0].append(awaited)
                    met = awaited if awaited in behind else met
            one = fronts[1].pop()
            for dependent in self._dependents.get(one, ()):
                if dependent not in behind:
                    behind[dependent] = one
                    fronts[1].append(dependent)
                    met = dependent if dependent in ahead else met
        if met is None:
            return None
        way = [met]
        while way[0] != task or len(way) == 1:
            way.insert(0, ahead[way[0]])
        while way[-1] != task:
            way.append(behind[way[-1]])
        return way

    def check(self, there: Container[TaskId]) -> Iterable[str]:
        for task, pending in self.pending.items():
            if task not in there:
                yield f"{task} is gone, and waits for {pending}"
            for awaited in pending:
                if task not in self._dependents.get(awaited, ()):
                    yield f"{task} waits for {awaited}, which does not know"
        for awaited in self._dependents:
            if awaited not in self._pauses:
                yield f"{awaited} is waited for, and never looked at"
        if self._wanted != Counter(named for some in self._named.values() for named in some):
            yield f"{self._wanted} is not what {self._named} wants"
