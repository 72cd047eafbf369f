"""When recurring tasks are due: the words of a schedule, the hours that clocks skip and repeat, what was missed."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zkd.core.schedules import COUNTED_MAX, Cron, Every, Timing, first_after, latest, read, slot_name, slot_of
from zkd.errors import BadRecord

BERLIN = ZoneInfo("Europe/Berlin")
TASK = b'"task": {"kernel": "k"}'


def at(text: str) -> int:
    """``2026-03-29 02:30`` in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def shown(*slots: int | None) -> list[str]:
    return [datetime.fromtimestamp(slot, UTC).strftime("%d %H:%M") for slot in slots if slot is not None]


def following(timing: Timing, moment: float, count: int) -> list[int]:
    """As a leader finds them: each from the one before."""
    slots = []
    while len(slots) < count:
        slot = first_after(timing, moment)
        assert slot is not None
        slots.append(slot)
        moment = slot
    return slots


# --- words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "timing"),
    [
        (b'{"every_s": 10, %s}', Every(10)),
        (b'{"cron": "*/5 * * * *", %s}', Cron("*/5 * * * *", UTC)),
        (b'{"cron": " 0  3 * * mon-fri", "timezone": "Europe/Berlin", %s}', Cron("0 3 * * mon-fri", BERLIN)),
        (b'{"cron": "0 0 L * *", "timezone": "UTC", "overlap": "skip", "paused": true, %s}', Cron("0 0 L * *", UTC)),
    ],
)
def test_a_schedule_is_read(text: bytes, timing: Timing) -> None:
    assert read("s", text % TASK)[1] == timing


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{%s}", "$: expected `cron` or `every_s`, got neither"),
        (b'{"every_s": 1, "cron": "* * * * *", %s}', "got both"),
        (b'{"every_s": 0, %s}', "$.every_s: "),
        (b'{"every_s": 0.5, %s}', "$.every_s: "),
        (b'{"every_s": 9, "timezone": "UTC", %s}', "$.timezone: "),
        (b'{"cron": "* * * *", %s}', "$.cron: expected minute, hour, day of month"),
        (b'{"cron": "* * * * * *", %s}', "$.cron: expected minute, hour, day of month"),
        (b'{"cron": "60 * * * *", %s}', "$.cron: expected a minute as cron takes it, got '60 * * * *'"),
        (b'{"cron": "0 0 30 2 *", %s}', "$.cron: expected a day of month"),
        (b'{"cron": "* * * * *", "timezone": "Mars/Olympus", %s}', "$.timezone: expected a time zone"),
        (b'{"cron": "* * * * *", "timezone": "../passwd", %s}', "$.timezone: "),
        (b'{"cron": "* * * * *", "timezone": "America", %s}', "$.timezone: "),
        (b'{"cron": "* * * * *", "timezone": "localtime", %s}', "$.timezone: "),
        (b'{"every_s": 1, "task": {"kernel": ""}}', "$.task.kernel: "),
        (
            b'{"every_s": 1, "task": {"kernel": "k", "prority": 1}}',
            "$.task.prority: unknown field; expected one of kernel",
        ),
        (b'{"every_s": 1, "task": {"kernel": "k", "attempts": [{"cause": "drain", "node": "a"}]}}', "$.task.attempts"),
        (b'{"every_s": 1, "task": "k"}', "$.task: expected `object`"),
        (b'{"every_s": 1}', "task"),
        (b'{"evry_s": 1, %s}', "$.evry_s: unknown field; expected one of task, cron, timezone, every_s"),
        (b'{"every_s": 1, "every_s": 2, %s}', "once"),
        (b"", "nothing"),
    ],
)
def test_what_is_no_schedule_is_told(text: bytes, words: str) -> None:
    with pytest.raises(BadRecord) as caught:
        read("s", text.replace(b"%s", TASK))
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["", "-x", "a b", "n" * 112])
def test_a_name_leaves_room_for_the_slot(name: str) -> None:
    with pytest.raises(BadRecord, match=r"name: expected 1 to 111 letters"):
        read(name, b'{"every_s": 1, %s}' % TASK)
    read("n" * 111, b'{"every_s": 1, %s}' % TASK)


@given(line=st.text("0123456789*/,-#LWFEBMONSUN ", max_size=40))
def test_any_line_is_a_schedule_or_told(line: str) -> None:
    try:
        _, timing = read("s", b'{"cron": "%s", %s}' % (line.encode(), TASK))
    except BadRecord:
        return
    assert isinstance(timing, Cron)
    first_after(timing, 0)


def test_slots_are_written_as_they_are_read() -> None:
    assert slot_name(at("2026-11-23 16:15")) == "20261123T161500Z"
    assert slot_of("20261123T161500Z") == at("2026-11-23 16:15")
    for text in ("", "2026", "99991231T235959Z", "20261123T161500"):
        with pytest.raises(BadRecord):
            slot_of(text)


# --- slots --------------------------------------------------------------------------------------------


def test_seconds_count_from_the_epoch_for_every_leader_alike() -> None:
    assert following(Every(10), 1003.7, 3) == [1010, 1020, 1030]
    assert first_after(Every(10), 1010) == 1020
    assert first_after(Every(7), 0) == 7


