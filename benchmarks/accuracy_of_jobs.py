"""The same as `benchmarks.accuracy`, of jobs on real nodes: how near to the optimum, and whether with the same bits.

    python -m benchmarks.accuracy_of_jobs [--nodes 1,2,3,8] [--only adult,digits]

Daemons of two slots each over a real Apache ZooKeeper; each set is put as a dataset of 16 parts, on two nodes where
there are two, and trained on by `client.train` with l2 = 1. The daemons of one number of nodes are gone before those of
the next come.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from benchmarks.accuracy import FITS, WITHIN, WITHIN_TOTAL
from benchmarks.cluster import NO_ANSWER, Node, one_server, until
from benchmarks.optima import Optimum, optimum, value
from benchmarks.real_data import SETS, CannotBeHad, RealSet
from zkd import codec
from zkd.client import Client
from zkd.errors import NoNode
from zkd.manifests import Ring

PARTS = 16
DEFAULT = "breast_cancer,iris,wine,digits,diabetes,adult,credit,Bikeshare,letter,flights"
JOB_S = 600.0


async def jobs_over(count: int, fits: Sequence[tuple[str, str, RealSet]], hosts: str, directory: Path) -> list[Any]:
    """(w, F, rounds, seconds) of each."""
    root = f"/accuracy-{count}"
    nodes = [
        Node(hosts, f"n{number}", directory / str(count), slots=2, ZKD_ZOOKEEPER__ROOT=root) for number in range(count)
    ]
    (directory / str(count)).mkdir()
    found = []
    try:
        for node in nodes:
            node.start()
        async with Client(hosts, root) as client:

            async def is_complete() -> bool:
                try:
                    ring = codec.decode((await client.session.get(client.paths.ring)).data, Ring)
                except (NoNode, *NO_ANSWER):
                    return False
                return len(ring.keepers) == count

            await until(is_complete, f"{count} nodes keep data")
            for name, kind, real in fits:
                table = {f"c{number}": column for number, column in enumerate(real.columns)} | {"y": real.target}
                dataset = await client.datasets.put(
                    f"{name}-{kind}".lower(), table, label="y", parts=PARTS, replicas=min(2, count)
                )
                began = time.perf_counter()
                job = await client.train(kind, dataset=dataset, l2=1.0, max_rounds=5000)
                trained = (await job.model(JOB_S)).trained
                seconds = time.perf_counter() - began
                found.append((trained.w, trained.summary.total, trained.summary.rounds, seconds))
    finally:
        for node in nodes:
            node.kill()
    return found


def centred(kind: str, best: Optimum, w: Any) -> Any:
    matrix = w.reshape(best.w.shape).copy()
    if kind == "softmax":
        matrix[-1] -= matrix[-1].mean()
    return matrix


async def compare(counts: Sequence[int], only: Sequence[str], directory: Path) -> bool:
    fits: list[tuple[str, str, RealSet]] = []
    for name, kind in FITS:
        if name in only:
            try:
                fits.append((name, kind, SETS[name]()))
            except CannotBeHad as problem:
                print(f"{name}: cannot be had: {problem}")
    with one_server(directory / "zookeeper") as server:
        told = [await jobs_over(count, fits, server.connect_string, directory) for count in counts]
    print(
        f"| set, model | training rows x features | rounds | s, {' / '.join(map(str, counts))} nodes | max abs dw | "
        "dF / F | same bits |\n|---|---|---|---|---|---|---|"
    )
    is_well = True
    for number, (name, kind, real) in enumerate(fits):
        x = real.matrix()
        best = optimum(kind, x, real.target)
        of_all = [each[number] for each in told]
        off = max(float(np.abs(centred(kind, best, w) - best.w).max()) for w, _, _, _ in of_all)
        totals = [
            value(kind, x, real.target, 1.0, centred(kind, best, of_all[0][0])),
            *(total for _, total, _, _ in of_all),
        ]
        off_total = max(abs(total - best.total) / best.total for total in totals)
        is_same = len({w.tobytes() for w, _, _, _ in of_all}) == 1
        missed = off > WITHIN or off_total > WITHIN_TOTAL or not is_same
        is_well = is_well and not missed
        rows, features = real.shape
        times = " / ".join(f"{seconds:.1f}" for _, _, _, seconds in of_all)
        print(
            f"| {name}, {kind} | {rows} x {features} | {of_all[0][2]} | {times} | {off:.0e} | {off_total:.0e} | "
            f"{'yes' if is_same else 'NO'} |{' **MISSED**' if missed else ''}",
            flush=True,
        )
    return is_well


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="1,2,3,8")
    parser.add_argument("--only", default=DEFAULT, help="sets, separated by commas")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        counts = [int(count) for count in options.nodes.split(",")]
        is_well = asyncio.run(compare(counts, options.only.split(","), Path(directory)))
    print("\nall within bounds" if is_well else "\nNOT all within bounds")
    raise SystemExit(not is_well)


if __name__ == "__main__":
    main()
