"""What a kernel is called with: the task's own text, and local files for the blobs that it refers to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from zkd.errors import BadRecord
from zkd.paths import NodeId
from zkd.records import Assigned, BlobRef, Task
from zkd.workers import Call

LOOKED_INTO_MAX = 64 * 1024  # bytes of arguments that the leader parses for the sake of placing a task well


def has_blobs(task: Task) -> bool:
    """Whether it is worth looking for references; cheap, and right when it says no."""
    name = b'"blob"'
    if name in bytes(task.args) or name in bytes(task.kwargs):
        return True
    return task.items is not msgspec.UNSET and name in bytes(task.items)


def blobs_of(task: Task) -> list[BlobRef]:
    """The references in the arguments of a task. `BadRecord` if they are not what they should be."""
    refs: list[BlobRef] = []
    for text in (task.args, task.kwargs, *([] if task.items is msgspec.UNSET else [task.items])):
        try:
            refs.extend(blob_refs(msgspec.json.decode(text)))
        except RecursionError:
            raise BadRecord("$.args", "expected JSON of reasonable depth, got one nested too deeply") from None
        except msgspec.DecodeError as error:  # a number out of range: raw text was only checked for its form
            raise BadRecord("$.args", f"expected JSON values: {error}") from None
    return refs


def data_by_node(task: Task) -> dict[NodeId, int]:
    """How many bytes of its arguments lie on which nodes, as its references say; nothing if they are malformed."""
    if len(bytes(task.args)) + len(bytes(task.kwargs)) > LOOKED_INTO_MAX or not has_blobs(task):
        return {}
    try:
        refs = blobs_of(task)
    except BadRecord:
        return {}  # who runs it refuses it
    held: Counter[NodeId] = Counter()
    for ref in refs:
        held.update(dict.fromkeys(ref.nodes, ref.size))
    return dict(held)


def blob_refs(value: object) -> Iterable[BlobRef]:
    """Every blob reference inside a decoded JSON value; `BadRecord` for one that is malformed."""
    unseen = [value]  # no recursion: the depth is a stranger's choice
    while unseen:
        value = unseen.pop()
        if isinstance(value, list):
            unseen.extend(value)
        elif isinstance(value, dict) and "blob" not in value:
            unseen.extend(value.values())
        elif isinstance(value, dict):
            try:
                yield msgspec.convert(value, BlobRef)
            except msgspec.ValidationError as error:
                raise BadRecord("$.args", f"expected a blob reference: {error}") from None


def call_of(task: Task, line: Assigned, incarnation: str | None, files: dict[str, str]) -> Call:
    return Call(
        kernel=task.kernel,
        args=bytes(task.args),
        kwargs=bytes(task.kwargs),
        items=None if task.items is msgspec.UNSET else bytes(task.items),
        files=files,
        task_id=line.id,
        attempt=line.attempt,
        fence=f"{line.czxid:x}.{line.version:x}.{incarnation}",
        memory=task.memory,
    )
