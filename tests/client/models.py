"""Files of models as jobs make them, of real data, without a cluster."""

from __future__ import annotations

from functools import cache

from tests.models.courses import Counters, Table, job, real
from zkd.jobs import Job
from zkd.models.course import begin


@cache
def model_of(kind: str, data: str, optimizer: str = "newton", *, importance: bool = False) -> bytes:
    kept = real(data)
    terms = {"validation": {"share": 0.2}, "optimizer": optimizer, "importance": importance}
    if kind == "mlp":
        terms |= {"hidden": [4], "epochs": 3}
    return trained(job(kind, **terms), kept)


def trained(asked: Job, kept: Table) -> bytes:
    course = begin(asked, kept.manifest)
    counters = Counters(kept)
    while not course.is_over:
        course = course.told(counters.answers(course))
    return course.trained().write()
