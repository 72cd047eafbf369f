"""Fitted models of scikit-learn as models of zkd: read from their attributes, by whoever has them in his program.

    trained_of(make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y))

What is converted says of every row what scikit-learn says, to rounding. What zkd has no words for is refused by name:
several outputs, one score a class without probabilities that belong together (one-vs-rest), activations other than
ReLU, transformers other than StandardScaler, subclasses that may do anything. scikit-learn is not imported here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from zkd.errors import BadModel, BadTraining
from zkd.jobs import Job, Summary
from zkd.models.explain import explain
from zkd.models.model import Kind, Matrix, Model, Vector
from zkd.models.rows import Scaler
from zkd.models.survey import Label
from zkd.models.trained import Trained

Features: TypeAlias = str | Sequence[str] | Mapping[str, int]

COLUMN = "X"  # that has all features of a row, where they have no names
NAME_MAX = 128

REGRESSORS = (
    "LinearRegression",
    "Ridge",
    "RidgeCV",
    "Lasso",
    "LassoCV",
    "ElasticNet",
    "ElasticNetCV",
    "SGDRegressor",
)
LOGISTIC = ("LogisticRegression", "LogisticRegressionCV")
MARGINS = {"hinge", "squared_hinge", "perceptron"}  # losses of SGDClassifier that give a score and no probability
KNOWN = (
    *REGRESSORS,
    *LOGISTIC,
    "PoissonRegressor",
    "SGDClassifier",
    "LinearSVC",
    "MLPClassifier",
    "MLPRegressor",
    "StandardScaler before one of these, in a Pipeline",
)


def is_of_sklearn(value: object) -> bool:
    """Whether this, or what it is derived from, is scikit-learn's."""
    return any(kind.__module__.partition(".")[0] == "sklearn" for kind in type(value).__mro__)


def trained_of(estimator: Any, *, features: Features | None = None, target: str = "") -> Trained:
    """The model. `features` are the names of the columns that it wants, in order: of one number each, or of several by
    a mapping, or one name for all; by default those of the DataFrame it was fitted on, else one column ``X``.

    Raises `BadModel` for what is not fitted, and for what zkd cannot express.
    """
    scalers, last = _steps(estimator)
    name = _name(last)
    if name in REGRESSORS:
        model, w = _linear("linear", last)
        classes: tuple[Label, ...] = ()
    elif name == "PoissonRegressor":
        model, w = _linear("poisson", last)
        classes = ()
    elif name in LOGISTIC or name in ("SGDClassifier", "LinearSVC"):
        classes = _classes(last)
        model, w = _linear(_kind_of_classifier(name, last, classes), last, classes)
    elif name in ("MLPClassifier", "MLPRegressor"):
        classes = _classes(last) if name == "MLPClassifier" else ()
        model, w = _net(name, last, classes)
    else:
        raise BadModel(f"{name} has no counterpart in zkd; it takes {', '.join(KNOWN)}")
    if not np.all(np.isfinite(w)):
        raise BadModel(f"{name}: its parameters are not all finite")
    scaler = _scaler(scalers, model.features)
    version = getattr(sys.modules.get("sklearn"), "__version__", "")
    return Trained(
        model=model,
        w=w,
        scaler=scaler,
        mean=np.zeros(model.features) if scaler is None else scaler.mean,
        classes=classes,
        features=named_features(features, _names(estimator, last), model.features),
        target=target,
        dataset="",
        terms=Job(model=model.kind, dataset=""),
        summary=Summary(reason="imported", rounds=0, notes=[f"{name} of scikit-learn {version}".strip()]),
        rows=0,
        held_rows=0,
        weight=0.0,
        rounds=(),
        stages=(),
        explanation=None if model.kind == "mlp" else explain(model, w, scaler, l2=0.0),
    )


# --- What there is ------------------------------------------------------------------------------------------


