"""ONNX files as others make them say the same here, or are refused by the name of what is in the way."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn import datasets
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from tests.fuzz.run import mutated
from zkd.client.models import file_of
from zkd.errors import BadModel
from zkd.models.from_onnx import trained_of_onnx
from zkd.models.trained import Trained

RNG = np.random.default_rng(5)


def real(name: str) -> tuple[Any, Any]:
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return x, y


CLASSIFIERS = {
    "logistic": ("breast_cancer", LogisticRegression()),
    "softmax": ("iris", LogisticRegression(max_iter=500)),
    "mlp": ("digits", MLPClassifier((16, 8), max_iter=40, random_state=1)),
    "mlp of two": ("breast_cancer", MLPClassifier((5,), max_iter=300, random_state=1)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_scaled", [True, False])
@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("zipmap", [True, False])
def test_classifiers_tell_the_same_classes_with_the_same_probabilities(
    name: str, is_scaled: bool, zipmap: bool
) -> None:
    source, estimator = CLASSIFIERS[name]
    x, y = real(source)
    if not is_scaled:
        x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1.0)
    words = np.array([f"class {each}" for each in y])
    fitted = (make_pipeline(StandardScaler(), estimator) if is_scaled else estimator).fit(x, words)
    raw = to_onnx(fitted, x[:1].astype(np.float32), options={"zipmap": zipmap}).SerializeToString()
    model = trained_of_onnx(raw)
    assert model.model.kind == name.partition(" ")[0]
    assert model.features == (("X", x.shape[1]),)
    table = {"X": x.astype(np.float32).astype(np.float64)}
    said = model.probabilities(table["X"])
    expected = fitted.predict_proba(table["X"])
    np.testing.assert_allclose(said, expected, atol=2e-6)
    clear = np.sort(expected, axis=1)[:, -1] - np.sort(expected, axis=1)[:, -2] > 1e-4
    told = [model.classes[place] for place in said.argmax(axis=1)]
    assert np.array_equal(np.array(told)[clear], fitted.predict(table["X"])[clear])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "estimator"),
    [
        ("linear", LinearRegression()),
        ("linear", make_pipeline(StandardScaler(), Ridge())),
        ("mlp", make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(10,), max_iter=200, random_state=1))),
    ],
)
def test_regressors_tell_the_same_numbers(kind: str, estimator: Any) -> None:
    x, y = real("diabetes")
    fitted = estimator.fit(x, y)
    model = trained_of_onnx(to_onnx(fitted, x[:1].astype(np.float32)).SerializeToString(), target="y")
    assert (model.model.kind, model.target, model.classes) == (kind, "y", ())
    np.testing.assert_allclose(np.ravel(model.predict(x)), fitted.predict(x), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("scores", [1, 2])
def test_a_margin_stays_one(scores: int) -> None:
    x, y = real("breast_cancer")
    fitted = LinearSVC().fit(x, y)
    signs = [1] if scores == 1 else [-1, 1]
    node = helper.make_node(
        "LinearClassifier",
        ["rows"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        coefficients=np.concatenate([sign * fitted.coef_[0] for sign in signs]).tolist(),
        intercepts=[float(sign * fitted.intercept_[0]) for sign in signs],
        classlabels_ints=[0, 1],
        post_transform="NONE",
    )
    model = trained_of_onnx(graph([node], {}, output="label"))
    assert model.model.kind == "svm"
    assert np.mean(np.array(model.predict(x)).ravel() == fitted.predict(x)) > 0.998


# --- Graphs as other tools write them -----------------------------------------------------------------------


def graph(
    nodes: list[Any], constants: dict[str, Any], inputs: tuple[str, ...] = ("rows",), output: str = "out"
) -> bytes:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3]) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    raw: bytes = helper.make_model(made, producer_name="hand").SerializeToString()
    return raw


W1, B1 = RNG.normal(size=(4, 3)).astype(np.float32), RNG.normal(size=4).astype(np.float32)
W2, B2 = RNG.normal(size=(2, 4)).astype(np.float32), RNG.normal(size=2).astype(np.float32)
NET = [
    helper.make_node("Sub", ["rows", "mean"], ["centred"]),
    helper.make_node("Div", ["centred", "sd"], ["scaled"]),
    helper.make_node("Gemm", ["scaled", "w1", "b1"], ["h"], transB=1),
    helper.make_node("Relu", ["h"], ["r"]),
    helper.make_node("Gemm", ["r", "w2", "b2"], ["z"], transB=1),
    helper.make_node("Softmax", ["z"], ["out"], axis=-1),
]
CONSTANTS = {"mean": [1, 2, 3], "sd": [2, 2, 4], "w1": W1, "b1": B1, "w2": W2, "b2": B2}


def test_a_net_as_pytorch_exports_it_is_computed_alike() -> None:
    model = trained_of_onnx(graph(NET, CONSTANTS), features=["a", "b", "c"], classes=["no", "yes"])
    assert (model.features, model.classes) == ((("a", 0), ("b", 0), ("c", 0)), ("no", "yes"))
    x = RNG.normal(size=(50, 3))
    z = np.maximum(((x - [1, 2, 3]) / [2, 2, 4]) @ W1.T.astype(float) + B1, 0) @ W2.T.astype(float) + B2
    expected = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.probabilities(x), expected, rtol=1e-12)
    again = Trained.read(model.write())
    np.testing.assert_array_equal(again.probabilities(x), model.probabilities(x))


def test_products_without_a_relu_between_them_are_one() -> None:
    nodes = [
        helper.make_node("MatMul", ["rows", "a"], ["h"]),
        helper.make_node("Mul", ["h", "two"], ["k"]),
        helper.make_node("MatMul", ["k", "b"], ["l"]),
        helper.make_node("Add", ["l", "one"], ["out"]),
    ]
    a, b = RNG.normal(size=(3, 2)).astype(np.float32), RNG.normal(size=(2, 1)).astype(np.float32)
    model = trained_of_onnx(graph(nodes, {"a": a, "b": b, "two": [2], "one": [1]}))
    assert model.model.kind == "linear"
    x = RNG.normal(size=(20, 3))
    np.testing.assert_allclose(np.ravel(model.predict(x)), np.ravel(2 * x @ a.astype(float) @ b + 1), rtol=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (lambda: b"no onnx at all", "this is no ONNX file"),
        (lambda: b"", "expected a graph"),
        (lambda: graph([helper.make_node("Tanh", ["rows"], ["out"])], {}), "the operator Tanh has no counterpart"),
        (lambda: graph([helper.make_node("LSTM", ["rows"], ["out"], domain="x.y")], {}), "LSTM of x.y"),
        (lambda: graph(NET, CONSTANTS, inputs=("rows", "more")), "expected one input, the rows, got 2: rows, more"),
        (lambda: graph(NET[:4], CONSTANTS, output="r"), "expected a product with a matrix at the end"),
        (lambda: graph([NET[2]], CONSTANTS, inputs=("scaled",), output="h"), "4 outputs of a linear model"),
        (lambda: graph(NET, CONSTANTS | {"w2": W1}), "a product of 4 columns and 3 rows"),
        (lambda: graph(NET, CONSTANTS | {"sd": [1, 0, 1]}), "a division by 0"),
        (lambda: graph(NET, CONSTANTS | {"b1": [np.nan] * 4}), "not all finite"),
        (lambda: graph(NET, {name: value for name, value in CONSTANTS.items() if name != "w1"}), "takes 'w1'"),
        (lambda: _of_sklearn(OneVsRestClassifier(LogisticRegression())), "has no counterpart"),
        (lambda: _of_sklearn(RandomForestClassifier(3)), "TreeEnsembleClassifier of ai.onnx.ml"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(raw: Any, said: str) -> None:
    with pytest.raises(BadModel, match=said):
        trained_of_onnx(raw())


def _of_sklearn(estimator: Any) -> bytes:
    x, y = real("iris")
    raw: bytes = to_onnx(estimator.fit(x, y), x[:1].astype(np.float32)).SerializeToString()
    return raw


def test_tensors_in_other_files_are_refused() -> None:
    model = onnx.load_model_from_string(graph(NET, CONSTANTS))
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    with pytest.raises(BadModel, match="'mean' lies in another file"):
        trained_of_onnx(model.SerializeToString())


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadModel, match="labels of 2 classes, got 3"):
        trained_of_onnx(graph(NET, CONSTANTS), classes=["a", "b", "c"])
    with pytest.raises(BadModel, match="each label once"):
        trained_of_onnx(graph(NET, CONSTANTS), classes=["a", "a"])


def test_mutated_files_are_models_or_refused() -> None:
    taken = 0
    for data in mutated([graph(NET, CONSTANTS)], 3000, random.Random(4)):
        with suppress(BadModel):
            taken += trained_of_onnx(data).model.features == 3
    assert 0 < taken < 3000


def test_a_file_is_known_by_its_name(tmp_path: Any) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(graph(NET, CONSTANTS))
    data, model, source = file_of(path, features=["a", "b", "c"], classes=["no", "yes"])
    assert Trained.read(data).classes == model.classes == ("no", "yes")
    assert source == "ONNX of hand"
    with pytest.raises(BadModel, match="classes are for ONNX files"):
        file_of(b"", classes=["a", "b"])
