"""What changed between two looks at the cluster, as sentences for people. Pure: looks in, changes out.

A change that came and went between two looks is not told: this is what the tree shows, not a log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

from msgspec import Struct

from zkd.jobs import DONE
from zkd.overview.seen import DatasetSeen, JobSeen, ModelSeen, NodeSeen, Overview

Grade = Literal["info", "warning", "error"]
T = TypeVar("T")


class Change(Struct, frozen=True):
    """Something is different: `event` as in the logs, `of` the node, dataset, job or model."""

    at_ms: int
    event: str
    of: str
    text: str
    grade: Grade = "info"


def changes(before: Overview, after: Overview) -> list[Change]:
    """In the order in which people ask: who leads, who is here, what failed, then data, jobs and models.

    Of what one of the looks does not show in whole nothing is told: who is not in it need not be gone.
    """
    found = [*_of_leader(before, after), *_of_tasks(before, after)]
    for what, told in (("nodes", _of_nodes), ("datasets", _of_datasets), ("jobs", _of_jobs), ("models", _of_models)):
        if not before.omitted.get(what) and not after.omitted.get(what):
            found += told(getattr(before, what), getattr(after, what))
    return [Change(after.at_ms, *each) for each in found]


Told = tuple[str, str, str, Grade]


def _of_leader(before: Overview, after: Overview) -> Iterator[Told]:
    if after.leader is None and before.leader is not None:
        yield "leader.lost", before.leader, "nobody leads", "warning"
    elif after.leader is not None and (after.leader, after.epoch) != (before.leader, before.epoch):
        yield "leader.changed", after.leader, f"leads, epoch {after.epoch}", "info"


def _of_nodes(before: Sequence[NodeSeen], after: Sequence[NodeSeen]) -> Iterator[Told]:
    for was, now in _pairs(before, after, "node"):
        name = (now or was).node  # type: ignore[union-attr]  # one of them is there
        was_here, is_here = was is not None and was.state != "away", now is not None and now.state != "away"
        if is_here and now is not None and not was_here:
            yield "node.joined", name, f"{now.slots} slots, zkd {now.version}", "info"
        elif was_here and not is_here:
            yield "node.left", name, "is not here any more", "warning"
        elif was is not None and now is not None and is_here:
            if was.incarnation != now.incarnation:
                yield "node.rejoined", name, "in a new session", "info"
            if was.state != now.state:
                yield "node.state_changed", name, f"{was.state} -> {now.state}", "info"


def _of_tasks(before: Overview, after: Overview) -> Iterator[Told]:
    more = after.counts.dead - before.counts.dead
    if more > 0:
        yield "tasks.died", "dead", f"{more} more, {after.counts.dead} in all: zkd get dead", "error"


def _of_datasets(before: Sequence[DatasetSeen], after: Sequence[DatasetSeen]) -> Iterator[Told]:
    for was, now in _pairs(before, after, "name"):
        if now is None:
            assert was is not None
            yield "dataset.removed", was.name, f"version {was.version} was the last", "info"
            continue
        if was is None or was.version != now.version:
            yield "dataset.published", now.name, f"version {now.version}, {now.rows} rows", "info"
        if now.health != ("full" if was is None else was.health):
            parts = now.full + now.degraded + now.lost
            words = {
                "full": "every part has all its copies",
                "degraded": f"{now.degraded} of {parts} parts have fewer copies than {now.replicas}",
                "lost": f"{now.lost} of {parts} parts have no copy on any node that is here",
            }[now.health]
            grade: Grade = "info" if now.health == "full" else "warning" if now.health == "degraded" else "error"
            yield f"dataset.{'mended' if now.health == 'full' else now.health}", now.name, words, grade


def _of_jobs(before: Sequence[JobSeen], after: Sequence[JobSeen]) -> Iterator[Told]:
    for was, now in _pairs(before, after, "id"):
        if now is None:
            assert was is not None
            if was.phase not in DONE:
                yield "job.cancelled", was.id, f"in round {was.round}", "info"
            continue
        if was is None:
            yield "job.dropped", now.id, f"{now.model} on {now.dataset}", "info"
        if now.phase != ("waiting" if was is None else was.phase):
            why = now.error if now.phase == "failed" else now.reason if now.phase == "done" else None
            yield f"job.{now.phase}", now.id, why or f"round {now.round}", "error" if now.phase == "failed" else "info"
        if was is not None and None not in (was.coordinator, now.coordinator) and was.coordinator != now.coordinator:
            yield "job.moved", now.id, f"{was.coordinator} -> {now.coordinator}, round {now.round}", "warning"


def _of_models(before: Sequence[ModelSeen], after: Sequence[ModelSeen]) -> Iterator[Told]:
    for was, now in _pairs(before, after, "name"):
        if now is None:
            assert was is not None
            yield "model.removed", was.name, f"version {was.latest} was the last", "info"
            continue
        if was is None or was.latest < now.latest:
            yield "model.registered", now.name, f"version {now.latest}", "info"
        for alias, at in now.aliases.items():
            old = None if was is None else was.aliases.get(alias)
            if old is None or old.version != at.version:
                moved = f"{alias}: version {at.version}" if old is None else f"{alias}: {old.version} -> {at.version}"
                yield "model.moved", now.name, moved, "info"
            if at.canary is not None and (old is None or (old.canary, old.percent) != (at.canary, at.percent)):
                kind = "shadow" if at.shadow else "canary"
                yield "model.canary_set", now.name, f"{alias}: {kind} {at.canary} at {at.percent:g} %", "info"
            elif old is not None and old.canary is not None and at.canary is None and old.version == at.version:
                yield "model.canary_ended", now.name, f"{alias}: canary {old.canary} was taken back", "warning"
        for alias in set() if was is None else was.aliases.keys() - now.aliases.keys():
            yield "model.alias_removed", now.name, alias, "info"


def _pairs(before: Sequence[T], after: Sequence[T], key: str) -> Iterator[tuple[T | None, T | None]]:
    """The same thing in both looks; None where it is in one of them only."""
    old: dict[Any, T] = {getattr(each, key): each for each in before}
    new: dict[Any, T] = {getattr(each, key): each for each in after}
    for name in sorted(old.keys() | new.keys()):
        yield old.get(name), new.get(name)
