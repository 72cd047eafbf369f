"""Canaries on real nodes: their share, shadows that nobody notices, and their end by what nodes have seen of them."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import aiohttp
import pytest
from scipy import stats

import zkd
from tests.node.conftest import Site
from tests.node.submitter import until
from tests.node.test_models import made, ringed
from tests.node.test_serving import asked
from zkd.daemon import Daemon
from zkd.models.model import Model, first_parameters
from zkd.models.trained import Trained
from zkd.registry import Alias
from zkd.zk.server import EmbeddedServer

ROWS = [[1.0, 5.0], [0.0, 0.0]]
GOOD, CANARY = [12.0, 1.0], [21.0, 1.0]  # of ROWS: x0 + 2 x1 + 1, and 10 x0 + 2 x1 + 1


@pytest.fixture
async def client(site: Site) -> AsyncIterator[zkd.Client]:
    async with zkd.Client(site.hosts, site.root) as client:
        yield client


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http


async def opened(site: Site, client: zkd.Client, *names: str) -> list[Daemon]:
    """Nodes that serve m@live, which is version 1; version 2 says something else."""
    nodes = [await site.node(name, 1) for name in names]
    await ringed(site, *names)
    await client.models.push("m", made(1.0, 2.0))
    await client.models.push("m", made(10.0, 2.0))
    await client.models.alias("m@live", 1)
    return nodes


async def seen(*nodes: Daemon, version: int | None) -> None:
    """Wait until all of them have the alias with this canary, or without one."""

    async def is_so() -> bool:
        for node in nodes:
            model = node.keeping.registry.models.get("m")
            alias = None if model is None else model.aliases.get("live")
            if alias is None or (None if alias.canary is None else alias.canary.version) != version:
                return False
        return True

    await until(is_so, 30.0, f"all nodes follow to canary {version}")


async def alias_of(client: zkd.Client) -> Alias:
    return (await client.models.describe("m")).aliases["live"]


async def taken_back(client: zkd.Client, http: aiohttp.ClientSession, nodes: list[Daemon], rows: Any = ROWS) -> str:
    """Ask until no node has the canary any more; what the history says. Nobody has seen an error."""
    numbers = count()

    async def is_so() -> bool:
        number = next(numbers)
        status, said = await asked(http, nodes[number % len(nodes)], "m@live", rows, key=f"user-{number}")
        assert status == 200, said
        return all(each.keeping.registry.models["m"].aliases["live"].canary is None for each in nodes)

    async with asyncio.timeout(60.0):
        while not await is_so():
            continue
    last = (await alias_of(client)).history[-1]
    assert last.by.startswith("node ")
    return last.why


async def test_a_canary_gets_its_share_and_keeps_its_people_on_any_node(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    nodes = await opened(site, client, "a", "b")
    await client.models.canary("m@live", 2, percent=30.0)
    await seen(*nodes, version=2)

    async def of(node: Daemon, key: str | None) -> int:
        status, said = await asked(http, node, "m@live", ROWS, **({} if key is None else {"key": key}))
        assert status == 200, said
        assert said["prediction"] == (CANARY if said["version"] == 2 else GOOD)
        assert said["is_canary"] == (said["version"] == 2)
        return int(said["version"])

    keys = [f"user-{number}" for number in range(150)]
    first = await asyncio.gather(*(of(nodes[0], key) for key in keys))
    assert await asyncio.gather(*(of(nodes[1], key) for key in keys)) == first
    by_chance = await asyncio.gather(*(of(nodes[0], None) for _ in keys))
    for versions in (first, by_chance):
        assert stats.binomtest(Counter(versions)[2], len(keys), 0.3).pvalue > 1e-6
    await client.models.canary("m@live", 2, percent=60.0)  # who has met it keeps it
    await until(lambda: _percent(nodes, 60.0), 30.0, "the nodes follow")
    more = await asyncio.gather(*(of(nodes[1], key) for key in keys))
    assert all(now == 2 for was, now in zip(first, more, strict=True) if was == 2)
    assert Counter(more)[2] > Counter(first)[2]
    # Without limits nobody takes it back, and what there was is told.
    assert (await alias_of(client)).canary is not None
    told = nodes[1].serving.canaries.told("m", "live")
    assert told is not None
    assert (told["canary"]["requests"], told["others"]["requests"]) == (Counter(more)[2], Counter(more)[1])
    async with http.get(f"{nodes[0]._address}/metrics") as answer:
        assert 'zkd_canary_requests_total{model="m",alias="live",side="canary"}' in await answer.text()


async def _percent(nodes: list[Daemon], percent: float) -> bool:
    aliases = [node.keeping.registry.models["m"].aliases["live"] for node in nodes]
    return all(alias.canary is not None and alias.canary.percent == percent for alias in aliases)


async def test_a_canary_that_cannot_answer_costs_nobody_an_answer_and_is_taken_back(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    nodes = await opened(site, client, "a", "b")
    await client.models.push("m", made(1.0, 2.0, 3.0))  # wants a feature more than is sent
    await client.models.canary("m@live", 3, percent=40.0, error_share=0.05)
    await seen(*nodes, version=3)
    for number in range(60):  # what no version takes is held against none
        status, said = await asked(http, nodes[0], "m@live", [["x"]], key=str(number))
        assert status == 400, said
    told = nodes[0].serving.canaries.told("m", "live")
    assert told is not None
    assert (told["canary"]["requests"], told["others"]["requests"]) == (0, 0)
    why = await taken_back(client, http, nodes)
    assert why.startswith("canary 3 taken back: errors in ")
    assert why.endswith("the limit is 5 %")
    assert [move.version for move in (await alias_of(client)).history] == [1, 1, 1]


async def test_one_that_is_slow_or_predicts_something_else_is_taken_back_and_so_is_a_shadow(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    nodes = await opened(site, client, "a")
    await client.models.push("m", slow())
    kinds: list[tuple[int, dict[str, Any], str]] = [
        (3, {"p99_ms": 3.0}, "requests computed for more than 3 ms"),
        (2, {"drift": 0.2}, "predictions drift by "),
        (2, {"drift": 0.2, "shadow": True}, "predictions drift by "),
    ]
    for version, options, words in kinds:
        await client.models.canary("m@live", version, percent=50.0, **options)
        await seen(*nodes, version=version)
        why = await taken_back(client, http, nodes, ROWS * 8)
        assert why.startswith(f"canary {version} taken back: ")
        assert words in why


def slow() -> Trained:
    """A net that takes some 20 ms for what takes a linear model 0.1 ms."""
    model = Model("mlp", 2, hidden=(1500, 1500))
    return dataclasses.replace(made(1.0, 2.0), model=model, w=first_parameters(model), explanation=None)


async def test_one_that_is_as_good_is_not_taken_back(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    nodes = await opened(site, client, "a")
    await client.models.push("m", made(1.0, 2.0))
    await client.models.canary("m@live", 3, percent=50.0, error_share=0.01, drift=0.01)
    await seen(*nodes, version=3)
    answers = await asyncio.gather(*(asked(http, nodes[0], "m@live", [[number % 7, 0]]) for number in range(300)))
    assert {status for status, _ in answers} == {200}
    assert {said["prediction"][0] for _, said in answers} == {float(number + 1) for number in range(7)}
    told = nodes[0].serving.canaries.told("m", "live")
    assert told is not None
    assert told["canary"]["requests"] + told["others"]["requests"] == 300
    assert told["canary"]["requests"] > 50  # enough to judge by
    trial = nodes[0].serving.canaries.watched("m", "live")
    assert trial is not None
    assert trial.trial.verdict() is None
    assert (await alias_of(client)).canary is not None
    assert (await client.models.promote("m@live")).version == 3


async def test_a_shadow_changes_no_answer_and_nobody_waits_for_it(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    [node] = await opened(site, client, "a")
    await client.models.canary("m@live", 2, percent=100.0, shadow=True)
    await seen(node, version=2)

    async def answers(many: int) -> None:
        for status, said in await asyncio.gather(*(asked(http, node, "m@live", ROWS) for _ in range(many))):
            assert (status, said["prediction"], said["version"], said["is_canary"]) == (200, GOOD, 1, False)

    async def compared() -> bool:
        await answers(10)  # on a busy machine a shadow gets to few
        told = node.serving.canaries.told("m", "live")
        return told is not None and told["compared"] == told["differed"] >= 1

    await until(compared, 60.0, "the shadow's answers are compared")
    told = node.serving.canaries.told("m", "live")
    assert told is not None
    assert told["canary"]["requests"] == told["others"]["requests"] == told["compared"]
    # However its process does, more than it may have waiting are answered, and the rest is not compared.
    for _ in range(3):
        process = node.serving.shadows._replicas[0].pid  # another one, when the former was found to be frozen
        if process is not None:
            os.kill(process, signal.SIGSTOP)
        await answers(100)
    assert (await alias_of(client)).canary is not None


async def test_nodes_that_find_out_at_once_take_it_back_once(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    nodes = await opened(site, client, "a", "b", "c")
    await client.models.canary("m@live", 2, percent=50.0, error_share=0.05)
    await seen(*nodes, version=2)
    for node in nodes:
        for number in range(60):
            node.serving.canaries.saw("m", "live", 1 + number % 2, 0.01, is_error=number % 2 == 1, predicted=None)
    await seen(*nodes, version=None)
    # Also those who have found it done by others have looked.
    await until(lambda: _idle(nodes), 30.0, "all have looked")
    alias = await alias_of(client)
    assert [move.why.partition(":")[0] for move in alias.history] == ["", "canary 2, 50 %", "canary 2 taken back"]
    counts = [value for node in nodes for name, _, value in node.serving.samples() if "taken_back" in name]
    assert sum(counts) == 1
    # The same version, tried again, is another canary: what was seen of the former does not count.
    await client.models.canary("m@live", 2, percent=50.0, error_share=0.05)
    await seen(*nodes, version=2)
    told = nodes[0].serving.canaries.told("m", "live")
    assert told is not None
    assert (told["canary"]["requests"], told["end"]) == (0, None)


async def _idle(nodes: list[Daemon]) -> bool:
    return all(not node.serving.canaries.is_judging for node in nodes)


async def test_a_node_that_is_cut_off_gives_a_failed_canary_nothing_and_takes_it_back_later(
    cut_site: Site, embedded: EmbeddedServer, http: aiohttp.ClientSession
) -> None:
    async with zkd.Client(cut_site.hosts, cut_site.root) as client:
        [node] = await opened(cut_site, client, "a")
        await client.models.canary("m@live", 2, percent=100.0, error_share=0.05)
        await seen(node, version=2)
        assert (await asked(http, node, "m@live", ROWS))[1]["version"] == 2
        embedded.partition(node.session.session_id)
        for _ in range(60):
            node.serving.canaries.saw("m", "live", 2, 0.01, is_error=True, predicted=None)

        async def by_the_other() -> bool:
            return bool((await asked(http, node, "m@live", ROWS))[1]["version"] == 1)

        await until(by_the_other, 30.0, "the node gives it nothing any more")
        assert (await alias_of(client)).canary is not None
        embedded.drop_connections()
        embedded.heal()
        await seen(node, version=None)
        assert (await alias_of(client)).history[-1].by == "node a"
