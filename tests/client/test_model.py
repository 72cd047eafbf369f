"""A model in the hands of a program: what it takes, what it says, and that a file has all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.client.models import model_of, trained
from tests.models.courses import job, real, table
from zkd.client.model import Model
from zkd.errors import BadRecord, BadTraining


def rows(name: str) -> dict[str, np.ndarray]:
    """All of a data set's columns."""
    kept = real(name)
    return {column: np.concatenate([part[column] for part in kept.parts]) for column in kept.parts[0]}


def test_a_model_predicts_from_columns_of_which_there_may_be_more_or_from_an_array() -> None:
    model, table = Model(model_of("softmax", "iris")), rows("iris")
    said = model.predict(table)
    assert (said == table["y"]).mean() > 0.95
    x = np.hstack([table["x0"][:, None], table["x1"][:, None], table["x2"][:, None], table["rest"]])
    assert np.array_equal(model.predict(x), said)
    chances = model.probabilities(x)
    assert np.allclose(chances.sum(axis=1), 1.0)
    assert np.array_equal(np.array(model.classes)[chances.argmax(axis=1)], said)


class Frame:
    """What a data frame is to us: columns by name, in an order of its own; as an array, nothing but numbers."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns = list(columns)
        self._columns = columns

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.stack(list(self._columns.values()), axis=1)


def test_the_columns_of_a_frame_are_taken_by_name() -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    kept = table({"a": x[:, 0], "b": x[:, 1], "y": (x[:, 0] - x[:, 1] > 0).astype(np.int64)})
    model = Model(trained(job("logistic"), kept))
    swapped = Frame({"b": x[:, 1], "a": x[:, 0]})
    assert np.array_equal(model.predict(swapped), model.predict(x))
    assert not np.array_equal(model.predict(np.asarray(swapped)), model.predict(x))


def test_rows_that_do_not_fit_are_refused_by_name() -> None:
    model = Model(model_of("softmax", "iris"))
    with pytest.raises(BadTraining, match="expected the columns x2, rest"):
        model.predict({"x0": [1.0], "x1": [1.0]})
    with pytest.raises(BadTraining, match="rows x 4, got shape"):
        model.predict(np.zeros((3, 5)))


def test_attributions_add_up_to_the_score_of_the_label_that_was_asked_for() -> None:
    model, table = Model(model_of("softmax", "iris")), rows("iris")
    for place, label in enumerate(model.classes):
        moved, base = model.attributions(table, label)
        assert np.allclose(moved.sum(axis=1) + base, model.scores(table)[:, place])
    with pytest.raises(BadTraining, match="label: expected one of 0, 1, 2, got 7"):
        model.attributions(table, 7)


def test_a_file_has_all_of_it(tmp_path: Path) -> None:
    model = Model(model_of("logistic", "breast_cancer", importance=True))
    model.save(tmp_path / "model")
    again = Model.load(tmp_path / "model")
    assert again.summary == model.summary
    assert again.coefficients() == model.coefficients()
    assert again.importance == model.importance
    assert list(again.history) == list(model.history)
    assert next(iter(model.importance.values())) == max(model.importance.values())
    assert repr(again) == "<Model logistic of y on d@3, tolerance>"
    model.plot(tmp_path / "curve.svg")
    assert "held-out" in (tmp_path / "curve.svg").read_text()
    with pytest.raises(BadRecord):
        Model(b"nothing")
