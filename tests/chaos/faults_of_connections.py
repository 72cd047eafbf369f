"""What can befall the connections between daemons and servers: cut around a commit, swallowed, silent."""

from __future__ import annotations

import asyncio
import random
import time

from tests.chaos.nemesis import Missed, Struck, fault
from tests.chaos.site import Site

LANE = "connections"
STRIKE_S = 10.0
WRITES = (1, 2, 5, 14, 15)  # create, delete, set, multi, create2


async def cut(site: Site, rng: random.Random, moment: str) -> Struck:
    """Cut one daemon's connection at its next few writes, whichever server it is at."""
    name = rng.choice(list(site.daemons))
    how = rng.choice(["fin", "rst"])
    times = rng.choice([1, 1, 3])
    faults = [proxy.cut(*WRITES, moment=moment, how=how, times=times) for proxy in site.proxies[name]]  # type: ignore[arg-type]
    deadline = time.monotonic() + STRIKE_S
    while not any(each.struck.is_set() for each in faults) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)  # for the second and the third
    cuts = sum(times - each.times for each in faults)
    for each in faults:
        each.times = 0
    if cuts == 0:
        raise Missed(f"{name} wrote nothing")
    return Struck(name, {"cut": cuts, "how": how, "moment": moment})


@fault("cut-before-commit", LANE, 3)
async def cut_before_commit(site: Site, rng: random.Random) -> Struck:
    return await cut(site, rng, "before")


@fault("cut-after-commit", LANE, 4)
async def cut_after_commit(site: Site, rng: random.Random) -> Struck:
    return await cut(site, rng, "after")
