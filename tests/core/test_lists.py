"""Which lines of assign/<node> linger, and which of them a node cannot have seen."""

from __future__ import annotations

from zkd.core.lists import LINGER_S, Lists
from zkd.records import Assigned

A, B, C = (Assigned(name, n, 0, 1) for n, name in enumerate("abc"))


def test_the_line_of_a_task_that_is_gone_lingers_until_it_has_stood_for_a_while() -> None:
    lists = Lists()
    lists.wrote("n", 1, [A, B], 0.0)
    assert lists.lingering("n", [B], {"b"}, LINGER_S / 2) == [A]
    lists.wrote("n", 2, [B, A], LINGER_S / 2)
    assert lists.lingering("n", [B], {"b"}, LINGER_S * 0.9) == [A]
    assert lists.lingering("n", [B], {"b"}, LINGER_S) == []


def test_the_line_of_a_task_that_is_there_lingers_not() -> None:
    """It moved on: to another node, or to another version, which may stand in this very list."""
    lists = Lists()
    lists.wrote("n", 1, [A, B], 0.0)
    later = Assigned("b", 7, 0, 1)  # another life of the same id
    assert lists.lingering("n", [later], {"a", "b"}, 0.0) == []
    assert lists.lingering("n", [later], {"a"}, 0.0) == []


def test_only_what_stood_between_two_readings_is_unseen() -> None:
    lists = Lists()
    for version, lines in enumerate(([A], [A, B], [B], [B, C], [C], []), start=1):
        lists.wrote("n", version, lines, 0.0)
    assert lists.unseen("n", 0, 6) == {"a", "b", "c"}
    assert lists.unseen("n", 1, 6) == {"b", "c"}
    assert lists.unseen("n", 1, 4) == set()  # it read b in the fourth
    assert lists.unseen("n", 1, 5) == {"b"}
    assert lists.unseen("n", 2, 6) == {"c"}
    assert lists.unseen("another", 0, 9) == set()
    lists.forget("n")
    assert lists.unseen("n", 0, 6) == set()
