"""Wide tasks get a node kept free for them, whatever happens to that node, and no node is kept for nothing.

A stream of narrow tasks closes every gap as it opens: without a node of its own a wide task would wait for ever.
"""

from __future__ import annotations

import random

import pytest

from tests.core.scene import cluster, decided, drop, node
from zkd.core.dispatch import Dispatch
from zkd.core.lanes import Lane, Urgency
from zkd.core.picture import Phase
from zkd.core.queues import KEPT_MAX
from zkd.records import Limit


class Stream:
    """Narrow tasks without end, as many at a time as there are slots and some more."""

    def __init__(self, mind: Dispatch, waiting: int) -> None:
        self.mind = mind
        self.chance = random.Random(7)
        self.number = 0
        self.now = 0.0
        self.began: set[str] = set()  # wide ones
        for _ in range(waiting):
            self.arrive()
        decided(mind, 0.0)

    def arrive(self) -> None:
        self.number += 1
        drop(self.mind, f"narrow{self.number}", 1_000 + self.number, now=self.now)

    def flow(self, for_s: float) -> None:
        end = self.now + for_s
        while self.now < end:
            self.now += 0.1
            for entry in [entry for entry in self.mind.tasks.values() if entry.phase is Phase.ASSIGNED]:
                if entry.id.startswith("wide"):
                    self.began.add(entry.id)
                    is_over = self.now - entry.given_at > 1
                else:
                    is_over = self.chance.random() < 0.1
                if is_over:
                    self.mind.task_gone(entry.id, self.now)
                    self.arrive()
                    decided(self.mind, self.now)
            decided(self.mind, self.now)


def test_more_wide_tasks_than_nodes_are_kept_for_all_get_their_turn() -> None:
    count = KEPT_MAX + 3
    mind = cluster(*(node(f"n{i}", 4, labels={f"l{i}": "1"}) for i in range(count)))
    stream = Stream(mind, 8 * count)
    for i in range(count):
        drop(mind, f"wide{i}", i + 1, slots=4, labels={f"l{i}": "1"})
    stream.flow(60)
    assert stream.began == {f"wide{i}" for i in range(count)}


def test_a_node_is_kept_when_none_could_be_at_first() -> None:
    mind = cluster(node("a", 4))
    stream = Stream(mind, 8)
    drop(mind, "wide", 1, slots=4)
    decided(mind, 0.0)
    mind.node_state("a", "cordoned")
    stream.flow(3)
    mind.node_state("a", "active")
    stream.flow(60)
    assert stream.began == {"wide"}


def test_another_node_is_kept_when_the_kept_one_is_lost() -> None:
    mind = cluster(node("a", 4), node("b", 4))
    stream = Stream(mind, 16)
    drop(mind, "wide", 1, slots=4)
    stream.flow(1.5)
    (kept,) = mind.queues.kept
    mind.node_lost(kept, stream.now)
    stream.flow(30)
    assert stream.began == {"wide"}


def test_another_node_is_kept_when_the_kept_one_takes_no_work() -> None:
    mind = cluster(node("a", 4), node("b", 4))
    stream = Stream(mind, 16)
    drop(mind, "wide", 1, slots=4)
    stream.flow(1.5)
    (kept,) = mind.queues.kept
    mind.node_state(kept, "cordoned")
    stream.flow(30)
    assert stream.began == {"wide"}


def test_no_node_is_kept_for_what_a_limit_forbids() -> None:
    mind = cluster(node("a", 2, kernels=("k", "limited")))
    mind.limit_set("limited", Limit(at_once=5), 0.0)
    drop(mind, "narrow", 1)
    decided(mind, 0.0)
    drop(mind, "wide", 2, kernel="limited", slots=2)
    decided(mind, 0.0)
    decided(mind, 1.1)
    assert list(mind.queues.kept) == ["a"]
    mind.limit_set("limited", Limit(at_once=0), 12.0)
    drop(mind, "later", 3, now=12.0)
    decided(mind, 12.0)
    assert mind.tasks["later"].phase is Phase.ASSIGNED


def test_very_many_different_needs_cost_a_turn_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of these can run here; a node looks only at what it might run, and at few of the wide ones at a time."""
    mind = cluster(node("a", 4, labels={"rack": "r1"}))
    for number in range(0, 3_000, 3):
        drop(mind, f"t{number}", number, labels={"rack": "r1", "disk": f"d{number}"})
        drop(mind, f"t{number + 1}", number + 1, node="a", labels={"disk": f"d{number}"})
        drop(mind, f"t{number + 2}", number + 2, slots=5 + number, memory=number + 1)
    mind.commands(0.0)
    a = mind.members["a"]
    assert all(len(shelves.seen_by(a)) < 10 for shelves in (mind.queues._shelves, *mind.queues._pinned.values()))
    looks = 0
    head = Lane.head

    def counted_head(lane: Lane) -> Urgency | None:
        nonlocal looks
        looks += 1
        return head(lane)

    monkeypatch.setattr(Lane, "head", counted_head)
    for turn in range(100):
        drop(mind, f"runs{turn}", 10_000 + turn, now=turn / 10)
        mind.commands(turn / 10)
        mind.task_gone(f"runs{turn}", turn / 10)
        mind.commands(turn / 10)
    assert looks < 10_000  # each of these a few times would be as many in one turn


def test_what_was_overlooked_is_found_when_the_leader_looks_again() -> None:
    mind = cluster(node("a", 1))
    drop(mind, "t", 1)
    mind.queues._awake.clear()  # as no bug should
    assert list(mind.check()) != []
    assert mind.commands(0.0) == []
    mind.look_again()
    mind.commands(1.0)
    assert list(mind.check()) == []
    assert mind.tasks["t"].phase is Phase.ASSIGNED
