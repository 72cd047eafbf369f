"""Nodes follow the settings that stand in the tree, refuse what they cannot take, and keep the last good ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.node.conftest import Site
from tests.node.submitter import until
from zkd.client import Client
from zkd.configs import ConfigStanding
from zkd.daemon import Daemon
from zkd.errors import BadSettings, ConfigConflict, ConfigNotFound
from zkd.settings import load_with_origins
from zkd.zk.server import EmbeddedServer, Op


@pytest.fixture
async def client(site: Site) -> AsyncIterator[Client]:
    async with Client(site.hosts, site.root) as client:
        yield client


@pytest.fixture
async def cut_client(cut_site: Site) -> AsyncIterator[Client]:
    async with Client(cut_site.hosts, cut_site.root) as client:
        yield client


async def became(true: Callable[[], bool], what: str) -> None:
    async def is_true() -> bool:
        return true()

    await until(is_true, 30.0, what)


async def said(client: Client, node: str, true: Callable[[ConfigStanding], bool], what: str) -> ConfigStanding:
    """Wait until the node's heartbeat tells this of its configuration."""

    async def told() -> ConfigStanding | None:
        standing = (await client.settings.standings()).get(node)
        return standing if standing is not None and true(standing) else None

    return await until(told, 30.0, what)


async def put(client: Client, path: str, data: bytes) -> None:
    """Write as anybody could, by hand."""
    session = client.session
    if await session.exists(path) is None:
        await session.create(path, data)
    else:
        await session.set(path, data, -1)


def raw_layer(**values: Any) -> bytes:
    return json.dumps({"revision": 1, "values": {k.replace("__", "."): v for k, v in values.items()}}).encode()


async def test_every_node_follows_what_is_said_for_it(site: Site, client: Client) -> None:
    first = await site.node("a", slots=1, node__labels={"gpu": "yes"})
    second = await site.node("b", slots=1)
    settings = client.settings
    await settings.set({"data.grace_s": 1, "tasks.timeout_s": 1, "data.repair_bytes_s": "1MiB"}, why="test")
    for node in (first, second):
        await became(lambda node=node: node.settings.tasks.timeout_s == 1, "it is applied")  # type: ignore[misc]
        assert node.settings.data.repair_bytes_s == 2**20
        standing = await said(client, node.name, lambda told: told.revision == 1, "it says so")
        assert (standing.source, standing.refused, standing.need_restart) == ("tree", None, [])
    await settings.set({"data.grace_s": 2, "tasks.timeout_s": 2}, layer="labels/gpu=yes")
    await settings.set({"data.grace_s": 3}, layer="nodes/a")
    await became(lambda: first.settings.data.grace_s == 3, "the node's own")
    await became(lambda: first.settings.tasks.timeout_s == 2, "its label's")
    assert first.settings.data.repair_bytes_s == 2**20
    await said(client, "b", lambda told: told.revision == 3, "b has seen all of it")
    assert (second.settings.data.grace_s, second.settings.tasks.timeout_s) == (1, 1)
    await settings.unset(["tasks.timeout_s"])
    await became(lambda: second.settings.tasks.timeout_s == 3600, "the default again")
    await settings.set({"tasks.queue_max": 77})

    async def announced() -> bool:
        leader = await client.leader()
        return leader is not None and leader.queue_max == 77

    await until(announced, 30.0, "submitters hear of it from the leader")


async def test_a_node_never_mixes_two_revisions(site: Site, client: Client) -> None:
    node = await site.node("a", slots=1)
    seen: list[tuple[float, float]] = []
    node.on_settings = lambda: seen.append((node.settings.tasks.timeout_s, node.settings.data.grace_s))  # type: ignore[method-assign]
    for number in range(1, 21):
        await client.settings.replace({"cluster": {"tasks.timeout_s": number}, "nodes/a": {"data.grace_s": number}})
    await became(lambda: node.settings.tasks.timeout_s == 20, "the last one")
    assert all(first == second for first, second in seen)
    assert seen == sorted(seen)


async def test_what_the_machine_says_is_not_overridden_and_is_told(site: Site, client: Client) -> None:
    local, origins = load_with_origins(
        None, {"ZKD_TASKS__TIMEOUT_S": "60"}, {"zookeeper.hosts": site.hosts, "zookeeper.root": site.root,
        "node.name": "a", "node.data_dir": str(site.directory / "a"), "node.slots": 1}
    )  # fmt: skip
    node = await site.stack.enter_async_context(Daemon(local, origins=origins))
    await client.settings.set({"tasks.timeout_s": 5, "tasks.dead_ttl_s": 5})
    await became(lambda: node.settings.tasks.dead_ttl_s == 5, "what the machine does not say")
    assert node.settings.tasks.timeout_s == 60
    standing = await said(client, "a", lambda told: told.revision == 1, "it says so")
    assert {key: (own.value, own.origin) for key, own in standing.own.items()} == {
        "tasks.timeout_s": (60, "$ZKD_TASKS__TIMEOUT_S"),
        "node.slots": (1, "command line"),
    }
    fresh, places = load_with_origins(None, {}, {"node.slots": 1, "node.name": "a", "zookeeper.hosts": site.hosts})
    node.apply(fresh, places)  # the operator took it out of the file and sent SIGHUP
    assert node.settings.tasks.timeout_s == 5


