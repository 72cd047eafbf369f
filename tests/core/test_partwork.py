"""Tasks on datasets: on nodes that keep the part and nowhere else, or by children, one for each part."""

from __future__ import annotations

import msgspec
import pytest
from msgspec import Raw

from tests.core.scene import cluster, decided, drop, ends, line, lists, mourned, node, taken_back
from zkd.core import spreads
from zkd.core.admission import Room
from zkd.core.atlas import Atlas, Dataset, layout
from zkd.core.commands import Command, End, Find, Look, LookUp, Pin, Refuse, Spread
from zkd.core.datasets import Edition, Held
from zkd.core.dispatch import Dispatch, backoff_s
from zkd.manifests import Column, Keeper, Manifest
from zkd.paths import is_name
from zkd.records import DATA_MISSES_MAX, Attempt, Fault, Result, Task

HOMES = [("a", "b"), ("b", "c"), ("c", "a"), ("a", "b")]


def manifest(version: int = 1, parts: int = 4, store: str | None = None) -> Manifest:
    return Manifest(
        name="d",
        version=version,
        parts=parts,
        replicas=2,
        columns=[Column("x", "<f8", [3]), Column("y", "<i8")],
        rows=0,
        size=0,
        chunks=["0" * 64],
        store=store,
    )


def atlas(*manifests: Manifest, homes: list[tuple[str, ...]] | None = None) -> Atlas:
    """What everybody knows when these versions stand in the tree; the last one is current."""
    known = Atlas()
    for each in manifests or (manifest(),):
        dataset = known.datasets.setdefault("d", Dataset())
        dataset.editions[each.version] = Edition(each, ((),) * each.parts)
        dataset.current = each.version
        known.placed[layout(each)] = ([Keeper("a")], homes or HOMES)
    return known


def leader(known: Atlas, *names: str, slots: int = 2, kernels: tuple[str, ...] = ("k", "gather", "c")) -> Dispatch:
    mind = Dispatch("a", datasets=known)
    for name in names:
        mind.node_here(node(name, slots, kernels=kernels), 0.0)
    return mind


def given(commands: list[Command]) -> list[str]:
    return sorted(task_id for ids in lists(commands).values() for task_id in ids)


def of(kind: type[Command], commands: list[Command]) -> list[Command]:
    return [command for command in commands if isinstance(command, kind)]


def cancelled(commands: list[Command]) -> list[str]:
    return sorted(c.end.id for c in commands if isinstance(c, Refuse) and c.end.status == "cancelled")


def stem_of(task_id: str, czxid: int, **fields: object) -> str:
    return spreads.family(task_id, czxid, Task(kernel="k", **fields), manifest())  # type: ignore[arg-type]


def drop_children(mind: Dispatch, spread: Spread, czxid: int, now: float = 0.0, **fields: object) -> list[str]:
    """Do what the hands do with this command, and tell the mind."""
    task = Task(kernel="k", dataset="d@1", **fields)  # type: ignore[arg-type]
    ids = spreads.child_ids(spread.stem, spread.parts)
    for part, task_id in zip(spread.parts, ids, strict=True):
        child = spreads.child(spread.id, task, part)
        mind.task_read(task_id, czxid + part, 0, child, age_s=0.0, now=now)
    mind.spread(spread.id, spread.czxid, spread.version, now)
    return ids


def spread_out(mind: Dispatch, **fields: object) -> tuple[Spread, list[str]]:
    drop(mind, "t", 1, dataset="d@1", **fields)  # type: ignore[arg-type]
    (spread,) = of(Spread, decided(mind))
    assert isinstance(spread, Spread)
    return spread, drop_children(mind, spread, 10, **fields)


def end(mind: Dispatch, task_id: str, now: float, result: Result | None = None) -> list[Command]:
    """The holder of a child publishes this, and the leader looks."""
    mind.task_gone(task_id, now)
    commands = decided(mind, now)
    assert any(isinstance(command, Look) and task_id in command.ids for command in commands)
    mind.dependency_ended(task_id, (result or Result("done")).status, now, result)
    return [*commands, *decided(mind, now)]


