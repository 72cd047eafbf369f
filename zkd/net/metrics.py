"""What `/metrics` says: every metric with its type and its meaning, in Prometheus' text format.

A metric is described here before a node may tell it, and docs/operations.md has the same list; tests hold both to
each other and to what nodes really say.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

Sample = tuple[str, dict[str, str], float]  # name, labels, value
Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    kind: Kind
    help: str


METRICS: dict[str, Metric] = {
    # The node.
    "zkd_build_info": Metric("gauge", "Always 1; the version and the name of the node are labels."),
    "zkd_uptime_seconds": Metric("gauge", "Seconds since the daemon started."),
    "zkd_resident_memory_bytes": Metric("gauge", "Resident memory of the daemon, without its workers."),
    "zkd_zk_session_state": Metric("gauge", "1 for the state that the ZooKeeper session is in, 0 for the others."),
    "zkd_leader": Metric("gauge", "1 while this node leads."),
    "zkd_loop_lag_seconds": Metric("gauge", "How late the event loop was at the last heartbeat."),
    "zkd_config_revision": Metric("gauge", "Revision of the central configuration that this node applies."),
    "zkd_config_refused": Metric("gauge", "1 while the newest revision is refused, and the last good one stays."),
    "zkd_config_need_restart": Metric("gauge", "Settings that have changed and wait for a restart."),
    # Tasks.
    "zkd_slots": Metric("gauge", "Tasks that this node runs at a time."),
    "zkd_slots_used": Metric("gauge", "Slots that are taken now."),
    "zkd_tasks_queued": Metric("gauge", "Tasks given to this node that do not run yet."),
    "zkd_tasks_total": Metric("counter", "Runs that ended on this node, by kernel and by how they ended."),
    "zkd_task_wait_seconds": Metric("histogram", "From when this node was given a task to its start."),
    "zkd_task_run_seconds": Metric("histogram", "How long runs took, by kernel; `other` beyond 100 kernels."),
    # The leader.
    "zkd_leader_tasks": Metric("gauge", "Tasks that wait or run in the cluster; told by the leader."),
    "zkd_leader_task_bytes": Metric("gauge", "Bytes of these tasks' znodes; told by the leader."),
    "zkd_leader_size": Metric("gauge", "How much of each kind the leader remembers."),
    "zkd_tasks_refused_total": Metric("counter", "Tasks refused because too much waited; told by the leader."),
    "zkd_schedules": Metric("gauge", "Schedules that the leader follows."),
    "zkd_schedules_malformed": Metric("gauge", "Schedules that are none."),
    "zkd_schedule_slots_total": Metric("counter", "Slots of schedules that were fired or skipped."),
    # Datasets.
    "zkd_ring_changes_total": Metric("counter", "Changes of the ring that this node wrote as leader."),
    "zkd_ring_keepers": Metric("gauge", "Nodes that keep data, here or lost; told by the leader."),
    "zkd_datasets": Metric("gauge", "Datasets that this node knows."),
    "zkd_manifests_refused": Metric("gauge", "Versions of datasets that cannot be believed."),
    "zkd_segments": Metric("gauge", "Segments of parts on this node, by state."),
    "zkd_segment_bytes": Metric("gauge", "Bytes of the segments on this node."),
    "zkd_segments_repaired_total": Metric("counter", "Segments fetched to mend or move copies."),
    "zkd_segments_repaired_bytes_total": Metric("counter", "Bytes of these."),
    "zkd_segments_purged_total": Metric("counter", "Segments removed that nothing needs."),
    "zkd_segments_quarantined_total": Metric("counter", "Segments found damaged and put aside."),
    "zkd_segments_scrubbed_total": Metric("counter", "Segments read through to look for rot."),
    "zkd_segments_scrubbed_bytes_total": Metric("counter", "Bytes of these."),
    # Training.
    "zkd_jobs": Metric("gauge", "Training jobs that this node knows."),
    "zkd_jobs_coordinated": Metric("gauge", "Training jobs that this node coordinates now."),
    "zkd_jobs_taken_total": Metric("counter", "Training jobs that this node took on."),
    "zkd_jobs_deposed_total": Metric("counter", "Training jobs that others took over."),
    "zkd_training_rounds_total": Metric("counter", "Rounds of training that this node opened."),
    "zkd_training_checkpoints_total": Metric("counter", "Checkpoints written."),
    "zkd_training_checkpoint_bytes_total": Metric("counter", "Bytes of these."),
    "zkd_training_brains_lost_total": Metric("counter", "Processes of jobs that died."),
    "zkd_training_asks_total": Metric("counter", "What was asked of nodes for rounds, by outcome."),
    "zkd_training_files_pulled_total": Metric("counter", "Checkpoints and models copied from other nodes."),
    "zkd_training_files_removed_total": Metric("counter", "Checkpoints and models removed."),
    "zkd_counters": Metric("gauge", "Processes that compute partials and are alive."),
    "zkd_counters_died_total": Metric("counter", "Processes that computed partials and died."),
    "zkd_asks_total": Metric("counter", "What coordinators asked of this node, by outcome."),
    "zkd_rows_counted_total": Metric("counter", "Rows that partials were computed of."),
    # Models.
    "zkd_models": Metric("gauge", "Registered models."),
    "zkd_model_versions": Metric("gauge", "Versions of these."),
    "zkd_model_records_refused": Metric("gauge", "Records of models that cannot be believed."),
    "zkd_model_files": Metric("gauge", "Files of models on this node: here, or missing."),
    "zkd_model_files_fetched_total": Metric("counter", "Files of models fetched from other nodes."),
    "zkd_model_files_removed_total": Metric("counter", "Files of models removed."),
    "zkd_model_files_damaged_total": Metric("counter", "Files of models found damaged."),
    # Requests for predictions.
    "zkd_predict_requests_total": Metric("counter", "Requests answered, by model, version and how they ended."),
    "zkd_predict_rows_total": Metric("counter", "Rows that these were about."),
    "zkd_predict_seconds": Metric("histogram", "How long requests took, by model."),
    "zkd_predict_shed_total": Metric("counter", "Requests refused at once because too much waited, by why."),
    "zkd_predict_batch_requests": Metric("histogram", "Requests that were computed together."),
    "zkd_predict_batch_seconds": Metric("histogram", "How long computing these took."),
    "zkd_predict_batch_rows_total": Metric("counter", "Rows computed for requests."),
    "zkd_serving_processes": Metric("gauge", "Processes that answer requests and are alive."),
    "zkd_serving_process_deaths_total": Metric("counter", "Processes that answered requests and died."),
    "zkd_serving_requests_waiting": Metric("gauge", "Requests that wait for an answer."),
    "zkd_serving_models_loaded": Metric("gauge", "Models that are ready to answer."),
    "zkd_serving_models_loaded_bytes": Metric("gauge", "Bytes of their files."),
    "zkd_serving_models_evicted_total": Metric("counter", "Models put out of memory to make room."),
    "zkd_canaries": Metric("gauge", "Aliases whose canary this node compares."),
    "zkd_canary_requests_total": Metric("counter", "Requests of aliases with a canary, by the side that answered."),
    "zkd_canary_errors_total": Metric("counter", "Those of them that ended in an error."),
    "zkd_canary_differed_total": Metric("counter", "Answers of shadows that were not those that were given."),
    "zkd_canary_dropped_total": Metric("counter", "Requests that shadows did not get for want of room."),
    "zkd_ensemble_requests_total": Metric("counter", "Requests of ensembles, by how they ended."),
    "zkd_ensemble_votes_total": Metric("counter", "Votes that members of ensembles were asked for, by outcome."),
    "zkd_canaries_taken_back_total": Metric("counter", "Canaries that this node took back, by the limit they broke."),
    # The dashboard.
    "zkd_dashboard_viewers": Metric("gauge", "Browsers that look at this node's dashboard."),
    "zkd_dashboard_looks_total": Metric("counter", "Looks at the tree that were taken for them."),
}
UNDESCRIBED = "Not described."
SHADOW = "zkd_shadow_"  # the same metrics, of the process in which versions answer that only look on


class Histogram:
    """How many values fell into each bucket, up to and with its bound; and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self, name: str, labels: dict[str, str]) -> Iterator[Sample]:
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            yield f"{name}_bucket", labels | {"le": "+Inf" if bound == float("inf") else f"{bound:g}"}, total
        yield f"{name}_sum", labels, self._sum
        yield f"{name}_count", labels, total


