"""What a seed chooses, and one run of it: build, disturb, heal, converge, stop, check."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

from tests.simulation import bugs, checks, doubles
from tests.simulation.clients import Errand, Operator, Plain, Program, Submitter
from tests.simulation.nemesis import Nemesis
from tests.simulation.nodes import Node
from tests.simulation.world import World
from zkd.client.schedules import Every

STEP_S = 0.1  # how often invariants are looked at
CONVERGE_S = 30.0  # virtual, for a task after everything was healed; shorter than the leader's slow reconcile
SETTLE_S = 50.0  # virtual; a client that waits for a task which is gone looks twice, 15 s apart, before it believes it
STOP_S = 40.0  # virtual, for all daemons to stop in order


@dataclass
class Outcome:
    """What a run came to."""

    seed: int
    problems: list[str]
    sometimes: dict[str, int]
    virtual_s: float
    cpu_s: float
    tasks: int
    runs: int
    transactions: int
    digest: str = ""
    story: list[str] = field(default_factory=list)


class Cluster:
    """The actors of one world."""

    def __init__(self, world: World, rng: Random) -> None:
        self.world = world
        self.rng = rng
        timeout_s = rng.choice((1.0, 1.5, 2.0, 4.0))
        self.timeout_s = timeout_s
        self.trouble_s = rng.uniform(3.0, 9.0)
        self.calm = rng.random() < 0.05
        self.nodes = [
            Node(
                world,
                f"n{number}",
                slots=rng.choice((1, 1, 2, 3)),
                labels={"half": str(number % 2)},
                timeout_s=timeout_s,
                drain_timeout_s=rng.choice((0.3, 2.0, 20.0)),
            )
            for number in range(1, rng.randint(2, 4) + 1)
        ]
        self.submitters: list[Submitter] = []
        left = rng.randint(8, 24)
        for number in range(1, rng.randint(1, 3) + 1):
            kind = rng.choice((Program, Plain))
            machine = world.machine(f"c{number}")
            errands = [self._errand(f"x{number}-{n}", kind) for n in range(left // 3 + 1)]
            if kind is Plain:
                self._chain(errands)
            self.submitters.append(kind(world, machine, errands, timeout_s, 10.0))
        self.operator = Operator(world, world.machine("op"), [], timeout_s, 10.0)
        wishes: list[tuple[float, str, str, Any]] = []
        for node in self.nodes:
            if rng.random() < 0.3:
                at = rng.uniform(0.5, self.trouble_s)
                wishes.append((at, "state", node.name, rng.choice(("draining", "cordoned", "draining"))))
                wishes.append((at + rng.uniform(0.1, 2.0), "state", node.name, "active"))
        if rng.random() < 0.3:
            at = rng.uniform(0.3, self.trouble_s)
            wishes.append((at, "limit", "sim.other", rng.choice((0, 1, 1, 2))))
            wishes.append((at + rng.uniform(0.5, 4.0), "no limit", "sim.other", None))
        if rng.random() < 0.3:
            at = rng.uniform(0.3, self.trouble_s / 2)
            wishes.append((at, "schedule", "tick", Every(rng.choice((1, 1, 2)))))
            wishes.append((at + rng.uniform(2.0, 5.0), "no schedule", "tick", None))
        self.operator.wishes = sorted(wishes)
        self.nemesis = Nemesis(world, self, world.stream("nemesis"))

    def _errand(self, name: str, kind: type[Submitter]) -> Errand:
        rng = self.rng
        plan = [
            [rng.choice(("done", "done", "done", "error", "crash")), self._run_s()] for _ in range(rng.randint(1, 3))
        ]
        if rng.random() < 0.06:
            plan[0] = ["hang", 0]
        if rng.random() < 0.8:
            plan[-1][0] = "done"
        is_straggler = rng.random() < 0.08
        if is_straggler:
            plan = [["straggle", 8.0]]
        fields: dict[str, Any] = {"kernel": rng.choice(("sim.work", "sim.work", "sim.other")), "args": [plan]}
        if is_straggler or rng.random() < 0.1:
            fields["speculative"] = True
        if rng.random() < 0.6:
            fields["retries"] = rng.randint(1, 3)
        if plan[0][0] == "hang" or rng.random() < 0.15:
            fields["timeout_s"] = rng.choice((0.2, 1.0))
        if rng.random() < 0.15:
            fields["delay_s"] = rng.uniform(0.1, 2.0)
        if rng.random() < 0.15:
            fields["not_after_s"] = rng.choice((0.5, 2.0, 6.0))
        if rng.random() < 0.2:
            fields["priority"] = rng.randint(-5, 5)
        if rng.random() < 0.2:
            fields["labels"] = {"half": rng.choice(("0", "1"))}
        if rng.random() < 0.08 and any(node.slots > 1 for node in self.nodes):
            fields["slots"] = 2
            fields.pop("labels", None)
        if rng.random() < 0.15:
            fields["submitter"] = rng.choice(("ann", "bob"))
        errand = Errand(rng.uniform(0.3, self.trouble_s), fields, name)
        errand.mode = rng.choice(("persistent",) * 6 + ("ephemeral",))
        if kind is Plain:
            errand.mode = rng.choice((errand.mode, errand.mode, "sequential", "ttl"))
        if rng.random() < 0.2:
            errand.cancel_after = rng.choice((0.0, rng.uniform(0, 0.02), rng.uniform(0, 2)))
            if kind is Plain and errand.mode == "persistent" and rng.random() < 0.5:
                errand.again_after = rng.choice((0.0, 0.01, rng.uniform(0, 1)))
        elif kind is Plain and rng.random() < 0.15:
            errand.edit_after = rng.choice((0.0, rng.uniform(0, 0.05), rng.uniform(0, 1)))
        return errand

    def _chain(self, errands: list[Errand]) -> None:
        """Some wait for others. What they wait for may never be dropped, so that they have a last hour."""
        named = [errand for errand in errands if errand.mode != "sequential"]
        for errand in errands:
            others = [other.id for other in named if other is not errand]
            if others and self.rng.random() < 0.12:
                errand.fields["after"] = self.rng.sample(others, min(len(others), self.rng.choice((1, 1, 2))))
                errand.fields.setdefault("not_after_s", self.rng.uniform(4.0, 8.0))

    def _run_s(self) -> float:
        rng = self.rng
        return rng.choice((0.0, rng.uniform(0, 0.05), rng.uniform(0, 0.5), rng.uniform(0, 3)))


def run(seed: int, *, bug: str | None = None, story: bool = False, digest: bool = False) -> Outcome:
    """One seed, from nothing to the verdict."""
    began = time.process_time()
    rng = Random(seed * 7919 + 17)
    is_collecting = gc.isenabled()
    # What dies must die at the same moment in every run of a seed, and be looked for only among this world's own.
    gc.disable()
    _freeze()
    world = World(seed, servers=rng.choice((1, 3, 3)), tick_s=0.1, bugs=bugs.BUGS[bug]() if bug else [])
    try:
        with doubles.inside(world):
            cluster = Cluster(world, rng)
            _play(world, cluster)
            virtual_s = world.loop.now
            tasks, runs, transactions = len(world.witness.lives), len(world.ledger.runs), len(world.ensemble.log)
            if not world.problems:
                checks.afterwards(cluster)
            lines = world.lines() if story else []
            mark = world.digest() if digest else ""
            del cluster
            world.dispose()
    finally:
        world.loop.is_over = True
        world.loop.close()
        if is_collecting:
            gc.enable()
    return Outcome(
        seed,
        list(world.problems),
        dict(world.sometimes),
        virtual_s,
        time.process_time() - began,
        tasks,
        runs,
        transactions,
        mark,
        lines,
    )


@lru_cache(maxsize=1)
def _freeze() -> None:
    """Once: what is there before the first world outlives them all, and is not looked at after each."""
    gc.collect()
    gc.freeze()


def _play(world: World, cluster: Cluster) -> None:
    loop = world.loop
    for number, node in enumerate(cluster.nodes):
        loop.after(0.0 if number == 0 else cluster.rng.uniform(0, 1.0), node.boot)
    for submitter in cluster.submitters:
        submitter.start()
    cluster.operator.start()

    def look() -> None:
        checks.now(cluster)
        loop.after(STEP_S, look)

    loop.after(STEP_S, look)
    if not cluster.calm:
        cluster.nemesis.start(cluster.trouble_s)
    world.run(cluster.trouble_s)
    if world.problems:
        return
    cluster.nemesis.heal()
    healed_at = loop.now

    def is_settled() -> bool:
        for life in world.witness.lives.values():
            if life.end is None and loop.now - max(life.born_at, healed_at) > CONVERGE_S:
                world.broken(f"{life.id} has waited for {CONVERGE_S:g} s though everything was healed")
        return not checks.unsettled(cluster)

    if not world.run(healed_at + SETTLE_S, is_settled):
        if not world.problems:
            world.broken(f"not settled {SETTLE_S:g} s after everything was healed: {checks.unsettled(cluster)}")
        return
    checks.settled(cluster)
    for node in cluster.nodes:
        node.is_wanted = False
        node.stop()
    world.run(loop.now + STOP_S, lambda: all(node.daemon is None for node in cluster.nodes))
    # A connection that was dead unnoticed carried no farewell: then the session ends by its timeout.
    world.run(loop.now + 2 * cluster.timeout_s + 1.0, lambda: not checks.left_behind(cluster))
    if not world.problems:
        checks.stopped(cluster)
