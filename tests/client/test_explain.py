"""`why` says what really keeps a task waiting."""

from __future__ import annotations

from typing import Any

import pytest

from zkd.client.explain import Picture, explain
from zkd.records import (
    Assigned,
    Assignment,
    Attempt,
    Dead,
    Fault,
    Leader,
    Limit,
    Node,
    NodeStatus,
    Result,
    Running,
    Task,
)

A = Node("a", "1", 2, labels={"rack": "r1"}, kernels=["k", "gpu"])
B = Node("b", "1", 1, labels={"rack": "r2"}, kernels=["k"], memory=1000)


def picture(task: Task | None = None, **changes: Any) -> Picture:
    known: dict[str, Any] = {"leader": Leader("a", "1", 1), "nodes": {"a": A, "b": B}, "waiting": 3}
    return Picture("t-1", **{"task": task or Task("k"), **known, **changes})


def assignment(*ids: str) -> Assignment:
    return Assignment(1, "1", [Assigned(task, 1, 0, 1) for task in ids])


FULL = {"a": assignment("x", "y"), "b": assignment("z")}
RUNS = NodeStatus("a", "1", "active", 2, 1, 0, [Running("t-1", "k", 2, 3.0, 0.4, "half")], 0, 0, 0, 0.0, 1.0)

OTHER = NodeStatus("a", "1", "active", 2, 1, 0, [Running("t-0", "k", 1, 3.0)], 0, 0, 0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (picture(), "could run now on a, b"),
        (picture(Task("gpu")), "could run now on a:"),
        (picture(Task("nope")), "No node that it may run on has the kernel nope"),
        (picture(Task("gpu", node="b")), "No node that it may run on has the kernel gpu"),
        (picture(Task("k", node="c")), "must run on node c, which is not here. Here: a, b"),
        (picture(Task("k", labels={"rack": "r9"})), "No node carries the labels rack=r9"),
        (
            picture(Task("k", slots=3)),
            "3 free slots on one node, and no node that it may run on has more than 2",
        ),
        (picture(Task("k", memory=10**6, node="b")), "more than any node that it may run on has"),
        (picture(states={"a": "draining", "b": "cordoned"}), "take no work: a is draining, b is cordoned"),
        (picture(assignments=FULL), "waits for a free slot: a has 0 of 2 free, b has 0 of 1 free. 3 tasks"),
        (picture(Task("k", slots=2), assignments={"a": assignment("x")}), "a has 1 of 2 free"),
        (
            picture(Task("k", after=["x", "y", "z"]), unfinished=["x"], promised=["z"]),
            "It waits for 2 of 3 tasks to be done: x, z (which nobody has dropped yet).",
        ),
        (picture(Task("k", after=["x"])), "could run now"),
        (
            picture(Task("k", after=list("abcdefgh")), unfinished=list("abcdefgh")),
            "8 of 8 tasks to be done: a, b, c, d, e and 3 more.",
        ),
        (
            picture(limit=Limit(at_once=0, by="ops@x", reason="the disk")),
            "All work of k is held back by its limit (by ops@x",
        ),
        (
            picture(limit=Limit(at_once=1), statuses={"a": OTHER}),
            "It waits for the limit of k, 1 at once, and 1 run now.",
        ),
        (picture(limit=Limit(at_once=2), statuses={"a": OTHER}), "could run now"),
        (picture(limit=Limit(per_s=2.5)), "the limit of k is 2.5 starts a second"),
        (picture(leader=None), "waits for a leader: nobody leads now, 2 nodes are here"),
        (picture(leader=None, nodes={}), "no node is here. Start one"),
        (picture(nodes={}), "No node is here"),
        (picture(Task("k", delay_s=60), age_s=10.0), "50 s of 60 s are left"),
        (picture(Task("k", not_after_s=5), age_s=10.0), "not_after_s of 5 s is over"),
        (picture(assignments={"a": assignment("t-1")}), "assigned to a as attempt 1"),
        (picture(assignments={"c": assignment("t-1")}), "assigned to c, which is gone"),
        (picture(statuses={"a": RUNS}), "runs on a, attempt 2, for 3 s, 40% (half)"),
        (
            picture(statuses={"a": RUNS, "b": RUNS}),
            "runs on a, attempt 2, for 3 s, 40% (half). A second copy runs on b; the first to end counts.",
        ),
        (picture(Task("k", attempts=[Attempt("crash", "a", "SIGSEGV")])), "next one comes after a pause"),
        (
            picture(Task("k", attempts=[Attempt("crash", "a", "SIGSEGV")]), assignments=FULL),
            "1 attempts so far; the last, on a, ended by crash: SIGSEGV",
        ),
        (picture(result=Result("done", "a", 1, run_s=0.25)), "It is done: attempt 1 on a took 0.25 s"),
        (
            picture(result=Result("failed", "a", 1, error=Fault("E", "no"), attempts=[Attempt("error", "a")])),
            "on a: E: no.",
        ),
        (picture(result=Result("cancelled", error=Fault("cancelled", "it was deleted"))), "cancelled: it was deleted."),
        (
            picture(result=Result("failed", "a", 2, error=Fault("ValueError", "no"), attempts=[Attempt("error", "a")])),
            "ended, failed on a after 2 attempts: ValueError: no",
        ),
        (
            picture(result=Result("rejected", error=Fault("bad", "expected `int`", path="$.priority"))),
            "rejected: $.priority: expected `int`.",
        ),
        (Picture("t-1", malformed="$: expected JSON", leader=Leader("a", "1", 1)), "not a task ($: expected JSON)"),
        (Picture("t-1", dead=Dead(b"{}", Fault("E", "no"), [], "")), "It is dead: E: no"),  # type: ignore[arg-type]
    ],
)
def test_why(seen: Picture, words: str) -> None:
    assert words in explain(seen)


def test_nothing_is_said_of_what_is_not_there() -> None:
    assert explain(Picture("t-1")) == ""
