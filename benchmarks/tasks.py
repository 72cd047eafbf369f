"""Small tasks end to end, zkd beside others, in one run on one machine.

    python -m benchmarks.tasks --against dask,celery,kazoo,ray [-n 3000] [--rounds 7] [--plot out/tasks.png]

Contenders take turns, in reversed order every other round, so that a machine whose speed drifts drifts for
all. Each turn is a process of its own that starts the contender, warms it up, measures it and ends it: what another
leaves running, Ray's dozen processes above all, would cost it up to half of its rate. Printed are medians, the range,
and the ratio of zkd's median to each other's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, Contender, cpu_s, memory_mb

ONE_BY_ONE = 100
PAUSE_S = 0.5
FORGOTTEN_S = 14.0


class Figures:
    """What was measured of one contender, a number a round."""

    def __init__(self) -> None:
        self.rate: list[float] = []
        self.p50_ms: list[float] = []
        self.p99_ms: list[float] = []
        self.cpu_us: list[float] = []
        self.items: list[float] = []
        self.parts: dict[str, list[float]] = {}  # a task
        self.memory_mb = 0.0

    def add(self, turn: dict[str, Any]) -> None:
        """What another process has measured of it."""
        for name, found in turn.items():
            if name == "memory_mb":
                self.memory_mb = max(self.memory_mb, found)
            elif name == "parts":
                for part, used in found.items():
                    self.parts.setdefault(part, []).extend(used)
            else:
                getattr(self, name).extend(found)


def measure(contender: Contender, n: int, figures: Figures) -> None:
    pids = [*contender.pids(), os.getpid()]
    parts = getattr(contender, "parts", dict)
    before, parts_before = cpu_s(pids), parts()
    start = time.perf_counter()
    contender.many(n)
    elapsed = time.perf_counter() - start
    figures.rate.append(n / elapsed)
    figures.cpu_us.append((cpu_s(pids) - before) / n * 1e6)
    for name, used in parts().items():
        unit = 1 if name.startswith("packets") else 1e6
        figures.parts.setdefault(name, []).append((used - parts_before[name]) / n * unit)
    waits = []
    for _ in range(ONE_BY_ONE):
        start = time.perf_counter()
        contender.one()
        waits.append((time.perf_counter() - start) * 1e3)
    waits.sort()
    figures.p50_ms.append(statistics.median(waits))
    figures.p99_ms.append(waits[int(len(waits) * 0.99) - 1])
    items = getattr(contender, "items", None)
    if items is not None:
        start = time.perf_counter()
        items(20 * n)
        figures.items.append(20 * n / (time.perf_counter() - start))


def warm_up(contender: Contender, n: int, seconds: float) -> None:
    """Not counted: caches fill, JVMs compile, which takes ZooKeeper some 20,000 tasks."""
    until = time.monotonic() + seconds
    contender.many(n)
    while time.monotonic() < until:
        contender.many(n)


def measure_forgetting(zkd: Contender, n: int, figures: Figures) -> None:
    """The client deletes the results that it has read ten seconds later, which no round sees."""
    parts = getattr(zkd, "parts", dict)

    def used(seconds: float) -> float:
        before = parts()
        time.sleep(seconds)
        return sum(now - before[name] for name, now in parts().items() if not name.startswith("packets"))

    time.sleep(FORGOTTEN_S)
    idle = used(FORGOTTEN_S)
    zkd.many(n)
    figures.parts["all of them, to forget the result later"] = [(used(FORGOTTEN_S) - idle) / n * 1e6]


def turn(name: str, n: int, times: int, warm_up_s: float) -> Figures:
    """One contender from its start to its end, measured so many times."""
    figures = Figures()
    with CONTENDERS[name]() as contender:
        warm_up(contender, n, warm_up_s)
        for _ in range(times):
            # What was before has left things behind, such as results to forget: not this one's cost.
            time.sleep(PAUSE_S)
            measure(contender, n, figures)
        figures.memory_mb = memory_mb(contender.pids())  # of what has worked: a JVM is small before
        if name == "zkd":
            measure_forgetting(contender, 3 * n, figures)
    return figures


def run(names: list[str], options: argparse.Namespace) -> dict[str, Figures]:
    figures = {name: Figures() for name in names}
    for number in range(options.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            n = options.kazoo_n if name == "kazoo" else options.n
            command = [sys.executable, "-m", "benchmarks.tasks", "--turn", name, "-n", str(n)]
            command += ["--times", str(options.times), "--warm-up", str(options.warm_up)]
            told = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
            figures[name].add(json.loads(told.splitlines()[-1]))
    return figures


def table(figures: dict[str, Figures]) -> str:
    ours = figures["zkd"]
    lines = [
        "| | tasks/s | zkd is | one at a time, p50 ms | p99 ms | CPU us a task, all processes | PSS MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in figures.items():
        rate = statistics.median(found.rate)
        lines.append(
            f"| {name} | {rate:,.0f} [{min(found.rate):,.0f}-{max(found.rate):,.0f}] "
            f"| {statistics.median(ours.rate) / rate:.1f}x "
            f"| {statistics.median(found.p50_ms):.2f} | {statistics.median(found.p99_ms):.1f} "
            f"| {statistics.median(found.cpu_us):,.0f} | {found.memory_mb:.0f} |"
        )
    lines += ["", "| zkd, a task | median [range] |", "|---|---|"]
    for name, values in ours.parts.items():
        unit = "" if name.startswith("packets") else " CPU us"
        lines.append(f"| {name} | {statistics.median(values):.3g}{unit} [{min(values):.3g}-{max(values):.3g}] |")
    items = statistics.median(ours.items)
    lines.append("")
    lines.append(f"zkd, the same as array tasks (`client.map`): {items:,.0f} items/s")
    return "\n".join(lines)


def plot(figures: dict[str, Figures], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(figures)
    picture, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, attribute, title in ((left, "rate", "tasks/s"), (right, "p50_ms", "one at a time, p50 ms")):
        values = [getattr(figures[name], attribute) for name in names]
        middles = [statistics.median(value) for value in values]
        errors = [
            [m - min(v) for m, v in zip(middles, values, strict=True)],
            [max(v) - m for m, v in zip(middles, values, strict=True)],
        ]
        axis.bar(names, middles, yerr=errors, capsize=3, color=["#2a6f97", *["#adb5bd"] * (len(names) - 1)])
        axis.set_yscale("log")
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="dask,celery,kazoo", help=f"comma-separated, of {', '.join(CONTENDERS)}")
    parser.add_argument("-n", type=int, default=3000, help="tasks a round")
    parser.add_argument("--kazoo-n", type=int, default=200, help="tasks a round for the kazoo queue, which is slow")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--times", type=int, default=3, help="that each is measured in a turn")
    parser.add_argument("--warm-up", type=float, default=10.0, metavar="SECONDS", help="of each, not counted")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--turn", choices=CONTENDERS, help="one turn of one of them, told as JSON")
    options = parser.parse_args()
    if options.turn:
        print(json.dumps(vars(turn(options.turn, options.n, options.times, options.warm_up))))
        return
    names = ["zkd", *(name for name in options.against.split(",") if name)]
    figures = run(names, options)
    print(table(figures))
    if options.plot:
        plot(figures, options.plot)


if __name__ == "__main__":
    main()
