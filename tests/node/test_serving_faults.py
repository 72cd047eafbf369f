"""Requests for predictions while processes die or stand still, nodes leave, clients vanish and the registry lies."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest

import zkd
from tests.node.conftest import Site
from tests.node.submitter import until
from tests.node.test_models import LIES, made, ringed
from tests.node.test_serving import asked, sent, served
from zkd import codec
from zkd.daemon import Daemon
from zkd.models.model import Model
from zkd.models.trained import Trained
from zkd.serving import replica as serving_replica
from zkd.serving import server as serving_server
from zkd.training.counting import state_of

ASKERS = 12


@pytest.fixture
async def client(site: Site) -> AsyncIterator[zkd.Client]:
    async with zkd.Client(site.hosts, site.root) as client:
        yield client


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        yield http


class Load:
    """Askers that ask m@1 again and again, each of the next node when one refuses, and check every number."""

    def __init__(self, http: aiohttp.ClientSession, nodes: Sequence[Daemon]) -> None:
        self._http = http
        self.nodes = list(nodes)
        self.answered = [0] * ASKERS
        self.refused = 0
        self.wrong: list[Any] = []
        self._is_over = False

    async def ask(self, asker: int) -> None:
        number = 0
        while not self._is_over:
            number += 1
            row = [asker, number]
            for node in [*self.nodes[asker % len(self.nodes) :], *self.nodes]:
                try:
                    status, said = await asked(self._http, node, "m@1", [row])
                except aiohttp.ClientError:  # it has closed its doors, and has taken nothing
                    status, said = 503, {}
                if status == 503:
                    self.refused += 1
                    continue
                if (status, said.get("prediction")) != (200, [asker + 2.0 * number + 1.0]):
                    self.wrong.append((row, status, said))
                break
            else:
                self.wrong.append((row, "nobody answered"))
            self.answered[asker] += 1

    async def all_answered(self, more: int = 2) -> None:
        """Wait until each has had some answers more."""
        wanted = [count + more for count in self.answered]

        async def is_so() -> bool:
            return all(have >= want for have, want in zip(self.answered, wanted, strict=True))

        await until(is_so, 30.0, f"all have had {more} answers more")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for asker in range(ASKERS):
                group.create_task(self.ask(asker))
            try:
                yield
            finally:
                self._is_over = True
        assert self.wrong == []


def process_of(node: Daemon) -> int:
    pid = node.serving.server._replicas[0].pid
    assert pid is not None
    return pid


def metric(node: Daemon, name: str, **labels: str) -> float:
    found = [value for sample, own, value in node.serving.samples() if sample == name and labels.items() <= own.items()]
    return sum(found)


async def test_no_answer_is_lost_or_wrong_when_processes_are_killed_or_stopped(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    node = await served(site, client)
    load = Load(http, [node])
    async with load.running():
        await load.all_answered()
        for fault in (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL):
            os.kill(process_of(node), fault)
            await load.all_answered()
    assert load.refused == 0
    assert metric(node, "zkd_serving_process_deaths_total") == 3


async def test_a_node_that_is_drained_or_stops_loses_no_request(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    a = await served(site, client)
    b = await site.node("b", 1)
    load = Load(http, [a, b])
    async with load.running():
        await load.all_answered()
        await site.user.set_state("a", "draining")
        await until(lambda: _refuses(http, a), 30.0, "a refuses")
        await load.all_answered()
        await site.user.set_state("a", "active")
        await until(lambda: _answers(http, a), 30.0, "a answers again")
        await load.all_answered()
        await a.drain()
        await load.all_answered()
    assert load.refused > 0


async def _refuses(http: aiohttp.ClientSession, node: Daemon) -> bool:
    return (await asked(http, node, "m@1", [[1, 2]]))[0] == 503


async def _answers(http: aiohttp.ClientSession, node: Daemon) -> bool:
    return (await asked(http, node, "m@1", [[1, 2]]))[0] == 200


async def test_deadlines_hold_and_full_queues_refuse_at_once_while_a_process_stands_still(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    node = await served(site, client, serving__queue_max=5)
    assert await _answers(http, node)
    os.kill(process_of(node), signal.SIGSTOP)
    loop = asyncio.get_running_loop()
    began = loop.time()
    statuses = [
        status
        for status, _ in await asyncio.gather(*(asked(http, node, "m", [[1, 2]], deadline_ms=100) for _ in range(30)))
    ]
    assert loop.time() - began < 20.0  # they were told, and nobody had to wait for the process
    assert set(statuses) <= {429, 503, 504}
    assert statuses.count(429) >= 30 - 5 - 2 * 30 // 5  # five wait, some are with the process
    assert await _answers(http, node)  # of a new one
    assert metric(node, "zkd_serving_requests_waiting") == 0


async def test_a_request_that_kills_its_process_fails_alone(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_replica, "AHEAD", 1)  # so that what is given is what it is at
    node = await served(site, client)
    assert await _answers(http, node)
    replica = node.serving.server._replicas[0]
    give = replica.give

    def deadly(batch: Any, model: str, asks: Any, bodies: Any) -> None:
        pid = replica.pid
        assert pid is not None
        is_deadly = any(bytes(body) == b"[[666,0]]" for body in bodies)
        if is_deadly:
            os.kill(pid, signal.SIGSTOP)
            while (found := state_of(pid)) is not None and found[0] != "T":
                pass  # some microseconds: it has nothing to do
        give(batch, model, asks, bodies)
        if is_deadly:
            os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(replica, "give", deadly)
    answers = await asyncio.gather(*(asked(http, node, "m@1", [[number, 0]]) for number in [*range(40), 666]))
    status, said = answers.pop()
    assert (status, said["kind"]) == (500, "failed")
    assert "ended 2 times" in said["error"]
    assert [said["prediction"] for _, said in answers] == [[number + 1.0] for number in range(40)]


async def test_records_that_lie_and_files_that_change_are_found_out_and_others_are_served(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    node = await served(site, client)
    version = (await client.models.get("m@1")).version
    text = codec.decode(codec.encode(version), dict[str, object])
    lies = [*LIES, ({"file": {"id": version.file.id, "size": version.file.size + 1}}, "bytes, not")]
    for number, (lie, _) in enumerate(lies, 11):
        await site.user.session.create(site.user.paths.model_version("m", number), codec.encode(text | lie))
    for number in range(11, 11 + len(lies)):
        status, said = await asked(http, node, f"m@{number}", [[1, 2]])
        assert (status, said["kind"]) == (500, "failed"), said
        assert "cannot be served" in said["error"]
        assert (await asked(http, node, "m@1", [[1, 2]]))[1]["prediction"] == [6.0]
    path = site.directory / "a" / "models" / version.file.id
    path.write_bytes(path.read_bytes()[:500])  # nobody else has it
    status, said = await asked(http, node, "m@1", [[1, 2]], deadline_ms=300)
    assert (status, said["kind"]) == (503, "fetching"), said
    assert (await asked(http, node, "m@2", [[1, 2]]))[1]["prediction"] == [15.0]


def wide(weight: float, many: int = 20_000) -> Trained:
    """A model of some 330 kB: the sum of so many numbers, times a weight."""
    model = Model("linear", many, intercept=False)
    return replace(
        made(weight),
        model=model,
        w=np.full(many, weight),
        mean=np.zeros(many),
        features=(("X", many),),
        explanation=None,
    )


async def test_models_beyond_the_memory_are_closed_and_opened_again_and_missing_files_are_fetched(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    await site.node("a", 1)
    node = await site.node("b", 1, data__weight=0.0, serving__memory="1MiB")  # keeps nothing by itself
    await ringed(site, "a")
    for name in "klmno":
        await client.models.push(name, wide(float(ord(name))))
    rows = {"X": [[1.0] * 20_000]}
    answers = await asyncio.gather(*(asked(http, node, name, rows) for name in "klmno" * 4))
    assert [(status, said.get("prediction")) for status, said in answers] == [
        (200, [20_000.0 * ord(name)]) for name in "klmno" * 4
    ]
    assert metric(node, "zkd_serving_models_evicted_total") >= 2
    assert metric(node, "zkd_serving_models_loaded_bytes") <= 2**20
    await client.models.push("huge", wide(1.0, 200_000))
    status, said = await asked(http, node, "huge", {"X": [[1.0] * 200_000]})
    assert (status, said["kind"]) == (500, "failed")
    assert "serving.memory is 1048576" in said["error"]


async def raw(node: Daemon, head: str, body: bytes = b"", *, answer: bool = True) -> bytes:
    """What a client that says this is answered; or hang up at once."""
    assert node._address is not None
    host, _, port = node._address.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        token = f"Authorization: Bearer {node.membership.token}\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"POST /v1/models/m@1/predict HTTP/1.1\r\n{token}{head}\r\n".encode() + body)
        await writer.drain()
        async with asyncio.timeout(30.0):
            return await reader.readline() if answer else b""
    finally:
        writer.transport.abort()


async def test_clients_that_claim_much_lie_or_vanish_harm_nobody(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    node = await served(site, client)
    good = msgspec.json.encode({"rows": [[1, 2]], "deadline_ms": 30_000})
    claim = f"Content-Length: {10 << 30}\r\n"
    assert b"413" in await raw(node, claim)
    chunk = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
    assert b"413" in await raw(node, "Transfer-Encoding: chunked\r\n", chunk * 17)
    bomb = zlib.compress(b" " * (64 << 20), 9)
    assert b"413" in await raw(node, f"Content-Encoding: deflate\r\nContent-Length: {len(bomb)}\r\n", bomb)
    assert b"400" in await raw(node, "Content-Encoding: deflate\r\nContent-Length: 5\r\n", b"junk!")
    garbage = os.urandom(5000)
    assert b"400" in await raw(node, "Content-Length: 5000\r\n", garbage)
    head = f"Content-Length: {len(good)}\r\n"
    load = Load(http, [node])
    async with load.running():
        for _ in range(20):
            await asyncio.gather(
                raw(node, head, good[:-3], answer=False),  # half of it
                raw(node, head, good, answer=False),  # gone before the answer
                raw(node, f"Content-Length: {1 << 20}\r\n", b"{" * 1000, answer=False),
            )
        await load.all_answered()
    assert load.refused == 0
    tensors = struct.pack("<Q", 1 << 62) + b"{}"
    status, text, _ = await sent(http, node, "m@1", tensors, "application/vnd.safetensors")
    assert (status, b"is announced" in text) == (400, True)
    await until(lambda: _is(metric(node, "zkd_serving_requests_waiting") == 0), 30.0, "nothing is left")


async def _is(value: bool) -> bool:
    return value


async def test_small_requests_pass_large_ones_and_processes_end_when_idle_and_come_back(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await served(site, client, serving__processes=2)
    server = node.serving.server
    large = [[float(number), 0.0] for number in range(40_000)]
    assert (await asked(http, node, "m@1", large))[0] == 200
    heavy = server._benches[True].replicas[0]
    assert heavy.pid is not None
    os.kill(heavy.pid, signal.SIGSTOP)  # it takes as long as can be
    waiting = asyncio.ensure_future(asked(http, node, "m@1", large))
    for _ in range(5):
        assert await _answers(http, node)
    status, said = await waiting
    assert (status, said["prediction"]) == (200, [row[0] + 1.0 for row in large])
    monkeypatch.setattr(serving_server, "IDLE_S", 0.05)
    await until(lambda: _is(all(replica.pid is None for replica in server._replicas)), 30.0, "all have ended")
    monkeypatch.setattr(serving_server, "IDLE_S", 60.0)
    assert await _answers(http, node)
    assert metric(node, "zkd_serving_process_deaths_total") == 1
