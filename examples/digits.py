"""Handwritten digits on three nodes, one of them killed on the way, and every number checked.

what    a ZooKeeper and three daemons on this machine; kazoo, which knows nothing of zkd, drops task znodes:
        moments by parts, a truncated SVD, bootstraps, 200 rounds of softmax regression, predictions by parts.
        In the middle of the training the node that leads is killed with -9, while it runs tasks.
time    about 10 s
run     python examples/digits.py                     everything embedded, nothing but Python is needed
        python examples/digits.py --zookeeper         a real Apache ZooKeeper (Debian: apt install zookeeper)
        python examples/digits.py --zookeeper HOST:PORT   one that runs already, below a root of its own
last    digits: all well, … tasks, accuracy 0.972, picture in out/digits.png
exit    0, or 1 if a single number, id or count is off
"""

from __future__ import annotations

import os

# Workers compute with one BLAS thread each. So does this process, or sums would be added in another order.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from kazoo.exceptions import KazooException
from kazoo.handlers.threading import KazooTimeoutError
from tour import checks
from tour.cluster import KERNELS, Cluster, ClusterError, add_zookeeper_option
from tour.data import CLASSES, Digits, load
from tour.dropbox import Array, DropBox, Json, TaskError, numbers, task
from tour.lbfgs import Found, Round, minimise
from tour.objective import penalised
from tour.picture import draw
from tour.program import verdict
from tour.teller import Teller

from zkd.zk.apache import ApacheFailed, ApacheMissing

sys.path.append(str(KERNELS))  # where the daemons find `bootstrap`, too

SLOTS = 2
SMALL_PARTS = 8  # pixels as bytes: 15 KB each, inside the task
LARGE_PARTS = 3  # standardised, as doubles: 246 KB each, too large for a znode
HOMES = 2  # nodes that hold each large value, so that it survives the loss of one
COMPONENTS = 8
BOOTSTRAPS = 48  # tasks, each of
DRAWS = 40  # resamples
BOOTSTRAP_PRIORITY = -10  # the rounds of the training go first
TOLERANCE = 1e-7  # of the gradient's norm
ROUNDS_MAX = 400
BOOTSTRAPS_AT_ROUND = 80
KILL_AFTER = 12  # bootstraps have ended, and while others run


@dataclass
class Tour:
    """What the stages find out, for those after them and for the checks."""

    digits: Digits
    nodes: list[str]
    moments: Json = field(default_factory=dict)
    class_means: list[Json] = field(default_factory=list)
    whole: Json = field(default_factory=dict)  # references to standardised rows: all of them,
    parts: list[Json] = field(default_factory=list)  # and by parts
    svd: Json = field(default_factory=dict)
    bootstraps: list[Array] = field(default_factory=list)
    found: Found | None = None
    counts: list[int] = field(default_factory=list)  # rows that each round added up
    labels: Array = field(default_factory=lambda: np.empty(0, np.int64))
    probabilities: Array = field(default_factory=lambda: np.empty((0, CLASSES)))
    victim: str = ""
    held: list[str] = field(default_factory=list)  # ids that the victim had in hand
    killed_at: float = 0.0
    killed_in_round: int = 0
    leader_after: str = ""

    @property
    def mean(self) -> Array:
        return numbers(self.moments["mean"])

    @property
    def deviation(self) -> Array:
        """Of each column, by count: the population's."""
        variance: Array = np.diagonal(numbers(self.moments["m2"])) / self.moments["count"]
        return np.sqrt(variance)


# --- The stages -------------------------------------------------------------------------------------------


def find_moments(tour: Tour, box: DropBox) -> str:
    """Mean, covariance and class means: each part by itself, then combined, by a task again."""
    parts = tour.digits.parts(SMALL_PARTS)
    found = box.run({f"moments-{i}": task("moments", pixels, cross=True) for i, (pixels, _) in enumerate(parts)})
    means = box.run({f"class-means-{i}": task("class_means", *part) for i, part in enumerate(parts)})
    # The values go on as they came: what one task gives, another takes.
    (combined,) = box.run({"moments": task("combine_moments", [result["value"] for result in found])})
    tour.moments = combined["value"]
    tour.class_means = [result["value"] for result in means]
    return f"mean, covariance and class means of {tour.moments['count']} rows from {SMALL_PARTS} parts"


