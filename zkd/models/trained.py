"""A trained model as a value and as a file: all that predicting, explaining and showing it takes.

    trained = Trained.read(data)                   raises BadRecord
    trained.predict({"age": [31], "hours": [40]})  labels, or numbers
    trained.table()                                a coefficient a line
    trained.write()                                the same bytes again

The file is a safetensors container: parameters as ``layers.0``..., what belongs to them as further arrays, and the rest
as JSON text. It has no time and no place in it: the same job on the same data gives the same bytes, whoever trained it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np

from zkd.arrays.tensors import Bytes, pack, unpack
from zkd.errors import BadRecord, BadTraining
from zkd.jobs import Job, Round, Summary
from zkd.models import story
from zkd.models.explain import Coefficients, Explanation
from zkd.models.importance import Importance
from zkd.models.model import Matrix, Model, Vector
from zkd.models.predict import Predictions
from zkd.models.predict import attributions as attributions_of
from zkd.models.predict import predict as predictions_of
from zkd.models.predict import scores as scores_of
from zkd.models.rows import Array, Scaler
from zkd.models.spread import Suspicion
from zkd.models.story import Stage
from zkd.models.survey import Label

FORMAT = "zkd-model-1"

Given: TypeAlias = Mapping[str, Any] | Sequence[Any] | Array  # columns by name, or rows x features


class Coefficient(NamedTuple):
    """A line of the table. `of` is the class whose score it is about, None for numbers; what is None is not known.

    `raw` is for features as they are stored, `standard` for standardised ones; `ratio` is of odds or rates, for one
    more of the feature, with the limits of the job's `confidence`.
    """

    of: Label | None
    name: str
    raw: float
    error: float | None
    standard: float
    standard_error: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None


class _File(msgspec.Struct, frozen=True):
    model: Model
    classes: list[bool | int | float | str]
    features: list[tuple[str, int]]
    target: str
    dataset: str
    terms: Job
    summary: Summary
    rows: int
    held_rows: int
    weight: float
    constant: list[int]
    suspicions: list[Suspicion]
    confidence: float
    deviation: float | None
    outputs: int  # that coefficients are given of
    loss_of_importance: float | None
    reasons: list[str]  # of stages


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """`features` are columns and how many numbers a row they have (0 for one that is no vector), in order.

    `mean` is the mean training row. `rounds` are all rounds over all rows; `stages` the ends of a path's penalties.
    `constant` and `suspicions` mean single features, by their place in `names`.
    """

    model: Model
    w: Vector
    scaler: Scaler | None
    mean: Vector
    classes: tuple[Label, ...]
    features: tuple[tuple[str, int], ...]
    target: str
    dataset: str  # NAME@V
    terms: Job
    summary: Summary
    rows: int  # trained on
    held_rows: int
    weight: float
    rounds: tuple[Round, ...]
    stages: tuple[Stage, ...]
    constant: tuple[int, ...] = ()
    suspicions: tuple[Suspicion, ...] = ()
    explanation: Explanation | None = None
    importance: Importance | None = None

    # --- what it says of rows -------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """One a feature: ``pixels[0]``, ``pixels[1]``... for a column that has several a row."""
        return tuple(
            name if width == 0 else f"{name}[{index}]" for name, width in self.features for index in range(width or 1)
        )

    def predict(self, rows: Given) -> Array:
        """(n,): the most likely label of each row, or the number that is expected.

        A row with NaN among its features has no label: raises `BadTraining`. The number of such a row is NaN.
        """
        said = self.predictions(rows)
        if said.classes is not None:
            without = np.flatnonzero(np.isnan(said.scores).any(axis=1)).tolist()
            if without:
                raise BadTraining(f"features: NaN or infinite in rows {_some(list(map(str, without)))}; no label fits")
            return np.array(self.classes)[said.classes]
        assert said.means is not None
        return said.means

    def probabilities(self, rows: Given) -> Matrix:
        """(n, classes). Raises `BadTraining` for a model that tells none."""
        said = self.predictions(rows)
        if said.probabilities is None:
            raise BadTraining(f"probabilities: {self.model.kind} of {self.target} gives none; use predict or scores")
        return said.probabilities

    def scores(self, rows: Given) -> Matrix:
        """(n, outputs), before any link."""
        return scores_of(self.model, self.w, self.columns_of(rows), self.scaler)

    def predictions(self, rows: Given) -> Predictions:
        return predictions_of(self.model, self.w, self.columns_of(rows), self.scaler)

    def attributions(self, rows: Given, *, output: int = 0) -> tuple[Matrix, float]:
        """How much each feature moved each row's score from that of the mean row, (n, features), and that score."""
        baseline = self.mean if self.scaler is None else None
        return attributions_of(self.model, self.w, self.columns_of(rows), self.scaler, output=output, baseline=baseline)

    def columns_of(self, rows: Given) -> list[Array]:
        """The feature columns in order. Raises `BadTraining` for what does not fit."""
        if isinstance(rows, Mapping) or hasattr(rows, "columns"):  # a DataFrame's stand in any order
            table: Any = rows
            there = set(rows if isinstance(rows, Mapping) else rows.columns)
            missing = [name for name, _ in self.features if name not in there]
            if missing:
                raise BadTraining(f"features: expected the columns {_some(missing)}, too")
            columns = [np.asarray(table[name]) for name, _ in self.features]
            for column, (name, width) in zip(columns, self.features, strict=True):
                shape = (len(columns[0]) if columns[0].ndim else 0, *((width,) if width else ()))
                if column.shape != shape:
                    raise BadTraining(f"features: expected {name} of shape {shape}, got {column.shape}")
            return columns
        whole = np.asarray(rows)
        if whole.ndim != 2 or whole.shape[1] != self.model.features:
            raise BadTraining(
                f"features: expected columns by name, or rows x {self.model.features}, got shape {whole.shape}"
            )
        return [whole]

    # --- what it is -----------------------------------------------------------------------------------

    def table(self) -> list[Coefficient]:
        """The coefficients of each output, largest standardised ones first, the intercept last; empty for a net."""
        if self.explanation is None:
            return []
        lines = []
        for output, own in enumerate(self.explanation.outputs):
            of = None if not self.classes else self.classes[output if self.model.outputs > 1 else 1]
            order = np.argsort(-np.abs(own.standard[:-1]), kind="stable").tolist()
            places = [*order, *([len(order)] if self.model.intercept else [])]
            lines += [_line(of, [*self.names, "(intercept)"], own, place) for place in places]
        return lines

    # --- as a file ------------------------------------------------------------------------------------

    def write(self) -> bytes:
        arrays: dict[str, Array] = {f"layers.{place}": layer for place, layer in enumerate(self.model.layers(self.w))}
        arrays["mean"] = self.mean
        if self.scaler is not None:
            arrays |= {"scaler.mean": self.scaler.mean, "scaler.scale": self.scaler.scale}
        arrays["rounds"] = rounds_out(self.rounds)
        arrays["stages"] = np.array([_stage_numbers(stage) for stage in self.stages]).reshape(-1, STAGE_NUMBERS)
        arrays["stages.w"] = np.array([stage.w for stage in self.stages]).reshape(-1, self.model.size)
        outputs = () if self.explanation is None else self.explanation.outputs
        for place, output in enumerate(outputs):
            for name in COLUMNS:
                if getattr(output, name) is not None:
                    arrays[f"coefficients.{place}.{name}"] = getattr(output, name)
        if self.importance is not None:
            arrays["importance"] = self.importance.rise
        plain = _File(
            self.model,
            list(self.classes),
            list(self.features),
            self.target,
            self.dataset,
            self.terms,
            self.summary,
            self.rows,
            self.held_rows,
            self.weight,
            list(self.constant),
            list(self.suspicions),
            outputs[0].confidence if outputs else self.terms.confidence,
            None if self.explanation is None else self.explanation.deviation,
            len(outputs),
            None if self.importance is None else self.importance.loss,
            [stage.reason for stage in self.stages],
        )
        return pack(arrays, {"format": FORMAT, "zkd": msgspec.json.encode(plain).decode()})

    @classmethod
    def read(cls, data: Bytes) -> Trained:
        """What `write` gave. Raises `BadRecord` for any other bytes."""
        arrays, texts = unpack(data)
        if texts.get("format") != FORMAT:
            raise BadRecord("$.format", f"expected {FORMAT}, got {texts.get('format', 'nothing')[:40]!r}")
        try:
            plain = msgspec.json.decode(texts.get("zkd", ""), type=_File)
            return _trained(plain, arrays, data)
        except (msgspec.DecodeError, BadTraining, RecursionError, KeyError) as error:
            raise BadRecord("$.zkd", f"the model is damaged, or of another zkd: {str(error)[:500]}") from None


