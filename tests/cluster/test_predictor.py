"""Predictions under load while nodes are killed and frozen: none is wrong, none is lost, none is late."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from typing import Any

import numpy as np

from tests.cluster.conftest import Grid
from tests.node.submitter import until
from tests.node.test_predict import MODELS, TABLE
from zkd import codec
from zkd.client import Client
from zkd.client.predictor import Predictor
from zkd.manifests import Ring
from zkd.models import alone
from zkd.models.trained import Trained

DEADLINE_S = 20.0  # ten times what it takes a node to be missed; the machine may be busy
NAMES = ("a", "b", "c")


def expected(model: Trained) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Labels and probabilities of all rows, by the same arithmetic in this process."""
    columns = [np.asarray(TABLE[name], np.float64).reshape(len(TABLE["id"]), -1) for name, _ in model.features]
    said = alone.predictions(model.model, model.w, np.hstack(columns), model.scaler)
    assert said.classes is not None
    assert said.probabilities is not None
    return np.array(model.classes)[said.classes], said.probabilities


async def test_nodes_killed_and_frozen_under_load_cost_no_answer_and_no_bit(grid: Grid) -> None:
    model = MODELS["mlp"]
    labels, probabilities = expected(model)
    np.testing.assert_array_equal(labels, model.predict(TABLE))
    async with Client(grid.hosts, grid.root) as client:
        await grid.start(*NAMES)

        async def are_in_the_ring() -> bool:
            if await grid.user.session.exists(grid.user.paths.ring) is None:
                return False
            ring = codec.decode((await grid.user.session.get(grid.user.paths.ring)).data, Ring)
            return len(ring.keepers) == len(NAMES)

        await until(are_in_the_ring, 30.0, "all nodes keep data")
        await client.models.push("kinds", model)
        await client.models.alias("kinds@live")
        async with client.predictor("kinds@live", deadline_s=DEADLINE_S) as predictor:
            load = _Load(predictor, labels, probabilities)
            async with asyncio.TaskGroup() as tasks:
                for number in range(8):
                    tasks.create_task(load.go_on(number))
                await load.reach(lambda: all(load.by[name] >= 20 for name in NAMES), "all nodes answer")
                grid.nodes["a"].kill()
                await load.more(200)
                grid.nodes["b"].signal(signal.SIGSTOP)
                await load.more(200)
                grid.nodes["b"].signal(signal.SIGCONT)
                grid.nodes["a"].start()
                before = load.by.copy()
                await load.reach(lambda: all(load.by[name] >= before[name] + 20 for name in NAMES), "all answer again")
                load.is_over = True
            assert load.slowest_s < DEADLINE_S
            assert load.asked_twice, "nobody waited for who was killed, or frozen"


class _Load:
    """Requests one after another, each answer compared with what it has to be."""

    def __init__(self, predictor: Predictor, labels: np.ndarray[Any, Any], probabilities: np.ndarray[Any, Any]) -> None:
        self.by: Counter[str | None] = Counter()
        self.is_over = False
        self.slowest_s = 0.0
        self.asked_twice = 0
        self._predictor = predictor
        self._labels = labels
        self._probabilities = probabilities
        self._changed = asyncio.Condition()

    async def go_on(self, number: int) -> None:
        dice = np.random.default_rng(number)
        while not self.is_over:
            some = dice.integers(0, len(self._labels), dice.integers(1, 30))
            answer = await self._predictor.ask({name: TABLE[name][some] for name in ("x", "age", "rows")})
            np.testing.assert_array_equal(answer.prediction, self._labels[some])
            np.testing.assert_array_equal(answer.probabilities, self._probabilities[some])
            self.by[answer.node] += 1
            self.slowest_s = max(self.slowest_s, answer.seconds)
            self.asked_twice += len(answer.asked) > 1
            async with self._changed:
                self._changed.notify_all()

    async def reach(self, condition: Any, what: str) -> None:
        async with asyncio.timeout(60.0), self._changed:
            await self._changed.wait_for(condition)

    async def more(self, answers: int) -> None:
        goal = self.by.total() + answers
        await self.reach(lambda: self.by.total() >= goal, f"{answers} more")
