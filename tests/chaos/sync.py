"""`python -m tests.chaos.sync --seconds N --seed S`: locks, counters and queues while things break, and the verdict.

Programs that lock, count and queue on a three-server ensemble, through proxies; connections are cut before and after
a commit, swallowed, or lead nowhere; programs are killed, frozen beyond their session's timeout, and frozen while
somebody ends their session; servers are killed and frozen. Exit code 0: every rule held. 1: a violation.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.sync_checker import Verdict, judge, read
from tests.faults.proxy import Proxy
from zkd.client import Client
from zkd.errors import ZooKeeperError
from zkd.zk import Credentials, end_session
from zkd.zk.apache import Ensemble, ensemble

if TYPE_CHECKING:
    from collections.abc import Callable

CREATE, CREATE2, GET, CHILDREN, DELETE, MULTI, SET = 1, 15, 4, 12, 2, 14, 5
OPCODES = (CREATE2, GET, CHILDREN, DELETE, MULTI, SET)
ROOT = "/z"
TOP = Path(__file__).parents[2]
PAUSE_S = (0.2, 0.8)
HEAL_S = 120.0  # on a machine with other things to do


@dataclass(frozen=True)
class Options:
    seconds: float
    seed: int
    directory: Path
    programs: int = 4
    timeout_s: float = 2.0
    faults: tuple[str, ...] = ()  # all


@dataclass
class Site:
    """What can be broken."""

    options: Options
    rng: random.Random
    servers: Ensemble
    proxies: list[Proxy]
    programs: dict[int, asyncio.subprocess.Process] = field(default_factory=dict)
    blows: Counter[str] = field(default_factory=Counter)
    lives: Counter[int] = field(default_factory=Counter)

    @property
    def hosts(self) -> str:
        return ",".join(proxy.connect_string for proxy in self.proxies)

    async def start(self, number: int) -> None:
        self.lives[number] += 1
        life = self.lives[number]
        file = self.options.directory / f"p{number}.{life}.jsonl"
        file.touch()  # whoever reads it need not wait for a slow start
        with (self.options.directory / f"p{number}.{life}.err").open("wb") as errors:
            self.programs[number] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.chaos.sync_contender",
                self.hosts, ROOT, str(file), f"{self.options.seed}-{number}-{life}", str(self.options.timeout_s),
                stderr=errors, cwd=TOP,
            )  # fmt: skip

    def some_program(self) -> int:
        return self.rng.choice(list(self.programs))


# --- faults -----------------------------------------------------------------------------------------------


async def cut(site: Site) -> None:
    site.rng.choice(site.proxies).cut_all(site.rng.choice(["fin", "rst"]))


async def cut_before_commit(site: Site) -> None:
    site.rng.choice(site.proxies).cut(site.rng.choice(OPCODES), times=site.rng.randrange(1, 4))


async def cut_after_commit(site: Site) -> None:
    site.rng.choice(site.proxies).cut(
        site.rng.choice((CREATE2, MULTI, SET, DELETE)), moment="after", times=site.rng.randrange(1, 4)
    )


async def swallow(site: Site) -> None:
    site.rng.choice(site.proxies).swallow(site.rng.choice(OPCODES))


async def black_hole(site: Site) -> None:
    """All roads lead nowhere for longer than a session lives, as seen by everybody."""
    for proxy in site.proxies:
        proxy.black_hole()
    await asyncio.sleep(site.options.timeout_s * site.rng.uniform(0.3, 1.8))
    for proxy in site.proxies:
        proxy.heal()


async def program_kill(site: Site) -> None:
    number = site.some_program()
    site.programs[number].kill()
    await site.programs[number].wait()
    await site.start(number)


async def program_freeze(site: Site) -> None:
    """Longer than its session lives: another holds what it held, and it believes nothing on waking."""
    process = site.programs[site.some_program()]
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(site.options.timeout_s * site.rng.uniform(0.5, 2.0))
    process.send_signal(signal.SIGCONT)


async def holder_freeze(site: Site) -> None:
    """As before, but one who holds the lock at this moment."""
    if pid := await holder(site):
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(site.options.timeout_s * site.rng.uniform(0.9, 2.0))
        os.kill(pid, signal.SIGCONT)


async def holder_ended(site: Site) -> None:
    """Freeze a holder, and have somebody end its session: the next one holds at once."""
    pid = await holder(site)
    number = next((n for n, process in site.programs.items() if process.pid == pid), None)
    if pid is None or number is None:
        return
    os.kill(pid, signal.SIGSTOP)
    try:
        told = [fact["session"] for fact in read([file_of(site, number)]) if fact["what"] == "granted"]
        session_id, password = told[-1] if told else (0, "")  # type: ignore[misc]
        await end_session(site.servers.connect_string, Credentials(session_id, bytes.fromhex(password)), within_s=10)
        await asyncio.sleep(
            site.options.timeout_s
        )  # a clock tells it on waking; before 2/3 of the timeout it could not
    finally:
        os.kill(pid, signal.SIGCONT)


async def holder(site: Site) -> int | None:
    """The process that holds the lock now."""
    try:
        async with Client(site.servers.connect_string, ROOT) as client:
            line = await client.sync.line("locks", "l")
    except ZooKeeperError:
        return None
    pids = {process.pid for process in site.programs.values()}
    return next((standee.claimant.pid for standee in line if standee.is_held and standee.claimant.pid in pids), None)


async def server_kill(site: Site) -> None:
    server = site.rng.choice(site.servers.servers)
    server.kill()
    await asyncio.sleep(site.rng.uniform(0.5, 2.0))
    await asyncio.to_thread(server.restart)


async def server_freeze(site: Site) -> None:
    server = site.rng.choice(site.servers.servers)
    server.pause()
    await asyncio.sleep(site.options.timeout_s * site.rng.uniform(0.2, 1.2))
    server.resume()


FAULTS: dict[str, Callable[[Site], object]] = {
    "cut": cut,
    "cut-before-commit": cut_before_commit,
    "cut-after-commit": cut_after_commit,
    "swallow": swallow,
    "black-hole": black_hole,
    "program-kill": program_kill,
    "program-freeze": program_freeze,
    "holder-freeze": holder_freeze,
    "holder-ended": holder_ended,
    "server-kill": server_kill,
    "server-freeze": server_freeze,
}


# --- a run ------------------------------------------------------------------------------------------------


async def conduct(options: Options) -> tuple[Verdict, Counter[str]]:
    rng = random.Random(options.seed)
    with ensemble(3, options.directory / "zookeeper") as servers:
        async with AsyncExitStack() as stack:
            proxies = [await stack.enter_async_context(Proxy(server.port)) for server in servers.servers]
            site = Site(options, rng, servers, proxies)
            try:
                for number in range(options.programs):
                    await site.start(number)
                await break_things(site)
                await heal(site)
                return await settle(site), site.blows
            finally:
                for process in site.programs.values():
                    if process.returncode is None:
                        process.kill()
                        await process.wait()


async def break_things(site: Site) -> None:
    """One fault after the other, each of them at least once if there is time, until the time is over."""
    end = time.monotonic() + site.options.seconds
    names = list(site.options.faults or FAULTS)
    due: list[str] = []
    while time.monotonic() < end:
        if not due:
            due = site.rng.sample(names, len(names))
        name = due.pop()
        await FAULTS[name](site)  # type: ignore[misc]
        site.blows[name] += 1
        await asyncio.sleep(site.rng.uniform(*PAUSE_S))


async def heal(site: Site) -> None:
    """With nothing broken any more everybody has to get on."""
    for proxy in site.proxies:
        proxy.heal()
    before = {number: writes_of(site, number) for number in site.programs}
    async with asyncio.timeout(HEAL_S):
        while any(writes_of(site, number) == before[number] for number in site.programs):
            await asyncio.sleep(0.1)


def writes_of(site: Site, number: int) -> int:
    """How often a program held the lock alone, in this life of it."""
    return sum(fact["what"] == "granted" and fact["mode"] == "write" for fact in read([file_of(site, number)]))


def file_of(site: Site, number: int) -> Path:
    return site.options.directory / f"p{number}.{site.lives[number]}.jsonl"


async def settle(site: Site) -> Verdict:
    """Stop everybody in order, and see what is left."""
    for process in site.programs.values():
        process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(HEAL_S):
        for process in site.programs.values():
            await process.wait()
    async with Client(site.servers.connect_string, ROOT) as client:
        facts = await asyncio.to_thread(read, sorted(site.options.directory.glob("p*.jsonl")))
        items = [item async for item in queued(client)]
        verdict = judge(facts, counted=await client.counter("c").get(), queued=set(items))
        await nothing_left(client, verdict, site)
    for number, process in site.programs.items():
        if process.returncode != 0:
            verdict.violations.append(f"program {number} ended with {process.returncode}")
    return verdict


async def queued(client: Client):  # type: ignore[no-untyped-def]
    import json

    base = f"{ROOT}/sync/queues/q/items"
    if await client.session.exists(base) is not None:
        for child in await client.session.children(base):
            yield json.loads((await client.session.get(f"{base}/{child}")).data)["id"]


async def nothing_left(client: Client, verdict: Verdict, site: Site) -> None:
    """The sessions of those that were killed take a while to end; then no place in any line is left."""
    lines = [("locks", "l", ""), ("semaphores", "s", ""), ("queues", "q", "takers")]
    give_up = time.monotonic() + HEAL_S
    while left := [standee for line in lines for standee in await client.sync.line(*line)]:
        if time.monotonic() > give_up:
            verdict.violations.append(f"left in the lines: {left}")
            return
        await asyncio.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.sync", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--programs", type=int, default=4)
    parser.add_argument("--session-timeout", type=float, default=2.0)
    parser.add_argument("--faults", default="", help=f"of {','.join(FAULTS)}")
    parser.add_argument("--out", type=Path, default=Path("out/chaos-sync"))
    args = parser.parse_args()
    faults = tuple(filter(None, args.faults.split(",")))
    if unknown := [name for name in faults if name not in FAULTS]:
        parser.error(f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a proxy that cuts writes into closed sockets now and then
    options = Options(
        args.seconds,
        args.seed,
        args.out.absolute(),
        programs=args.programs,
        timeout_s=args.session_timeout,
        faults=faults,
    )
    verdict, blows = asyncio.run(conduct(options))
    print(verdict)
    print(", ".join(f"{count} {name}" for name, count in sorted(blows.items())))
    for violation in verdict.violations[:10]:
        print(violation)
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