def spread(tour: Tour, box: DropBox) -> str:
    """Standardise on the nodes. The results are too large for a znode, so they stay there as files.

    What comes back is a reference: digest, size, and the nodes that have the bytes. Every value is made on
    two nodes; as the digests are equal, one reference may name both.
    """
    tasks = {}
    values = [("whole", tour.digits.pixels), *((f"part-{i}", x) for i, (x, _) in enumerate(_large(tour)))]
    for i, (name, pixels) in enumerate(values):
        for home in (tour.nodes[(i + j) % len(tour.nodes)] for j in range(HOMES)):
            body = task("standardize", pixels, tour.mean, tour.deviation, node=home)
            tasks[f"standardize-{name}-on-{home}"] = body
    made = iter(box.run(tasks))
    references = []
    for name, _ in values:
        copies = [next(made)["ref"] for _ in range(HOMES)]
        if len({copy["blob"] for copy in copies}) != 1:
            raise TaskError(f"{name}: two nodes made different bytes of the same numbers")
        references.append(copies[0] | {"nodes": {node: url for copy in copies for node, url in copy["nodes"].items()}})
    tour.whole, *tour.parts = references
    size = sum(reference["size"] for reference in references)
    return f"{len(references)} arrays, {size / 1e6:.1f} MB, stay in files on {HOMES} nodes each"


def find_components(tour: Tour, box: DropBox) -> str:
    (result,) = box.run({"svd": task("svd", tour.whole, k=COMPONENTS)})
    tour.svd = result["value"]
    # Of standardised columns, each that is not constant has a variance of 1.
    share = (numbers(tour.svd["s"]) ** 2).sum() / (np.count_nonzero(tour.deviation) * len(tour.digits.pixels))
    return f"{COMPONENTS} singular vectors hold {share:.0%} of the variance"


def train(tour: Tour, box: DropBox, cluster: Cluster, teller: Teller) -> str:
    """Softmax regression to the optimum. On the way somebody else drops bootstraps, and then a node is killed."""
    labels = [labels for _, labels in _large(tour)]
    bootstraps = {
        f"bootstrap-{seed:02}": task("bootstrap_spectrum", tour.whole, DRAWS, seed, priority=BOOTSTRAP_PRIORITY)
        for seed in range(BOOTSTRAPS)
    }

    def evaluate(weights: Array) -> tuple[float, Array]:
        number = len(tour.counts)
        if number == BOOTSTRAPS_AT_ROUND:
            box.drop(bootstraps)
        tasks = {
            f"round-{number:03}-part-{i}": task("softmax_gradient", weights, part, labels[i])
            for i, part in enumerate(tour.parts)
        }
        ids = box.drop(tasks)
        if number > BOOTSTRAPS_AT_ROUND and not tour.victim:
            _kill_leader(tour, box, cluster, teller, number)
        values = [result["value"] for result in box.wait(ids).values()]
        tour.counts.append(sum(value["count"] for value in values))
        loss, gradient = penalised(weights, [(value["loss"], numbers(value["gradient"])) for value in values])
        teller.round(number, Round(loss, float(np.linalg.norm(gradient))))
        return loss, gradient

    start = np.zeros((tour.digits.pixels.shape[1] + 1, CLASSES))
    tour.found = minimise(evaluate, start, tolerance=TOLERANCE, rounds_max=ROUNDS_MAX)
    tour.bootstraps = [numbers(result["value"]) for result in box.wait(bootstraps, 60.0).values()]
    tour.leader_after = box.read("control/leader")["node"]
    last = tour.found.rounds[-1]
    return (
        f"{len(tour.found.rounds)} rounds to loss {last.loss:.9f}, |gradient| {last.gradient_norm:.0e}; "
        f"{BOOTSTRAPS * DRAWS} resamples beside it"
    )


def _kill_leader(tour: Tour, box: DropBox, cluster: Cluster, teller: Teller, number: int) -> None:
    """kill -9 the node that leads, if the work is well under way and it has a bootstrap in hand just now."""
    unfinished = set(box.zk.get_children(f"{box.root}/tasks"))
    if sum(task_id.startswith("bootstrap") for task_id in unfinished) > BOOTSTRAPS - KILL_AFTER:
        return
    victim = box.read("control/leader")["node"]
    held = [line[0] for line in box.read(f"assign/{victim}")["tasks"] if line[0] in unfinished]
    if sum(task_id.startswith("bootstrap") for task_id in held) < SLOTS:
        return  # one alone might end before it is lost
    pid = cluster.kill(victim)
    tour.victim, tour.held, tour.killed_at, tour.killed_in_round = victim, held, time.time(), number
    teller.say(f"kill -9 {pid}: {victim}, which leads, in round {number}, with {', '.join(held)} in hand")


def predict(tour: Tour, box: DropBox) -> str:
    assert tour.found is not None
    parts = tour.digits.parts(SMALL_PARTS, of_held_out=True)
    rows = box.run(
        {
            f"standardize-test-{i}": task("standardize", pixels, tour.mean, tour.deviation)
            for i, (pixels, _) in enumerate(parts)
        }
    )
    found = box.run(
        {f"predict-{i}": task("predict_softmax", tour.found.weights, result["value"]) for i, result in enumerate(rows)}
    )
    tour.labels = np.concatenate([numbers(result["value"]["labels"]) for result in found])
    tour.probabilities = np.concatenate([numbers(result["value"]["probabilities"]) for result in found])
    accuracy = float((tour.labels == tour.digits.held_out_labels).mean())
    return f"accuracy {accuracy:.3f} on {len(tour.labels)} rows never seen"


