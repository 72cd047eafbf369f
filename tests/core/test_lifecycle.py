"""One task on its node: the table of its states, and what an attempt without a value leads to."""

from __future__ import annotations

from itertools import product

import pytest

from zkd.core.lifecycle import (
    TABLE,
    InvalidTransition,
    Publish,
    State,
    Step,
    TryAgain,
    advance,
    attempt_number,
    handed_back,
    judge,
)
from zkd.records import CHARGED, Attempt, Cause, Fault, Task

FAULT = Fault("ValueError", "x must be positive")


@pytest.mark.parametrize(("state", "step"), [pair for pair in product(State, Step) if pair not in TABLE])
def test_a_step_that_cannot_follow_tells_the_story(state: State, step: Step) -> None:
    with pytest.raises(InvalidTransition, match=rf"task t: {step.name} cannot follow on {state.name}"):
        advance(state, step, "task t")


def test_every_state_can_be_left_and_only_the_end_cannot() -> None:
    assert {state for state, _ in TABLE} == set(State) - {State.GONE}
    assert set(TABLE.values()) == set(State) - {State.READING}


def test_a_task_can_be_dropped_at_any_time() -> None:
    assert all(advance(state, Step.DROPPED, "t") is State.GONE for state in State if state is not State.GONE)


@pytest.mark.parametrize("cause", sorted(CHARGED))
def test_retries_are_used_up_and_then_the_task_is_dead(cause: Cause) -> None:
    task = Task(kernel="k", retries=2)
    for _ in range(2):
        verdict = judge(task, cause, FAULT, "a")
        assert isinstance(verdict, TryAgain)
        task = Task(kernel="k", retries=2, attempts=verdict.attempts)
    verdict = judge(task, cause, FAULT, "b")
    history = (*[Attempt(cause, "a", FAULT.message)] * 2, Attempt(cause, "b", FAULT.message))
    assert verdict == Publish("failed", FAULT, history, is_dead=True)


def test_losses_and_drains_use_up_no_retries() -> None:
    task = Task(kernel="k", retries=1, attempts=[Attempt("node_loss", "a"), Attempt("drain", "a")] * 5)
    assert isinstance(judge(task, "error", FAULT, "a"), TryAgain)


def test_without_retries_the_first_failure_ends_it() -> None:
    assert isinstance(judge(Task(kernel="k"), "error", FAULT, "a"), Publish)


def test_a_long_message_is_kept_short_in_the_history() -> None:
    verdict = judge(Task(kernel="k", retries=1), "error", Fault("E", "x" * 10_000), "a")
    assert len(verdict.attempts[-1].message) == 500


def test_drains_in_a_row_leave_one_line_and_no_charge() -> None:
    task = Task(kernel="k", attempts=[Attempt("error", "a")])
    for name in ("a", "b", "c"):
        task = Task(kernel="k", attempts=handed_back(task, name).attempts)
    assert [(attempt.cause, attempt.node) for attempt in task.attempts] == [("error", "a"), ("drain", "c")]
    assert attempt_number(task.attempts) == 2
