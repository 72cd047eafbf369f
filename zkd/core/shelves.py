"""Lanes for which no node has room, put away until one that suits them gets roomier.

They lie on shelves by what their tasks need, the most urgent first, so that a node is shown only what it could
run, and not more than a handful at a time: what else waits is not looked at. How urgent a lane is was true when
it was put away; lest one be overlooked for ever because that has changed since, some of each handful are
simply those that lay there longest.
"""

from __future__ import annotations

import heapq

from zkd.core.lanes import Lane, Urgency
from zkd.core.picture import Member

HANDFUL = 12  # the most urgent,
LONGEST = 4  # and those that lay there longest

Shape = tuple[frozenset[int], tuple[tuple[str, str], ...], int, int]


class Shelf:
    def __init__(self) -> None:
        self.lanes: dict[Lane, Urgency] = {}  # in the order in which they were put there
        self._order: list[tuple[Urgency, int, Lane]] = []

    def put(self, lane: Lane, urgency: Urgency) -> None:
        self.lanes[lane] = urgency
        heapq.heappush(self._order, (urgency, id(lane), lane))

    def top(self) -> Urgency | None:
        """How urgent the most urgent lane was when it was put here."""
        while self._order and self.lanes.get(self._order[0][2]) != self._order[0][0]:
            heapq.heappop(self._order)
        return self._order[0][0] if self._order else None

    def take(self) -> Lane:
        """The most urgent."""
        lane = heapq.heappop(self._order)[2]
        del self.lanes[lane]
        return lane

    def take_longest(self) -> Lane:
        """The one that lay here longest."""
        lane = next(iter(self.lanes))
        del self.lanes[lane]
        return lane


class Shelves:
    def __init__(self) -> None:
        self._shelves: dict[Shape, Shelf] = {}

    def __contains__(self, lane: Lane) -> bool:
        shelf = self._shelves.get(shape(lane))
        return shelf is not None and lane in shelf.lanes

    def put(self, lane: Lane, urgency: Urgency) -> None:
        self._shelves.setdefault(shape(lane), Shelf()).put(lane, urgency)

    def remove(self, lane: Lane) -> None:
        shelf = self._shelves.get(shape(lane))
        if shelf is not None:
            shelf.lanes.pop(lane, None)

    def take(self, member: Member) -> list[Lane]:
        """Off the shelves with tasks that this node has room for, a handful."""
        free = None if member.memory is None else (member.memory - member.memory_held).bit_length()
        labels = member.record.labels
        fitting: list[Shape] = []
        for made_for, shelf in list(self._shelves.items()):
            kinds, wanted, slots, octave = made_for
            if not shelf.lanes:
                del self._shelves[made_for]
            elif (
                member.kind in kinds
                and (slots == 1 or slots <= member.free_slots)
                and (octave == 0 or free is None or octave <= free)
                and all(labels.get(name) == value for name, value in wanted)
            ):
                fitting.append(made_for)
        taken: list[Lane] = []
        tops = [(top, n) for n, made_for in enumerate(fitting) if (top := self._shelves[made_for].top()) is not None]
        heapq.heapify(tops)
        while tops and len(taken) < HANDFUL:
            _, n = tops[0]
            shelf = self._shelves[fitting[n]]
            taken.append(shelf.take())
            top = shelf.top()
            if top is None:
                heapq.heappop(tops)
            else:
                heapq.heapreplace(tops, (top, n))
        for made_for in fitting[:LONGEST]:
            shelf = self._shelves.pop(made_for)
            self._shelves[made_for] = shelf  # it is the last to be asked the next time
            if shelf.lanes:
                taken.append(shelf.take_longest())
        return taken

    def drop_empty(self) -> None:
        for shelf in self._shelves.values():
            for lane in [lane for lane in shelf.lanes if not lane.count]:
                del shelf.lanes[lane]

    def clear(self) -> None:
        self._shelves.clear()


def shape(lane: Lane) -> Shape:
    """What makes out whether a node has room for anything on a shelf; of memory its order of magnitude."""
    demand = lane.demand
    return demand.kinds, demand.labels, demand.slots, (demand.memory or 0).bit_length()
