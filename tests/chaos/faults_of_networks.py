"""What can befall the network: cables pulled, one-way loss, a leader that its peers cannot hear, silence."""

from __future__ import annotations

import asyncio
import random
import time

from tests.chaos.faults_of_daemons import leading
from tests.chaos.faults_of_servers import bring_back_frozen, follower_of, leader_of, name_of
from tests.chaos.nemesis import Missed, Struck, fault
from tests.chaos.site import Site
from zkd.zk.apache import ApacheServer

SETTLE_S = 0.2


def frames_of(site: Site, name: str) -> int:
    """Requests of this daemon that came through so far."""
    return sum(proxy.requests.total() for proxy in site.proxies[name])


async def silent(site: Site, name: str, for_s: float, how: str) -> Struck:
    """Wait while a daemon is cut off, and prove that nothing of it came through."""
    await asyncio.sleep(SETTLE_S)
    before = frames_of(site, name)
    await asyncio.sleep(for_s)
    came = frames_of(site, name) - before
    if came:
        raise Missed(f"{name}: {came} requests came through")
    return Struck(name, {"how": how, "for_s": round(for_s, 1), "requests_meanwhile": came})


async def some_daemon(site: Site, rng: random.Random) -> str:
    return await leading(site, rng) if rng.random() < 0.5 else rng.choice(list(site.daemons))


def some_time(site: Site, rng: random.Random) -> float:
    """Shorter or longer than a session."""
    return rng.choice([rng.uniform(0.2, 0.8), rng.uniform(1.3, 2.5)]) * site.timeout_s


@fault("partition-daemon", "connections", 2)
async def partition_daemon(site: Site, rng: random.Random) -> Struck:
    """No packet to or from a daemon. Without namespaces its proxies fall silent instead."""
    name, for_s = await some_daemon(site, rng), some_time(site, rng)
    if site.network.is_real:
        site.network.unplug(name)
        try:
            return await silent(site, name, for_s, "link down")
        finally:
            site.network.plug(name)
    for proxy in site.proxies[name]:
        proxy.black_hole()
    try:
        return await silent(site, name, for_s, "silent proxies")
    finally:
        for proxy in site.proxies[name]:
            proxy.heal()


@fault("partition-daemon-one-way", "connections", 2)
async def partition_daemon_one_way(site: Site, rng: random.Random) -> Struck:
    """What a daemon sends is lost, or what it is sent; it may be heard and never hear."""
    if not site.network.is_real:
        raise Missed("no network namespaces")
    name, for_s = await some_daemon(site, rng), some_time(site, rng)
    speaker, listener = rng.choice([(name, ""), ("", name)])
    site.network.deafen(speaker, listener)
    began = time.monotonic()
    try:
        await asyncio.sleep(for_s)
        answered = [proxy for proxy in site.proxies[name] if proxy.last_passage_at > began + SETTLE_S + 1.0]
        if speaker == name and answered:
            raise Missed(f"{name}: requests came through")
    finally:
        site.network.undeafen(speaker, listener)
    return Struck(name, {"lost": "requests" if speaker else "replies", "for_s": round(for_s, 1)})


@fault("connection-silent", "connections", 2)
async def connection_silent(site: Site, rng: random.Random) -> Struck:
    """One server falls silent for one daemon; the others are a reconnect away."""
    name, for_s = await some_daemon(site, rng), some_time(site, rng)
    proxy = max(site.proxies[name], key=lambda proxy: proxy.last_passage_at)
    proxy.black_hole()
    try:
        before = proxy.requests.total()
        await asyncio.sleep(for_s)
        return Struck(name, {"for_s": round(for_s, 1), "requests_meanwhile": proxy.requests.total() - before})
    finally:
        proxy.heal()


@fault("reply-swallowed", "connections", 2)
async def reply_swallowed(site: Site, rng: random.Random) -> Struck:
    """A write is committed, its reply is lost, and the connection goes on."""
    name = await some_daemon(site, rng)
    faults = [proxy.swallow(1, 2, 5, 14, 15) for proxy in site.proxies[name]]
    deadline = time.monotonic() + 10.0
    while not any(each.struck.is_set() for each in faults) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    for each in faults:
        each.times = 0
    if not any(each.struck.is_set() for each in faults):
        raise Missed(f"{name} wrote nothing")
    return Struck(name, {"swallowed": sum(each.struck.is_set() for each in faults)})


async def isolate(site: Site, server: ApacheServer, for_s: float, role: str) -> Struck:
    if not site.network.is_real:
        raise Missed("no network namespaces")
    name = name_of(site, server)
    site.network.unplug(name)
    try:
        await asyncio.sleep(for_s)
        if await asyncio.to_thread(server.mode):
            raise Missed(f"{name} answers")
    finally:
        site.network.plug(name)
    await bring_back_frozen(server)
    return Struck(name, {"role": role, "for_s": round(for_s, 1), "answers": False})


@fault("partition-server", "servers")
async def partition_server(site: Site, rng: random.Random) -> Struck:
    return await isolate(site, await follower_of(site, rng), some_time(site, rng), "follower")


@fault("partition-server-leader", "servers")
async def partition_server_leader(site: Site, rng: random.Random) -> Struck:
    return await isolate(site, await leader_of(site), some_time(site, rng), "leader")


@fault("server-leader-deaf", "servers")
async def server_leader_deaf(site: Site, rng: random.Random) -> Struck:
    """Clients reach the leader and its peers do not, or it does not reach them: another has to lead."""
    if not site.network.is_real:
        raise Missed("no network namespaces")
    server = await leader_of(site)
    name = name_of(site, server)
    peers = [name_of(site, other) for other in site.servers.servers if other is not server]
    ways = rng.choice([[(name, peer) for peer in peers], [(peer, name) for peer in peers]])
    for speaker, listener in ways:
        site.network.deafen(speaker, listener)
    others = [other for other in site.servers.servers if other is not server]
    new = ""
    try:
        deadline = time.monotonic() + 15.0
        while not new and time.monotonic() < deadline:
            modes = {name_of(site, other): await asyncio.to_thread(other.mode) for other in others}
            new = next((other for other, mode in modes.items() if mode == "leader"), "")
            await asyncio.sleep(0.05)
        await asyncio.sleep(rng.uniform(0.0, 2.0))
    finally:
        for speaker, listener in ways:
            site.network.undeafen(speaker, listener)
    await bring_back_frozen(server)
    if not new:
        raise Missed(f"nobody took over from {name}")
    return Struck(name, {"mute" if ways[0][0] == name else "deaf": name, "new_leader": new})
