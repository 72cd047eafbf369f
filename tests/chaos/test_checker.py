"""The judge of histories can fail: each kind of violation is planted once, and found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from tests.chaos import checker, work
from tests.chaos.checker import Left, Tree, Verdict
from tests.chaos.history import Cancel, Cancelled, Ended, Journal, Line, Lost, Mode, Outcome, Seen, Submit, Submitted

OWNER = "abc.1.1"


def done(key: str, n: int = 7, **changes: object) -> Seen:
    value = msgspec.json.encode(work.value_of(key, n)).decode()
    return msgspec.structs.replace(Seen("done", "d1", 1, OWNER, 0x10, value), **changes)


def failed(error: str, *causes: str) -> Seen:
    return Seen("failed", "d1", len(causes), OWNER, 0x10, None, error, list(causes))


@dataclass
class Case:
    """The files of a run, as small as one likes."""

    directory: Path
    lines: list[Line] = field(default_factory=list)
    ledger: list[str] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)

    def submit(
        self, key: str, kind: str = "steps", mode: Mode = "persistent", outcome: Outcome = "ok", name: str = ""
    ) -> None:
        self.lines.append(Submit(key, f"{key}-" if mode == "sequential" else key, kind, 7, mode))
        self.lines.append(Submitted(key, name or key, outcome))

    def run(self, task_id: str, *, attempt: int = 1, marks: str = "se", owner: str = OWNER) -> None:
        words = {"s": "start", "e": "end"}
        self.ledger += [f"{words[mark]} {task_id} {attempt} 10.0.{owner} 99 1.5\n" for mark in marks]

    def end(self, task_id: str, seen: Seen, *, key: str = "") -> None:
        self.left.append(Left(task_id, seen, key))

    def judge(self) -> Verdict:
        journal = Journal(self.directory / "a.history")
        for line in self.lines:
            journal.write(line)
        (self.directory / "d1.ledger").write_text("".join(self.ledger))
        (self.directory / "results").write_bytes(b"".join(msgspec.json.encode(left) + b"\n" for left in self.left))
        return checker.judge(
            [self.directory / "a.history"],
            [self.directory / "d1.ledger"],
            self.directory / "results",
            Tree(self.tasks, self.dead),
        )


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def good(case: Case, key: str = "a") -> None:
    case.submit(key)
    case.run(key)
    case.end(key, done(key))
    case.lines.append(Ended(key, key, done(key)))


def test_a_good_run_is_found_good(case: Case) -> None:
    good(case)
    case.submit("unknown-and-absent", outcome="unknown")
    case.submit("seq", mode="sequential", name="seq-0000000004")
    case.run("seq-0000000004")
    case.end("seq-0000000004", done("seq"), key="seq")
    case.submit("poison", kind="exit_process")
    for attempt in (1, 2):
        case.run("poison", attempt=attempt, marks="s")
    case.end("poison", failed("crash", "crash", "crash"), key="poison")
    case.dead.append("poison")
    case.submit("cancelled")
    case.lines += [Cancel("cancelled", "cancelled"), Cancelled("cancelled", "cancelled", "ok")]
    case.end("cancelled", Seen("cancelled"))
    case.submit("forgotten", kind="exit_process", mode="forget")
    for attempt in (1, 2):
        case.run("forgotten", attempt=attempt, marks="s")
    case.lines.append(Ended("forgotten", "forgotten", failed("crash", "crash", "crash")))
    case.dead.append("forgotten")
    case.submit("left", mode="ephemeral")
    case.lines.append(Lost())
    case.end("left", Seen("cancelled"))
    verdict = case.judge()
    assert verdict.violations == []
    assert (verdict.tasks, verdict.executions, verdict.expected_executions) == (7, 6, 6)
    assert verdict.by_status == {"done": 2, "none": 1, "failed": 2, "cancelled": 2}


def a_lost_task(case: Case) -> None:
    case.submit("a")


def a_lost_sequential_task(case: Case) -> None:
    case.submit("a", mode="sequential", name="a-0000000001")


def a_result_that_vanished(case: Case) -> None:
    good(case)
    case.left.clear()


def a_result_that_changed(case: Case) -> None:
    good(case)
    case.left[0] = Left("a", done("a", causes=["drain"]))


def two_results_of_one_unknown_submit(case: Case) -> None:
    case.submit("a", mode="sequential", outcome="unknown", name="a-")
    for name in ("a-0000000001", "a-0000000002"):
        case.run(name)
        case.end(name, done("a"), key="a")


def a_wrong_value(case: Case) -> None:
    case.submit("a")
    case.run("a")
    case.end("a", done("a", n=8))


def a_result_of_an_attempt_that_never_ended(case: Case) -> None:
    case.submit("a")
    case.run("a", marks="s")
    case.end("a", done("a"))


def a_result_of_another_owner(case: Case) -> None:
    case.submit("a")
    case.run("a", owner="xyz.1.1")
    case.end("a", done("a"))


def a_result_of_a_refused_submit(case: Case) -> None:
    case.submit("a", outcome="fail")
    case.run("a")
    case.end("a", done("a"))


def a_result_that_nobody_asked_for(case: Case) -> None:
    case.end("b", done("b"), key="b")


def innocent_and_failed(case: Case) -> None:
    case.submit("a")
    case.end("a", failed("crash", "crash"))
    case.dead.append("a")


def a_file_of_another_value(case: Case) -> None:
    case.submit("a", kind="big")
    case.run("a")
    case.end("a", msgspec.structs.replace(done("a"), value=None, ref=work.big_sha256(8)))


def garbage_of_the_nemesis_that_was_run(case: Case) -> None:
    case.end("x-1", done("x-1"))


def poison_that_ended_well(case: Case) -> None:
    case.submit("a", kind="endless")
    case.run("a")
    case.end("a", done("a"))


def poison_that_is_not_in_dead(case: Case) -> None:
    case.submit("a", kind="exit_process")
    case.end("a", failed("crash", "crash", "crash"))


def done_and_in_dead(case: Case) -> None:
    good(case)
    case.dead.append("a")


def more_attempts_than_allowed(case: Case) -> None:
    case.submit("a", kind="exit_process")
    case.end("a", failed("crash", "crash", "crash", "crash"))
    case.dead.append("a")


def more_lost_nodes_than_allowed(case: Case) -> None:
    case.submit("a")
    case.run("a")
    case.end("a", done("a", causes=["node_loss"] * 12))


def cancelled_by_nobody(case: Case) -> None:
    case.submit("a")
    case.end("a", Seen("cancelled"))


def told_cancelled_and_done(case: Case) -> None:
    good(case)
    case.lines += [Cancel("a", "a"), Cancelled("a", "a", "ok")]


def told_too_late_and_cancelled(case: Case) -> None:
    case.submit("a")
    case.lines += [Cancel("a", "a"), Cancelled("a", "a", "fail")]
    case.end("a", Seen("cancelled"))


def garbage_that_was_run(case: Case) -> None:
    case.submit("a", kind="garbage")
    case.run("a")
    case.end("a", Seen("rejected"))


def an_obituary_without_a_result(case: Case) -> None:
    case.dead.append("b")


PLANTED: list[tuple[Callable[[Case], None], str]] = [
    (a_lost_task, "lost"),
    (a_lost_sequential_task, "lost"),
    (a_result_that_vanished, "lost"),
    (a_result_that_changed, "duplicated"),
    (two_results_of_one_unknown_submit, "duplicated"),
    (a_wrong_value, "wrong"),
    (a_result_of_an_attempt_that_never_ended, "wrong"),
    (a_result_of_another_owner, "wrong"),
    (a_result_of_a_refused_submit, "wrong"),
    (a_result_that_nobody_asked_for, "wrong"),
    (innocent_and_failed, "wrong"),
    (a_file_of_another_value, "wrong"),
    (garbage_of_the_nemesis_that_was_run, "wrong"),
    (poison_that_ended_well, "wrong"),
    (poison_that_is_not_in_dead, "wrong"),
    (done_and_in_dead, "wrong"),
    (more_attempts_than_allowed, "wrong"),
    (more_lost_nodes_than_allowed, "wrong"),
    (cancelled_by_nobody, "wrong"),
    (told_cancelled_and_done, "wrong"),
    (told_too_late_and_cancelled, "wrong"),
    (garbage_that_was_run, "wrong"),
    (an_obituary_without_a_result, "wrong"),
]


@pytest.mark.parametrize(("plant", "rule"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_a_planted_violation_is_found(case: Case, plant: Callable[[Case], None], rule: str) -> None:
    plant(case)
    assert {violation.rule for violation in case.judge().violations} == {rule}


def test_a_task_that_still_waits_is_told_apart_from_a_lost_one(case: Case) -> None:
    case.submit("a")
    case.tasks.append("a")
    verdict = case.judge()
    assert (verdict.violations, verdict.unfinished) == ([], ["a"])


def test_a_second_execution_is_counted(case: Case) -> None:
    good(case)
    case.run("a", marks="s")
    verdict = case.judge()
    assert (verdict.violations, verdict.executions, verdict.expected_executions) == ([], 2, 1)