# --- One part -------------------------------------------------------------------------------------------


def test_a_task_on_a_part_runs_on_a_home_of_it() -> None:
    mind = leader(atlas(), "a", "b", "c", "e", slots=9)
    for part in range(4):
        drop(mind, f"t{part}", part, dataset="d@1", partition=part)
    held = lists(decided(mind))
    where = {task_id: name for name, ids in held.items() for task_id in ids}
    assert all(where[f"t{part}"] in HOMES[part] for part in range(4))
    assert len(held) == 3, "one node got all that others could do as well"


def test_it_waits_while_its_homes_are_full_and_others_are_not() -> None:
    mind = leader(atlas(), "a", "b", "c", slots=1)
    for n in range(2):
        drop(mind, f"full{n}", n, node="ab"[n])
    drop(mind, "t", 9, dataset="d@1", partition=0)
    commands = decided(mind)
    assert "t" not in lists(commands).get("c", [])
    assert "free slot" in mind.why("t", 0.0)
    mind.task_gone("full1", 1.0)
    assert "t" in lists(decided(mind, 1.0)).get("b", [])


def test_it_waits_for_a_home_that_is_not_here_and_says_so() -> None:
    mind = leader(atlas(), "c")
    drop(mind, "t", 1, dataset="d@1", partition=0)
    assert lists(decided(mind)) == {}
    assert mind.why("t", 0.0) == "It works on part 0 of d@1, which is kept by a and b: none of them is here."
    mind.node_here(node("b"), 5.0)
    assert lists(decided(mind, 5.0)) == {"b": ["t"]}


def test_a_home_that_takes_no_work_gets_none() -> None:
    mind = leader(atlas(), "a", "b")
    mind.node_state("a", "cordoned")
    mind.node_state("b", "draining")
    drop(mind, "t", 1, dataset="d@1", partition=0)
    assert lists(decided(mind)) == {}
    assert "a is cordoned, b is draining" in mind.why("t", 0.0)
    mind.node_state("b", "active")
    assert lists(decided(mind, 1.0)) == {"b": ["t"]}


def test_a_node_that_is_asked_for_and_is_no_home_is_waited_for() -> None:
    mind = leader(atlas(), "a", "b", "c")
    drop(mind, "t", 1, dataset="d@1", partition=0, node="c")
    assert lists(decided(mind)) == {}
    assert "must run on node c, which does not keep it" in mind.why("t", 0.0)


def test_it_follows_its_part_to_another_home() -> None:
    known = atlas(homes=[("x",)] * 4)
    mind = leader(known, "a", "b")
    drop(mind, "t", 1, dataset="d@1", partition=0)
    assert lists(decided(mind)) == {}
    known.placed[layout(manifest())] = ([], [("b",)] * 4)
    mind.datasets_changed()
    assert lists(decided(mind, 1.0)) == {"b": ["t"]}


def test_before_there_is_a_ring_it_waits() -> None:
    known = atlas(homes=[()] * 4)
    mind = leader(known, "a")
    drop(mind, "t", 1, dataset="d@1", partition=0)
    assert lists(decided(mind)) == {}
    assert mind.why("t", 0.0) == "It works on part 0 of d@1, and no node keeps data."


def test_a_part_that_lies_in_a_store_of_its_own_runs_anywhere() -> None:
    mind = leader(atlas(manifest(store="s3://bucket")), "e")
    drop(mind, "t", 1, dataset="d@1", partition=0)
    assert lists(decided(mind)) == {"e": ["t"]}


def test_a_second_copy_runs_on_a_home_too() -> None:
    mind = leader(atlas(), "a", "b", "c", "e")
    for _ in range(64):
        mind.times.ended("k", 0.1)
    drop(mind, "t", 1, dataset="d@1", partition=1, speculative=True)
    (first,) = lists(decided(mind))
    second = set(lists(decided(mind, 5.0)))
    assert {first} | second == {"b", "c"}


