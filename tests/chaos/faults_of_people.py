"""What people do: drop garbage, drain nodes, kill and suspend their own programs."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal

from tests.chaos.checker import FOREIGN
from tests.chaos.nemesis import Missed, Struck, fault, proven_state
from tests.chaos.site import Site
from zkd.errors import NodeExists, NoNode, ZooKeeperError

DRAINED_S = 30.0


def rubbish(rng: random.Random) -> dict[str, bytes]:
    """Znodes below tasks/ that are no tasks: by name, or by content."""
    name = f"{FOREIGN}{rng.randrange(2**32):x}"
    return {
        f"{name}-empty": b"",
        f"{name}-bytes": rng.randbytes(300),
        f"{name}-deep": b"[" * 50_000,
        f"{name}-large": json.dumps({"kernel": "steps", "args": ["x" * 600_000]}).encode(),
        f"{name}-args": b'{"kernel": "steps", "args": {"a": 1}}',
        f"{name}-field": b'{"kernel": "steps", "args": [], "colour": "red"}',
        f"{name} with blanks": b'{"kernel": "steps", "args": ["a", 1]}',
        f"{name}-\N{SNOWMAN}": b'{"kernel": "steps", "args": ["a", 1]}',
    }


@fault("garbage", "daemons", 2)
async def garbage(site: Site, rng: random.Random) -> Struck:
    """Into the drop box, and where nodes and operators write."""
    created = 0
    below = [(f"{site.paths.tasks}/{name}", data) for name, data in rubbish(rng).items()]
    ghost = f"{site.paths.nodes}/{FOREIGN}ghost"
    state = f"{site.paths.node_states}/{rng.choice(list(site.daemons))}"
    for path, data in [*below, (ghost, b"\xff"), (state, b"{")]:
        try:
            await site.session.create(path, data)
            created += 1
        except (NodeExists, ZooKeeperError):
            continue
    child = f"{below[0][0]}-parent"
    try:
        await site.session.create(child, b'{"kernel": 1}')
        await site.session.create(f"{child}/child", b"")
        created += 2
    except (NoNode, ZooKeeperError):
        pass  # it was answered and removed in the meantime
    await asyncio.sleep(rng.uniform(0.2, 1.0))
    for path in (ghost, state):
        await _surely_deleted(site, path)
    return Struck("the tree", {"created": created} if created else {})


async def _surely_deleted(site: Site, path: str) -> None:
    while True:
        try:
            await site.session.delete(path, -1)
            return
        except NoNode:
            return
        except ZooKeeperError:
            await asyncio.sleep(0.1)


@fault("daemon-drain", "daemons", 2)
async def daemon_drain(site: Site, rng: random.Random) -> Struck:
    """An operator drains a node for a while: nothing it holds is lost, and no attempt is charged."""
    name = rng.choice(list(site.daemons))
    path = site.paths.node_state(name)
    try:
        await site.session.create(path, b'{"state": "draining"}')
    except ZooKeeperError as error:
        await _surely_deleted(site, path)  # it may be there
        raise Missed(f"{name}: {error}") from None
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DRAINED_S
    held: list[object] | None = None
    while held != [] and loop.time() < deadline:
        try:
            entry = json.loads((await site.session.get(site.paths.node(name))).data)
            given = json.loads((await site.session.get(site.paths.assignment(name))).data)
            # A list for a former session of the node is nobody's; the next one overwrites it.
            held = given["tasks"] if given["incarnation"] == entry["incarnation"] else []
        except (NoNode, ZooKeeperError):
            held = None
        await asyncio.sleep(0.05)
    await asyncio.sleep(rng.uniform(0.0, 1.0))
    await _surely_deleted(site, path)
    if held != []:
        raise Missed(f"{name} could not be drained in {DRAINED_S} s")
    return Struck(name, {"held": 0})


def some_submitter(site: Site, rng: random.Random) -> str:
    running = sorted(name for name, process in site.submitters.items() if process.poll() is None)
    if not running:
        raise Missed("no submitter runs")
    return rng.choice(running)


@fault("submitter-kill", "people")
async def submitter_kill(site: Site, rng: random.Random) -> Struck:
    """What it had dropped goes on, except its ephemeral tasks; another begins in its place."""
    name = some_submitter(site, rng)
    process = site.submitters[name]
    process.kill()
    process.wait()
    site.replace_submitter(name)
    return Struck(name, {"pid": process.pid, "exit": process.returncode})


@fault("submitter-freeze", "people", 2)
async def submitter_freeze(site: Site, rng: random.Random) -> Struck:
    """Shorter or longer than its session, with which its ephemeral tasks go."""
    name = some_submitter(site, rng)
    pid = site.submitters[name].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        proof: dict[str, object] = {"pid": pid, "state": await proven_state(pid, "T")}
        for_s = rng.uniform(0.3, 3.0) * site.timeout_s
        await asyncio.sleep(for_s)
    finally:
        os.kill(pid, signal.SIGCONT)
    return Struck(name, proof | {"for_s": round(for_s, 1)})
