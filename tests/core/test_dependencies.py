"""Tasks that wait for others: until all are done, for ever if one never is, and never in a circle."""

from __future__ import annotations

import pytest

from tests.core.scene import cluster, decided, drop, ends, line, lists, mourned, node
from zkd.core.commands import Command, End, Look
from zkd.core.dependencies import LOOK_FIRST_S, LOOK_MAX_S
from zkd.core.dispatch import Dispatch
from zkd.records import Attempt


def looks(commands: list[Command]) -> list[str]:
    return sorted(task_id for command in commands if isinstance(command, Look) for task_id in command.ids)


def test_a_task_runs_when_what_it_waits_for_is_done() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 1)
    drop(mind, "u", 2, after=["t"])
    commands = decided(mind)
    assert lists(commands) == {"a": ["t"]}
    assert looks(commands) == []
    mind.task_gone("t", 1.0)
    assert looks(decided(mind, 1.0)) == ["t"]
    mind.dependency_ended("t", "done", 1.0)
    assert lists(decided(mind, 1.0)) == {"a": ["u"]}


def test_all_of_them_have_to_be_done() -> None:
    mind = cluster(node("a"))
    drop(mind, "u", 2, after=["s", "t", "t"])
    assert looks(decided(mind)) == ["s", "t"]
    mind.dependency_ended("s", "done", 0.0)
    mind.dependency_open("t", 0.0)
    assert decided(mind) == []
    mind.dependency_ended("t", "done", 9.0)
    assert lists(decided(mind, 9.0)) == {"a": ["u"]}


@pytest.mark.parametrize("status", ["failed", "rejected", "cancelled", "expired"])
def test_one_that_ended_otherwise_fails_what_waits_for_it(status: str) -> None:
    mind = cluster(node("a"))
    drop(mind, "u", 2, after=["s", "t"], retries=5)
    decided(mind)
    mind.dependency_ended("t", status, 1.0)  # type: ignore[arg-type]
    (end,) = decided(mind, 1.0)
    assert isinstance(end, End)
    assert (end.id, end.status, end.error.kind, end.is_dead) == ("u", "failed", "dependency", True)
    assert end.error.message == f"it was to run after t, which ended {status}"
    mind.task_gone("u", 1.1)
    mind.dependency_ended("s", "done", 2.0)
    assert decided(mind, 2.0) == []


def test_a_promised_one_is_looked_for_less_and_less_often() -> None:
    mind = cluster(node("a"))
    drop(mind, "u", 2, after=["t"])
    now, pauses = 0.0, []
    for _ in range(14):
        assert looks(decided(mind, now)) == ["t"]
        mind.dependency_open("t", now)
        timer = mind.next_timer()
        assert timer is not None
        pauses.append(timer - now)
        now = timer
    assert pauses[:3] == pytest.approx([LOOK_FIRST_S, 2 * LOOK_FIRST_S, 4 * LOOK_FIRST_S])
    assert pauses[-1] == LOOK_MAX_S
    drop(mind, "t", 3, now=now)
    assert lists(decided(mind, now)) == {"a": ["t"]}
    assert mind.next_timer() is None, "what is there is not looked for"
    mind.task_gone("t", now + 1)
    assert looks(decided(mind, now + 1)) == ["t"]


def test_the_result_of_a_cancelled_task_may_come_later_than_its_deletion() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 1)
    drop(mind, "u", 2, after=["t"])
    decided(mind)
    mind.task_gone("t", 1.0)
    assert looks(decided(mind, 1.0)) == ["t"]
    mind.dependency_open("t", 1.0)
    assert looks(decided(mind, 1.0 + LOOK_FIRST_S)) == ["t"]
    mind.dependency_ended("t", "cancelled", 1.2)
    assert ends(decided(mind, 1.2)) == {"u": "failed"}


def test_a_delay_and_dependencies_are_both_waited_for() -> None:
    mind = cluster(node("a"))
    drop(mind, "early", 1, after=["t"], delay_s=5.0)
    drop(mind, "late", 2, after=["s"], delay_s=5.0)
    decided(mind)
    mind.dependency_ended("t", "done", 1.0)
    assert decided(mind, 1.0) == []
    assert lists(decided(mind, 5.0)) == {"a": ["early"]}
    mind.dependency_ended("s", "done", 6.0)
    assert lists(decided(mind, 6.0)) == {"a": ["early", "late"]}


