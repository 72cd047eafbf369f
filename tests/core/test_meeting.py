"""The one rule of double barriers: all of a meeting go in together, none before the former one has left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zkd.core.meeting import GoIn, Wait, meeting, still_inside


def member(number: int) -> str:
    return f"member-x-{number:010}"


A, B, C, D, E = map(member, range(5))


def test_the_first_to_come_go_in_when_there_are_enough() -> None:
    assert meeting([B, A], [], 3) == Wait([])
    assert meeting([C, B, A], [], 3) == GoIn([A, B, C])
    assert meeting([D, C, B, A], [], 3) == GoIn([A, B, C])


def test_the_next_ones_wait_until_the_last_of_the_former_has_left() -> None:
    assert meeting([A, C, D], [A, B], 2) == Wait([A])
    assert meeting([C, D], [A, B], 2) == GoIn([C, D])
    assert meeting([A, C], [A, B], 2) == Wait([])


def test_who_leaves_watches_the_next_after_itself() -> None:
    assert still_inside([A, B, C], [A, B, C], B) == [C, A]
    assert still_inside([D, E], [A, B, C], B) == []


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=80), st.integers(1, 4))
def test_no_meeting_is_missed_and_none_overlap(steps: list[tuple[bool, int]], count: int) -> None:
    """Everybody looks on coming, and when the one whom they watch has left; nobody looks otherwise."""
    members: list[str] = []
    inside: list[str] = []
    watching: dict[str, str] = {}
    number = 0

    def look(mine: str) -> None:
        nonlocal inside
        watching.pop(mine, None)
        now = meeting(members, inside, count)
        if isinstance(now, GoIn):
            assert len(now.members) == count
            assert not set(inside) & set(members)
            inside = now.members
        elif now.leaving:
            watching[mine] = now.leaving[0]

    for comes, which in steps:
        if comes or not members:
            members.append(member(number))
            number += 1
            look(members[-1])
        else:
            gone = members.pop(which % len(members))
            watching.pop(gone, None)
            for other in [other for other, watched in watching.items() if watched == gone]:
                if other not in inside:
                    look(other)
        assert not isinstance(meeting(members, inside, count), GoIn)  # nobody slept on
