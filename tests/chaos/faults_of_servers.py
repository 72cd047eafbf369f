"""What can befall ZooKeeper servers: killed, frozen, restarted one by one, too few for a quorum."""

from __future__ import annotations

import asyncio
import random
import time

from tests.chaos.nemesis import Missed, Struck, fault, proven_state, state_of
from tests.chaos.site import Site
from zkd.zk.apache import ApacheFailed, ApacheServer

LANE = "servers"
SERVING_S = 60.0


def name_of(site: Site, server: ApacheServer) -> str:
    return f"server-{site.servers.servers.index(server) + 1}"


async def leader_of(site: Site) -> ApacheServer:
    return await asyncio.to_thread(site.servers.leader)


async def follower_of(site: Site, rng: random.Random) -> ApacheServer:
    followers = await asyncio.to_thread(site.servers.followers)
    if not followers:
        raise Missed("no follower is there")
    return rng.choice(followers)


async def bring_back(*servers: ApacheServer) -> None:
    """Start them and wait until they serve. One that ends by itself, as in a race of an election, is started again."""
    for server in servers:
        server.start()
    for server in servers:
        deadline = time.monotonic() + SERVING_S
        while not await asyncio.to_thread(server.mode):
            if not server.is_running:
                server.start()
            if time.monotonic() > deadline:
                raise ApacheFailed(f"a server did not come back in {SERVING_S} s:\n{server.log_tail()}")
            await asyncio.sleep(0.05)


async def kill(site: Site, server: ApacheServer, down_s: float, role: str) -> Struck:
    pid = server.pid or 0
    server.kill()
    proof = {"role": role, "pid": pid, "state": state_of(pid)}
    await asyncio.sleep(down_s)
    await bring_back(server)
    return Struck(name_of(site, server), proof)


async def freeze(site: Site, server: ApacheServer, for_s: float, role: str) -> Struck:
    pid = server.pid or 0
    await asyncio.to_thread(server.pause)
    try:
        proof = {"role": role, "pid": pid, "state": await proven_state(pid, "T"), "for_s": round(for_s, 1)}
        await asyncio.sleep(for_s)
    finally:
        server.resume()
    await bring_back_frozen(server)
    return Struck(name_of(site, server), proof)


async def bring_back_frozen(server: ApacheServer) -> None:
    """A server that was frozen for long may end when it finds that its place is taken."""
    deadline = time.monotonic() + SERVING_S
    while not await asyncio.to_thread(server.mode):
        if not server.is_running:
            server.start()
        if time.monotonic() > deadline:
            raise ApacheFailed(f"a frozen server did not come back in {SERVING_S} s:\n{server.log_tail()}")
        await asyncio.sleep(0.05)


@fault("server-kill", LANE, 2)
async def server_kill(site: Site, rng: random.Random) -> Struck:
    return await kill(site, await follower_of(site, rng), rng.uniform(0.2, 3.0), "follower")


@fault("server-leader-kill", LANE, 2)
async def server_leader_kill(site: Site, rng: random.Random) -> Struck:
    return await kill(site, await leader_of(site), rng.uniform(0.2, 3.0), "leader")


@fault("server-freeze", LANE, 2)
async def server_freeze(site: Site, rng: random.Random) -> Struck:
    return await freeze(site, await follower_of(site, rng), rng.uniform(0.3, 0.8) * site.timeout_s, "follower")


@fault("server-freeze-long", LANE)
async def server_freeze_long(site: Site, rng: random.Random) -> Struck:
    return await freeze(site, await follower_of(site, rng), rng.uniform(1.5, 2.5) * site.timeout_s, "follower")


@fault("server-leader-freeze", LANE)
async def server_leader_freeze(site: Site, rng: random.Random) -> Struck:
    return await freeze(site, await leader_of(site), rng.uniform(0.5, 2.0) * site.timeout_s, "leader")


@fault("server-rolling-restart", LANE)
async def server_rolling_restart(site: Site, rng: random.Random) -> Struck:
    pids = []
    for server in rng.sample(site.servers.servers, 3):
        pids.append(server.pid)
        await asyncio.to_thread(server.stop)
        await bring_back(server)
    return Struck("all servers", {"pids": pids, "states": [state_of(pid or 0) for pid in pids]})


@fault("quorum-loss", LANE)
async def quorum_loss(site: Site, rng: random.Random) -> Struck:
    lost = rng.sample(site.servers.servers, 2)
    pids = [server.pid or 0 for server in lost]
    for_s = rng.choice([rng.uniform(1.0, 4.0), rng.uniform(1.5, 4.0) * site.timeout_s])
    for server in lost:
        server.kill()
    proof = {"pids": pids, "states": [state_of(pid) for pid in pids], "for_s": round(for_s, 1)}
    await asyncio.sleep(for_s)
    modes = [await asyncio.to_thread(server.mode) for server in site.servers.servers]
    if any(modes):
        raise Missed(f"a server served without a quorum: {modes}")
    await bring_back(*lost)
    return Struck(" and ".join(name_of(site, server) for server in lost), proof)
