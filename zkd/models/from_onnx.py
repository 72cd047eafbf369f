"""ONNX models as models of zkd: read by an allow-list of operators, by whoever has the file and the package ``onnx``.

    trained_of_onnx(Path("model.onnx").read_bytes(), classes=["cat", "dog"])

Taken is what is a linear model or a net of zkd in other words: scalings, products with matrices, ReLU in between, and
at the end nothing, a sigmoid or a softmax. The graph is not run: it is followed with what it makes of the rows in place
of rows, and any operator that is not listed here is refused by its name. So are models whose tensors lie in other
files, graphs inside graphs, functions, and more than one input. Parameters become float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from zkd.errors import BadModel, BadTraining
from zkd.jobs import Job, Summary
from zkd.models.explain import explain
from zkd.models.from_sklearn import Features, named_features
from zkd.models.model import Kind, Matrix, Model, Vector
from zkd.models.rows import Scaler
from zkd.models.survey import Label
from zkd.models.trained import Trained
from zkd.registry import FILE_BYTES_MAX

End = Literal["", "Sigmoid", "Softmax", "Exp"]
NODES_MAX = 1000
HINT = "pip install zkd[onnx]"


@dataclass(frozen=True)
class Line:
    """What the graph has made of the rows so far: scaled, then layer after layer, with ReLU between them."""

    features: int | None = None  # None: not known before the first constant says it
    shift: Vector | None = None  # rows x become (x - shift) / scale
    scale: Vector | None = None
    layers: tuple[Matrix, ...] = ()  # weights, and the intercepts as the last row
    is_open: bool = False  # the last layer may still be changed: no ReLU has followed
    end: End = ""
    classes: tuple[Label, ...] = ()
    is_margin: bool = False  # scores of classes that are no probabilities


@dataclass(frozen=True)
class Said:
    """A label or a probability in another dress: what it is made of is known already."""

    line: Line


def trained_of_onnx(
    data: bytes, *, features: Features | None = None, classes: Sequence[Label] | None = None, target: str = ""
) -> Trained:
    """The model in an ONNX file.

    `features` are the names of its columns, as for `trained_of`; by default one column named as its input. `classes`
    are the labels of its outputs in their order, where the file does not say them: by default 0, 1, ... Raises
    `BadModel` for what zkd cannot express, and where ``onnx`` is not installed.
    """
    graph, source = _graph(data)
    with np.errstate(all="ignore"):  # what is not finite is refused in the end
        line, name = _followed(graph)
        model, w, labels = _as_model(line, classes)
    if not np.all(np.isfinite(w)):
        raise BadModel("ONNX: its parameters are not all finite")
    scaler = _scaler(line, model.features)
    return Trained(
        model=model,
        w=w,
        scaler=scaler,
        mean=np.zeros(model.features) if scaler is None else scaler.mean,
        classes=labels,
        features=named_features(features if features is not None else {name: model.features}, None, model.features),
        target=target,
        dataset="",
        terms=Job(model=model.kind, dataset=""),
        summary=Summary(reason="imported", rounds=0, notes=[f"ONNX of {source}"]),
        rows=0,
        held_rows=0,
        weight=0.0,
        rounds=(),
        stages=(),
        explanation=None if model.kind == "mlp" else explain(model, w, scaler, l2=0.0),
    )


# --- The file -----------------------------------------------------------------------------------------------


def _graph(data: bytes) -> tuple[Any, str]:
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError:
        raise BadModel(f"ONNX files are read with the package onnx: {HINT}") from None
    if len(data) > FILE_BYTES_MAX:
        raise BadModel(f"ONNX: expected at most {FILE_BYTES_MAX} bytes, got {len(data)}")
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise BadModel(f"this is no ONNX file: {error}") from None
    graph = model.graph
    if not graph.node or model.functions or graph.sparse_initializer:
        raise BadModel("ONNX: expected a graph of operators, without functions and sparse tensors")
    if len(graph.node) > NODES_MAX:
        raise BadModel(f"ONNX: expected at most {NODES_MAX} operators, got {len(graph.node)}")
    made = f"{model.producer_name or 'an unknown maker'} {model.producer_version}".strip()
    return graph, made[:100]


def _constant(tensor: Any) -> np.ndarray[Any, Any]:
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise BadModel(f"ONNX: the tensor {tensor.name!r} lies in another file; save the model in one")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # by what it lies about
        raise BadModel(f"ONNX: the tensor {tensor.name!r} cannot be read: {error}") from None


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import AttributeProto, helper

    for each in node.attribute:
        if each.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) or each.ref_attr_name:
            raise BadModel(f"ONNX: {node.op_type} has a graph of its own, which zkd does not follow")
    return {
        each.name: _constant(each.t) if each.type == AttributeProto.TENSOR else helper.get_attribute_value(each)
        for each in node.attribute
    }


# --- The graph ----------------------------------------------------------------------------------------------

Value = Line | Said | np.ndarray


def _followed(graph: Any) -> tuple[Line, str]:
    """What the outputs are made of, and the name of the input."""
    known: dict[str, Any] = {tensor.name: _constant(tensor) for tensor in graph.initializer}
    inputs = [each.name for each in graph.input if each.name not in known]
    if len(inputs) != 1:
        raise BadModel(f"ONNX: expected one input, the rows, got {len(inputs)}: {', '.join(inputs[:10])}")
    known[inputs[0]] = Line()
    for node in graph.node:
        operator = _OPERATORS.get((node.domain, node.op_type))
        if operator is None:
            where = f" of {node.domain}" if node.domain else ""
            taken = ", ".join(sorted({name for _, name in _OPERATORS}))
            raise BadModel(f"ONNX: the operator {node.op_type}{where} has no counterpart in zkd; it takes {taken}")
        missing = [name for name in node.input if name and name not in known]
        if missing:
            raise BadModel(f"ONNX: {node.op_type} takes {missing[0]!r}, which nothing before it gives")
        try:
            values = operator([known[name] for name in node.input if name], _attributes(node))
        except (TypeError, ValueError, IndexError, KeyError) as error:  # attributes of other types, inputs too few
            raise BadModel(f"ONNX: {node.op_type} is not as the standard has it: {error}") from None
        for name, value in zip(node.output, values if isinstance(values, tuple) else (values,), strict=False):
            known[name] = value
    lines = [_line(known.get(each.name)) for each in graph.output]
    found = [line for line in lines if line is not None]
    if not found:
        raise BadModel("ONNX: no output is made of the rows")
    return max(found, key=lambda line: (len(line.layers), bool(line.end), bool(line.classes))), inputs[0]


def _line(value: Any) -> Line | None:
    return value.line if isinstance(value, Said) else value if isinstance(value, Line) else None


def _same(values: list[Any], _: Mapping[str, Any]) -> Value:
    return values[0]  # type: ignore[no-any-return]


def _made_of(values: list[Any], _: Mapping[str, Any]) -> Value:
    """A label, its name, one of several probabilities, all of them side by side: nothing new."""
    lines = [line for value in values if (line := _line(value)) is not None and line.layers]
    if not lines:
        return values[0]  # type: ignore[no-any-return]  # of constants alone: a table of labels
    labels = [value for value in values if isinstance(value, np.ndarray) and value.ndim == 1]
    line = lines[0]
    if labels and not line.classes and len(labels[0]) > 1:
        line = replace(line, classes=_labels(labels[0].tolist()))
    return Said(line)


def _scaled(values: list[Any], attributes: Mapping[str, Any]) -> Value:
    line = _rows(values[0], "Scaler")
    offset, scale = (_vector(attributes.get(name, ()), "Scaler") for name in ("offset", "scale"))
    return _times(_plus(line, -offset), scale)


def _plus(line: Line, by: Vector) -> Line:
    if line.end:
        raise BadModel(f"ONNX: what follows a {line.end} has no counterpart in zkd")
    if line.is_open:
        last = line.layers[-1].copy()
        last[-1] += _fitting(by, last.shape[1])
        return replace(line, layers=(*line.layers[:-1], last))
    if line.layers:
        raise BadModel("ONNX: expected a product with a matrix after a ReLU")
    by = _first(line, by)
    shift, scale = _scaling(line, len(by))
    return replace(line, features=len(by), shift=shift - by * scale, scale=scale)


def _times(line: Line, by: Vector) -> Line:
    if line.end:
        raise BadModel(f"ONNX: what follows a {line.end} has no counterpart in zkd")
    if line.is_open:
        return replace(line, layers=(*line.layers[:-1], line.layers[-1] * _fitting(by, line.layers[-1].shape[1])))
    if line.layers:
        raise BadModel("ONNX: expected a product with a matrix after a ReLU")
    by = _first(line, by)
    if np.any(by == 0):
        raise BadModel("ONNX: a feature is multiplied by 0")
    shift, scale = _scaling(line, len(by))
    return replace(line, features=len(by), shift=shift, scale=scale / by)


def _product(line: Line, weights: Matrix) -> Line:
    if line.end:
        raise BadModel(f"ONNX: what follows a {line.end} has no counterpart in zkd")
    if weights.ndim != 2 or 0 in weights.shape:
        raise BadModel(f"ONNX: expected a matrix, got the shape {weights.shape}")
    if line.is_open:
        last = line.layers[-1]
        if last.shape[1] != len(weights):
            raise BadModel(f"ONNX: a product of {last.shape[1]} columns and {len(weights)} rows")
        return replace(line, layers=(*line.layers[:-1], last @ weights))
    wanted = line.layers[-1].shape[1] if line.layers else line.features
    if wanted not in (None, len(weights)):
        raise BadModel(f"ONNX: a product of {wanted} columns and {len(weights)} rows")
    layer = np.vstack([weights, np.zeros(weights.shape[1])])
    features = len(weights) if line.features is None else line.features
    return replace(line, features=features, layers=(*line.layers, layer), is_open=True)


def _arithmetic(name: str) -> Callable[[list[Any], Mapping[str, Any]], Value]:
    def do(values: list[Any], _: Mapping[str, Any]) -> Value:
        if len(values) != 2:
            raise BadModel(f"ONNX: {name}: expected two operands, got {len(values)}")
        left, right = values
        if isinstance(left, np.ndarray) and isinstance(right, Line | Said):
            line = _line(right)
            assert line is not None
            if name == "Sub" and line.end == "Sigmoid" and np.all(left == 1):
                return Said(line)  # the probability of the other class
            if name in ("Add", "Mul") and isinstance(right, Line):
                left, right = right, left
        if not isinstance(left, Line) or not isinstance(right, np.ndarray):
            raise BadModel(f"ONNX: {name}: expected what is made of the rows, and a constant")
        by = _vector(right, name)
        if name == "Div" and np.any(by == 0):
            raise BadModel("ONNX: a division by 0")
        match name:
            case "Add":
                return _plus(left, by)
            case "Sub":
                return _plus(left, -by)
            case "Mul":
                return _times(left, by)
            case _:
                return _times(left, 1 / by)

    return do


def _mat_mul(values: list[Any], _: Mapping[str, Any]) -> Value:
    if len(values) != 2 or not isinstance(values[1], np.ndarray):
        raise BadModel("ONNX: MatMul: expected what is made of the rows, and a constant matrix")
    return _product(_rows(values[0], "MatMul"), _numbers(values[1], "MatMul"))


def _gemm(values: list[Any], attributes: Mapping[str, Any]) -> Value:
    if len(values) < 2 or attributes.get("transA") or not isinstance(values[1], np.ndarray):
        raise BadModel("ONNX: Gemm: expected the rows as they are, and a constant matrix")
    weights = _numbers(values[1], "Gemm") * float(attributes.get("alpha", 1.0))
    line = _product(_rows(values[0], "Gemm"), weights.T if attributes.get("transB") else weights)
    if len(values) > 2:
        line = _plus(line, _vector(values[2], "Gemm") * float(attributes.get("beta", 1.0)))
    return line


def _relu(values: list[Any], _: Mapping[str, Any]) -> Value:
    line = _rows(values[0], "Relu")
    if not line.is_open or line.end:
        raise BadModel("ONNX: Relu: expected a product with a matrix before it")
    return replace(line, is_open=False)


def _ended(end: End) -> Callable[[list[Any], Mapping[str, Any]], Value]:
    def do(values: list[Any], attributes: Mapping[str, Any]) -> Value:
        line = _rows(values[0], end)
        if not line.is_open or line.end or attributes.get("axis", -1) not in (-1, 1):
            raise BadModel(f"ONNX: {end}: expected a product with a matrix before it, and the classes as columns")
        return replace(line, end=end)

    return do


def _linear_classifier(values: list[Any], attributes: Mapping[str, Any]) -> Value:
    labels = attributes.get("classlabels_ints") or attributes.get("classlabels_strings") or ()
    classes = _labels([each.decode() if isinstance(each, bytes) else each for each in labels])
    if len(classes) < 2:
        raise BadModel(f"ONNX: LinearClassifier: expected two classes or more, got {len(classes)}")
    coefficients = _vector(attributes.get("coefficients", ()), "LinearClassifier")
    outputs = 1 if len(classes) == 2 and len(attributes.get("intercepts", ())) == 1 else len(classes)
    line = _layer(values[0], coefficients, attributes.get("intercepts", ()), outputs, "LinearClassifier")
    if len(classes) == 2 and outputs == 2:
        layer = line.layers[-1]
        if not np.array_equal(layer[:, 0], -layer[:, 1]):
            raise BadModel("ONNX: LinearClassifier: expected the scores of two classes to be each other's opposite")
        line = replace(line, layers=(*line.layers[:-1], layer[:, 1:]))
    after = attributes.get("post_transform", b"NONE")
    after = after.decode() if isinstance(after, bytes) else str(after)
    ends: dict[tuple[str, bool], End] = {("LOGISTIC", True): "Sigmoid", ("SOFTMAX", False): "Softmax"}
    is_two = len(classes) == 2
    if after == "SOFTMAX" and is_two:  # of -z and z
        line = replace(line, layers=(*line.layers[:-1], 2 * line.layers[-1]))
        after = "LOGISTIC"
    if after == "NONE":
        line = replace(line, classes=classes, is_margin=True)
    elif (after, is_two) in ends:
        line = replace(line, classes=classes, end=ends[after, is_two])
    else:
        raise BadModel(
            f"ONNX: LinearClassifier: {after} of {len(classes)} classes has no counterpart in zkd: each class has a "
            "score of its own (one-vs-rest), whose probabilities do not belong together"
        )
    return (Said(line), line)  # type: ignore[return-value]  # the label, the scores


def _linear_regressor(values: list[Any], attributes: Mapping[str, Any]) -> Value:
    after = attributes.get("post_transform", b"NONE")
    if int(attributes.get("targets", 1)) != 1 or after not in (b"NONE", "NONE"):
        raise BadModel("ONNX: LinearRegressor: expected one target, as it is")
    coefficients = _vector(attributes.get("coefficients", ()), "LinearRegressor")
    return _layer(values[0], coefficients, attributes.get("intercepts", ()), 1, "LinearRegressor")


def _layer(value: Any, coefficients: Vector, intercepts: Any, outputs: int, name: str) -> Line:
    if not len(coefficients) or len(coefficients) % outputs:
        raise BadModel(f"ONNX: {name}: expected coefficients of {outputs} outputs, got {len(coefficients)} numbers")
    line = _product(_rows(value, name), coefficients.reshape(outputs, -1).T)
    return _plus(line, _vector(intercepts, name)) if len(intercepts) else line


def _normalised(values: list[Any], attributes: Mapping[str, Any]) -> Value:
    line = _line(values[0])
    if line is None or not line.end or attributes.get("norm", b"MAX") not in (b"L1", "L1"):
        raise BadModel("ONNX: Normalizer: expected probabilities, to be divided by their sum")
    return values[0]  # type: ignore[no-any-return]  # their sum is 1


_ML = "ai.onnx.ml"
_OPERATORS: dict[tuple[str, str], Callable[[list[Any], Mapping[str, Any]], Any]] = {
    **{("", name): _same for name in ("Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Dropout")},
    **{("", name): _made_of for name in ("ArgMax", "Concat", "Gather")},
    **{("", name): _arithmetic(name) for name in ("Add", "Sub", "Mul", "Div")},
    ("", "Constant"): lambda _, attributes: _plain(attributes),
    ("", "MatMul"): _mat_mul,
    ("", "Gemm"): _gemm,
    ("", "Relu"): _relu,
    ("", "Sigmoid"): _ended("Sigmoid"),
    ("", "Softmax"): _ended("Softmax"),
    ("", "Exp"): _ended("Exp"),
    (_ML, "Scaler"): _scaled,
    (_ML, "LinearClassifier"): _linear_classifier,
    (_ML, "LinearRegressor"): _linear_regressor,
    (_ML, "Normalizer"): _normalised,
    **{(_ML, name): _made_of for name in ("ZipMap", "ArrayFeatureExtractor", "LabelEncoder")},
}


def _plain(attributes: Mapping[str, Any]) -> Any:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in attributes:
            return np.asarray(attributes[name])
    raise BadModel("ONNX: Constant: expected a tensor or numbers")


# --- What it comes to ---------------------------------------------------------------------------------------


def _as_model(line: Line, classes: Sequence[Label] | None) -> tuple[Model, Vector, tuple[Label, ...]]:
    if not line.layers or not line.is_open:
        raise BadModel("ONNX: expected a product with a matrix at the end, or a sigmoid or softmax of one")
    *inner, last = line.layers
    outputs = last.shape[1]
    has_classes = line.end in ("Sigmoid", "Softmax") or line.is_margin or classes is not None
    count = max(outputs, 2)
    labels = _labels(classes) if classes is not None else line.classes if line.classes else tuple(range(count))
    if has_classes and len(labels) != count:
        raise BadModel(f"ONNX: expected the labels of {count} classes, got {len(labels)}")
    kind: Kind
    behind = line.end or "nothing"
    if inner:
        if line.end == "Exp" or (line.end == "Sigmoid" and outputs != 1) or (not has_classes and outputs != 1):
            raise BadModel(
                f"ONNX: a net of {outputs} outputs with {line.end or 'nothing'} behind has no counterpart in zkd"
            )
        kind = "mlp"
        if has_classes and outputs == 1:  # the sigmoid of z is the softmax over 0 and z
            last, outputs = np.hstack([np.zeros_like(last), last]), 2
    elif outputs > 1:
        if line.end != "Softmax":
            raise BadModel(
                f"ONNX: {outputs} outputs of a linear model with {behind} behind them have no counterpart in zkd"
            )
        kind = "softmax"
    else:
        kinds: dict[End, Kind] = {"Sigmoid": "logistic", "Exp": "poisson", "": "svm" if has_classes else "linear"}
        if line.end not in kinds:
            raise BadModel("ONNX: a softmax over one output is always 1")
        kind = kinds[line.end]
    layers = [*inner, last]
    try:
        model = Model(kind, len(layers[0]) - 1, outputs, tuple(layer.shape[1] for layer in inner))
    except BadTraining as error:
        raise BadModel(f"ONNX: {error}") from None
    return model, np.concatenate([layer.ravel() for layer in layers]), labels if has_classes else ()


def _scaler(line: Line, features: int) -> Scaler | None:
    if line.shift is None or line.scale is None:
        return None
    if len(line.shift) != features:
        raise BadModel(f"ONNX: {len(line.shift)} features are scaled, of {features}")
    if not (np.all(np.isfinite(line.shift)) and np.all(np.isfinite(line.scale))):
        raise BadModel("ONNX: its means and scales are not all finite")
    return Scaler(line.shift, line.scale)


def _rows(value: Any, name: str) -> Line:
    if not isinstance(value, Line):
        raise BadModel(f"ONNX: {name}: expected what is made of the rows")
    return value


def _first(line: Line, by: Vector) -> Vector:
    """A constant for each feature."""
    if line.features is None and len(by) == 1:
        raise BadModel("ONNX: one number for all features, before it is known how many there are")
    return by if line.features is None else _fitting(by, line.features)


def _scaling(line: Line, features: int) -> tuple[Vector, Vector]:
    return (
        np.zeros(features) if line.shift is None else line.shift,
        np.ones(features) if line.scale is None else line.scale,
    )


def _fitting(by: Vector, count: int) -> Vector:
    if len(by) not in (1, count):
        raise BadModel(f"ONNX: expected 1 or {count} numbers, got {len(by)}")
    return np.broadcast_to(by, (count,)).astype(np.float64)


def _vector(value: Any, name: str) -> Vector:
    array = _numbers(value, name)
    if array.size != max(array.shape, default=1):
        raise BadModel(f"ONNX: {name}: expected one number or one a column, got the shape {array.shape}")
    return array.reshape(-1)


def _numbers(value: Any, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise BadModel(f"ONNX: {name}: expected numbers, got {array.dtype}")
    return array.astype(np.float64)


def _labels(values: Sequence[Any]) -> tuple[Label, ...]:
    found = tuple(each.decode() if isinstance(each, bytes) else each for each in values)
    for each in found:
        if not isinstance(each, bool | int | float | str):
            raise BadModel(f"ONNX: expected labels that are text, numbers or booleans, got {each!r}")
    if len(set(found)) < len(found):
        raise BadModel("ONNX: expected each label once")
    return found
