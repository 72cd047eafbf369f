"""What can befall disks: they are full."""

from __future__ import annotations

import asyncio
import random
import shutil

from tests.chaos import disks
from tests.chaos.faults_of_daemons import kill
from tests.chaos.faults_of_servers import SERVING_S, name_of
from tests.chaos.nemesis import Missed, Struck, fault
from tests.chaos.site import Site
from zkd.zk.apache import ApacheServer


@fault("disk-full-daemon", "daemons", 2)
async def disk_full_daemon(site: Site, rng: random.Random) -> Struck:
    """No room for results that go to files, nor for what a daemon remembers of its session; it may have to start so."""
    if not site.small_disks:
        raise Missed("no disk of its own: not root")
    name = rng.choice(list(site.daemons))
    directory = site.daemons[name].data_dir
    proof = await asyncio.to_thread(disks.fill, directory)
    try:
        await asyncio.sleep(rng.uniform(0.5, 3.0))
        if rng.random() < 0.5:
            proof["restarted"] = (await kill(site, name, 0.0)).proof["exit"]
            await asyncio.sleep(rng.uniform(0.5, 2.0))
    finally:
        disks.free(directory)
    return Struck(name, proof)


@fault("disk-full-server", "servers")
async def disk_full_server(site: Site, rng: random.Random) -> Struck:
    """A server that cannot write its log. It leaves; afterwards an operator builds it up anew."""
    server = site.servers.servers[0]
    if not site.small_disks:
        raise Missed("no disk of its own: not root")
    role = await asyncio.to_thread(server.mode)
    proof = await asyncio.to_thread(disks.fill, server.directory / "data")
    try:
        await asyncio.sleep(rng.uniform(2.0, 8.0))
        proof["role"], proof["afterwards"] = role, await asyncio.to_thread(server.mode) or "does not serve"
    finally:
        disks.free(server.directory / "data")
    await rebuild(server)
    return Struck(name_of(site, server), proof)


async def rebuild(server: ApacheServer) -> None:
    """Give a server whose disk was full an empty one, as an operator would; its peers send it everything.

    A log that was torn in the middle of a sync may be gone on with behind a hole, and after the next start the server
    lacks what was in it (seen with 3.8.0). What it had written is kept beside: it is evidence.
    """
    await asyncio.to_thread(server.stop)
    aside = server.directory / f"aside-{len(list(server.directory.glob('aside-*'))) + 1}"
    aside.mkdir()
    await asyncio.to_thread(shutil.move, server.directory / "data" / "version-2", aside)
    server.start()
    await asyncio.to_thread(server.wait_until_serving, SERVING_S)
