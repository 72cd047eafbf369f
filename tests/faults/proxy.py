"""A TCP proxy that knows ZooKeeper's frames, to break things at exact moments.

    client <-> Proxy <-> server

It can cut a connection when a request of some kind comes (before the server sees it, or after the server
has answered and before the client knows), with an orderly FIN or an RST; swallow one reply; turn into a
black hole; refuse connections. Faults are armed by the test and wear off by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, Self

HELLO = 0  # stands for the first frame of a connection, which has no opcode
How = Literal["fin", "rst"]


@dataclass
class Fault:
    """What to do with the next `times` requests of one of these opcodes."""

    opcodes: frozenset[int]
    moment: Literal["before", "after", "swallow"]
    how: How
    times: int
    struck: asyncio.Event = field(default_factory=asyncio.Event)


class Proxy:
    """`async with Proxy(port) as proxy`: clients connect to `proxy.connect_string`."""

    def __init__(self, upstream_port: int, *, upstream_host: str = "127.0.0.1", host: str = "127.0.0.1") -> None:
        self.upstream_port = upstream_port
        self.upstream_host = upstream_host
        self.host = host
        self.port = 0
        self.hellos = 0
        self.requests: Counter[int] = Counter()  # by opcode, those that reached the server
        self.last_passage_at = 0.0  # of a request, by the monotonic clock
        self._faults: list[Fault] = []
        self._pipes: set[_Pipe] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()  # cleared: a black hole
        self._open.set()

    @property
    def connect_string(self) -> str:
        return f"{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.refuse()
        self.cut_all()
        serving = tuple(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def accept(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """New connections are refused; present ones stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def cut_all(self, how: How = "fin") -> None:
        for pipe in tuple(self._pipes):
            pipe.cut(how)

    def cut(
        self, *opcodes: int, moment: Literal["before", "after"] = "before", how: How = "rst", times: int = 1
    ) -> Fault:
        fault = Fault(frozenset(opcodes), moment, how, times)
        self._faults.append(fault)
        return fault

    def swallow(self, *opcodes: int, times: int = 1) -> Fault:
        """The request is carried out, its reply never comes; the connection goes on."""
        fault = Fault(frozenset(opcodes), "swallow", "fin", times)
        self._faults.append(fault)
        return fault

    def black_hole(self) -> None:
        """Connections stay open and new ones are accepted, but not a byte moves until `heal`."""
        self._open.clear()

    def heal(self) -> None:
        self._open.set()

    def strike(self, opcode: int) -> Fault | None:
        """The fault for this request, if one is armed."""
        self._faults = [fault for fault in self._faults if fault.times > 0]
        for fault in self._faults:
            if opcode in fault.opcodes:
                fault.times -= 1
                return fault
        return None

    async def passage(self) -> None:
        await self._open.wait()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._carry(_Pipe(self, reader, writer)))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _carry(self, pipe: _Pipe) -> None:
        self._pipes.add(pipe)
        try:
            await pipe.run()
        finally:
            pipe.cut("fin")
            self._pipes.discard(pipe)


class _Pipe:
    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.client = (reader, writer)
        self.upstream_writer: asyncio.StreamWriter | None = None
        self.awaited: dict[int, Fault] = {}  # xid -> what to do when its reply comes

    async def run(self) -> None:
        await self.proxy.passage()
        reader, writer = self.client
        try:
            up_reader, up_writer = await asyncio.open_connection(self.proxy.upstream_host, self.proxy.upstream_port)
        except OSError:
            self.cut("rst")
            return
        self.upstream_writer = up_writer
        ways = [
            asyncio.ensure_future(self._requests(reader, up_writer)),
            asyncio.ensure_future(self._replies(up_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    def cut(self, how: How) -> None:
        writer = self.client[1]
        if how == "rst":
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()
        if self.upstream_writer is not None:
            self.upstream_writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_first = True
        while True:
            head = await reader.readexactly(4)
            if head.isalpha():  # a four-letter word
                writer.write(head)
                await asyncio.Event().wait()
            body = await reader.readexactly(int.from_bytes(head, "big"))
            xid, opcode = (0, HELLO) if is_first else struct.unpack_from("!ii", body)
            self.proxy.hellos += is_first
            is_first = False
            await self.proxy.passage()
            fault = self.proxy.strike(opcode)
            if fault is not None and fault.moment == "before":
                fault.struck.set()
                self.cut(fault.how)
                return
            if fault is not None:
                self.awaited[xid] = fault
            self.proxy.requests[opcode] += 1
            self.proxy.last_passage_at = time.monotonic()
            writer.write(head + body)
            await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_first = True
        while True:
            head = await reader.readexactly(4)
            if head.isalpha():
                writer.write(head + await reader.read())
                return
            body = await reader.readexactly(int.from_bytes(head, "big"))
            await self.proxy.passage()
            fault = self.awaited.pop(0 if is_first else struct.unpack_from("!i", body)[0], None)
            is_first = False
            if fault is not None:
                fault.struck.set()
                if fault.moment == "swallow":
                    continue
                self.cut(fault.how)
                return
            writer.write(head + body)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
