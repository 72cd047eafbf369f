"""The judge of what was committed: replays ZooKeeper's own log and checks every write that matters.

It knows the tree at each transaction (tasks with life and version, who leads, who is a member, who was given what), so
it can say of each write whether whoever made it had the right to: that is what a stale write is.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from tests.chaos.checker import FOREIGN, Violation
from tests.chaos.txnlog import Op, Transaction
from zkd.paths import Paths

BAD_VERSION, NO_NODE, NODE_EXISTS = -103, -101, -110
REFUSED_AS_STALE = (BAD_VERSION,)


@dataclass(slots=True)
class Life:
    """One life of a task's znode."""

    czxid: int
    version: int
    ephemeral_of: int  # a session, or 0
    given: tuple[str, int] = ("", -1)  # to which incarnation, at which version


@dataclass(slots=True)
class Office:
    epoch: int
    session: int


@dataclass
class Audit:
    """What the log says of a run."""

    violations: list[Violation] = field(default_factory=list)
    transactions: int = 0
    writes: int = 0
    created: int = 0  # tasks
    results: int = 0
    reigns: int = 0
    sessions: int = 0
    refused: Counter[int] = field(default_factory=Counter)  # by error code
    result_ms: array[int] = field(default_factory=lambda: array("q"))  # when each result was committed


