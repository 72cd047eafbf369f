"""Which columns of a dataset a training job is about: named ones that are there and fit, or the usual ones.

The same for whoever asks, a client before it drops the job and the coordinator of a job that anybody dropped. What only
the rows can tell is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from zkd.errors import BadTraining
from zkd.jobs import Job
from zkd.manifests import Column, Manifest

SHOWN_MAX = 12  # columns in a message
BYTES_MAX = 8  # of a number that can be trained on


@dataclass(frozen=True, slots=True)
class Chosen:
    """`features` are names with the numbers a row that each has, in order. `left_out`: columns that nobody named and
    that cannot be features, and why. `key` is given where rows are held out by it."""

    features: tuple[tuple[str, int], ...]
    target: str
    weight: str | None
    key: str | None
    tells_classes: bool
    left_out: Mapping[str, str]

    @property
    def columns(self) -> tuple[str, ...]:
        """All that have to be read, each once."""
        more = (self.target, self.weight, self.key)
        return tuple(dict.fromkeys([*(name for name, _ in self.features), *(name for name in more if name)]))

    @property
    def names(self) -> tuple[str, ...]:
        """One a feature: ``pixels[0]``, ``pixels[1]``... for a column that has several a row."""
        return tuple(
            name if width == 0 else f"{name}[{index}]" for name, width in self.features for index in range(width or 1)
        )


def choose(job: Job, manifest: Manifest) -> Chosen:
    """The columns of this job. Raises `BadTraining` where there are none, or where they are not what it takes."""
    columns = {column.name: column for column in manifest.columns}
    if not manifest.rows:
        raise BadTraining(f"dataset: {manifest.name}@{manifest.version} has no rows")
    target = job.target if job.target is not None else manifest.label
    if target is None:
        raise BadTraining(f"target: {manifest.name} has no label, so say which column to predict: {_some(columns)}")
    _expect_column("target", target, manifest, columns)
    tells_classes = _tells_classes(job, columns[target])
    _check_target(columns[target], tells_classes=tells_classes)
    if job.weight is not None:
        _expect_column("weight", job.weight, manifest, columns)
        if job.weight == target:
            raise BadTraining(f"weight: {target} is the target; rows are weighed by another column")
        if job.privacy is not None:
            raise BadTraining("weight: row weights would stretch what privacy clips; leave them out")
        fault = fault_of(columns[job.weight])
        if fault or columns[job.weight].shape:
            raise BadTraining(f"weight: {job.weight} is {fault or 'several numbers a row'}; expected one number a row")
    features, left_out = _features(job, manifest, columns, target)
    if job.patience is not None and job.validation is None:
        raise BadTraining("patience: there are no held-out rows to see over-fitting by; set `validation`, such as 0.2")
    if job.importance and job.privacy is not None:
        raise BadTraining("importance: it looks at rows again, which no account of privacy covers; leave it out")
    widths = tuple((name, columns[name].shape[0] if columns[name].shape else 0) for name in features)
    return Chosen(widths, target, job.weight, _key(job, manifest), tells_classes, left_out)


def fault_of(column: Column) -> str:
    """Why this column cannot be a feature; empty if it can."""
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


def _key(job: Job, manifest: Manifest) -> str | None:
    """The column by whose hash rows are held out, if they are."""
    if job.validation is None or job.validation.by == "features":
        return None
    if job.validation.by == "key" and manifest.key is None:
        raise BadTraining(f"validation.by: {manifest.name} has no key; hold out rows by `features`")
    return manifest.key


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
            fault = fault_of(columns[name])
            if fault:
                raise BadTraining(f"features: {name} is {fault}")
        return tuple(job.features), {}
    rest = {name: column for name, column in columns.items() if name not in (target, job.weight, manifest.key)}
    left_out = {name: fault for name, column in rest.items() if (fault := fault_of(column))}
    features = tuple(name for name in rest if name not in left_out)
    if not features:
        why = _some(f"{name} is {fault}" for name, fault in left_out.items())
        raise BadTraining(f"features: {manifest.name} has no column of numbers to train on{f': {why}' if why else ''}")
    return features, left_out


def _check_target(column: Column, *, tells_classes: bool) -> None:
    kind, size = _kind(column)
    if column.shape:
        raise BadTraining(f"target: {column.name} has {tuple(column.shape)} values a row; expected one")
    if kind == "U" and not tells_classes:
        raise BadTraining(f"target: {column.name} is text; to tell classes, train logistic, softmax, svm or an mlp")
    if kind != "U" and (kind not in "iufb" or size > BYTES_MAX):
        raise BadTraining(f"target: {column.name} is of dtype {column.dtype}; expected numbers, booleans or text")


def _tells_classes(job: Job, column: Column) -> bool:
    """A net tells classes, unless told otherwise, where the target is text, whole numbers or booleans."""
    if job.model != "mlp":
        return job.model in ("logistic", "softmax", "svm")
    return _kind(column)[0] != "f" if job.tells_classes is None else job.tells_classes


def _kind(column: Column) -> tuple[str, int]:
    """The kind of its values as numpy says it, and of numbers their bytes."""
    plain = column.dtype.lstrip("<>|=")
    return plain[:1] or "?", int(plain[1:]) if plain[1:].isdigit() else 0


def _expect_column(option: str, name: str, manifest: Manifest, columns: Iterable[str]) -> None:
    known = list(columns)
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {_some(known)}"
        raise BadTraining(f"{option}: {manifest.name}@{manifest.version} has no column {name!r}; {hint}")


def _some(names: Iterable[str]) -> str:
    known = list(names)
    rest = len(known) - SHOWN_MAX
    return ", ".join(known[:SHOWN_MAX]) + (f" and {rest} more" if rest > 0 else "")