async def test_what_is_not_live_waits_for_a_restart_and_says_so(site: Site, client: Client) -> None:
    async with Daemon(site.settings("a", slots=2)) as node:
        await client.settings.set({"workers.recycle_tasks": 7, "tasks.timeout_s": 5})
        await became(lambda: node.settings.tasks.timeout_s == 5, "the live one")
        assert node.settings.workers.recycle_tasks == 10_000
        standing = await said(client, "a", lambda told: told.revision == 1, "it says so")
        assert standing.need_restart == ["workers.recycle_tasks"]
        await client.settings.set({"workers.recycle_tasks": 10_000})
        await said(client, "a", lambda told: told.revision == 2 and not told.need_restart, "no restart after all")
        await client.settings.set({"workers.recycle_tasks": 8})
        await said(client, "a", lambda told: told.revision == 3, "it has it on its disk")
    await client.settings.set({"workers.recycle_tasks": 9})
    kept = site.directory / "a" / "config"
    kept.write_bytes(kept.read_bytes()[:-5])  # damaged: it is passed over
    again = await site.node("a", slots=2)
    assert again.settings.workers.recycle_tasks == 9, "what was said while it was away"
    assert b'"workers.recycle_tasks":9' in kept.read_bytes(), "and it is kept for the next start"
    standing = await said(client, "a", lambda told: told.revision == 4, "it is a new life's")
    assert (standing.need_restart, standing.source) == ([], "tree")


HOSTILE = [
    b"junk", b"\xff", b"[" * 100_000, b"x" * 900_000, b'{"revision":1,"values":[1]}',
    b'{"revision":1,"values":{"tasks.timeout_s":1,"tasks.timeout_s":2}}',
    raw_layer(tasks__timeout_s=-1), raw_layer(node__name="evil"), raw_layer(zookeeper__hosts="evil:1"),
    raw_layer(workers__modules=["os"]), raw_layer(data__stores=["file:///"]), raw_layer(tasks__queue_max=10**30),
]  # fmt: skip


async def test_hostile_znodes_harm_nothing_and_are_reported(site: Site, client: Client) -> None:
    node = await site.node("a", slots=1)
    await client.settings.set({"tasks.timeout_s": 33, "tasks.dead_ttl_s": 33}, layer="nodes/a")
    await became(lambda: node.settings.tasks.timeout_s == 33, "a good one")
    good = node.settings
    paths = client.paths
    for revision, data in enumerate(HOSTILE, 100):
        await put(client, paths.config_layer("cluster"), data)
        await put(client, paths.config, json.dumps({"revision": revision}).encode())
        standing = await said(client, "a", lambda told, at=revision: told.refused == at, "it refuses")  # type: ignore[misc]
        assert standing.revision == 1
        assert standing.faults[0].startswith("config/cluster: ")
        assert len("".join(standing.faults)) < 5_000
        assert node.settings == good
    for data in (b"junk", b"[" * 100_000, b"x" * 900_000, b'{"revision":0}', b"\xff"):
        await put(client, paths.config, data)
        standing = await said(client, "a", lambda told: told.refused == 0, "it refuses")
        assert node.settings == good
    assert (await site.user.do("nap", 0, within_s=30)).status == "done"
    samples = {name: value for name, _, value in node._samples()}
    assert (samples["zkd_config_revision"], samples["zkd_config_refused"]) == (1, 1)
    await client.settings.replace({"cluster": {"tasks.timeout_s": 44}})
    await became(lambda: node.settings.tasks.timeout_s == 44, "an operator mends it")
    standing = await said(client, "a", lambda told: told.refused is None, "all is well")
    assert standing.faults == []

    await newer_release(node, client)


async def newer_release(node: Daemon, client: Client) -> None:
    """A setting that this release does not know is refused with all that came with it, and says by whom."""
    await client.settings.replace({"cluster": {"tasks.timeout_s": 33}})
    await became(lambda: node.settings.tasks.timeout_s == 33, "a good one")
    await put(client, client.paths.config_layer("cluster"), raw_layer(tasks__timeout_s=44, tasks__colour="red"))
    await put(client, client.paths.config, b'{"revision":900,"zkd":"99.0"}')
    standing = await said(client, "a", lambda told: told.refused == 900, "it refuses")
    assert standing.faults[0] == "config/cluster: tasks.colour: unknown setting"
    assert "written by zkd 99.0" in standing.faults[1]
    assert node.settings.tasks.timeout_s == 33, "nothing of it is applied"
    with pytest.raises(BadSettings, match="colour"):  # nor does an older client write it again
        await client.settings.set({"tasks.timeout_s": 55})
    await client.settings.unset(["tasks.colour"])
    await became(lambda: node.settings.tasks.timeout_s == 44, "the rest of it")
    await client.settings.rollback(1)
    assert (await client.settings.read()).layers == {"nodes/a": {"tasks.timeout_s": 33, "tasks.dead_ttl_s": 33}}


