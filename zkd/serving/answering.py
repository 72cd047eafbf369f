"""What a serving process does with a batch: numbers out of requests, one product for all their rows, answers.

    requests of one model -> rows of each, or what is wrong with it -> scores of all rows -> an answer each

A request that is wrong costs the others nothing, and a row's answer has the same bits whatever was answered with it:
see `zkd.models.alone`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
from msgspec import Raw, Struct

from zkd import codec
from zkd.arrays import from_json
from zkd.arrays.tensors import pack, unpack
from zkd.errors import BadRecord, ZkdError
from zkd.models import alone
from zkd.models.model import Matrix, Model, Vector
from zkd.models.outputs import without_score
from zkd.models.predict import Predictions
from zkd.models.rows import Array, Scaler
from zkd.models.survey import Label
from zkd.models.trained import Trained

NUMBERS_MAX: Final = 1 << 22  # in an answer, and of features in a request
EXPLAINED_MAX: Final = 1000  # rows of a net whose attributions are asked for at a time
NAMED_MAX: Final = 10
ARRAY_NAMES: Final = {"dtype", "shape", "data"}  # of an array in JSON
BLOB_NAMES: Final = {"blob", "size", "format"}  # and of one in a file
SAMPLE_MAX: Final = 8  # rows whose predictions the daemon hears of

Cell: TypeAlias = float | bool | None


class Wrong(ZkdError):
    """A request that cannot be answered: `kind` as in `NotPredicted`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Ask(Struct, frozen=True):
    """One request of a batch. `about` goes into its answer as it is."""

    form: str
    want: list[str] | None
    missing: str
    arrived: float  # by the monotonic clock that all processes of a machine share
    about: dict[str, Any]
    files: dict[str, str] = {}  # sha256 of an array that it refers to -> where it lies


class Outcome(Struct, frozen=True):
    """What came of a request: rows and what was predicted for the first of them (`zkd.core.canary.Predicted`), or what
    is wrong with it. Its answer is another matter."""

    rows: int = 0
    seconds: float = 0.0  # of computing, with those that were answered together
    labels: Sequence[Label] = ()
    numbers: Sequence[float] = ()
    kind: str = ""
    why: str = ""


class Served(Struct, frozen=True):
    """As much of a model as answering takes."""

    model: Model
    w: Vector
    scaler: Scaler | None
    mean: Vector
    classes: tuple[Label, ...]
    features: tuple[tuple[str, int], ...]

    @property
    def gives(self) -> list[str]:
        plain = ["prediction", "score", "attributions"]
        has_none = self.model.kind == "svm" or not self.model.has_classes
        return plain if has_none else ["prediction", "probabilities", "score", "attributions"]


def served(trained: Trained) -> Served:
    return Served(trained.model, trained.w, trained.scaler, trained.mean, trained.classes, trained.features)


def answers(
    model: Served, asks: Sequence[Ask], bodies: Sequence[bytes | memoryview], began: float, clock: Any
) -> tuple[list[Outcome], list[bytes]]:
    """What came of each of these requests, and the answer of each, empty where it has none."""
    outcomes: list[Outcome | None] = [None] * len(asks)
    rows: dict[int, Matrix] = {}
    for place, (ask, body) in enumerate(zip(asks, bodies, strict=True)):
        try:
            rows[place] = _rows(model, ask, body)
        except Wrong as error:
            outcomes[place] = _wrong(error)
    said: dict[int, Predictions] = {}
    if rows:
        whole = next(iter(rows.values())) if len(rows) == 1 else np.concatenate(list(rows.values()))
        with np.errstate(invalid="ignore", over="ignore"):  # of rows without a score, which are found below
            all_said = alone.predictions(model.model, model.w, whole, model.scaler)
        start = 0
        for place, own in rows.items():
            said[place] = _part(all_said, slice(start, start + len(own)))
            start += len(own)
    texts = [b""] * len(asks)
    for place, own in rows.items():
        try:
            columns = _columns(model, asks[place], own, said[place])
            about = asks[place].about | {
                "rows": len(own),
                "ms": {
                    "queue": round((began - asks[place].arrived) * 1e3, 3),
                    "compute": round((clock() - began) * 1e3, 3),
                },
            }
            texts[place] = (_json if asks[place].form == "json" else _tensors)(model, columns, about)
            outcomes[place] = Outcome(len(own), clock() - began, *_sample(model, said[place]))
        except Wrong as error:
            outcomes[place] = _wrong(error)
    return [outcome for outcome in outcomes if outcome is not None], texts


