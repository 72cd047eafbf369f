"""A model that is trained, registered, put to a whole dataset and served while a node is killed; a bad one taken back.

what    softmax regression learns the digits on three nodes and becomes version 1 of a registered model. Its predictions
        of the dataset become a dataset, each part computed where it lies. Then requests come in, eight at a time, while
        a node is killed with -9: no answer may be wrong, lost or late. A second version is nonsense; it gets a third of
        the requests and is taken back by the nodes for the drift of its predictions. At last the model and one from
        scikit-learn answer together. Every answer is compared, bit by bit, with what the model says in this process.
time    about 20 s
run     python examples/inference.py                     everything embedded, nothing but Python is needed
        python examples/inference.py --zookeeper         a real Apache ZooKeeper (Debian: apt install zookeeper)
last    inference: all well, … answers to … rows, … checks
exit    0, or 1 if a single answer is off
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the nodes, which compute beside it

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tour.checks import Check
from tour.cluster import Cluster
from tour.data import Array
from tour.program import main, verdict, visited
from tour.teller import Teller

import zkd
from zkd.models import alone
from zkd.models.trained import Trained

NODES = ["node-1", "node-2", "node-3"]
PARTS, COPIES = 8, 2
AT_ONCE = 8  # requests
ROWS_MAX = 20  # of one
DEADLINE_S = 10.0  # of each; opening a model takes a busy machine a second or two
CALM, STORM = 300, 600  # answers before a node is killed, and after
LIMIT = 0.5  # of the drift of predictions, as a population stability index
WAIT_S = 60.0


@dataclass
class Tour:
    """What the stages find out, for those after them and for the checks."""

    cluster: Cluster
    client: zkd.Client
    teller: Teller
    table: dict[str, Array]
    versions: dict[int, Trained] = field(default_factory=dict)
    answers: int = 0
    rows: int = 0
    checks: list[Check] = field(default_factory=list)

    def check(self, claim: str, holds: bool, detail: str) -> None:
        self.checks.append(Check(claim, holds, detail))


# --- The stages -------------------------------------------------------------------------------------------


async def train(tour: Tour) -> str:
    """Softmax regression, whose model becomes version 1 and is served as digits@live."""
    client = tour.client
    await client.datasets.put("digits", tour.table, label="digit", parts=PARTS, replicas=COPIES)
    job = await client.train("softmax", "digits", validation=0.2)
    entry = await client.models.register(job, "digits")
    await client.models.alias("digits@live", why="the first")
    trained = tour.versions[entry.number] = await client.models.load("digits@live")
    same = await client.models.pull("digits@live") == await job.model_file()
    tour.check("what is registered is what was trained", same, f"{entry}, {entry.version.file.size:,} bytes")
    return f"{entry} of {trained.rows:,} rows, held-out loss {trained.summary.held_loss:.4f}"


async def batch(tour: Tour) -> str:
    """The whole dataset, each part on a node that holds it."""
    began = time.monotonic()
    out = await tour.client.predict("digits@live", "digits", out="digits-told")
    took_s = time.monotonic() - began
    told = await out.read()
    expected = tour.versions[1].predictions(tour.table)
    assert expected.classes is not None
    assert expected.probabilities is not None
    off = float(np.abs(told["probabilities"] - expected.probabilities).max())
    right = np.array_equal(told["prediction"], np.array(tour.versions[1].classes)[expected.classes])
    tour.check("the dataset has the prediction of every row, in order", right and off < 1e-12, f"max |dp| {off:.0e}")
    report = await tour.client.evaluate("digits@live", "digits")
    mean = float((told["prediction"] == tour.table["digit"]).mean())
    tour.check("accuracy by parts is that of all rows", abs(report["accuracy"] - mean) < 1e-12, f"{mean:.2%}")
    return f"{out.rows:,} rows in {out.parts} parts in {took_s:.1f} s, {mean:.1%} are told right"


async def serve(tour: Tour) -> str:
    """Requests, and the node that answers most of them killed in the middle."""
    async with tour.client.predictor("digits@live", deadline_s=DEADLINE_S) as predictor:
        load = Load(tour, predictor)
        async with load.going_on():
            await load.reach(lambda: len(load.by) == len(NODES), "all nodes answer")  # each has opened the model
            load.took_s.clear()
            await load.more(CALM)
            before, load.took_s = load.took_s, []
            victim = str(load.by.most_common(1)[0][0])
            tour.teller.say(f"kill -9 {tour.cluster.kill(victim)}: {victim}, with {AT_ONCE} requests on their way")
            await load.more(STORM)
        counts = f"{load.by.total()} answers"
        tour.check("no answer was wrong, whoever gave it", not load.wrong, f"{load.wrong} of {counts}, bit by bit")
        tour.check("no answer was lost or late", not load.faults, "; ".join(load.faults[:2]) or f"0 of {counts}")
    calm, storm = ([1e3 * float(np.quantile(took, q)) for q in (0.5, 0.99)] for took in (before, load.took_s))
    return (
        f"{counts} ({', '.join(f'{name} {count}' for name, count in sorted(load.by.items()))}); p50 and p99 "
        f"{calm[0]:.1f} and {calm[1]:.1f} ms, after the kill {storm[0]:.1f} and {storm[1]:.1f} ms"
    )


async def canary(tour: Tour) -> str:
    """A version that takes every digit for an eight gets a third of the requests, not for long."""
    models = tour.client.models
    bad = replace(tour.versions[1], w=tour.versions[1].w.copy())
    bad.model.layers(bad.w)[-1][-1, 8] += 100.0  # a view: the intercept of the eights
    entry = await models.push("digits", bad, note="an intercept that is off")
    tour.versions[entry.number] = bad
    async with tour.client.predictor("digits@live", deadline_s=DEADLINE_S) as predictor:
        load = Load(tour, predictor)
        async with load.going_on():
            await load.more(20)
            await models.canary("digits@live", entry.number, percent=33.0, drift=LIMIT, why="try it")
            began = time.monotonic()
            async with asyncio.timeout(WAIT_S):
                while (alias := (await models.describe("digits")).aliases["live"]).canary is not None:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            took_s = time.monotonic() - began
            await load.reach_only(1)
        tour.check("some met the canary, and were told so", load.versions[entry.number] > 0, f"{load.versions}")
        tour.check("every answer is that of the version it names", not load.wrong, f"{load.wrong} wrong")
        tour.check("no answer was lost", not load.faults, "; ".join(load.faults[:2]) or f"of {load.by.total()}")
    why = alias.history[-1].why
    tour.check("nodes took the canary back for its drift", "drift" in why and alias.version == 1, why)
    return f"{entry} was taken back after {took_s:.1f} s: {why}"


async def ensemble(tour: Tour) -> str:
    """The model and one of scikit-learn: the mean of their probabilities."""
    pixels, digits = tour.table["pixels"], tour.table["digit"]
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(pixels[::2], digits[::2])
    await tour.client.models.push("digits-sklearn", fitted, features={"pixels": 64}, target="digit")
    members = ["digits@1", "digits-sklearn@1"]
    other = await tour.client.models.load(members[1])
    rows = {"pixels": pixels[1::20]}
    async with tour.client.predictor(members, combine="mean", quorum=2, deadline_s=DEADLINE_S) as predictor:
        answer = await predictor.ask(rows)
    expected = (alone_probabilities(tour.versions[1], rows) + alone_probabilities(other, rows)) / 2
    off = np.inf if answer.probabilities is None else float(np.abs(answer.probabilities - expected).max())
    tour.answers += 1
    tour.rows += answer.rows
    tour.check("an ensemble is the mean of its members", off < 1e-12, f"max |dp| {off:.0e} over {answer.rows} rows")
    return f"{' and '.join(members)} answered together"


STAGES: dict[str, Callable[[Tour], Awaitable[str]]] = {
    "train": train,
    "batch": batch,
    "serve": serve,
    "canary": canary,
    "ensemble": ensemble,
}


# --- Load -------------------------------------------------------------------------------------------------


class Load:
    """Requests one after another, some loops at a time, each answer compared."""

    def __init__(self, tour: Tour, predictor: zkd.client.predictor.Predictor) -> None:
        self.by: Counter[str | None] = Counter()
        self.versions: Counter[int | None] = Counter()
        self.took_s: list[float] = []
        self.wrong = 0
        self.faults: list[str] = []
        self._tour = tour
        self._predictor = predictor
        self._expected: dict[int, Array] = {}
        self._is_over = False
        self._changed = asyncio.Condition()
        self._last: list[int | None] = []

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            loops = [tasks.create_task(self._ask(number)) for number in range(AT_ONCE)]
            try:
                yield
            except BaseException:
                for loop in loops:
                    loop.cancel()
                raise
            self._is_over = True

    async def _ask(self, number: int) -> None:
        dice = np.random.default_rng(number)
        pixels = self._tour.table["pixels"]
        while not self._is_over:
            some = dice.integers(0, len(pixels), dice.integers(1, ROWS_MAX + 1))
            try:
                answer = await self._predictor.ask({"pixels": pixels[some]})
            except zkd.ZkdError as error:
                self.faults.append(str(error))
                continue
            self.wrong += not self._is_right(answer, some)
            self.by[answer.node] += 1
            self.versions[answer.version] += 1
            self.took_s.append(answer.seconds)
            self._last = [*self._last, answer.version][-AT_ONCE * 4 :]
            self._tour.answers += 1
            self._tour.rows += len(some)
            async with self._changed:
                self._changed.notify_all()

    def _is_right(self, answer: zkd.client.prediction_wire.Answer, some: Array) -> bool:
        version = answer.version or 0
        if version not in self._expected:
            self._expected[version] = alone_probabilities(self._tour.versions[version], self._tour.table)
        expected = self._expected[version][some]
        labels = np.array(self._tour.versions[version].classes)[expected.argmax(axis=1)]
        is_named = answer.is_canary == (version != 1)
        return is_named and np.array_equal(answer.prediction, labels) and np.array_equal(answer.probabilities, expected)

    async def reach(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(WAIT_S), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            raise TimeoutError(f"not within {WAIT_S:g} s: {what}") from None

    async def more(self, answers: int) -> None:
        goal = self.by.total() + answers
        await self.reach(lambda: self.by.total() >= goal, f"{answers} more answers")

    async def reach_only(self, version: int) -> None:
        await self.reach(lambda: set(self._last) == {version}, f"version {version} answers alone")


def alone_probabilities(model: Trained, rows: dict[str, Array]) -> Array:
    """What a served model gives: each row by itself, so that its bits do not depend on others."""
    columns = [np.asarray(rows[name], np.float64).reshape(len(rows[name]), -1) for name, _ in model.features]
    said = alone.predictions(model.model, model.w, np.hstack(columns), model.scaler)
    assert said.probabilities is not None
    return said.probabilities


# --- The tour ---------------------------------------------------------------------------------------------


async def run(options: argparse.Namespace, teller: Teller) -> bool:
    """All stages and checks; whether everything is as it should be."""
    pixels, labels = load_digits(return_X_y=True)
    table = {"pixels": pixels.astype(np.uint8), "digit": labels}
    async with visited("inference", NODES, options, teller, slots=1, settings={}) as (cluster, client):
        tour = Tour(cluster, client, teller, table)
        for name, stage in STAGES.items():
            teller.begin(name)
            teller.end(await stage(tour))
    return verdict(teller, f"{tour.answers:,} answers to {tour.rows:,} rows, {len(tour.checks)} checks", tour.checks)


if __name__ == "__main__":
    sys.exit(main("inference", __doc__, run))