COLUMNS = tuple(field.name for field in fields(Coefficients) if field.name != "confidence")
STAGE_NUMBERS = 8
ROUND_NUMBERS = 7


def told(number: float) -> float | None:
    """For people: None where it is not known, or not finite."""
    return float(number) if np.isfinite(number) else None


def rounds_out(rounds: Sequence[Round | story.Round]) -> Matrix:
    """Rounds as numbers, (n, 7)."""
    rows = [
        [each.number, each.stage, each.total, each.slope, each.loss, each.held_loss, each.is_accepted]
        for each in rounds
    ]
    return np.array(rows, np.float64).reshape(-1, ROUND_NUMBERS)


def _trained(plain: _File, arrays: Mapping[str, Array], data: Bytes) -> Trained:
    model = plain.model
    width = model.features
    if sum(max(many, 1) for _, many in plain.features) != width or min(many for _, many in plain.features) < 0:
        raise BadRecord("$.features", f"expected columns of {width} numbers a row")
    if model.has_classes and len(plain.classes) != max(model.outputs, 2):
        raise BadRecord("$.classes", f"expected {max(model.outputs, 2)}, got {len(plain.classes)}")
    if not all(0 <= place < width for place in [*plain.constant, *(each.feature for each in plain.suspicions)]):
        raise BadRecord("$.constant", f"expected places of {width} features")
    layers = [_floats(arrays, f"layers.{place}", shape) for place, shape in enumerate(model.shapes)]
    scaler = None
    if "scaler.scale" in arrays:
        scaler = Scaler(_floats(arrays, "scaler.mean", (width,)), _floats(arrays, "scaler.scale", (width,)))
    if plain.outputs not in (0, model.outputs):
        raise BadRecord("$.outputs", f"expected coefficients of {model.outputs} outputs, got {plain.outputs}")
    outputs = []
    for place in range(plain.outputs):
        known = {
            name: _floats(arrays, f"coefficients.{place}.{name}", (width + 1,))
            for name in COLUMNS
            if name in ("raw", "standard") or f"coefficients.{place}.{name}" in arrays
        }
        outputs.append(Coefficients(**(dict.fromkeys(COLUMNS) | known), confidence=plain.confidence))  # type: ignore[arg-type]
    importance = None
    if plain.loss_of_importance is not None:
        importance = Importance(_floats(arrays, "importance", (width,)), plain.loss_of_importance)
    return Trained(
        model,
        _one_after_another(layers, data),
        scaler,
        _floats(arrays, "mean", (width,)),
        tuple(plain.classes),
        tuple(plain.features),
        plain.target,
        plain.dataset,
        plain.terms,
        plain.summary,
        plain.rows,
        plain.held_rows,
        plain.weight,
        _rounds(_floats(arrays, "rounds", (None, ROUND_NUMBERS))),
        _stages(plain, arrays),
        tuple(plain.constant),
        tuple(plain.suspicions),
        Explanation(tuple(outputs), plain.deviation) if outputs else None,
        importance,
    )


