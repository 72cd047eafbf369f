"""The leader's mind: which task goes to which node, and what becomes of tasks that cannot run.

It holds a picture of the tree (tasks, nodes, who was given what), is told of every change, and answers
with commands. It can be rebuilt from the tree at any time, which is what a new leader does:

    task:   WAITING (delay, back-off) -> READY -> ASSIGNED -> gone
                 ^-------------------------------------'  taken back, handed back, retried: its version moved on

A task is known by its id, its life (`czxid`: an id may be dropped again) and its version, which is the
fence: an assignment names the version, and only at that version can its holder end the task.

What it remembers is in `picture`, which ready task goes where in `queues`, what it answers in `commands`. Nothing
here loops over all nodes, tasks or submitters for one event or one turn: a cluster may have many of each.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import replace

import msgspec

from zkd.core import why
from zkd.core.admission import REFUSAL_TTL_S, Admission, Room
from zkd.core.catalogue import Catalogue, Strangers
from zkd.core.commands import (
    Assign,
    Command,
    End,
    Find,
    Look,
    LookUp,
    Mourn,
    Pin,
    Refuse,
    Spread,
    TakeBack,
)
from zkd.core.datasets import split_name
from zkd.core.dependencies import Dependencies
from zkd.core.limits import Gate, Limits
from zkd.core.partwork import Datasets, NoDatasets, PartWork, failed_part, fault_of, missing
from zkd.core.picture import IDLE, Entry, Member, Need, Phase, graded
from zkd.core.queues import Queues
from zkd.core.spreads import SPREAD_BYTES_MAX, child_ids, is_spread, parts_of
from zkd.core.stragglers import LATE_MIN_S, LOOK_AGAIN_S, Times
from zkd.errors import BadRecord
from zkd.paths import NAME_RULE, NodeId, TaskId, is_name
from zkd.records import (
    CHARGED,
    DATA_MISSES_MAX,
    NODE_LOSSES_MAX,
    Assigned,
    Attempt,
    Cause,
    Fault,
    Limit,
    Node,
    NodeState,
    Result,
    Status,
    Task,
)

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 30.0
# The holder of a deleted task kills its kernel (at most 2 s) and publishes `cancelled`. If the holder is lost
# in this time, the leader publishes in its place. To this comes the time after which a loss is known.
ORPHAN_GRACE_S = 3.0
# A list in assign/<node> may keep lines whose task is gone for this long. Under load the next assignment
# carries them off; else a write of their own does, and the node learns what was cancelled.
TRIM_S = 0.2
# A task waits for a node that it prefers at most so long when its turn has come; for one that has data of its, no
# longer than another node would take to fetch that.
PATIENCE_S = 0.3
FETCH_BYTES_A_S = 100e6
NEAR_MAX = 16
TIMERS_KEPT = 1_000  # so many may be of tasks that are gone; more only if more are of tasks that are not
CLOSE_NAMES = Limit(per_s=3, burst=3)  # to look for one takes 10 ms, and who sends nonsense sends much of it
ENDED_REMEMBERED = 50_000  # ids that ended in this reign: a second drop of one of them is looked up first


class Dispatch:
    """One reign of one leader. Every method takes what happened; `commands(now)` says what to do about it."""

    def __init__(self, me: NodeId, *, loss_s: float = 0.0, datasets: Datasets | None = None) -> None:
        """`loss_s`: how long after its last sign of life a node may count as here, the session timeout."""
        self.me = me
        self._orphan_grace_s = loss_s + ORPHAN_GRACE_S
        self.tasks: dict[TaskId, Entry] = {}
        self.members: dict[NodeId, Member] = {}
        self.states: dict[NodeId, NodeState] = {}
        self._catalogue = Catalogue()
        self._strangers = Strangers()
        self._close_names = Gate(CLOSE_NAMES, 0.0)
        self.limits = Limits()
        self.queues = Queues(me, self.tasks, self.members, self._catalogue, self.limits)
        self.dependencies = Dependencies(self.tasks)
        self.partwork = PartWork(datasets or NoDatasets(), self.tasks)
        self.queues.holders = self.partwork.holders
        self.times = Times()
        self._late: list[TaskId] = []
        self._found_lost: dict[TaskId, NodeId] = {}  # speculative tasks of lost nodes; another may hold them, too
        self._is_unsorted = False  # the lanes of what waits are to be chosen anew
        self._timers: list[tuple[float, int, TaskId]] = []
        self._timers_max = TIMERS_KEPT
        self._trims: dict[NodeId, float] = {}  # whose list is to be written again, and when; the next one first
        self._dirty: set[NodeId] = set()
        # What stands in assign/<node> for a former life of the node and is yet to be taken back: until then the list
        # is not overwritten, or a leader that is lost in between would leave nobody who knows of that attempt.
        self._owed: dict[NodeId, set[TaskId]] = {}
        self._out: list[Command] = []
        self._mourned: dict[TaskId, Mourn] = {}  # asked for, and not known to be done
        self.ended: dict[TaskId, float | None] = {}  # -> how long its result is to be kept
        self.admission = Admission(Room())
        self.inherited = 0  # tasks created up to this transaction were there before this picture

    # --- What happened ----------------------------------------------------------------------------------

    def task_read(
        self,
        task_id: TaskId,
        czxid: int,
        version: int,
        task: Task | BadRecord,
        *,
        age_s: float,
        now: float,
        size: int = 0,
        data: Mapping[NodeId, int] | None = None,
    ) -> None:
        """The task's znode, as it is now, and how many bytes of its arguments lie on which nodes.

        Telling the same thing twice changes nothing.
        """
        known = self.tasks.get(task_id)
        if known is not None and (czxid, version) <= (known.czxid, known.version):
            return
        if known is not None:
            self._leave(known, now)
            self._settled(known)
            self.partwork.moved(known)
        if not is_name(task_id):
            task = BadRecord("id", f"expected {NAME_RULE}, got {task_id[:140]!r}")
        if isinstance(task, BadRecord):
            self._end_unread(task_id, czxid, version, task)
            return
        entry = Entry(
            id=task_id,
            czxid=czxid,
            version=version,
            need=Need(task.kernel, task.node, tuple(sorted(task.labels.items())), task.slots, graded(task.memory)),
            priority=task.priority,
            retries=task.retries,
            attempts=task.attempts,
            submitter=task.submitter or "",
            is_speculative=task.speculative,
            near=tuple(task.prefer),
            patience_s=PATIENCE_S if task.prefer else 0.0,
            ttl_s=task.ttl_s,
            traceparent=task.traceparent,
            parent=task.parent,
        )
        if data and not task.prefer:
            most = max(data.values())
            entry.near = tuple(sorted(node for node, size in data.items() if 2 * size > most)[:NEAR_MAX])
            entry.patience_s = min(PATIENCE_S, most / FETCH_BYTES_A_S)
        self.tasks[task_id] = entry
        if not self._admit(entry, known, size):
            return
        if task.attempts:
            self._catalogue.seen.add(task.kernel)
        if task.not_after_s is not None:
            entry.expires_at = now + task.not_after_s - age_s
            self._set_timer(entry.expires_at, entry)
        entry.due_at = now + task.delay_s - age_s if task.delay_s else 0.0
        if task.attempts:
            entry.due_at = max(entry.due_at, now + pause_s(task.attempts))
        if task.parent is not None and not self.partwork.entered(entry):
            self._disown(entry, now)
        elif task.dataset is not None:
            self._begin_on_dataset(entry, task, now)
        else:
            self._begin(entry, task, now)

    def _begin(self, entry: Entry, task: Task, now: float) -> None:
        """All is known of it: it waits for its time, for others, or for a node."""
        if self.partwork.is_in_doubt:
            for child in self.partwork.known(entry):
                self._disown(self.tasks[child], now)
        if entry.phase is Phase.ASSIGNED:
            return  # a former leader had given it out, and nobody knew yet what it is
        entry.phase = Phase.READY
        if entry.due_at > now:
            entry.phase = Phase.WAITING
            self._set_timer(entry.due_at, entry)
        if task.after and not task.attempts:  # what was tried before had all that it waits for
            self._wait_for(entry, task.after, now)
        elif entry.due_at <= now:
            self._make_ready(entry)

    def _begin_on_dataset(self, entry: Entry, task: Task, now: float, *, is_sure: bool = False) -> None:
        """`is_sure`: its dataset was looked for just now."""
        name, version = split_name(task.dataset or "")
        manifest = self.partwork.datasets.manifest(name, version)
        if manifest is None and not is_sure:
            entry.phase = Phase.LOOKING
            self.partwork.ask(name, entry.id, task)
            return
        fault = missing(task, self.partwork.datasets) if manifest is None else fault_of(task, manifest)
        if fault is None and is_spread(task) and manifest is not None:
            fault = self._excess(task, len(parts_of(task, manifest.parts)))
        if sum(attempt.cause == "data" for attempt in task.attempts) >= DATA_MISSES_MAX:
            message = f"{DATA_MISSES_MAX} times a node did not have it: {task.attempts[-1].message}"
            fault = Fault("data", message, path="$.dataset")
        if fault is not None:
            if entry.phase is not Phase.ASSIGNED:  # else its holder will say so
                self._end(entry, "failed" if fault.kind == "data" else "rejected", fault, is_dead=fault.kind == "data")
            return
        assert manifest is not None
        if version is None:
            entry.phase = Phase.PINNING
            self._out.append(Pin(entry.id, entry.version, manifest.version))
            return
        self.partwork.placed(entry, task, manifest)
        self._begin(entry, task, now)

    def _excess(self, task: Task, parts: int) -> Fault | None:
        """Why a task cannot be done by so many children."""
        size = len(bytes(task.args)) + len(bytes(task.kwargs))
        if parts * size > SPREAD_BYTES_MAX:
            most = SPREAD_BYTES_MAX // parts
            message = (
                f"$.args: expected arguments of at most {most} bytes for {parts} parts, got {size}: "
                "pass large arguments by reference"
            )
            return Fault("task", message, path="$.args")
        if parts >= self.admission.room.tasks:
            message = f"expected fewer parts than the tasks that may wait, {self.admission.room.tasks}, got {parts}"
            return Fault("dataset", f"$.dataset: {message}", path="$.dataset")
        return None

    def dataset_read(self, name: str, now: float) -> None:
        """This dataset was read from the tree just now, as far as it is there."""
        for task_id, task in self.partwork.asked.pop(name, {}).items():
            entry = self.tasks.get(task_id)
            if entry is not None and (entry.phase is Phase.LOOKING or self._is_given_unknown(entry)):
                self._begin_on_dataset(entry, task, now, is_sure=True)
        for task_id in [*self.partwork.waiting]:
            entry = self.tasks[task_id]
            if entry.part is not None and entry.part.name == name and not self.partwork.is_there(entry.part):
                message = f"$.dataset: there is no version {entry.part.version} of the dataset {name} any more"
                self._end(entry, "rejected", Fault("dataset", message, path="$.dataset"))

    @staticmethod
    def _is_given_unknown(entry: Entry) -> bool:
        """It was found in the list of a node before it was known what it works on."""
        return entry.phase is Phase.ASSIGNED and entry.part is None and entry.family is None

    def datasets_changed(self) -> None:
        """Parts may belong to other nodes now."""
        self.partwork.are_moved = True

    def spread(self, task_id: TaskId, czxid: int, version: int, now: float) -> None:
        """Every child of this task is there, or has ended."""
        entry = self.tasks.get(task_id)
        if entry is None or (entry.czxid, entry.version) != (czxid, version) or entry.phase is not Phase.SPREADING:
            return
        assert entry.family is not None
        self.partwork.making.pop(task_id)
        entry.phase = Phase.WAITING
        entry.is_dependent = True
        self.dependencies.add(task_id, child_ids(entry.family.stem, entry.family.parts), now)

    def parent_missing(self, task_id: TaskId, now: float) -> None:
        """There is no such task, of which others say to be children."""
        for child in self.partwork.missed(task_id):
            self._disown(self.tasks[child], now)

    def _disown(self, entry: Entry, now: float) -> None:
        """Cancel a child: what it was to be a part of has gone, or is another by now."""
        if entry.phase is Phase.ENDING:
            return
        self._settled(entry)
        self._leave(entry, now)
        entry.phase = Phase.ENDING
        error = Fault("cancelled", f"the task that it was a part of, {entry.parent}, has gone or was changed")
        self._out.append(Refuse(_end_of(entry, "cancelled", error)))

    def _wait_for(self, entry: Entry, after: list[TaskId], now: float) -> None:
        cycle = self.dependencies.cycle(entry.id, after)
        if cycle is not None:
            way = " -> ".join(cycle if len(cycle) <= 10 else [*cycle[:5], "...", *cycle[-4:]])
            message = f"$.after: expected tasks that do not wait for this one, got {way}"
            self._end(entry, "rejected", Fault("task", message, path="$.after"))
            return
        entry.phase = Phase.WAITING
        entry.is_dependent = True
        self.dependencies.add(entry.id, after, now)

    def dependency_ended(self, task_id: TaskId, status: Status, now: float, result: Result | None = None) -> None:
        """A task that others wait for has this result."""
        for dependent in self.dependencies.ended(task_id):
            entry = self.tasks[dependent]
            if entry.family is not None and self.partwork.is_child(task_id, entry):
                if status != "done":
                    ended, fault = failed_part(entry, task_id, result, status)
                    self._end(entry, ended, fault, is_dead=ended == "failed")
                elif not self.dependencies.pending[dependent]:
                    self._gather(entry)
            elif status != "done":
                message = f"it was to run after {task_id}, which ended {status}"
                self._end(entry, "failed", Fault("dependency", message, path="$.after"), is_dead=True)
            elif not self.dependencies.pending[dependent] and entry.due_at <= now:
                self._make_ready(entry)

    def _gather(self, entry: Entry) -> None:
        """All children are done: what they gave is put together, by whoever has the kernel for that."""
        assert entry.family is not None
        entry.family.is_done = True
        entry.need = replace(entry.need, kernel=entry.family.gatherer)
        self._make_ready(entry)

    def dependency_open(self, task_id: TaskId, now: float) -> None:
        """A task that others wait for has no result yet."""
        self.dependencies.not_ended(task_id, now)

    def limit_set(self, kernel: str, limit: Limit | None, now: float) -> None:
        """What operators want of a kernel; None: nothing any more."""
        self._is_unsorted = self.limits.set(kernel, limit, now) or self._is_unsorted
        self.queues.limit_eased(kernel)

    def task_moved(self, task_id: TaskId) -> None:
        """The task's znode was rewritten; what it says now is yet to be read."""
        if task_id in self.tasks:
            self.tasks[task_id].has_moved = True

    def task_gone(self, task_id: TaskId, now: float) -> None:
        """The task's znode is no longer there: its holder ended it, or somebody cancelled it."""
        entry = self.tasks.pop(task_id, None)
        self.dependencies.gone(task_id, now)
        if entry is None:
            if task_id not in self.ended:  # it came and went before it was read: nobody else knows of it
                self._mourn(Mourn(task_id, 0, 0, [], None, None))
            return
        self.ended[task_id] = entry.ttl_s
        self._forget_size(entry)
        for child in self.partwork.left(entry):
            self._disown(self.tasks[child], now)
        if len(self.ended) > ENDED_REMEMBERED:
            del self.ended[next(iter(self.ended))]
        self._settled(entry)
        attempt = entry.attempt if entry.node else 0
        mourn = Mourn(entry.id, entry.czxid, attempt, entry.attempts, entry.ttl_s, entry.traceparent)
        # Nobody holds it, or whoever held it has lost it by the change of version and will not publish.
        if entry.phase in IDLE or entry.phase is Phase.ORPHANED or entry.has_moved:
            self._mourn(mourn)
        holders = [self.members[node] for node in entry.holders if entry.phase is Phase.ASSIGNED]
        self._leave(entry, now)
        if holders and not entry.has_moved:
            self.times.ended(entry.need.kernel, now - entry.given_at)
        for member in holders:
            member.pace.finished(now)
            member.ended.append((now, mourn))
            while member.ended[0][0] < now - self._orphan_grace_s:
                member.ended.popleft()

    def task_unreadable(self, task_id: TaskId, czxid: int, version: int, why: str, now: float) -> None:
        """The task is there and its content cannot be had, now that somebody has changed it."""
        if task_id in self.tasks:
            self._leave(self.tasks[task_id], now)
            self.partwork.moved(self.tasks[task_id])
        self._end_unread(task_id, czxid, version, BadRecord("$", f"expected a znode that zkd may read: {why}"))

    def task_unwritable(self, task_id: TaskId, version: int) -> None:
        """The task cannot be taken back: its attempts cannot be counted, so nobody may run it."""
        entry = self.tasks.get(task_id)
        if entry is not None and entry.version == version and entry.phase in (Phase.ORPHANED, Phase.PINNING):
            why = "$: expected a znode that zkd may write, to count its attempts: its ACL does not let it"
            self._settled(entry)
            self._end(entry, "rejected", Fault("task", why, path="$"))

    def node_here(self, record: Node, now: float) -> None:
        """A node's entry, new or changed."""
        known = self.members.get(record.node)
        if known is not None and known.record.incarnation != record.incarnation:
            self.node_lost(record.node, now)
            known = None
        if known is None:
            known = self.members[record.node] = Member(record, self.states.get(record.node, "active"))
            self.partwork.are_moved = True
            known.pace.at = now
            self._learn(known)
        elif known.record != record:
            is_other = _demanded(record) != _demanded(known.record)
            known.record = record
            if is_other:
                self._catalogue.left(known.kernels)
                self._learn(known)
                self.queues.room.roomier.forget()  # who suits whom may be another now
        self.queues.room.roomier.note(record.node)

    def _learn(self, member: Member) -> None:
        member.kernels = frozenset(member.record.kernels)
        member.memory = graded(member.record.memory)
        member.kind, is_new = self._catalogue.joined(member.kernels)
        if is_new and (self.queues or self._strangers):
            self._is_unsorted = True
        elif is_new:
            self.queues.clear()

    def not_seen(self, node: NodeId, tasks: Container[TaskId]) -> None:
        """The node was given these, and they went before it looked: it knows nothing of them."""
        member = self.members.get(node)
        for _, mourn in [] if member is None else member.ended:
            if mourn.id in tasks:
                self._mourn(mourn)

    def look_again(self) -> None:
        """Weigh all that waits anew. Nothing should be overlooked; should it be, it is not for ever."""
        self._is_unsorted = True

    def linger(self, node: NodeId, now: float) -> None:
        """Lines that stand in the list of this node beyond their time are to be taken out before long."""
        if node in self.members:
            self._trim(self.members[node], now)

    def node_lost(self, node: NodeId, now: float) -> None:
        """The node's session is over. What it held runs again elsewhere, if its budget allows."""
        member = self.members.pop(node, None)
        self._dirty.discard(node)
        self._trims.pop(node, None)
        if member is None:
            return
        self._catalogue.left(member.kernels)
        for entry in list(member.held.values()):
            self._unhold(entry, member)
            if entry.copy is not None:  # the other one goes on, by the same line
                entry.node, entry.copy = entry.copy if entry.node == node else entry.node, None
                self._watch(entry, now)
                continue
            # One that left in order stopped its kernels; that it had no time to hand a task back is no loss.
            self._lost_holder(entry, node, "drain" if member.record.draining else "node_loss")
        for at, mourn in member.ended:
            if at >= now - self._orphan_grace_s:
                self._mourn(mourn)

    def node_state(self, node: NodeId, state: NodeState) -> None:
        """What operators want of a node."""
        if state == "active":
            self.states.pop(node, None)  # as it is without a word; names come and go
        else:
            self.states[node] = state
        if node in self.members:
            self.members[node].state = state
            self.queues.room.roomier.note(node)

    def assignment_found(self, node: NodeId, incarnation: str, tasks: Iterable[Assigned], now: float) -> None:
        """What a former leader gave to a node; told once, after tasks and nodes are known."""
        member = self.members.get(node)
        if member is not None and member.record.incarnation != incarnation:
            member = None
        for assigned in tasks:
            entry = self.tasks.get(assigned.id)
            if entry is None or (entry.czxid, entry.version) != (assigned.czxid, assigned.version):
                if member is not None:  # cancelled or moved on while nobody led: the node has yet to hear of it
                    self._trim(member, now)
                continue
            if entry.phase is Phase.ASSIGNED and entry.is_speculative and member is not None and entry.copy is None:
                if entry.node != node:
                    self._lend(entry, member)
                continue
            if entry.phase not in IDLE:
                continue
            if member is None and entry.is_speculative:
                self._found_lost[entry.id] = node
            elif member is None:
                self._lost_holder(entry, node)
            else:
                self._give(entry, member, now)

    def succeed(self, former: Dispatch, there: Collection[TaskId]) -> None:
        """Take over from the picture before the connection was lost: what is gone and has no result was cancelled.

        Called when the nodes are known. The tree has no trace of a cancelled task, so only memory can tell of it.
        What its holder should mourn is mourned here, too: the holder may never have heard that it was given it.
        """
        for mourn in former._mourned.values():
            self._mourn(mourn)
        for member in former.members.values():
            for _, mourn in member.ended:
                self._mourn(mourn)
        for entry in former.tasks.values():
            if entry.id not in there:
                attempt = entry.attempt if entry.phase is Phase.ASSIGNED else 0
                self._mourn(Mourn(entry.id, entry.czxid, attempt, entry.attempts, entry.ttl_s, entry.traceparent))
        self.ended.update(former.ended)
        self._catalogue.seen |= former._catalogue.seen

    def mourned(self, task_id: TaskId) -> None:
        """The task that was to be mourned has a result now."""
        self._mourned.pop(task_id, None)

    def assigned(self, took_s: float) -> None:
        """A write of assignments was answered after so long."""
        self.queues.room.lead.wrote(took_s)

    # --- What to do -------------------------------------------------------------------------------------

    def commands(self, now: float) -> list[Command]:
        """Everything that is due now. Calling it again at the same moment gives nothing."""
        for task_id, node in self._found_lost.items():
            if task_id in self.tasks and self.tasks[task_id].phase in IDLE:
                self._lost_holder(self.tasks[task_id], node)
        self._found_lost.clear()
        self._fire_timers(now)
        self._refuse_strangers(now)
        self._spread_crowded()
        if self._is_unsorted:
            self._sort_anew()
        if self.partwork.are_moved:
            self._move_home()
        self._ask()
        self.queues.match(now, lambda entry, member: self._assign(entry, member, now))
        self._copy_late(now)
        looks = self.dependencies.due(now)
        if looks:
            self._out.append(Look(looks))
        out = self._out
        self._out = []
        for node in sorted(self._dirty):
            member = self.members[node]
            self._trims.pop(node, None)
            if node in self._owed:
                continue
            out.append(
                Assign(
                    node,
                    member.record.incarnation,
                    [entry.line for entry in member.held.values() if entry.line is not None],
                )
            )
        self._dirty.intersection_update(self._owed)
        return out

    def wants(self, task_id: TaskId) -> bool:
        """Whether the result of this task has to stay where it is: others are to run after it."""
        return task_id in self.dependencies or self.partwork.wants(task_id)

    def why(self, task_id: TaskId, now: float) -> str:
        """In words, what this task waits for; empty if there is no such task."""
        return why.tell(self, task_id, now)

    @property
    def has_waiting(self) -> bool:
        """Whether tasks wait for a node."""
        return bool(self.queues)

    def next_timer(self) -> float | None:
        """When to ask again even if nothing happens."""
        timers = (
            self._timers[0][0] if self._timers else None,
            next(iter(self._trims.values()), None),
            self._strangers.timer(),
            self.queues.timer(),
            self.dependencies.timer(),
        )
        return min((at for at in timers if at is not None), default=None)

    def _fire_timers(self, now: float) -> None:
        while self._trims:
            name, at = next(iter(self._trims.items()))
            if at > now:
                break
            del self._trims[name]
            self._dirty.add(name)
        while self._timers and self._timers[0][0] <= now:
            _, czxid, task_id = heapq.heappop(self._timers)
            entry = self.tasks.get(task_id)
            if entry is None or entry.czxid != czxid:
                continue
            if entry.phase is Phase.ASSIGNED and entry.is_speculative:
                self._watch(entry, now)
            if entry.phase not in IDLE:
                continue  # an assigned task's deadline is its holder's business
            if entry.expires_at is not None and entry.expires_at <= now:
                self._end(entry, "expired", Fault("expired", "not_after_s passed before the task was started"))
            elif entry.phase is Phase.WAITING and entry.due_at <= now and not self.dependencies.pending.get(task_id):
                self._make_ready(entry)

    # --- One task ---------------------------------------------------------------------------------------

    def _make_ready(self, entry: Entry) -> None:
        entry.phase = Phase.READY
        entry.node = None
        self._queue(entry)

    def _admit(self, entry: Entry, known: Entry | None, size: int) -> bool:
        """Count this task among what waits or runs; or refuse it, if nobody has begun it and it is too much."""
        is_arrival = known is None or known.size is None or known.czxid != entry.czxid
        if known is not None:
            self._forget_size(known)
        # One that was tried, or put back after it was dead, was in before, and has a version. Attempts of one that has
        # none are made up.
        if is_arrival and entry.version == 0 and entry.parent is None:  # a child was weighed with its parent
            fault = self.admission.refusal(entry.submitter, size, was_there=entry.czxid <= self.inherited)
            if fault is not None:
                entry.phase = Phase.ENDING
                entry.ttl_s = REFUSAL_TTL_S
                self._out.append(Refuse(replace(_end_of(entry, "rejected", fault), attempt=0, attempts=[])))
                return False
        self.admission.enter(entry.submitter, size)
        entry.size = size
        return True

    def _forget_size(self, entry: Entry) -> None:
        if entry.size is not None:
            self.admission.leave(entry.submitter, entry.size)
            entry.size = None

    def _queue(self, entry: Entry) -> None:
        kernel = entry.need.kernel
        if kernel in self._catalogue.seen and entry.part is None and entry.family is None:
            self.queues.push(entry)
            return
        for kernel in entry.kernels:
            if kernel not in self._catalogue.seen:
                self._strangers.add(kernel, entry.id)
                return
        if entry.part is not None:
            self.partwork.waiting[entry.id] = None
            entry.homes = self.partwork.homes(entry.part)
        if entry.family is not None and not entry.family.is_done:
            self._spread(entry)
        else:
            self.queues.push(entry)

    def _spread(self, entry: Entry) -> None:
        """Have the children dropped, if there is room for them now."""
        assert entry.family is not None
        making, parts = sum(self.partwork.making.values()), len(entry.family.parts)
        if self.admission.total.tasks + making + parts > self.admission.room.tasks:
            self.partwork.crowded[entry.id] = None
            return
        self.partwork.crowded.pop(entry.id, None)
        self.partwork.making[entry.id] = parts
        entry.phase = Phase.SPREADING
        self._out.append(Spread(entry.id, entry.czxid, entry.version, entry.family.stem, entry.family.parts))

    def _spread_crowded(self) -> None:
        for task_id in list(self.partwork.crowded):
            entry = self.tasks[task_id]
            self._spread(entry)
            if entry.phase is Phase.READY:
                return  # in turn, or a large one would never find room

    def _move_home(self) -> None:
        """Queue what is bound to parts for the nodes that these belong to now."""
        self.partwork.are_moved = False
        for task_id in list(self.partwork.waiting):
            entry = self.tasks[task_id]
            assert entry.part is not None
            if not self.partwork.is_there(entry.part):
                self.partwork.ask(entry.part.name)
            elif self.queues.is_misplaced(entry, self.partwork.homes(entry.part)):
                if entry.lanes:
                    self.queues.leave(entry)
                self._queue(entry)

    def _ask(self) -> None:
        """Have looked at what is not in the picture."""
        self._out.extend(LookUp(name) for name in self.partwork.to_look)
        self.partwork.to_look.clear()
        if self.partwork.to_find:
            self._out.append(Find(list(self.partwork.to_find)))
            self.partwork.to_find.clear()

    def _sort_anew(self) -> None:
        self._is_unsorted = False
        self._strangers.take_all()
        self.queues.clear()
        for entry in self.tasks.values():
            if entry.phase is Phase.READY:
                entry.lanes = ()
                self._queue(entry)

    def _assign(self, entry: Entry, member: Member, now: float) -> None:
        self.limits.started(entry.need.kernel, now)
        self._give(entry, member, now)
        self._dirty.add(member.record.node)

    def _give(self, entry: Entry, member: Member, now: float) -> None:
        self._leave(entry, now)
        entry.phase = Phase.ASSIGNED
        entry.node = member.record.node
        entry.line = Assigned(entry.id, entry.czxid, entry.version, entry.attempt)
        entry.given_at = now
        self._hold(entry, member)
        if entry.is_speculative:
            self._set_timer(now + LATE_MIN_S, entry)

    def _hold(self, entry: Entry, member: Member) -> None:
        member.hold(entry)
        self.queues.submitters.gave(entry.submitter, entry.need.slots)
        self.limits.gave(entry.need.kernel)

    def _lend(self, entry: Entry, member: Member) -> None:
        """Have a second node hold it, too: the same life, version and attempt, so that one of them can end it."""
        entry.copy = member.record.node
        self._hold(entry, member)

    def _watch(self, entry: Entry, now: float) -> None:
        """See whether it is late; if not, look again when it would be."""
        if entry.copy is not None or entry.has_moved:
            return
        late_after_s = self.times.late_after_s(entry.need.kernel)
        late_at = now + LOOK_AGAIN_S if late_after_s is None else entry.given_at + late_after_s
        if late_at <= now:
            self._late.append(entry.id)
        else:
            self._set_timer(late_at, entry)

    def _copy_late(self, now: float) -> None:
        """Give late tasks to a second node each, where that has slots that nobody waits for."""
        late, self._late = self._late, []
        for task_id in late:
            entry = self.tasks.get(task_id)
            if entry is None or entry.phase is not Phase.ASSIGNED or entry.copy is not None or entry.has_moved:
                continue
            # A list that is owed is not written before what it says of a former life is settled.
            member = self.queues.spare(entry, now, [*entry.holders, *self._owed])
            if member is None:
                self._set_timer(now + LOOK_AGAIN_S, entry)
                continue
            self.limits.started(entry.need.kernel, now)
            self._lend(entry, member)
            self.queues.room.took(member.record.node, entry.need.slots)
            self._dirty.add(member.record.node)

    def _leave(self, entry: Entry, now: float) -> None:
        """Take the entry out of the queue, or out of the lists of its holders."""
        self._end_wait(entry)
        for node in entry.holders:
            member = self.members.get(node)
            if member is not None and member.held.get(entry.id) is entry:
                self._unhold(entry, member)
                self._trim(member, now)
        entry.copy = None

    def _unhold(self, entry: Entry, member: Member) -> None:
        member.let_go(entry)
        self.queues.room.roomier.note(member.record.node)
        self.queues.submitters.released(entry.submitter, entry.need.slots)
        self.limits.released(entry.need.kernel)
        self.queues.limit_eased(entry.need.kernel)

    def _trim(self, member: Member, now: float) -> None:
        """Have the list of this node written again before long."""
        self._trims.setdefault(member.record.node, now + TRIM_S)

    def _lost_holder(self, entry: Entry, node: NodeId, cause: Cause = "node_loss") -> None:
        losses = 1 + sum(attempt.cause == "node_loss" for attempt in entry.attempts)
        attempt = Attempt(cause, node, f"{node} was {'drained' if cause == 'drain' else 'lost'} while it held the task")
        if cause == "node_loss" and losses > NODE_LOSSES_MAX:
            entry.attempts = [*entry.attempts, attempt]
            fault = Fault("node_loss", f"{losses} nodes were lost while they held the task, the last was {node}")
            self._end(entry, "failed", fault, is_dead=True)
            return
        self._end_wait(entry)
        entry.phase = Phase.ORPHANED
        entry.node = None
        entry.lost_by = node
        self._owed.setdefault(node, set()).add(entry.id)
        self._out.append(TakeBack(entry.id, entry.version, attempt))

    def _settled(self, entry: Entry) -> None:
        """The entry is no orphan any more."""
        if entry.lost_by is not None:
            owed = self._owed[entry.lost_by]
            owed.remove(entry.id)
            if not owed:
                del self._owed[entry.lost_by]
            entry.lost_by = None

    def _mourn(self, mourn: Mourn) -> None:
        self._mourned[mourn.id] = mourn
        self._out.append(mourn)

    def _refuse_strangers(self, now: float) -> None:
        known: list[str] | None = None
        for kernel, tasks in self._strangers.refused(now, is_anyone_here=bool(self.members)):
            if kernel in self._catalogue.seen:  # by a task of it that was tried before: its node is restarting
                self._is_unsorted = True
                continue
            known = known or self._catalogue.here()
            close = None
            if self._close_names.open_at <= now:
                self._close_names.started(now)
                close = closest(kernel, known)
            message = (
                f"no node has a kernel {kernel!r}{f', did you mean {close!r}?' if close else ''}"
                f" (`zkd get kernels` lists the {len(known)} there are)"
            )
            for task_id in dict.fromkeys(tasks):
                entry = self.tasks.get(task_id)
                if entry is not None and entry.phase is Phase.READY and kernel in entry.kernels:
                    place = "$.kernel" if kernel == entry.need.kernel else "$.combine"
                    self._end(entry, "rejected", Fault("kernel", message, path=place))

    def _end_wait(self, entry: Entry) -> None:
        """It waits no longer, in a lane or for other tasks."""
        if entry.lanes:
            self.queues.leave(entry)
        if entry.is_dependent:
            entry.is_dependent = False
            self.dependencies.forget(entry.id)
        if entry.part is not None or entry.family is not None:
            self.partwork.waits_no_longer(entry.id)

    def _end(self, entry: Entry, status: Status, error: Fault, *, is_dead: bool = False) -> None:
        self._end_wait(entry)
        entry.phase = Phase.ENDING
        # A child is dead with its parent, which can be put back; it alone cannot.
        self._out.append(_end_of(entry, status, error, is_dead=is_dead and entry.parent is None))

    def _end_unread(self, task_id: TaskId, czxid: int, version: int, bad: BadRecord) -> None:
        if task_id in self.tasks:
            self._forget_size(self.tasks[task_id])
            self._settled(self.tasks[task_id])
        need = Need("", None, (), 1, None)
        self.tasks[task_id] = entry = Entry(task_id, czxid, version, need, 0, 0, [])
        self._end(entry, "rejected", Fault("task", str(bad), path=bad.where))

    def _set_timer(self, at: float, entry: Entry) -> None:
        heapq.heappush(self._timers, (at, entry.czxid, entry.id))
        if len(self._timers) > self._timers_max:
            # Of tasks that ended long before: a deadline of a day would stand here for a day.
            self._timers = [timer for timer in self._timers if self._is_life(timer[2], timer[1])]
            heapq.heapify(self._timers)
            self._timers_max = max(TIMERS_KEPT, 2 * len(self._timers))

    def _is_life(self, task_id: TaskId, czxid: int) -> bool:
        entry = self.tasks.get(task_id)
        return entry is not None and entry.czxid == czxid

    def sizes(self) -> dict[str, int]:
        """How much of each there is to remember, for those who watch whether it grows."""
        return {
            "tasks": len(self.tasks),
            "queued": self.queues.size(),
            "shelved": self.queues.shelved(),
            "timers": len(self._timers) + len(self._trims),
            "ended": len(self.ended),
            "mourned": len(self._mourned),
            "members": len(self.members),
            "states": len(self.states),
            "owed": sum(map(len, self._owed.values())),
            "dependents": len(self.dependencies.pending),
            "partwork": self.partwork.size(),
        }

    def check(self) -> Iterator[str]:
        """Every broken invariant, in words. Tests call this after each step."""
        for name, member in self.members.items():
            held = sum(entry.need.slots for entry in member.held.values())
            if held != member.slots_held:
                yield f"{name}: slots_held is {member.slots_held}, its tasks need {held}"
            memory = sum(entry.need.memory or 0 for entry in member.held.values())
            if memory != member.memory_held:
                yield f"{name}: memory_held is {member.memory_held}, its tasks need {memory}"
            for entry in member.held.values():
                if name not in entry.holders or entry.phase is not Phase.ASSIGNED:
                    yield f"{name} holds {entry.id}, which is {entry.phase} on {entry.holders}"
        for entry in self.tasks.values():
            if entry.phase is Phase.ASSIGNED and entry.node is None:
                yield f"{entry.id} is assigned to nobody"
            for node in entry.holders:
                if entry.phase is Phase.ASSIGNED and entry.id not in self.members[node].held:
                    yield f"{entry.id} is assigned to {node}, which does not hold it"
            if entry.copy is not None and (entry.copy == entry.node or not entry.is_speculative):
                yield f"{entry.id} has a second copy on {entry.copy}, beside {entry.node}"
        owed = {(entry.lost_by, entry.id) for entry in self.tasks.values() if entry.phase is Phase.ORPHANED}
        if owed != {(node, task_id) for node, task_ids in self._owed.items() for task_id in task_ids}:
            yield f"{owed} are to be taken back, and {self._owed} is remembered"
        admitted = sum(entry.size is not None for entry in self.tasks.values())
        if admitted != self.admission.total.tasks:
            yield f"{admitted} tasks were admitted, and {self.admission.total.tasks} are counted"
        for entry in self.tasks.values():
            if bool(entry.lanes) and entry.phase is not Phase.READY:
                yield f"{entry.id} is {entry.phase}, and waits in a lane"
            if entry.is_dependent != (entry.id in self.dependencies.pending):
                yield f"{entry.id} waits for others: {entry.is_dependent}, which they know otherwise"
        yield from self.dependencies.check(self.tasks)
        yield from self.partwork.check(self.tasks)
        yield from self.queues.check()
        counted: Counter[str] = Counter()
        running: Counter[str] = Counter()
        for member in self.members.values():
            for entry in member.held.values():
                counted[entry.submitter] += entry.need.slots
                running[entry.need.kernel] += 1
        if counted != self.queues.submitters.held():
            yield f"submitters hold {dict(counted)}, and are said to hold {self.queues.submitters.held()}"
        if any(self.limits.held(kernel) != count for kernel, count in running.items()):
            yield f"of kernels are held {dict(running)}, which the limits do not know"


def _end_of(entry: Entry, status: Status, error: Fault, *, is_dead: bool = False) -> End:
    return End(
        entry.id,
        entry.czxid,
        entry.version,
        status,
        error,
        entry.need.kernel or None,
        entry.attempt - 1,
        entry.attempts,
        entry.ttl_s,
        entry.traceparent,
        is_dead,
    )


def _demanded(record: Node) -> Node:
    """What of it tells who suits whom."""
    return msgspec.structs.replace(record, draining=False, missed=[])


def pause_s(attempts: list[Attempt]) -> float:
    """The wait after these attempts. A part that is missing is on its way, most likely: it is tried for ever slower."""
    last = attempts[-1].cause
    if last in CHARGED:
        return backoff_s(sum(attempt.cause in CHARGED for attempt in attempts))
    return backoff_s(sum(attempt.cause == "data" for attempt in attempts)) if last == "data" else 0.0


def backoff_s(charged: int) -> float:
    """The wait before the attempt after this many charged ones: it doubles, up to a bound."""
    return float(min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (charged - 1)))


def closest(name: str, known: list[str]) -> str | None:
    import difflib

    found = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return found[0] if found else None