@pytest.mark.parametrize(
    ("line", "after", "slots"),
    [
        # 2026-03-29: at 01:00 UTC the clocks go from 02:00 to 03:00.
        ("30 2 * * *", "2026-03-28 00:00", ["28 01:30", "29 01:00", "30 00:30"]),
        ("0,30 2 * * *", "2026-03-28 12:00", ["29 01:00", "30 00:00", "30 00:30"]),
        ("0 3 * * *", "2026-03-28 12:00", ["29 01:00", "30 01:00", "31 01:00"]),
        ("*/30 * * * *", "2026-03-29 00:00", ["29 00:30", "29 01:00", "29 01:30"]),
        ("30 * * * *", "2026-03-28 23:45", ["29 00:30", "29 01:30", "29 02:30"]),
        # 2026-10-25: at 01:00 UTC they go from 03:00 back to 02:00.
        ("30 2 * * *", "2026-10-24 12:00", ["25 00:30", "26 01:30", "27 01:30"]),
        ("0 3 * * *", "2026-10-24 12:00", ["25 02:00", "26 02:00", "27 02:00"]),
        ("*/30 * * * *", "2026-10-25 00:00", ["25 00:30", "25 01:00", "25 01:30"]),
        ("30 * * * *", "2026-10-24 23:45", ["25 00:30", "25 01:30", "25 02:30"]),
        # From within the second 02:00 to 03:00: today's has been.
        ("30 2 * * *", "2026-10-25 01:15", ["26 01:30"]),
    ],
)
def test_hours_that_clocks_skip_and_repeat(line: str, after: str, slots: list[str]) -> None:
    assert shown(*following(Cron(line, BERLIN), at(after), len(slots))) == slots


def test_a_line_that_never_comes_has_no_slot() -> None:
    assert first_after(Cron("* * */20 * 1L", UTC), at("2026-01-01 00:00")) is None
    assert latest(Cron("* * */20 * 1L", UTC), 0, at("2026-01-01 00:00")) is None


LINES = ["* * * * *", "*/7 * * * *", "30 2 * * *", "0-59 0-23 * * *", "15 */2 * * *", "0 1,2,3 * * *", "*/20 2 * * *"]
ZONES = [UTC, BERLIN, ZoneInfo("America/St_Johns"), ZoneInfo("Australia/Lord_Howe"), ZoneInfo("Africa/Casablanca")]
# Around the nights in which clocks change in these zones, and any other time of 2026.
MOMENTS = st.integers(at("2026-01-01 00:00"), at("2026-12-31 00:00")) | st.sampled_from(
    [
        at(day) for day in ("2026-03-28 18:00", "2026-10-24 18:00", "2026-03-08 00:00", "2026-11-01 00:00",
                            "2026-04-04 12:00", "2026-10-03 12:00", "2026-02-14 22:00", "2026-03-22 00:00")
    ]
).flatmap(lambda start: st.integers(start, start + 16 * 3600))  # fmt: skip
TIMINGS = st.builds(Cron, st.sampled_from(LINES), st.sampled_from(ZONES)) | st.builds(Every, st.integers(1, 100_000))


@given(timing=TIMINGS, moment=MOMENTS, later=st.integers(0, 3 * 86400))
@settings(max_examples=400)
def test_leaders_that_begin_at_different_moments_agree(timing: Timing, moment: int, later: int) -> None:
    first = first_after(timing, moment)
    assert first is not None
    assert first > moment
    between = moment + later % (first - moment)
    assert first_after(timing, between) == first


@given(timing=TIMINGS, moment=MOMENTS, later=st.integers(0, 3 * 86400))
@settings(max_examples=200)
def test_the_latest_is_the_last_of_those_that_come_one_by_one(timing: Timing, moment: int, later: int) -> None:
    until, slots = moment + later, list[int]()
    slot = first_after(timing, moment)
    while slot is not None and slot <= until:
        slots.append(slot)
        assume(len(slots) < 5 * COUNTED_MAX)
        slot = first_after(timing, slot)
    found = latest(timing, moment, until)
    if not slots:
        assert found is None
        return
    assert found is not None
    counted = len(slots) - 1 if isinstance(timing, Every) else min(len(slots) - 1, COUNTED_MAX)
    assert found == (slots[-1], counted)


def test_as_many_slots_as_are_counted_are_counted_right() -> None:
    minutely, start = Cron("* * * * *", UTC), at("2026-01-10 00:00")
    for slots, others in (
        (COUNTED_MAX, COUNTED_MAX - 1),
        (COUNTED_MAX + 1, COUNTED_MAX),
        (COUNTED_MAX + 2, COUNTED_MAX),
    ):
        assert latest(minutely, start, start + 60 * slots) == (start + 60 * slots, others)


def test_years_of_missed_slots_cost_no_time() -> None:
    until = at("2026-10-25 01:15")
    for line, slot in (("* * * * *", until), ("30 2 * * *", at("2026-10-25 00:30"))):
        assert latest(Cron(line, BERLIN), at("1990-01-01 00:00"), until) == (slot, COUNTED_MAX)
    assert latest(Every(1), 0, until) == (until, until - 1)
