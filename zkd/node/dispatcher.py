"""The leader's hands: tells `zkd.core.dispatch` what happens in the tree, and does what it says.

Everything is read once and watched afterwards: one recursive watch each on tasks/, on nodes/, on what operators
want of nodes, and on the limits of kernels. An event only names a path; what stands there is read, many paths to
a packet. After every reconnect the picture is thrown away and made anew from the tree, because watches do not
replay.

All writes carry the epoch check, so a deposed leader cannot change anything. A write that is refused
because a task has moved on needs no answer here: the same change is on its way as an event.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

import msgspec
from structlog.typing import FilteringBoundLogger as Log

from zkd import children, codec
from zkd.core.admission import KIND as OVERLOADED
from zkd.core.admission import Room
from zkd.core.clock import ServerClock
from zkd.core.commands import Assign, End, Find, Look, LookUp, Mourn, Pin, Refuse, Spread, TakeBack
from zkd.core.dispatch import Dispatch
from zkd.core.lists import Lists
from zkd.core.partwork import Datasets
from zkd.core.spreads import pinned
from zkd.endings import Ending, Endings, cancelled, timestamp
from zkd.errors import (
    BadRecord,
    MultiFailed,
    NoAuth,
    NoNode,
    OutcomeUnknown,
    SessionExpired,
    Unavailable,
    ZooKeeperError,
)
from zkd.holder.inputs import data_by_node
from zkd.leading import Deposed, lead
from zkd.paths import NodeId, Paths, TaskId, is_name, leaf
from zkd.records import Assignment, Dead, Limit, Node, OperatorState, Result, Task
from zkd.zk import Check, Create, Delete, Event, EventType, Session, SetData, Stat, State, Znode, ensure_path

READ_AT_ONCE = 100
READS_IN_FLIGHT = 8  # a read waits behind the writes of its session: with two, 200 tasks a write was all it read
READ_AT_ONCE_FIRST = 16  # until their size is known: a reply has no limit at the server
REPLY_BYTES = 2_000_000
# A change of state is told at once; this is for what a watch missed, and costs one list of children.
RECONCILE_S = 20.0
# Sooner when tasks wait and none has ended for so long, and twice as late each time that finds nothing: the ends of
# tasks that were hidden since they were given out are among what is missed, and a slot is taken by each.
STALLED_S = 1.0
# A transaction of assignments. A node with all slots full, and the work ahead of it, has a list below 800 kB.
ASSIGN_BYTES = 200_000
SLOTS_MAX = 4096
MOURNED_UNSEEN_MAX = 8  # so many cancelled tasks get their results without a look whether these are there
REFUSED_AT_ONCE = 50  # two operations each
REFUSALS_TOLD_S = 1.0  # a flood is one line a second in the log
# Tasks just read, kept so that the leader's own node need not read them again. The first ones stay: they go first.
FRESH_MAX = 10_000
FRESH_BYTES_MAX = 1024


class Fresh(NamedTuple):
    """A task as the leader read it, ready for its own node's executor."""

    task: Task
    stat: Stat


