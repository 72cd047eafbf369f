"""A program that locks, counts and queues without end, and writes down what it was told. Others kill and freeze it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from pathlib import Path

from tests.chaos.sync_checker import LEASES
from zkd.client import Client
from zkd.errors import LockLost, LockTimeout, OutcomeLost, Unavailable
from zkd.zk.recipes import Held, Holding
from zkd.zk.states import boottime

GLANCES, GLANCE_S = 24, 0.02


class History:
    """A line a fact, in the file before anything else happens."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def add(self, what: str, *, at: float | None = None, **fact: object) -> None:
        line = {"t": boottime() if at is None else at, "what": what, **fact}
        os.write(self._file, json.dumps(line).encode() + b"\n")


async def contend(client: Client, history: History, rng: random.Random, me: str) -> None:
    puts = 0
    while True:
        choice = rng.random()
        try:
            if choice < 0.45:
                await hold(client, history, rng, "l", "write", client.lock("l", timeout_s=10))
            elif choice < 0.6:
                await hold(client, history, rng, "l", "read", client.rwlock("l").read(timeout_s=10))
            elif choice < 0.75:
                await hold(client, history, rng, "s", "lease", client.semaphore("s", leases=LEASES, timeout_s=10))
            elif choice < 0.85:
                history.add("adding")
                history.add("added", value=await client.counter("c").add(timeout_s=20))
            elif choice < 0.92:
                puts += 1
                name = f"{me}-{puts}"
                history.add("putting", id=name)
                await client.queue("q").put(name, id=name, timeout_s=20)
                history.add("put", id=name)
            else:
                async with client.queue("q").take(timeout_s=0) as item:
                    history.add("taken", id=item.id, deliveries=item.deliveries)
                history.add("done", id=item.id)
        except LockLost:
            history.add("lost")
        except (LockTimeout, OutcomeLost):
            continue


async def hold(
    client: Client, history: History, rng: random.Random, name: str, mode: str, holding: Holding[Held]
) -> None:
    async with holding as held:
        mine = client.session.credentials
        session = (mine.session_id, mine.password.hex()) if mine is not None else None
        history.add("granted", name=name, mode=mode, fence=held.fence, session=session)
        for _ in range(rng.randrange(1, GLANCES)):
            at = boottime()  # before the question: what is sure later was ours now
            history.add("sure" if held.is_sure else "unsure", at=at, name=name, mode=mode, fence=held.fence)
            await asyncio.sleep(rng.uniform(0, GLANCE_S))


async def main() -> None:
    hosts, root, path, seed, timeout_s = sys.argv[1:]
    file = Path(path)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    try:
        async with Client(hosts, root, session_timeout_s=float(timeout_s), connect_timeout_s=60) as client:
            rng = random.Random(seed)
            async with asyncio.TaskGroup() as group:
                work = [
                    group.create_task(contend(client, History(file), rng, f"{file.stem}-{lane}")) for lane in range(2)
                ]
                await stop.wait()
                for each in work:
                    each.cancel()
    except Unavailable:
        return


if __name__ == "__main__":
    asyncio.run(main())
