"""While this node leads: drops the tasks that recur, each slot once, whoever leads.

A recursive watch on schedules/ tells what users write, a timer when the next slot is due; `zkd.core.agenda`
decides. A slot fires in one transaction: check of the epoch, check of the schedule as it was read, the state at its
version, the task. So nothing is dropped twice or without being remembered, nothing by a deposed leader, and
nothing of a schedule that has just been edited or deleted. The time is the servers' (`zkd.core.clock`).
"""

from __future__ import annotations

import asyncio

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.agenda import ABSENT, Agenda, Command, Fire, Forget, Note, Words, check_state
from zkd.core.clock import ServerClock
from zkd.core.schedules import read
from zkd.errors import (
    BadRecord,
    BadVersion,
    MultiFailed,
    NoAuth,
    NodeExists,
    NoNode,
    Unavailable,
    ZooKeeperError,
)
from zkd.leading import Deposed, lead
from zkd.paths import Paths
from zkd.records import ScheduleState
from zkd.zk import Check, Create, Delete, Event, EventType, Session, SetData, Stat, State, Znode

READ_AT_ONCE = 16  # schedules are as large as tasks, and a reply has no limit at the server
NAME_MAX = 140  # one that is somewhat too long is told at control/schedules, too
# So many are written at once, and then what happened meanwhile is heard first: many that are due together
# delay neither an edit nor the leader's other work.
AT_ONCE = 16
RECONCILE_S = 60.0  # for what a watch missed and for a clock that was set; costs one list of children
REFUSED_S = 15.0  # so long a schedule waits whose task is not allowed in the drop box