def _steps(estimator: Any) -> tuple[list[Any], Any]:
    """The scalers that rows go through, and the model behind them."""
    if _name(estimator) != "Pipeline":
        return [], estimator
    steps = [step for _, step in estimator.steps if step is not None and not _is_passthrough(step)]
    if not steps:
        raise BadModel("Pipeline: expected a model as its last step")
    scalers: list[Any] = []
    for step in steps[:-1]:
        name = _name(step)
        if name == "Pipeline":
            inner, last = _steps(step)
            scalers += inner
            step, name = last, _name(last)
        if name != "StandardScaler":
            raise BadModel(f"Pipeline: {name} has no counterpart in zkd; before the model it takes StandardScaler")
        scalers.append(step)
    inner, last = _steps(steps[-1])
    return [*scalers, *inner], last


def _is_passthrough(step: object) -> bool:
    return isinstance(step, str) and step == "passthrough"


def _name(estimator: Any) -> str:
    kind = type(estimator)
    if kind.__module__.partition(".")[0] != "sklearn":
        what = "a subclass of its own, which may do anything" if is_of_sklearn(estimator) else "none of scikit-learn's"
        raise BadModel(f"{kind.__module__}.{kind.__name__} is {what}; zkd takes {', '.join(KNOWN)}")
    return kind.__name__


def _array(estimator: Any, attribute: str) -> Any:
    """A fitted attribute as float64."""
    value = getattr(estimator, attribute, None)
    if value is None:
        raise BadModel(f"{_name(estimator)} is not fitted: it has no {attribute}")
    if hasattr(value, "toarray"):  # after sparsify()
        value = value.toarray()
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise BadModel(f"{_name(estimator)}: expected numbers as {attribute}, got {array.dtype}")
    return array.astype(np.float64)


def _classes(estimator: Any) -> tuple[Label, ...]:
    found = getattr(estimator, "classes_", None)
    if found is None:
        raise BadModel(f"{_name(estimator)} is not fitted: it has no classes_")
    if isinstance(found, list):
        raise BadModel(f"{_name(estimator)} tells several things at once; zkd's models have one target")
    classes = tuple(each.item() if isinstance(each, np.generic) else each for each in found)
    for each in classes:
        if not isinstance(each, bool | int | float | str) or (isinstance(each, float) and not math.isfinite(each)):
            raise BadModel(f"{_name(estimator)}: expected labels that are text, numbers or booleans, got {each!r}")
    if len(classes) < 2:
        raise BadModel(f"{_name(estimator)}: expected two classes or more, got {list(classes)}")
    return classes


# --- Linear models ------------------------------------------------------------------------------------------


def _kind_of_classifier(name: str, estimator: Any, classes: Sequence[Label]) -> Kind:
    if name == "SGDClassifier":
        loss = estimator.loss
        if loss != "log_loss" and loss not in MARGINS:
            raise BadModel(f"SGDClassifier: loss={loss!r} has no counterpart in zkd; it takes log_loss, hinge, ...")
        is_logistic = loss == "log_loss"
    else:
        is_logistic = name in LOGISTIC
    if len(classes) > 2:
        is_joint = name in LOGISTIC and not (
            getattr(estimator, "multi_class", None) == "ovr" or estimator.solver == "liblinear"
        )
        if not is_joint:
            raise BadModel(
                f"{name} with {len(classes)} classes has a score of its own for each (one-vs-rest), whose "
                "probabilities do not belong together; fit LogisticRegression with another solver than liblinear"
            )
        return "softmax"
    return "logistic" if is_logistic else "svm"


def _linear(kind: Kind, estimator: Any, classes: Sequence[Label] = ()) -> tuple[Model, Vector]:
    coefficients = np.atleast_2d(_array(estimator, "coef_"))
    outputs = len(classes) if len(classes) > 2 else 1
    if coefficients.ndim != 2 or len(coefficients) != outputs:
        raise BadModel(
            f"{_name(estimator)}: expected coefficients of {outputs} {'output' if outputs == 1 else 'classes'}, got "
            f"shape {coefficients.shape}; zkd's models have one target"
        )
    intercepts = np.broadcast_to(_array(estimator, "intercept_").reshape(-1), (outputs,))
    if kind == "logistic" and getattr(estimator, "multi_class", None) == "multinomial":
        coefficients, intercepts = 2 * coefficients, 2 * intercepts  # softmax over -z and z
    matrix: Matrix = np.vstack([coefficients.T, intercepts])
    return _model(kind, coefficients.shape[1], outputs), matrix.ravel()


