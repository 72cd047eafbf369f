"""What a task costs in the leader's mind alone: no ZooKeeper, no I/O, the pure core fed with events.

    python benchmarks/core.py [--tasks 100000] [--nodes 1000] [--submitters 1000] [--json]

All tasks are there before the first is given out, so every turn of the leader has the whole backlog behind it.
Nodes have four slots and full lists; in each turn some tasks end, and the mind says what to write. `read` is
the cost of taking a task in, `decide` of ending one and giving out the next; `turn` is that of a turn in which
a single task ended, the price of an answer when hardly anything happens. Times are of this thread's processor.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from zkd.core.commands import Assign
from zkd.core.dispatch import Dispatch
from zkd.records import Node, Task

SLOTS = 4
ENDS_A_TURN = 20
SINGLE_TURNS = 2_000
KERNELS = [f"numpy.f{number}" for number in range(450)]
# One name each: what the tasks of a scenario look like.
Make = Callable[[int, random.Random, int], Task]


def alike(number: int, rng: random.Random, submitters: int) -> Task:
    return Task(kernel=KERNELS[0])


def shared(number: int, rng: random.Random, submitters: int) -> Task:
    return Task(kernel=KERNELS[0], submitter=f"user-{number % submitters}")


def mixed(number: int, rng: random.Random, submitters: int) -> Task:
    """Every kernel, five priorities, some tasks wide or for one node, one rack or one amount of memory."""
    return Task(
        kernel=rng.choice(KERNELS),
        submitter=f"user-{rng.randrange(submitters)}",
        priority=rng.randrange(5),
        slots=2 if rng.random() < 0.02 else 1,
        node=f"n{rng.randrange(100)}" if rng.random() < 0.02 else None,
        labels={"rack": f"r{rng.randrange(20)}"} if rng.random() < 0.1 else {},
        memory=rng.randrange(1, 4 * 2**30) if rng.random() < 0.02 else None,
    )


SCENARIOS: dict[str, Make] = {"alike": alike, "shared": shared, "mixed": mixed}


def run(make: Make, tasks: int, nodes: int, submitters: int) -> dict[str, float]:
    rng = random.Random(1)
    mind = Dispatch("n0")
    for number in range(nodes):
        labels = {"rack": f"r{number % 20}"}
        mind.node_here(Node(f"n{number}", "1", SLOTS, labels=labels, memory=64 * 2**30, kernels=KERNELS), 0.0)
    dropped = [make(number, rng, submitters) for number in range(tasks)]
    gc.collect()
    gc.freeze()

    began = time.thread_time()
    for number, task in enumerate(dropped):
        mind.task_read(f"t{number}", number, 0, task, age_s=0.0, now=0.0)
    read_s = time.thread_time() - began

    held: list[str] = []
    now = 1.0

    def decide() -> None:
        for command in mind.commands(now):
            assert isinstance(command, Assign)
            held.extend(line.id for line in command.tasks if line.id not in known)
            known.update(line.id for line in command.tasks)

    def end(count: int) -> None:
        for _ in range(min(count, len(held))):
            place = rng.randrange(len(held))
            held[place], held[-1] = held[-1], held[place]
            mind.task_gone(held.pop(), now)

    known: set[str] = set()
    began = time.thread_time()
    decide()
    first_s = time.thread_time() - began
    given = len(known)
    singles: list[float] = []
    for _ in range(min(SINGLE_TURNS, tasks // 10)):
        now += 0.01
        began = time.thread_time()
        end(1)
        decide()
        singles.append(time.thread_time() - began)
    before = len(known)
    began = time.thread_time()
    while held:
        now += 0.01
        end(ENDS_A_TURN)
        decide()
    decided_s = time.thread_time() - began
    ended = tasks - before + given
    return {
        "read_us": read_s / tasks * 1e6,
        "first_us": first_s / max(1, given) * 1e6,
        "decide_us": decided_s / max(1, ended) * 1e6,
        "turn_us": statistics.median(singles) * 1e6,
        "turn_p99_us": statistics.quantiles(singles, n=100)[98] * 1e6,
        "unserved": float(len(mind.tasks)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--submitters", type=int, default=1_000)
    parser.add_argument("--scenario", choices=list(SCENARIOS), action="append")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in args.scenario or SCENARIOS:
        figures[name] = run(SCENARIOS[name], args.tasks, args.nodes, args.submitters)
        if not args.json:
            print(f"{name:8}" + "".join(f"  {what} {value:8.1f}" for what, value in figures[name].items()), flush=True)
    if args.json:
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