class Scheduler:
    def __init__(self, session: Session, paths: Paths, clock: ServerClock, log: Log) -> None:
        self._session = session
        self._paths = paths
        self._clock = clock
        self._log = log
        self._events: list[Event] = []
        self._wake = asyncio.Event()
        self._agenda: Agenda | None = None
        self.fired = 0  # slots, by this node
        self.skipped = 0

    def schedules(self) -> tuple[int, int]:
        """How many there are, and how many of them are malformed; none while another node leads."""
        entries = self._agenda.entries.values() if self._agenda is not None else ()
        words = [entry.words for entry in entries if entry.words is not None]
        return len(words), sum(each.fault is not None for each in words)

    async def run(self, session_id: int, check: Check) -> None:
        """One reign. Ends when the epoch is over; cancelled when the session is."""
        try:
            await lead(
                lambda: self._serve(session_id, check),
                self._session,
                self._log,
                "scheduler",
                watched=[self._paths.schedules],
                saw=self._saw,
                woken=self._wake.set,
                directories=[self._paths.schedules, self._paths.schedule_states],
            )
        finally:
            self._agenda = None

    def _saw(self, event: Event) -> None:
        self._events.append(event)
        self._wake.set()

    async def _serve(self, session_id: int, check: Check) -> None:
        """Fire over one unbroken connection."""
        connection = self._session.epoch
        self._events.clear()
        self._agenda = agenda = Agenda()
        await self._read_states(agenda, await self._session.children(self._paths.schedule_states))
        await self._read_words(agenda, await self._session.children(self._paths.schedules))
        reconcile_at = self._now() + RECONCILE_S
        while True:
            self._wake.clear()
            if self._session.epoch != connection or self._session.state is not State.CONNECTED:
                raise Unavailable(self._paths.schedules, "the connection changed")
            await self._look(agenda)
            time = self._time()
            commands = agenda.commands(time, AT_ONCE)
            if commands:
                await self._carry_out(agenda, commands, session_id, check)
                continue
            if self._now() >= reconcile_at:
                await self._reconcile(agenda)
                reconcile_at = self._now() + RECONCILE_S
                continue
            timer = agenda.next_timer()
            wait_s = reconcile_at - self._now()
            if timer is not None:
                wait_s = min(wait_s, timer - time)
            try:
                async with asyncio.timeout(max(0.0, wait_s)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    # --- Knowing ----------------------------------------------------------------------------------------

    async def _look(self, agenda: Agenda) -> None:
        """Read what events named."""
        events, self._events = self._events, []
        changed: dict[str, None] = {}
        for event in events:
            if event.path == self._paths.schedules:
                if event.type is EventType.DELETED:
                    raise NoNode(event.path, "a directory was deleted")
                continue
            name = event.path.removeprefix(f"{self._paths.schedules}/")
            if "/" in name:
                self._log.warning("schedule.has_child", path=event.path[:300])
            elif event.type is EventType.DELETED:
                changed.pop(name, None)
                agenda.words_read(name, None)
            elif event.type is not EventType.CHILDREN:
                changed[name] = None
        await self._read_words(agenda, list(changed))

    async def _read_words(self, agenda: Agenda, names: list[str]) -> None:
        for name, got in await self._read(self._paths.schedules, names):
            if isinstance(got, NoAuth):
                stat = await self._session.exists(self._paths.schedule(name))
                why = "expected a znode that zkd may read: its ACL does not let it"
                agenda.words_read(name, stat and self._refused(name, stat, why))
            elif isinstance(got, ZooKeeperError):
                agenda.words_read(name, None)
            else:
                agenda.words_read(name, self._words(name, got))

    def _words(self, name: str, got: Znode) -> Words:
        try:
            schedule, timing = read(name, got.data)
        except BadRecord as error:
            return self._refused(name, got.stat, str(error))
        stat = got.stat
        return Words(stat.czxid, stat.version, stat.mtime // 1000, schedule, timing)

    def _refused(self, name: str, stat: Stat, why: str) -> Words:
        self._log.warning("schedule.refused", name=name[:140], error=why)
        return Words(stat.czxid, stat.version, stat.mtime // 1000, fault=why)

    async def _read_states(self, agenda: Agenda, names: list[str]) -> None:
        for name, got in await self._read(self._paths.schedule_states, names):
            if isinstance(got, ZooKeeperError):
                agenda.state_read(name, None, ABSENT)
                continue
            try:
                state = codec.decode(got.data, ScheduleState)
                check_state(state)
            except BadRecord as error:
                self._log.warning("schedule.state_unreadable", name=name, error=str(error))
                agenda.state_unreadable(name, got.stat.version, self._time())
            else:
                agenda.state_read(name, state, got.stat.version)

    async def _read(self, directory: str, names: list[str]) -> list[tuple[str, Znode | ZooKeeperError]]:
        found: list[tuple[str, Znode | ZooKeeperError]] = []
        fitting = [name for name in names if len(name) <= NAME_MAX]
        if len(fitting) < len(names):
            self._log.warning("schedule.name_too_long", directory=directory, count=len(names) - len(fitting))
        for start in range(0, len(fitting), READ_AT_ONCE):
            some = fitting[start : start + READ_AT_ONCE]
            paths = [f"{directory}/{name}" for name in some]
            found.extend(zip(some, await self._session.get_many(paths), strict=True))
        return found

    async def _reconcile(self, agenda: Agenda) -> None:
        """Compare the names with the picture: events can be missed, and those of what we may not read always are."""
        there = set(await self._session.children(self._paths.schedules))
        known = {name for name, entry in agenda.entries.items() if entry.words is not None}
        for name in known - there:
            agenda.words_read(name, None)
        await self._read_words(agenda, sorted(there - known))

    # --- Acting -----------------------------------------------------------------------------------------

    async def _carry_out(self, agenda: Agenda, commands: list[Command], session_id: int, check: Check) -> None:
        async with asyncio.TaskGroup() as group:
            tries = [group.create_task(self._try(agenda, command, session_id, check)) for command in commands]
        for done in tries:
            failure = done.result()
            if failure is not None:
                raise failure

    async def _try(self, agenda: Agenda, command: Command, session_id: int, check: Check) -> Exception | None:
        """Do it, and tell the agenda what the tree says to that; what ends more than this one command is returned."""
        try:
            await self._do(agenda, command, session_id, check)
        except (ZooKeeperError, Deposed) as error:
            return error
        return None

    async def _do(self, agenda: Agenda, command: Command, session_id: int, check: Check) -> None:
        name = command.name
        path = self._paths.schedule_state(name)
        drop: Create | None = None
        if isinstance(command, Forget):
            if await self._write(agenda, command, [check, Delete(path, command.version)], session_id):
                agenda.state_read(name, None, ABSENT)
                self._log.info("schedule.ended", name=name)
            return
        state = command.state
        ops: list[Check | Create | SetData | Delete] = [check]
        if isinstance(command, Fire):
            if command.unless and await self._session.exists(self._paths.task(command.unless)) is not None:
                state = command.instead
            else:
                drop = Create(self._paths.task(command.task_id), bytes(command.task))
            ops.append(Check(self._paths.schedule(name), command.words_version))
        text = codec.encode(state)
        ops.append(Create(path, text) if command.version == ABSENT else SetData(path, text, command.version))
        if drop is not None:
            ops.append(drop)
        if not await self._write(agenda, command, ops, session_id):
            return
        former = agenda.entries[name].state
        agenda.state_read(name, state, command.version + 1)  # a new one has version 0, which is ABSENT + 1
        if isinstance(command, Note):
            self._log.info("schedule.noted", name=name, timing=state.timing, since=state.since)
            return
        assert former is not None
        self.skipped += state.skipped - former.skipped
        if drop is not None:
            self.fired += 1
            self._log.info("schedule.fired", name=name, id=command.task_id, late_s=round(command.late_s, 3))
        else:
            self._log.info("schedule.skipped", name=name, slot=state.slot, unfinished=command.unless)

    async def _write(
        self, agenda: Agenda, command: Command, ops: list[Check | Create | SetData | Delete], session_id: int
    ) -> bool:
        """Whether it was written. If not, the agenda has been told why."""
        name = command.name
        while True:
            try:
                done = await self._session.multi(ops, within=session_id)
            except MultiFailed as refusal:
                culprit, cause = ops[refusal.index], refusal.cause
                if refusal.index == 0:
                    raise Deposed from None
            else:
                written = [result for result in done if isinstance(result, Stat)]
                if written:  # in one transaction, so at one time
                    self._clock.observe(written[0].mtime, self._now(), written[0].mzxid)
                return True
            if isinstance(culprit, Check):  # edited or deleted since
                await self._read_words(agenda, [name])
            elif culprit.path.startswith(f"{self._paths.tasks}/"):
                if isinstance(cause, NodeExists):  # of a former life of the name, or dropped by hand: it counts
                    self._log.info("schedule.met_its_task", name=name, path=culprit.path)
                    ops = ops[:-1]
                    continue
                self._log.warning("schedule.not_fired", name=name, error=str(cause))
                agenda.put_off(name, self._time() + REFUSED_S)
            elif isinstance(culprit, SetData | Delete) and isinstance(cause, NoNode):
                agenda.state_removed(name)
            elif isinstance(cause, NoNode):  # control/schedules itself is gone
                raise cause
            elif isinstance(cause, BadVersion | NodeExists):
                await self._read_states(agenda, [name])
            else:  # forbidden, over quota, with children of somebody's
                self._log.warning("schedule.not_noted", name=name, error=str(cause))
                agenda.put_off(name, self._time() + REFUSED_S)
            return False

    def _time(self) -> float:
        """What the servers' clock shows. It was observed when this node took office."""
        time = self._clock.time(self._now())
        assert time is not None
        return time

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
