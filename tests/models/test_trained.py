"""The model's file: what was written is read and predicts as the formulas say, and hostile bytes are refused."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from tests.models.courses import done, numbers, real, table
from tests.models.data import loaded
from zkd.arrays.tensors import pack, unpack
from zkd.errors import BadRecord, BadTraining
from zkd.models.trained import Trained

ARRAYS = ("layers.0", "mean", "rounds", "stages", "stages.w", "scaler.mean", "coefficients.0.raw", "importance")
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("diabetes", {}),
    "logistic": ("breast_cancer", {"validation": {"share": 0.2}, "importance": True}),
    "softmax": ("iris", {"standardise": False, "l2": [1.0, 0.1]}),
    "poisson": ("diabetes", {"intercept": False}),
    "svm": ("breast_cancer", {"l1": 1.0, "optimizer": "nesterov", "max_rounds": 5}),
    "mlp": ("wine", {"hidden": [5, 4], "epochs": 1}),
}


@cache
def trained(model: str) -> Trained:
    name, terms = FILES[model]
    return done(real(name), model=model, **terms).trained()


def columns(x: Any) -> dict[str, Any]:
    return {"x0": x[:, 0], "x1": x[:, 1].astype(np.float32), "x2": x[:, 2], "rest": x[:, 3:]}


@pytest.mark.parametrize("model", FILES)
def test_what_was_written_is_read_and_says_the_same(model: str) -> None:
    own = trained(model)
    raw = own.write()
    again = Trained.read(raw)
    assert again.write() == raw
    x = loaded(FILES[model][0])[2]
    assert np.array_equal(again.predict(x), own.predict(x))
    assert again.names == own.names == ("x0", "x1", "x2", *(f"rest[{place}]" for place in range(x.shape[1] - 3)))
    assert (again.summary, again.rounds, again.table()) == (own.summary, own.rounds, own.table())
    assert repr(again.stages) == repr(own.stages)
    assert repr(again.importance) == repr(own.importance)


def test_anybody_can_read_the_parameters_with_safetensors() -> None:
    own = trained("mlp")
    layers = load(own.write())
    assert [layers[f"layers.{place}"].shape for place in range(3)] == [(14, 5), (6, 4), (5, 3)]
    assert np.concatenate([layers[f"layers.{place}"].ravel() for place in range(3)]).tobytes() == own.w.tobytes()


@pytest.mark.parametrize("model", FILES)
def test_rows_are_given_as_columns_by_name_or_as_one_matrix(model: str) -> None:
    own = trained(model)
    x = loaded(FILES[model][0])[2].astype(np.float32).astype(np.float64)
    assert np.array_equal(own.scores(x), own.scores(columns(x)))
    with pytest.raises(BadTraining, match="expected the columns x1, rest, too"):
        own.predict({"x0": x[:, 0], "x2": x[:, 2]})
    with pytest.raises(BadTraining, match="expected rest of shape"):
        own.predict(columns(x) | {"rest": x[:, 4:]})
    with pytest.raises(BadTraining, match="or rows x"):
        own.predict(x[:, 1:])


def test_labels_are_those_of_the_data_and_probabilities_those_of_the_formula() -> None:
    _, _, test_x, test_y = loaded("breast_cancer")
    own = done(real("breast_cancer", labels=["malignant", "benign"]), model="logistic").trained()
    assert np.mean(own.predict(test_x) == np.array(["malignant", "benign"])[test_y]) > 0.95
    raw = np.array(
        [line.raw for line in sorted(own.table(), key=lambda line: [*own.names, "(intercept)"].index(line.name))]
    )
    z = test_x @ raw[:-1] + raw[-1]
    np.testing.assert_allclose(own.probabilities(test_x)[:, 1], 1 / (1 + np.exp(-z)), rtol=1e-7)
    assert {line.of for line in own.table()} == {"malignant"}  # the second in order
    with pytest.raises(BadTraining, match="gives none"):
        trained("svm").probabilities(test_x)


@pytest.mark.parametrize("model", FILES)
def test_attributions_add_up_to_the_score_less_that_of_the_mean_row(model: str) -> None:
    own = trained(model)
    x, _, test_x, _ = loaded(FILES[model][0])
    told, base = own.attributions(test_x, output=own.model.outputs - 1)
    scores = own.scores(test_x)[:, -1]
    np.testing.assert_allclose(
        told.sum(axis=1) + base,
        scores,
        atol=2e-3 * np.abs(scores).max() if model == "mlp" else 1e-9 * np.abs(scores).max(),
    )
    if model != "logistic":  # where rows are held out, the mean is not that of all
        np.testing.assert_allclose(own.scores(x.mean(axis=0)[None, :])[0, -1], base, rtol=1e-9, atol=1e-9)


def test_a_row_without_a_score_gets_no_label_and_no_number() -> None:
    for model in ("logistic", "softmax", "svm", "mlp"):
        x = loaded(FILES[model][0])[2].copy()
        x[[2, 5], 1] = np.nan
        with pytest.raises(BadTraining, match="rows 2, 5;"):
            trained(model).predict(x)
    x = loaded("diabetes")[2].copy()
    x[3, 0] = np.nan
    assert np.flatnonzero(np.isnan(trained("linear").predict(x))).tolist() == [3]


def test_the_table_has_the_largest_first_and_the_intercept_last() -> None:
    lines = trained("logistic").table()
    sizes = [abs(line.standard) for line in lines[:-1]]
    assert sizes == sorted(sizes, reverse=True)
    assert lines[-1].name == "(intercept)"
    assert all(line.ratio_low < line.ratio < line.ratio_high for line in lines[:5])  # type: ignore[operator]
    assert {line.name for line in trained("poisson").table()} == set(trained("poisson").names)
    assert trained("mlp").table() == []
    assert trained("svm").table()[0].error is None


def test_a_file_has_nothing_in_it_that_depends_on_when_or_by_whom_the_job_was_changed() -> None:
    kept = table(numbers())
    assert (
        done(kept, model="logistic", desired="stop").trained().write() == done(kept, model="logistic").trained().write()
    )


def test_bytes_that_are_no_model_are_refused() -> None:
    raw = trained("logistic").write()
    arrays, texts = unpack(raw)
    plain = json.loads(texts["zkd"])
    hostile = [
        b"",
        raw[:-1],
        pack(arrays, {"format": "zkd-model-9", "zkd": texts["zkd"]}),
        pack(arrays, {"format": "zkd-model-1"}),
        *(pack({key: array for key, array in arrays.items() if key != name}, texts) for name in ARRAYS),
        *(pack(arrays | {name: arrays[name].astype(np.float32)}, texts) for name in ("layers.0", "stages.w", "rounds")),
        *(
            pack(arrays, texts | {"zkd": json.dumps(plain | change)})
            for change in (
                {"model": plain["model"] | {"features": 7}},
                {"model": plain["model"] | {"kind": "os.system"}},
                {"model": plain["model"] | {"features": -1}},
                {"classes": [1, 2, 3]},
                {"classes": [[1]]},
                {"features": [["x", 29]]},
                {"features": [["x", -1], ["y", 31]]},
                {"constant": [30]},
                {"outputs": 9},
                {"reasons": []},
                {"terms": {"model": "logistic"}},
            )
        ),
    ]  # fmt: skip
    for data in hostile:
        with pytest.raises(BadRecord, match=r"^\$"):
            Trained.read(data)


def test_what_is_not_known_of_a_constant_feature_is_none_in_the_table() -> None:
    own = done(table(numbers() | {"still": np.full(60, 3.0)}), model="logistic").trained()
    line = next(line for line in Trained.read(own.write()).table() if line.name == "still")
    assert (line.standard, line.error, line.standard_error) == (0.0, None, None)
