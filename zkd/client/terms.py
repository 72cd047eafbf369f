"""What is asked of a training job, checked before it is dropped: all that can be known without looking at a row.

`zkd.core.terms` knows which columns fit, `zkd.models.plan` which options go together. What is said here is about names,
of models and options, where scikit-learn's are understood as hints. Faults are `BadTraining` that name the option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypedDict, get_args

import msgspec

from zkd.core.terms import choose
from zkd.errors import BadTraining
from zkd.jobs import Job, ModelKind, OptimizerName

if TYPE_CHECKING:
    from zkd.core.terms import Chosen
    from zkd.jobs import PrivacyTerms, Validation
    from zkd.manifests import Manifest

KINDS: tuple[str, ...] = get_args(ModelKind)
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)
OPTIONS = tuple(name for name in Job.__struct_fields__ if name not in ("model", "dataset", "desired", "by"))

_KIND_OF = {
    **dict.fromkeys(("ridge", "ols", "regression", "linearregression", "leastsquares", "lasso"), "linear"),
    **dict.fromkeys(("logisticregression", "logit", "logreg", "binary", "classifier"), "logistic"),
    **dict.fromkeys(("multinomial", "multiclass", "softmaxregression", "mnlogit"), "softmax"),
    **dict.fromkeys(("poissonregressor", "counts", "glm"), "poisson"),
    **dict.fromkeys(("svc", "linearsvc", "hinge", "linearsvm"), "svm"),
    **dict.fromkeys(("nn", "net", "neuralnetwork", "mlpclassifier", "mlpregressor", "dnn"), "mlp"),
}
_OPTIMIZER_OF = {
    **dict.fromkeys(("newtoncholesky", "newtoncg", "irls"), "newton"),
    **dict.fromkeys(("bfgs", "lbfgsb"), "lbfgs"),
    **dict.fromkeys(("gradientdescent", "batch"), "gd"),
    **dict.fromkeys(("accelerated", "sag", "saga"), "nesterov"),
    **dict.fromkeys(("fedavg", "averaging", "localsgd"), "average"),
}
# What scikit-learn and others call it -> what to write here.
_OPTION_OF = {
    "C": "l2, which is 1/C",
    **dict.fromkeys(("alpha", "lambda", "lambda_", "reg_lambda", "weight_decay"), "l2, of the sum of all losses"),
    "penalty": "l2 and l1, which are numbers",
    "l1_ratio": "l1 and l2, each in full",
    **dict.fromkeys(("solver", "optimiser", "method"), "optimizer"),
    **dict.fromkeys(("max_iter", "n_iter", "rounds"), "max_rounds, or epochs with sgd, adam and average"),
    "fit_intercept": "intercept",
    **dict.fromkeys(("normalize", "normalise", "standardize", "scale"), "standardise"),
    "random_state": "seed",
    **dict.fromkeys(("sample_weight", "class_weight", "weights"), "weight, the name of a column"),
    **dict.fromkeys(("hidden_layer_sizes", "layers", "units"), "hidden"),
    "batch_size": "batch_rows",
    **dict.fromkeys(("lr", "eta", "eta0", "learning_rate_init", "step"), "learning_rate"),
    **dict.fromkeys(("early_stopping", "n_iter_no_change"), "patience, with a validation"),
    **dict.fromkeys(("validation_fraction", "test_size", "validation_split", "holdout"), "validation"),
    **dict.fromkeys(("y", "label"), "target"),
    **dict.fromkeys(("X", "columns"), "features"),
    **dict.fromkeys(("tolerance", "gtol", "eps"), "tol"),
}


class Terms(TypedDict, total=False):
    """The options of `client.train`; docs/training.md says what each means, and what it is if left out."""

    target: str | None
    features: Sequence[str] | None
    weight: str | None
    l2: float | Sequence[float]
    l1: float
    optimizer: OptimizerName | None
    tol: float
    max_rounds: int | None
    patience: int | None
    jitter: float | None
    learning_rate: float | None
    epochs: int
    local_epochs: int
    batch_rows: int
    seed: int
    hidden: int | Sequence[int]
    tells_classes: bool | None
    intercept: bool
    standardise: bool
    validation: float | Validation | Mapping[str, Any] | None
    privacy: PrivacyTerms | Mapping[str, Any] | None
    importance: bool
    confidence: float


def job_of(model: str, dataset: str, terms: Mapping[str, Any], by: str | None = None) -> Job:
    """The record of these terms. Raises `BadTraining` for names and values that no job has."""
    if model not in KINDS:
        raise BadTraining(f"model: {_unknown(model, 'model', KINDS, _KIND_OF)}")
    for name in terms:
        if name not in OPTIONS:
            raise BadTraining(f"{name}: {_no_option(name)}")
    optimizer = terms.get("optimizer")
    if optimizer is not None and optimizer not in OPTIMIZERS:
        raise BadTraining(f"optimizer: {_unknown(optimizer, 'optimizer', OPTIMIZERS, _OPTIMIZER_OF)}")
    given = {name: _plain(name, value) for name, value in terms.items()}
    try:
        return msgspec.convert({"model": model, "dataset": dataset, "by": by, **given}, Job)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        place = where.rstrip("`").lstrip(".") or "job"
        expected = what.partition(", got `")[0].replace("`", "")
        value: Any = given
        for step in re.findall(r"\w+", place):  # to the very value, in records and lists
            value = value[int(step)] if isinstance(value, list) and step.isdigit() else value
            value = value.get(step) if isinstance(value, Mapping) else value
        raise BadTraining(f"{place}: {expected[0].lower()}{expected[1:]}, got {value!r}") from None


def check(job: Job, manifest: Manifest) -> Chosen:
    """The columns of this job in this version of its dataset. Raises `BadTraining` if they do not fit each other."""
    chosen = choose(job, manifest)
    _check_plan(job, len(chosen.names), tells_classes=chosen.tells_classes)
    return chosen


def _check_plan(job: Job, features: int, *, tells_classes: bool) -> None:
    """What goes together, as the run itself will see it; of classes at least 2 are there."""
    from zkd.models.model import Model
    from zkd.models.terms import plan_of

    outputs = 2 if job.model == "softmax" or (job.model == "mlp" and tells_classes) else 1
    plan_of(job, Model(job.model, features, outputs, tuple(job.hidden), job.intercept))


def _plain(name: str, value: Any) -> Any:
    """What a record can hold: lists for arrays, numbers for numpy's, {share} for a share."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if name == "validation" and isinstance(value, float | int) and not isinstance(value, bool):
        return {"share": value}
    if name == "hidden" and isinstance(value, int):
        return [value]
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain("", item) for item in value]
    return value


def _no_option(name: str) -> str:
    if name in _OPTION_OF:
        return f"there is no such option here; use {_OPTION_OF[name]}"
    near = get_close_matches(name, OPTIONS, n=1)
    return f"there is no such option; {f'did you mean {near[0]}?' if near else f'there are {_listed(OPTIONS)}'}"


def _unknown(name: object, what: str, known: Sequence[str], meant: Mapping[str, str]) -> str:
    text = str(name)
    plain = "".join(letter for letter in text.lower() if letter.isalpha())
    near = [meant[plain]] if plain in meant else get_close_matches(plain, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {_listed(known)}"
    return f"there is no {what} {text[:60]!r}; {hint}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
