"""Who does the harm: faults at drawn times, each with its end, all of them undone before the verdict.

Most faults come at a time, some at a *point*: the next write of a kind, of a machine, is cut off before or after
it is committed, or its machine dies in that moment. Kinds are told by what is written, so that the product
needs no marks.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.loop import Machine
from tests.simulation.network import Connection
from tests.simulation.operations import decoded
from tests.simulation.server import Request, Server
from tests.simulation.traps import ANY_KINDS, CLIENT_KINDS, KINDS, RARE_KINDS, Trap, kind_of
from zkd.zk.server.wire import INT, Malformed, Reader

if TYPE_CHECKING:
    from tests.simulation.scenario import Cluster
    from tests.simulation.world import World


class Nemesis:
    def __init__(self, world: World, cluster: Cluster, rng: Random) -> None:
        self.world = world
        self.cluster = cluster
        self.rng = rng
        self.traps: list[Trap] = []  # at the servers
        self.mines: list[Trap] = []  # at the machines
        self._answers: dict[int, tuple[Connection, int]] = {}
        self._undo: list[Callable[[], None]] = []
        self.is_healed = False
        world.ensemble.on_request = self._request
        world.ensemble.cut = self._cut_after
        world.network.on_write = self._written
        world.network.on_read = self._read
        world.on_crash = self._crashed  # type: ignore[method-assign]

    def start(self, for_s: float) -> None:
        families = (
            (self.cut, 3),
            (self.trap, 6),
            (self.mine, 3),
            (self.pause, 4),
            (self.crash, 3),
            (self.expire, 2),
            (self.partition, 3),
            (self.lose_leader, 2),
            (self.crash_server, 1),
            (self.freeze_server, 2),
            (self.lag, 3),
            (self.stall, 2),
            (self.depose, 2),
            (self.refuse, 1),
            (self.slow, 1),
            (self.stop, 2),
            (self.shadow, 1),
            (self.succession, 2),
        )
        chosen = [fault for fault, weight in families for _ in range(weight)]
        theme = self.rng.sample(chosen, self.rng.randint(1, 5))
        if self.rng.random() < 0.6:
            theme += [self.trap] * (len(theme) // 2 + 1)
        for _ in range(self.rng.randint(2, 14)):
            self.world.loop.at(self.rng.uniform(0.2, for_s), self._strike, self.rng.choice(theme))

    def _strike(self, fault: Callable[[], None]) -> None:
        if not self.is_healed:
            fault()

    def _tell(self, what: str, *details: object) -> None:
        self.world.tell("fault", None, what, *details)

    def _later(self, seconds: float, undo: Callable[[], None]) -> None:
        """Undo it after so long, or when all is healed."""
        self._undo.append(undo)

        def end() -> None:
            if undo in self._undo:
                self._undo.remove(undo)
                undo()

        self.world.loop.after(seconds, end)

    def heal(self) -> None:
        self._tell("healed")
        self.is_healed = True
        self.traps.clear()
        self.mines.clear()
        while self._undo:
            self._undo.pop(0)()
        for machine in self.world.machines:
            machine.crash_at_handle = 0
            machine.resume()
        for node in self.cluster.nodes:
            node.drop_shadows()
            node.boot()

    # --- choosing ---------------------------------------------------------------------------------------

    def _machine(self) -> Machine | None:
        machines = [machine for machine in self.world.machines if machine.is_up]
        daemons = [machine for machine in machines if machine.name.startswith("n")]
        leader = self._leader()
        if leader is not None and self.rng.random() < 0.3:
            return leader
        some = daemons if daemons and self.rng.random() < 0.8 else machines
        return self.rng.choice(some) if some else None

    def _leader(self) -> Machine | None:
        for node in self.cluster.nodes:
            daemon = node.daemon
            if daemon is not None and hasattr(daemon, "election") and daemon.election.reign is not None:
                return node.machine
        return None

    def _span_s(self) -> float:
        """Shorter than a session, about as long, or longer."""
        timeout_s = self.cluster.timeout_s
        return self.rng.choice(
            (
                self.rng.uniform(0.01, 0.3),
                self.rng.uniform(0.3, 1.0) * timeout_s,
                self.rng.uniform(0.6, 1.3) * timeout_s,
                self.rng.uniform(1.2, 3.0) * timeout_s,
            )
        )

    # --- faults -----------------------------------------------------------------------------------------

    def cut(self) -> None:
        machine = self._machine()
        ends = self.rng.choice(("both", "both", "client", "server"))
        for connection in self.world.network.of(machine) if machine else []:
            self._tell("cut", machine, connection.server.name, ends)
            connection.cut(client=ends != "server", server=ends != "client")

    def trap(self) -> None:
        kind = self.rng.choice(KINDS * 3 + RARE_KINDS * 3 + CLIENT_KINDS * 3 + ANY_KINDS)
        machine = self._machine() if self.rng.random() < 0.5 else None
        trap = Trap(
            kind,
            self.rng.choice(("before", "after", "after")),
            machine.name if machine else "",
            self.rng.choice((1, 1, 2, 3)),
            self.rng.choice(("both", "both", "both", "client", "server")),
        )
        self._tell("trap", trap)
        self.traps.append(trap)

    def mine(self) -> None:
        mine = Trap(
            self.rng.choice(KINDS * 4 + CLIENT_KINDS + ANY_KINDS),
            self.rng.choice(("leaving", "left", "left", "answered")),
            times=self.rng.choice((1, 1, 2, 3)),
        )
        self._tell("mine", mine)
        self.mines.append(mine)

    def pause(self) -> None:
        machine, span_s, suspend = self._machine(), self._span_s(), self.rng.random() < 0.3
        if machine is not None:
            self._tell("pause", machine, f"{span_s:.2f}s", "suspended" if suspend else "")
            machine.pause(suspend=suspend)
            self._later(span_s, machine.resume)

    def crash(self) -> None:
        machine = self._machine()
        if machine is None or machine.name == "op":
            return
        if self.rng.random() < 0.4:
            self.world.silent_crashes.add(machine.name)
        if self.rng.random() < 0.5:
            machine.crash_at_handle = machine.handles + self.rng.randint(1, 300)
            self._tell("crash to come", machine, machine.crash_at_handle)
        else:
            machine.crash()

    def expire(self) -> None:
        session_ids = sorted(self.world.ensemble.sessions.by_id)
        if session_ids:
            session_id = self.rng.choice(session_ids)
            self._tell("expire", f"{session_id:#x}")
            self.world.ensemble.expire(session_id)

    def partition(self) -> None:
        network = self.world.network
        machine, span_s = self._machine(), self._span_s()
        if machine is None:
            return
        servers = [server.name for server in self.world.ensemble.servers]
        if self.rng.random() < 0.5:
            servers = self.rng.sample(servers, self.rng.randint(1, len(servers)))
        directions = self.rng.choice((("up", "down"), ("up", "down"), ("up",), ("down",)))
        self._tell("partition", machine, servers, directions, f"{span_s:.2f}s")
        for server in servers:
            network.block(machine.name, server, directions)

        def mend() -> None:
            for server in servers:
                network.unblock(machine.name, server, directions)

        self._later(span_s, mend)

    def lose_leader(self) -> None:
        down_s = self.rng.choice((0.05, self.rng.uniform(0.1, 0.6), self._span_s()))
        self._tell("ensemble loses its leader", f"{down_s:.2f}s")
        self.world.ensemble.lose_leader(down_s)

    def crash_server(self) -> None:
        server, span_s = self.rng.choice(self.world.ensemble.servers), self._span_s()
        if server.is_up:
            self._tell("server crashes", server.name, f"{span_s:.2f}s")
            server.crash()
            self.world.ensemble.check_quorum()
            self._later(span_s, server.start)

    def freeze_server(self) -> None:
        server, span_s = self.rng.choice(self.world.ensemble.servers), self._span_s()
        if server.is_up and not server.is_frozen:
            self._tell("server freezes", server.name, f"{span_s:.2f}s")
            server.freeze()
            self.world.loop.after(0.5, self.world.ensemble.check_quorum)
            self._later(span_s, server.thaw)

    def lag(self) -> None:
        server, lag_s = self.rng.choice(self.world.ensemble.servers), self.rng.choice((0.005, 0.05, 0.4, 1.2))
        self._lag(server, lag_s, self.rng.uniform(0.2, 4.0))
        if self.rng.random() < 0.5:
            self.world.loop.after(self.rng.uniform(0.0, 2 * lag_s), self._strike, self.cut)

    def _lag(self, server: Server, lag_s: float, span_s: float) -> None:
        def end() -> None:
            server.lag_s = 0.0

        self._tell("server lags", server.name, f"{lag_s:.3f}s")
        server.lag_s = lag_s
        self._later(span_s, end)

    def stall(self) -> None:
        """The disks of the ensemble stall, and perhaps its leader is lost meanwhile."""
        ensemble, span_s = self.world.ensemble, self.rng.uniform(0.1, 1.0)

        def end() -> None:
            ensemble.stall_s = 0.0

        self._tell("disks stall", f"{span_s:.2f}s")
        ensemble.stall_s = self.rng.choice((0.05, 0.3))
        self._later(span_s, end)
        if self.rng.random() < 0.6:
            self.world.loop.after(span_s * self.rng.random(), self._strike, self.lose_leader)

    def depose(self) -> None:
        """Somebody removes the leader's entry and its place in the queue; its session lives on, and if its server
        lags it goes on leading for a while."""
        ensemble, paths = self.world.ensemble, self.world.paths
        entry = ensemble.tree.nodes.get(paths.leader)
        if entry is not None and ensemble.has_leader:
            owned = ensemble.tree.ephemerals.get(entry.owner, {})
            gone = [paths.leader, *(path for path in owned if path.startswith(f"{paths.candidates}/"))]
            machine = self._leader()
            if machine is not None and self.rng.random() < 0.7:
                for connection in self.world.network.of(machine):
                    self._lag(connection.server, self.rng.uniform(0.2, 0.8), 1.0)
            self._tell("depose", gone)
            ensemble.remove(gone)

    def refuse(self) -> None:
        server = self.rng.choice(self.world.ensemble.servers)

        def end() -> None:
            server.is_refusing = False

        self._tell("server refuses", server.name)
        server.is_refusing = True
        if self.rng.random() < 0.5:
            server.drop_all()
        self._later(self._span_s(), end)

    def slow(self) -> None:
        network, by = self.world.network, self.rng.choice((5.0, 20.0, 100.0))

        def end() -> None:
            network.slowness = 1.0

        self._tell("network slows down", by)
        network.slowness = by
        self._later(self._span_s(), end)

    def stop(self) -> None:
        """An orderly stop; it is started again by who stopped it."""
        self.rng.choice(self.cluster.nodes).stop()

    def shadow(self) -> None:
        """A node is frozen and believed dead, a second one of its name is started; then the first one wakes up."""
        node = self.rng.choice(self.cluster.nodes)
        machine = node.machine
        if machine is None or not machine.is_up or node.daemon is None:
            return
        span_s = self._span_s()
        self._tell("shadow", machine, f"{span_s:.2f}s")
        machine.pause()
        node.leave_shadow()
        self.world.loop.after(span_s / 2, node.boot)
        self._later(span_s, machine.resume)

    def succession(self) -> None:
        """A node dies and comes back at once, and the leader dies while it gives it new work for what it held."""
        nodes = [node for node in self.cluster.nodes if node.is_serving and node.machine is not self._leader()]
        if not nodes:
            return
        node = self.rng.choice(nodes)
        before = self.world.witness.here.get(node.name)
        assert node.machine is not None
        self._tell("succession", node.machine)
        node.machine.crash()
        self.world.loop.after(0.02, node.boot)
        died_at = self.world.loop.now

        def look() -> None:
            here = self.world.witness.here.get(node.name)
            if here is not None and here is not before:
                self.world.loop.after(self.rng.uniform(0.002, 0.012), self._strike, self._kill_leader)
            elif self.world.loop.now - died_at < 1.0:
                self.world.loop.after(0.001, look)

        look()

    def _kill_leader(self) -> None:
        leader = self._leader()
        if leader is not None:
            self._tell("the leader dies", leader)
            leader.crash()

    # --- traps ------------------------------------------------------------------------------------------

    def _request(self, request: Request) -> bool:
        if not self.traps:
            return True
        machine = request.peer.connection.machine
        try:
            kind = kind_of(self.world, decoded(request.op, request.reader()))
        except Malformed:
            return True
        for trap in self.traps:
            if trap.is_met(kind, machine):
                self.traps.remove(trap)
                if trap.when == "after":
                    request.is_cut = trap.ends
                    self._tell("to be cut after its commit", kind, machine, trap.ends)
                    return True
                self._tell("cut before its commit", kind, machine, trap.ends)
                self._cut(request, trap.ends)
                return False
        return True

    def _cut_after(self, request: Request) -> None:
        kind = kind_of(self.world, decoded(request.op, request.reader()))
        self.world.happened(f"the answer to a {kind} was lost")
        self._tell("cut after its commit", request.peer.connection.machine)
        self._cut(request, request.is_cut)

    def _cut(self, request: Request, ends: str) -> None:
        connection = request.peer.connection
        connection.cut(client=ends != "server", server=True)
        if ends == "client":
            connection.cut(client=True, server=False)

    # --- mines ------------------------------------------------------------------------------------------

    def _written(self, connection: Connection, data: bytes) -> None:
        if not self.mines or connection.machine.name == "op":
            return
        at = 0
        number = connection.requests
        while at < len(data):
            size = INT.unpack_from(data, at)[0]
            if number:
                op = INT.unpack_from(data, at + 8)[0]
                self._step_on(connection, op, Reader(data, at + 12, at + 4 + size), number, data)
            number += 1
            at += 4 + size

    def _step_on(self, connection: Connection, op: int, reader: Reader, number: int, data: bytes) -> None:
        try:
            kind = kind_of(self.world, decoded(op, reader))
        except Malformed:
            return
        machine = connection.machine
        for mine in self.mines:
            if mine.is_met(kind, machine):
                self.mines.remove(mine)
                self._tell("crash", mine.when, kind, machine)
                self.world.happened(f"a machine died {mine.when} a {kind}")
                if mine.when == "answered":
                    self._answers[id(connection)] = (connection, number)
                elif mine.when == "leaving":
                    machine.crash()
                else:
                    connection._send_up(data)
                    machine.crash()
                return

    def _read(self, connection: Connection, answers: int) -> None:
        self.world.heard(connection)
        awaited = self._answers.get(id(connection))
        if awaited is not None and connection.requests - len(connection.owed) > awaited[1]:
            del self._answers[id(connection)]
            connection.machine.crash()

    def _crashed(self, machine: Machine) -> None:
        for node in self.cluster.nodes:
            if node.machine is machine:
                node.daemon = None
                self.world.loop.after(self.rng.choice((0.02, self.rng.uniform(0.05, 1.0), self._span_s())), node.boot)
        for submitter in self.cluster.submitters:
            if submitter.machine is machine:
                submitter.is_done = True
                self.world.happened("a submitter died")