def test_the_wait_is_bounded_by_its_deadline() -> None:
    mind = cluster(node("a"))
    drop(mind, "u", 2, after=["t"], not_after_s=3.0)
    decided(mind)
    assert ends(decided(mind, 3.0)) == {"u": "expired"}


def test_deleting_what_waits_cancels_it() -> None:
    mind = cluster(node("a"))
    drop(mind, "u", 2, after=["t"])
    decided(mind)
    mind.task_gone("u", 1.0)
    assert mourned(decided(mind, 1.0)) == ["u"]
    mind.dependency_ended("t", "done", 2.0)
    assert decided(mind, 2.0) == []


def test_an_edit_changes_what_is_waited_for() -> None:
    mind = cluster(node("a"))
    drop(mind, "u", 2, after=["t"])
    decided(mind)
    drop(mind, "u", 2, version=1, after=["s"], now=1.0)
    assert looks(decided(mind, 1.0)) == ["s"]
    mind.dependency_ended("t", "failed", 2.0)
    assert decided(mind, 2.0) == []
    drop(mind, "u", 2, version=2, now=3.0)
    assert lists(decided(mind, 3.0)) == {"a": ["u"]}


def test_what_a_former_leader_gave_out_had_all_that_it_waits_for() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 1, after=["gone"])
    drop(mind, "u", 2, version=1, after=["gone"], attempts=[Attempt("drain", "b")])
    mind.assignment_found("a", "a.1", [line("t", 1)], 0.0)
    commands = decided(mind)
    assert lists(commands) == {"a": ["t", "u"]}
    assert looks(commands) == []


def test_the_result_of_what_is_named_stays_until_the_task_is_given_out() -> None:
    mind = cluster(node("a", 1))
    drop(mind, "busy", 0)
    decided(mind)
    drop(mind, "u", 2, after=["t"])
    mind.dependency_ended("t", "done", 1.0)
    decided(mind, 1.0)
    assert mind.wants("t"), "the next leader would look for it in vain"
    mind.task_gone("busy", 2.0)
    assert lists(decided(mind, 2.0)) == {"a": ["u"]}
    assert not mind.wants("t")


@pytest.mark.parametrize(
    ("others", "closing", "way"),
    [
        ([], ("a", ["a"]), "a -> a"),
        ([("b", ["a"])], ("a", ["b"]), "a -> b -> a"),
        ([("b", ["x", "c"]), ("c", ["a"])], ("a", ["y", "b"]), "a -> b -> c -> a"),
        ([(f"n{n}", [f"n{n + 1}"]) for n in range(30)], ("n30", ["n0"]), "n30 -> n0 -> n1 -> n2 -> n3"),
    ],
)
def test_a_circle_is_refused_where_it_closes(
    others: list[tuple[str, list[str]]], closing: tuple[str, list[str]], way: str
) -> None:
    mind = cluster(node("a"))
    for n, (name, after) in enumerate(others):
        drop(mind, name, n, after=after)
    decided(mind)
    drop(mind, closing[0], 99, after=closing[1])
    end = next(command for command in decided(mind) if isinstance(command, End))
    assert (end.id, end.status, end.error.path) == (closing[0], "rejected", "$.after")
    assert end.error.message.startswith(f"$.after: expected tasks that do not wait for this one, got {way}")


def test_two_ways_to_the_same_task_are_no_circle() -> None:
    mind = cluster(node("a"))
    drop(mind, "a", 1, after=["b", "c"])
    drop(mind, "b", 2, after=["d"])
    drop(mind, "c", 3, after=["d"])
    drop(mind, "d", 4)
    assert ends(decided(mind)) == {}


@pytest.mark.parametrize("is_forward", [True, False])
def test_a_long_chain_costs_a_step_a_task(is_forward: bool) -> None:
    mind = Dispatch("a")
    numbers = range(3_000) if is_forward else range(2_999, -1, -1)
    steps = 0

    class Counted(dict):  # type: ignore[type-arg]
        def get(self, *args: object) -> object:
            nonlocal steps
            steps += 1
            return super().get(*args)  # type: ignore[call-overload]

    mind.dependencies.pending = Counted()
    for n in numbers:
        drop(mind, f"n{n}", n + 1, after=[f"n{n - 1}"])
    assert steps < 5 * 3_000