async def test_configuration_that_is_removed_stays_in_force(site: Site, client: Client) -> None:
    async with Daemon(site.settings("a", slots=1)) as node:
        await client.settings.set({"tasks.timeout_s": 33})
        await became(lambda: node.settings.tasks.timeout_s == 33, "a good one")
        paths = client.paths
        await client.session.delete(paths.config_layer("cluster"), -1)
        standing = await said(client, "a", lambda told: told.refused == 1, "it refuses")
        assert standing.faults == ["config/cluster: $.revision: expected what revision 1 put there, got nothing"]
        await put(client, paths.config, b"")
        standing = await said(client, "a", lambda told: told.refused == 0, "it refuses")
        assert "it was removed" in standing.faults[0]
        assert node.settings.tasks.timeout_s == 33


async def test_what_happened_while_the_connection_was_lost_is_not_missed(
    embedded: EmbeddedServer, cut_site: Site, cut_client: Client
) -> None:
    """Watches do not replay, and end with their session: a new connection means to look again."""
    node = await cut_site.node("a", slots=1)
    for number in range(1, 5):
        if number % 2:
            embedded.expire(node.session.session_id)
        else:
            embedded.cut_before(Op.MULTI_READ, path=cut_client.paths.config)
        await cut_client.settings.set({"tasks.timeout_s": number})
        await became(lambda number=number: node.settings.tasks.timeout_s == number, "it follows")  # type: ignore[misc]
    embedded.cut_after(Op.MULTI, path=cut_client.paths.config)
    await cut_client.settings.set({"tasks.timeout_s": 9})
    assert len(await cut_client.settings.history()) == 5, "a change whose answer was lost is made once"


async def test_two_operators_at_once_lose_nothing(site: Site, client: Client) -> None:
    keys = ["tasks.timeout_s", "tasks.result_ttl_s", "tasks.dead_ttl_s", "data.grace_s"]
    async with Client(site.hosts, site.root) as other:

        async def say(who: Client, key: str) -> None:
            for number in range(1, 6):
                await who.settings.set({key: number})

        await asyncio.gather(*(say(who, key) for who, key in zip([client, other] * 2, keys, strict=True)))
    history = await client.settings.history()
    assert [entry.revision for entry in history] == list(range(20, 0, -1)), "each change is a revision of its own"
    assert (await client.settings.read()).layers == {"cluster": dict.fromkeys(keys, 5)}
    for before, after in zip(history[1:], history, strict=False):
        assert after.changes[0].before == before.changes[0].after, "each saw the one before it"
    with pytest.raises(ConfigConflict, match="expected revision 3, it is 20"):
        await client.settings.set({"tasks.timeout_s": 1}, expect=3)


async def test_any_kept_revision_comes_back(site: Site, client: Client) -> None:
    settings = client.settings
    states = [{}]
    for number in range(1, 5):
        await settings.set({"tasks.timeout_s": number}, layer="cluster" if number % 2 else "nodes/a")
        states.append((await settings.read()).layers)
    for revision, state in enumerate(states):
        assert await settings.at(revision) == state
    await settings.rollback(1, why="oops")
    assert (await settings.read()).layers == states[1]
    assert (await settings.history(1))[0].why == "oops"
    assert await settings.set({"tasks.timeout_s": 1}) is None, "nothing changes"
    await settings.rollback(0)
    assert (await settings.read()).layers == {}
    with pytest.raises(ConfigNotFound):
        await settings.rollback(99)


async def test_the_history_is_bounded(site: Site, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkd.client.central.REVISIONS_KEPT", 5)
    for number in range(1, 12):
        await client.settings.set({"tasks.timeout_s": number})
    assert [entry.revision for entry in await client.settings.history()] == [11, 10, 9, 8, 7]
    assert (await client.settings.at(6))["cluster"] == {"tasks.timeout_s": 6}
    with pytest.raises(ConfigNotFound, match="too little of what changed since is kept"):
        await client.settings.at(5)


async def test_a_client_writes_nothing_that_nodes_would_refuse(site: Site, client: Client) -> None:
    for values in (
        {"tasks.timeout_s": 0},
        {"node.name": "x"},
        {"tasks.x": 1},
        {"log.level": "loud", "data.grace_s": 1},
    ):
        with pytest.raises(BadSettings):
            await client.settings.set(values)
    with pytest.raises(BadSettings, match="expected cluster"):
        await client.settings.set({"tasks.timeout_s": 1}, layer="labels/x")
    assert await client.session.exists(client.paths.config) is None
