"""What can be pushed as a model, and in which words everything else is refused, before anything is sent."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from zkd.client.models import expect_name, file_of
from zkd.errors import BadModel
from zkd.models.from_sklearn import trained_of

FITTED = LogisticRegression(max_iter=500).fit(*load_iris(return_X_y=True))
TRAINED = trained_of(FITTED)
DATA = TRAINED.write()


def test_a_model_comes_as_a_value_as_bytes_as_a_file_or_from_scikit_learn(tmp_path: Path) -> None:
    (tmp_path / "iris.zkd").write_bytes(DATA)
    for given in (
        TRAINED,
        FITTED,
        DATA,
        bytearray(DATA),
        memoryview(DATA),
        tmp_path / "iris.zkd",
        str(tmp_path / "iris.zkd"),
    ):
        data, trained, _ = file_of(given, None, "")
        assert (data, trained.names) == (DATA, TRAINED.names)
    assert file_of(FITTED, "petals", "kind")[1].features == (("petals", 4),)
    assert str(file_of(FITTED, None, "")[2]).startswith("LogisticRegression of scikit-learn ")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (pickle.dumps(FITTED), "this is a pickle; zkd runs no code of a model"),
        (DATA[:-8], "expected two places in"),
        (DATA + b"x", "bytes of none of them"),
        (DATA[:5], "expected a header and arrays, got 5 bytes"),
        (DATA.replace(b"zkd-model-1", b"zkd-model-9"), "expected zkd-model-1, got 'zkd-model-9'"),
        (DATA.replace(b'"dtype":"F64"', b'"dtype":"I64"'), "expected float64"),
        (DATA.replace(b'"dtype":"F64"', b'"dtype":"O64"'), "expected one of U64"),
        (RandomForestClassifier(), "RandomForestClassifier has no counterpart"),
        (object(), "expected a trained model, its file, or a fitted model of scikit-learn, got builtins.object"),
        (None, "got builtins.NoneType"),
        (lambda rows: rows, "got builtins.function"),
    ],
)
def test_what_is_no_model_is_refused(given: Any, words: str) -> None:
    with pytest.raises(BadModel) as caught:
        file_of(given, None, "")
    assert words in str(caught.value)


def test_names_of_features_are_for_models_that_have_none() -> None:
    with pytest.raises(BadModel, match="a file of zkd has its own"):
        file_of(DATA, ["a"], "")


def test_a_huge_file_and_a_huge_claim_cost_no_memory(tmp_path: Path) -> None:
    claim = b'{"layers.0":{"dtype":"F64","shape":[1342177280],"data_offsets":[0,10737418240]}}'
    kilobyte = (len(claim).to_bytes(8, "little") + claim).ljust(1024, b"\0")
    with (tmp_path / "huge.zkd").open("wb") as file:
        file.write(DATA)
        file.truncate(10 * 2**30)  # with a hole
    tracemalloc.start()
    try:
        for given, words in ((kilobyte, "expected two places in"), (tmp_path / "huge.zkd", "at most 536870912 bytes")):
            with pytest.raises(BadModel, match=words):
                file_of(given, None, "")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "x" * 129, "a@1", None, 3])
def test_a_name_becomes_part_of_paths(name: Any) -> None:
    with pytest.raises(BadModel, match="expected 1 to 128 letters"):
        expect_name(name)
