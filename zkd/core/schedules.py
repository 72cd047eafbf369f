"""When a recurring task is due: pure functions from a schedule's words to slots.

A slot is a moment that the schedule names, in whole seconds since the epoch of the servers' clock. It is part
of the id of the task that is dropped for it, so a slot cannot be dropped twice. Whoever leads computes the
same slots: those of `every_s` are its multiples since the epoch, those of `cron` are what Debian's cron would
do. A time of day that the clocks skip counts at the end of the gap, one that they repeat counts once; lines
whose minute or hour begins with ``*`` go by elapsed time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from itertools import islice, takewhile
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from zkd import codec
from zkd.errors import BadRecord
from zkd.paths import NAME_RULE, is_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkd.records import Schedule

Slot = int

SLOT_FORM = "%Y%m%dT%H%M%SZ"
SLOT_LENGTH = len("20261123T161500Z")
NAME_LENGTH_MAX = 128 - SLOT_LENGTH - 1  # what an id leaves to the name of a schedule
FIELDS = 5  # of a line of cron; `every_s` is for what recurs within a minute
# So many missed slots of a line of cron are counted, one by one, in 5 ms; nobody needs to know better.
COUNTED_MAX = 250
YEAR_MAX = 9000  # a search for the next slot looks fifty years ahead, and dates end with the year 9999
# Going back through a line of cron may err by as much as clocks are put forward or back; going on does not.
CLOCKS_PUT_BACK_S = 3 * 3600


@dataclass(frozen=True, slots=True)
class Cron:
    line: str
    zone: tzinfo

    def __str__(self) -> str:
        return f"{self.line} {self.zone}"


@dataclass(frozen=True, slots=True)
class Every:
    seconds: int

    def __str__(self) -> str:
        return f"every {self.seconds} s"


Timing = Cron | Every


def read(name: str, text: bytes) -> tuple[Schedule, Timing]:
    """What ``schedules/<name>`` says. Raises `BadRecord`."""
    if not is_name(name) or len(name) > NAME_LENGTH_MAX:
        rule = NAME_RULE.replace("128", str(NAME_LENGTH_MAX))
        raise BadRecord("name", f"expected {rule}, got {name[:140]!r}")
    schedule = codec.decode_schedule(text)
    return schedule, timing(schedule)


def timing(schedule: Schedule) -> Timing:
    """When it recurs. Raises `BadRecord` if its words make no sense."""
    if schedule.every_s is not None:
        if schedule.cron is not None:
            raise BadRecord("$", "expected `cron` or `every_s`, got both")
        if schedule.timezone is not None:
            raise BadRecord(
                "$.timezone", "expected beside `cron` alone: the slots of `every_s` are the same everywhere"
            )
        return Every(schedule.every_s)
    if schedule.cron is None:
        raise BadRecord("$", "expected `cron` or `every_s`, got neither")
    line = " ".join(schedule.cron.split())
    if line.count(" ") != FIELDS - 1:
        raise BadRecord("$.cron", f"expected minute, hour, day of month, month and day of week, got {line!r}")
    cron = Cron(line, _zone(schedule.timezone))
    try:
        CronSim(cron.line, datetime(2000, 1, 1, tzinfo=cron.zone))
    except CronSimError as error:
        field = str(error).removeprefix("Bad ").replace("-", " ")
        raise BadRecord("$.cron", f"expected a {field} as cron takes it, got {line!r}") from None
    return cron


def _zone(name: str | None) -> tzinfo:
    if name is None or name == "UTC":
        return UTC
    try:
        if name == "localtime":  # of each node another
            raise KeyError(name)
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; a path; a directory of zones
        raise BadRecord(
            "$.timezone", f"expected a time zone that the nodes know, such as Europe/Berlin, got {name!r}"
        ) from None


def first_after(timing: Timing, moment: float) -> Slot | None:
    """The first slot after this moment; None if there is none in the next fifty years."""
    if isinstance(timing, Every):
        return (int(moment) // timing.seconds + 1) * timing.seconds
    return next(_slots(timing, moment), None)


def latest(timing: Timing, after: Slot, until: float) -> tuple[Slot, int] | None:
    """The last slot in (after, until], and how many others are there; None if none is."""
    if isinstance(timing, Every):
        last = int(until) // timing.seconds
        missed = last - after // timing.seconds - 1
        return None if missed < 0 else (last * timing.seconds, missed)
    found = list(takewhile(lambda slot: slot <= until, islice(_slots(timing, after), COUNTED_MAX + 1)))
    if not found:
        return None
    if len(found) <= COUNTED_MAX:
        return found[-1], len(found) - 1
    return _last(timing, found[-1], until), COUNTED_MAX


def _last(timing: Cron, known: Slot, until: float) -> Slot:
    """The last slot up to `until`, of which `known` is one."""
    back = next(CronSim(timing.line, datetime.fromtimestamp(until + 1, timing.zone), reverse=True)).timestamp()
    last = known
    for slot in _slots(timing, max(known, back - CLOCKS_PUT_BACK_S)):
        if slot > until:
            break
        last = slot
    return last


def _slots(timing: Cron, moment: float) -> Iterator[Slot]:
    """Those after this moment, in order."""
    last = int(moment)
    for at in CronSim(timing.line, datetime.fromtimestamp(last, timing.zone)):
        slot = int(at.timestamp())
        if slot > last:  # in a repeated hour it begins with the first of the two
            yield slot
            last = slot


def slot_name(slot: Slot) -> str:
    """``20261123T161500Z``: how a slot is written in ids and in the tree."""
    return datetime.fromtimestamp(slot, UTC).strftime(SLOT_FORM)


def slot_of(text: str) -> Slot:
    """The slot that is written so. Raises `BadRecord`."""
    try:
        at = datetime.strptime(text, SLOT_FORM)
        if at.year > YEAR_MAX:
            raise ValueError(text)
        return int(at.replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise BadRecord("$", f"expected a moment such as 20261123T161500Z, got {text[:40]!r}") from None
