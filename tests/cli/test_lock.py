"""`zkd lock` and `zkd elect`: the command runs while it is held, and ends when it is not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.proxy import Proxy
from zkd.cli import run as zkd
from zkd.client import Client

if TYPE_CHECKING:
    from zkd.zk.server import EmbeddedServer

LIMIT_S = 30.0
ZKD = f"{sys.executable} -m zkd"
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(1000)
"""


class Command:
    """A running `zkd` command."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def end(self) -> tuple[int, str, str]:
        async with asyncio.timeout(LIMIT_S):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            return (await self.process.stdout.readline()).decode().strip()


async def started(hosts: str, *arguments: str, **env: str) -> Command:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ZKD_")}
    return Command(
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "zkd",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**clean, "ZKD_HOSTS": hosts, **env},
        )
    )


async def run(server: EmbeddedServer, *arguments: str) -> tuple[int, str, str]:
    return await (await started(server.connect_string, *arguments)).end()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until_dead(pid: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while is_alive(pid):
            await asyncio.sleep(0.02)


async def test_the_command_runs_with_a_fence_and_its_exit_code_is_ours(embedded: EmbeddedServer) -> None:
    first, second = await asyncio.gather(
        run(embedded, "lock", "a", "--", "sh", "-c", "echo $ZKD_FENCE $ZKD_LOCK; exit 7"),
        run(embedded, "lock", "b", "--", "sh", "-c", "kill -9 $$"),
    )
    assert first[0] == 7
    fence, name = first[1].split()
    assert int(fence) > 0
    assert name == "a"
    assert second[0] == 128 + signal.SIGKILL


async def test_who_holds_is_listed_and_who_does_not_get_it_in_time_is_told(embedded: EmbeddedServer) -> None:
    async with Client(embedded.connect_string) as client, client.lock("a") as held:
        listed, refused, nobody, leader = await asyncio.gather(
            run(embedded, "lock", "ls", "a", "-o", "json"),
            run(embedded, "lock", "a", "--timeout", "0", "--", "true"),
            run(embedded, "elect", "e"),
            run(embedded, "elect", "e2", "--", "sh", "-c", f"{ZKD} elect e2"),
        )
    (row,) = [row for row in json.loads(listed[1]) if row["state"] == "holds"]
    assert (row["name"], row["state"], row["fence"], row["pid"]) == ("a", "holds", held.fence, os.getpid())
    assert refused[0] == 4
    assert "not our turn within 0 s" in refused[2]
    assert (nobody[0], nobody[2]) == (3, "nobody leads\n")
    assert leader[0] == 0
    assert " fence " in leader[1]


async def test_a_signal_reaches_the_command_and_all_that_it_started(embedded: EmbeddedServer) -> None:
    command = await started(embedded.connect_string, "lock", "a", "--", "sh", "-c", "sleep 1000 & echo $!; wait")
    child = int(await command.line())
    command.process.send_signal(signal.SIGTERM)
    code, _, _ = await command.end()
    assert code == 128 + signal.SIGTERM
    await until_dead(child)
    async with Client(embedded.connect_string) as client, client.lock("a", timeout_s=LIMIT_S):
        pass


async def test_the_command_is_killed_in_doubt_however_it_minds(embedded: EmbeddedServer) -> None:
    async with Proxy(embedded.port) as road, Client(embedded.connect_string) as client:
        command = await started(
            road.connect_string,
            "lock", "a", "--", sys.executable, "-c", STUBBORN,
            ZKD_ZOOKEEPER__SESSION_TIMEOUT_S="4",
        )  # fmt: skip
        pid = int(await command.line())
        road.black_hole()
        async with client.lock("a", timeout_s=LIMIT_S):
            await until_dead(pid)
        code, _, said = await command.end()
        assert code == 6
        assert "the session is unknown" in said
        road.heal()


async def test_the_command_dies_with_zkd(embedded: EmbeddedServer) -> None:
    command = await started(embedded.connect_string, "lock", "a", "--", "sh", "-c", "echo $$; exec sleep 1000")
    pid = int(await command.line())
    command.process.kill()
    await command.end()
    await until_dead(pid)


async def test_who_waits_and_is_terminated_leaves_the_line(embedded: EmbeddedServer) -> None:
    async with Client(embedded.connect_string) as client, client.lock("a"):
        command = await started(embedded.connect_string, "lock", "a", "--", "true")
        async with asyncio.timeout(LIMIT_S):
            while len(await client.sync.line("locks", "a")) < 2:
                await asyncio.sleep(0.02)
            command.process.send_signal(signal.SIGTERM)
            code, _, _ = await command.end()
            assert len(await client.sync.line("locks", "a")) == 1
    assert code == 143


async def test_scripts_meet_and_count(embedded: EmbeddedServer) -> None:
    async with Client(embedded.connect_string) as client:
        meeting = client.double_barrier("d", count=2, timeout_s=LIMIT_S)
        met = asyncio.create_task(run(embedded, "barrier", "d", "--count", "2", "--", "sh", "-c", "echo $ZKD_ROUND"))
        await meeting.enter()
        await meeting.leave()
        assert (await met)[:2] == (0, "1\n")
        await client.counter("c").add(40)
        await client.barrier("gate").close()
        added, alone, shut = await asyncio.gather(
            run(embedded, "counter", "c", "--add", "2"),
            run(embedded, "barrier", "other", "--count", "2", "--timeout", "0.1"),
            run(embedded, "barrier", "gate", "--wait", "--timeout", "0.1"),
        )
        assert added[:2] == (0, "42\n")
        assert (alone[0], shut[0]) == (4, 4)


WRONG = [
    (["lock", "a"], 2, "expected a command after the name"),
    (["lock", "a", "--leases", "0", "--", "true"], 2, "expected an int from 1 to 1000"),
    (["lock", "a", "--", "no-such-command"], 127, "there is no such command"),
    (["lock", "b", "--", "/"], 126, "Permission denied"),
    (["barrier", "a/b", "--count", "2"], 2, "expected a name of 1 to 128 letters"),
    (["barrier", "a"], 2, "expected one of --count N"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), WRONG)
def test_what_cannot_be_done_is_said(
    embedded_in_thread: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    for name in [name for name in os.environ if name.startswith("ZKD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZKD_HOSTS", embedded_in_thread)
    assert zkd(arguments) == code
    assert said in " ".join(capfd.readouterr().err.split())
