"""Who goes first among tasks of one priority: submitters take turns.

The submitter with the fewest slots held is next; among equals the one least served lately; then the older
task. Lately is told by start-time fair queueing (Goyal, Vin, Cheng 1996): each submitter carries a tag that
grows by the slots it is given, and one that was away starts at the tag that is being served now. So nobody
saves up credit by being idle, and no clock is needed. Tasks that name no submitter are those of one.

A submitter's standing changes with every task given or ended, and it may wait in many queues. Nothing is
pushed into these: what got worse is found when it comes up, what got better stands in a `Journal`, which a
queue reads on from where it stopped. So a change costs the same however many wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from zkd.paths import TaskId

JOURNAL_MAX = 4096  # names; a reader that is further behind looks at everything anew
SUBMITTERS_REMEMBERED = 10_000  # of those who hold nothing now

Aged = tuple[int, TaskId, int]  # czxid, id, version: the order of age
IsLive = Callable[[Aged], bool]


class Journal:
    """Names, each written down when something about it got better, for readers that come by now and then."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._start = 0

    @property
    def end(self) -> int:
        """Where a reader that knows everything goes on."""
        return self._start + len(self._names)

    def note(self, name: str) -> None:
        if len(self._names) >= JOURNAL_MAX:
            self.forget()
        self._names.append(name)

    def forget(self) -> None:
        """Make every reader look at everything anew."""
        self._start = self.end + 1
        self._names.clear()

    def since(self, position: int) -> list[str] | None:
        """What was noted from there on; None if that is no longer known."""
        return self._names[position - self._start :] if position >= self._start else None


@dataclass(slots=True)
class Standing:
    """One submitter: the slots it holds, and its tag."""

    held: int = 0
    tag: int = 0


class Submitters:
    """All submitters that hold something or were served lately."""

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}
        self._served_tag = 0  # of the task given out last, before it was given
        self.improved = Journal()

    def standing(self, name: str) -> Standing:
        found = self._standings.get(name)
        if found is None:
            if len(self._standings) >= 2 * SUBMITTERS_REMEMBERED:
                busy = {name: standing for name, standing in self._standings.items() if standing.held}
                idle = [item for item in self._standings.items() if not item[1].held]
                self._standings = dict(idle[-SUBMITTERS_REMEMBERED:]) | busy
            found = self._standings[name] = Standing(0, self._served_tag)
        return found

    def arrived(self, name: str) -> None:
        """It waits for something, and did not before: from now on it takes part."""
        standing = self.standing(name)
        standing.tag = max(standing.tag, self._served_tag)

    def gave(self, name: str, slots: int) -> None:
        standing = self.standing(name)
        standing.held += slots
        self._served_tag = max(self._served_tag, standing.tag)
        standing.tag += slots

    def released(self, name: str, slots: int) -> None:
        self.standing(name).held -= slots
        self.improved.note(name)

    def held(self) -> dict[str, int]:
        """The slots that each holds."""
        return {name: standing.held for name, standing in self._standings.items() if standing.held}


class Turns:
    """The waiting tasks of one queue and one priority, in the order in which they should go."""

    def __init__(self, submitters: Submitters) -> None:
        self._submitters = submitters
        self.queues: dict[str, list[Aged]] = {}  # of each submitter, oldest first
        self._order: list[tuple[int, int, Aged, str]] = []  # as `_place`; unused while there is only one
        self._read_to = -1

    def push(self, submitter: str, task: Aged) -> None:
        queue = self.queues.get(submitter)
        if queue is None:
            self._submitters.arrived(submitter)
            self.queues[submitter] = [task]
        else:
            heapq.heappush(queue, task)
        if self._read_to >= 0 and self.queues[submitter][0] is task:
            heapq.heappush(self._order, self._place(submitter))

    def _place(self, submitter: str) -> tuple[int, int, Aged, str]:
        standing = self._submitters.standing(submitter)
        return standing.held, standing.tag, self.queues[submitter][0], submitter

    def best(self, is_live: IsLive) -> tuple[int, int, Aged] | None:
        """The task that is next, behind its submitter's slots held and tag. None: nothing waits."""
        while self.queues:
            submitter = next(iter(self.queues)) if len(self.queues) == 1 else self._next_submitter()
            queue = self.queues[submitter]
            while queue and not is_live(queue[0]):
                heapq.heappop(queue)
            if not queue:
                del self.queues[submitter]
            elif len(self.queues) == 1 or self._order[0] == self._place(submitter):  # its head is still what it was
                return self._place(submitter)[:3]
        return None

    def clear_out(self, is_live: IsLive) -> None:
        """Give back the places of tasks that have left. A head that goes makes way for a later one, which is found."""
        for submitter, queue in list(self.queues.items()):
            live = [task for task in queue if is_live(task)]
            if live:
                heapq.heapify(live)
                self.queues[submitter] = live
            else:
                del self.queues[submitter]

    def _next_submitter(self) -> str:
        self._catch_up()
        order = self._order
        while True:
            submitter = order[0][3]
            if submitter not in self.queues:
                heapq.heappop(order)
                continue
            place = self._place(submitter)
            if order[0] == place:
                return submitter
            heapq.heapreplace(order, place)

    def _catch_up(self) -> None:
        """Take in whose standing got better since; whose got worse is found when it comes up."""
        journal = self._submitters.improved
        improved = journal.since(self._read_to) if self._read_to >= 0 else None
        self._read_to = journal.end
        if improved is None or len(self._order) > 2 * len(self.queues) + 64:
            self._order = [self._place(name) for name in self.queues]
            heapq.heapify(self._order)
            return
        for name in set(improved):
            if name in self.queues:
                heapq.heappush(self._order, self._place(name))
