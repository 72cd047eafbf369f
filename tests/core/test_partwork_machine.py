"""Whatever happens while tasks work on parts: only homes are given them, and no child outlives its parent.

The model of the tree and of nodes of `test_dispatch_machine`, with datasets that come, go and move.
"""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from tests.core.test_dispatch_machine import NAMES, Cluster, Znode
from tests.core.test_partwork import manifest
from zkd.core import spreads
from zkd.core.atlas import Atlas, Dataset, layout
from zkd.core.commands import Assign, Command, Find, LookUp, Pin, Refuse, Spread
from zkd.core.datasets import Edition
from zkd.core.dispatch import Dispatch
from zkd.core.picture import Phase
from zkd.records import Attempt, Task

PARTS = 4

on_datasets = st.builds(
    Task,
    kernel=st.sampled_from(["k", "k", "rare", "absent"]),
    dataset=st.sampled_from(["d", "d@1", "d@1", "e@1", "d@2"]),
    partition=st.sampled_from([None, None, 0, 3, 9]),
    columns=st.sampled_from([[], ["x"], ["x", "rows"], ["nix"]]),
    retries=st.integers(0, 1),
    priority=st.integers(-1, 1),
    delay_s=st.sampled_from([0.0, 0.0, 0.5]),
    not_after_s=st.sampled_from([None, None, 1.0]),
    node=st.sampled_from([None, None, "a"]),
    slots=st.sampled_from([1, 1, 2]),
    speculative=st.booleans(),
)
homes = st.lists(st.lists(st.sampled_from(NAMES), min_size=0, max_size=2, unique=True), min_size=PARTS, max_size=PARTS)