def _model(kind: Kind, features: int, outputs: int, hidden: tuple[int, ...] = ()) -> Model:
    try:
        return Model(kind, features, outputs, hidden)
    except BadTraining as error:
        raise BadModel(str(error)) from None


# --- Nets ---------------------------------------------------------------------------------------------------


def _net(name: str, estimator: Any, classes: Sequence[Label]) -> tuple[Model, Vector]:
    if estimator.activation != "relu":
        raise BadModel(f"{name}: activation={estimator.activation!r} has no counterpart in zkd; its nets have relu")
    if getattr(estimator, "coefs_", None) is None:
        raise BadModel(f"{name} is not fitted: it has no coefs_")
    out = getattr(estimator, "out_activation_", None)
    expected = "identity" if not classes else "logistic" if len(classes) == 2 else "softmax"
    outputs = int(np.asarray(estimator.coefs_[-1]).shape[1])
    if out != expected or outputs != (len(classes) if len(classes) > 2 else 1):
        raise BadModel(
            f"{name}: {outputs} outputs of activation {out!r} have no counterpart in zkd; its nets tell one class, or "
            "one number"
        )
    layers = [
        np.vstack([np.asarray(weights, np.float64), np.asarray(intercepts, np.float64)])
        for weights, intercepts in zip(estimator.coefs_, estimator.intercepts_, strict=True)
    ]
    if len(classes) == 2:  # the logistic of z is the softmax over 0 and z
        layers[-1] = np.hstack([np.zeros_like(layers[-1]), layers[-1]])
    hidden = tuple(layer.shape[1] for layer in layers[:-1])
    model = _model("mlp", len(layers[0]) - 1, layers[-1].shape[1], hidden)
    return model, np.concatenate([layer.ravel() for layer in layers])


# --- Rows ---------------------------------------------------------------------------------------------------


def _scaler(scalers: Sequence[Any], features: int) -> Scaler | None:
    """All of them in one."""
    mean, scale = np.zeros(features), np.ones(features)
    for each in scalers:
        known = getattr(each, "n_features_in_", None)
        if known != features:
            raise BadModel(f"StandardScaler: expected one fitted on {features} features, got {known}")
        if each.with_mean:
            mean = mean + _array(each, "mean_") * scale
        if each.with_std:
            scale = scale * _array(each, "scale_")
    if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(scale)) and np.all(scale != 0)):
        raise BadModel("StandardScaler: its means and scales are not all finite, or a scale is 0")
    return Scaler(mean, scale) if scalers else None


def _names(estimator: Any, last: Any) -> list[str] | None:
    """Those of the DataFrame that it was fitted on."""
    for each in (estimator, last):
        try:
            found = getattr(each, "feature_names_in_", None)
        except (AttributeError, IndexError):  # a pipeline asks its first step
            continue
        if found is not None:
            return [str(name) for name in found]
    return None


def named_features(given: Features | None, known: Sequence[str] | None, count: int) -> tuple[tuple[str, int], ...]:
    if given is None:
        given = {COLUMN: count} if known is None else list(known)
    if isinstance(given, str):
        given = {given: count}
    found = tuple(given.items()) if isinstance(given, Mapping) else tuple((name, 0) for name in given)
    names = [name for name, _ in found]
    if not all(isinstance(name, str) and 0 < len(name) <= NAME_MAX for name in names) or len(set(names)) < len(names):
        raise BadModel(f"features: expected names of 1 to {NAME_MAX} characters, each once; give others by `features`")
    if not all(isinstance(width, int) and width >= 0 for _, width in found):
        raise BadModel("features: expected how many numbers a row each column has")
    if sum(max(width, 1) for _, width in found) != count:
        raise BadModel(f"features: the model has {count}, the names are of {sum(max(width, 1) for _, width in found)}")
    return found