def _large(tour: Tour) -> list[tuple[Array, Array]]:
    return tour.digits.parts(LARGE_PARTS)


# --- The tour ---------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, teller: Teller, stopped_by: list[int]) -> bool:
    """All stages and checks; whether everything is as it should be."""
    began = time.monotonic()
    tour = Tour(load(), [f"node-{number}" for number in range(1, options.nodes + 1)])
    is_guest = ":" in options.zookeeper
    root = f"/zkd-digits-{uuid.uuid4().hex[:8]}" if is_guest else "/zkd"
    teller.begin("cluster")
    with (
        Cluster(tour.nodes, options.out / "digits", zookeeper=options.zookeeper, root=root, slots=SLOTS) as cluster,
        DropBox(cluster.hosts, root, is_stopped=lambda: bool(stopped_by)) as box,
    ):
        stages: dict[str, Callable[[Tour, DropBox], str]] = {
            "moments": find_moments,
            "spread": spread,
            "components": find_components,
            "training": partial(train, cluster=cluster, teller=teller),
            "prediction": predict,
        }
        try:
            wait_for_nodes(tour, box, cluster)
            teller.end(f"{options.zookeeper} ZooKeeper on {cluster.hosts}, {', '.join(tour.nodes)} with {SLOTS} slots")
            for name, stage in stages.items():
                teller.begin(name)
                teller.end(stage(tour, box))
            teller.begin("checks")
            found = list(checks.all_checks(tour, box, tolerance=TOLERANCE, rounds_max=ROUNDS_MAX))
            teller.end(f"{len(found)}, by plain numpy and scikit-learn in this process")
        finally:
            if is_guest:
                cluster.stop_daemons()
                if box.zk.exists(root):
                    box.zk.delete(root, recursive=True)
    teller.begin("picture")
    picture = options.out / "digits.png"
    draw(tour, box, picture)
    teller.end(str(picture))
    show_work(teller, tour, box)
    accuracy = float((tour.labels == tour.digits.held_out_labels).mean())
    took_s = time.monotonic() - began
    what = f"{len(box.dropped)} tasks, accuracy {accuracy:.3f}, picture in {picture} ({took_s:.0f} s)"
    return verdict(teller, what, found)


def wait_for_nodes(tour: Tour, box: DropBox, cluster: Cluster) -> None:
    nodes = f"{box.root}/nodes"
    cluster.wait_until(lambda: bool(box.zk.exists(nodes)), 30.0, "the first daemon")
    cluster.wait_until(lambda: len(box.zk.get_children(nodes)) == len(tour.nodes), 30.0, "all daemons")


def show_work(teller: Teller, tour: Tour, box: DropBox) -> None:
    again = checks.run_again(box)
    by_kernel: dict[str, list[str]] = {}
    for task_id, result in box.results.items():
        by_kernel.setdefault(result["kernel"], []).append(task_id)
    rows: list[list[object]] = []
    for kernel, ids in [*by_kernel.items(), ("all", list(box.results))]:
        took = sorted(box.results[task_id]["run_s"] for task_id in ids)
        where = Counter(box.results[task_id]["node"] for task_id in ids)
        rows.append(
            [kernel, len(ids), sum(task_id in again for task_id in ids), f"{took[len(took) // 2] * 1e3:.1f} ms"]
        )
        rows[-1] += [where[node] for node in tour.nodes]
    heads = [f"{node} (killed)" if node == tour.victim else node for node in tour.nodes]
    teller.table("Who computed what", ["kernel", "tasks", "run again", "median run", *heads], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_zookeeper_option(parser)
    parser.add_argument("--nodes", type=int, default=3, help="daemons, at least 2 [default: 3]")
    parser.add_argument("--out", type=Path, default=Path("out"), help="for the picture and the logs [default: out]")
    options = parser.parse_args()
    if options.nodes < 2:
        parser.error("--nodes: one is going to be killed, so at least 2")
    teller = Teller("digits")
    stopped_by: list[int] = []

    def stop(number: int, _: object) -> None:
        stopped_by.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        is_well = run(options, teller, stopped_by)
    except KeyboardInterrupt:
        is_well = False
    except (TaskError, ClusterError, ApacheFailed, ApacheMissing, KazooException, KazooTimeoutError) as error:
        is_well = False
        if not stopped_by:
            teller.wrong(f"{type(error).__name__}: {error}")
    finally:
        teller.stop()
    if stopped_by:
        return 128 + stopped_by[0]
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
