"""Tasks go where their data is, if that costs no long wait."""

from __future__ import annotations

import pytest

from tests.core.scene import cluster, decided, drop, lists, node
from zkd.core.dispatch import FETCH_BYTES_A_S, PATIENCE_S, Dispatch
from zkd.records import Limit, Task


def busy(*, slots: int = 1) -> Dispatch:
    """Node near is full, node far is not."""
    mind = cluster(node("near", slots), node("far", 4), me="far")
    for n in range(slots):
        drop(mind, f"busy{n}", n, node="near")
    decided(mind)
    return mind


def test_a_preferred_node_with_room_wins_over_a_less_loaded_one() -> None:
    mind = cluster(node("near", 8), node("far", 8), me="far")
    drop(mind, "other", 1, node="near")
    decided(mind)
    drop(mind, "t", 2, prefer=["near"])
    assert lists(decided(mind)) == {"near": ["other", "t"]}


def test_a_busy_one_is_waited_for_a_little() -> None:
    mind = busy()
    drop(mind, "t", 9, prefer=["near"])
    assert decided(mind) == []
    assert mind.next_timer() == PATIENCE_S
    assert mind.why("t", 0.1) == "It waits for near, which it prefers, another 0.2 s."
    mind.task_gone("busy0", 0.1)
    assert lists(decided(mind, 0.1)) == {"near": ["t"]}


def test_then_it_goes_anywhere() -> None:
    mind = busy()
    drop(mind, "t", 9, prefer=["near"])
    decided(mind)
    assert lists(decided(mind, PATIENCE_S)) == {"far": ["t"]}


def test_others_do_not_wait_behind_it() -> None:
    mind = busy()
    drop(mind, "t", 9, prefer=["near"], priority=9)
    drop(mind, "u", 10)
    assert lists(decided(mind)) == {"far": ["u"]}


def test_it_waits_when_its_turn_comes_and_once_only() -> None:
    mind = busy()
    for n in range(4):
        drop(mind, f"f{n}", 10 + n, node="far")
    decided(mind)
    drop(mind, "t", 99, prefer=["near"])
    assert decided(mind, 5.0) == []
    mind.task_gone("f0", 6.0)
    assert "t" not in lists(decided(mind, 6.0)).get("far", [])
    mind.task_gone("f1", 6.2)
    assert "t" not in lists(decided(mind, 6.2)).get("far", [])
    assert "t" in lists(decided(mind, 6.0 + PATIENCE_S))["far"]


@pytest.mark.parametrize("prefer", ["absent", "drained", "unable"])
def test_a_node_that_cannot_take_it_is_not_waited_for(prefer: str) -> None:
    mind = cluster(node("far", 4), node("drained", draining=True), node("unable", kernels=("other",)))
    drop(mind, "t", 9, prefer=[prefer])
    assert lists(decided(mind)) == {"far": ["t"]}


def test_a_node_that_goes_meanwhile_delays_it_no_longer() -> None:
    mind = busy()
    drop(mind, "t", 9, prefer=["near"])
    decided(mind)
    mind.node_lost("near", 0.1)
    decided(mind, 0.1)
    assert "t" in lists(decided(mind, PATIENCE_S))["far"]


def arrives(mind: Dispatch, data: dict[str, int]) -> None:
    mind.task_read("t", 9, 0, Task(kernel="k"), age_s=0.0, now=0.0, data=data)


def test_a_task_goes_where_its_blobs_are() -> None:
    mind = cluster(node("near", 8), node("far", 8), node("some", 8), me="far")
    arrives(mind, {"near": 10**9, "some": 10**6})
    assert lists(decided(mind)) == {"near": ["t"]}


def test_blobs_are_not_waited_for_longer_than_they_take_to_fetch() -> None:
    mind = busy()
    arrives(mind, {"near": 10**6})
    assert decided(mind) == []
    assert mind.next_timer() == 10**6 / FETCH_BYTES_A_S
    assert lists(decided(mind, 0.01)) == {"far": ["t"]}


def test_what_prefers_a_node_keeps_the_limit_of_its_kernel() -> None:
    mind = cluster(node("near", 4), node("far", 4))
    mind.limit_set("k", Limit(at_once=1), 0.0)
    drop(mind, "t", 1, prefer=["near"])
    drop(mind, "u", 2, prefer=["far"])
    assert lists(decided(mind)) == {"near": ["t"]}
    mind.task_gone("t", 1.0)
    assert lists(decided(mind, 1.0))["far"] == ["u"]


def test_deleting_what_is_patient_leaves_nothing_behind() -> None:
    mind = busy()
    drop(mind, "t", 9, prefer=["near"])
    decided(mind)
    mind.task_gone("t", 0.1)
    decided(mind, 0.1)
    assert not mind.has_waiting
    drop(mind, "t", 20, now=0.2)
    assert lists(decided(mind, 0.2)) == {"far": ["t"]}
    decided(mind, 1.0)