def _wrong(error: Wrong) -> Outcome:
    return Outcome(kind=error.kind, why=str(error)[:2000])


def _part(said: Predictions, which: slice) -> Predictions:
    return Predictions(*(None if each is None else each[which] for each in said))  # type: ignore[arg-type]


# --- In -------------------------------------------------------------------------------------------------------


def _rows(model: Served, ask: Ask, body: bytes | memoryview) -> Matrix:
    """The rows of a request, (n, features). Raises `Wrong`."""
    unknown = [name for name in ask.want or () if name not in model.gives]
    if unknown:
        raise Wrong(
            "bad_request", f"want: a model of kind {model.model.kind} gives {', '.join(model.gives)}; got {unknown[0]}"
        )
    try:
        rows = _of_json(model, body, ask.files) if ask.form == "json" else _of_tensors(model, body)
    except BadRecord as error:
        raise Wrong("bad_request", str(error)) from None
    except MemoryError:
        raise Wrong("too_large", "there is no memory for so many rows") from None
    want = ask.want or ()
    wide = model.model.outputs + ("attributions" in want) * model.model.features
    if len(rows) * max(wide, len(model.classes), 1) > NUMBERS_MAX:
        most = NUMBERS_MAX // max(wide, len(model.classes), 1)
        raise Wrong("too_large", f"expected at most {most} rows for this model and what is wanted, got {len(rows)}")
    if "attributions" in want and model.model.kind == "mlp" and len(rows) > EXPLAINED_MAX:
        raise Wrong("too_large", f"attributions of a net: expected at most {EXPLAINED_MAX} rows, got {len(rows)}")
    return rows


def _of_json(model: Served, body: bytes | memoryview, files: Mapping[str, str]) -> Matrix:
    text = bytes(body).lstrip()
    if text[:1] == b"{":
        given = codec.decode(text, dict[str, Raw])
        if given.keys() == ARRAY_NAMES or given.keys() >= BLOB_NAMES:
            return _whole(model, _array(text, "$.rows", files))
        return _side_by_side(model, _columns_of(model, given, files))
    if text[:1] != b"[":
        raise BadRecord("$.rows", "expected columns by feature, or a list of rows")
    if text[1:].lstrip()[:1] == b"{":
        return _side_by_side(
            model, _columns_of_rows(model, _decoded(text, list[dict[str, Cell | list[Cell]]], "$.rows"))
        )
    rows = _decoded(text, list[list[Cell]], "$.rows")
    wide = model.model.features
    if set(map(len, rows)) - {wide}:
        number, row = next((number, row) for number, row in enumerate(rows) if len(row) != wide)
        raise BadRecord(f"$.rows[{number}]", f"expected {wide} numbers ({_features(model)}), got {len(row)}")
    return np.array(rows, np.float64).reshape(len(rows), wide)


def _whole(model: Served, array: Array) -> Matrix:
    if array.ndim != 2 or array.shape[1] != model.model.features:
        raise BadRecord("$.rows", f"expected rows x {model.model.features}, got shape {list(array.shape)}")
    return array.astype(np.float64)


def _array(text: bytes, where: str, files: Mapping[str, str]) -> Array:
    """An array as it stands in JSON, see `zkd.arrays`."""
    array = from_json(text, files, where)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise BadRecord(where, "expected an array of numbers, or lists")
    return array


