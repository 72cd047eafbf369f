"""Promises of zkd.core.dealing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zkd.core.dealing import LOPSIDED, dealt


def loads(rows: dict[int, int], chosen: dict[int, int], counters: int) -> list[int]:
    return [sum(rows[part] + 1 for part in rows if chosen[part] == counter) for counter in range(counters)]


def test_parts_are_dealt_by_rows_and_stay() -> None:
    rows = {0: 100, 1: 60, 2: 50, 3: 0}
    first = dealt(rows, {}, 2)
    assert first == {0: 0, 1: 1, 2: 1, 3: 0}
    assert dealt(rows, first, 2) == first
    assert dealt({1: 60}, first, 2) == {1: 1}, "some of them do not move"
    assert dealt({**rows, 4: 10}, first, 2) == {**first, 4: 0}


def test_a_share_that_grew_too_large_gives_away_what_fits() -> None:
    homes = dict.fromkeys(range(8), 0)
    moved = dealt(dict.fromkeys(range(8), 9), homes, 2)
    assert sorted(moved.values()) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_fewer_counters_than_before_take_all() -> None:
    assert set(dealt(dict.fromkeys(range(4), 1), {0: 3, 1: 2, 2: 1, 3: 0}, 1).values()) == {0}


@given(
    st.dictionaries(st.integers(0, 40), st.integers(0, 1000), min_size=1),
    st.dictionaries(st.integers(0, 40), st.integers(0, 9)),
    st.integers(1, 6),
)
def test_shares_are_even_as_far_as_whole_parts_allow(
    rows: dict[int, int], homes: dict[int, int], counters: int
) -> None:
    chosen = dealt(rows, homes, counters)
    assert chosen.keys() == rows.keys()
    found = loads(rows, chosen, counters)
    largest = max(rows.values()) + 1
    assert max(found) <= max(LOPSIDED * sum(found) / counters, min(found) + largest)
    assert dealt(rows, chosen, counters) == chosen