def test_a_lost_home_leaves_it_to_the_other() -> None:
    mind = leader(atlas(), "a", "b", "c")
    drop(mind, "t", 1, dataset="d@1", partition=0)
    (first,) = lists(decided(mind))
    mind.node_lost(first, 1.0)
    (back,) = taken_back(decided(mind, 1.0))
    drop(mind, "t", 1, version=1, now=1.1, dataset="d@1", partition=0, attempts=[back.attempt])
    (second,) = lists(decided(mind, 1.1))
    assert {first, second} == {"a", "b"}


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"dataset": "d@1", "partition": 4}, "$.partition", "a part of d@1, 0 to 3, got 4"),
        ({"dataset": "d@1", "parts": [1, 9]}, "$.parts[1]", "a part of d@1, 0 to 3, got 9"),
        ({"dataset": "d@1", "partition": 0, "columns": ["x", "z"]}, "$.columns[1]", "the columns of d@1, got 'z'"),
        ({"dataset": "d@1", "columns": ["z"]}, "$.columns[0]", "the columns of d@1, got 'z'"),
        (
            {"dataset": "d@2", "partition": 0},
            "$.dataset",
            "there is no version 2 of the dataset d",
        ),
        ({"dataset": "e"}, "$.dataset", "there is no dataset 'e'"),
    ],
)
def test_what_is_not_there_is_rejected_with_what_was_expected(
    fields: dict[str, object], path: str, message: str
) -> None:
    mind = leader(atlas(), "a", "b", "c")
    drop(mind, "t", 1, **fields)  # type: ignore[arg-type]
    commands = decided(mind)
    for look in of(LookUp, commands):
        assert isinstance(look, LookUp)
        mind.dataset_read(look.name, 0.0)
    (rejected,) = of(End, [*commands, *decided(mind)])
    assert isinstance(rejected, End)
    assert (rejected.status, rejected.error.kind, rejected.error.path) == ("rejected", "dataset", path)
    assert message in rejected.error.message


def test_a_dataset_that_was_just_made_is_looked_for_before_it_is_refused() -> None:
    known = Atlas()
    mind = leader(known, "a", "b", "c")
    drop(mind, "t", 1, dataset="d@1", partition=0)
    drop(mind, "u", 2, dataset="d@1", partition=1)
    assert decided(mind) == [LookUp("d")]
    assert "looking for its dataset" in mind.why("t", 0.0)
    known.datasets, known.placed = atlas().datasets, atlas().placed
    mind.dataset_read("d", 0.1)
    assert given(decided(mind, 0.1)) == ["t", "u"]


def test_a_manifest_that_cannot_be_believed_says_what_is_wrong() -> None:
    known = atlas()
    known.datasets["d"].refused[2] = "$.rows: expected 5"
    mind = leader(known, "a")
    drop(mind, "t", 1, dataset="d@2", partition=0)
    decided(mind)
    mind.dataset_read("d", 0.1)
    (rejected,) = of(End, decided(mind, 0.1))
    assert isinstance(rejected, End)
    assert "$.rows: expected 5" in rejected.error.message


def test_a_dataset_that_is_removed_while_tasks_wait_for_its_homes_rejects_them() -> None:
    known = atlas()
    mind = leader(known, "e")
    drop(mind, "t", 1, dataset="d@1", partition=0)
    assert decided(mind) == []
    known.datasets.clear()
    mind.datasets_changed()
    assert decided(mind, 1.0) == [LookUp("d")]
    mind.dataset_read("d", 1.0)
    assert ends(decided(mind, 1.0)) == {"t": "rejected"}


def test_the_version_is_pinned_when_the_task_is_first_seen() -> None:
    mind = leader(atlas(manifest(1), manifest(2)), "a", "b", "c")
    drop(mind, "t", 1, dataset="d", partition=0)
    assert decided(mind) == [Pin("t", 0, 2)]
    mind.task_moved("t")
    drop(mind, "t", 1, version=1, dataset="d@2", partition=0)
    assert given(decided(mind)) == ["t"]


