"""The same numbers by plain numpy and scikit-learn in this one process, and what became of every id.

Nothing here is told by zkd what is right. Where the cluster did the very same arithmetic the bits are
compared, else a tolerance is named.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from tour.data import CLASSES
from tour.dropbox import Array, DropBox, Json, numbers
from tour.lbfgs import minimise
from tour.objective import log_probabilities, penalised, plain_softmax

if TYPE_CHECKING:
    from digits import Tour

CLOSE = 1e-12  # relative, for sums that were added in another order
WEIGHTS_CLOSE = 1e-6  # to scikit-learn's optimum, found in another way
ACCURACY_MIN = 0.95


@dataclass(frozen=True)
class Check:
    claim: str
    holds: bool
    detail: str


def all_checks(tour: Tour, box: DropBox, *, tolerance: float, rounds_max: int) -> Iterator[Check]:
    yield from ids(box)
    yield from kill(tour, box)
    rows = tour.digits.pixels.astype(np.float64)
    yield from moments(tour, rows)
    standard = standardised(tour, rows)
    yield from large_values(tour, standard)
    yield from components(tour, standard)
    yield from training(tour, standard, tolerance, rounds_max)
    yield from predictions(tour)


# --- What became of the tasks -----------------------------------------------------------------------------


def ids(box: DropBox) -> Iterator[Check]:
    dropped = Counter(box.dropped)
    there = Counter(box.zk.get_children(f"{box.root}/results"))
    yield Check(
        "every task has one result, and nothing else has",
        dropped == there and max(dropped.values()) == 1,
        f"{len(dropped)} dropped, {len(there)} results, {len(dropped - there)} missing",
    )
    left = box.zk.get_children(f"{box.root}/tasks") + box.zk.get_children(f"{box.root}/dead")
    yield Check("no task is left over or dead", not left, f"{len(left)} left")
    stats = {task_id: box.zk.exists_async(f"{box.root}/results/{task_id}") for task_id in dropped}
    changed = []
    for task_id, answer in stats.items():
        stat = answer.get(timeout=10.0)
        if stat is None or stat.version != 0 or stat.czxid != box.lives[task_id]:
            changed.append(task_id)
    yield Check("no result was written twice", not changed, f"{len(changed)} changed since they were read")


def run_again(box: DropBox) -> dict[str, Json]:
    """Tasks with an attempt before the one that ended them, with that attempt."""
    return {task_id: result["attempts"][-1] for task_id, result in box.results.items() if result.get("attempts")}


def began_at(result: Json) -> float:
    """When the attempt that gave this result began, by the clock of its node, which here is ours."""
    return datetime.fromisoformat(result["finished_at"]).timestamp() - float(result["run_s"])


def kill(tour: Tour, box: DropBox) -> Iterator[Check]:
    again = run_again(box)
    lost = {task_id for task_id, was in again.items() if was["cause"] == "node_loss" and was["node"] == tour.victim}
    pause_s = min((began_at(box.results[task_id]) for task_id in lost), default=tour.killed_at) - tour.killed_at
    where = [f"{task_id} on {box.results[task_id]['node']}" for task_id in sorted(lost)]
    yield Check(
        "what the killed node had in hand ran again elsewhere",
        bool(lost & set(tour.held)) and all(box.results[task_id]["node"] != tour.victim for task_id in lost),
        f"{', '.join(where) or 'nothing did'}; from {pause_s:.1f} s after the kill on",
    )
    alive = box.zk.get_children(f"{box.root}/nodes")
    yield Check(
        "the lost leader was replaced",
        bool(tour.victim) and tour.leader_after not in ("", tour.victim) and tour.victim not in alive,
        f"{tour.victim or 'nobody'} lost, {tour.leader_after} leads",
    )


# --- Numbers ----------------------------------------------------------------------------------------------


def off(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest number expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return float("inf")
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def equals(claim: str, found: Any, expected: Any, close: float = CLOSE) -> Check:
    difference = off(found, expected)
    return Check(claim, difference <= close, "bit for bit" if difference == 0.0 else f"off by {difference:.0e}")


def moments(tour: Tour, rows: Array) -> Iterator[Check]:
    covariance = numbers(tour.moments["m2"]) / (tour.moments["count"] - 1)
    yield equals("mean = numpy.mean", tour.mean, rows.mean(axis=0))
    yield equals("covariance = numpy.cov", covariance, np.cov(rows, rowvar=False))
    yield equals(
        "class means = numpy.mean of each class",
        class_means(tour),
        [rows[tour.digits.labels == label].mean(axis=0) for label in range(CLASSES)],
    )


def class_means(tour: Tour) -> Array:
    """Combined from the parts by their counts."""
    counts, sums = np.zeros(CLASSES), np.zeros((CLASSES, tour.digits.pixels.shape[1]))
    for part in tour.class_means:
        labels, here = numbers(part["labels"]), numbers(part["counts"])
        counts[labels] += here
        sums[labels] += numbers(part["means"]) * here[:, None]
    return sums / counts[:, None]


def standardised(tour: Tour, rows: Array) -> Array:
    deviation = np.where(tour.deviation == 0, 1.0, tour.deviation)
    return (rows - tour.mean) / deviation


def large_values(tour: Tour, standard: Array) -> Iterator[Check]:
    expected = [standard, *np.array_split(standard, len(tour.parts))]
    same = [digest(array) == ref["blob"] for array, ref in zip(expected, [tour.whole, *tour.parts], strict=True)]
    yield Check("files on the nodes = numpy's bytes (sha256)", all(same), f"{sum(same)} of {len(same)} digests")


def digest(array: Array) -> str:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return hashlib.sha256(file.getvalue()).hexdigest()


def components(tour: Tour, standard: Array) -> Iterator[Check]:
    from bootstrap import bootstrap_spectrum

    u, s, vt = (numbers(tour.svd[name]) for name in ("u", "s", "vt"))
    all_s = np.linalg.svd(standard, compute_uv=False)
    yield equals("singular values = numpy.linalg.svd", s, all_s[: len(s)])
    rest = float(np.linalg.norm(standard - (u * s) @ vt))
    yield equals("what the SVD leaves out = the other singular values", rest, np.sqrt(np.sum(all_s[len(s) :] ** 2)))
    expected = [bootstrap_spectrum(standard, len(found), seed) for seed, found in enumerate(tour.bootstraps)]
    yield equals("bootstraps = the same kernel in this process", tour.bootstraps, expected, close=0.0)


def training(tour: Tour, standard: Array, tolerance: float, rounds_max: int) -> Iterator[Check]:
    found, labels = tour.found, tour.digits.labels
    assert found is not None
    yield Check(
        "training converged, every round with every row once",
        found.converged and set(tour.counts) == {len(standard)},
        f"{len(found.rounds)} rounds of {len(standard)} rows, |gradient| {found.rounds[-1].gradient_norm:.1e}",
    )
    from zkd.kernels.descent import softmax_gradient

    pieces = list(zip(np.array_split(standard, len(tour.parts)), np.array_split(labels, len(tour.parts)), strict=True))

    def by_parts(weights: Array) -> tuple[float, Array]:
        given = [softmax_gradient(weights, *piece) for piece in pieces]
        return penalised(weights, [(part["loss"], part["gradient"]) for part in given])

    here = minimise(by_parts, np.zeros_like(found.weights), tolerance=tolerance, rounds_max=rounds_max)
    yield equals("weights = the same kernel in this process", found.weights, here.weights, close=0.0)
    loss, _ = penalised(found.weights, [plain_softmax(found.weights, standard, labels)])
    yield equals("loss = plain numpy", found.rounds[-1].loss, loss)
    optimum = scikit_learn(standard, labels)
    best, _ = penalised(optimum, [plain_softmax(optimum, standard, labels)])
    difference = float(np.max(np.abs(found.weights - optimum)))
    yield Check(
        "weights = scikit-learn's optimum (newton-cholesky)",
        difference <= WEIGHTS_CLOSE,
        f"max |dw| {difference:.1e}",
    )
    yield equals("loss = scikit-learn's", loss, best)


def scikit_learn(standard: Array, labels: Array) -> Array:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, tol=1e-12, max_iter=1000, solver="newton-cholesky").fit(standard, labels)
    # Only differences of intercepts matter; ours sum to zero.
    return np.vstack([model.coef_.T, model.intercept_ - model.intercept_.mean()])


def predictions(tour: Tour) -> Iterator[Check]:
    assert tour.found is not None
    weights, truth = tour.found.weights, tour.digits.held_out_labels
    rows = standardised(tour, tour.digits.held_out.astype(np.float64))
    expected = np.exp(log_probabilities(weights, rows))
    yield equals("probabilities = plain numpy", tour.probabilities, expected)
    accuracy = float((tour.labels == truth).mean())
    yield Check(
        f"labels = plain numpy, accuracy of at least {ACCURACY_MIN}",
        bool(np.array_equal(tour.labels, expected.argmax(axis=1))) and accuracy >= ACCURACY_MIN,
        f"{accuracy:.4f} on {len(truth)} rows held out",
    )
