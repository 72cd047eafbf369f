"""The leader's picture of the recurring tasks: which of them is due, and what is to be written about it.

It is told what stands at ``schedules/<name>`` and at ``control/schedules/<name>``, and answers with commands.
What counts is in the tree: since when the words of a schedule hold (`since`) and up to which slot it has been
dealt with (`slot`). A slot is due after both, so that a new leader goes on where the former one stopped, a clock
that is put back fires nothing twice, and what somebody has edited or resumed does not fire for the time before.

All times are the servers', in seconds.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import msgspec

from zkd.core.schedules import Slot, Timing, first_after, latest, slot_name, slot_of
from zkd.errors import BadRecord
from zkd.paths import TaskId
from zkd.records import Schedule, ScheduleState

ABSENT = -1  # the version of a znode that is not there

PAUSED = "paused"
# So many are looked at before others have a turn: the next slot of a line of cron takes 0.1 ms to find, and a new
# leader looks at all there are.
LOOKED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Words:
    """What stands at ``schedules/<name>``: a schedule, or why it is none."""

    czxid: int
    version: int
    written_at: int  # by the servers' clock
    schedule: Schedule | None = None
    timing: Timing | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Write down how things stand with a schedule."""

    name: str
    version: int  # that the state has now, or ABSENT
    state: ScheduleState


@dataclass(frozen=True, slots=True)
class Fire:
    """Drop the task of this slot and write down the state, in one transaction; with `unless` in the drop box,
    write down `instead` and drop nothing."""

    name: str
    version: int
    state: ScheduleState
    words_version: int
    task_id: TaskId
    task: msgspec.Raw
    unless: TaskId | None
    instead: ScheduleState
    late_s: float


@dataclass(frozen=True, slots=True)
class Forget:
    """The schedule is gone: remove its state."""

    name: str
    version: int


Command = Note | Fire | Forget


@dataclass(slots=True)
class Entry:
    words: Words | None = None  # None: deleted
    state: ScheduleState | None = None
    version: int = ABSENT  # of the state
    not_before: Slot = 0  # where the state cannot be read: nothing is known of what was fired until then
    due_at: float | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the state that stands is the one that should."""
        return self.words is not None and self.version != ABSENT and self.state == _state_for(self, self.words)


class Agenda:
    """One reign of one leader."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._dirty: dict[str, None] = {}
        self._timers: list[tuple[float, str]] = []

    # --- What stands in the tree ------------------------------------------------------------------------

    def words_read(self, name: str, words: Words | None) -> None:
        """What stands at ``schedules/<name>`` now; None: nothing."""
        entry = self.entries.setdefault(name, Entry())
        entry.words = words
        self._dirty[name] = None

    def state_read(self, name: str, state: ScheduleState | None, version: int) -> None:
        """What stands at ``control/schedules/<name>`` now."""
        entry = self.entries.setdefault(name, Entry())
        entry.state, entry.version = state, version
        self._dirty[name] = None

    def state_unreadable(self, name: str, version: int, now: float) -> None:
        """Something else stands there: better to miss a slot than to fire it a second time."""
        self.state_read(name, None, version)
        self.entries[name].not_before = int(now)

    def state_removed(self, name: str) -> None:
        """Somebody removed the state; what stood in it is still known here."""
        if name in self.entries:
            self.entries[name].version = ABSENT
            self._dirty[name] = None

    def put_off(self, name: str, until: float) -> None:
        """It could not be fired: the next try is at `until`."""
        if name in self.entries:
            self._set_timer(name, self.entries[name], until)

    # --- What to do -------------------------------------------------------------------------------------

    def commands(self, now: float, at_most: int) -> list[Command]:
        """What to do now, the longest due first. The tree's answer to each is told before this is asked again."""
        found: list[Command] = []
        for _ in range(LOOKED_AT_ONCE):
            if not self._dirty or len(found) >= at_most:
                break
            name = next(iter(self._dirty))
            del self._dirty[name]
            command = self._settle(name)
            if command is not None:
                found.append(command)
        while self._timers and self._timers[0][0] <= now and len(found) < at_most:
            at, name = heapq.heappop(self._timers)
            entry = self.entries.get(name)
            if entry is None or entry.due_at != at:
                continue  # it was for words or a state that are no longer
            entry.due_at = None
            command = self._fire(name, entry, now) if entry.is_settled else self._settle(name)
            if command is not None:
                found.append(command)
        return found

    def next_timer(self) -> float | None:
        """When `commands` has something to do by the clock alone; the past if it has now."""
        if self._dirty:
            return 0.0
        while self._timers:
            at, name = self._timers[0]
            entry = self.entries.get(name)
            if entry is not None and entry.due_at == at:
                return at
            heapq.heappop(self._timers)
        return None

    def _settle(self, name: str) -> Command | None:
        """Bring the state into line with the words; when it is, set the timer."""
        entry = self.entries[name]
        entry.due_at = None
        words = entry.words
        if words is None:
            if entry.version != ABSENT:
                return Forget(name, entry.version)
            del self.entries[name]
            return None
        state = _state_for(entry, words)
        if not entry.is_settled:
            return Note(name, entry.version, state)
        if words.timing is not None and state.timing != PAUSED:
            at = first_after(words.timing, _dealt_with(state))
            if at is not None:
                self._set_timer(name, entry, at)
        return None

    def _fire(self, name: str, entry: Entry, now: float) -> Fire:
        words, state = entry.words, entry.state
        assert words is not None
        assert words.schedule is not None
        assert words.timing is not None
        assert state is not None
        found = latest(words.timing, _dealt_with(state), now)
        assert found is not None, f"{name} was due at {entry.due_at}, and has no slot up to {now}"
        slot, missed = found
        task_id = f"{name}.{slot_name(slot)}"
        over = msgspec.structs.replace(state, slot=slot_name(slot), skipped=state.skipped + missed)
        return Fire(
            name=name,
            version=entry.version,
            state=msgspec.structs.replace(over, task=task_id, fired=state.fired + 1),
            words_version=words.version,
            task_id=task_id,
            task=words.schedule.task,
            unless=state.task if words.schedule.overlap == "skip" else None,
            instead=msgspec.structs.replace(over, skipped=over.skipped + 1),
            late_s=now - slot,
        )

    def _set_timer(self, name: str, entry: Entry, at: float) -> None:
        entry.due_at = at
        heapq.heappush(self._timers, (at, name))


def _state_for(entry: Entry, words: Words) -> ScheduleState:
    """The state as it should stand for these words, with what has been so far in this life of the name."""
    former = entry.state if entry.state is not None and entry.state.czxid == words.czxid else None
    is_paused = words.schedule is not None and words.schedule.paused
    timing = "" if words.timing is None else PAUSED if is_paused else str(words.timing)
    if former is not None and former.timing == timing:
        return msgspec.structs.replace(former, error=words.fault)
    since = slot_name(max(words.written_at, entry.not_before))
    if former is None:
        return ScheduleState(words.czxid, timing, since, 0, 0, error=words.fault)
    return msgspec.structs.replace(former, timing=timing, since=since, error=words.fault)


def _dealt_with(state: ScheduleState) -> Slot:
    """Up to which moment nothing fires any more."""
    since = slot_of(state.since)
    return since if state.slot is None else max(since, slot_of(state.slot))


def check_state(state: ScheduleState) -> None:
    """Raise `BadRecord` if this is not what a leader writes."""
    _dealt_with(state)
    if state.fired < 0 or state.skipped < 0:
        raise BadRecord("$", "expected counts")