def test_one_that_cannot_be_pinned_is_rejected() -> None:
    mind = leader(atlas(), "a")
    drop(mind, "t", 1, dataset="d", partition=0)
    decided(mind)
    mind.task_unwritable("t", 0)
    assert ends(decided(mind)) == {"t": "rejected"}


def test_cancelled_and_expired_while_it_is_looked_for_or_pinned() -> None:
    mind = leader(atlas(), "a")
    drop(mind, "t", 1, dataset="e", partition=0)
    drop(mind, "u", 2, dataset="d", partition=0, not_after_s=1.0)
    decided(mind)
    mind.task_gone("t", 0.5)
    assert mourned(decided(mind, 0.5)) == ["t"]
    mind.dataset_read("e", 0.6)
    assert ends(decided(mind, 1.5)) == {"u": "expired"}


def test_a_part_that_a_node_lacks_is_tried_again_slower_and_slower_and_not_for_ever() -> None:
    mind = leader(atlas(), "a", "b", "c")
    misses: list[Attempt] = []
    for n in range(1, 5):
        misses.append(Attempt("data", "a", "it is on its way"))
        drop(mind, "t", 1, version=n, dataset="d@1", partition=0, attempts=misses)
        assert decided(mind) == []
        assert mind.tasks["t"].due_at == backoff_s(n)
    drop(mind, "t", 1, version=5, dataset="d@1", partition=0, attempts=misses[:1] * DATA_MISSES_MAX)
    (dead,) = of(End, decided(mind))
    assert isinstance(dead, End)
    assert (dead.status, dead.error.kind, dead.is_dead) == ("failed", "data", True)
    assert "it is on its way" in dead.error.message


def test_a_home_that_has_the_part_comes_before_one_that_is_yet_to_fetch_it() -> None:
    for holder in ("a", "b"):
        known = atlas()
        known.holdings["d"] = {holder: Held("1", {1: 0b0001}), "c": Held("1", {1: 0b1111})}
        mind = leader(known, "a", "b", "c", slots=1)
        drop(mind, "t", 1, dataset="d@1", partition=0)
        drop(mind, "u", 2, dataset="d@1", partition=0)
        held = lists(decided(mind))
        assert held[holder] == ["t"]
        assert set(held) == {"a", "b"}, "when it is full the other one does it"


def test_a_home_that_lacked_it_comes_last() -> None:
    for lacking in ("a", "b"):
        mind = leader(atlas(), "a", "b", "c")
        drop(mind, "t", 1, dataset="d@1", partition=0, attempts=[Attempt("data", lacking)])
        assert lacking not in lists(decided(mind, 1.0))


def test_what_a_former_leader_gave_out_stays_where_it_is_before_its_dataset_is_known() -> None:
    known = Atlas()
    mind = leader(known, "a", "b")
    drop(mind, "t", 1, dataset="d@1", partition=0)
    mind.assignment_found("b", "b.1", [line("t", 1)], 0.0)
    assert decided(mind) == [LookUp("d")]
    known.datasets, known.placed = atlas().datasets, atlas().placed
    mind.dataset_read("d", 0.1)
    assert decided(mind, 0.1) == []
    assert mind.tasks["t"].node == "b"


# --- All parts ------------------------------------------------------------------------------------------


def test_a_task_on_all_parts_has_a_child_for_each_and_waits_for_them() -> None:
    mind = leader(atlas(), "a", "b", "c", slots=9)
    spread, ids = spread_out(mind)
    assert (spread.parts, spread.stem) == ((0, 1, 2, 3), stem_of("t", 1, dataset="d@1"))
    assert given(decided(mind)) == sorted(ids)
    assert mind.why("t", 0.0) == "0 of the 4 parts of d@1 are done; it waits for the rest."
    for n, task_id in enumerate(ids):
        assert mind.wants(task_id), "its result is needed"
        commands = end(mind, task_id, 1.0 + n)
    assert "t" in given(commands)
    assert mind.tasks["t"].need.kernel == spreads.GATHER
    mind.task_gone("t", 9.0)
    assert not any(map(mind.wants, ids))
    assert cancelled(decided(mind, 9.0)) == []


