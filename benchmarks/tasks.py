"""Small tasks end to end, zkd beside others, in one run on one machine.

    python -m benchmarks.tasks --against dask,celery,kazoo,ray [-n 3000] [--rounds 7] [--plot out/tasks.png]

Contenders take turns, in reversed order every other round, so that a machine whose speed drifts drifts for
all. Printed are medians, the range, and the ratio of zkd's median to each other's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from pathlib import Path

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


def measure(contender: Contender, n: int, figures: Figures) -> None:
    pids = [*contender.pids(), os.getpid()]  # the others below this process stand idle meanwhile
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


def run(names: list[str], n: int, rounds: int, kazoo_n: int, warm_up_s: float) -> dict[str, Figures]:
    figures = {name: Figures() for name in names}
    with contextlib.ExitStack() as stack:
        contenders = {}
        for name in names:
            contenders[name] = stack.enter_context(CONTENDERS[name]())
            figures[name].memory_mb = memory_mb(contenders[name].pids())
            warm_up(contenders[name], kazoo_n if name == "kazoo" else n, warm_up_s)
        for number in range(rounds):
            for name in names if number % 2 == 0 else reversed(names):
                # What the turn before has left behind, such as results to forget, is not this one's cost.
                time.sleep(PAUSE_S)
                measure(contenders[name], kazoo_n if name == "kazoo" else n, figures[name])
        measure_forgetting(contenders["zkd"], 3 * n, figures["zkd"])
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
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm-up", type=float, default=10.0, metavar="SECONDS", help="of each, not counted")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    names = ["zkd", *(name for name in options.against.split(",") if name)]
    figures = run(names, options.n, options.rounds, options.kazoo_n, options.warm_up)
    print(table(figures))
    if options.plot:
        plot(figures, options.plot)


if __name__ == "__main__":
    main()
