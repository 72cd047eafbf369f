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
Block = tuple[tuple[str, str] | None, int]


class Shelf:
    def __init__(self) -> None:
        self.lanes: dict[Lane, Urgency] = {}  # in the order in which they were put there
        self._order: list[tuple[Urgency, int, Lane]] = []
        self.asked = 0  # when it was last asked for what lies here longest: the number of that question

    def put(self, lane: Lane, urgency: Urgency) -> None:
        self.lanes[lane] = urgency
        heapq.heappush(self._order, (urgency, id(lane), lane))
        if len(self._order) > 2 * len(self.lanes) + 64:  # of lanes that were woken: nobody takes from the top
            self._order = [(urgency, id(lane), lane) for lane, urgency in self.lanes.items()]
            heapq.heapify(self._order)

    def size(self) -> int:
        """Places, also of lanes that were woken meanwhile."""
        return len(self._order)

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
        # In blocks: by one label that is asked for, and the magnitude of the slots. A node looks only at those of
        # labels that it carries, however many others there are.
        self._blocks: dict[Block, dict[Shape, Shelf]] = {}
        self._block_of: dict[Shape, Block] = {}
        self._asked = 0

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def _shelf(self, made_for: Shape) -> Shelf | None:
        block = self._block_of.get(made_for)
        return None if block is None else self._blocks[block][made_for]

    def __contains__(self, lane: Lane) -> bool:
        shelf = self._shelf(shape(lane))
        return shelf is not None and lane in shelf.lanes

    def put(self, lane: Lane, urgency: Urgency) -> None:
        made_for = shape(lane)
        shelf = self._shelf(made_for)
        if shelf is None:
            _, labels, slots, _ = made_for
            blocks: list[Block] = [(label, slots.bit_length()) for label in labels] or [(None, slots.bit_length())]
            block = min(blocks, key=lambda block: len(self._blocks.get(block, ())))
            shelf = self._blocks.setdefault(block, {})[made_for] = Shelf()
            self._block_of[made_for] = block
        shelf.put(lane, urgency)

    def remove(self, lane: Lane) -> None:
        shelf = self._shelf(shape(lane))
        if shelf is not None:
            shelf.lanes.pop(lane, None)

    def _drop(self, made_for: Shape) -> None:
        block = self._block_of.pop(made_for)
        del self._blocks[block][made_for]
        if not self._blocks[block]:
            del self._blocks[block]

    def seen_by(self, member: Member) -> list[tuple[Shape, Shelf]]:
        """What this node has to look at to find those that it has room for."""
        magnitudes = range(1, max(1, member.free_slots).bit_length() + 1)
        blocks = [(label, magnitude) for label in (None, *member.record.labels.items()) for magnitude in magnitudes]
        return [item for block in blocks for item in self._blocks.get(block, {}).items()]

    def _fitting(self, member: Member) -> list[Shelf]:
        """The shelves with tasks that this node may have room for."""
        free = None if member.memory is None else max(0, member.memory - member.memory_held).bit_length()
        labels = member.record.labels
        fitting: list[Shelf] = []
        for made_for, shelf in self.seen_by(member):
            kinds, wanted, slots, octave = made_for
            if not shelf.lanes:
                self._drop(made_for)
            elif (
                member.kind in kinds
                and (slots == 1 or slots <= member.free_slots)
                and (octave == 0 or free is None or octave <= free)
                and all(labels.get(name) == value for name, value in wanted)
            ):
                fitting.append(shelf)
        return fitting

    def take(self, member: Member) -> list[Lane]:
        """Off the shelves with tasks that this node has room for, a handful."""
        fitting = self._fitting(member)
        taken: list[Lane] = []
        tops = [(top, n) for n, shelf in enumerate(fitting) if (top := shelf.top()) is not None]
        heapq.heapify(tops)
        while tops and len(taken) < HANDFUL:
            _, n = tops[0]
            shelf = fitting[n]
            taken.append(shelf.take())
            top = shelf.top()
            if top is None:
                heapq.heappop(tops)
            else:
                heapq.heapreplace(tops, (top, n))
        for shelf in heapq.nsmallest(LONGEST, fitting, key=lambda shelf: shelf.asked):
            self._asked += 1
            shelf.asked = self._asked  # it is the last to be asked the next time
            if shelf.lanes:
                taken.append(shelf.take_longest())
        return taken

    def drop_empty(self) -> None:
        for made_for, block in list(self._block_of.items()):
            shelf = self._blocks[block][made_for]
            for lane in [lane for lane in shelf.lanes if not lane.count]:
                del shelf.lanes[lane]
            if not shelf.lanes:
                self._drop(made_for)

    def size(self) -> int:
        return sum(shelf.size() for block in self._blocks.values() for shelf in block.values())

    def clear(self) -> None:
        self._blocks.clear()
        self._block_of.clear()


def shape(lane: Lane) -> Shape:
    """What makes out whether a node has room for anything on a shelf; of memory its order of magnitude."""
    demand = lane.demand
    return demand.kinds, demand.labels, demand.slots, (demand.memory or 0).bit_length()