def test_it_is_combined_by_a_node_that_has_the_kernel_for_it() -> None:
    mind = leader(atlas(), "a", "b", "c", kernels=("k",))
    mind.node_here(node("e", kernels=("c",)), 0.0)
    _, ids = spread_out(mind, combine="c")
    decided(mind)
    for n, task_id in enumerate(ids):
        commands = end(mind, task_id, 1.0 + n)
    assert lists(commands).get("e") == ["t"]


def test_it_may_be_about_some_parts_only_in_their_order() -> None:
    mind = leader(atlas(), "a", "b", "c", slots=9)
    spread, ids = spread_out(mind, parts=[3, 1])
    assert spread.parts == (3, 1)
    assert given(decided(mind)) == sorted(ids)
    assert [task_id.rpartition(".")[2] for task_id in ids] == ["3", "1"]
    assert spreads.child("t", Task(kernel="k", dataset="d@1", parts=[3, 1]), 3).parts == []


@pytest.mark.parametrize(("fields", "path"), [({"kernel": "nix"}, "$.kernel"), ({"combine": "nix"}, "$.combine")])
def test_kernels_that_nobody_has_are_found_before_the_first_part_runs(fields: dict[str, str], path: str) -> None:
    mind = leader(atlas(), "a", "b", "c")
    drop(mind, "t", 1, dataset="d@1", **fields)  # type: ignore[arg-type]
    assert decided(mind) == []
    (rejected,) = of(End, decided(mind, 2.0))
    assert isinstance(rejected, End)
    assert (rejected.status, rejected.error.path) == ("rejected", path)


def test_children_inherit_what_is_said_of_how_and_not_of_when() -> None:
    task = Task(
        kernel="k",
        dataset="d@1",
        columns=["x"],
        combine="c",
        priority=3,
        retries=2,
        slots=2,
        submitter="s",
        after=["u"],
        delay_s=1.0,
        not_after_s=9.0,
        ttl_s=1e6,
        labels={"l": "1"},
        attempts=[Attempt("data", "a")],
    )
    child = spreads.child("t", task, 3)
    assert (child.partition, child.parent, child.combine, child.ttl_s) == (3, "t", None, spreads.CHILD_TTL_S)
    assert (child.after, child.delay_s, child.not_after_s, child.attempts) == ([], 0.0, None, [])
    assert (child.priority, child.retries, child.slots, child.submitter) == (3, 2, 2, "s")
    assert (child.columns, child.labels, child.dataset) == (["x"], {"l": "1"}, "d@1")


def test_ids_of_children_are_names_whatever_the_parents() -> None:
    for task_id in ("t", "t" * 128, "a.b:c-d_e"):
        stem = spreads.family(task_id, 2**63 - 1, Task(kernel="k", dataset="d@1"), manifest())
        for part in (0, 16383):
            assert is_name(spreads.child_id(stem, part))
            assert spreads.split_child(spreads.child_id(stem, part)) == (stem, part)


def test_another_life_and_another_text_have_other_children() -> None:
    stems = {stem_of("t", czxid, dataset="d@1", priority=priority) for czxid in (1, 2) for priority in (0, 1)}
    assert len(stems) == 4
    tried = Task(kernel="k", dataset="d@1", attempts=[Attempt("error", "a")])
    assert spreads.family("t", 1, tried, manifest()) in stems, "what was tried changes nothing"
    remade = msgspec.structs.replace(manifest(), chunks=["1" * 64])
    assert spreads.family("t", 1, tried, remade) not in stems, "a dataset that was made anew has other parts"


