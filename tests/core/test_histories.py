"""Long random histories: whenever all is quiet, no ready task waits that a node has room for, and all goes in the end.

Beside `test_dispatch_machine`, which seeks the shortest history that goes wrong, this one has more of everything:
nodes, needs, submitters, changes of nodes that stay. What is right is said naively: look at each task and each node.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from zkd.core.commands import Assign, Command, End, Look, Mourn, TakeBack
from zkd.core.dispatch import Dispatch
from zkd.core.picture import Entry, Phase, fits
from zkd.records import Assigned, Attempt, Limit, Node, Task

KERNELS = ["k0", "k1", "k2", "rare"]
LABELS: list[dict[str, str]] = [{}, {"d": "1"}, {"d": "2"}, {"d": "1", "e": "1"}]
LIMITS = [None, None, Limit(at_once=0), Limit(at_once=2), Limit(per_s=3.0), Limit(per_s=5.0, at_once=2, burst=3)]


class History:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.names = [f"n{number}" for number in range(2 + seed % 7)]
        self.now = 100.0
        self.zxid = 0
        self.lives = 0
        self.mind = Dispatch("n0")
        self.tree: dict[str, tuple[int, int, Task]] = {}  # czxid, version
        self.results: dict[str, str] = {}
        self.nodes: dict[str, Node] = {}
        self.lines: dict[str, dict[str, Assigned]] = {}

    # --- What happens -----------------------------------------------------------------------------------

    def step(self) -> None:
        dice = self.dice
        what = dice.choices(
            [self.drop, self.end, self.cancel, self.edit, self.join, self.lose, self.change, self.speak, self.limit],
            [35, 30, 5, 3, 4, 2, 4, 3, 4],
        )[0]
        for _ in range(dice.choice([1, 1, 3]) if what in (self.drop, self.end) else 1):
            what()
        self.wait(dice.choice([0.0] * 9 + [0.02, 0.3, 1.1, 31.0]))

    def drop(self) -> None:
        dice = self.dice
        self.zxid += 1
        near = [f"t{max(1, self.zxid + dice.randint(-5, 2))}"] if dice.random() < 0.1 else []
        task = Task(
            kernel=dice.choice(KERNELS),
            priority=dice.choice([0, 0, 0, -1, 1]),
            submitter=dice.choice([None, "x", *(f"s{number}" for number in range(20))]),
            retries=dice.randint(0, 2),
            delay_s=dice.choice([0.0] * 5 + [0.5]),
            not_after_s=dice.choice([None] * 6 + [1.0, 5.0]),
            labels=dice.choice([{}] * 4 + LABELS),
            node=dice.choice([*[None] * 8, *self.names]),
            slots=dice.choice([1] * 6 + [2, 3, 4]),
            memory=dice.choice([None] * 6 + [1_000, dice.randint(1, 100_000)]),
            prefer=dice.choice([[], [], [dice.choice(self.names)]]),
            speculative=dice.random() < 0.1,
            after=near,
        )
        self.write(f"t{self.zxid}", self.zxid, 0, task)

    def write(self, task_id: str, czxid: int, version: int, task: Task) -> None:
        self.tree[task_id] = (czxid, version, task)
        self.mind.task_read(task_id, czxid, version, task, age_s=0.0, now=self.now, size=10)

    def move(self, task_id: str, **changes: Any) -> None:
        czxid, version, task = self.tree[task_id]
        self.write(task_id, czxid, version + 1, msgspec.structs.replace(task, **changes))

    def remove(self, task_id: str, status: str) -> None:
        assert task_id not in self.results
        del self.tree[task_id]
        self.results[task_id] = status
        self.mind.task_gone(task_id, self.now)

    def held(self) -> list[tuple[str, Assigned]]:
        lines = [(node, line) for node, some in self.lines.items() for line in some.values()]
        return [(node, line) for node, line in lines if self.tree.get(line.id, ())[:2] == (line.czxid, line.version)]

    def end(self) -> None:
        held = self.held()
        if held:
            node, line = self.dice.choice(held)
            self.lines[node].pop(line.id)
            cause = self.dice.choice(["done"] * 5 + ["drain"])
            if cause == "done":
                self.remove(line.id, "done")
            else:
                self.move(line.id, attempts=[*self.tree[line.id][2].attempts, Attempt("drain", node)])

    def cancel(self) -> None:
        if self.tree:
            self.remove(self.dice.choice(list(self.tree)), "cancelled")

    def edit(self) -> None:
        if self.tree:
            self.move(self.dice.choice(list(self.tree)), slots=self.dice.randint(1, 4), submitter="new")

    def record(self, name: str) -> Node:
        dice = self.dice
        return Node(
            node=name,
            incarnation=f"{name}.{self.lives}",
            slots=dice.randint(1, 6),
            labels=dice.choice(LABELS),
            memory=dice.choice([None, 50_000, 100_000]),
            kernels=dice.choice([KERNELS[:3], KERNELS]),
        )

    def join(self) -> None:
        self.lives += 1
        self.meet(self.record(self.dice.choice(self.names)))

    def meet(self, record: Node) -> None:
        if record.node in self.nodes and self.nodes[record.node].incarnation != record.incarnation:
            self.lose(record.node)
        self.nodes[record.node] = record
        self.lines.setdefault(record.node, {})
        self.mind.node_here(record, self.now)

    def lose(self, name: str | None = None) -> None:
        name = name or self.dice.choice(self.names)
        if self.nodes.pop(name, None) is not None:
            del self.lines[name]
            self.mind.node_lost(name, self.now)

    def change(self) -> None:
        """A node that stays has other labels, slots, memory or kernels."""
        name = self.dice.choice(self.names)
        if name in self.nodes:
            field = self.dice.choice(["labels", "slots", "memory", "kernels"])
            self.meet(msgspec.structs.replace(self.nodes[name], **{field: getattr(self.record(name), field)}))

    def speak(self) -> None:
        self.mind.node_state(self.dice.choice(self.names), self.dice.choice(["active", "active", "cordoned"]))

    def limit(self) -> None:
        self.mind.limit_set(self.dice.choice(KERNELS), self.dice.choice(LIMITS), self.now)

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        self.obey()
        while (timer := self.mind.next_timer()) is not None and timer <= until:
            self.now = max(self.now, timer)
            self.obey()
        self.now = until
        self.obey()

    # --- What the leader says ---------------------------------------------------------------------------

    def obey(self) -> None:
        for _ in range(200):
            commands = self.mind.commands(self.now)
            if not commands:
                return
            for command in commands:
                self.carry_out(command)
        raise AssertionError("it never runs out of things to say")

    def carry_out(self, command: Command) -> None:
        if isinstance(command, Assign):
            assert self.nodes[command.node].incarnation == command.incarnation
            self.lines[command.node] = {line.id: line for line in command.tasks}
        elif isinstance(command, Look):
            for task_id in command.ids:
                if task_id in self.results:
                    status = "done" if self.results[task_id] == "done" else "failed"
                    self.mind.dependency_ended(task_id, status, self.now)  # type: ignore[arg-type]
                else:
                    self.mind.dependency_open(task_id, self.now)
        elif isinstance(command, Mourn):
            self.mind.mourned(command.id)
        elif command.id in self.tree and self.tree[command.id][1] == command.version:
            if isinstance(command, TakeBack):
                self.move(command.id, attempts=[*self.tree[command.id][2].attempts, command.attempt])
            else:
                self.remove(command.id, command.status if isinstance(command, End) else "rejected")

    # --- What must hold ---------------------------------------------------------------------------------

    def check(self) -> None:
        assert list(self.mind.check()) == []
        for entry in self.mind.tasks.values():
            if entry.phase is Phase.READY and (entry.patient_until or 0.0) <= self.now:
                able = [name for name in self.mind.members if self.could_run(entry, name)]
                assert not able, f"{entry} waits, and {able} could run it: {self.mind.why(entry.id, self.now)}"

    def could_run(self, entry: Entry, name: str) -> bool:
        member, need = self.mind.members[name], entry.need
        keeper = self.mind.queues.kept.get(name)
        return (
            member.takes_work
            and need.node in (None, name)
            and fits(need, member)
            and need.slots <= member.free_slots
            and (need.memory is None or member.memory is None or need.memory <= member.memory - member.memory_held)
            and (keeper is None or keeper in entry.lanes)
            and self.mind.limits.opens_at(need.kernel, self.now) <= self.now
        )

    def finish(self) -> None:
        """Limits go, large nodes come, what no node could run or was promised is cancelled, and the rest ends."""
        for kernel in KERNELS:
            self.mind.limit_set(kernel, None, self.now)
        for name in self.names:
            self.mind.node_state(name, "active")
            self.lives += 1
            self.meet(Node(name, f"{name}.{self.lives}", 6, labels={"d": "1", "e": "1"}, kernels=KERNELS))
        for _ in range(300):
            self.wait(0.3)
            self.check()
            for node, line in self.held():
                if line.id in self.tree:
                    self.lines[node].pop(line.id)
                    self.remove(line.id, "done")
            for task_id, (_, _, task) in list(self.tree.items()):
                if "2" in task.labels.values() or any(t not in self.tree and t not in self.results for t in task.after):
                    self.remove(task_id, "cancelled")
        assert self.tree == {}
        self.wait(1_000.0)
        left = self.mind.sizes()
        assert [left[name] for name in ("tasks", "queued", "mourned", "owed", "dependents")] == [0, 0, 0, 0, 0]
        assert (self.mind.queues.kept, self.mind.queues.submitters.held()) == ({}, {})
        assert self.mind.admission.by_submitter == {}


@pytest.mark.parametrize("seed", range(30))
def test_no_runnable_task_waits_and_everything_ends(seed: int) -> None:
    history = History(seed)
    for _ in range(100):
        history.step()
        history.check()
    history.finish()
