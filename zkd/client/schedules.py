"""Recurring tasks as programs and people see them: what stands at ``schedules/<name>``, and how far the leader is.

The slots are computed as the leader computes them. The time of this machine is compared with them for people
only: nothing is decided by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from msgspec import Raw

from zkd import codec
from zkd.core.schedules import first_after, read, slot_of
from zkd.errors import BadRecord
from zkd.records import Schedule

if TYPE_CHECKING:
    from zkd.records import Leader, ScheduleState

Overlap = Literal["allow", "skip"]


@dataclass(frozen=True)
class Cron:
    """At the minutes that a line of cron names, in a time zone. `overlap`: not while the former task is unfinished."""

    line: str
    timezone: str = "UTC"
    overlap: Overlap = "allow"


@dataclass(frozen=True)
class Every:
    """At the multiples of so many seconds."""

    seconds: int
    overlap: Overlap = "allow"


When = Cron | Every


@dataclass(frozen=True)
class Scheduled:
    """A schedule and how far it is. Moments are those of the ZooKeeper servers' clock."""

    name: str
    schedule: Schedule | None  # None: it is none, and `error` says why
    state: ScheduleState | None  # None: no leader has seen it yet
    error: str | None
    next: datetime | None  # in the past when nobody leads; None when paused, or never

    @property
    def last(self) -> datetime | None:
        """The last slot that was dealt with."""
        return moment(slot_of(self.state.slot)) if self.state is not None and self.state.slot is not None else None

    @property
    def timing(self) -> str:
        """In words: a line of cron and its zone, or ``every 10 s``."""
        if self.schedule is None:
            return ""
        if self.schedule.every_s is not None:
            return f"every {self.schedule.every_s} s"
        return f"{self.schedule.cron} {self.schedule.timezone or 'UTC'}"


def moment(slot: int) -> datetime:
    return datetime.fromtimestamp(slot, UTC)


def schedule_text(name: str, when: When, task: bytes) -> bytes:
    """What to write at ``schedules/<name>``. Raises `BadRecord` if the leader would refuse it."""
    if isinstance(when, Cron):
        zone = None if when.timezone == "UTC" else when.timezone
        schedule = Schedule(Raw(task), cron=when.line, timezone=zone, overlap=when.overlap)
    else:
        schedule = Schedule(Raw(task), every_s=when.seconds, overlap=when.overlap)
    text = codec.encode(schedule)
    read(name, text)
    return text


def paused_text(text: bytes, is_paused: bool) -> bytes:
    """The same schedule, paused or not; its other fields stay as they were typed."""
    fields: dict[str, Raw] = codec.decode(text, dict[str, Raw])
    was_paused = bytes(fields.pop("paused", b"false")) == b"true"
    if was_paused == is_paused:
        return text
    return codec.encode({**fields, "paused": True} if is_paused else fields)


def scheduled(name: str, text: bytes, mtime_ms: int, czxid: int, state: ScheduleState | None) -> Scheduled:
    """What these two znodes say together."""
    known = state if state is not None and state.czxid == czxid else None
    try:
        schedule, timing = read(name, text)
    except BadRecord as error:
        return Scheduled(name, None, known, str(error), None)
    told = known.error if known is not None else None  # the leader may know no such time zone
    dealt_with = mtime_ms // 1000
    if known is not None:
        try:
            dealt_with = max(slot_of(at) for at in (known.since, known.slot) if at is not None)
        except BadRecord:
            known = None
    following = None if schedule.paused or told else first_after(timing, dealt_with)
    return Scheduled(name, schedule, known, told, None if following is None else moment(following))


def explain_schedule(seen: Scheduled, leader: Leader | None, now: datetime, *, is_unfinished: bool = False) -> str:
    """When it fires next and what it did so far, in words. `is_unfinished`: the task that it dropped last."""
    if seen.error is not None:
        return f"It is a schedule and nothing fires: {seen.error}."
    state, schedule = seen.state, seen.schedule
    assert schedule is not None
    what, so_far = f"It is a schedule ({seen.timing})", ""
    if state is not None and seen.last is not None:
        counts = f"{_times(state.fired)} so far and skipped {_slots(state.skipped)}"
        so_far = f" It fired {counts}; the last was {shown(seen.last)}."
    if schedule.paused:
        return f"{what}, and paused: `zkd schedule resume {seen.name}` lets it fire again.{so_far}"
    if seen.next is None:
        return f"{what} that has no slot in the next fifty years.{so_far}"
    if leader is None:
        return f"{what}, due at {shown(seen.next)}; nobody leads now, and it fires when somebody does.{so_far}"
    left_s = (seen.next - now).total_seconds()
    when = f"in {span(left_s)}" if left_s >= 0 else "any moment now"
    skips = ""
    if is_unfinished and schedule.overlap == "skip" and state is not None:
        skips = f" It skips slots while {state.task} is not finished."
    return f"{what}: it fires next at {shown(seen.next)}, {when}.{skips}{so_far}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _slots(count: int) -> str:
    return f"{count} slot{'' if count == 1 else 's'}"


def shown(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")


def span(seconds: float) -> str:
    """4 s, 12 min, 3 h, 5 days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
