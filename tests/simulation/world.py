"""One run: machines, network, ensemble and ledger, from one seed; what happened in it and what was wrong.

Each part draws from a stream of its own, so that a change in one does not shuffle all the others.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import sys
import zlib
from asyncio import events
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from tests.simulation import doubles
from tests.simulation.ensemble import Ensemble
from tests.simulation.loop import Loop, Machine
from tests.simulation.network import Connection, Network
from tests.simulation.operations import NAMES, operations
from tests.simulation.server import Entry
from tests.simulation.witness import Witness
from tests.simulation.workers import Ledger
from zkd.paths import Paths

LEVELS = ("debug", "info", "warning", "error")
UNKNOWN = 2 / 3
LOOK_S = 0.25  # how often it is asked whether something is over
LATE_S = 0.06  # by how much a timer of the product may come late: its own rounding, and a hiccup


class World:
    def __init__(self, seed: int, *, servers: int, tick_s: float, bugs: list[doubles.Patch] | None = None) -> None:
        self.seed = seed
        self.bugs = bugs or []
        self.loop = Loop(self.stream("loop"))
        self.loop.on_exception = self._exception
        self.loop.on_crash = self._crashed
        self.loop.on_resume = self._resumed
        self.loop.connect = self._connect
        self.network = Network(self.loop, self.stream("network"))
        names = [f"zk{number}" for number in range(1, servers + 1)]
        self.ensemble = Ensemble(self.loop, self.stream("ensemble"), names, tick_s=tick_s, wall_s=doubles.EPOCH_S)
        self.network.servers = {(name, 2181): server for name, server in zip(names, self.ensemble.servers, strict=True)}
        self.hosts = ",".join(f"{name}:2181" for name in names)
        self.paths = Paths()
        self.ledger = Ledger(self)
        self.witness = Witness(self, self.paths)
        self.ensemble.on_commit = self.witness.committed
        self.ensemble.happened = self.network.happened = self.happened
        self.machines: list[Machine] = []
        self.disks: dict[str, doubles.Disk] = {}
        self.trace: list[tuple[Any, ...]] = []
        self.sometimes: Counter[str] = Counter()
        self.problems: list[str] = []
        self._is_closing = False
        self._doubtful: set[Machine | None] = set()
        self.silent_crashes: set[str] = set()
        self.answered: dict[tuple[str, int], float] = {}  # (machine, session) -> when the latest answered request left

    def stream(self, name: str) -> Random:
        return Random(self.seed * 1_000_003 + zlib.crc32(name.encode()))

    def machine(self, name: str, *, hiccups: float = 0.001) -> Machine:
        rng = self.stream(name)
        machine = Machine(self.loop, name, rng, hiccups=hiccups)
        machine.wall_offset_s = rng.choice((0.0, rng.uniform(-5, 5), rng.uniform(-1e5, 1e5)))
        self.machines.append(machine)
        return machine

    # --- what happens -----------------------------------------------------------------------------------

    def tell(self, what: str, machine: Machine | None, *details: Any) -> None:
        self.trace.append((self.loop.now, what, machine, *details))

    def logged(self, level: int, event: str, fields: dict[str, Any]) -> None:
        machine = self.loop.machine
        if machine is None or machine.is_up:
            self.trace.append((self.loop.now, LEVELS[level], machine, event, fields))
            if event == "session.changed":
                self._state_seen(machine, fields["state"])
            elif event == "node.name_taken":
                self.happened("a node waited for the session of its former life")

    def _state_seen(self, machine: Machine | None, state: str) -> None:
        if state == "unknown":
            self.happened("a session was in doubt")
        elif state == "expired":
            self.happened("a client learned that its session was over")
        elif state == "connected" and machine in self._doubtful:
            self.happened("a session in doubt was answered after all")
        if state == "unknown":
            self._doubtful.add(machine)
        else:
            self._doubtful.discard(machine)

    def trace_entry(self, entry: Entry) -> None:
        self.trace.append((self.loop.now, "txn", None, entry))

    def happened(self, what: str) -> None:
        self.sometimes[what] += 1

    def broken(self, what: str) -> None:
        if self._is_closing:
            return
        self.problems.append(what)
        self.loop.is_stopped = True
        self.tell("BROKEN", self.loop.machine, what)

    def _exception(self, context: dict[str, Any]) -> None:
        task = context.get("task") or context.get("future")
        machine = getattr(task, "machine", None) or self.loop.machine
        if machine is not None and not machine.is_up:
            return
        error = context.get("exception")
        self.broken(f"{machine}: {context['message']}: {_said(error)} {task or ''}")

    def _crashed(self, machine: Machine) -> None:
        self.tell("crashed", machine)
        self.network.crashed(machine, is_heard=machine.name not in self.silent_crashes)
        self.on_crash(machine)

    on_crash: Callable[[Machine], None] = staticmethod(lambda machine: None)

    def _resumed(self, machine: Machine) -> None:
        self.tell("resumed", machine)
        if any(name == machine.name and session_id in self.ensemble.ended for name, session_id in self.answered):
            self.happened("a machine slept through its session")

    def heard(self, connection: Connection) -> None:
        """An answer reached its client: the server surely knew its session when the request left."""
        if not connection.session_id:
            return  # it was told that its session is over
        key = (connection.machine.name, connection.session_id)
        self.answered[key] = max(self.answered.get(key, 0.0), connection.answered_at)

    def _connect(self, machine: Machine, host: str, port: int) -> Any:
        return lambda factory: self.network.connect(machine, host, port, factory)

    def run(self, until: float, is_over: Callable[[], bool] | None = None) -> bool:
        """Let time pass until then; less if something breaks, or when `is_over`, which is asked now and then."""
        loop = self.loop
        is_early = [False]

        def look() -> None:
            if is_over is not None and is_over():
                loop.is_stopped = is_early[0] = True
            elif not is_early[0] and loop.now < until:
                loop.after(LOOK_S, look)

        if is_over is not None:
            look()
        if not self.problems and not is_early[0]:
            loop.run(until)
        over, is_early[0] = is_early[0], True
        return over and not self.problems

    # --- the end ----------------------------------------------------------------------------------------

    def dispose(self) -> None:
        """Let go of everything; what dies with a complaint complains now."""
        self.loop.is_over = True
        hook = sys.unraisablehook
        sys.unraisablehook = lambda _: None  # dead machines' coroutines, closed in the middle
        events._set_running_loop(self.loop)
        try:
            for task in sorted(asyncio.all_tasks(self.loop), key=hash):
                task._log_destroy_pending = not self._is_dead(task)
                if not task._log_destroy_pending:
                    self._is_closing = True
                    _close(task.get_coro())
            self._is_closing = False
            for machine in self.machines:
                machine.ready.clear()
                machine.timers.clear()
            self.loop._heap.clear()
            # Nothing of the world leads to the daemons any more: what they left unread is found now.
            self.ensemble.on_request = None
            self.ensemble.cut = self.on_crash = lambda _: None  # type: ignore[method-assign]
            self.network.on_write = self.network.on_read = lambda *_: None
            self.network.connections.clear()
            self.network.dead.clear()
            gc.collect()
        finally:
            events._set_running_loop(None)
            sys.unraisablehook = hook
        self.loop.close()

    def _is_dead(self, task: Any) -> bool:
        return bool(self.problems) or not task.machine.is_up

    # --- the story --------------------------------------------------------------------------------------

    def digest(self) -> str:
        digest = hashlib.sha256()
        for line in self.lines():
            digest.update(line.encode())
        return digest.hexdigest()

    def lines(self) -> list[str]:
        return [_line(item) for item in self.trace]


def _line(item: tuple[Any, ...]) -> str:
    at, what, machine, *rest = item
    if what == "txn":
        return f"{at:10.5f} {_entry(rest[0])}"
    who = f"{machine!r:6}" if machine is not None else "      "
    if what in LEVELS:
        fields = " ".join(f"{key}={value}" for key, value in rest[1].items())
        return f"{at:10.5f} {who} {what}: {rest[0]} {fields}"
    return f"{at:10.5f} {who} {what}: {' '.join(map(str, rest))}"


def _entry(entry: Entry) -> str:
    who = f"{entry.request.peer.connection.machine!r:6}" if entry.request is not None else "zk    "
    ops = ""
    if entry.request is not None and entry.op > 0:
        ops = ", ".join(
            f"{NAMES[op]} {path}{'' if version == -1 else f'@{version}'}" for op, path, version in operations(entry)
        )
    kinds = {1: "+", 2: "-", 3: "*"}
    done = " ".join(f"{kinds[kind]}{path}" for kind, path in entry.changed)
    code = f" code {entry.code}" if entry.code else ("" if entry.changed else " nothing")
    return (
        f"{who} #{entry.zxid:x} {NAMES.get(entry.op, entry.op)} by {entry.session_id & 0xFFFF:x}: {ops} -> {done}{code}"
    )


def _said(error: BaseException | None) -> str:
    if error is None:
        return ""
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1:] if error.__traceback__ else []
    where = f" at {last[0].filename.rpartition('/')[2]}:{last[0].lineno}" if last else ""
    if isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__}({', '.join(_said(each) for each in error.exceptions)})"
    return f"{type(error).__name__}: {error}{where}"


def _close(coroutine: Any) -> None:
    """In the middle of whatever it did when its machine died; it may want to await something on its way out."""
    for _ in range(100):
        with suppress(BaseException):
            coroutine.close()
            return
