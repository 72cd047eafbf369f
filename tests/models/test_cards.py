"""What the registry says of a model is true of its file, or is found out; and what differs in two models."""

from __future__ import annotations

import json
import math
import random
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace as with_fields
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from zkd.errors import BadModel, BadRecord
from zkd.models.cards import card, difference, refuse_another, refuse_unsound
from zkd.models.from_sklearn import trained_of
from zkd.models.rows import Scaler
from zkd.models.trained import Trained
from zkd.registry import Feature, Lineage, ModelFile, ModelVersion

IRIS = load_iris(return_X_y=True)
DIABETES = load_diabetes(return_X_y=True)
FILE = ModelFile("a" * 64, 100)
SOFTMAX = trained_of(LogisticRegression(max_iter=500).fit(*IRIS), features=["a", "b", "c", "d"])
NET = trained_of(
    MLPClassifier((5, 3), max_iter=600, tol=1e-2, random_state=1).fit(*IRIS), features={"ab": 2, "c": 1, "d": 0}
)
RIDGE = trained_of(make_pipeline(StandardScaler(), Ridge()).fit(*DIABETES))


def test_a_card_says_what_the_file_has() -> None:
    said = card(NET, FILE, metrics={"accuracy": 0.5}, lineage=Lineage(source="here"), note="n")
    assert (said.kind, said.outputs, said.classes) == ("mlp", 3, [0, 1, 2])
    assert said.features == [Feature("ab", 2), Feature("c", 1), Feature("d", 0)]
    assert (said.metrics, said.lineage, said.note) == ({"accuracy": 0.5}, Lineage(source="here"), "n")
    refuse_another(said, NET)
    trained = replace(RIDGE, dataset="d@3", rows=442)
    assert card(trained, FILE).lineage == Lineage(dataset="d@3")
    assert card(trained, FILE).metrics == {"rows": 442.0, "rounds": 0.0}
    assert card(RIDGE, FILE).classes is None


@pytest.mark.parametrize(
    ("field", "lie"),
    [
        ("kind", "mlp"),
        ("outputs", 4),
        ("classes", None),
        ("classes", [2, 1, 0]),
        ("classes", [False, True, 2]),
        ("features", [Feature(name) for name in "abdc"]),
        ("features", [Feature("a", 4)]),
    ],
)
def test_a_card_of_another_model_is_refused(field: str, lie: Any) -> None:
    said: ModelVersion = with_fields(card(SOFTMAX, FILE), **{field: lie})
    with pytest.raises(BadRecord, match=rf"\$\.{field}: the file aaaaaaaaaaaa has"):
        refuse_another(said, SOFTMAX)


def test_a_model_whose_answers_are_no_numbers_is_refused() -> None:
    for bad in (math.nan, math.inf):
        w = SOFTMAX.w.copy()
        w[3] = bad
        with pytest.raises(BadModel, match="parameters are not all finite"):
            refuse_unsound(replace(SOFTMAX, w=w))
    assert RIDGE.scaler is not None
    with pytest.raises(BadModel, match="scale is 0"):
        refuse_unsound(replace(RIDGE, scaler=Scaler(RIDGE.scaler.mean, RIDGE.scaler.scale * 0)))
    with pytest.raises(BadModel, match="or no number"):
        refuse_unsound(replace(RIDGE, scaler=Scaler(RIDGE.scaler.mean, RIDGE.scaler.scale * math.nan)))
    refuse_unsound(RIDGE)
    refuse_unsound(replace(RIDGE, scaler=Scaler(RIDGE.scaler.mean, np.full(10, np.inf))))  # all features are constant


def test_what_differs_is_told_in_units_of_the_columns() -> None:
    other = trained_of(Ridge(5.0).fit(*DIABETES))
    found = difference(card(RIDGE, FILE), RIDGE, card(other, FILE, metrics={"r2": 0.4}), other)
    assert (found.fields, found.metrics, found.added, found.removed) == ({}, {"r2": (None, 0.4)}, [], [])
    assert found.largest is not None
    sizes = [change.size for change in found.coefficients]
    assert sizes == sorted(sizes, reverse=True)
    changed = {change.name: change for change in found.coefficients}
    after = dict(zip(other.names, other.w, strict=False))
    before = {line.name: line.raw for line in RIDGE.table()}
    assert all(changed[name].after == after[name] for name in other.names)
    assert all(changed[name].before == before[name] for name in other.names)
    far = difference(card(SOFTMAX, FILE), SOFTMAX, card(NET, FILE), NET)
    assert far.fields["kind"] == ("softmax", "mlp")
    assert far.fields["hidden"] == ((), (5, 3))
    assert (far.added, far.removed, far.largest) == (["ab[0]", "ab[1]", "c[0]"], ["a", "b", "c"], None)
    assert difference(card(NET, FILE), NET, card(NET, FILE), NET).is_empty


VALUES: list[Any] = [
    None,
    -1,
    0,
    2**31,
    2**63,
    2**70,
    1e308,
    -0.5,
    "",
    "x" * 100,
    [],
    {},
    [[]],
    True,
    math.inf,
    [1] * 99,
]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The file, cut, with other bytes, or with another value at some place of its header."""
    (length,) = struct.unpack_from("<Q", data)
    how = rng.randrange(4)
    if how == 0:
        return data[: rng.randrange(len(data))]
    if how == 1:
        other = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            other[rng.randrange(8 + length)] = rng.randrange(256)
        return bytes(other)
    header = json.loads(data[8 : 8 + length])
    texts = json.loads(header["__metadata__"]["zkd"])
    at: Any = texts if how == 2 else header
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = rng.choice(keys)
        if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.2:
            break
        at = at[key]
    at[key] = rng.choice(VALUES)
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["zkd"] = json.dumps(texts)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


@pytest.mark.parametrize("seed", range(4))
def test_a_file_that_was_tampered_with_is_refused_or_a_model(seed: int) -> None:
    rng = random.Random(seed)
    files = [model.write() for model in (SOFTMAX, NET, RIDGE)]
    refused = 0
    for _ in range(150):
        try:
            model = Trained.read(mutated(rng.choice(files), rng))
        except BadRecord:
            refused += 1
            continue
        with np.errstate(all="ignore"):
            model.predict(np.ones((2, model.model.features)))
        model.table()
        card(model, FILE)
    assert refused > 75
