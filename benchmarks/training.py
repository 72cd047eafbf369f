"""Rounds of training, zkd beside others that compute the same gradient over as many parts, and what it costs to be
distributed.

    python -m benchmarks.training [--against numpy,pipes,scikit-learn,dask,ray] [--sizes 200000x50,1000000x100]
                                  [--turns 3] [--rounds 20]

Binary logistic regression in float64, every BLAS with one thread. `numpy` goes over the parts in this process, as one
would write it; `pipes` are two such processes and nothing else, the floor for anything that has two. Dask and Ray have
two workers that hold their parts in memory, and one task or call a worker a round, the least they can do. A round of
scikit-learn is an iteration of its lbfgs. zkd's are rounds of a job (`gd`), with its optimiser, over a node of one or
two counters, a real ZooKeeper and real HTTP, as they come to the client. The overhead of a round is what it takes with
as many parts of 4 rows each.

Contenders take turns, in reversed order every other time; each turn is a process of its own that starts what it needs
and ends it. The COST line: seconds to the optimum, from the drop of a job to its model in the client's hands, beside
one scikit-learn process that has all rows in memory already; how far apart their weights are is said.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import turns
from benchmarks.cluster import ROOT, Node, one_server
from benchmarks.turns import Figures

PARTS = 16
TINY_ROWS = 4  # a part, to see what a round costs beside its rows
TINY_ROUNDS = 200
WARM_UP = 3
WORKERS = 2
L2 = 1.0
SPAN_S = 0.25  # rounds are timed together where they come quickly, since they are told several at a time

Part = tuple[Any, Any]  # rows x features, labels 0 and 1


# --- Data ---------------------------------------------------------------------------------------------------


def make(rows: int, wide: int, directory: Path) -> None:
    dice = np.random.default_rng(1)
    w = dice.normal(size=wide) / wide**0.5
    for part in range(PARTS):
        count = rows * (part + 1) // PARTS - rows * part // PARTS
        x = dice.normal(size=(count, wide))
        y = (dice.random(count) < 1.0 / (1.0 + np.exp(-(x @ w)))).astype(np.int8)
        np.save(directory / f"x{part}.npy", x)
        np.save(directory / f"y{part}.npy", y)


def load(directory: Path, numbers: Sequence[int] = range(PARTS), rows: int | None = None) -> list[Part]:
    return [
        (np.load(directory / f"x{part}.npy")[:rows], np.load(directory / f"y{part}.npy")[:rows].astype(np.float64))
        for part in numbers
    ]


def gradient(parts: Sequence[Part], w: Any) -> tuple[float, Any]:
    """Loss and gradient, summed over the parts, as one would write it."""
    loss, total = 0.0, np.zeros_like(w)
    for x, y in parts:
        z = x @ w[:-1] + w[-1]
        loss += float(np.logaddexp(0.0, z).sum() - y @ z)
        error = 1.0 / (1.0 + np.exp(-z)) - y
        total[:-1] += error @ x
        total[-1] += error.sum()
    return loss, total


def shares() -> list[range]:
    return [range(worker, PARTS, WORKERS) for worker in range(WORKERS)]


def timed(turn: Callable[[Any], Any], wide: int, rounds: int) -> list[float]:
    dice, took = np.random.default_rng(2), []
    for number in range(WARM_UP + rounds):
        w = dice.normal(size=wide + 1) / wide
        began = time.perf_counter()
        turn(w)
        if number >= WARM_UP:
            took.append(time.perf_counter() - began)
    return took


# --- Contenders: each gives the seconds of rounds, and of those without rows to speak of ------------------------


def with_numpy(directory: Path, wide: int, rounds: int) -> Figures:
    whole, tiny = load(directory), load(directory, rows=TINY_ROWS)
    return {
        "round_s": timed(lambda w: gradient(whole, w), wide, rounds),
        "overhead_s": timed(lambda w: gradient(tiny, w), wide, TINY_ROUNDS),
    }


def with_pipes(directory: Path, wide: int, rounds: int) -> Figures:
    import multiprocessing

    found: Figures = {}
    context = multiprocessing.get_context("spawn")
    for name, rows, times in (("round_s", None, rounds), ("overhead_s", TINY_ROWS, TINY_ROUNDS)):
        lines = []
        for share in shares():
            ours, theirs = context.Pipe()
            context.Process(target=_at_pipe, args=(theirs, directory, share, rows), daemon=True).start()
            lines.append(ours)

        def turn(w: Any, lines: Any = lines) -> Any:
            for line in lines:
                line.send_bytes(w)
            return sum(np.frombuffer(line.recv_bytes()) for line in lines)

        turn(np.zeros(wide + 1))
        found[name] = timed(turn, wide, times)
        for line in lines:
            line.close()
    return found


def _at_pipe(line: Any, directory: Path, share: Sequence[int], rows: int | None) -> None:
    parts = load(directory, share, rows)
    try:
        while True:
            loss, total = gradient(parts, np.frombuffer(line.recv_bytes()))
            line.send_bytes(np.append(total, loss))
    except EOFError:
        pass


def with_sklearn(directory: Path, wide: int, rounds: int) -> Figures:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    warnings.simplefilter("ignore", ConvergenceWarning)
    parts = load(directory)
    x, y = np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
    del parts
    fast = LogisticRegression(C=1 / L2, solver="lbfgs", tol=1e-300, max_iter=rounds)
    began = time.perf_counter()
    fast.fit(x, y)
    found = {"round_s": [(time.perf_counter() - began) / int(fast.n_iter_[0])]}
    for solver, tol in (("newton-cholesky", 1e-8), ("lbfgs", 1e-7)):
        model = LogisticRegression(C=1 / L2, solver=solver, tol=tol, max_iter=1000)
        began = time.perf_counter()
        model.fit(x, y)
        found[f"optimum_{solver}_s"] = [time.perf_counter() - began]
        if solver == "newton-cholesky":
            optimum = np.append(model.coef_[0], model.intercept_)
            np.save(directory / "optimum.npy", optimum)
        found[f"off_{solver}"] = [float(np.abs(np.append(model.coef_[0], model.intercept_) - optimum).max())]
    return found


def with_dask(directory: Path, wide: int, rounds: int) -> Figures:
    from distributed import Client, LocalCluster

    found: Figures = {}
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as dask,
    ):
        workers = list(dask.scheduler_info()["workers"])
        for name, rows, times in (("round_s", None, rounds), ("overhead_s", TINY_ROWS, TINY_ROUNDS)):
            held = [
                dask.submit(load, directory, list(share), rows, workers=[worker], pure=False)
                for share, worker in zip(shares(), workers, strict=True)
            ]
            dask.gather([dask.submit(len, each) for each in held])

            def turn(w: Any, held: Any = held) -> Any:
                asked = [
                    dask.submit(gradient, each, w, workers=[worker], pure=False)
                    for each, worker in zip(held, workers, strict=True)
                ]
                return sum(total for _, total in dask.gather(asked))

            found[name] = timed(turn, wide, times)
    return found


def with_ray(directory: Path, wide: int, rounds: int) -> Figures:
    import ray

    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="error")

    class Holder:
        def __init__(self, share: Sequence[int], rows: int | None) -> None:
            self.parts = load(directory, share, rows)

        def gradient(self, w: Any) -> tuple[float, Any]:
            return gradient(self.parts, w)

    remote: Any = ray.remote(num_cpus=0.4)(Holder)
    found: Figures = {}
    for name, rows, times in (("round_s", None, rounds), ("overhead_s", TINY_ROWS, TINY_ROUNDS)):
        held = [remote.remote(list(share), rows) for share in shares()]

        def turn(w: Any, held: Any = held) -> Any:
            return sum(total for _, total in ray.get([each.gradient.remote(w) for each in held]))

        turn(np.zeros(wide + 1))
        found[name] = timed(turn, wide, times)
    ray.shutdown()
    return found


def with_zkd(workers: int) -> Callable[[Path, int, int], Figures]:
    return lambda directory, wide, rounds: asyncio.run(_with_zkd(directory, rounds, workers))


async def _with_zkd(directory: Path, rounds: int, workers: int) -> Figures:
    from zkd.client import Client

    found: Figures = {}
    with (
        tempfile.TemporaryDirectory(prefix="zkd-bench-", dir=directory) as own,
        one_server(Path(own) / "zookeeper") as server,
    ):
        node = Node(server.connect_string, "n1", Path(own), slots=workers)
        try:
            node.start()
            async with Client(server.connect_string, ROOT, connect_timeout_s=30.0) as client:
                await node.ready(client.session)
                for name, rows, times in (("tiny", TINY_ROWS, 5 * TINY_ROUNDS), ("whole", None, rounds)):
                    parts = load(directory, rows=rows)
                    columns = {
                        "x": np.concatenate([x for x, _ in parts]),
                        "y": np.concatenate([y for _, y in parts]).astype(np.int8),
                    }
                    del parts
                    await client.datasets.put(name, columns, parts=PARTS, replicas=1)
                    took = await _rounds(client, name, times)
                    found["overhead_s" if name == "tiny" else "round_s"] = took
                began = time.perf_counter()
                job = await client.train(
                    "logistic", dataset="whole", target="y", l2=L2, optimizer="newton", standardise=False
                )
                model = await job.model()
                found["optimum_newton_s"] = [time.perf_counter() - began]
                if (directory / "optimum.npy").exists():
                    trained = model.trained
                    found["off_newton"] = [float(np.abs(trained.w - np.load(directory / "optimum.npy")).max())]
        finally:
            node.kill()
    return found


async def _rounds(client: Any, dataset: str, rounds: int) -> list[float]:
    """Seconds of rounds, by when they come; the later half, since a client that comes late is told the first ones all
    at once. With next to no penalty gradient descent goes on for as long as one likes."""
    job = await client.train(
        "logistic", dataset=dataset, target="y", l2=1e-6, optimizer="gd", tol=1e-300, max_rounds=2 * rounds
    )
    at = [time.perf_counter() async for _ in job][rounds:]
    await job.wait()
    took, start = [], 0
    for here in range(1, len(at)):
        if at[here] - at[start] >= SPAN_S:
            took.append((at[here] - at[start]) / (here - start))
            start = here
    return took or [(at[-1] - at[0]) / (len(at) - 1)]


CONTENDERS: dict[str, Callable[[Path, int, int], Figures]] = {
    "zkd, 1 worker": with_zkd(1),
    "zkd, 2 workers": with_zkd(WORKERS),
    "numpy": with_numpy,
    "pipes": with_pipes,
    "scikit-learn": with_sklearn,
    "dask": with_dask,
    "ray": with_ray,
}
OURS = ("zkd, 1 worker", "zkd, 2 workers")  # they are always there


# --- What is told ---------------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    lines: list[str] = []
    for size, by_name in found.items():
        rows = int(size.split(" x ")[0])
        ours = statistics.median(by_name[OURS[1]]["round_s"])
        lines += [
            f"| {size}, {PARTS} parts | ms a round | M rows/s | zkd with 2 workers is | overhead, ms a round |",
            "|---|---|---|---|---|",
        ]
        for name, figures in by_name.items():
            middle = statistics.median(figures["round_s"])
            lines.append(
                f"| {name} | {_ms(figures['round_s'])} | {rows / middle / 1e6:.2f} | {middle / ours:.2f}x "
                f"| {_ms(figures['overhead_s']) if 'overhead_s' in figures else '-'} |"
            )
        one = statistics.median(by_name[OURS[0]]["round_s"])
        lines += ["", f"Two workers over one: {one / ours:.2f}x.", "", *_cost(by_name), ""]
    return "\n".join(lines)


def _ms(values: Sequence[float]) -> str:
    return f"{1e3 * statistics.median(values):.2f} [{1e3 * min(values):.2f}-{1e3 * max(values):.2f}]"


def _cost(by_name: dict[str, Figures]) -> list[str]:
    """Seconds to the optimum, and how many workers it takes to be there before one scikit-learn process."""
    alone = by_name.get("scikit-learn")
    if alone is None:
        return []
    lines = ["| to the optimum | s | off, of any weight |", "|---|---|---|"]
    for solver in ("newton-cholesky", "lbfgs"):
        off = max(alone[f"off_{solver}"])
        lines.append(f"| scikit-learn, {solver} | {_s(alone[f'optimum_{solver}_s'])} | {off:.0e} |")
    best = min(statistics.median(alone[f"optimum_{solver}_s"]) for solver in ("newton-cholesky", "lbfgs"))
    needed = "more than 2"
    for name in reversed(OURS):
        figures = by_name[name]
        off = f"{max(figures['off_newton']):.0e}" if "off_newton" in figures else "-"
        lines.append(f"| {name}, newton | {_s(figures['optimum_newton_s'])} | {off} |")
        if statistics.median(figures["optimum_newton_s"]) < best:
            needed = name.removeprefix("zkd, ")
    return [*lines, "", f"COST: {needed} to beat one scikit-learn process by its quicker solver."]


def _s(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}-{max(values):.2f}]"


def turn(name: str, args: argparse.Namespace) -> Figures:
    return CONTENDERS[name](args.data, args.wide, args.rounds)


def names(asked: list[str]) -> list[str]:
    """scikit-learn first: its optimum is what others are compared with."""
    return sorted((*asked, *OURS), key=lambda name: name != "scikit-learn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="numpy,pipes,scikit-learn,dask,ray")
    parser.add_argument("--sizes", default="200000x50,1000000x100")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15, help="of each contender in a turn")
    turns.main("training", parser, list(CONTENDERS), ["rounds"], make, turn, names, table)


if __name__ == "__main__":
    main()
