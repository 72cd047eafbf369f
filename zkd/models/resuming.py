"""A course as a checkpoint, and back: bytes from which another process goes on, at the round they were taken at.

Nothing is kept of a survey or of an explanation that was not finished: these are questions of one round each, and the
answers are the same again. A checkpoint is of one job on one version of a data set; another one is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import msgspec
import numpy as np
from blake3 import blake3

from zkd.arrays.tensors import Bytes, pack, unpack
from zkd.errors import BadRecord, BadTraining
from zkd.jobs import Job
from zkd.manifests import Manifest
from zkd.models import checkpoints, story
from zkd.models.course import Course, begin, ended, in_context
from zkd.models.model import TargetMean
from zkd.models.remarks import Straddled
from zkd.models.rows import Array, Scaler
from zkd.models.spread import Suspicion
from zkd.models.survey import Findings
from zkd.models.terms import model_of, plan_of, terms_of, width_of
from zkd.models.trained import ROUND_NUMBERS, rounds_out

VERSION: Final = 1
# What values of other kinds than they should be come to; whoever packed it had none.
FAULTS: Final = (
    msgspec.DecodeError,
    BadTraining,
    AssertionError,
    AttributeError,
    ArithmeticError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def packed(course: Course) -> bytes:
    """A checkpoint, for `resume` with the same job and manifest. Explaining is begun anew from it."""
    plain: dict[str, Any] = {"version": VERSION, "of": _fingerprint(course.job, course.manifest)}
    arrays: dict[str, Any] = {}
    if course.run is not None:
        assert course.found is not None
        assert course.scaler is not None
        found = course.found
        known = _Found(
            found.rows,
            found.training_rows,
            found.weight,
            list(found.classes),
            found.target,
            list(course.constant),
            list(course.suspicions),
            course.straddled,
        )
        plain["found"] = msgspec.to_builtins(known)
        plain["run"], of_run = checkpoints.pack(replace(course.run, history=()))
        arrays = {f"run.{name}": array for name, array in of_run.items()}
        arrays |= {"mean": found.mean, "least": found.least, "most": found.most, "scale": course.scaler.scale}
        arrays["history"] = rounds_out(course.run.history)
    arrays["described"] = np.frombuffer(msgspec.json.encode(plain), np.uint8)
    return pack(arrays)


class _Found(msgspec.Struct, frozen=True):
    rows: int
    training_rows: int
    weight: float
    classes: list[bool | int | float | str]
    target: TargetMean
    constant: list[int]
    suspicions: list[Suspicion]
    straddled: Straddled | None


def resume(job: Job, manifest: Manifest, checkpoint: Bytes) -> Course:
    """The course that was packed, at the round it was at. Raises `BadRecord` for a checkpoint of anything else."""
    course = begin(job, manifest)
    arrays, _ = unpack(checkpoint)
    try:
        described = arrays.pop("described")
        if described.dtype != np.uint8 or described.ndim != 1:
            raise BadRecord("$.described", "expected text")
        plain = msgspec.json.decode(described.tobytes(), type=dict[str, Any])
        if plain.get("version") != VERSION or plain.get("of") != _fingerprint(job, manifest):
            raise BadRecord("$", "the checkpoint is of another job or data set, or of another zkd")
        if "run" not in plain:
            return course
        with np.errstate(all="ignore"):
            course = _resumed(course, plain, arrays)
            packed(_tried(course))
        return course
    except FAULTS as error:
        raise BadRecord("$", f"the checkpoint is damaged: {str(error)[:500]}") from None


def _tried(course: Course) -> Course:
    """Asks and stops it, so that what does not fit is found now and not in the middle of a round."""
    assert course.run is not None
    _ = course.question, course.progress, course.summary if course.run.reason else None
    return course.stop("tried")


def _resumed(course: Course, plain: dict[str, Any], arrays: dict[str, Array]) -> Course:
    known = msgspec.convert(plain["found"], _Found)
    width = width_of(course.chosen)
    own = {name: arrays.pop(name).copy() for name in ("mean", "least", "most", "scale", "history")}
    if any(own[name].shape != (width,) or own[name].dtype != np.float64 for name in ("mean", "least", "most", "scale")):
        raise BadRecord("$", f"expected what is known of {width} features")
    found = Findings(
        known.rows,
        known.training_rows,
        known.weight,
        own["mean"],
        own["least"],
        own["most"],
        tuple(known.classes),
        known.target,
    )
    course = replace(
        course,
        found=found,
        scaler=Scaler(found.mean, own["scale"]),
        constant=tuple(known.constant),
        suspicions=tuple(known.suspicions),
        straddled=known.straddled,
    )
    plan = plan_of(course.job, model_of(course.job, found))
    of_run = {name.removeprefix("run."): array.copy() for name, array in arrays.items()}
    run = checkpoints.unpack(plain["run"], of_run, plan)
    run = replace(run, history=history_in(own["history"]))
    course = in_context(replace(course, step="rounds", run=run))
    return course if run.ask is not None else ended(course, run)


def history_in(rows: Array) -> tuple[story.Round, ...]:
    """What `rounds_out` gave. Raises ValueError."""
    if rows.dtype != np.float64 or rows.ndim != 2 or rows.shape[1] != ROUND_NUMBERS:
        raise ValueError(f"expected rounds of {ROUND_NUMBERS} numbers, got {rows.dtype} {rows.shape}")
    return tuple(
        story.Round(int(row[0]), int(row[1]), row[2], row[3], row[4], row[5], bool(row[6])) for row in rows.tolist()
    )


def _fingerprint(job: Job, manifest: Manifest) -> str:
    """All that the course of a job depends on."""
    said = msgspec.json.encode([terms_of(job), manifest.name, manifest.version, manifest.parts])
    return blake3(said).hexdigest()
