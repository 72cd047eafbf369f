"""The server's clock, the queue of candidates, and a node's pace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkd.core.clock import ServerClock
from zkd.core.credits import AHEAD_MAX, LEAD_S, Lead, Pace
from zkd.core.queueing import Standing, sequence, standing


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


def names(*numbers: int, prefix: str = "n-") -> list[str]:
    return [f"{prefix}{number:010}" for number in numbers]


def test_the_lowest_number_holds_and_the_next_watches_it() -> None:
    children = names(30, 10, 20)
    assert standing(children, "n-0000000010") == Standing(True, None)
    assert standing(children, "n-0000000020") == Standing(False, "n-0000000010")
    assert standing(children, "n-0000000030") == Standing(False, "n-0000000020")


def test_names_do_not_decide_only_numbers_do() -> None:
    children = [*names(2, prefix="a-"), *names(1, prefix="z-")]
    assert standing(children, "z-0000000001") == Standing(True, None)


def test_who_is_not_in_the_queue_has_no_standing() -> None:
    assert standing(names(1), "n-0000000002") is None


def test_foreign_children_are_passed_over() -> None:
    foreign = ["junk", "", "n-000000001", f"n-{'²' * 10}", f"n-{'٣' * 10}"]
    assert standing([*foreign, *names(5)], "n-0000000005") == Standing(True, None)


def test_a_name_without_digits_is_refused() -> None:
    with pytest.raises(ValueError, match="ends in 10 digits"):
        sequence("leader")


@given(st.sets(st.integers(0, 2**31 - 1), min_size=1, max_size=20), st.integers(1, 5))
def test_as_many_hold_as_there_are_places_and_each_other_watches_one_that_counts(
    numbers: set[int], places: int
) -> None:
    children = names(*numbers)
    stands = {child: standing(children, child, places) for child in children}
    assert sum(s is not None and s.is_held for s in stands.values()) == min(places, len(children))
    watched = [s.watch for s in stands.values() if s is not None and not s.is_held]
    assert len(set(watched)) == len(watched)  # one departure wakes one waiter
    for child, s in stands.items():
        if s is not None and s.watch is not None:
            rest = [other for other in children if other != s.watch]
            ahead = sum(other < child for other in rest)
            assert ahead < len([other for other in children if other < child])


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
