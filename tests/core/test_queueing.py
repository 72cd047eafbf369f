"""The one rule of all lines: who holds, who is next, and that nobody sleeps through their turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkd.core.queueing import Standing, holders, is_shared, sequence, standing

HELD = Standing(True, ())


def names(*numbers: int, prefix: str = "n-") -> list[str]:
    return [f"{prefix}{number:010}" for number in numbers]


def waits_for(*children: str) -> Standing:
    return Standing(False, children)


def test_the_lowest_number_holds_and_the_next_watches_it() -> None:
    children = names(30, 10, 20)
    assert standing(children, "n-0000000010") == HELD
    assert standing(children, "n-0000000020") == waits_for("n-0000000010")
    assert standing(children, "n-0000000030") == waits_for("n-0000000020")


def test_names_do_not_decide_only_numbers_do() -> None:
    children = [*names(2, prefix="a-"), *names(1, prefix="z-")]
    assert standing(children, "z-0000000001") == HELD


def test_who_is_not_in_the_queue_has_no_standing() -> None:
    assert standing(names(1), "n-0000000002") is None


def test_foreign_children_are_passed_over() -> None:
    foreign = ["junk", "", "n-000000001", f"n-{'²' * 10}", f"n-{'٣' * 10}"]
    assert standing([*foreign, *names(5)], "n-0000000005") == HELD


def test_a_name_without_digits_is_refused() -> None:
    with pytest.raises(ValueError, match="ends in 10 digits"):
        sequence("leader")


def test_readers_hold_together_and_wait_for_the_last_writer_before_them() -> None:
    (w1,), (r2, r3), (w4,), (r5,) = (
        names(1, prefix="write-"),
        names(2, 3, prefix="read-"),
        names(4, prefix="write-"),
        names(5, prefix="read-"),
    )
    everyone = [r5, w4, r3, r2, w1]
    assert standing(everyone, r2) == standing(everyone, r3) == waits_for(w1)
    assert standing(everyone, w4) == waits_for(r3)
    assert standing(everyone, r5) == waits_for(w4)  # a writer that waits is not overtaken for ever
    assert holders([r5, w4, r3, r2]) == [r2, r3]


def test_a_waiter_for_a_semaphore_watches_as_many_as_there_are_places() -> None:
    a, b, c, d = names(1, 2, 3, 4)
    assert standing([a, b, c, d], c, 2) == waits_for(a, b)  # whichever of the two leaves first
    assert standing([a, b, c, d], d, 2) == waits_for(b, c)


LINE = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.booleans()),
        st.tuples(st.just("leave"), st.integers(0, 30)),
    ),
    max_size=60,
)


def play(steps: list[tuple[str, int | bool]], places: int, has_readers: bool) -> None:
    """A line in which everybody looks once on joining, and again only when somebody they watch has left."""
    children: list[str] = []
    seen: dict[str, Standing] = {}
    number = 0
    for kind, detail in steps:
        if kind == "join":
            mode = "read" if has_readers and detail else "write"
            children.append(f"{mode}-x-{number:010}")
            number += 1
            look(children, children[-1], seen, places)
        elif children:
            gone = children.pop(int(detail) % len(children))
            was = seen.pop(gone)
            woken = [child for child, place in seen.items() if gone in place.watch]
            exclusive = [child for child in woken if not is_shared(child)]
            assert len(exclusive) <= places  # no herd
            assert was.is_held or len(woken) <= places or has_readers
            for child in woken:
                look(children, child, seen, places)
        believed = [child for child in children if seen[child].is_held]
        assert believed == holders(children, places)  # nobody slept through their turn, nobody holds too early
        check_exclusion(believed, places)
        waiting = [child for child in children if child not in believed]
        if waiting and not has_readers:
            assert max(map(sequence, believed)) < min(map(sequence, waiting))  # first come, first served


def look(children: list[str], child: str, seen: dict[str, Standing], places: int) -> None:
    place = standing(children, child, places)
    assert place is not None
    if child in seen:
        assert not (seen[child].is_held and not place.is_held)  # what is held is never taken back
    assert all(watched in children for watched in place.watch)
    seen[child] = place


def check_exclusion(believed: list[str], places: int) -> None:
    writers = [child for child in believed if not is_shared(child)]
    assert len(writers) <= places
    if writers and places == 1:
        assert believed == writers  # a writer holds alone


@given(LINE)
def test_a_lock_is_held_by_one_in_order_and_every_departure_wakes_one(steps: list[tuple[str, int | bool]]) -> None:
    play(steps, 1, has_readers=False)


@given(LINE)
def test_readers_and_writers_exclude_each_other_and_none_sleeps_on(steps: list[tuple[str, int | bool]]) -> None:
    play(steps, 1, has_readers=True)


@given(LINE, st.integers(1, 4))
def test_a_semaphore_is_full_whenever_somebody_waits(steps: list[tuple[str, int | bool]], places: int) -> None:
    play(steps, places, has_readers=False)
