"""What can befall daemons and their workers: killed, frozen, restarted in order."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time

from tests.chaos.nemesis import Missed, Struck, descendants, fault, proven_state, state_of
from tests.chaos.site import Site
from zkd.errors import NoNode, ZooKeeperError

LANE = "daemons"
JOIN_S = 60.0
DRAIN_S = 30.0


async def leading(site: Site, rng: random.Random) -> str:
    """The daemon that leads; a random one if that cannot be had now."""
    try:
        data = (await site.session.get(site.paths.leader)).data
    except (NoNode, ZooKeeperError):
        return rng.choice(list(site.daemons))
    return str(json.loads(data)["node"])


ABSENT, UNKNOWN = 0, -1


async def incarnation(site: Site, name: str) -> int:
    """The transaction that made the node's entry; ABSENT if it has none, UNKNOWN if nobody can say now."""
    try:
        stat = await site.session.exists(site.paths.node(name))
    except ZooKeeperError:
        return UNKNOWN
    return ABSENT if stat is None else stat.czxid


async def joined(site: Site, name: str, after: int) -> None:
    """Wait for an entry other than the one before. Waits as long as servers are away, too: hence the long bound."""
    deadline = time.monotonic() + JOIN_S
    while await incarnation(site, name) in (ABSENT, UNKNOWN, after):
        if time.monotonic() > deadline or site.daemons[name].process.poll() is not None:
            return  # the conductor notices a daemon that ended, and the judge a run that does not converge
        await asyncio.sleep(0.05)


async def kill(site: Site, name: str, down_s: float) -> Struck:
    daemon = site.daemons[name]
    before = await incarnation(site, name)
    below = descendants(daemon.process.pid)
    site.out_on_purpose.add(name)
    daemon.kill()
    proof: dict[str, object] = {"pid": daemon.process.pid, "exit": daemon.process.returncode, "workers": len(below)}
    await asyncio.sleep(down_s)
    daemon.start()
    site.out_on_purpose.discard(name)
    await joined(site, name, before)
    return Struck(name, proof)


async def freeze(site: Site, name: str, for_s: float, *, until_lost: bool) -> Struck:
    """Freeze a daemon and not its workers. `until_lost`: for as long as it takes its session to end."""
    daemon = site.daemons[name]
    before = await incarnation(site, name)
    daemon.pause()
    frozen_at = time.monotonic()
    try:
        proof: dict[str, object] = {"pid": daemon.process.pid, "state": await proven_state(daemon.process.pid, "T")}
        await asyncio.sleep(for_s)
        if until_lost:
            deadline = time.monotonic() + 5 * site.timeout_s
            while (now := await incarnation(site, name)) != ABSENT and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            until_lost = now == ABSENT
            proof["session"] = "over" if until_lost else "not over"
        proof["for_s"] = round(time.monotonic() - frozen_at, 1)
    finally:
        daemon.resume()
    if until_lost:
        await joined(site, name, before)
    return Struck(name, proof)


@fault("daemon-kill", LANE, 3)
async def daemon_kill(site: Site, rng: random.Random) -> Struck:
    return await kill(site, rng.choice(list(site.daemons)), rng.choice([0.0, rng.uniform(0, 2 * site.timeout_s)]))


@fault("daemon-leader-kill", LANE, 3)
async def daemon_leader_kill(site: Site, rng: random.Random) -> Struck:
    return await kill(site, await leading(site, rng), rng.choice([0.0, rng.uniform(0, 2 * site.timeout_s)]))


@fault("daemon-freeze", LANE, 2)
async def daemon_freeze(site: Site, rng: random.Random) -> Struck:
    name = rng.choice(list(site.daemons))
    return await freeze(site, name, rng.uniform(0.2, 0.9) * site.timeout_s, until_lost=False)


@fault("daemon-freeze-long", LANE, 2)
async def daemon_freeze_long(site: Site, rng: random.Random) -> Struck:
    name = rng.choice(list(site.daemons))
    return await freeze(site, name, rng.uniform(1.2, 2.0) * site.timeout_s, until_lost=True)


@fault("daemon-leader-freeze-long", LANE, 2)
async def daemon_leader_freeze_long(site: Site, rng: random.Random) -> Struck:
    return await freeze(site, await leading(site, rng), rng.uniform(1.2, 2.0) * site.timeout_s, until_lost=True)


@fault("daemon-rolling-restart", LANE)
async def daemon_rolling_restart(site: Site, rng: random.Random) -> Struck:
    """An orderly stop and a start, one after the other."""
    exits = []
    for name in rng.sample(list(site.daemons), len(site.daemons)):
        daemon = site.daemons[name]
        before = await incarnation(site, name)
        site.out_on_purpose.add(name)
        daemon.signal(signal.SIGTERM)
        deadline = time.monotonic() + DRAIN_S
        while daemon.process.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        exits.append(daemon.process.returncode)
        daemon.kill()
        daemon.start()
        site.out_on_purpose.discard(name)
        await joined(site, name, before)
    return Struck("all daemons", {"exits": exits})


def workers_of(site: Site, name: str) -> list[int]:
    """The processes of a daemon that run kernels: those below its fork server."""
    below = descendants(site.daemons[name].process.pid)
    return [pid for pid in below if not descendants(pid) and state_of(pid) not in "ZX"]


@fault("worker-kill", LANE, 4)
async def worker_kill(site: Site, rng: random.Random) -> Struck:
    name = rng.choice(list(site.daemons))
    workers = workers_of(site, name)
    if not workers:
        raise Missed(f"{name} has no workers")
    pid = rng.choice(workers)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        raise Missed(f"worker {pid} of {name} was gone") from None
    return Struck(name, {"worker": pid, "state": await proven_state(pid, "ZX")})


@fault("fork-server-kill", LANE)
async def fork_server_kill(site: Site, rng: random.Random) -> Struck:
    """The process that makes a daemon's workers; they die with it, and each costs its task an attempt."""
    name = rng.choice(list(site.daemons))
    servers = [pid for pid in descendants(site.daemons[name].process.pid) if descendants(pid)]
    if not servers:
        raise Missed(f"{name} has no fork server")
    below = descendants(servers[0])
    try:
        os.kill(servers[0], signal.SIGKILL)
    except ProcessLookupError:
        raise Missed(f"the fork server of {name} was gone") from None
    states = [await proven_state(pid, "ZX") for pid in (servers[0], *below)]
    return Struck(name, {"pid": servers[0], "states": states})


@fault("worker-freeze", LANE)
async def worker_freeze(site: Site, rng: random.Random) -> Struck:
    """A worker that stops for a while: its task takes longer, nothing else happens."""
    name = rng.choice(list(site.daemons))
    workers = workers_of(site, name)
    if not workers:
        raise Missed(f"{name} has no workers")
    pid = rng.choice(workers)
    try:
        os.kill(pid, signal.SIGSTOP)
        proof = {"worker": pid, "state": await proven_state(pid, "T")}
        await asyncio.sleep(rng.uniform(0.2, 2.0))
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        raise Missed(f"worker {pid} of {name} was gone") from None
    return Struck(name, proof)
