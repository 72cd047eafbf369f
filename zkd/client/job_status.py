"""A job and how far it is, read from its three znodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw

from zkd import codec
from zkd.errors import BadRecord, NoNode, ZooKeeperError
from zkd.jobs import DONE, Coordinator, Desired, Job, JobState, Phase

if TYPE_CHECKING:
    from zkd.paths import JobId, NodeId, Paths


@dataclass(frozen=True)
class JobStatus:
    """A job and how far it is, as the tree says it. `state` is None until a node takes it on."""

    id: JobId
    job: Job | None  # None: what stands there is none, and `error` says why
    state: JobState | None
    coordinator: NodeId | None  # who opens its rounds now; None: nobody at this moment
    dropped_ms: int  # by the servers' clock
    error: str | None = None

    @property
    def phase(self) -> Phase:
        return "waiting" if self.state is None else self.state.phase

    @property
    def has_ended(self) -> bool:
        return self.phase in DONE

    @property
    def desired(self) -> Desired:
        return "run" if self.job is None else self.job.desired


def paths_of(paths: Paths, name: JobId) -> list[str]:
    return [paths.job(name), paths.job_state(name), paths.coordinator(name)]


def status_of(name: JobId, job: Any, state: Any, coordinator: Any) -> JobStatus | None:
    """What these three znodes say together; None if there is no job."""
    if isinstance(job, ZooKeeperError):
        if isinstance(job, NoNode):
            return None
        raise job
    known, error = _decoded(job, Job)
    found, _ = _decoded(state, JobState)
    office, _ = _decoded(coordinator, Coordinator)
    if found is not None and found.czxid != job.stat.czxid:
        found = None  # of an earlier job of this id
    if found is not None and error is None:
        error = found.error
    return JobStatus(name, known, found, None if office is None else office.node, job.stat.ctime, error)


def _decoded(znode: Any, kind: Any) -> tuple[Any, str | None]:
    if isinstance(znode, ZooKeeperError):
        if not isinstance(znode, NoNode):
            raise znode
        return None, None
    try:
        return codec.decode(znode.data, kind), None
    except BadRecord as error:
        return None, str(error)


def desired_text(text: bytes, desired: Desired) -> bytes:
    """The same job with this wish; its other fields stay as they were typed."""
    fields: dict[str, Raw] = codec.decode(text, dict[str, Raw])
    was = msgspec.json.decode(fields["desired"]) if "desired" in fields else "run"
    return text if was == desired else codec.encode({**fields, "desired": desired})