def _one_after_another(layers: Sequence[Array], data: Bytes) -> Vector:
    """All parameters as one vector: where they lie in `data`, if they do so one after another, else copied."""
    size, whole = sum(layer.size for layer in layers), np.frombuffer(data, np.uint8)
    at = start = layers[0].ctypes.data - whole.ctypes.data
    for layer in layers:
        if layer.ctypes.data - whole.ctypes.data != at:
            return np.concatenate([layer.ravel() for layer in layers])
        at += layer.nbytes
    if start < 0 or at > len(whole):
        return np.concatenate([layer.ravel() for layer in layers])
    return np.frombuffer(data, np.float64, size, start)


def _rounds(rows: Matrix) -> tuple[Round, ...]:
    if not np.all(np.isfinite(rows[:, [0, 1, 6]])):
        raise BadRecord("$.rounds", "expected numbered rounds")
    return tuple(
        Round(int(row[0]), int(row[1]), told(row[2]), told(row[4]), told(row[5]), told(row[3]), bool(row[6]))
        for row in rows.tolist()
    )


def _stages(plain: _File, arrays: Mapping[str, Array]) -> tuple[Stage, ...]:
    count = len(plain.reasons)
    numbers = _floats(arrays, "stages", (count, STAGE_NUMBERS))
    weights = _floats(arrays, "stages.w", (count, plain.model.size))
    if not np.all(np.isfinite(numbers[:, 6:])):
        raise BadRecord("$.stages", "expected numbers of rounds")
    return tuple(
        Stage(row[0], w, row[1], row[2], row[3], row[4], told(row[5]), reason, int(row[6]), bool(row[7]))
        for row, w, reason in zip(numbers.tolist(), weights, plain.reasons, strict=True)
    )


def _stage_numbers(stage: Stage) -> list[float]:
    bound = np.nan if stage.bound is None else stage.bound
    return [
        stage.l2,
        stage.total,
        stage.slope,
        stage.loss,
        stage.held_loss,
        bound,
        stage.rounds,
        stage.is_restored,
    ]


def _floats(arrays: Mapping[str, Array], name: str, shape: tuple[int | None, ...]) -> Any:
    array = arrays.get(name)
    fits = array is not None and array.dtype == np.float64 and array.ndim == len(shape)
    if array is None or not fits or any(w not in (None, g) for w, g in zip(shape, array.shape, strict=True)):
        got = "none" if array is None else f"{array.dtype} {array.shape}"
        raise BadRecord(f"$.{name}", f"expected float64 {shape}, got {got}")
    return array


def _line(of: Label | None, names: Sequence[str], own: Coefficients, place: int) -> Coefficient:
    values = [
        None if column is None else told(column[place])
        for column in (own.raw_error, own.standard_error, own.ratio, own.ratio_low, own.ratio_high)
    ]
    return Coefficient(
        of,
        names[place],
        float(own.raw[place]),
        values[0],
        float(own.standard[place]),
        *values[1:],
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
