"""The server's clock, and a node's pace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkd.core.clock import ServerClock
from zkd.core.credits import AHEAD_MAX, LEAD_S, Lead, Pace


def test_an_age_is_nought_until_the_servers_clock_was_seen() -> None:
    assert ServerClock().age_s(5_000, 100.0) == 0.0


@given(
    server_ms=st.integers(-(10**13), 10**13),
    now=st.floats(0, 10**7),
    age_ms=st.integers(0, 10**9),
    later_s=st.floats(0, 10**5),
)
def test_an_age_depends_on_no_wall_clock_of_ours(server_ms: int, now: float, age_ms: int, later_s: float) -> None:
    clock = ServerClock()
    clock.observe(server_ms, now)
    assert clock.age_s(server_ms - age_ms, now + later_s) == pytest.approx(age_ms / 1000 + later_s, abs=0.01)


def test_an_age_is_never_negative() -> None:
    clock = ServerClock()
    clock.observe(1_000, 0.0)
    assert clock.age_s(9_000, 0.0) == 0.0


def test_the_clocks_of_two_leaders_are_never_compared() -> None:
    clock, hour_ms = ServerClock(), 3_600_000
    clock.observe(1_000, 1.0, 1 << 32 | 7)
    clock.observe(2_000 + hour_ms, 2.0, 2 << 32 | 1)  # the next leader's clock is an hour ahead
    assert clock.age_s(500, 3.0, 1 << 32 | 5) == pytest.approx(2.5)
    assert clock.age_s(2_500 + hour_ms, 3.0, 2 << 32 | 3) == pytest.approx(0.5)


def test_a_znode_is_as_old_at_least_as_the_first_leader_after_its_own_is_known() -> None:
    clock = ServerClock()
    clock.observe(10**9, 5.0, 4 << 32)
    clock.observe(0, 8.0, 5 << 32)
    assert clock.age_s(123, 9.0, 3 << 32) == pytest.approx(4.0)
    assert clock.age_s(123, 9.0, 6 << 32) == 0.0  # of a leader that is yet to be met


@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=60))
def test_work_ahead_follows_the_pace_and_is_bounded(steps: list[float]) -> None:
    pace = Pace()
    now = 0.0
    for step in steps:
        now += step
        pace.finished(now)
        assert 0 <= pace.ahead(now) <= AHEAD_MAX
        assert pace.ahead(now + 60.0) == 0


def test_a_steady_pace_is_given_what_it_finishes_in_the_lead() -> None:
    pace = Pace()
    for n in range(1, 400):
        for _ in range(10):
            pace.finished(n * 0.01)
    assert pace.ahead(4.0) == pytest.approx(1000 * LEAD_S, abs=6)


def simulated_rate(write_s: float, run_s: float, lead: Lead) -> float:
    """Tasks a second of one slot, when each turn takes a write for the list and one for the ends; after ten seconds."""
    pace, now, ended = Pace(), 0.0, 0
    while now < 20.0:
        lead.wrote(write_s)
        given = 1 + pace.ahead(now, lead.s)
        took_s = 2 * write_s + given * run_s
        for number in range(given):  # their ends come in a few transactions
            pace.finished(now + took_s * (0.8 + 0.2 * number / given))
        now += took_s
        ended += given if now > 10.0 else 0
    return ended / 10.0


@pytest.mark.parametrize("write_s", [0.002, 0.02, 0.1])
def test_slow_writes_do_not_starve_a_node_of_quick_tasks(write_s: float) -> None:
    assert simulated_rate(write_s, 0.0005, Lead()) > 0.4 / (0.0005 + 2 * write_s / AHEAD_MAX)


def test_work_of_half_a_second_is_never_queued_ahead() -> None:
    lead = Lead()
    for _ in range(100):
        lead.wrote(10.0)
    pace = Pace(at=-0.55)
    for number in range(20):
        pace.finished(0.55 * number)
        assert pace.ahead(0.55 * number, lead.s) == 0
