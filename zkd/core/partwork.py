"""What the leader remembers of tasks on datasets: who has to be looked for, whose children are whose.

    a task on one part     runs on the homes of that part, which the map of the datasets tells
    a task on all parts    becomes children (`zkd.core.spreads`), waits for them, and combines what they gave

Children live no longer than their parent, and belong to one text of it: when it goes, or is edited, those of the
former text are cancelled. `zkd.core.dispatch` acts by this; what is not about datasets costs nothing here.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Protocol

from zkd.core.datasets import split_name
from zkd.core.picture import IDLE, Entry, Family, Part, Phase
from zkd.core.spreads import GATHER, family, parts_of, split_child
from zkd.manifests import Manifest
from zkd.paths import NodeId, TaskId
from zkd.records import Fault, Result, Status, Task

ROWS = "rows"  # as a column: which row of the dataset each is; unless the dataset has a column of this name
NAMED_MAX = 20  # columns in one sentence


class Datasets(Protocol):
    """What is known of datasets; `zkd.core.atlas` is."""

    def manifest(self, name: str, version: int | None = None, /) -> Manifest | None: ...

    def refusal(self, name: str, version: int | None = None, /) -> str | None: ...

    def homes(self, name: str, version: int, part: int, /) -> tuple[NodeId, ...]: ...

    def holders(self, name: str, version: int, part: int, /) -> tuple[NodeId, ...]: ...


class NoDatasets:
    """Where nobody knows of any."""

    def manifest(self, name: str, version: int | None = None, /) -> None:
        return None

    def refusal(self, name: str, version: int | None = None, /) -> str | None:
        return "this cluster has no datasets"

    def homes(self, name: str, version: int, part: int, /) -> tuple[NodeId, ...]:
        return ()

    holders = homes


def fault_of(task: Task, manifest: Manifest) -> Fault | None:
    """What is wrong with a task on this version of its dataset."""
    of = f"{manifest.name}@{manifest.version}"
    if task.partition is not None and task.partition >= manifest.parts:
        message = f"expected a part of {of}, 0 to {manifest.parts - 1}, got {task.partition}"
        return Fault("dataset", f"$.partition: {message}", path="$.partition")
    for number, part in enumerate(task.parts):
        if part >= manifest.parts:
            message = f"expected a part of {of}, 0 to {manifest.parts - 1}, got {part}"
            return Fault("dataset", f"$.parts[{number}]: {message}", path=f"$.parts[{number}]")
    known = [column.name for column in manifest.columns]
    for number, column in enumerate(task.columns):
        if column not in known and column != ROWS:
            more = f" or {len(known) - NAMED_MAX} more" if len(known) > NAMED_MAX else ""
            message = f"expected one of {', '.join(known[:NAMED_MAX])}{more}, the columns of {of}, got {column!r}"
            return Fault("dataset", f"$.columns[{number}]: {message}", path=f"$.columns[{number}]")
    return None


def missing(task: Task, datasets: Datasets) -> Fault:
    """Why there is no such dataset, for a task that names one which is not there."""
    name, version = split_name(task.dataset or "")
    refusal = datasets.refusal(name, version)
    current = datasets.manifest(name)
    if refusal is not None:
        message = f"{task.dataset} cannot be used: {refusal}"
    elif current is not None:
        message = f"there is no version {version} of the dataset {name}; the current one is {current.version}"
    else:
        message = f"there is no dataset {name!r}"
    return Fault("dataset", f"$.dataset: {message}", path="$.dataset")


def failed_part(entry: Entry, child: TaskId, result: Result | None, status: Status) -> tuple[Status, Fault]:
    """How a task ends one of whose parts did not end well."""
    split = split_child(child)
    assert split is not None
    assert entry.family is not None
    which = f"part {split[1]} of {entry.family.dataset}"
    error = None if result is None else result.error
    if error is None or status == "cancelled":
        return "failed", Fault("dependency", f"{which} was {status} (task {child})")
    where = "" if result is None or result.node is None else f" on {result.node}"
    ended: Status = "rejected" if status == "rejected" else "failed"
    return ended, Fault(error.kind, f"{which}{where}: {error.message}", error.path, error.traceback)


class PartWork:
    """`tasks` belongs to the leader's mind."""

    def __init__(self, datasets: Datasets, tasks: Mapping[TaskId, Entry]) -> None:
        self.datasets = datasets
        self._tasks = tasks
        self.asked: dict[str, dict[TaskId, Task]] = {}  # datasets that are looked for -> for which tasks
        self.to_look: dict[str, None] = {}
        self.waiting: dict[TaskId, None] = {}  # ready, and bound to the homes of a part
        self.are_moved = False  # parts may have other homes than when these were queued
        self.making: dict[TaskId, int] = {}  # whose children are being dropped, and how many that makes
        self.crowded: dict[TaskId, None] = {}  # for whose children there is no room yet
        self._children: dict[str, set[TaskId]] = {}  # of each task on all parts, those that are there
        self._doubtful: dict[TaskId, set[TaskId]] = {}  # of parents that have not been read, or are not there
        self.to_find: dict[TaskId, None] = {}

    # --- Parts ------------------------------------------------------------------------------------------

    def placed(self, entry: Entry, task: Task, manifest: Manifest) -> None:
        """Note what the entry works on."""
        if task.partition is not None:
            entry.part = Part(manifest.name, manifest.version, task.partition, is_kept=manifest.store is None)
            return
        entry.family = Family(
            family(entry.id, entry.czxid, task, manifest),
            f"{manifest.name}@{manifest.version}",
            parts_of(task, manifest.parts),
            task.combine or GATHER,
        )
        self._children.setdefault(entry.family.stem, set())

    def homes(self, part: Part) -> tuple[NodeId, ...] | None:
        """The only nodes that this part is worked on; None if any will do."""
        return self.datasets.homes(part.name, part.version, part.number) if part.is_kept else None

    def holders(self, part: Part) -> tuple[NodeId, ...]:
        """Those that say to have it. A home that is new may not have it yet."""
        return self.datasets.holders(part.name, part.version, part.number) if part.is_kept else ()

    def is_there(self, part: Part) -> bool:
        return self.datasets.manifest(part.name, part.version) is not None

    def ask(self, name: str, task_id: TaskId | None = None, task: Task | None = None) -> None:
        """Have the tree looked at for this dataset, which is not in the picture."""
        if name not in self.asked:
            self.asked[name] = {}
            self.to_look[name] = None
        if task_id is not None and task is not None:
            self.asked[name][task_id] = task

    # --- Families ---------------------------------------------------------------------------------------

    def wants(self, task_id: TaskId) -> bool:
        """Whether this is a child whose parent may have to read its result."""
        split = split_child(task_id)
        return split is not None and split[0] in self._children

    def entered(self, entry: Entry) -> bool:
        """A child was read. False: it has no parent any more."""
        assert entry.parent is not None
        parent = self._tasks.get(entry.parent)
        if parent is None:
            self.to_find[entry.parent] = None
        if parent is None or parent.phase in (Phase.LOOKING, Phase.PINNING, Phase.ENDING):
            self._doubtful.setdefault(entry.parent, set()).add(entry.id)
            return True
        return self._adopted(entry.id, parent)

    def _adopted(self, task_id: TaskId, parent: Entry) -> bool:
        if parent.family is None or not self.is_child(task_id, parent):
            return False
        self._children[parent.family.stem].add(task_id)
        return True

    @property
    def is_in_doubt(self) -> bool:
        """Whether there are children of whom nobody knows whose they are."""
        return bool(self._doubtful)

    def known(self, parent: Entry) -> list[TaskId]:
        """It is known now what this task is: those that are wrongly said to be children of it."""
        return [child for child in sorted(self._doubtful.pop(parent.id, ())) if not self._adopted(child, parent)]

    def is_child(self, task_id: TaskId, parent: Entry) -> bool:
        split = split_child(task_id)
        return split is not None and parent.family is not None and split[0] == parent.family.stem

    def moved(self, entry: Entry) -> None:
        """The task has been rewritten. Whether its children still are is known when its new text is."""
        children = self._forget(entry)
        if children:
            self._doubtful.setdefault(entry.id, set()).update(children)

    def left(self, entry: Entry) -> list[TaskId]:
        """The task has gone: those that were its children, and are nobody's now."""
        return sorted(self._forget(entry) | self._doubtful.pop(entry.id, set()))

    def waits_no_longer(self, task_id: TaskId) -> None:
        self.making.pop(task_id, None)
        self.crowded.pop(task_id, None)
        self.waiting.pop(task_id, None)

    def _forget(self, entry: Entry) -> set[TaskId]:
        self.waits_no_longer(entry.id)
        if entry.parent is not None:
            self._forget_child(entry)
        return set() if entry.family is None else self._children.pop(entry.family.stem, set())

    def _forget_child(self, entry: Entry) -> None:
        assert entry.parent is not None
        split = split_child(entry.id)
        if split is not None and split[0] in self._children:
            self._children[split[0]].discard(entry.id)
        doubtful = self._doubtful.get(entry.parent)
        if doubtful is not None:
            doubtful.discard(entry.id)
            if not doubtful:
                del self._doubtful[entry.parent]

    def missed(self, parent: TaskId) -> list[TaskId]:
        """There is no such task: who said to be its children."""
        return sorted(self._doubtful.pop(parent, ()))

    def size(self) -> int:
        children = sum(map(len, self._children.values())) + sum(map(len, self._doubtful.values()))
        return children + len(self._children) + len(self.waiting) + sum(map(len, self.asked.values()))

    def check(self, there: Container[TaskId]) -> Iterator[str]:
        """Every broken invariant, in words."""
        stems = {entry.family.stem for entry in self._tasks.values() if entry.family is not None}
        if stems != self._children.keys():
            yield f"there are families {stems}, and remembered are {self._children.keys()}"
        remembered: Iterable[tuple[str, set[TaskId]]] = (*self._children.items(), *self._doubtful.items())
        for of, children in remembered:
            for child in children:
                if child not in there:
                    yield f"{child} is remembered as a child of {of}, and is gone"
        for task_id in self.waiting:
            entry = self._tasks.get(task_id)
            if entry is None or entry.part is None or entry.phase not in IDLE:
                yield f"{task_id} is said to wait for the homes of a part"
        for task_id in self.making:
            if task_id not in there or self._tasks[task_id].phase is not Phase.SPREADING:
                yield f"children of {task_id} are said to be in the making"
