"""Operators' limits on kernels: kept over the whole cluster, by whoever leads, and at no other kernel's cost."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.core.scene import cluster, decided, drop, line, lists, node
from zkd.core.dispatch import Dispatch
from zkd.records import Limit


def limited(limit: Limit, slots: int = 100, tasks: int = 100, kernels: tuple[str, ...] = ("k", "free")) -> Dispatch:
    mind = cluster(node("a", slots, kernels=kernels), node("b", slots, kernels=kernels))
    mind.limit_set("k", limit, 0.0)
    for n in range(tasks):
        drop(mind, f"t{n}", n)
    return mind


def started(mind: Dispatch, until_s: float) -> list[float]:
    """When tasks were given out, if every timer is kept."""
    times: list[float] = []
    now: float | None = 0.0
    known: set[str] = set()
    while now is not None and now <= until_s:
        given = {task_id for ids in lists(decided(mind, now)).values() for task_id in ids}
        times += [now] * len(given - known)
        known |= given
        now = mind.next_timer()
    return times


def test_a_rate_is_kept_and_used_up() -> None:
    times = started(limited(Limit(per_s=10)), 2.0)
    assert times[0] == 0.0
    assert len(times) == 21
    assert all(b - a == pytest.approx(0.1, abs=1e-4) for a, b in pairwise(times))


def test_a_burst_accrues_while_nothing_is_started() -> None:
    mind = limited(Limit(per_s=10, burst=5), tasks=0)
    for n in range(20):
        drop(mind, f"t{n}", n, now=60.0)
    decided(mind, 60.0)
    assert sum(len(member.held) for member in mind.members.values()) == 5


def test_a_new_leader_begins_with_one() -> None:
    mind = limited(Limit(per_s=10, burst=50))
    decided(mind)
    assert sum(len(member.held) for member in mind.members.values()) == 1


def test_so_many_at_once_over_all_nodes() -> None:
    mind = limited(Limit(at_once=3))
    decided(mind)
    assert sorted(task_id for member in mind.members.values() for task_id in member.held) == ["t0", "t1", "t2"]
    assert mind.next_timer() is None
    mind.task_gone("t1", 1.0)
    decided(mind, 1.0)
    assert "t3" in {task_id for member in mind.members.values() for task_id in member.held}


def test_what_is_held_when_a_leader_takes_over_counts() -> None:
    mind = cluster(node("a", 9))
    mind.limit_set("k", Limit(at_once=2), 0.0)
    drop(mind, "t", 1)
    mind.assignment_found("a", "a.1", [line("t", 1)], 0.0)
    drop(mind, "u", 2)
    drop(mind, "v", 3)
    assert lists(decided(mind)) == {"a": ["t", "u"]}


def test_nobody_else_waits_behind_a_limited_kernel() -> None:
    mind = limited(Limit(at_once=0))
    drop(mind, "other", 999, kernel="free", priority=-9)
    assert [ids for ids in lists(decided(mind)).values() if ids] == [["other"]]


def test_limits_change_while_tasks_wait() -> None:
    mind = limited(Limit(at_once=0), tasks=5)
    assert decided(mind) == []
    mind.limit_set("k", Limit(at_once=2), 1.0)
    decided(mind, 1.0)
    assert sum(len(member.held) for member in mind.members.values()) == 2
    mind.limit_set("k", None, 2.0)
    decided(mind, 2.0)
    assert sum(len(member.held) for member in mind.members.values()) == 5
    mind.limit_set("k", Limit(at_once=1), 3.0)
    drop(mind, "late", 50, now=3.0)
    assert decided(mind, 3.0) == []


def test_a_slower_rate_does_not_forget_and_a_faster_one_does_not_wait() -> None:
    mind = limited(Limit(per_s=0.001), tasks=9)
    decided(mind)
    mind.limit_set("k", Limit(per_s=10), 1.0)
    assert mind.next_timer() is not None
    decided(mind, 1.0)
    decided(mind, 1.2)
    assert sum(len(member.held) for member in mind.members.values()) == 2


def test_work_that_is_limited_is_spread_by_turns_too() -> None:
    mind = cluster(node("a", 9))
    mind.limit_set("k", Limit(at_once=1), 0.0)
    for n in range(5):
        drop(mind, f"x{n}", n, submitter="x")
    drop(mind, "y", 9, submitter="y")
    assert lists(decided(mind)) == {"a": ["x0"]}
    mind.task_gone("x0", 1.0)
    assert lists(decided(mind, 1.0)) == {"a": ["y"]}
