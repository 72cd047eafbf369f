"""What an outcome means for its task: the result that is published, or the attempt that is recorded.

Nothing is done here, so that a second try says the same as the first.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from zkd import codec
from zkd.core.lifecycle import Publish, TryAgain, judge, without_data
from zkd.endings import timestamp
from zkd.errors import BadRecord
from zkd.holder.held import Held
from zkd.paths import NodeId
from zkd.records import Assigned, BlobRef, Dead, Fault, Result, Task
from zkd.workers import Died, Failed, Finished, Lacking, Outcome, Rejected, TimedOut


def verdict_of(task: Task, outcome: Outcome, node: NodeId, *, has_expired: bool) -> Publish | TryAgain:
    """`has_expired`: the task's own `not_after_s` is over, so a run that ran out of time is the task's end."""
    if isinstance(outcome, Finished):
        return Publish("done", attempts=tuple(task.attempts))
    if isinstance(outcome, Rejected):
        return Publish("rejected", Fault("arguments", f"{outcome.path}: {outcome.message}", outcome.path))
    if isinstance(outcome, Lacking):
        return without_data(task, node, outcome.message)
    if isinstance(outcome, TimedOut):
        if has_expired:
            return Publish("expired", Fault("expired", "not_after_s passed before the task ended"))
        fault = Fault("timeout", f"stopped after {outcome.after_s:g} s, its time limit")
        return judge(task, "timeout", fault, node)
    if isinstance(outcome, Died):
        return judge(task, "crash", Fault("crash", outcome.how), node)
    assert isinstance(outcome, Failed)
    fault = Fault(outcome.kind, outcome.message, traceback=outcome.traceback or None)
    return judge(task, "error", fault, node)


def result_of(
    held: Held, task: Task, outcome: Outcome, verdict: Publish, *, node: NodeId, owner: str | None, address: str | None
) -> Result:
    line = held.line
    value: Raw | msgspec.UnsetType = msgspec.UNSET
    ref: BlobRef | None = None
    run_s = outcome.after_s if isinstance(outcome, TimedOut) else getattr(outcome, "run_s", 0.0)
    if isinstance(outcome, Finished):
        blob = outcome.blob
        if blob is not None:
            nodes = {node: f"{address}/v1/blobs/{blob.sha256}"} if address else {}
            ref = BlobRef(blob.sha256, blob.size, blob.format, nodes)
        else:
            value = Raw(outcome.value or b"null")
    return Result(
        status=verdict.status,
        node=node,
        attempt=line.attempt,
        value=value,
        ref=ref,
        error=verdict.error,
        kernel=task.kernel,
        owner=owner,
        czxid=line.czxid,
        wait_s=round(held.started - held.since, 6),
        run_s=round(run_s, 6),
        finished_at=timestamp(),
        ttl_s=task.ttl_s,
        traceparent=task.traceparent,
        attempts=list(verdict.attempts),
    )


def obituary_of(task: Task, verdict: Publish, at: str) -> Dead | None:
    """What is kept below ``dead/`` of a task whose attempts are used up; of a part its parent tells."""
    if not verdict.is_dead or verdict.error is None or task.parent is not None:
        return None
    text = Raw(codec.encode(msgspec.structs.replace(task, attempts=[])))
    return Dead(text, verdict.error, list(verdict.attempts), at)


def refusal_of(line: Assigned, bad: BadRecord, *, node: NodeId, owner: str | None) -> Result:
    return Result(
        status="rejected",
        node=node,
        attempt=line.attempt,
        error=Fault("task", str(bad), path=bad.where),
        owner=owner,
        czxid=line.czxid,
        finished_at=timestamp(),
    )
