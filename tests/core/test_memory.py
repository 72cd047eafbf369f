"""What a node holds at once fits its memory, as far as node and tasks say how much."""

from __future__ import annotations

import pytest

from tests.core.scene import cluster, decided, drop, line, lists, node
from zkd.core.picture import graded


def test_what_a_node_holds_together_fits_its_memory() -> None:
    mind = cluster(node("a", 8, memory=1000))
    for n in range(4):
        drop(mind, f"t{n}", n, memory=400)
    drop(mind, "small", 9, memory=200)
    drop(mind, "silent", 10)
    assert lists(decided(mind)) == {"a": ["t0", "t1", "small", "silent"]}
    mind.task_gone("t0", 1.0)
    assert lists(decided(mind, 1.0)) == {"a": ["t1", "small", "silent", "t2"]}


def test_a_node_that_does_not_say_has_enough() -> None:
    mind = cluster(node("a", 4))
    for n in range(3):
        drop(mind, f"t{n}", n, memory=2**40)
    assert lists(decided(mind)) == {"a": ["t0", "t1", "t2"]}


def test_what_a_new_leader_finds_counts() -> None:
    mind = cluster(node("a", 4, memory=1000), node("b", 4, memory=1000))
    drop(mind, "t", 1, memory=700)
    mind.assignment_found("a", "a.1", [line("t", 1)], 0.0)
    drop(mind, "u", 2, memory=700)
    assert lists(decided(mind)) == {"b": ["u"]}


def test_a_large_one_is_not_passed_over_for_ever_by_small_ones() -> None:
    mind = cluster(node("a", 4, memory=1000))
    for n in range(4):
        drop(mind, f"n{n}", n, memory=250)
    decided(mind)
    drop(mind, "large", 4, memory=900)
    now = 0.0
    for n in range(5, 300):
        now += 0.1
        drop(mind, f"n{n}", n, memory=250, now=now)
        held = list(mind.members["a"].held)
        if "large" in held:
            return
        mind.task_gone(held[0], now)
        decided(mind, now)
    pytest.fail("295 younger ones went first")


@pytest.mark.parametrize("memory", [1, 255, 256, 1000, 10**6 + 1, 3 * 2**30 + 12345])
def test_sizes_are_rounded_up_by_little(memory: int) -> None:
    rounded = graded(memory)
    assert rounded is not None
    assert memory <= rounded <= memory * 1.004
    assert graded(rounded) == rounded
