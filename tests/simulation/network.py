"""The network between machines and ZooKeeper servers: connections that keep order, take time, and break.

A connection is two streams of bytes with a drawn latency. It can be cut so that both ends learn of it, only
one, or none (half-open); what was on its way is lost or still arrives, as drawn. While the way between a
machine and a server is blocked, in one direction or both, bytes pile up and arrive when it opens again, as
TCP would have it.

Here it is known when each request left and when its answer came: the world checks the session layer's promises
by that, and not by what the session layer believes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from zkd.zk.server.wire import INT

if TYPE_CHECKING:
    from tests.simulation.loop import Loop, Machine
    from tests.simulation.server import Server

LATENCY_S = (1e-4, 6e-4)
ORDER_S = 1e-9  # between what must stay in order, since equal times are shuffled


class Transport(asyncio.Transport):
    """The client's end, as asyncio hands it to a protocol."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection

    def write(self, data: Any) -> None:
        self.connection.client_wrote(bytes(data))

    def abort(self) -> None:
        connection = self.connection
        if connection in connection.network.dead and not connection.is_client_gone:
            connection.network.happened("a half-open connection was given up")
        connection.client_closed()

    close = abort

    def is_closing(self) -> bool:
        return self.connection.is_client_gone

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Connection:
    """Both ends of one TCP connection, and what is between them."""

    def __init__(self, network: Network, machine: Machine, server: Server) -> None:
        self.network = network
        self.machine = machine
        self.server = server
        self.protocol: asyncio.Protocol
        self.is_client_gone = False
        self.is_server_gone = False
        self.peer = server.accept(self)
        self.session_id = 0  # as told by the server's greeting
        self.timeout_s = 0.0
        self.owed: deque[tuple[float, int]] = deque()  # when each unanswered request left, and its opcode
        self.answered_at = network.loop.now  # when the latest answered request left
        self.requests = 0
        self._up: deque[bytes] = deque()
        self._down: deque[tuple[bytes, int]] = deque()
        self._up_at = self._down_at = 0.0
        self._up_held: list[bytes | None] = []
        self._down_held: list[tuple[bytes | None, int]] = []

    # --- client to server -------------------------------------------------------------------------------

    def client_wrote(self, data: bytes) -> None:
        network = self.network
        if self.is_client_gone or not self.machine.is_up:
            return
        network.on_write(self, data)
        if self.is_client_gone or not self.machine.is_up:
            return  # it crashed in this very moment, or the connection was cut before a byte left
        at, now = 0, network.loop.now
        while at < len(data):
            opcode = INT.unpack_from(data, at + 8)[0] if self.requests else 0
            self.owed.append((now, opcode))
            self.requests += 1
            at += 4 + INT.unpack_from(data, at)[0]
        self._send_up(data)

    def client_closed(self) -> None:
        if self.is_client_gone:
            return
        self.is_client_gone = True
        self.network.forget(self)
        self.machine.deliver(self.protocol.connection_lost, None)
        self._send_up(None)

    def _send_up(self, data: bytes | None) -> None:
        if self.network.is_blocked(self, "up"):
            self._up_held.append(data)
            return
        loop = self.network.loop
        self._up_at = max(self._up_at + ORDER_S, loop.now + self.network.latency_s())
        loop.at(self._up_at, self._reach_server, data)

    def _reach_server(self, data: bytes | None) -> None:
        if self.is_server_gone:
            return
        if data is None:
            self.is_server_gone = True
            self.server.hung_up(self.peer)
        else:
            self.server.receive(self.peer, data)

    # --- server to client -------------------------------------------------------------------------------

    def server_wrote(self, data: bytes, answers: int) -> None:
        if not self.is_server_gone:
            self._send_down(data, answers)

    def server_closed(self) -> None:
        if not self.is_server_gone:
            self.is_server_gone = True
            self._send_down(None, 0)

    def _send_down(self, data: bytes | None, answers: int) -> None:
        if self.network.is_blocked(self, "down"):
            self._down_held.append((data, answers))
            return
        loop = self.network.loop
        self._down_at = max(self._down_at + ORDER_S, loop.now + self.network.latency_s())
        loop.at(self._down_at, self._reach_client, data, answers)

    def _reach_client(self, data: bytes | None, answers: int) -> None:
        if not self.is_client_gone:
            self.machine.deliver(self._read, data, answers)

    def _read(self, data: bytes | None, answers: int) -> None:
        """In the client's own turn."""
        if self.is_client_gone:
            return
        if data is None:
            self.is_client_gone = True
            self.network.forget(self)
            self.protocol.connection_lost(None)
            return
        for _ in range(answers):
            self.answered_at = self.owed.popleft()[0]
        self.network.on_read(self, answers)
        if not self.machine.is_up:
            return
        if self.network.rng.random() < self.network.splits:
            at = self.network.rng.randrange(len(data) + 1)
            self.protocol.data_received(data[:at])
            if not self.is_client_gone and self.machine.is_up:
                self.protocol.data_received(data[at:])
        else:
            self.protocol.data_received(data)

    # --- faults -----------------------------------------------------------------------------------------

    def cut(self, *, client: bool = True, server: bool = True) -> None:
        """It breaks; these ends learn of it now, the other not before it tries. What is on its way is lost."""
        if client and not self.is_client_gone:
            self.is_client_gone = True
            self.network.forget(self)
            self.machine.deliver(self.protocol.connection_lost, ConnectionResetError("connection reset by peer"))
        if server and not self.is_server_gone:
            self.is_server_gone = True
            self.server.hung_up(self.peer)
        # An end that does not know: what it sends goes nowhere, what was sent to it never comes.
        self.network.dead.add(self)

    def release(self) -> None:
        """The way is open again: what was held goes on."""
        if not self.network.is_blocked(self, "up"):
            held_up, self._up_held = self._up_held, []
            for data in held_up:
                self._send_up(data)
        if not self.network.is_blocked(self, "down"):
            held_down, self._down_held = self._down_held, []
            for data_down, answers in held_down:
                self._send_down(data_down, answers)


