"""What is to be done with a training job, given what stands in the tree, and which of the nodes is to do it.

    no state, or one of a former life   take it, and begin; or say at once why it cannot be begun
    taken, and its coordinator is gone  take it, and go on from its checkpoint
    paused                              leave it, until somebody wants it to run or to stop
    done, failed                        leave it
    its words are gone                  remove its state; its files follow

Who takes office writes the state with a fence that is higher than the one before it, in the transaction that makes its
ephemeral znode. An id that is dropped anew has another life, and its fences begin again: who compares them compares
the lives first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from blake3 import blake3
from msgspec import structs

from zkd import codec
from zkd.core.datasets import split_name
from zkd.errors import BadRecord
from zkd.jobs import DONE, FileRef, Job, JobState
from zkd.paths import NAME_RULE, JobId, NodeId, is_name

JOB_BYTES_MAX = 512 * 1024  # a thousand columns with long names
RANK_S = 0.1  # between the nodes that try to take a job
EDITED = "was edited after it had started: drop another job instead; only `desired` may change"
STOPPED_EARLY = "was stopped before its first checkpoint: there is no model yet"


@dataclass(frozen=True, slots=True)
class Words:
    """What its user wrote at ``jobs/<id>``. `job` None: it cannot be read, and `fault` says why."""

    czxid: int
    version: int
    terms: str
    job: Job | None
    fault: str = ""


class Step(Enum):
    REST = "rest"
    TAKE = "take"  # take office
    PAUSE = "pause"  # note that it is paused; nobody has to hold it for that
    FAIL = "fail"
    REMOVE = "remove"  # its state


@dataclass(frozen=True, slots=True)
class Duty:
    step: Step
    why: str = ""


class Turn(Enum):
    """What a running job's coordinator has to do next."""

    GO_ON = "go on"
    PAUSE = "pause"
    STOP = "stop"
    FAIL = "fail"  # it was edited
    END = "end"  # its words are gone, or are those of another life


def read_words(job_id: JobId, text: bytes, czxid: int, version: int) -> Words:
    """What stands at ``jobs/<id>``, or what is wrong with it."""
    try:
        if not is_name(job_id):
            raise BadRecord("id", f"expected {NAME_RULE}")
        if len(text) > JOB_BYTES_MAX:
            raise BadRecord("$", f"expected at most {JOB_BYTES_MAX} bytes, got {len(text)}")
        job = codec.decode(text, Job)
        codec.refuse_duplicate_names(text)
        split_name(job.dataset)
    except BadRecord as error:
        return Words(czxid, version, blake3(text).hexdigest(), None, str(error))
    return Words(czxid, version, terms_of(job), job)


def terms_of(job: Job) -> str:
    """The digest of a job's text without `desired`."""
    return blake3(codec.encode(structs.replace(job, desired="run"))).hexdigest()


def duty(words: Words | None, state: JobState | None) -> Duty:
    """What a job needs that nobody coordinates."""
    if words is None:
        return Duty(Step.REST if state is None else Step.REMOVE)
    if state is not None and state.czxid != words.czxid:
        state = None  # of a former life of the id
    if state is not None and state.phase in DONE:
        return Duty(Step.REST)
    if state is not None and state.terms != words.terms:
        return Duty(Step.FAIL, EDITED)
    if words.job is None:
        return Duty(Step.FAIL, words.fault)
    if words.job.desired == "pause":
        return Duty(Step.REST if state is not None and state.phase == "paused" else Step.PAUSE)
    if words.job.desired == "stop" and (state is None or state.checkpoint is None):
        return Duty(Step.FAIL, STOPPED_EARLY)
    return Duty(Step.TAKE)


def turn(words: Words | None, began: Words) -> Turn:
    """What the coordinator of a job does that began with these words, now that they are those."""
    if words is None or words.czxid != began.czxid:
        return Turn.END
    if words.job is None or words.terms != began.terms:
        return Turn.FAIL
    return {"run": Turn.GO_ON, "pause": Turn.PAUSE, "stop": Turn.STOP}[words.job.desired]


def next_fence(words: Words, state: JobState | None) -> int:
    """Higher than that of anybody who held this life of the job."""
    return 1 if state is None or state.czxid != words.czxid else state.fence + 1


def rank(of: str, node: NodeId, nodes: Iterable[NodeId]) -> int:
    """The place of a node among all, by rendezvous: each job or file has an order of its own."""
    mine = _weight(of, node)
    return sum(_weight(of, other) > mine for other in nodes if other != node)


def _weight(of: str, node: NodeId) -> bytes:
    return blake3(f"{of}\0{node}".encode()).digest()


def merged(mine: JobState, there: JobState) -> JobState:
    """What its coordinator writes where others have added themselves to the nodes of its files meanwhile."""
    return structs.replace(
        mine,
        checkpoint=_with_nodes(mine.checkpoint, there.checkpoint),
        model=_with_nodes(mine.model, there.model),
    )


def _with_nodes(mine: FileRef | None, there: FileRef | None) -> FileRef | None:
    if mine is None or there is None or mine.id != there.id:
        return mine
    return structs.replace(mine, nodes=[*mine.nodes, *(node for node in there.nodes if node not in mine.nodes)])
