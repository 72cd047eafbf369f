"""What people are told of a task that waits: every kind of waiting, in words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.core.scene import cluster, decided, drop, node
from zkd.core.dispatch import Dispatch
from zkd.records import Attempt, Limit


def busy(**fields: Any) -> Dispatch:
    """One node whose slots are full, and a task `t` that waits."""
    mind = cluster(node("a", 2, memory=1000, labels={"disk": "ssd"}))
    for n in range(2):
        drop(mind, f"busy{n}", n, memory=400)
    decided(mind)
    drop(mind, "t", 50, **fields)
    decided(mind)
    return mind


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"delay_s": 7.5}, r"^Its delay is not over: 7.5 s are left\.$"),
        ({"delay_s": 7.5, "not_after_s": 9.0}, r"It expires in 9 s\.$"),
        (
            {"attempts": [Attempt("error", "a", "no")], "retries": 1},
            r"pauses between two attempts, for another 0.1 s.* 1 attempt so",
        ),
        (
            {"after": ["busy0", "promised"]},
            r"waits for 2 tasks to be done: busy0, promised\. Neither .* of promised\.$",
        ),
        ({"node": "mars"}, r"must run on node mars, which is not here"),
        ({"labels": {"planet": "mars"}}, r"carries the labels planet=mars"),
        ({"slots": 3}, r"wants 3 slots of one node, and none that could run it has more than 2"),
        ({"memory": 5000}, r"more than any node that could run it has"),
        ({"kernel": "absent"}, r"No node has a kernel 'absent'"),
        ({}, r"^It waits for a free slot: a has 0 of 2 free\.$"),
        ({"slots": 2}, r"^It waits for 2 free slots of one node: a has 0 of 2 free\.$"),
        ({"attempts": [Attempt("drain", "b", "no")]}, r"the last, on b, ended by drain\.$"),
    ],
)
def test_what_it_waits_for(fields: dict[str, Any], words: str) -> None:
    assert re.search(words, busy(**fields).why("t", 0.0)), busy(**fields).why("t", 0.0)


def test_its_place() -> None:
    mind = busy(submitter="x")
    for n in range(3):
        drop(mind, f"urgent{n}", 60 + n, priority=5)
    for n in range(4):
        drop(mind, f"y{n}", 70 + n, submitter="y")
    drop(mind, "older", 10, submitter="x")
    drop(mind, "lazy", 11, priority=-1)
    decided(mind)
    assert mind.why("t", 0.0).endswith(
        "Before it go 3 of higher priority, 1 that are older of x, by turns those of other submitters, who have 4."
    )


def test_memory_that_others_hold() -> None:
    mind = cluster(node("a", 4, memory=1000))
    drop(mind, "big", 1, memory=800)
    decided(mind)
    drop(mind, "t", 2, memory=300)
    decided(mind)
    assert mind.why("t", 0.0).startswith("It waits for 300 bytes of memory")


def test_limits() -> None:
    mind = cluster(node("a", 9))
    mind.limit_set("k", Limit(at_once=1), 0.0)
    drop(mind, "s", 1)
    drop(mind, "t", 2)
    decided(mind)
    assert mind.why("t", 0.0).startswith("k is limited to 1 at once, and 1 are held now.")
    mind.limit_set("k", Limit(per_s=0.5), 0.0)
    decided(mind)
    drop(mind, "u", 3)
    decided(mind)
    assert mind.why("u", 0.5).startswith("k is limited to 0.5 starts a second; the next one is in 1.5 s.")


def test_a_gap_that_is_kept() -> None:
    mind = cluster(node("a", 2))
    drop(mind, "narrow", 1)
    decided(mind)
    drop(mind, "wide", 2, slots=2)
    for now in (0.0, 1.0, 2.0):
        decided(mind, now)
    drop(mind, "t", 3, now=2.0)
    decided(mind, 2.0)
    assert mind.why("wide", 2.0) == "It wants 2 slots of one node; a is kept free for it and has 1 by now."
    assert mind.why("t", 2.0).startswith("a has room, and is kept free for a task that takes more slots.")


def test_who_holds_it_and_since_when() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 1)
    decided(mind)
    assert mind.why("t", 2.5).startswith("It is held by a since 2.5 s, as attempt 1")
    mind.node_lost("a", 3.0)
    assert mind.why("t", 3.0).startswith("It was held by a, which was lost")
    assert mind.why("unknown", 3.0) == ""


def test_nodes_that_take_no_work() -> None:
    mind = cluster(node("a"), node("b", draining=True))
    mind.node_state("a", "cordoned")
    drop(mind, "t", 1)
    decided(mind)
    assert mind.why("t", 0.0) == "The nodes that could run it take no work: a is cordoned, b is draining."
    alone = cluster()
    drop(alone, "t", 1)
    assert alone.why("t", 0.0) == "No node is here."