def test_a_failed_part_fails_the_whole_and_names_itself() -> None:
    mind = leader(atlas(), "a", "b", "c", slots=9)
    _, ids = spread_out(mind)
    decided(mind)
    bad = Result("failed", node="b", error=Fault("ValueError", "no rows", traceback="Traceback ..."))
    commands = end(mind, ids[2], 1.0, bad)
    (failed,) = of(End, commands)
    assert isinstance(failed, End)
    assert (failed.id, failed.status, failed.is_dead) == ("t", "failed", True)
    assert failed.error == Fault("ValueError", "part 2 of d@1 on b: no rows", None, "Traceback ...")
    mind.task_gone("t", 1.1)
    assert cancelled(decided(mind, 1.1)) == sorted(set(ids) - {ids[2]}), "the others are of no use"


@pytest.mark.parametrize(
    ("result", "status", "message"),
    [
        (Result("rejected", error=Fault("arguments", "$.args[0]: no", "$.args[0]")), "rejected", "$.args[0]: no"),
        (Result("cancelled", error=Fault("cancelled", "x")), "failed", "part 0 of d@1 was cancelled"),
    ],
)
def test_other_ends_of_a_part(result: Result, status: str, message: str) -> None:
    mind = leader(atlas(), "a", "b", "c", slots=9)
    _, ids = spread_out(mind)
    decided(mind)
    (ended,) = of(End, end(mind, ids[0], 1.0, result))
    assert isinstance(ended, End)
    assert (ended.status, message in ended.error.message) == (status, True)


def test_deleting_the_parent_cancels_the_children_wherever_they_are() -> None:
    mind = leader(atlas(), "a", "b", "c", slots=1)
    _, ids = spread_out(mind)
    held = given(decided(mind))
    assert held
    assert set(held) < set(ids), "some wait, some are held"
    mind.task_gone("t", 1.0)
    commands = decided(mind, 1.0)
    assert cancelled(commands) == sorted(ids)
    for task_id in ids:
        mind.task_gone(task_id, 1.1)
    commands = [*decided(mind, 1.1), *decided(mind, 2.0)]
    assert all(not tasks for tasks in lists(commands).values())
    assert mourned(commands) == [], "their results say it"


def test_an_edited_parent_has_new_children_and_the_old_ones_go() -> None:
    mind = leader(atlas(), "a", "b", "c", slots=9)
    _, ids = spread_out(mind)
    decided(mind)
    mind.task_moved("t")
    drop(mind, "t", 1, version=1, dataset="d@1", priority=5)
    commands = decided(mind, 1.0)
    assert cancelled(commands) == sorted(ids)
    (again,) = of(Spread, commands)
    assert isinstance(again, Spread)
    assert again.stem != spreads.split_child(ids[0])[0]  # type: ignore[index]


def test_a_gather_that_is_tried_again_keeps_its_children() -> None:
    mind = leader(atlas(), "a", "b", "c", slots=9)
    spread, ids = spread_out(mind)
    decided(mind)
    for n, task_id in enumerate(ids[:-1]):
        end(mind, task_id, 1.0 + n)
    mind.task_moved("t")
    drop(mind, "t", 1, version=1, now=5.0, dataset="d@1", attempts=[Attempt("drain", "a")])
    commands = decided(mind, 5.0)
    assert cancelled(commands) == []
    (again,) = of(Spread, commands)
    assert isinstance(again, Spread)
    assert again.stem == spread.stem


def test_a_new_leader_finds_the_same_children_and_cancels_those_of_parents_that_have_gone() -> None:
    mind = leader(atlas(), "a", "b", "c", slots=9)
    task = Task(kernel="k", dataset="d@1")
    stem = stem_of("t", 1, dataset="d@1")
    for part in range(4):  # read before their parent
        child = spreads.child("t", task, part)
        mind.task_read(spreads.child_id(stem, part), 10 + part, 0, child, age_s=0.0, now=0.0)
    orphan = spreads.child_id(stem_of("u", 5, dataset="d@1"), 0)
    mind.task_read(orphan, 30, 0, spreads.child("u", task, 0), age_s=0.0, now=0.0)
    (find,) = of(Find, decided(mind))
    assert isinstance(find, Find)
    assert find.ids == ["t", "u"]
    mind.parent_missing("u", 0.1)
    assert cancelled(decided(mind, 0.1)) == [orphan]
    drop(mind, "t", 1, dataset="d@1")
    commands = decided(mind, 0.2)
    assert cancelled(commands) == []
    assert len(of(Spread, commands)) == 1


