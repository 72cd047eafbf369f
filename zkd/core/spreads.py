"""A task over all parts of a dataset: the tasks that do one part each, and what it becomes itself.

    sum of digits@3 ---- sum of digits@3, part 0      children: tasks of their own, dropped by the leader
                    '--- sum of digits@3, part 1
    when all are done: combine([value of part 0, value of part 1])      by whichever node is given it

Everything follows from the task's own text, from which life of its id this is, and from the manifest: a leader that
comes later, and the node that combines, find the same children, and an edited or repeated task gets others. So nothing
has to be remembered about what was dropped already: a child that has neither a znode nor a result is dropped, again if
need be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from msgspec import structs

from zkd import codec
from zkd.core.datasets import split_name
from zkd.manifests import Manifest
from zkd.paths import TaskId
from zkd.records import Task

# The kernel that makes the list of all parts' values, where the task names none to combine them.
GATHER = "gather"
# A child's result stays while its parent is there, and this much longer: it has no other use.
CHILD_TTL_S = 60.0
# Together, of the texts of a task's children: each has the arguments in it. Large arrays are passed by reference.
SPREAD_BYTES_MAX = 64 * 2**20
# What children may give inline, all together, so that their list still is a call that fits into a frame.
INLINE_BYTES_MAX = 32 * 2**20

_DIGEST_CHARS = 12
_STEM_CHARS_MAX = 128 - _DIGEST_CHARS - len(".") - len(".16383")


def is_spread(task: Task) -> bool:
    """Whether this task is done by others, one for each part."""
    return task.dataset is not None and task.partition is None


def family(task_id: TaskId, czxid: int, task: Task, manifest: Manifest) -> str:
    """What the ids of its children begin with. Of a dataset that was removed and made anew they are others."""
    text = codec.encode([czxid, structs.replace(task, attempts=[]), manifest])
    digest = hashlib.sha256(task_id.encode() + text).hexdigest()[:_DIGEST_CHARS]
    return f"{task_id[:_STEM_CHARS_MAX]}.{digest}"


def child_id(of: str, part: int) -> TaskId:
    return f"{of}.{part}"


def child_ids(of: str, parts: Iterable[int]) -> list[TaskId]:
    return [child_id(of, part) for part in parts]


def parts_of(task: Task, parts: int) -> tuple[int, ...]:
    """Those that the task is about, of a dataset of so many."""
    return tuple(task.parts or range(parts))


def split_child(task_id: TaskId) -> tuple[str, int] | None:
    """The family of this child, and the part that it is for; None if it is no child's id."""
    of, _, part = task_id.rpartition(".")
    return (of, int(part)) if of and part.isascii() and part.isdigit() and len(part) <= 5 else None


def child(task_id: TaskId, task: Task, part: int) -> Task:
    """The task that does this part. What says when and on which node it runs counts for the parent alone."""
    return structs.replace(
        task,
        partition=part,
        parent=task_id,
        parts=[],
        combine=None,
        node=None,
        prefer=[],
        after=[],
        delay_s=0.0,
        not_after_s=None,
        ttl_s=CHILD_TTL_S,
        attempts=[],
    )


def pinned(task: Task, version: int) -> Task:
    """The task on this version, whichever is the current one later."""
    assert task.dataset is not None
    return structs.replace(task, dataset=f"{split_name(task.dataset)[0]}@{version}")


def inline_max(parts: int, most: int) -> int:
    """How many bytes a child of so many may give in its result; what is longer becomes a file."""
    return max(1024, min(most, INLINE_BYTES_MAX // parts))


def gathered(texts: Iterable[bytes]) -> bytes:
    """The arguments, as JSON, of the kernel that is given the values of all parts."""
    return b"[[%b]]" % b",".join(texts)
