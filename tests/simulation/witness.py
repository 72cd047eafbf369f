"""Reads the log of committed transactions as it grows, and says what no log may hold.

It knows no daemon's mind: only what was written, by which session, of which machine, and the ledger of runs.
A *life* of an id begins when its task's znode is created and has at most one result, ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.simulation.operations import operations, refusal
from tests.simulation.server import CLOSE_SESSION, REAP, Entry
from zkd import codec
from zkd.errors import BadRecord
from zkd.paths import Paths
from zkd.records import CHARGED, NODE_LOSSES_MAX, Assignment, Leader, Node, Result, Task
from zkd.zk.server.wire import Code, Op

if TYPE_CHECKING:
    from tests.simulation.world import World

CREATED, DELETED, CHANGED = 1, 2, 3
GRACE_S = 3.0  # so soon after a deletion the loss of the holder makes it the leader's business
CLOCKS_S = 1.0  # how much sooner than asked for a task may expire: latencies, and the rounding of ticks


@dataclass(slots=True)
class Life:
    """One life of a task's id."""

    id: str
    czxid: int
    born_at: float
    owner: int  # the session, if it is ephemeral
    by: str  # the machine that dropped it
    task: Task | None
    version: int = 0
    histories: list[list[Any]] = field(default_factory=list)  # the attempts, at each version
    end: str | None = None  # published | deleted | ephemeral | ttl
    ended_at: float = 0.0
    result: Result | None = None
    result_at: float = 0.0
    given: dict[int, list[tuple[str, str]]] = field(default_factory=dict)  # version -> its holders: node, incarnation
    is_edited: bool = False
    epoch_at_end: int = 0