def exposition(samples: Iterable[Sample]) -> str:
    """Samples in Prometheus' text format, version 0.0.4: a family's lines together, under its help and its type."""
    families: dict[str, list[Sample]] = {}
    for sample in samples:
        families.setdefault(family(sample[0]), []).append(sample)
    lines = []
    for name in sorted(families):
        kind: Kind = "counter" if name.endswith("_total") else "gauge"
        metric = described(name) or Metric(kind, UNDESCRIBED)
        lines.append(f"# HELP {name} {metric.help}")
        lines.append(f"# TYPE {name} {metric.kind}")
        for each, labels, value in families[name]:
            inner = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
            lines.append(f"{each}{{{inner}}} {_number(value)}" if inner else f"{each} {_number(value)}")
    return "\n".join(lines) + "\n"


def described(name: str) -> Metric | None:
    """What a metric says; of the models that only look on, the same as of those that answer."""
    metric = METRICS.get(name)
    if metric is None and name.startswith(SHADOW) and (of := METRICS.get(name.replace(SHADOW, "zkd_", 1))):
        return Metric(of.kind, f"Of shadows: {of.help[0].lower()}{of.help[1:]}")
    return metric


def family(name: str) -> str:
    """What a sample belongs to: the buckets, the sum and the count of a histogram are one metric."""
    for suffix in ("_bucket", "_sum", "_count"):
        stem = name.removesuffix(suffix)
        if stem != name and (metric := described(stem)) is not None and metric.kind == "histogram":
            return stem
    return name


def _number(value: float) -> str:
    """All digits of it: a counter of bytes that loses some cannot be differentiated."""
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