class Auditor:
    def __init__(self, paths: Paths) -> None:
        self.audit = Audit()
        self._tasks_dir = f"{paths.tasks}/"
        self._results_dir = f"{paths.results}/"
        self._nodes_dir = f"{paths.nodes}/"
        self._assign_dir = f"{paths.assignments}/"
        self._epoch_path = paths.epoch
        self._tasks: dict[str, Life] = {}
        self._ephemerals: dict[int, set[str]] = {}  # session -> ids of its ephemeral tasks
        self._results: dict[str, int] = {}  # id -> how often it was created
        self._standing: set[str] = set()  # ids whose result is there now
        self._members: dict[int, str] = {}  # session -> incarnation
        self._versions: dict[str, int] = {}  # of assign/ and the epoch
        self._office = Office(-1, 0)
        self._over: set[int] = set()

    def take(self, transaction: Transaction) -> None:
        audit = self.audit
        audit.transactions += 1
        session = transaction.session
        if transaction.kind == "session":
            audit.sessions += 1
        elif transaction.kind == "close":
            self._over.add(session)
            self._members.pop(session, None)
            for task_id in self._ephemerals.pop(session, ()):
                self._tasks.pop(task_id, None)
        elif transaction.kind == "error":
            audit.refused[transaction.error] += 1
        else:
            audit.writes += 1
            if session in self._over:
                self._blame("stale", f"{session:#x}", f"a write after the end of its session: {transaction.ops[:3]}")
            self._apply(transaction)

    def _blame(self, rule: str, task: str, text: str) -> None:
        self.audit.violations.append(Violation(rule, task, text))

    def _apply(self, transaction: Transaction) -> None:
        ops = transaction.ops
        session = transaction.session
        deleted: dict[str, Life] = {}
        published: list[tuple[str, bytes]] = []
        is_leaders = False
        for op in ops:
            if op.kind == "check" and op.path == self._epoch_path:
                is_leaders = True
                if self._office != Office(op.version, session):
                    self._blame(
                        "stale", f"epoch {op.version}", f"{session:#x} writes as leader, which is {self._office}"
                    )
            elif op.path.startswith(self._tasks_dir):
                self._task(op, transaction, deleted)
            elif op.path.startswith(self._results_dir):
                self._result(op, transaction, published)
            elif op.path.startswith(self._assign_dir):
                self._assigned(op, is_leaders=is_leaders)
            elif op.path.startswith(f"{self._nodes_dir}{FOREIGN}"):
                continue  # no node, but the nemesis
            elif op.path.startswith(self._nodes_dir) and op.kind in ("create", "set"):
                self._members[session] = msgspec.json.decode(op.data, type=_Member).incarnation
            elif op.path == self._epoch_path and op.kind != "check":
                self._moves_on(op)
                self._office = Office(op.version, session)
                self.audit.reigns += op.kind == "set"
        for task_id, data in published:
            self._judge_result(task_id, data, deleted.get(task_id), session, is_leaders=is_leaders)
        self._judge_deletions(deleted, session)

    # --- One znode --------------------------------------------------------------------------------------

    def _task(self, op: Op, transaction: Transaction, deleted: dict[str, Life]) -> None:
        task_id = op.path[len(self._tasks_dir) :]
        if "/" in task_id:
            return  # rubbish that somebody put below a task
        life = self._tasks.get(task_id)
        if op.kind == "create":
            self.audit.created += 1
            owner = transaction.session if op.is_ephemeral else 0
            self._tasks[task_id] = Life(transaction.zxid, 0, owner)
            if owner:
                self._ephemerals.setdefault(owner, set()).add(task_id)
        elif op.kind == "delete" and life is not None:
            deleted[task_id] = self._tasks.pop(task_id)
            if life.ephemeral_of:
                self._ephemerals.get(life.ephemeral_of, set()).discard(task_id)
        elif op.kind == "set" and life is not None:
            if op.version != life.version + 1:
                self._blame("stale", task_id, f"set from version {life.version} to {op.version}")
            life.version = op.version

    def _result(self, op: Op, transaction: Transaction, published: list[tuple[str, bytes]]) -> None:
        task_id = op.path[len(self._results_dir) :]
        if op.kind == "create":
            self.audit.results += 1
            self.audit.result_ms.append(transaction.time_ms)
            self._results[task_id] = times = self._results.get(task_id, 0) + 1
            if times > 1:
                self._blame("duplicated", task_id, f"result number {times}: {op.data[:200]!r}")
            self._standing.add(task_id)
            published.append((task_id, op.data))
        elif op.kind == "set":
            self._blame("duplicated", task_id, f"its result was changed: {op.data[:200]!r}")
        elif op.kind == "delete":
            self._standing.discard(task_id)

    def _assigned(self, op: Op, *, is_leaders: bool) -> None:
        if op.kind == "delete":
            self._versions.pop(op.path, None)
            return
        if op.kind not in ("create", "set"):
            return
        self._moves_on(op)
        if op.kind == "set" and not is_leaders:
            self._blame("stale", op.path, "written without a check of the epoch")
        assignment = msgspec.json.decode(op.data, type=_Assignment) if op.data else None
        for task_id, czxid, version, _ in assignment.tasks if assignment else ():
            life = self._tasks.get(task_id)
            if life is None or (life.czxid, life.version) != (czxid, version):
                continue  # what is over is carried along until the next write
            holder = (assignment.incarnation, version)  # type: ignore[union-attr]
            if life.given[1] == version and life.given != holder:
                self._blame("stale", task_id, f"version {version} was given to {life.given[0]} and to {holder[0]}")
            life.given = holder

    def _moves_on(self, op: Op) -> None:
        before = self._versions.get(op.path, -1)
        if op.version != before + 1:
            self._blame("stale", op.path, f"set from version {before} to {op.version}")
        self._versions[op.path] = op.version

    # --- Rights -----------------------------------------------------------------------------------------

    def _judge_result(self, task_id: str, data: bytes, life: Life | None, session: int, *, is_leaders: bool) -> None:
        try:
            result = msgspec.json.decode(data, type=_Result)
        except msgspec.DecodeError as error:
            self._blame("wrong", task_id, f"its result is none: {error}")
            return
        if life is None:
            if task_id in self._tasks:
                self._blame("wrong", task_id, f"{result.status}, and the task is still there")
            if result.status != "cancelled":
                self._blame("stale", task_id, f"{result.status} without taking the task away in the same transaction")
            return
        if result.czxid != life.czxid:
            self._blame("stale", task_id, f"it answers life {result.czxid:#x}, and ends life {life.czxid:#x}")
        if is_leaders:
            return  # its epoch was checked
        owner = self._members.get(session)
        if result.owner != owner:
            self._blame("stale", task_id, f"published by {result.owner} in a session of {owner}")
        if life.given != (result.owner, life.version):
            self._blame("stale", task_id, f"published by {result.owner} at version {life.version}, given {life.given}")

    def _judge_deletions(self, deleted: dict[str, Life], session: int) -> None:
        if session not in self._members:
            return  # a submitter's own
        for task_id in deleted:
            if task_id not in self._standing:
                self._blame("lost", task_id, f"a node deleted it without a result: {self._members[session]}")


class _Member(msgspec.Struct):
    incarnation: str


class _Assignment(msgspec.Struct):
    incarnation: str
    tasks: list[tuple[str, int, int, int]]


class _Result(msgspec.Struct):
    status: str
    owner: str | None = None
    czxid: int = 0


def audit(transactions: Iterable[Transaction], paths: Paths) -> Audit:
    auditor = Auditor(paths)
    for transaction in transactions:
        auditor.take(transaction)
    return auditor.audit