class Witness:
    def __init__(self, world: World, paths: Paths) -> None:
        self.world = world
        self.paths = paths
        self.lives: dict[tuple[str, int], Life] = {}  # by id and czxid
        self.by_id: dict[str, list[Life]] = {}
        self.epoch_owner: dict[int, tuple[int, str]] = {}  # epoch -> session, node
        self.lost: dict[tuple[str, str], float] = {}  # (node, incarnation) -> when it was seen to go
        self.here: dict[str, Node] = {}
        self.fired_by: dict[str, str] = {}  # schedule -> the node that led when it fired last
        self.drained: set[str] = set()  # nodes that were told to drain, or stopped
        self.watched = (
            (f"{paths.tasks}/", self._task),
            (f"{paths.results}/", self._result),
            (f"{paths.assignments}/", self._assignment),
            (f"{paths.nodes}/", self._node),
            (paths.epoch, self._epoch),
            (f"{paths.node_states}/", self._state),
        )

    def broken(self, what: str) -> None:
        self.world.broken(what)

    def sometimes(self, what: str) -> None:
        self.world.happened(what)

    # --- the log ----------------------------------------------------------------------------------------

    def committed(self, entry: Entry) -> None:
        self.world.trace_entry(entry)
        if not entry.changed:
            if entry.op == Op.MULTI and entry.body and not entry.code:
                self._refused(entry)
            return
        ended = self.world.ensemble.ended.get(entry.session_id)
        if ended is not None and ended != entry.zxid and entry.op != REAP:
            self.broken(f"session {entry.session_id:#x} wrote after its end")
        for kind, path in entry.changed:
            for prefix, take in self.watched:
                if path.startswith(prefix):
                    take(entry, kind, path)
                    break

    def machine(self, entry: Entry) -> str:
        """Whose write this is; "" for the ensemble's own."""
        return "" if entry.request is None else entry.request.peer.connection.machine.name

    def is_daemon(self, entry: Entry) -> bool:
        return self.machine(entry).startswith("n")

    # --- tasks ------------------------------------------------------------------------------------------

    def _task(self, entry: Entry, kind: int, path: str) -> None:
        task_id = path[len(self.paths.tasks) + 1 :]
        if kind == CREATED:
            node = self.world.ensemble.tree.nodes.get(path)
            if node is None:
                return  # and gone again in the same transaction
            life = Life(task_id, entry.zxid, self.world.loop.now, max(0, node.owner), self.machine(entry), None)
            life.task = self._decoded(node.data)
            life.histories.append(list(life.task.attempts) if life.task else [])
            self.lives[task_id, entry.zxid] = life
            before = self.by_id.setdefault(task_id, [])
            if before:
                self.sometimes("an id was dropped again")
                # One that ended with its session before its creation was answered is dropped again in the next one.
                if task_id.startswith("t-") and before[-1].end != "ephemeral":
                    self.broken(f"{task_id} was dropped twice by the one client that knows this id")
            before.append(life)
            if self.is_daemon(entry):
                self._recurred(entry, life)
            return
        life = self.by_id[task_id][-1]
        if kind == DELETED:
            life.ended_at = self.world.loop.now
            life.epoch_at_end = self._epoch_now()
            if entry.op == REAP:
                life.end = "ttl"
            elif entry.op == CLOSE_SESSION:
                life.end = "ephemeral"
            elif self.is_daemon(entry):
                life.end = "published"
                if f"{self.paths.results}/{task_id}" not in self.world.ensemble.tree.nodes:
                    self.broken(f"{self.machine(entry)} deleted task {task_id} without a result")
            else:
                life.end = "deleted"
            if life.end != "published" and self._is_running(life):
                self.sometimes("a task was deleted while it ran")
            return
        node = self.world.ensemble.tree.nodes.get(path)
        if node is None:
            return
        life.version = node.version
        task = self._decoded(node.data)
        before_, after = life.histories[-1], list(task.attempts) if task else []
        life.histories.append(after)
        if not self.is_daemon(entry):
            life.is_edited = True
            life.task = task
            return
        kept = before_[:-1] if before_ and before_[-1].cause == "drain" else before_
        if not (len(after) > 0 and after[:-1] in (before_, kept)):
            self.broken(f"the history of {task_id} was rewritten from {before_} to {after}")
            return
        self._attempted(life, after[-1], node.version - 1, entry)

    def _recurred(self, entry: Entry, life: Life) -> None:
        """A leader dropped the task of a schedule: in its epoch, not early, once, and together with its own record."""
        name, _, slot = life.id.rpartition(".")
        first = operations(entry)[0]
        if first != (int(Op.CHECK), self.paths.epoch, self._epoch_now()):
            self.broken(f"{life.id} was dropped by {life.by} without a check of the epoch")
        if f"{self.paths.schedule_states}/{name}" not in [path for _, path in entry.changed]:
            self.broken(f"{life.id} was dropped and not noted")
        if len(self.by_id[life.id]) > 1:
            self.broken(f"slot {slot} of {name} fired twice")
        due_at = datetime.strptime(slot, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        # By the clock of a server that led: a new one's, which may stand elsewhere, is known after the first write.
        ensemble = self.world.ensemble
        early_s = due_at - ensemble.wall_s - self.world.loop.now - max(ensemble.offsets_led)
        if early_s > 0.001:
            self.broken(f"slot {slot} of {name} fired {early_s:.3f} s early")
        self.sometimes("a slot of a schedule fired")
        leader = self.epoch_owner[self._epoch_now()][1]
        if self.fired_by.setdefault(name, leader) != leader:
            self.sometimes("another leader fired the next slot")
            self.fired_by[name] = leader

    def _attempted(self, life: Life, attempt: Any, version: int, entry: Entry) -> None:
        """An attempt was recorded; did it happen so?"""
        cause, node = attempt.cause, attempt.node
        if cause in CHARGED:
            self._charged(life, attempt, version)
        elif cause == "node_loss":
            self.sometimes("a task was taken back from a lost node")
            given = life.given.get(version, [])
            if node not in [holder for holder, _ in given]:
                self.broken(f"{life.id} was taken back from {node}, which was not given version {version}")
            for holder in given:
                if holder not in self.lost:
                    self.broken(f"{life.id} was taken back from {holder}, which is not lost")
        elif cause == "drain":
            self.sometimes("a task was handed back by a draining node")
            if node not in self.drained:
                self.broken(f"{life.id} was handed back by {node}, which was never told to drain")

    def _charged(self, life: Life, attempt: Any, version: int) -> None:
        for run in self.runs_of(life):
            if run.node == attempt.node and run.life[1] == version and run.outcome == attempt.cause:
                return
        if len(self.by_id[life.id]) > 1:  # a former life's holder, which it was not: docs/decisions/0001 knows the gap
            self.sometimes("a life of an id met what was meant for the one before")
            return
        self.broken(f"{life.id} was charged with {attempt.cause} on {attempt.node}, but no run ended so")

    def _epoch_now(self) -> int:
        node = self.world.ensemble.tree.nodes.get(self.paths.epoch)
        return node.version if node else 0

    def owes_a_cancellation(self, life: Life) -> bool:
        """Whether somebody is here who knows that this task was deleted before its end, and has to publish that:
        the holder that runs it, or the leader that gave it to a node which was lost at about that time. A node that
        was cut off, and whose list said so for a while only, never heard of it: docs/protocol.md knows the gap."""
        if life.end in (None, "published") or life.result is not None or len(self.by_id[life.id]) > 1:
            return False
        given = life.given.get(life.version, [])
        if len(given) != 1:
            return False
        lost_at = self.lost.get(given[0])
        if lost_at is None:
            return any(run.life[1:] == (life.version, given[0][1]) for run in self.runs_of(life))
        return 0 <= lost_at - life.ended_at < GRACE_S and life.epoch_at_end == self._epoch_now()

    def runs_of(self, life: Life) -> list[Any]:
        return [
            run for run in self.world.ledger.runs if run.task == life.id and run.fence.startswith(f"{life.czxid:x}.")
        ]

    def _is_running(self, life: Life) -> bool:
        return any(run.outcome == "running" for run in self.runs_of(life))

    def _decoded(self, data: bytes | None) -> Task | None:
        try:
            return codec.decode_task(data or b"")
        except BadRecord:
            return None

    # --- results ----------------------------------------------------------------------------------------

    def _result(self, entry: Entry, kind: int, path: str) -> None:
        task_id = path[len(self.paths.results) + 1 :]
        if kind == CHANGED:
            self.broken(f"the result of {task_id} was changed")
        if kind != CREATED:
            return
        node = self.world.ensemble.tree.nodes[path]
        result = codec.decode_result(node.data or b"")
        lives = self.by_id.get(task_id, [])
        if result.czxid:
            life = self.lives.get((task_id, result.czxid))
        else:
            life = next((it for it in lives if it.result is None), None)
        if life is None and not result.czxid and lives:
            life = lives[-1]
        if life is None or life.id != task_id:
            self.broken(f"a result of {task_id}, of which there was no task {result.czxid:#x}")
            return
        if life.result is not None:
            self.broken(f"a second result of {task_id}: {life.result.status}, then {result.status}")
            return
        life.result, life.result_at = result, self.world.loop.now
        self._author(entry, task_id, result)
        is_with_task = (DELETED, f"{self.paths.tasks}/{task_id}") in entry.changed
        if result.status == "cancelled":
            if life.end is None or life.end == "published":
                self.broken(f"{task_id} is called cancelled, and was {life.end or 'not deleted'}")
            if (result.owner or "").startswith("leader") and life.version in life.given:
                self.sometimes("a leader mourned what a lost node held")
            if not result.czxid:
                self.sometimes("a task came and went before it was read")
        elif not is_with_task:
            self.broken(f"the result of {task_id}, {result.status}, was not published with the task's end")
        if result.status == "done":
            self._done(life, result)
        elif result.status == "failed":
            self._failed(life, result)
        elif result.status == "expired":
            self._expired(life)
        elif result.status == "rejected" and not self._may_be_rejected(life, result):
            self.broken(f"{task_id} was rejected: {result.error}")

    def _author(self, entry: Entry, task_id: str, result: Result) -> None:
        """Only who the result says may have written it, in the session that it names."""
        owner = result.owner or ""
        if owner.startswith("leader of epoch "):
            epoch = int(owner.rpartition(" ")[2])
            node = self.world.ensemble.tree.nodes[self.paths.epoch]
            if epoch != node.version:
                self.broken(f"{owner} published {task_id} in epoch {node.version}")
            if self.epoch_owner[epoch][0] != entry.session_id:
                self.broken(f"session {entry.session_id:#x} published {task_id} as {owner}")
        elif int(owner.partition(".")[0] or "0", 16) != entry.session_id:
            self.broken(f"the result of {task_id} by {owner!r} was written in session {entry.session_id:#x}")

    def _done(self, life: Life, result: Result) -> None:
        number = int(bytes(result.value))  # type: ignore[arg-type]
        run = self.world.ledger.runs[number]
        said = (result.czxid, life.version, result.owner or "")
        if run.task != life.id or run.outcome != "done" or run.life != said or run.attempt != result.attempt:
            self.broken(f"{life.id} is done by run {run}, and its result says {said} attempt {result.attempt}")
        given = life.given.get(life.version, [])
        if (result.node, result.owner) not in given:
            self.broken(f"{life.id} is done by {result.owner}; version {life.version} was given to {given}")
        elif len(given) > 1 and given[0] != (result.node, result.owner):
            self.sometimes("a second copy overtook the first")
        for other in life.task.after if life.task else ():
            if not any(it.result is not None and it.result.status == "done" for it in self.by_id.get(other, [])):
                self.broken(f"{life.id} is done, and {other}, after which it should come, is not")
        if run.node != result.node:
            self.broken(f"{life.id} is done on {run.node}, and its result says {result.node}")
        if sum(run.outcome == "done" for run in self.runs_of(life)) > 1:
            self.sometimes("a task ran more than once and has one result")

    def _failed(self, life: Life, result: Result) -> None:
        assert life.task is not None
        charged = sum(attempt.cause in CHARGED for attempt in result.attempts)
        losses = sum(attempt.cause == "node_loss" for attempt in result.attempts)
        if result.error is not None and result.error.kind == "dependency":
            self.sometimes("a task failed with what it waited for")
            ended = [it.result.status for other in life.task.after for it in self.by_id.get(other, []) if it.result]
            if not any(status != "done" for status in ended):
                self.broken(f"{life.id} failed for what it waited for, which ended as {ended}")
        elif losses <= NODE_LOSSES_MAX and charged != life.task.retries + 1:
            self.broken(f"{life.id} failed after {charged} attempts and {losses} losses, retries {life.task.retries}")
        if charged and result.attempts[-1].cause in CHARGED:
            self._charged(life, result.attempts[-1], life.version)
        if charged > 1:
            self.sometimes("a task used up its retries")

    def _expired(self, life: Life) -> None:
        assert life.task is not None
        age_s = self.world.loop.now - life.born_at
        if life.task.not_after_s is None or age_s < life.task.not_after_s - CLOCKS_S:
            self.broken(f"{life.id} expired after {age_s:.1f} s, not_after_s is {life.task.not_after_s}")
        self.sometimes("a task expired")

    def _may_be_rejected(self, life: Life, result: Result) -> bool:
        if life.task is None:
            return True
        return bool(life.task.after) and result.error is not None and result.error.path == "$.after"  # a circle

    # --- the leader's and the nodes' own ------------------------------------------------------------------

    def _assignment(self, entry: Entry, kind: int, path: str) -> None:
        if kind != CHANGED:
            return
        epoch = self.world.ensemble.tree.nodes[self.paths.epoch].version
        first = operations(entry)[0]
        if first != (int(Op.CHECK), self.paths.epoch, epoch):
            self.broken(f"{path} was written without a check of epoch {epoch}: {first}")
        elif self.epoch_owner[epoch][0] != entry.session_id:
            self.broken(f"{path} was written by session {entry.session_id:#x}, which does not lead epoch {epoch}")
        assignment = codec.decode(self.world.ensemble.tree.nodes[path].data or b"", Assignment)
        node = path[len(self.paths.assignments) + 1 :]
        for line in assignment.tasks:
            life = self.lives.get((line.id, line.czxid))
            if life is None:
                self.broken(f"{node} was given {line.id} of a life that never was")
                continue
            known = life.given.setdefault(line.version, [])
            if (node, assignment.incarnation) in known:
                continue
            known.append((node, assignment.incarnation))
            if len(known) > 1 and (life.task is None or not life.task.speculative):
                self.broken(f"version {line.version} of {line.id} was given to {known}")
            elif len(known) > 1:
                self._copied(life, known)

    def _copied(self, life: Life, holders: list[tuple[str, str]]) -> None:
        self.sometimes("a task was given to a second node, too")
        if sum(holder not in self.lost for holder in holders) > 2:
            self.broken(f"{life.id} was given to {holders}")

    def _node(self, entry: Entry, kind: int, path: str) -> None:
        name = path[len(self.paths.nodes) + 1 :]
        if kind == DELETED:
            gone = self.here.pop(name, None)
            if gone is not None:
                self.lost[name, gone.incarnation] = self.world.loop.now
            return
        node = self.world.ensemble.tree.nodes[path]
        record = codec.decode(node.data or b"", Node)
        before = self.here.get(name)
        if before is not None and before.incarnation != record.incarnation:
            self.lost[name, before.incarnation] = self.world.loop.now
        self.here[name] = record
        if record.draining:
            self.drained.add(name)
        if int(record.incarnation.partition(".")[0], 16) != node.owner:
            self.broken(f"the entry of {name} says {record.incarnation} in session {node.owner:#x}")

    def _state(self, entry: Entry, kind: int, path: str) -> None:
        if kind != DELETED and b"draining" in (self.world.ensemble.tree.nodes[path].data or b""):
            self.drained.add(path[len(self.paths.node_states) + 1 :])

    def _epoch(self, entry: Entry, kind: int, path: str) -> None:
        node = self.world.ensemble.tree.nodes[path]
        if path != self.paths.epoch or kind != CHANGED:
            return
        leader = codec.decode(node.data or b"", Leader)
        self.epoch_owner[node.version] = (entry.session_id, leader.node)
        if (CREATED, self.paths.leader) not in entry.changed:
            self.broken(f"epoch {node.version} began without a leader's entry")
        if node.version > 1:
            self.sometimes("another leader took office")

    # --- what was refused -----------------------------------------------------------------------------------

    def _refused(self, entry: Entry) -> None:
        """A transaction that changed nothing: whose, and why?"""
        culprit = refusal(entry)
        if culprit is None:
            return  # only checks
        op, path, code = culprit
        by_daemon = self.is_daemon(entry)
        if path == self.paths.epoch and by_daemon:
            self.sometimes("a deposed leader's write was refused" if op == Op.CHECK else "two stood for one office")
        elif path.startswith(self.paths.tasks) and code == Code.BAD_VERSION and by_daemon:
            self.sometimes("a stale owner was refused by the version")
        elif path.startswith(self.paths.tasks) and code == Code.NO_NODE:
            if by_daemon:
                life = self.by_id[path[len(self.paths.tasks) + 1 :]][-1]
                if life.end == "published":
                    self.sometimes("a node found its own lost commit")
                else:
                    self.sometimes("a cancel came before the end")
            else:
                self.sometimes("the end came before a cancel")
        elif path.startswith(self.paths.results) and code == Code.NODE_EXISTS:
            self.sometimes("a result was there already")
        elif path == self.paths.leader and code == Code.NODE_EXISTS:
            self.sometimes("a former leader's entry stood in the way")
