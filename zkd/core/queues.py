"""Ready tasks in lanes by what they need, and which of them goes to which node.

No task waits behind another that needs something else. The most urgent head of all lanes goes first, to the
least loaded node that can run it: higher priority, then whose submitter's turn it is, then older. Of what one
node is given, every AGED_EVERYth is the oldest task that it could run, so nothing waits for ever.

Only lanes with something to decide are awake. One for which no node has room is put on a shelf, until a node
that suits it gets roomier; one that a limit holds back waits for that. So a turn costs as much as has changed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

from zkd.core.catalogue import Catalogue
from zkd.core.fairness import Aged, Submitters
from zkd.core.lanes import Demand, Gap, Lane, Urgency
from zkd.core.limits import NEVER, Limits
from zkd.core.picture import Entry, Member, Need, Part
from zkd.core.room import Room
from zkd.core.shelves import Shelves
from zkd.core.stands import Stand, Wanted
from zkd.paths import NodeId, TaskId

AGED_EVERY = 8
# A wide task needs a whole gap, and narrow ones close gaps as they open. Once they have passed it over for
# this long, one node that could run it gets nothing less urgent until the gap is there; and after a while
# nothing at all, since there may be more urgent ones without end.
PASSED_OVER_S = 1.0
KEPT_FROM_ALL_S = 10.0
KEPT_MAX = 8  # nodes at once
CROWD_S = 0.05  # so long between two looks at who wants one: it is sought among all nodes
NO_NODE_MAX_S = 60.0  # while there is no node that could be kept, one is sought after pauses that double
LANES_KEPT = 256  # empty ones, too: a lane's next task may come soon
NEEDS_KNOWN = 10_000


class Queues:
    """The ready ones among `tasks`, to be matched with `members`; both belong to the leader's mind."""

    def __init__(
        self,
        me: NodeId,
        tasks: Mapping[TaskId, Entry],
        members: Mapping[NodeId, Member],
        catalogue: Catalogue,
        limits: Limits,
    ) -> None:
        self._tasks = tasks
        self._members = members
        self._catalogue = catalogue
        self._limits = limits
        self.submitters = Submitters()
        self.holders: Callable[[Part], Container[NodeId]] = lambda _: ()
        self.room = Room(me, members)
        self._read_to = 0
        self._lanes: dict[Demand, Lane] = {}
        self._stands: dict[Wanted, Stand] = {}
        self._lanes_max = LANES_KEPT
        self._lane_of: dict[Need, Lane] = {}
        self._awake: dict[Lane, None] = {}
        self._unserved: list[tuple[Lane, Urgency]] = []  # in the present turn
        self._shelves = Shelves()
        self._pinned: dict[NodeId, Shelves] = {}  # put away until this one node gets roomier
        self._wide: list[tuple[float, int, Lane]] = []  # when to keep a node free for them
        self._crowded: dict[Lane, None] = {}  # in line for one of these nodes
        self._crowd_at = 0.0  # when the next ones in that line are looked at
        self._patient: list[tuple[float, TaskId, int]] = []  # until when these wait for a node that they prefer
        self._held_back: dict[str, dict[Lane, None]] = {}  # by the limit of a kernel
        self._opening: list[tuple[float, str]] = []  # when a limit lets the next one pass
        self.kept: dict[NodeId, Lane] = {}  # nodes that are kept free for the wide tasks of a lane
        self._closures: list[tuple[NodeId, Lane, tuple[int, Aged] | None]] = []  # to whom, unless more urgent
        self.count = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def size(self) -> int:
        """Places in all lanes, also of tasks that have left and not been noticed yet."""
        return sum(lane.size() for lane in self._lanes.values())

    def shelved(self) -> int:
        """Places on the shelves, also of lanes that were woken meanwhile."""
        return sum(shelves.size() for shelves in (self._shelves, *self._pinned.values()))

    def waiting(self) -> list[Lane]:
        """The lanes in which something waits."""
        return [lane for lane in self._lanes.values() if lane.count]

    # --- What waits ---------------------------------------------------------------------------------------

    def push(self, entry: Entry) -> None:
        entry.patient_until = None
        if entry.homes is None:
            self._enter(entry, (*self._near_lanes(entry), self.lane(entry.need)))
        elif lanes := self._home_lanes(entry):
            self._enter(entry, lanes)
        else:
            return  # it waits in no lane, until one of its homes is here
        self.count += 1

    def _home_lanes(self, entry: Entry) -> tuple[Lane, ...]:
        """One for each node that it may run on, and none beside."""
        need = entry.need
        here = [name for name in entry.homes or () if name in self._members and need.node in (None, name)]
        lanes = (self.lane(replace(need, node=name)) for name in here)
        return tuple(lane for lane in lanes if lane.suits(self._members[lane.demand.node or ""]))

    def is_misplaced(self, entry: Entry, homes: tuple[NodeId, ...] | None) -> bool:
        """Whether it waits for other nodes than those of its homes that are here."""
        if homes != entry.homes:
            return True
        if homes is None:
            return False
        here = {name for name in homes if name in self._members and entry.need.node in (None, name)}
        return here != {lane.demand.node for lane in entry.lanes}

    def _near_lanes(self, entry: Entry) -> tuple[Lane, ...]:
        """A lane of its own for each preferred node that could run it: there it is served when its turn is there."""
        need = entry.need
        here = [name for name in entry.near if name in self._members and need.node is None]
        lanes = (self.lane(replace(need, node=name)) for name in dict.fromkeys(here))
        return tuple(lane for lane in lanes if lane.suits(self._members[lane.demand.node or ""]))

    def _enter(self, entry: Entry, lanes: tuple[Lane, ...]) -> None:
        entry.lanes = (*entry.lanes, *lanes)
        for lane in lanes:
            lane.push(entry)
            self._wake(lane)

    def leave(self, entry: Entry) -> None:
        """It is ready no longer, or there no longer."""
        for lane in entry.lanes:
            lane.left()
        entry.lanes = ()
        self.count -= 1

    def lane(self, need: Need) -> Lane:
        lane = self._lane_of.get(need)
        if lane is None:
            if len(self._lane_of) >= NEEDS_KNOWN:
                self._lane_of.clear()
            lane = self._lane_of[need] = self._lane(self._demand(need))
        return lane

    def _demand(self, need: Need) -> Demand:
        kinds = self._catalogue.carriers(need.kernel)
        # Kernels that the same nodes have are alike, but for one that is limited, or that nobody has yet.
        kernel = need.kernel if need.kernel in self._limits or not kinds else None
        return Demand(kinds, kernel, need.node, need.labels, need.slots, need.memory)

    def _lane(self, demand: Demand) -> Lane:
        lane = self._lanes.get(demand)
        if lane is None:
            if len(self._lanes) >= self._lanes_max:
                self._forget_empty_lanes()
            wanted = (demand.kinds, demand.labels, demand.slots)
            stand = self._stands.setdefault(wanted, Stand(wanted))
            lane = self._lanes[demand] = Lane(demand, stand, self._tasks, self.submitters)
        return lane

    def _forget_empty_lanes(self) -> None:
        self._lanes = {demand: lane for demand, lane in self._lanes.items() if lane.count}
        self._lanes_max = max(LANES_KEPT, 2 * len(self._lanes))
        in_use = {id(lane.stand) for lane in self._lanes.values()}
        self._stands = {wanted: stand for wanted, stand in self._stands.items() if id(stand) in in_use}
        self._lane_of.clear()
        for lanes in (self._awake, *self._held_back.values()):
            for lane in [lane for lane in lanes if not lane.count]:
                del lanes[lane]
        for shelves in (self._shelves, *self._pinned.values()):
            shelves.drop_empty()
        self._pinned = {node: shelves for node, shelves in self._pinned.items() if shelves}

    def clear(self) -> None:
        """Forget everything: kernels have become known or limited, and what waits belongs into other lanes."""
        self._lanes.clear()
        self._stands.clear()
        self._lane_of.clear()
        self._awake.clear()
        self._shelves.clear()
        self._pinned.clear()
        self._wide.clear()
        self._crowded.clear()
        self._patient.clear()
        self._held_back.clear()
        self.kept.clear()
        self.count = 0

    # --- Which of it is to be looked at -------------------------------------------------------------------

    def _wake(self, lane: Lane) -> None:
        if lane in self._awake:
            return
        shelves = self._shelves_of(lane)
        if shelves is not None:
            shelves.remove(lane)
        self._awake[lane] = None

    def _shelves_of(self, lane: Lane) -> Shelves | None:
        return self._shelves if lane.demand.node is None else self._pinned.get(lane.demand.node)

    def _put_away(self, lane: Lane, urgency: Urgency) -> None:
        shelves = self._shelves_of(lane)
        if shelves is None:
            shelves = self._pinned[lane.demand.node or ""] = Shelves()
        shelves.put(lane, urgency)

    def _hold_back(self, lane: Lane, kernel: str, until: float) -> None:
        self._awake.pop(lane, None)
        lanes = self._held_back.setdefault(kernel, {})
        if not lanes and until < NEVER:
            heapq.heappush(self._opening, (until, kernel))
        lanes[lane] = None

    def limit_eased(self, kernel: str) -> None:
        """One of its tasks ended, or its limit is another: what it held back is looked at again."""
        for lane in self._held_back.pop(kernel, {}):
            self._wake(lane)

    def _take_in(self, now: float) -> Iterable[NodeId]:
        """What time has brought is looked at again; and which nodes may have got roomier."""
        while self._opening and self._opening[0][0] <= now:
            self.limit_eased(heapq.heappop(self._opening)[1])
        while self._wide and self._wide[0][0] <= now:
            self._crowded[heapq.heappop(self._wide)[2]] = None
        while self._patient and self._patient[0][0] <= now:
            at, task_id, czxid = heapq.heappop(self._patient)
            entry = self._tasks.get(task_id)
            if entry is not None and entry.lanes and entry.czxid == czxid and entry.patient_until == at:
                entry.patient_until = None
                entry.patience_s = 0.0
                self._enter(entry, (self.lane(entry.need),))
        for node, lane in list(self.kept.items()):
            if not self._is_of_use(node, lane, now):
                self._give_up(node, lane)
        if now >= self._crowd_at:
            self._crowd_at = now + CROWD_S
            for lane in list(islice(self._crowded, KEPT_MAX - len(self.kept))):
                del self._crowded[lane]
                if lane.count:
                    self._wake(lane)
        names = self.room.roomier.since(self._read_to)
        self._read_to = self.room.roomier.end
        return list(self._members) if names is None else list(dict.fromkeys(names))

    def _show(self, nodes: Iterable[NodeId]) -> list[NodeId]:
        """Wake some of what each of these could run. Those that were shown something: there may be more."""
        shown = []
        for name in nodes:
            if self.room.left(name) > 0:
                keeper = self.kept.get(name)
                if keeper is not None and keeper.count and all(keeper is not lane for lane, _ in self._unserved):
                    self._wake(keeper)
                lanes = self._shelves.take(self._members[name])
                pinned = self._pinned.get(name)
                if pinned is not None:
                    lanes += pinned.take(self._members[name])
                    if not pinned:
                        del self._pinned[name]
                self._awake.update(dict.fromkeys(lanes))
                if lanes and name not in self.kept:  # what is kept free would be shown to everybody, in vain
                    shown.append(name)
        return shown

    def timer(self) -> float | None:
        timers = [heap[0][0] for heap in (self._opening, self._wide, self._patient) if heap]
        if self._crowded and len(self.kept) < KEPT_MAX:
            timers.append(self._crowd_at)
        return min(timers, default=None)

    # --- Who goes where -----------------------------------------------------------------------------------

    def match(self, now: float, give: Callable[[Entry, Member], None]) -> None:
        """Give ready tasks to nodes with room: the most urgent first, the least loaded node first."""
        self.room.begin(now)
        nodes = self._show(self._take_in(now))
        self._reckon_closures(now)
        while self._awake:
            self._match_awake(now, give)
            nodes = self._show(nodes)
        for lane, urgency in self._unserved:  # only now, so that nothing is looked at twice in one turn
            self._put_away(lane, urgency)
        self._unserved.clear()

    def _match_awake(self, now: float, give: Callable[[Entry, Member], None]) -> None:
        heads: list[tuple[Urgency, int, Lane]] = []
        # Of the lanes that a task waits in, those of the nodes that it prefers come first.
        for number, lane in enumerate(sorted(self._awake, key=lambda lane: lane.demand.node is None)):
            head = lane.head()
            if head is None:
                del self._awake[lane]
            else:
                heads.append((head, number, lane))
        heapq.heapify(heads)
        while heads:
            urgency, number, lane = heads[0]
            head = lane.head()
            if head is None:
                heapq.heappop(heads)
                self._awake.pop(lane, None)
            elif head != urgency:
                heapq.heapreplace(heads, (head, number, lane))
            elif not self._serve(lane, head, now, give):
                heapq.heappop(heads)
                if lane in self._awake:  # and not held back
                    del self._awake[lane]
                    self._unserved.append((lane, head))

    def _serve(self, lane: Lane, head: Urgency, now: float, give: Callable[[Entry, Member], None]) -> bool:
        """Give the head of this lane, or an older task in its place, to a node. False: it has to wait."""
        kernel = lane.demand.kernel
        if kernel is not None:
            opens_at = self._limits.opens_at(kernel, now)
            if opens_at > now:
                self._hold_back(lane, kernel, opens_at)
                return False
        name = lane.node(self.room, self._closed(lane, head))
        if name is None:
            if lane.demand.slots > 1 or lane.demand.memory is not None:
                self._keep_gap(lane, now)
            return False
        entry = self._tasks[head[3][1]]
        if entry.homes is not None:
            name = self._roomiest(entry, head)
        member = self._members[name]
        if entry.patience_s and name not in entry.near and lane.demand.node is None and self._waits_near(entry, now):
            return True  # the next in this lane may go
        member.given += 1
        if member.given % AGED_EVERY == 0:
            entry = self._oldest(entry, member, now)
        was_kept = any(one.gap is not None and one.gap.node is not None for one in entry.lanes)
        for one in entry.lanes:
            one.gap = None
        give(entry, member)
        if was_kept:
            self._reckon_closures(now)
        self.room.took(name, entry.need.slots)
        return True

    def _waits_near(self, entry: Entry, now: float) -> bool:
        """Its turn has come, and only other nodes have room: let it wait a little for one that it prefers.

        Delay scheduling (Zaharia et al., EuroSys 2010): a short wait gives most tasks a node near their data.
        """
        near = [lane for lane in entry.lanes if lane.demand.node is not None]
        if not any((member := self._members.get(lane.demand.node or "")) and member.takes_work for lane in near):
            return False
        entry.patient_until = now + entry.patience_s
        heapq.heappush(self._patient, (entry.patient_until, entry.id, entry.czxid))
        for lane in entry.lanes:
            if lane.demand.node is None:
                lane.left()
        entry.lanes = tuple(near)
        return True

    def _roomiest(self, entry: Entry, head: Urgency) -> NodeId:
        """The least loaded of its homes that have room: rather one that says to have the part, and not one that lacked
        it just now."""
        last = entry.attempts[-1] if entry.attempts else None
        lacked = last.node if last is not None and last.cause == "data" else None
        names = [name for lane in entry.lanes if (name := lane.node(self.room, self._closed(lane, head))) is not None]
        holders = self.holders(entry.part) if entry.part is not None and len(names) > 1 else ()
        return min(names, key=lambda name: (name == lacked, name not in holders, self.room.rank(name)))

    def spare(self, entry: Entry, now: float, closed: Iterable[NodeId]) -> Member | None:
        """A node with free slots for this task that nobody waits for, but for those in `closed`."""
        need = entry.need
        if need.kernel in self._limits and self._limits.opens_at(need.kernel, now) > now:
            return None
        shut = {*closed, *self.kept}
        lanes = (self.lane(need),) if entry.homes is None else self._home_lanes(entry)
        names = [name for lane in lanes if (name := lane.node(self.room, shut)) is not None]
        name = min(names, key=self.room.rank, default=None)
        return None if name is None or self._members[name].free_slots < need.slots else self._members[name]

    def _oldest(self, entry: Entry, member: Member, now: float) -> Entry:
        """The oldest task that this node could run now; `entry` can."""
        name = member.record.node
        for lane in self._awake:
            demand = lane.demand
            oldest = lane.oldest()
            if oldest is None or (oldest.czxid, oldest.id) >= (entry.czxid, entry.id) or not lane.suits(member):
                continue
            if demand.kernel is not None and self._limits.opens_at(demand.kernel, now) > now:
                continue
            if oldest.patience_s and name not in oldest.near:
                continue
            has_room = self.room.has(name, demand.slots) and self.room.has_memory(name, demand.memory)
            if has_room and self.kept.get(name) in (None, lane):
                entry = oldest
        return entry

    def _closed(self, lane: Lane, head: Urgency) -> Container[NodeId]:
        """The nodes that are kept free for others, who are more urgent or have waited long enough."""
        # By priority and age alone: the submitter with the fewest slots could fill every gap anew, for ever.
        mine = (head[0], head[3])
        return [
            node for node, keeper, theirs in self._closures if keeper is not lane and (theirs is None or theirs < mine)
        ]

    def _reckon_closures(self, now: float) -> None:
        self._closures = []
        for node, keeper in self.kept.items():
            wide = keeper.head()
            if wide is not None and keeper.gap is not None and keeper.gap.node == node:
                is_for_all = now - keeper.gap.since >= KEPT_FROM_ALL_S
                self._closures.append((node, keeper, None if is_for_all else (wide[0], wide[3])))

    def _keep_gap(self, lane: Lane, now: float) -> None:
        """After a while keep less urgent tasks off one node, until one of these fits in there."""
        gap = lane.gap
        if gap is None:
            gap = lane.gap = Gap(now, now + PASSED_OVER_S)
            heapq.heappush(self._wide, (gap.look_at, id(lane), lane))
        if gap.node is not None or now < gap.look_at:
            return
        if len(self.kept) >= KEPT_MAX:
            self._crowded[lane] = None
            return
        able = [
            name
            for name, member in self._members.items()
            if member.takes_work and lane.suits(member) and name not in self.kept
        ]
        gap.node = min(able, key=lambda name: self._members[name].slots_held, default=None)
        if gap.node is None:
            gap.look_at = now + min(NO_NODE_MAX_S, max(PASSED_OVER_S, now - gap.since))
            heapq.heappush(self._wide, (gap.look_at, id(lane), lane))
        else:
            self.kept[gap.node] = lane
            self._reckon_closures(now)

    def _is_of_use(self, node: NodeId, lane: Lane, now: float) -> bool:
        """Whether this node, which is kept free for this lane, may still get one of its tasks before long."""
        if lane.gap is None or lane.gap.node != node:
            return False
        member = self._members.get(node)
        if member is None or not member.takes_work or not lane.suits(member):
            return False
        kernel = lane.demand.kernel
        opens_at = now if kernel is None else self._limits.opens_at(kernel, now)
        # One that runs may end at any time, and lest those that need less room be quicker for ever, the gap stays.
        return opens_at <= now + KEPT_FROM_ALL_S or (opens_at == NEVER and self._limits.held(kernel or "") > 0)

    def _give_up(self, node: NodeId, lane: Lane) -> None:
        """Keep it free no longer. The lane, if it still waits, seeks another."""
        del self.kept[node]
        self.room.roomier.note(node)
        if lane.gap is not None and lane.gap.node == node:
            lane.gap.node = None
            self._wake(lane)

    def check(self) -> Iterator[str]:
        """Every broken invariant, in words."""
        ready = [entry for entry in self._tasks.values() if entry.lanes]
        if len(ready) != self.count:
            yield f"{self.count} tasks are said to wait, {len(ready)} do"
        for demand, lane in self._lanes.items():
            count = sum(lane in entry.lanes for entry in ready)
            if count != lane.count:
                yield f"{demand}: {lane.count} tasks are said to wait, {count} do"
            on_shelf = any(lane in shelves for shelves in (self._shelves, *self._pinned.values()))
            if (
                lane.count
                and not on_shelf
                and not any(lane in some for some in (self._awake, *self._held_back.values()))
            ):
                yield f"{demand}: {lane.count} tasks wait, and nothing will wake them"
