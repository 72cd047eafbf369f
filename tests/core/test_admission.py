"""How much may wait: what is admitted, what is refused, and that nobody's flood is another's refusal."""

from __future__ import annotations

from tests.core.scene import cluster, decided, drop, node
from zkd.core.admission import KIND, REFUSAL_TTL_S, Admission, Room
from zkd.core.commands import Assign, Command, Refuse
from zkd.core.dispatch import Dispatch
from zkd.records import Attempt, Task


def fill(admission: Admission, submitter: str, count: int, size: int = 1) -> int:
    """Let this submitter drop so many; how many were admitted."""
    admitted = 0
    for _ in range(count):
        if admission.refusal(submitter, size, was_there=False) is None:
            admission.enter(submitter, size)
            admitted += 1
    return admitted


def test_one_submitter_fills_half_of_the_room() -> None:
    assert fill(Admission(Room(100, 1000)), "flood", 500) == 50


def test_one_that_floods_leaves_room_for_the_others() -> None:
    admission = Admission(Room(100, 1000))
    fill(admission, "flood", 500)
    assert fill(admission, "small", 10) == 10
    assert fill(admission, "flood", 1) == 0
    assert fill(admission, "third", 20) == 20


def test_bytes_are_room_too() -> None:
    admission = Admission(Room(100, 1000))
    assert fill(admission, "flood", 100, size=100) == 5
    assert fill(admission, "small", 1, size=100) == 1


def test_nothing_passes_the_limit() -> None:
    admission = Admission(Room(100, 10_000))
    for number in range(200):
        fill(admission, f"s{number}", 5)
    assert admission.total.tasks == 100
    assert fill(admission, "late", 1) == 0


def test_what_was_there_when_the_reign_began_fills_all_of_the_room() -> None:
    admission = Admission(Room(100, 1000))
    for _ in range(100):
        assert admission.refusal("flood", 1, was_there=True) is None
        admission.enter("flood", 1)
    assert admission.refusal("flood", 1, was_there=True) is not None


def test_what_leaves_makes_room_and_leaves_no_trace() -> None:
    admission = Admission(Room(10, 1000))
    fill(admission, "s", 5, size=7)
    assert fill(admission, "s", 1) == 0
    for _ in range(5):
        admission.leave("s", 7)
    assert (admission.total.tasks, admission.total.size, admission.by_submitter) == (0, 0, {})
    assert fill(admission, "s", 1) == 1


def test_a_refusal_says_how_much_there_is_and_what_to_do() -> None:
    admission = Admission(Room(10, 1000))
    fill(admission, "me", 5)
    fault = admission.refusal("me", 1, was_there=False)
    assert fault is not None
    assert fault.kind == KIND
    for part in ("5 tasks", "5 of them from me", "at most 10 tasks (tasks.queue_max)", "drop it again"):
        assert part in fault.message


# --- In the leader's mind ----------------------------------------------------------------------------------


def crowded(tasks: int = 4) -> Dispatch:
    mind = cluster(node("a", 1))
    mind.admission.room = Room(tasks, 1000)
    return mind


def refused(commands: list[Command]) -> list[str]:
    return [command.end.id for command in commands if isinstance(command, Refuse)]


def test_an_arrival_that_is_too_much_is_refused_at_once_and_its_result_kept_shortly() -> None:
    mind = crowded()
    for n in range(4):
        drop(mind, f"t{n}", n)
    commands = decided(mind)
    assert refused(commands) == ["t2", "t3"]
    (refusal, _) = (command.end for command in commands if isinstance(command, Refuse))
    assert (refusal.czxid, refusal.version, refusal.ttl_s, refusal.error.kind) == (2, 0, REFUSAL_TTL_S, KIND)
    mind.task_gone("t2", 1.0)
    assert mind.ended["t2"] == REFUSAL_TTL_S


def test_what_was_refused_runs_nowhere_and_is_not_mourned() -> None:
    mind = crowded()
    for n in range(4):
        drop(mind, f"t{n}", n)
    (assignment,) = (command for command in decided(mind) if isinstance(command, Assign))
    assert [line.id for line in assignment.tasks] == ["t0"]
    mind.task_gone("t2", 1.0)
    mind.task_gone("t3", 1.0)
    assert decided(mind, 1.0) == []


def test_a_task_that_was_begun_is_never_refused() -> None:
    """It comes back from a lost node, or from a retry, when the room is full."""
    mind = crowded()
    for n in range(2):
        drop(mind, f"t{n}", n)
    drop(mind, "tried", 9, version=1, attempts=[Attempt("node_loss", "b")])
    drop(mind, "t0", 0, version=1, attempts=[Attempt("drain", "a")])
    drop(mind, "put-back-when-it-was-dead", 11, version=3)
    assert refused(decided(mind)) == []


def test_attempts_that_a_client_made_up_are_no_way_in() -> None:
    mind = crowded()
    for n in range(6):
        drop(mind, f"t{n}", n, attempts=[Attempt("drain", "nobody")])
    assert refused(decided(mind)) == ["t2", "t3", "t4", "t5"]


def test_an_admitted_task_stays_admitted_when_it_is_edited() -> None:
    mind = crowded()
    for n in range(2):
        drop(mind, f"t{n}", n)
    drop(mind, "t1", 1, version=1, priority=3)
    assert refused(decided(mind)) == []
    assert mind.admission.total.tasks == 2


def test_the_next_life_of_an_id_is_an_arrival_like_any_other() -> None:
    mind = crowded()
    for n in range(2):
        drop(mind, f"t{n}", n)
    drop(mind, "t1", 7)
    assert mind.admission.total.tasks == 2
    mind.admission.room = Room(2, 1000)
    drop(mind, "t1", 8)
    assert refused(decided(mind)) == ["t1"]
    assert mind.admission.total.tasks == 1


def test_a_new_leader_refuses_nothing_that_another_admitted() -> None:
    mind = crowded(tasks=8)
    mind.inherited = 100
    for n in range(8):
        drop(mind, f"t{n}", n)
    drop(mind, "new", 101)
    assert refused(decided(mind)) == ["new"]


def test_sizes_are_counted_as_they_come_and_go() -> None:
    mind = crowded()
    mind.task_read("t", 1, 0, Task(kernel="k"), age_s=0.0, now=0.0, size=300)
    assert mind.admission.total.size == 300
    mind.task_read("t", 1, 1, Task(kernel="k"), age_s=0.0, now=0.0, size=200)
    assert mind.admission.total.size == 200
    mind.task_gone("t", 1.0)
    assert mind.admission.total.size == 0
