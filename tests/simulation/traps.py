"""Faults that wait for a write of a kind: what it is for is told from what is written, without marks in the product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.simulation.loop import Machine
from tests.simulation.operations import NAMES
from zkd.zk.server.wire import Op

if TYPE_CHECKING:
    from tests.simulation.world import World

KINDS = ("publish", "record", "cancelled", "assign", "take back", "leader end", "mourn", "office", "join", "candidate")
RARE_KINDS = ("take back", "office", "join")
CLIENT_KINDS = ("drop", "cancel")
ANY_KINDS = ("exists", "get_data", "multi_read", "get_children2", "add_watch", "set_watches2", "heartbeat")


@dataclass
class Trap:
    """A fault that waits for the next request of a kind: cut `before` or `after` its commit, or a crash of its
    machine `leaving` (nothing was sent), `left` or `answered`."""

    kind: str
    when: str
    machine: str = ""  # of this one only
    times: int = 1  # the n-th of them
    ends: str = "both"  # who learns of the cut

    def is_met(self, kind: str, machine: Machine) -> bool:
        if kind != self.kind or (self.machine and machine.name != self.machine):
            return False
        self.times -= 1
        return self.times == 0


def kind_of(world: World, ops: list[tuple[int, str, int]]) -> str:
    """What this request is for."""
    paths = world.paths
    op, path, _ = ops[0]
    if op == Op.CHECK and path == paths.epoch:
        if len(ops) == 1:
            return "check"
        op, path, _ = ops[1]
        if path.startswith(paths.assignments):
            return "assign"
        if path.startswith(paths.results):
            return "mourn" if op != Op.DELETE else "reap"
        return "take back" if op == Op.SET_DATA else "leader end"
    if path.startswith(f"{paths.tasks}/"):
        if op == Op.DELETE:
            return "publish" if any(other.startswith(paths.results) for _, other, _ in ops) else "cancel"
        if op == Op.SET_DATA:
            return "record"
        if op in (Op.CREATE, Op.CREATE2, Op.CREATE_TTL):
            return "drop"
    if op in (Op.CREATE, Op.CREATE2):
        if path.startswith(f"{paths.results}/"):
            return "cancelled"
        if path.startswith(f"{paths.nodes}/"):
            return "join"
        if path.startswith(f"{paths.candidates}/"):
            return "candidate"
    if op == Op.SET_DATA:
        if path == paths.epoch:
            return "office"
        if path.startswith(paths.statuses):
            return "heartbeat"
    return NAMES.get(op, "other")
