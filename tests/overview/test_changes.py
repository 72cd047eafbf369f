"""Promises of zkd.overview.changes: each difference of two looks is told once, and equal looks tell nothing."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from zkd.overview.changes import changes
from zkd.overview.seen import AliasSeen, Counts, DatasetSeen, JobSeen, ModelSeen, NodeSeen, Overview

NODE = NodeSeen(node="a", state="active", incarnation="1", slots=2, version="0.1.0")
SET = DatasetSeen(name="d", version=1, rows=10, size=80, parts=4, replicas=2, health="full", full=4)
JOB = JobSeen(id="j", model="linear", dataset="d@1", phase="training", coordinator="a", round=3)
MODEL = ModelSeen("m", 2, 2, {"prod": AliasSeen(1)})
LOOK = Overview(
    root="/zkd", at_ms=1, leader="a", epoch=1, nodes=[NODE], datasets=[SET], jobs=[JOB], models=[MODEL], counts=Counts()
)


def told(**after: Any) -> list[tuple[str, str, str]]:
    found = changes(LOOK, replace(LOOK, at_ms=2, **after))
    assert all(change.at_ms == 2 and change.text for change in found)
    return [(change.event, change.of, change.grade) for change in found]


def test_equal_looks_tell_nothing() -> None:
    assert told() == []


DEGRADED = replace(SET, health="degraded", full=3, degraded=1)
CANARY = replace(MODEL, aliases={"prod": AliasSeen(1, 2, 10.0)})


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({"leader": None}, [("leader.lost", "a", "warning")]),
        ({"leader": "b", "epoch": 2}, [("leader.changed", "b", "info")]),
        ({"epoch": 2}, [("leader.changed", "a", "info")]),
        ({"nodes": []}, [("node.left", "a", "warning")]),
        ({"nodes": [replace(NODE, state="away")]}, [("node.left", "a", "warning")]),
        ({"nodes": [replace(NODE, incarnation="2")]}, [("node.rejoined", "a", "info")]),
        ({"nodes": [replace(NODE, state="draining")]}, [("node.state_changed", "a", "info")]),
        ({"nodes": [NODE, replace(NODE, node="b")]}, [("node.joined", "b", "info")]),
        ({"counts": Counts(dead=2)}, [("tasks.died", "dead", "error")]),
        ({"datasets": []}, [("dataset.removed", "d", "info")]),
        ({"datasets": [DEGRADED]}, [("dataset.degraded", "d", "warning")]),
        ({"datasets": [replace(SET, health="lost", full=3, lost=1)]}, [("dataset.lost", "d", "error")]),
        ({"datasets": [replace(SET, version=2)]}, [("dataset.published", "d", "info")]),
        ({"jobs": []}, [("job.cancelled", "j", "info")]),
        ({"jobs": [replace(JOB, phase="failed", error="no rows")]}, [("job.failed", "j", "error")]),
        ({"jobs": [replace(JOB, coordinator="b")]}, [("job.moved", "j", "warning")]),
        ({"jobs": [JOB, JobSeen(id="k")]}, [("job.dropped", "k", "info")]),
        ({"models": []}, [("model.removed", "m", "info")]),
        ({"models": [replace(MODEL, latest=3)]}, [("model.registered", "m", "info")]),
        ({"models": [replace(MODEL, aliases={"prod": AliasSeen(2)})]}, [("model.moved", "m", "info")]),
        ({"models": [CANARY]}, [("model.canary_set", "m", "info")]),
        ({"models": [replace(MODEL, aliases={})]}, [("model.alias_removed", "m", "info")]),
    ],
)
def test_a_difference_is_told_once(after: dict[str, Any], expected: list[tuple[str, str, str]]) -> None:
    assert told(**after) == expected


def test_a_mended_dataset_and_a_canary_taken_back_are_told() -> None:
    before, after = replace(LOOK, datasets=[DEGRADED], models=[CANARY]), LOOK
    found = [(change.event, change.grade) for change in changes(before, after)]
    assert found == [("dataset.mended", "info"), ("model.canary_ended", "warning")]


def test_what_no_longer_fits_into_a_look_has_not_gone() -> None:
    full = {"nodes": 1, "jobs": 1, "datasets": 1, "models": 1}
    assert told(nodes=[], jobs=[], datasets=[], models=[], omitted=full) == []
