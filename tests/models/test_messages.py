"""What coordinators and nodes send each other comes through whole, and nothing else is believed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from zkd.errors import BadTraining
from zkd.models.messages import ask_in, ask_out, partial_in, partial_out
from zkd.models.model import Model
from zkd.models.partials import Ask, partial
from zkd.models.picks import Batch, Local, Sample
from zkd.models.plan import Plan, Privacy
from zkd.models.rows import rows_of

MODEL = Model("logistic", 2)
W = np.array([0.1, -1e300, 5e-324])
ASKS = [
    Ask(W),
    Ask(W, "hessian"),
    Ask(W, "loss"),
    Ask(W, batch=Batch(2**63, 1, 2, 3)),
    Ask(W, sample=Sample(2**62, 1, 0.1), clip=0.5),
    Ask(W, local=Local(1, 2, 3, 4, 0.1, 0.0)),
]


@pytest.mark.parametrize("ask", ASKS)
def test_an_ask_comes_through_json_as_it_was(ask: Ask) -> None:
    plain, arrays = ask_out(ask)
    back = ask_in(json.loads(json.dumps(plain)), arrays, MODEL)
    assert back.w.tobytes() == W.tobytes()
    assert ask_out(back)[0] == plain


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"wants": "all"}, "Invalid enum value 'all'"),
        ({"wants": "loss", "rows": 3}, "unknown field `rows`"),
        ({"wants": "loss", "batch": {"seed": 0, "epoch": 0, "index": 3, "of": 3}}, "no such batch"),
        ({"wants": "loss", "batch": {"seed": 0, "epoch": 0, "index": 0}}, "missing required field `of`"),
        ({"wants": "loss", "sample": {"seed": 0, "round": 0, "rate": 2.0}}, "no such sample"),
        ({"wants": "gradient", "clip": -1.0}, "clip above 0"),
        (
            {
                "wants": "loss",
                "batch": {"seed": 0, "epoch": 0, "index": 0, "of": 3},
                "sample": {"seed": 0, "round": 0, "rate": 0.5},
            },
            "one of batch, sample and local",
        ),
        ([], "Expected `object`"),
    ],
)
def test_asks_that_nobody_makes_are_refused(plain: Any, message: str) -> None:
    with pytest.raises(BadTraining, match=message):
        ask_in(plain, {"w": W}, MODEL)


def test_parameters_have_to_come_along_and_fit() -> None:
    with pytest.raises(BadTraining, match="without the parameters"):
        ask_in({"wants": "loss"}, {}, MODEL)
    with pytest.raises(BadTraining, match="expected 3 float64"):
        ask_in({"wants": "loss"}, {"w": W[:2]}, MODEL)


def test_a_plan_comes_through_json_as_it_was() -> None:
    net = Model("mlp", 4, 3, (5, 6))
    for plan in (
        Plan(MODEL, "newton", l2=(10.0, 1.0, 0.0), patience=3, jitter=1e-9),
        Plan(net, "adam", privacy=Privacy(1.0, 2.0, 1e-5, 3.0), seed=2**63),
        Plan(net, "sgd", privacy=Privacy(1.0, 2.0, 1e-5)),
    ):
        assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sums.tops": None}, "expected the arrays counts"),
        ({"counts": np.array([1.0, 2.0])}, "two counts as int64"),
        ({"counts": np.array([-1, 1])}, "none below 0"),
        ({"counts": np.array([5, 0])}, "count from 1"),
        ({"extra": np.zeros(1)}, "expected the arrays counts"),
        ({"sums.digits": np.full((3, 7), 0.25)}, "whole digits"),
    ],
)
def test_partials_that_nobody_makes_are_refused(change: dict[str, Any], message: str) -> None:
    rows = rows_of([np.ones((5, 2))], [0, 1, 0, 1, 1])
    arrays = {**partial_out(partial(MODEL, Ask(np.zeros(3)), rows, None, part=0)), **change}
    with pytest.raises(BadTraining, match=message):
        partial_in({name: array for name, array in arrays.items() if array is not None})