class Dispatcher:
    def __init__(
        self,
        session: Session,
        paths: Paths,
        node: NodeId,
        endings: Endings,
        clock: ServerClock,
        log: Log,
        hand_over: Callable[[Assignment, dict[TaskId, Fresh]], None],
        room: Callable[[], Room] = Room,
        datasets: Datasets | None = None,
        look_up: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """`datasets` is this node's picture of them, `look_up` reads one of them from the tree into it."""
        self._session = session
        self._paths = paths
        self._node = node
        self._endings = endings
        self._clock = clock
        self._log = log
        self._hand_over = hand_over  # our own node's share goes to its executor directly
        self._room = room
        self._datasets = datasets
        self._look_up = look_up
        self._refusals_told = (0, 0.0)  # how many there were, and when
        self._events: list[Event] = []
        self._wake = asyncio.Event()
        self._to_read: OrderedDict[TaskId, None] = OrderedDict()
        self._backlog: OrderedDict[TaskId, None] = OrderedDict()  # to read too: what was there when we began
        self._reads = asyncio.Event()
        self._reading: dict[TaskId, bool] = {}  # on its way -> was it deleted meanwhile
        self._read_at_once = READ_AT_ONCE_FIRST
        self._has_progress = False  # a task has ended since we looked last
        self._fresh: OrderedDict[TaskId, Fresh] = OrderedDict()
        # Lives that a write found gone. A write is answered by the ensemble, a read by one server, which may have
        # missed the deletion for good (3.8.0 does after some crashes): where the two differ, the write is right.
        self._ghosts: set[int] = set()
        self._lists = Lists()
        self.mind: Dispatch | None = None
        self._last: tuple[int, Dispatch] | None = None  # our last reign's epoch, and the picture at its end

    def datasets_changed(self) -> None:
        """The picture of the datasets is another: parts may belong to other nodes."""
        if self.mind is not None:
            self.mind.datasets_changed()
            self._wake.set()

    def sizes(self) -> dict[str, int]:
        """How much the leader remembers, in mind and hands."""
        hands = {
            "to_read": len(self._to_read) + len(self._backlog),
            "reading": len(self._reading),
            "fresh": len(self._fresh),
        }
        return hands | (self.mind.sizes() if self.mind is not None else {})

    async def lead(self, session_id: int, epoch: int, check: Check) -> None:
        """One reign. Ends when the epoch is over; cancelled when the session is."""
        if self._last is not None and self._last[0] == epoch - 1:
            self.mind = self._last[1]  # nobody led in between: what waited then and is gone was cancelled
        paths = self._paths
        try:
            await lead(
                lambda: self._reign(session_id, epoch, check),
                self._session,
                self._log,
                "dispatch",
                watched=[paths.tasks, paths.nodes, paths.node_states, paths.limits],
                saw=self._saw,
                woken=self._wake.set,
                directories=paths.skeleton(),
            )
        finally:
            self._last = None if self.mind is None else (epoch, self.mind)
            self.mind = None
            self._events.clear()

    async def _reign(self, session_id: int, epoch: int, check: Check) -> None:
        """Lead over one unbroken connection."""
        connection = self._session.epoch
        self._events.clear()
        self._to_read.clear()
        self._backlog.clear()
        self._reading.clear()
        self._fresh.clear()
        self._lists = Lists()
        # The timeout of the others is most likely the same.
        mind = Dispatch(self._node, loss_s=self._session.timeout_s, datasets=self._datasets)
        await self._catch_up(session_id, check)
        await self._load(mind)
        self.mind = mind
        errors: list[Exception] = []
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read_tasks(mind, group))
                await self._decide(mind, group, connection, session_id, epoch, check)
        except* (ZooKeeperError, Deposed) as several:
            errors.extend(several.exceptions)
        current = asyncio.current_task()
        if current is not None and current.cancelling():  # a group that has errors of its own forgets a cancellation
            raise asyncio.CancelledError
        if any(isinstance(error, (SessionExpired, Deposed)) for error in errors):
            raise Deposed
        for error in errors:
            if not isinstance(error, (Unavailable, OutcomeUnknown)):
                raise error
        raise Unavailable(self._paths.tasks, "the connection was lost while leading")

    async def _catch_up(self, session_id: int, check: Check) -> None:
        """Read nothing older than what we wrote ourselves before the connection was lost.

        The server that we came back to may lag behind, and the answer to our last write, which would have told that,
        may be lost: then a list in assign/ reads as it was before, and what it gave out would be given out again. A
        write is answered once the server has caught up with it.
        """
        try:
            await self._session.multi([check], within=session_id)
        except MultiFailed:
            raise Deposed from None

    # --- Knowing ----------------------------------------------------------------------------------------

    async def _load(self, mind: Dispatch) -> None:
        """The picture from the tree: nodes, what they hold, then everything that waits."""
        now = self._now()
        for node, got in await self._read_all(self._paths.node_states):
            self._node_state(mind, node, got.data)
        for kernel, got in await self._read_all(self._paths.limits):
            self._limit(mind, kernel, got.data, now)
        for node, got in await self._read_all(self._paths.nodes):
            self._node_here(mind, node, got, now)
        given = []
        for node, got in await self._read_all(self._paths.assignments):
            try:
                given.append((node, codec.decode(got.data, Assignment)))
            except BadRecord as error:
                self._log.warning("assignment.unreadable", node=node, error=str(error))
        held = {assigned.id for _, assignment in given for assigned in assignment.tasks}
        waiting, stat = await self._session.children_stat(self._paths.tasks)
        mind.inherited = stat.pzxid
        if self.mind is not None:
            mind.succeed(self.mind, set(waiting))
        first = [task_id for task_id in waiting if task_id in held]
        while first:
            some, first = first[: self._read_at_once], first[self._read_at_once :]
            await self._read(mind, some)
        for node, assignment in given:
            mind.assignment_found(node, assignment.incarnation, assignment.tasks, now)
            if node == self._node:  # our executor may have read its list from a server that lagged behind
                self._hand_over(assignment, self._fresh)
        for task_id in waiting:
            if task_id not in mind.tasks:
                self._backlog[task_id] = None
        self._reads.set()
        self._log.info("dispatch.loaded", tasks=len(waiting), nodes=len(mind.members), held=len(held))

    async def _read_all(self, directory: str) -> list[tuple[str, Znode]]:
        names = await self._session.children(directory)
        found = []
        for start in range(0, len(names), READ_AT_ONCE):
            some = names[start : start + READ_AT_ONCE]
            for name, got in zip(some, await self._session.get_many([f"{directory}/{n}" for n in some]), strict=True):
                if not isinstance(got, ZooKeeperError):
                    found.append((name, got))
        return found

    def _saw(self, event: Event) -> None:
        self._events.append(event)
        self._wake.set()

    def _take_events(self, mind: Dispatch, group: asyncio.TaskGroup) -> None:
        events, self._events = self._events, []
        mind.admission.room = self._room()
        now = self._now()
        tasks = f"{self._paths.tasks}/"
        for event in events:
            path = event.path
            if path.startswith(tasks):
                task_id = path[len(tasks) :]
                if "/" in task_id:
                    if event.type is EventType.CREATED:
                        self._log.warning("task.has_child", path=path)
                elif event.type is EventType.DELETED:
                    self._has_progress = True
                    self._to_read.pop(task_id, None)
                    self._backlog.pop(task_id, None)
                    self._fresh.pop(task_id, None)
                    if task_id in self._reading:
                        self._reading[task_id] = True  # whatever the read brings is older than this
                    else:
                        mind.task_gone(task_id, now)
                elif event.type is not EventType.CHILDREN:
                    if event.type is EventType.CHANGED:
                        mind.task_moved(task_id)
                    self._backlog.pop(task_id, None)
                    self._to_read[task_id] = None
            elif event.type is EventType.DELETED:
                if path.startswith(f"{self._paths.nodes}/"):
                    node = leaf(path)
                    self._log.info("node.lost", lost=node)
                    mind.node_lost(node, now)
                    self._lists.forget(node)
                elif path.startswith(f"{self._paths.node_states}/"):
                    mind.node_state(leaf(path), "active")
                elif path.startswith(f"{self._paths.limits}/"):
                    mind.limit_set(leaf(path), None, now)
                else:
                    raise NoNode(path, "a directory was deleted")
            elif event.type is not EventType.CHILDREN:
                group.create_task(self._read_node(mind, path))
        if self._to_read:
            self._reads.set()

    async def _read_node(self, mind: Dispatch, path: str) -> None:
        try:
            got = await self._session.get(path)
        except NoNode:
            return  # it went; that is an event of its own
        except NoAuth as error:
            self._log.warning("node.unreadable", unreadable=leaf(path), error=str(error))
            return
        if path.startswith(f"{self._paths.node_states}/"):
            self._node_state(mind, leaf(path), got.data)
        elif path.startswith(f"{self._paths.limits}/"):
            self._limit(mind, leaf(path), got.data, self._now())
        elif path.startswith(f"{self._paths.nodes}/"):
            self._node_here(mind, leaf(path), got, self._now())
        self._wake.set()

    def _node_here(self, mind: Dispatch, node: NodeId, got: Znode, now: float) -> None:
        try:
            record = codec.decode(got.data, Node)
            if not got.stat.ephemeral_owner:  # of a restored tree, say: no session, no node, and it would take work
                raise BadRecord("$", "expected an ephemeral znode")
            if record.node != node or not 1 <= record.slots <= SLOTS_MAX:
                raise BadRecord(
                    "$.node", f"expected {node!r} with 1 to {SLOTS_MAX} slots, got {record.node!r} with {record.slots}"
                )
        except BadRecord as error:
            self._log.warning("node.unreadable", unreadable=node, error=str(error))
            return
        if node not in mind.members or mind.members[node].record.incarnation != record.incarnation:
            self._log.info("node.seen", seen=node, slots=record.slots, incarnation=record.incarnation)
            self._lists.forget(node)
        known = mind.members.get(node)
        told = known.record.missed if known is not None and known.record.incarnation == record.incarnation else []
        mind.node_here(record, now)
        for read, then in record.missed:
            if (read, then) not in told:
                unseen = self._lists.unseen(node, read, then)
                self._log.info("node.missed_lists", by=node, read=read, then=then, tasks=len(unseen))
                mind.not_seen(node, unseen)

    def _node_state(self, mind: Dispatch, node: NodeId, data: bytes) -> None:
        try:
            mind.node_state(node, codec.decode(data, OperatorState).state)
        except BadRecord as error:
            self._log.warning("node.state_unreadable", of=node, error=str(error))

    def _limit(self, mind: Dispatch, kernel: str, data: bytes, now: float) -> None:
        try:
            mind.limit_set(kernel, codec.decode(data, Limit), now)
        except BadRecord as error:
            self._log.warning("limit.unreadable", of=kernel, error=str(error), next="the last good one stays")

    async def _read_tasks(self, mind: Dispatch, group: asyncio.TaskGroup) -> None:
        """Read what events named, several packets at once, so that reading never waits for deciding."""
        room = asyncio.Semaphore(READS_IN_FLIGHT)

        async def read(some: list[TaskId]) -> None:
            try:
                await self._read(mind, some)
            finally:
                room.release()
            self._wake.set()

        while True:
            await self._reads.wait()
            await room.acquire()
            some: list[TaskId] = []
            # Half of each packet for either: what comes must not wait until a new leader has read all there was.
            for source, most in ((self._to_read, -(-self._read_at_once // 2)), (self._backlog, self._read_at_once)):
                while source and len(some) < most:
                    some.append(source.popitem(last=False)[0])
            while self._to_read and len(some) < self._read_at_once:
                some.append(self._to_read.popitem(last=False)[0])
            if not self._to_read and not self._backlog:
                self._reads.clear()
            if some:
                group.create_task(read(some))
            else:
                room.release()

    async def _read(self, mind: Dispatch, task_ids: list[TaskId]) -> None:
        paths = self._paths
        self._reading.update(dict.fromkeys(task_ids, False))
        found = await self._session.get_many([paths.task(task_id) for task_id in task_ids])
        now = self._now()
        size = sum(len(got.data) for got in found if not isinstance(got, ZooKeeperError))
        fitting = REPLY_BYTES // max(1, size // len(found))
        self._read_at_once = max(1, min(READ_AT_ONCE, fitting, 2 * self._read_at_once))
        for task_id, got in zip(task_ids, found, strict=True):
            if isinstance(got, NoNode):
                mind.task_gone(task_id, now)
            elif isinstance(got, NoAuth):
                # `exists` needs no permission, and deleting is a right on the directory, which is ours.
                stat = await self._session.exists(paths.task(task_id))
                self._log.warning("task.unreadable", id=task_id, error=str(got))
                if stat is not None:
                    mind.task_unreadable(task_id, stat.czxid, stat.version, "its ACL does not let zkd read it", now)
            elif isinstance(got, ZooKeeperError):
                raise got
            elif got.stat.czxid in self._ghosts:
                self._log.error("task.ghost", id=task_id, server=self._session.server, because="this server missed it")
            else:
                if task_id in mind.ended and await self._is_answered(task_id, got.stat):
                    del self._reading[task_id]
                    continue
                task = self._decode(task_id, got.data)
                age_s = self._clock.age_s(got.stat.ctime, now, got.stat.czxid)
                data = data_by_node(task) if b'"blob"' in got.data and isinstance(task, Task) else None
                life, size = (got.stat.czxid, got.stat.version), len(got.data)
                mind.task_read(task_id, *life, task, age_s=age_s, now=now, size=size, data=data)
                if isinstance(task, Task) and len(got.data) <= FRESH_BYTES_MAX and len(self._fresh) < FRESH_MAX:
                    self._fresh[task_id] = Fresh(task, got.stat)
            if self._reading.pop(task_id, False):
                mind.task_gone(task_id, now)

    def _decode(self, task_id: TaskId, data: bytes) -> Task | BadRecord:
        try:
            return codec.decode_task(data)
        except BadRecord as error:
            self._log.info("task.rejected", id=task_id[:140], error=str(error))
            return error

    async def _is_answered(self, task_id: TaskId, stat: Stat) -> bool:
        """An id that was dropped again while its result is kept is answered by that result."""
        if await self._session.exists(self._paths.result(task_id)) is None:
            return False
        self._log.info("task.answered_already", id=task_id)
        try:
            await self._session.delete(self._paths.task(task_id), stat.version)
        except ZooKeeperError as error:
            self._log.info("task.not_deleted", id=task_id, error=str(error))
        return True

    # --- Acting -----------------------------------------------------------------------------------------

    async def _decide(
        self,
        mind: Dispatch,
        group: asyncio.TaskGroup,
        connection: int,
        session_id: int,
        epoch: int,
        check: Check,
    ) -> None:
        """Decide as things happen; one write of assignments is on its way at a time, and carries all that is due."""
        stalled_s = STALLED_S
        progress_at = reconciled_at = self._now()
        while True:
            self._wake.clear()
            if self._session.epoch != connection or self._session.state is not State.CONNECTED:
                raise Unavailable(self._paths.tasks, "the connection changed")
            self._take_events(mind, group)
            assigns: list[Assign] = []
            mourns: list[Mourn] = []
            refused: list[End] = []
            for command in mind.commands(self._now()):
                if isinstance(command, Assign):
                    assigns.append(command)
                elif isinstance(command, End):
                    group.create_task(self._end(mind, command, session_id, check))
                elif isinstance(command, Refuse):
                    refused.append(command.end)
                elif isinstance(command, TakeBack):
                    group.create_task(self._take_back(mind, command, session_id, check))
                elif isinstance(command, Look):
                    group.create_task(self._look(mind, command))
                elif isinstance(command, Mourn):
                    mourns.append(command)
                else:
                    group.create_task(self._further(mind, command, session_id, check))
            if len(mourns) > MOURNED_UNSEEN_MAX:
                group.create_task(self._mourn_many(mind, group, mourns, session_id, check))
            else:
                for mourn in mourns:
                    group.create_task(self._mourn(mind, mourn, session_id, check))
            for start in range(0, len(refused), REFUSED_AT_ONCE):
                some = refused[start : start + REFUSED_AT_ONCE]
                group.create_task(self._refuse(mind, some, session_id, check))
            if assigns:
                began = self._now()
                await self._assign(mind, assigns, session_id, epoch, check)
                mind.assigned(self._now() - began)
            now = self._now()
            if self._has_progress:
                self._has_progress = False
                progress_at = now
            reconcile_at = reconciled_at + RECONCILE_S
            if mind.has_waiting:
                reconcile_at = min(reconcile_at, max(progress_at, reconciled_at) + stalled_s)
            if now >= reconcile_at:
                if await self._reconcile(mind):
                    stalled_s = STALLED_S
                elif mind.has_waiting:
                    if progress_at <= now - STALLED_S:
                        mind.look_again()
                    stalled_s = min(RECONCILE_S, 2 * stalled_s)
                reconciled_at = self._now()
                continue
            if assigns:
                continue
            timer = mind.next_timer()
            wait_s = reconcile_at - self._now() if timer is None else min(timer, reconcile_at) - self._now()
            try:
                async with asyncio.timeout(max(0.0, wait_s)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _assign(self, mind: Dispatch, assigns: list[Assign], session_id: int, epoch: int, check: Check) -> None:
        paths = self._paths
        lists: dict[NodeId, Assignment] = {}
        for assign in assigns:
            tasks = assign.tasks
            if assign.node != self._node:  # which is handed every list
                lingering = self._lists.lingering(assign.node, tasks, mind.tasks, self._now())
                if lingering:
                    tasks = [*tasks, *lingering]
                    mind.linger(assign.node, self._now())
            lists[assign.node] = Assignment(epoch, assign.incarnation, tasks)
        writes = [SetData(paths.assignment(node), codec.encode(what), -1) for node, what in lists.items()]
        mine = paths.assignment(self._node)
        for some in packets(writes):
            while (stats := await self._write_lists(some, session_id, check)) is None:
                continue  # one that was missing is there again
            now = self._now()
            for write, stat in zip(some, stats, strict=True):
                self._lists.wrote(leaf(write.path), stat.version, lists[leaf(write.path)].tasks, now)
            if any(write.path == mine for write in some):  # at once: if the next packet fails, nobody else tells it
                self._hand_over(lists[self._node], self._fresh)
        for assign in assigns:
            if assign.node != self._node:
                for assigned in assign.tasks:
                    self._fresh.pop(assigned.id, None)

    async def _write_lists(self, some: list[SetData], session_id: int, check: Check) -> list[Stat] | None:
        """Write these in one transaction. None: somebody had removed one, which has been made again."""
        try:
            done = await self._session.multi([check, *some], within=session_id)
            return [stat for stat in done if isinstance(stat, Stat)]
        except MultiFailed as refusal:
            if refusal.index == 0:
                raise Deposed from None
            if not isinstance(refusal.cause, NoNode):
                raise refusal.cause from None
            gone = some[refusal.index - 1]
        await ensure_path(self._session, gone.path)
        self._log.warning("assignment.mended", path=gone.path)
        return None

    async def _end(self, mind: Dispatch, end: End, session_id: int, check: Check) -> None:
        dead = await self._obituary(end) if end.is_dead else None
        result = _result_of(end, check)
        ending = await self._endings.end(end.id, end.version, result, dead, within=session_id, guard=check)
        self._heed(ending)
        if ending is Ending.GONE:  # by our own commit, its answer lost; or somebody was quicker and cancelled it
            mourn = Mourn(end.id, end.czxid, end.attempt, end.attempts, end.ttl_s, end.traceparent)
            await self._mourn(mind, mourn, session_id, check)
        self._log.info("task.ended", id=end.id[:140], status=end.status, error=end.error.message, ending=ending.value)

    async def _refuse(self, mind: Dispatch, refused: list[End], session_id: int, check: Check) -> None:
        """Reject arrivals that are too much, many to a transaction: a flood must cost less than its work would."""
        paths = self._paths
        if refused[-1].error.kind == OVERLOADED:
            self._tell_refusals(mind, refused[-1])
        else:
            self._log.info("task.parts_cancelled", count=len(refused), error=refused[-1].error.message)
        left = list(refused)
        while left:
            ops: list[Check | Create | Delete] = [check]
            for end in left:
                ops.append(Delete(paths.task(end.id), end.version))
                ops.append(Create(paths.result(end.id), codec.encode(_result_of(end, check))))
            try:
                await self._session.multi(ops, within=session_id)
                return
            except MultiFailed as refusal:
                if refusal.index == 0:
                    raise Deposed from None
                odd = left.pop((refusal.index - 1) // 2)  # it moved on, is answered, cannot be deleted
            await self._end(mind, odd, session_id, check)

    def _tell_refusals(self, mind: Dispatch, latest: End) -> None:
        """People should look; one line a second is enough for that."""
        count, at = self._refusals_told
        now = self._now()
        if now - at >= REFUSALS_TOLD_S:
            refused = mind.admission.refused
            self._log.warning("tasks.refused", count=refused - min(count, refused), error=latest.error.message)
            self._refusals_told = (refused, now)

    async def _look(self, mind: Dispatch, command: Look) -> None:
        """How these tasks ended, of which others wait for the end."""
        for start in range(0, len(command.ids), READ_AT_ONCE_FIRST):
            some = command.ids[start : start + READ_AT_ONCE_FIRST]
            found = await self._session.get_many([self._paths.result(task_id) for task_id in some])
            for task_id, got in zip(some, found, strict=True):
                try:
                    if isinstance(got, ZooKeeperError):
                        raise BadRecord("$", str(got))
                    result = codec.decode(got.data, Result)
                    mind.dependency_ended(task_id, result.status, self._now(), result)
                except BadRecord as error:
                    if not isinstance(got, NoNode):
                        self._log.warning("result.unreadable", id=task_id, error=str(error))
                    mind.dependency_open(task_id, self._now())
        self._wake.set()

    async def _further(self, mind: Dispatch, command: LookUp | Pin | Spread | Find, within: int, check: Check) -> None:
        """What tasks on datasets need beside what all tasks do."""
        if isinstance(command, LookUp):
            if self._look_up is not None:
                try:
                    await self._look_up(command.name)
                except (NoNode, NoAuth) as error:  # hidden by somebody, and as if it were not there
                    self._log.warning("dataset.unreadable", name=command.name, error=str(error))
            mind.dataset_read(command.name, self._now())
        elif isinstance(command, Pin):
            await self._pin(mind, command, within, check)
        elif isinstance(command, Spread):
            try:
                dropped = await children.drop(self._session, self._paths, command, within=within, guard=check)
            except children.Abandoned:
                return  # which is an event of its own
            self._log.info("task.spread", id=command.id, parts=len(command.parts), dropped=dropped)
            mind.spread(command.id, command.czxid, command.version, self._now())
        else:
            for task_id in command.ids:
                if not is_name(task_id) or await self._session.exists(self._paths.task(task_id)) is None:
                    mind.parent_missing(task_id, self._now())
        self._wake.set()

    async def _pin(self, mind: Dispatch, pin: Pin, within: int, check: Check) -> None:
        """Write the version into the task, so that all that follows is about the same. It comes back as an event."""
        try:
            found = await self._session.get(self._paths.task(pin.id))
        except (NoNode, NoAuth):
            return  # it went, which is an event of its own; or was hidden, and is found when all are counted
        if found.stat.version != pin.version:
            return
        task = pinned(codec.decode_task(found.data), pin.dataset_version)
        ending = await self._endings.record_attempts(
            pin.id, pin.version, task, task.attempts, within=within, guard=check
        )
        self._heed(ending)
        if ending is Ending.STUCK:
            mind.task_unwritable(pin.id, pin.version)

    def _heed(self, ending: Ending) -> None:
        if ending in (Ending.DEPOSED, Ending.SESSION_OVER):
            raise Deposed

    async def _obituary(self, end: End) -> Dead:
        try:
            text = (await self._session.get(self._paths.task(end.id))).data
        except (NoNode, NoAuth):
            text = b"{}"
        return Dead(msgspec.Raw(text), end.error, end.attempts, timestamp())

    async def _take_back(self, mind: Dispatch, command: TakeBack, session_id: int, check: Check) -> None:
        """Shut the lost holder out. The event of this very write brings the task back to the queue."""
        try:
            found = await self._session.get(self._paths.task(command.id))
            task = codec.decode_task(found.data)
        except (NoNode, BadRecord):
            return  # it moved on by itself, which is an event of its own
        except NoAuth:  # hidden since we read it, and a change of an ACL is no event
            self._to_read[command.id] = None
            self._reads.set()
            return
        attempts = [*task.attempts, command.attempt]
        ending = await self._endings.record_attempts(
            command.id, command.version, task, attempts, within=session_id, guard=check
        )
        self._heed(ending)
        if ending is Ending.WRITTEN:
            self._log.info("task.taken_back", id=command.id, lost=command.attempt.node)
        elif ending is Ending.STUCK:
            mind.task_unwritable(command.id, command.version)
            self._wake.set()
        elif ending is Ending.GONE:
            self._ghosts.add(found.stat.czxid)
            mind.task_gone(command.id, self._now())
            self._wake.set()

    async def _mourn_many(
        self, mind: Dispatch, group: asyncio.TaskGroup, mourns: list[Mourn], session_id: int, check: Check
    ) -> None:
        """Of what a lost node held last, most has ended well. A look costs far less than a refused transaction,
        and those would stand in the way of what is taken back."""
        known = [mourn for mourn in mourns if is_name(mourn.id)]
        for start in range(0, len(known), READ_AT_ONCE):
            some = known[start : start + READ_AT_ONCE]
            found = await self._session.children_many([self._paths.result(mourn.id) for mourn in some])
            for mourn, got in zip(some, found, strict=True):
                if isinstance(got, NoNode):
                    group.create_task(self._mourn(mind, mourn, session_id, check))
                else:
                    mind.mourned(mourn.id)
        for mourn in mourns:
            if not is_name(mourn.id):  # as large as a packet, perhaps
                group.create_task(self._mourn(mind, mourn, session_id, check))

    async def _mourn(self, mind: Dispatch, mourn: Mourn, session_id: int, check: Check) -> None:
        result = msgspec.structs.replace(
            cancelled(f"leader of epoch {check.version}", mourn.czxid, mourn.attempt),
            ttl_s=mourn.ttl_s,
            traceparent=mourn.traceparent,
            attempts=mourn.attempts,
        )
        ending = await self._endings.end_deleted(mourn.id, result, within=session_id, guard=check)
        self._heed(ending)
        mind.mourned(mourn.id)
        if ending is Ending.WRITTEN:
            self._log.info("task.cancelled", id=mourn.id[:140])

    async def _reconcile(self, mind: Dispatch) -> bool:
        """Compare the list of ids with the picture now and then; whether tasks had ended unseen.

        Events can be missed by mistake, and those of tasks that we may not read are kept from us (a server
        checks the ACL before it tells a persistent watch): they are found here, and refused.
        """
        there = set(await self._session.children(self._paths.tasks))
        now = self._now()
        gone = mind.tasks.keys() - there
        for task_id in gone:
            mind.task_gone(task_id, now)
        for task_id in there - mind.tasks.keys() - self._backlog.keys() - self._reading.keys():
            self._to_read[task_id] = None
        if self._to_read:
            self._reads.set()
        return bool(gone)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _result_of(end: End, check: Check) -> Result:
    return Result(
        status=end.status,
        attempt=end.attempt,
        error=end.error,
        kernel=end.kernel,
        owner=f"leader of epoch {check.version}",
        czxid=end.czxid,
        finished_at=timestamp(),
        ttl_s=end.ttl_s,
        traceparent=end.traceparent,
        attempts=end.attempts,
    )


def packets(writes: list[SetData]) -> Iterator[list[SetData]]:
    """These writes in transactions of a size that a server takes."""
    some: list[SetData] = []
    size = 0
    for write in writes:
        size += len(write.data)
        if some and size > ASSIGN_BYTES:
            yield some
            some, size = [], len(write.data)
        some.append(write)
    if some:
        yield some