def _columns_of(model: Served, given: Mapping[str, Raw], files: Mapping[str, str]) -> list[Array]:
    _expect_names(model, given, "$.rows")
    columns: list[Array] = []
    many: int | None = None
    for name, width in model.features:
        where = f"$.rows.{name}"
        if bytes(given[name]).lstrip()[:1] == b"{":
            array = _array(bytes(given[name]), where, files)
            if array.ndim != 1 + bool(width) or array.shape[1:] != (width,) * bool(width):
                raise BadRecord(
                    where, f"expected {f'rows x {width}' if width else 'rows'}, got shape {list(array.shape)}"
                )
            _expect_rows(model, len(array), many, where)
            many = len(array)
            columns.append(array.reshape(many, width or 1))
            continue
        kind: Any = list[list[Cell]] if width else list[Cell]
        values = _decoded(given[name], kind, where)
        for number, value in enumerate(values if width else ()):
            if len(value) != width:
                raise BadRecord(f"{where}[{number}]", f"expected {width} numbers, got {len(value)}")
        _expect_rows(model, len(values), many, where)
        many = len(values)
        columns.append(np.array(values, np.float64).reshape(many, width or 1))
    return columns


def _columns_of_rows(model: Served, rows: Sequence[Mapping[str, Cell | list[Cell]]]) -> list[Array]:
    for number, row in enumerate(rows):
        _expect_names(model, row, f"$.rows[{number}]")
        for name, width in model.features:
            value = row[name]
            if isinstance(value, list) != bool(width) or (isinstance(value, list) and len(value) != width):
                got = f"{len(value)} numbers" if isinstance(value, list) else "one number"
                raise BadRecord(
                    f"$.rows[{number}].{name}", f"expected {f'{width} numbers' if width else 'one number'}, got {got}"
                )
    return [
        np.array([row[name] for row in rows], np.float64).reshape(len(rows), width or 1)
        for name, width in model.features
    ]


def _of_tensors(model: Served, body: bytes | memoryview) -> Matrix:
    arrays, _ = unpack(body)
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise BadRecord(f"$.{name[:200]}", f"expected numbers, got {array.dtype}")
    whole = arrays.get("rows") if len(arrays) == 1 and "rows" not in dict(model.features) else None
    if whole is not None:
        return _whole(model, whole)
    _expect_names(model, arrays, "$")
    many = len(arrays[model.features[0][0]]) if arrays[model.features[0][0]].ndim else 0
    for name, width in model.features:
        expected = (many, width) if width else (many,)
        if arrays[name].shape != expected:
            raise BadRecord(f"$.{name}", f"expected shape {list(expected)}, got {list(arrays[name].shape)}")
    return _side_by_side(model, [arrays[name].reshape(many, width or 1) for name, width in model.features])


def _expect_rows(model: Served, got: int, many: int | None, where: str) -> None:
    if many is not None and got != many:
        raise BadRecord(where, f"expected {many} rows as in {model.features[0][0]}, got {got}")


def _side_by_side(model: Served, columns: Sequence[Array]) -> Matrix:
    rows = np.empty((len(columns[0]), model.model.features))
    at = 0
    for column in columns:
        rows[:, at : at + column.shape[1]] = column
        at += column.shape[1]
    return rows


def _expect_names(model: Served, given: Mapping[str, Any], where: str) -> None:
    if len(given) == len(model.features) and all(name in given for name, _ in model.features):
        return
    names = [name for name, _ in model.features]
    missing, extra = [name for name in names if name not in given], sorted(given.keys() - set(names))
    words = [f"lacks {_some(missing)}"] * bool(missing) + [f"has {_some(extra)}, too"] * bool(extra)
    raise BadRecord(where, f"expected the features {_some(names)}; it {' and '.join(words)}")


