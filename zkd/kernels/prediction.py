"""Kernels on trained models: what `client.predict` and `client.evaluate` run on each part of a dataset.

A model comes as the bytes of its file in an array, with the digest of them: a worker that has met the digest reads it
no more. Its files are `zkd.models.trained`; nothing else is ever loaded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from zkd.errors import BadRecord, BadTraining
from zkd.kernels.current import NotInTask, current_task
from zkd.kernels.declaration import kernel
from zkd.kernels.rows import Rows
from zkd.models import evaluation, outputs
from zkd.models.trained import Trained

KEPT = 4  # models that a worker remembers,
KEPT_BYTES = 64 * 2**20  # as long as their files are no larger than this together; always the last one

_known: OrderedDict[str, tuple[Trained, int]] = OrderedDict()


@kernel
def predict_part(
    *columns: Any,
    model: npt.NDArray[np.uint8],
    digest: str,
    wanted: list[str],
    missing: Literal["refuse", "propagate"] = "refuse",
    key: str | None = None,
    prefix: str = "",
) -> Any:
    """What a model says of the rows of a part, kept where it was computed: columns as in `zkd.models.outputs`.

    `columns` are those of its features in their order, or one object of columns by name; then that of the `key`, which
    is kept, too. `model` are the bytes of its file, `digest` their blake3. The value says which segment it became.
    Rejected for rows without a score, unless `missing` is "propagate".
    """
    trained = _model(model, digest)
    given, keys = _given(trained, columns, key)
    try:
        said = outputs.outputs_of(trained, given, wanted, missing=missing, numbers=_numbers())
    except outputs.MissingFeatures as error:
        raise BadRecord("$.rows", str(error)) from None
    except BadTraining as error:
        raise BadRecord("$.columns", str(error)) from None
    kept = {} if key is None else {key: keys}
    return Rows(kept | {f"{prefix}{name}": array for name, array in said.items()})


@kernel
def evaluate_part(*columns: Any, model: npt.NDArray[np.uint8], digest: str) -> Any:
    """How good a model is on the rows of a part, as sums to be given to `combine_evaluations`.

    `columns` are as for `predict_part`, the last one is the target.
    """
    trained = _model(model, digest)
    given, target = _given(trained, columns, trained.target)
    try:
        return evaluation.evaluated(trained, given, target)
    except BadTraining as error:
        raise BadRecord("$.columns", str(error)) from None


@kernel
def combine_evaluations(parts: list[dict[str, Any]]) -> Any:
    """How good a model is on all rows, from `evaluate_part` of each part. The result can be combined again."""
    return evaluation.combined(parts)


@kernel
def predict(
    model: str,
    rows: Any,
    want: list[Literal["prediction", "probabilities", "score", "attributions"]] | None = None,
    missing: Literal["refuse", "propagate"] = "refuse",
    deadline_ms: float | None = None,
    key: str | int | None = None,
) -> Any:
    """What a registered model says of some rows: `NAME`, `NAME@3` or `NAME@alias`.

    `rows` are columns by feature, or rows, each a list of all features in their order or an object by feature. The node
    answers such a task as it does requests over HTTP, in processes where models stay open; a worker cannot.
    """
    raise NotInTask(f"{model}: a node's model server answers this, not a worker")


def _given(trained: Trained, columns: Sequence[Any], last: str | None) -> tuple[Mapping[str, Any], Any]:
    """The features by name, and the column that comes last."""
    if len(columns) == 1 and isinstance(columns[0], dict):
        return columns[0], columns[0].get(last)
    names = [name for name, _ in trained.features]
    expected = len(names) + (last is not None)
    if len(columns) != expected:
        raise BadRecord("$.columns", f"expected {expected} columns, got {len(columns)}")
    return dict(zip(names, columns, strict=False)), columns[-1]


def _numbers() -> Any:
    try:
        numbers = current_task().numbers
    except NotInTask:
        numbers = None
    return None if numbers is None else numbers()


def _model(data: npt.NDArray[np.uint8], digest: str) -> Trained:
    known = _known.get(digest)
    if known is not None:
        _known.move_to_end(digest)
        return known[0]
    octets = np.ascontiguousarray(data).data
    found = blake3(octets).hexdigest()
    if found != digest:
        raise BadRecord("$.kwargs.digest", f"expected the blake3 of the model, {found}, got {digest[:80]!r}")
    try:
        trained = Trained.read(octets)
    except BadRecord as error:
        raise BadRecord("$.kwargs.model", str(error)) from None
    _known[digest] = trained, len(octets)
    while len(_known) > 1 and (len(_known) > KEPT or sum(size for _, size in _known.values()) > KEPT_BYTES):
        _known.popitem(last=False)
    return trained