class _Set(dict):  # type: ignore[type-arg]
    """A set in the order of insertion."""

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)


class Network:
    def __init__(self, loop: Loop, rng: Random) -> None:
        self.loop = loop
        self.rng = rng
        self.servers: dict[tuple[str, int], Server] = {}
        self.connections = _Set()
        self.dead = _Set()  # broken, and somebody does not know
        self.blocked: dict[tuple[str, str, str], int] = {}  # (machine, server, direction) -> how often
        self.slowness = 1.0
        self.happened: Callable[[str], None] = lambda what: None
        self.splits = 0.02  # how often what arrives comes in two pieces
        self.on_write: Callable[[Connection, bytes], None] = lambda connection, data: None
        self.on_read: Callable[[Connection, int], None] = lambda connection, answers: None

    def latency_s(self) -> float:
        low, more = LATENCY_S
        drawn = self.rng.random()
        spike = 20 * more if drawn > 0.995 else 0.0
        return (low + more * drawn + spike) * self.slowness

    def is_blocked(self, connection: Connection, direction: str) -> bool:
        if connection in self.dead:
            return True
        return bool(self.blocked) and (connection.machine.name, connection.server.name, direction) in self.blocked

    def block(self, machine: str, server: str, directions: tuple[str, ...] = ("up", "down")) -> None:
        for direction in directions:
            key = (machine, server, direction)
            self.blocked[key] = self.blocked.get(key, 0) + 1

    def unblock(self, machine: str, server: str, directions: tuple[str, ...] = ("up", "down")) -> None:
        for direction in directions:
            key = (machine, server, direction)
            self.blocked[key] -= 1
            if not self.blocked[key]:
                del self.blocked[key]
        for connection in list(self.connections):
            connection.release()

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)

    def of(self, machine: Machine) -> list[Connection]:
        return [connection for connection in self.connections if connection.machine is machine]

    def crashed(self, machine: Machine, *, is_heard: bool) -> None:
        """A machine died: its kernel resets its connections, or nobody is left to."""
        for connection in self.of(machine):
            connection.is_client_gone = True
            self.forget(connection)
            if is_heard:
                connection._send_up(None)

    async def connect(self, machine: Machine, host: str, port: int, factory: Any) -> tuple[Transport, Any]:
        """As loop.create_connection: refused, made, or neither for as long as one cares to wait."""
        server = self.servers[host, port]
        loop = self.loop
        arrived = loop.create_future()
        loop.after(2 * self.latency_s(), _settle, arrived, machine)
        await arrived
        while (machine.name, server.name, "up") in self.blocked or (machine.name, server.name, "down") in self.blocked:
            again = loop.create_future()  # a SYN is sent again after a second, and again
            loop.after(1.0, _settle, again, machine)
            await again
        if not server.accepts:
            raise ConnectionRefusedError(111, f"connection refused by {server.name}")
        connection = Connection(self, machine, server)
        self.connections.add(connection)
        protocol = connection.protocol = factory()
        transport = Transport(connection)
        protocol.connection_made(transport)
        return transport, protocol


def _settle(future: Any, machine: Machine) -> None:
    machine.deliver(lambda: future.done() or future.set_result(None))
