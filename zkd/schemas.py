"""JSON Schemas of the records in the tree, made from the structs that read them, so they cannot disagree.

Copies lie in ``docs/schemas``, for those who have no zkd at hand; a test holds them equal.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
from msgspec import Meta, Raw, UnsetType

from zkd.configs import AppConfig, ConfigHead, ConfigLayer, ConfigRevision
from zkd.jobs import Coordinator, Job, JobState, Round
from zkd.manifests import Head, Holding, Manifest, Numbers, Ring, Segment
from zkd.paths import PROTOCOL_VERSION
from zkd.records import (
    Assignment,
    BlobRef,
    Claimant,
    Count,
    Dead,
    Leader,
    Limit,
    Meeting,
    Member,
    Node,
    NodeStatus,
    OperatorState,
    Queued,
    Result,
    Schedule,
    ScheduleState,
    SemaphoreTerms,
    Task,
)
from zkd.registry import Alias, ModelHead, ModelVersion

DIALECT = "https://json-schema.org/draft/2020-12/schema"

RECORDS: dict[str, tuple[type[msgspec.Struct], str]] = {
    "task": (Task, "tasks/<id>: what a client drops. Only `kernel` is required."),
    "result": (Result, "results/<id>: how a task ended; written once."),
    "dead": (Dead, "dead/<id>: a task whose attempts are used up, with its history."),
    "node": (Node, "nodes/<node>: a node, while it is here."),
    "status": (NodeStatus, "status/<node>: heartbeat."),
    "assignment": (Assignment, "assign/<node>: what a node should work on; the leader's."),
    "leader": (Leader, "control/leader: who leads."),
    "operator-state": (OperatorState, "control/nodes/<node>: how operators want a node to be."),
    "limit": (Limit, "control/limits/<kernel>: how much of a kernel's work the cluster takes on."),
    "schedule": (Schedule, "schedules/<name>: a task that recurs, by `cron` or by `every_s`."),
    "schedule-state": (ScheduleState, "control/schedules/<name>: how far the leader is with a schedule."),
    "config": (ConfigHead, "config: the revision of the central configuration, and the layers it is made of."),
    "config-layer": (ConfigLayer, "config/cluster, config/labels/<name=value>, config/nodes/<node>: settings."),
    "config-revision": (ConfigRevision, "config/history/<n>: what a revision changed, by whom and why."),
    "config-app": (AppConfig, "config/apps/<name>, and <name>/<n>: a program's own configuration."),
    "dataset": (Head, "datasets/<name>: the version of a dataset that readers get."),
    "dataset-numbers": (Numbers, "datasets: numbers of versions that were removed; none is given twice."),
    "manifest": (Manifest, "datasets/<name>/versions/<n>: a version of a dataset; immutable."),
    "segment": (Segment, "segment.json: some rows of a part, as files; its id is the blake3 of these bytes."),
    "ring": (Ring, "control/ring: the nodes that keep data; the leader's."),
    "holding": (Holding, "holdings/<name>/<node>: the parts that lie on a node, as it says."),
    "job": (Job, "jobs/<id>: a training job, as its user wrote it. Only `model` and `dataset` are required."),
    "job-state": (JobState, "control/jobs/<id>: how far a training job is, where its checkpoint and its model lie."),
    "coordinator": (Coordinator, "control/coordinators/<id>: the node that opens a training job's rounds."),
    "round": (Round, "A line of GET /v1/jobs/<id>/rounds: a round of a training job, or how it ended."),
    "model": (ModelHead, "models/<name>: a registered model; its version is checked by every change of the model."),
    "model-version": (ModelVersion, "models/<name>/versions/<n>: a version of a model; immutable."),
    "alias": (Alias, "models/<name>/aliases/<alias>: the version that is served under this name, and its canary."),
    "claimant": (Claimant, "sync/{locks,semaphores,elections,...}/<name>/<znode>: who holds or waits."),
    "semaphore": (SemaphoreTerms, "sync/semaphores/<name>: how many may hold at once."),
    "meeting": (Meeting, "sync/double-barriers/<name>: how many meet, and who is in."),
    "count": (Count, "sync/counters/<name>: a number, and by whom it was changed lately."),
    "queued": (Queued, "sync/queues/<name>/items/<item>: an item of a queue."),
    "member": (Member, "sync/parties/<name>/<znode>: who is here, and what it says of itself."),
    "blob-ref": (BlobRef, "Where a value lies that is too large for a znode."),
}

# JSON text that passes through unread is `Raw` in the structs; what it has to be is said here.
UNREAD: dict[str, Any] = {
    "args": Annotated[list[Any], Meta(description="The positional arguments.")],
    "kwargs": Annotated[dict[str, Any], Meta(description="The named arguments.")],
    "items": Annotated[list[Any], Meta(description="One call an item, which is its first argument.")] | UnsetType,
    "value": Annotated[Any, Meta(description="Any JSON; a large array is {dtype, shape, data: base64}.")],
    "task": Annotated[dict[str, Any], Meta(description="The task as it was dropped.")],
}


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of the record of this name. Raises `KeyError`."""
    struct, description = RECORDS[name]
    return {
        "$schema": DIALECT,
        "$id": f"urn:zkd:schema:v{PROTOCOL_VERSION}:{name}",
        "title": f"zkd {name}",
        "description": description,
        **msgspec.json.schema(_readable(struct)),
    }


def _readable(struct: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The same struct with its unread fields as what they hold."""
    hints = get_type_hints(struct, include_extras=True)
    fields: list[Any] = []
    for field in msgspec.structs.fields(struct):
        kind, default = hints[field.name], field.default
        if struct is Schedule and field.name == "task":
            kind = Annotated[_readable(Task), Meta(description="What is dropped at tasks/<name>.<slot>.")]
        elif field.name in UNREAD and (kind is Raw or Raw in get_args(kind)):
            kind = UNREAD[field.name]
            default = msgspec.json.decode(default) if isinstance(default, Raw) else default
        if field.default_factory is not msgspec.NODEFAULT:
            fields.append((field.name, kind, msgspec.field(default_factory=field.default_factory)))
        elif default is msgspec.NODEFAULT:
            fields.append((field.name, kind))
        else:
            fields.append((field.name, kind, default))
    strict = struct.__struct_config__.forbid_unknown_fields
    return msgspec.defstruct(struct.__name__, fields, forbid_unknown_fields=strict)


def text(name: str) -> str:
    """The schema as it is published: fields stand in the order in which people should read them."""
    return json.dumps(schema(name), indent=2) + "\n"