def test_a_task_that_only_says_to_be_a_child_is_cancelled() -> None:
    mind = leader(atlas(), "a", "b", "c", slots=9)
    drop(mind, "t", 1)
    drop(mind, "u.0", 2, parent="t")
    drop(mind, "v.0", 3, parent="w")
    assert cancelled(decided(mind)) == ["u.0"]
    drop(mind, "w", 4)
    assert cancelled(decided(mind)) == ["v.0"]


def test_a_leader_that_finds_the_gather_running_leaves_it() -> None:
    mind = leader(atlas(), "a", "b", "c", slots=9)
    drop(mind, "t", 1, dataset="d@1")
    mind.assignment_found("b", "b.1", [line("t", 1)], 0.0)
    commands = decided(mind)
    assert mind.tasks["t"].node == "b"
    for spread in of(Spread, commands):
        assert isinstance(spread, Spread)
        mind.spread(spread.id, spread.czxid, spread.version, 0.1)
    assert lists(decided(mind, 0.1)) == {}


def test_children_wait_for_room_rather_than_flood_the_tree() -> None:
    mind = leader(atlas(), "a", "b", "c", slots=9)
    mind.admission.room = Room(tasks=9)
    for n in range(3):
        drop(mind, f"t{n}", n, dataset="d@1")
    assert [command.id for command in of(Spread, decided(mind)) if isinstance(command, Spread)] == ["t0"]
    assert "no room for the 4 tasks" in mind.why("t1", 0.0)
    mind.task_gone("t0", 1.0)
    assert [command.id for command in of(Spread, decided(mind, 1.0)) if isinstance(command, Spread)] == ["t1"]


def test_more_parts_than_tasks_may_wait_and_large_arguments_are_refused() -> None:
    mind = leader(atlas(), "a", "b", "c")
    mind.admission.room = Room(tasks=4)
    drop(mind, "t", 1, dataset="d@1")
    drop(mind, "u", 2, dataset="d@1", args=Raw(b"[%b]" % (b" " * (spreads.SPREAD_BYTES_MAX // 4))))
    assert ends(decided(mind)) == {"t": "rejected", "u": "rejected"}


def test_what_waits_for_a_task_on_all_parts_waits_for_its_end() -> None:
    mind = leader(atlas(), "a", "b", "c", slots=9)
    drop(mind, "u", 2, after=["t"])
    decided(mind)
    _, ids = spread_out(mind)
    decided(mind)
    for n, task_id in enumerate(ids):
        commands = end(mind, task_id, 1.0 + n)
    assert given(commands) == ["t"]
    assert given(end(mind, "t", 9.0)) == ["u"]


def test_it_begins_when_what_it_waits_for_is_done() -> None:
    mind = leader(atlas(), "a", "b", "c", slots=9)
    drop(mind, "t", 1, dataset="d@1", after=["s"], delay_s=2.0)
    assert of(Spread, decided(mind)) == []
    mind.dependency_ended("s", "done", 1.0)
    assert of(Spread, decided(mind, 1.0)) == []
    assert len(of(Spread, decided(mind, 2.5))) == 1


def test_without_datasets_a_task_on_one_is_rejected() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 1, dataset="d")
    assert decided(mind) == [LookUp("d")]
    mind.dataset_read("d", 0.0)
    (rejected,) = decided(mind)
    assert isinstance(rejected, End)
    assert rejected.error.message == "$.dataset: d cannot be used: this cluster has no datasets"