class PartCluster(Cluster):
    def new_mind(self) -> Dispatch:
        if not hasattr(self, "atlas"):
            self.atlas = Atlas()
            self.there = Dataset(1, {1: Edition(manifest(parts=PARTS), ((),) * PARTS)})
            self.atlas.datasets["d"] = self.there
            self.atlas.placed[layout(manifest(parts=PARTS))] = ([], [("a", "b"), ("b", "c"), ("c", "a"), ("a", "b")])
        return Dispatch("a", datasets=self.atlas)

    # --- What happens -----------------------------------------------------------------------------------

    @rule(task=on_datasets, combine=st.sampled_from([None, "k", "rare", "absent"]))
    def a_task_on_a_dataset_is_dropped(self, task: Task, combine: str | None) -> None:
        combine = combine if task.partition is None else None
        self.a_task_is_dropped(msgspec.structs.replace(task, combine=combine), False, ())

    @rule(placed=homes)
    def parts_move(self, placed: list[list[str]]) -> None:
        self.atlas.placed[layout(manifest(parts=PARTS))] = ([], [tuple(nodes) for nodes in placed])
        self.mind.datasets_changed()
        self.obey()

    @rule()
    def the_dataset_goes_and_comes_back(self) -> None:
        del self.atlas.datasets["d"]
        self.mind.datasets_changed()
        self.obey()
        self.atlas.datasets["d"] = self.there
        self.mind.datasets_changed()
        self.obey()

    @precondition(lambda self: self.parents())
    @rule(data=st.data())
    def a_parent_is_edited(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(self.parents()))
        znode = self.tree[task_id]
        znode.version += 1
        znode.task = msgspec.structs.replace(znode.task, priority=data.draw(st.integers(-1, 1)))
        self.mind.task_moved(task_id)
        self.tell(task_id)
        self.obey()

    @precondition(lambda self: self.held())
    @rule(data=st.data(), is_lost=st.booleans())
    def a_node_lacks_what_a_task_needs(self, data: st.DataObject, is_lost: bool) -> None:
        name, line = data.draw(st.sampled_from(self.held()))
        znode = self.tree[line.id]
        if znode.task.dataset is None:
            return
        if znode.task.partition is None and is_lost:  # a value of a part that cannot be fetched
            children = spreads.child_ids(spreads.family(line.id, znode.czxid, znode.task, manifest()), range(PARTS))
            self.forget(children[0])
        del self.nodes[name].lines[line.id]
        self.moved(line.id, Attempt("data", name))
        self.obey()

    # --- What must hold ---------------------------------------------------------------------------------

    @invariant()
    def children_have_their_parent(self) -> None:
        """Once the mind has said all it has to say."""
        for task_id, znode in self.tree.items():
            parent = znode.task.parent
            if parent is not None:
                assert parent in self.tree, f"{task_id} is there, and {parent} is not"
                entry = self.mind.tasks[parent]
                is_known = entry.phase not in (Phase.LOOKING, Phase.PINNING)
                assert not is_known or self.mind.partwork.is_child(task_id, entry)

    @invariant()
    def nothing_is_gathered_before_all_parts_are_done(self) -> None:
        for _, line in self.held():
            task = self.tree[line.id].task
            if task.dataset is not None and task.partition is None:
                stem = spreads.family(line.id, line.czxid, task, manifest())
                assert all(self.results.get(child) == "done" for child in spreads.child_ids(stem, range(PARTS)))

    def teardown(self) -> None:
        self.parts_move([["a", "b", "c"]] * PARTS)
        super().teardown()

    # --- The model --------------------------------------------------------------------------------------

    def parents(self) -> list[str]:
        return sorted(task_id for task_id, znode in self.tree.items() if spreads.is_spread(znode.task))

    def join(self, name: str, slots: int, labels: dict[str, str], kernels: tuple[str, ...]) -> None:
        super().join(name, slots, labels, (*kernels, spreads.GATHER))

    def forget(self, task_id: str) -> None:
        self.results.pop(task_id, None)
        self.dropped.discard(task_id)

    def suits(self, task_id: str, name: str) -> bool:
        entry = self.mind.tasks[task_id]
        is_for_nodes = entry.family is None or entry.family.is_done
        return is_for_nodes and (entry.homes is None or name in entry.homes) and super().suits(task_id, name)

    def carry_out(self, command: Command) -> None:
        if isinstance(command, LookUp):
            self.mind.dataset_read(command.name, self.now)
        elif isinstance(command, Pin):
            znode = self.tree.get(command.id)
            if znode is not None and znode.version == command.version:
                znode.version += 1
                znode.task = spreads.pinned(znode.task, command.dataset_version)
                self.mind.task_moved(command.id)
                self.tell(command.id)
        elif isinstance(command, Spread):
            self.spread(command)
        elif isinstance(command, Find):
            for task_id in command.ids:
                if task_id not in self.tree:
                    self.mind.parent_missing(task_id, self.now)
        elif isinstance(command, Refuse):
            end = command.end
            znode = self.tree.get(end.id)
            if znode is not None and znode.version == end.version:
                del self.tree[end.id]
                self.publish(end.id, end.status)
                self.mind.task_gone(end.id, self.now)
        else:
            super().carry_out(command)

    def spread(self, command: Spread) -> None:
        parent = self.tree.get(command.id)
        if parent is None or (parent.czxid, parent.version) != (command.czxid, command.version):
            return
        assert command.stem == spreads.family(command.id, parent.czxid, parent.task, manifest())
        made = []
        for part in command.parts:
            task_id = spreads.child_id(command.stem, part)
            if task_id not in self.tree and task_id not in self.results:
                self.zxid += 1
                self.tree[task_id] = Znode(self.zxid, spreads.child(command.id, parent.task, part), self.now)
                self.dropped.add(task_id)
                made.append(task_id)
        is_late = self.zxid % 2 == 0  # events may come before the answer, or after it
        for task_id in [] if is_late else made:
            self.tell(task_id)
        self.mind.spread(command.id, command.czxid, command.version, self.now)
        for task_id in made if is_late else []:
            self.tell(task_id)

    def assign(self, command: Assign) -> None:
        lines = self.nodes[command.node].lines
        for line in command.tasks:
            task = self.tree[line.id].task
            if task.partition is not None and lines.get(line.id) != line and command.tasks:
                assert command.node in self.atlas.homes("d", 1, task.partition), f"{command.node} is no home of it"
        super().assign(command)


TestPartCluster = PartCluster.TestCase
TestPartCluster.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_part_waits_for_the_home_that_came_and_not_for_the_one_that_went() -> None:
    cluster = PartCluster()
    cluster.a_task_on_a_dataset_is_dropped(combine=None, task=Task(kernel="k", dataset="d"))
    cluster.a_node_comes_or_comes_back(labels={}, name="a", slots=1)
    cluster.a_node_is_lost(data=Always("a"))
    cluster.a_node_comes_or_comes_back(labels={}, name="c", slots=1)
    cluster.a_node_lacks_what_a_task_needs(data=Always(cluster.held()[0]), is_lost=False)
    cluster.no_node_idles_beside_work_that_fits()


class Always(st.DataObject):
    """Draws what it was told to."""

    def __init__(self, value: object) -> None:
        self.value = value

    def draw(self, strategy: object, label: object = None) -> Any:
        return self.value
