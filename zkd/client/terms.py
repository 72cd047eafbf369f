"""What is asked of a training job, checked before it is dropped: all that can be known without looking at a row.

`zkd.models.plan` and `model` know what goes together; what is said here is about names: of models and options, where
scikit-learn's are understood as hints, and of columns. Faults are `BadTraining` that name the option and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypedDict, get_args

import msgspec

from zkd.errors import BadTraining
from zkd.jobs import Job, ModelKind, OptimizerName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zkd.jobs import PrivacyTerms, Validation
    from zkd.manifests import Column, Manifest

KINDS: tuple[str, ...] = get_args(ModelKind)
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)
OPTIONS = tuple(name for name in Job.__struct_fields__ if name not in ("model", "dataset", "desired", "by"))
SHOWN_MAX = 12  # names of columns in a message
BYTES_MAX = 8  # of a number that can be trained on

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
    max_rounds: int
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


@dataclass(frozen=True)
class Checked:
    """A job that may be dropped. `left_out` are the columns that nobody asked to leave out, and why."""

    job: Job
    features: tuple[str, ...]
    left_out: Mapping[str, str]


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
        value = given.get(re.split(r"[.\[]", place)[0])
        raise BadTraining(f"{place}: {expected[0].lower()}{expected[1:]}, got {value!r}") from None


def check(job: Job, manifest: Manifest) -> Checked:
    """Whether the job fits this version of its dataset. Raises `BadTraining`."""
    columns = {column.name: column for column in manifest.columns}
    if not manifest.rows:
        raise BadTraining(f"dataset: {manifest.name}@{manifest.version} has no rows")
    target = job.target if job.target is not None else manifest.label
    if target is None:
        raise BadTraining(f"target: {manifest.name} has no label, so say which column to predict: {_some(columns)}")
    _expect_column("target", target, manifest, columns)
    _check_target(job, columns[target])
    if job.weight is not None:
        _expect_column("weight", job.weight, manifest, columns)
        if job.weight == target:
            raise BadTraining(f"weight: {target} is the target; rows are weighed by another column")
        fault = _fault(columns[job.weight])
        if fault or columns[job.weight].shape:
            raise BadTraining(f"weight: {job.weight} is {fault or 'several numbers a row'}; expected one number a row")
    features, left_out = _features(job, manifest, columns, target)
    if job.validation is not None and job.validation.by == "key" and manifest.key is None:
        raise BadTraining(f"validation.by: {manifest.name} has no key; hold out rows by `features`")
    if job.patience is not None and job.validation is None:
        raise BadTraining("patience: there are no held-out rows to see over-fitting by; set `validation`, such as 0.2")
    width = sum(columns[name].shape[0] if columns[name].shape else 1 for name in features)
    _check_plan(job, width, tells_classes=_tells_classes(job, columns[target]))
    return Checked(job, features, left_out)


# --- Columns --------------------------------------------------------------------------------------------------


def _features(
    job: Job, manifest: Manifest, columns: Mapping[str, Column], target: str
) -> tuple[tuple[str, ...], dict[str, str]]:
    if job.features is not None:
        if not job.features or len(set(job.features)) < len(job.features):
            raise BadTraining("features: expected one or more, and each once")
        for name in job.features:
            _expect_column("features", name, manifest, columns)
            if name in (target, job.weight):
                what = "target" if name == target else "weight"
                raise BadTraining(f"features: {name} is the {what}; leave it out of the features")
            fault = _fault(columns[name])
            if fault:
                raise BadTraining(f"features: {name} is {fault}")
        return tuple(job.features), {}
    rest = {name: column for name, column in columns.items() if name not in (target, job.weight, manifest.key)}
    left_out = {name: fault for name, column in rest.items() if (fault := _fault(column))}
    features = tuple(name for name in rest if name not in left_out)
    if not features:
        why = "; ".join(f"{name} is {fault}" for name, fault in list(left_out.items())[:SHOWN_MAX])
        raise BadTraining(f"features: {manifest.name} has no column of numbers to train on{f': {why}' if why else ''}")
    return features, left_out


def _fault(column: Column) -> str:
    """Why this column cannot be trained on; empty if it can."""
    kind, size = _kind(column)
    if kind in "US":
        return "text: encode it as numbers first, such as a column of 0 and 1 for each value"
    if kind in "mM":
        return "a date or a span of time: make numbers of it first, such as days since the first"
    if kind == "c":
        return "complex: take its real and imaginary parts, or its size"
    if kind not in "iufb" or size > BYTES_MAX:
        return f"of dtype {column.dtype}: expected numbers of up to {8 * BYTES_MAX} bits"
    if len(column.shape) > 1 or 0 in column.shape:
        return f"of shape {tuple(column.shape)} a row: expected one number a row, or a vector"
    return ""


def _check_target(job: Job, column: Column) -> None:
    kind, size = _kind(column)
    if column.shape:
        raise BadTraining(f"target: {column.name} has {tuple(column.shape)} values a row; expected one")
    if kind == "U" and not _tells_classes(job, column):
        raise BadTraining(f"target: {column.name} is text; to tell classes, train logistic, softmax, svm or an mlp")
    if kind != "U" and (kind not in "iufb" or size > BYTES_MAX):
        raise BadTraining(f"target: {column.name} is of dtype {column.dtype}; expected numbers, booleans or text")


def _tells_classes(job: Job, column: Column) -> bool:
    if job.model != "mlp":
        return job.model in ("logistic", "softmax", "svm")
    return _kind(column)[0] != "f" if job.tells_classes is None else job.tells_classes


def _kind(column: Column) -> tuple[str, int]:
    """The kind of its values as numpy says it, and of numbers their bytes."""
    plain = column.dtype.lstrip("<>|=")
    return plain[0], int(plain[1:]) if plain[1:].isdigit() else 0


def _expect_column(option: str, name: str, manifest: Manifest, columns: Iterable[str]) -> None:
    if name not in columns:
        near = get_close_matches(name, columns, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {_some(columns)}"
        raise BadTraining(f"{option}: {manifest.name}@{manifest.version} has no column {name!r}; {hint}")


def _some(names: Iterable[str]) -> str:
    known = list(names)
    rest = len(known) - SHOWN_MAX
    return ", ".join(known[:SHOWN_MAX]) + (f" and {rest} more" if rest > 0 else "")


# --- Options --------------------------------------------------------------------------------------------------


def _check_plan(job: Job, features: int, *, tells_classes: bool) -> None:
    """What goes together, as the run itself will see it; of classes at least 2 are there."""
    from zkd.models.model import Model
    from zkd.models.plan import Plan, Privacy, default_optimizer

    outputs = 2 if job.model == "softmax" or (job.model == "mlp" and tells_classes) else 1
    model = Model(job.model, features, outputs, tuple(job.hidden), job.intercept)
    privacy = None if job.privacy is None else Privacy(**msgspec.structs.asdict(job.privacy))
    Plan(
        model,
        job.optimizer or default_optimizer(model),
        l2=tuple(job.l2) if isinstance(job.l2, list) else job.l2,
        privacy=privacy,
        **{name: getattr(job, name) for name in _OF_PLAN},
    )


_OF_PLAN = (
    "l1", "tol", "max_rounds", "patience", "jitter", "learning_rate", "epochs", "local_epochs", "batch_rows", "seed"
)  # fmt: skip


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
