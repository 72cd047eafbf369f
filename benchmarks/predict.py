"""Predictions of a whole dataset, zkd beside numpy on the same cores, Dask and Ray: rows a second.

    python -m benchmarks.predict [--against numpy,dask,ray] [--sizes 2000000x50] [--turns 2] [--runs 3]

A logistic model without scaler over float64 rows in 64 parts; label, two probabilities and score of each row are
written as files. All have two worker processes, every BLAS with one thread. `numpy` are two processes that map the
files of parts, compute as one would write it, and write `.npy`; Dask does it by `map_blocks` over an array of those
files, Ray by a task a part. None of these syncs what it wrote. zkd is a node of two workers, a real ZooKeeper and
real HTTP; its predictions are hashed, verified, synced, and committed as a version of a dataset. Starting is not
counted, nor the putting of rows; the first run is told apart, because zkd reads and verifies the rows then and
others only load libraries. Rows are in the page cache.

Contenders take turns, in reversed order every other time; each turn is a process of its own that starts what it needs
and ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
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

PARTS = 64
WORKERS = 2
OURS = "zkd"


def make(rows: int, wide: int, directory: Path) -> None:
    dice = np.random.default_rng(1)
    np.save(directory / "w.npy", dice.normal(size=wide + 1) / wide**0.5)
    for part in range(PARTS):
        count = rows * (part + 1) // PARTS - rows * part // PARTS
        np.save(directory / f"x{part}.npy", dice.normal(size=(count, wide)))


def said(x: Any, w: Any) -> tuple[Any, Any, Any]:
    """Label, probabilities and score, as one would write it."""
    score = x @ w[:-1] + w[-1]
    second = 1.0 / (1.0 + np.exp(-score))
    return (score > 0).astype(np.int64), np.column_stack([1.0 - second, second]), score


def predict_file(directory: Path, out: Path, part: int) -> int:
    x = np.load(directory / f"x{part}.npy", mmap_mode="r")
    for name, column in zip("lps", said(x, np.load(directory / "w.npy")), strict=True):
        np.save(out / f"{name}{part}.npy", column)
    return len(x)


def timed(run: Callable[[Path], int], directory: Path, runs: int) -> Figures:
    found: Figures = {"first_s": [], "run_s": []}
    for number in range(1 + runs):
        out = directory / f"out{number}"
        out.mkdir()
        began = time.perf_counter()
        rows = run(out)
        found["run_s" if number else "first_s"].append(time.perf_counter() - began)
        assert rows == sum(len(np.load(out / f"s{part}.npy", mmap_mode="r")) for part in range(PARTS))
        shutil.rmtree(out)
    return found


# --- Contenders ---------------------------------------------------------------------------------------------


def with_numpy(directory: Path, runs: int) -> Figures:
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        return timed(
            lambda out: sum(pool.starmap(predict_file, [(directory, out, part) for part in range(PARTS)], 1)),
            directory,
            runs,
        )


def with_dask(directory: Path, runs: int) -> Figures:
    import dask.array as da
    from distributed import Client, LocalCluster

    w = np.load(directory / "w.npy")
    shapes = [np.load(directory / f"x{part}.npy", mmap_mode="r").shape for part in range(PARTS)]

    def write(out: str, x: Any, block_info: Any = None) -> Any:
        part = block_info[0]["chunk-location"][0]
        for name, column in zip("lps", said(x, w), strict=True):
            np.save(f"{out}/{name}{part}.npy", column)
        return np.array([[len(x)]])

    def load(part: int) -> Any:
        return np.load(f"{directory}/x{part}.npy", mmap_mode="r")

    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        from dask import delayed

        def run(out: Path) -> int:
            blocks = [da.from_delayed(delayed(load)(part), shape, np.float64) for part, shape in enumerate(shapes)]
            rows = da.concatenate(blocks)
            counts = rows.map_blocks(lambda x, block_info=None: write(str(out), x, block_info), dtype=np.int64,
                                     chunks=((1,) * PARTS, (1,)))  # fmt: skip
            return int(counts.compute().sum())

        return timed(run, directory, runs)


def with_ray(directory: Path, runs: int) -> Figures:
    import ray

    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="error")
    remote: Any = ray.remote(predict_file)
    found = timed(
        lambda out: sum(ray.get([remote.remote(directory, out, part) for part in range(PARTS)])), directory, runs
    )
    ray.shutdown()
    return found


def with_zkd(directory: Path, runs: int) -> Figures:
    return asyncio.run(_with_zkd(directory, runs))


async def _with_zkd(directory: Path, runs: int) -> Figures:
    from zkd.client import Client

    found: Figures = {"first_s": [], "run_s": [], "again_s": [], "metrics_s": []}
    with (
        tempfile.TemporaryDirectory(prefix="zkd-bench-", dir=directory) as own,
        one_server(Path(own) / "zookeeper") as server,
    ):
        node = Node(server.connect_string, "n1", Path(own), slots=WORKERS)
        try:
            node.start()
            async with Client(server.connect_string, ROOT, connect_timeout_s=30.0) as client:
                await node.ready(client.session)
                model = _model(np.load(directory / "w.npy"))
                dice = np.random.default_rng(3)
                batches = (
                    {"x": x, "y": dice.integers(0, 2, len(x)).astype(np.int8)}
                    for x in (np.load(directory / f"x{part}.npy") for part in range(PARTS))
                )
                await client.datasets.put("rows", batches, parts=PARTS, replicas=1)
                for number in range(1 + runs):
                    began = time.perf_counter()
                    out = await client.predict(model, "rows", out=f"out{number}")
                    found["run_s" if number else "first_s"].append(time.perf_counter() - began)
                await _compare(out, model, directory)
                began = time.perf_counter()
                await client.predict(model, "rows", out="out0")
                found["again_s"].append(time.perf_counter() - began)
                began = time.perf_counter()
                await client.evaluate(model, "rows")
                found["metrics_s"].append(time.perf_counter() - began)
        finally:
            node.kill()
    return found


def _model(w: Any) -> Any:
    from zkd.jobs import Job, Summary
    from zkd.models.model import Model
    from zkd.models.trained import Trained

    wide = len(w) - 1
    summary = Summary(reason="made", rounds=0)
    features = (("x", wide),)
    return Trained(
        Model("logistic", wide), w, None, np.zeros(wide), (0, 1), features, "y", "", Job(model="logistic", dataset=""),
        summary, 0, 0, 0.0, (), (),
    )  # fmt: skip


async def _compare(out: Any, model: Any, directory: Path) -> None:
    """That all compute the same: in written order, to some last bits."""
    scores = (await out.read(columns=["score"]))["score"]
    expected = np.concatenate(
        [said(np.load(directory / f"x{part}.npy", mmap_mode="r"), model.w)[2] for part in range(PARTS)]
    )
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-12)


CONTENDERS: dict[str, Callable[[Path, int], Figures]] = {
    OURS: with_zkd,
    "numpy": with_numpy,
    "dask": with_dask,
    "ray": with_ray,
}


# --- What is told -------------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    lines: list[str] = []
    for size, by_name in found.items():
        rows = int(size.split(" x ")[0])
        ours = statistics.median(by_name[OURS]["run_s"])
        lines += [
            f"| {size}, {PARTS} parts, {WORKERS} workers | s a run | M rows/s | zkd is | s, first run |",
            "|---|---|---|---|---|",
        ]
        for name, figures in by_name.items():
            middle = statistics.median(figures["run_s"])
            lines.append(
                f"| {name} | {_s(figures['run_s'])} | {rows / middle / 1e6:.2f} | {middle / ours:.2f}x "
                f"| {_s(figures['first_s'])} |"
            )
        again, metrics = (statistics.median(by_name[OURS][name]) for name in ("again_s", "metrics_s"))
        lines += [
            "",
            f"The same prediction asked for again: {1e3 * again:.0f} ms. Metrics and drift: {metrics:.2f} s.",
            "",
        ]
    return "\n".join(lines)


def _s(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}-{max(values):.2f}]"


def turn(name: str, args: argparse.Namespace) -> Figures:
    return CONTENDERS[name](args.data, args.runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="numpy,dask,ray")
    parser.add_argument("--sizes", default="2000000x50")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3, help="of each contender in a turn, after the first")
    turns.main("predict", parser, list(CONTENDERS), ["runs"], make, turn, lambda asked: [OURS, *asked], table)


if __name__ == "__main__":
    main()
