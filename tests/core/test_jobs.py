"""What a job needs, by what stands in the tree, and who is to do it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import structs

from zkd.core.jobs import (
    EDITED,
    STOPPED_EARLY,
    Step,
    Turn,
    Words,
    duty,
    merged,
    next_fence,
    rank,
    read_words,
    turn,
)
from zkd.jobs import DONE, FileRef, JobState, Phase

JOB = {"model": "logistic", "dataset": "digits"}


def words(czxid: int = 10, version: int = 0, **fields: Any) -> Words:
    return read_words("j", json.dumps(JOB | fields).encode(), czxid, version)


def state(of: Words, phase: Phase = "training", **fields: Any) -> JobState:
    return JobState(czxid=of.czxid, terms=of.terms, fence=3, phase=phase, **fields)


def ref(name: str, *nodes: str) -> FileRef:
    return FileRef(name * 64, 5, list(nodes), 7)


def test_a_job_that_nobody_has_begun_is_taken() -> None:
    assert duty(words(), None).step is Step.TAKE


def test_a_job_whose_coordinator_is_gone_is_taken() -> None:
    phases: tuple[Phase, ...] = ("waiting", "preparing", "training", "explaining", "paused")
    assert {duty(words(), state(words(), phase)).step for phase in phases} == {Step.TAKE}


@pytest.mark.parametrize("phase", DONE)
def test_what_is_over_stays_over(phase: Phase) -> None:
    over = state(words(), phase)
    for later in (words(), words(desired="pause"), words(desired="stop"), words(l2=3.0), read_words("j", b"{", 10, 4)):
        assert duty(later, over).step is Step.REST


def test_a_paused_job_is_left_until_somebody_wants_more_of_it() -> None:
    paused = words(desired="pause")
    assert duty(paused, None).step is Step.PAUSE
    assert duty(paused, state(paused, "training")).step is Step.PAUSE
    assert duty(paused, state(paused, "paused")).step is Step.REST
    assert duty(words(), state(paused, "paused")).step is Step.TAKE


def test_a_stopped_job_ends_with_what_its_checkpoint_has() -> None:
    stopped = words(desired="stop")
    assert duty(stopped, state(stopped, "paused", checkpoint=ref("a", "n"))).step is Step.TAKE
    for nothing in (None, state(stopped, "preparing")):
        needed = duty(stopped, nothing)
        assert (needed.step, needed.why) == (Step.FAIL, STOPPED_EARLY)


def test_other_terms_fail_a_job_that_has_begun() -> None:
    needed = duty(words(l2=2.0), state(words(l2=1.5)))
    assert (needed.step, needed.why) == (Step.FAIL, EDITED)
    assert duty(words(desired="pause"), state(words())).why != EDITED, "what it is wanted to do is no term"


def test_a_malformed_job_fails_with_the_reason() -> None:
    for text, said in (
        (b"", "nothing"),
        (b"{", "JSON"),
        (b'{"model": "logistic"}', "dataset"),
        (b'{"model": "tree", "dataset": "a"}', "tree"),
        (b'{"model": "svm", "dataset": "a", "tolerance": 1}', "tolerance"),
        (b'{"model": "svm", "dataset": "a", "dataset": "b"}', "twice"),
        (b'{"model": "svm", "dataset": "../etc"}', "NAME"),
        (b'{"model": "svm", "dataset": "a@0"}', "NAME"),
        (b"x" * 1_000_000, "bytes"),
    ):
        needed = duty(read_words("j", text, 10, 0), None)
        assert needed.step is Step.FAIL
        assert said in needed.why, needed.why
    assert "1 to 128 letters" in duty(read_words("so/many", json.dumps(JOB).encode(), 10, 0), None).why


def test_a_dropped_id_begins_another_life() -> None:
    former = state(words(czxid=10), "done", checkpoint=ref("a", "n"))
    assert duty(words(czxid=11), former).step is Step.TAKE
    assert next_fence(words(czxid=11), former) == 1
    assert next_fence(words(czxid=10), former) == 4
    assert next_fence(words(), None) == 1


def test_the_state_of_a_deleted_job_is_removed() -> None:
    assert duty(None, state(words(), "done")).step is Step.REMOVE
    assert duty(None, None).step is Step.REST


def test_a_running_job_does_what_its_words_say() -> None:
    began = words()
    assert turn(began, began) is Turn.GO_ON
    assert turn(words(version=2, desired="pause"), began) is Turn.PAUSE
    assert turn(words(version=2, desired="stop"), began) is Turn.STOP
    assert turn(words(version=2, seed=4), began) is Turn.FAIL
    assert turn(read_words("j", b"?", 10, 2), began) is Turn.FAIL
    assert turn(None, began) is Turn.END
    assert turn(words(czxid=12), began) is Turn.END, "it was deleted and dropped again"


def test_each_job_has_an_order_of_nodes_of_its_own() -> None:
    nodes = [f"n{number}" for number in range(5)]
    firsts = set()
    for number in range(40):
        ranks = [rank(f"job-{number}", node, nodes) for node in nodes]
        assert sorted(ranks) == [0, 1, 2, 3, 4]
        firsts.add(nodes[ranks.index(0)])
    assert firsts == set(nodes)
    assert rank("j", "stranger", nodes) == rank("j", "stranger", [*nodes, "stranger"])


def test_nodes_that_others_added_are_kept_by_the_coordinators_writes() -> None:
    mine = state(words(), checkpoint=ref("a", "n", "m"), model=ref("b", "n"))
    there = state(words(), checkpoint=ref("a", "m", "k"), model=ref("c", "x"))
    kept = merged(structs.replace(mine, phase="explaining"), there)
    assert kept.phase == "explaining"
    assert kept.checkpoint == ref("a", "n", "m", "k")
    assert kept.model == ref("b", "n"), "those are of another file"