def _decoded(text: bytes | Raw, kind: Any, where: str) -> Any:
    """Raises `BadRecord`."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        words, _, path = str(error).rpartition(" - at `$")
        said = (words or str(error)).replace("`bool | float | null`", "a number, true, false or null")
        raise BadRecord(f"{where}{path.rstrip('`') if words else ''}", said[:1].lower() + said[1:]) from None


# --- Out ------------------------------------------------------------------------------------------------------


def _columns(model: Served, ask: Ask, rows: Matrix, said: Predictions) -> dict[str, Array]:
    """What is wanted of a request's rows. Raises `Wrong` for rows without a score."""
    unknown: Array = without_score(said)
    if ask.missing == "refuse" and unknown.any():
        raise Wrong("bad_request", _without(model, rows, unknown))
    want = ask.want or [name for name in ("prediction", "probabilities") if name in model.gives]
    columns: dict[str, Array] = {}
    for name in want:
        if name == "prediction":
            columns[name] = (
                np.where(unknown, -1, said.classes) if said.classes is not None else _blank(said.means, unknown)
            )
        elif name == "probabilities":
            columns[name] = _blank(said.probabilities, unknown)
        elif name == "score":
            columns[name] = _blank(said.scores[:, 0] if model.model.outputs == 1 else said.scores, unknown)
        else:
            of = [0] * len(rows) if model.model.outputs == 1 or said.classes is None else said.classes.tolist()
            with np.errstate(invalid="ignore", over="ignore"):
                told, base = alone.reasons(model.model, model.w, rows, model.scaler, model.mean, of)
            columns["attributions"], columns["base"] = _blank(told, unknown), base
    return columns


def _blank(values: Any, unknown: Array) -> Array:
    if unknown.any():
        values = values.copy()
        values[unknown] = np.nan
    return np.asarray(values)


def _without(model: Served, rows: Matrix, unknown: Array) -> str:
    which = np.flatnonzero(unknown).tolist()
    bad: Array = np.logical_not(np.isfinite(rows[which]).all(axis=0))
    names, at = [], 0
    for name, width in model.features:
        names += [name] * bool(bad[at : at + (width or 1)].any())
        at += width or 1
    of = f" in {_some(names)}" if names else ""
    many = f"{len(which)} row{'s' * (len(which) > 1)} with a missing or infinite number{of}"
    return f'rows: {many}: {_some(list(map(str, which)))}; expected finite numbers, or "missing": "propagate"'


def _json(model: Served, columns: Mapping[str, Array], about: Mapping[str, Any]) -> bytes:
    given: dict[str, Any] = {}
    for name, values in columns.items():
        plain = values.tolist()
        if name == "prediction" and model.classes:
            plain = [None if each < 0 else model.classes[each] for each in plain]
        given[name] = plain
    return msgspec.json.encode({**about, **given})  # NaN is null


def _tensors(model: Served, columns: Mapping[str, Array], about: Mapping[str, Any]) -> bytes:
    """`prediction` has class numbers where there are classes; -1 for a row without a score."""
    texts = {
        key: value if isinstance(value, str) else msgspec.json.encode(value).decode() for key, value in about.items()
    }
    if model.classes:
        texts["classes"] = msgspec.json.encode(list(model.classes)).decode()
    return pack(columns, texts)


def _sample(model: Served, said: Predictions) -> tuple[list[Label], list[float]]:
    """Labels of the first rows, and numbers that two versions can be compared by: of two classes the probability of the
    second, of more or without probabilities none, else what is expected."""
    first = Predictions(*(None if each is None else each[:SAMPLE_MAX] for each in said))  # type: ignore[arg-type]
    known = ~without_score(first)
    if first.classes is None:
        assert first.means is not None
        return [], first.means[np.isfinite(first.means)].tolist()
    labels = [model.classes[each] if model.classes else each for each in first.classes[known].tolist()]
    shares = first.probabilities
    return labels, shares[known, 1].tolist() if shares is not None and shares.shape[1] == 2 else []


def _features(model: Served) -> str:
    return _some([f"{name} x {width}" if width else name for name, width in model.features])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED_MAX]) + (f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else "")
