"""Whatever happens, in whatever order: no task lost, none with two ends, none at two nodes, no idle node beside work.

A little model of the tree and of what nodes do stands around the real `Dispatch`; Hypothesis chooses what happens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.core.scene import node
from zkd.core.commands import Assign, Command, End, Look, Mourn, TakeBack
from zkd.core.dispatch import Dispatch
from zkd.core.picture import Phase, fits
from zkd.core.stragglers import KNOWN_MIN
from zkd.errors import BadRecord
from zkd.records import CHARGED, Assigned, Attempt, Limit, Node, NodeState, Task

NAMES = ("a", "b", "c")
KERNELS = ("k", "rare", "absent")


@dataclass
class Znode:
    czxid: int
    task: Task
    created: float
    version: int = 0
    is_bad: bool = False


@dataclass
class There:
    """A node that is here: what it was told to hold."""

    record: Node
    lines: dict[str, Assigned] = field(default_factory=dict)


tasks = st.builds(
    Task,
    kernel=st.sampled_from(["k", "k", "k", "rare", "absent"]),
    priority=st.integers(-1, 1),
    submitter=st.sampled_from([None, None, "x", "y"]),
    memory=st.sampled_from([None, None, None, 40, 70]),
    retries=st.integers(0, 2),
    delay_s=st.sampled_from([0.0, 0.0, 0.0, 0.5]),
    not_after_s=st.sampled_from([None, None, None, 1.0]),
    node=st.sampled_from([None, None, None, "a", "c"]),
    labels=st.sampled_from([{}, {}, {"disk": "ssd"}]),
    slots=st.sampled_from([1, 1, 1, 2, 3]),
    prefer=st.sampled_from([[], [], ["a"], ["b", "c"]]),
    speculative=st.sampled_from([False, False, True]),
)


limits = st.sampled_from(
    [None, None, Limit(at_once=1), Limit(at_once=0), Limit(per_s=1.0), Limit(per_s=100.0, burst=3)]
)


class Cluster(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.zxid = 0
        self.tree: dict[str, Znode] = {}
        self.results: dict[str, str] = {}
        self.dropped: set[str] = set()
        self.excused: set[str] = set()
        self.nodes: dict[str, There] = {}
        self.states: dict[str, NodeState] = {}
        self.limits: dict[str, Limit] = {}
        self.starts: dict[str, list[float]] = {}  # of each limited kernel, since that was said or the leader began
        self.lists: dict[str, tuple[str, list[Assigned]]] = {}
        self.mind = self.new_mind()
        self.know_times()
        self.lives = 0

    def new_mind(self) -> Dispatch:
        return Dispatch("a")

    # --- What happens -----------------------------------------------------------------------------------

    @rule(
        task=tasks,
        is_bad=st.sampled_from([False] * 9 + [True]),
        after=st.sampled_from([(), (), (), (-1,), (-1, -3), (1,), (0,), (-1, 2)]),
    )
    def a_task_is_dropped(self, task: Task, is_bad: bool, after: tuple[int, ...]) -> None:
        self.zxid += 1
        task = msgspec.structs.replace(task, after=[f"t{self.zxid + offset}" for offset in after])
        task_id = f"t{self.zxid}"
        self.dropped.add(task_id)
        self.tree[task_id] = Znode(self.zxid, task, self.now, is_bad=is_bad)
        self.tell(task_id)
        self.obey()

    @precondition(lambda self: self.tree)
    @rule(data=st.data())
    def a_task_is_cancelled(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(sorted(self.tree)))
        del self.tree[task_id]
        self.mind.task_gone(task_id, self.now)
        self.obey()

    @precondition(lambda self: self.held())
    @rule(data=st.data(), cause=st.sampled_from(["done", "done", "error", "timeout", "drain"]))
    def a_run_ends(self, data: st.DataObject, cause: str) -> None:
        name, line = data.draw(st.sampled_from(self.held()))
        self.end_run(name, line, cause)
        self.obey()

    @rule(name=st.sampled_from(NAMES), slots=st.integers(1, 3), labels=st.sampled_from([{}, {"disk": "ssd"}]))
    def a_node_comes_or_comes_back(self, name: str, slots: int, labels: dict[str, str]) -> None:
        self.join(name, slots, labels, ("k", "rare") if slots == 3 else ("k",))
        self.obey()

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def a_node_is_lost(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.nodes)))
        del self.nodes[name]
        self.mind.node_lost(name, self.now)
        self.obey()

    @rule(name=st.sampled_from(NAMES), state=st.sampled_from(["active", "cordoned", "draining"]))
    def an_operator_speaks(self, name: str, state: NodeState) -> None:
        self.states[name] = state
        self.mind.node_state(name, state)
        self.obey()

    @rule(kernel=st.sampled_from(["k", "rare"]), limit=limits)
    def an_operator_limits_a_kernel(self, kernel: str, limit: Limit | None) -> None:
        self.set_limit(kernel, limit)
        self.obey()

    @rule(step_s=st.sampled_from([0.001, 0.05, 0.3, 2.0, 31.0]))
    def time_passes(self, step_s: float) -> None:
        until = self.now + step_s
        while (timer := self.mind.next_timer()) is not None and timer <= until:
            assert timer > self.now, "a timer that is due at once, again and again"
            self.now = timer
            self.obey()
        self.now = until
        self.obey()

    @rule(remembers=st.booleans())
    def a_leader_makes_its_picture_anew(self, remembers: bool) -> None:
        """Another leader, or this one after a lost connection."""
        former, self.mind = self.mind, self.new_mind()
        self.know_times()
        for name, state in self.states.items():
            self.mind.node_state(name, state)
        for kernel, limit in self.limits.items():
            self.starts[kernel] = []
            self.mind.limit_set(kernel, limit, self.now)
        for there in self.nodes.values():
            self.mind.node_here(there.record, self.now)
        if remembers:
            self.mind.succeed(former, set(self.tree))
        else:  # what only the former leader knew: a cancelled task whose holder is lost before it heard of it
            for there in self.nodes.values():
                self.excused |= {task_id for task_id in there.lines if task_id not in self.tree}
        given = {line.id for _, lines in self.lists.values() for line in lines}
        for task_id in [t for t in self.tree if t in given]:
            self.tell(task_id)
        for name, (incarnation, lines) in self.lists.items():
            self.mind.assignment_found(name, incarnation, lines, self.now)
        for task_id in [t for t in self.tree if t not in given]:
            self.tell(task_id)
        self.obey()

    @rule()
    def news_comes_twice(self) -> None:
        for task_id in self.tree:
            self.tell(task_id)
        for there in self.nodes.values():
            self.mind.node_here(there.record, self.now)
        assert self.mind.commands(self.now) == []

    # --- What must hold ---------------------------------------------------------------------------------

    @invariant()
    def the_picture_is_sound(self) -> None:
        assert list(self.mind.check()) == []

    @invariant()
    def no_task_is_at_two_nodes_but_a_speculative_one(self) -> None:
        seen: dict[str, list[str]] = {}
        for name, line in self.held():
            seen.setdefault(line.id, []).append(name)
        for task_id, names in seen.items():
            assert len(names) <= (2 if self.tree[task_id].task.speculative else 1), f"{task_id} at {names}"

    @invariant()
    def every_accepted_task_is_there_or_has_ended_or_is_being_let_go(self) -> None:
        untold = {t for there in self.nodes.values() for t in there.lines if t not in self.tree}
        assert self.dropped <= self.tree.keys() | self.results.keys() | untold | self.excused

    @invariant()
    def no_node_idles_beside_work_that_fits(self) -> None:
        kept = self.mind.queues.kept
        for name, member in self.mind.members.items():
            if member.takes_work and not member.held and name not in kept:
                waiting = [e.id for e in self.mind.tasks.values() if e.phase is Phase.READY and e.patient_until is None]
                able = [t for t in waiting if self.suits(t, name) and self.mind.tasks[t].need.kernel not in self.limits]
                assert not able, f"{able} wait while {name} has nothing to do"

    @invariant()
    def limits_are_kept(self) -> None:
        for kernel, limit in self.limits.items():
            starts = self.starts[kernel]
            if limit.per_s is not None:
                burst = limit.burst or max(1, int(limit.per_s / 10))
                for first in range(len(starts)):
                    for last in range(first, len(starts)):
                        assert last - first + 1 <= burst + limit.per_s * (starts[last] - starts[first]) + 1e-3

    @invariant()
    def nothing_runs_before_what_it_waits_for_is_done(self) -> None:
        for _, line in self.held():
            assert all(self.results.get(task_id) == "done" for task_id in self.tree[line.id].task.after)

    def teardown(self) -> None:
        """All nodes come, limits go, what is promised is cancelled, and everything ends."""
        for kernel in list(self.limits):
            self.set_limit(kernel, None)
        for name in NAMES:
            self.states[name] = "active"
            self.mind.node_state(name, "active")
            self.join(name, 3, {"disk": "ssd"}, ("k", "rare"))
        self.obey()
        for _ in range(400):
            if not self.tree and not any(there.lines for there in self.nodes.values()):
                break
            for name, line in self.held():
                if self.is_live(line):  # else it was a second copy, and the first one has ended it
                    self.end_run(name, line, "done")
            for task_id, znode in list(self.tree.items()):
                if any(awaited not in self.tree and awaited not in self.results for awaited in znode.task.after):
                    del self.tree[task_id]
                    self.mind.task_gone(task_id, self.now)
            self.obey()
            self.time_passes(0.3)
        assert not self.tree, f"never ended: {self.tree}, {self.mind.tasks}"
        assert self.dropped - self.excused <= self.results.keys()

    # --- The model --------------------------------------------------------------------------------------

    def suits(self, task_id: str, name: str) -> bool:
        need = self.mind.tasks[task_id].need
        return need.node in (None, name) and fits(need, self.mind.members[name])

    def held(self) -> list[tuple[str, Assigned]]:
        """What nodes run or would run: lines whose task is still as it was when they were given."""
        return [
            (name, line)
            for name, there in sorted(self.nodes.items())
            for line in there.lines.values()
            if self.is_live(line)
        ]

    def is_live(self, line: Assigned) -> bool:
        znode = self.tree.get(line.id)
        return znode is not None and (znode.czxid, znode.version) == (line.czxid, line.version)

    def know_times(self) -> None:
        for _ in range(KNOWN_MIN):
            self.mind.times.ended("k", 0.05)

    def tell(self, task_id: str) -> None:
        znode = self.tree[task_id]
        task = BadRecord("$", "no") if znode.is_bad else znode.task
        age_s = self.now - znode.created
        self.mind.task_read(task_id, znode.czxid, znode.version, task, age_s=age_s, now=self.now)

    def join(self, name: str, slots: int, labels: dict[str, str], kernels: tuple[str, ...]) -> None:
        self.lives += 1
        record = node(name, slots, kernels=kernels, labels=labels, life=self.lives)
        if name in self.nodes:
            del self.nodes[name]
            self.mind.node_lost(name, self.now)
            self.obey()
        self.nodes[name] = There(record)
        self.mind.node_here(record, self.now)

    def set_limit(self, kernel: str, limit: Limit | None) -> None:
        self.limits.pop(kernel, None)
        if limit is not None:
            self.limits[kernel] = limit
            self.starts[kernel] = []
        self.mind.limit_set(kernel, limit, self.now)

    def publish(self, task_id: str, status: str) -> None:
        assert task_id not in self.results, f"{task_id} ended as {self.results[task_id]} and as {status}"
        self.results[task_id] = status

    def moved(self, task_id: str, attempt: Attempt) -> None:
        znode = self.tree[task_id]
        znode.version += 1
        znode.task = msgspec.structs.replace(znode.task, attempts=[*znode.task.attempts, attempt])
        self.tell(task_id)

    def end_run(self, name: str, line: Assigned, cause: str) -> None:
        del self.nodes[name].lines[line.id]
        task = self.tree[line.id].task
        charged = 1 + sum(attempt.cause in CHARGED for attempt in task.attempts)
        if cause == "done" or (cause in CHARGED and charged > task.retries):
            del self.tree[line.id]
            self.publish(line.id, cause)
            self.mind.task_gone(line.id, self.now)
        else:
            self.moved(line.id, Attempt(cause, name))  # type: ignore[arg-type]

    def obey(self) -> None:
        for _ in range(50):
            commands = self.mind.commands(self.now)
            if not commands:
                return
            for command in commands:
                self.carry_out(command)
        raise AssertionError("it never runs out of things to say")

    def carry_out(self, command: Command) -> None:
        if isinstance(command, Assign):
            self.assign(command)
        elif isinstance(command, End):
            znode = self.tree.get(command.id)
            if znode is not None and znode.version == command.version:
                del self.tree[command.id]
                self.publish(command.id, command.status)
                self.mind.task_gone(command.id, self.now)
        elif isinstance(command, TakeBack):
            znode = self.tree.get(command.id)
            if znode is not None and znode.version == command.version:
                self.moved(command.id, command.attempt)
        elif isinstance(command, Look):
            for task_id in command.ids:
                if task_id in self.results:
                    status = "done" if self.results[task_id] == "done" else "failed"
                    self.mind.dependency_ended(task_id, status, self.now)  # type: ignore[arg-type]
                else:
                    self.mind.dependency_open(task_id, self.now)
        else:
            assert isinstance(command, Mourn)
            assert command.id not in self.tree, "mourned, and alive"
            if command.id not in self.results:
                self.publish(command.id, "cancelled")
            self.mind.mourned(command.id)

    def assign(self, command: Assign) -> None:
        self.lists[command.node] = (command.incarnation, command.tasks)
        there = self.nodes[command.node]
        assert there.record.incarnation == command.incarnation
        assert all(self.is_live(line) for line in command.tasks), "given at a version that is over"
        lines = {line.id: line for line in command.tasks}
        assert len(lines) == len(command.tasks)
        used = sum(self.tree[task_id].task.slots for task_id in lines)
        assert used <= there.record.slots + self.mind.members[command.node].pace.ahead(self.now) or all(
            task_id in there.lines for task_id in lines
        )
        for task_id, line in lines.items():
            if there.lines.get(task_id) != line:
                assert self.states.get(command.node, "active") == "active"
                assert self.suits(task_id, command.node)
                kernel = self.tree[task_id].task.kernel
                if kernel in self.limits:
                    self.starts[kernel].append(self.now)
                    at_once = self.limits[kernel].at_once
                    held = [line for _, line in self.held() if self.tree[line.id].task.kernel == kernel]
                    assert at_once is None or len(held) < at_once or task_id in [line.id for line in held]
        for task_id in there.lines:
            if task_id not in lines and task_id not in self.tree and task_id not in self.results:
                self.publish(task_id, "cancelled")  # as its holder does
        there.lines = lines


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
