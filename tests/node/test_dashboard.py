"""Promises of the dashboard's other end: what a node shows, to whom, and what that costs."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from tests.node.conftest import Site
from tests.node.submitter import until
from zkd.daemon import Daemon
from zkd.net.dashboard import FILES

Said = tuple[str, int, dict[str, Any]]  # an event's name, its number, its data
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


async def address(site: Site, name: str = "a") -> str:
    entry = json.loads((await site.user.session.get(site.user.paths.node(name))).data)
    found: str = entry["address"]
    return found


async def token(site: Site) -> str:
    return (await site.user.session.get(site.user.paths.token)).data.decode()


@asynccontextmanager
async def stream(http: aiohttp.ClientSession, url: str) -> AsyncIterator[AsyncIterator[Said]]:
    """Server-sent events."""
    async with http.get(f"{url}/v1/events/stream") as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")

        async def events() -> AsyncIterator[Said]:
            fields: dict[str, str] = {}
            async for line in answer.content:
                name, colon, value = line.decode().rstrip("\n").partition(": ")
                if colon and name:
                    fields[name] = value
                elif fields:
                    yield fields["event"], int(fields["id"]), json.loads(fields["data"])
                    fields = {}

        yield events()


async def overview(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with http.get(f"{url}/v1/overview") as answer:
        assert answer.status == 200, await answer.text()
        found: dict[str, Any] = await answer.json()
        return found


async def test_a_node_shows_the_cluster_and_what_other_nodes_alone_know(
    site: Site, http: aiohttp.ClientSession
) -> None:
    await site.node("a", slots=1)
    await site.node("b", slots=1, node__labels={"only": "b", "odd": HOSTILE})
    labels = {"only": "b"}
    await site.user.drop({"kernel": "numpy.sum", "args": [[1, 2]], "labels": labels}, "on-b")
    await site.user.drop({"kernel": "numpy.sum", "args": [[1, 2]], "labels": {"gpu": "yes"}}, "waits")
    await site.user.drop({"kernel": "no.such", "args": []}, "refused")
    url = await address(site)

    async def complete() -> dict[str, Any] | None:
        seen = await overview(http, url)
        ran = {run[2] for run in seen.get("runs", [])}
        groups = (seen["backlog"] or {}).get("groups", [])
        return seen if "on-b" in ran and groups else None

    seen = await until(complete, 30.0, "a shows what ran on b, and what waits")
    assert {node["node"]: node["state"] for node in seen["nodes"]} == {"a": "active", "b": "active"}
    assert seen["nodes"][1]["labels"]["odd"] == HOSTILE
    assert seen["cluster"]["leader"] in ("a", "b")
    (run,) = [run for run in seen["runs"] if run[2] == "on-b"]
    assert (run[0], run[3], run[4]) == ("b", "numpy.sum", "done")
    assert seen["kernels"]["numpy.sum"]["done"] >= 1
    (group,) = [group for group in seen["backlog"]["groups"] if group["example"] == "waits"]
    assert "carries the labels gpu=yes" in group["why"]
    assert "arg" not in json.dumps(seen["runs"])  # neither arguments nor results


async def test_whoever_looks_on_shares_one_look_and_nobody_costs_nothing(
    site: Site, http: aiohttp.ClientSession
) -> None:
    node = await site.node("a")
    url = await address(site)
    assert (node.lookout.looks, node.lookout.viewers) == (0, 0)
    async with stream(http, url) as first, stream(http, url) as second:
        name, number, told = await anext(first)
        assert name == "all"
        assert {"cluster", "nodes", "datasets", "jobs", "models", "sync", "events", "backlog"} <= told.keys()
        name, other, _ = await anext(second)
        assert (name, node.lookout.viewers) == ("all", 2)
        assert abs(number - other) <= 1
        await site.user.drop({"kernel": "numpy.sum", "args": [[1, 2]]}, "t")
        async for name, _, told in first:
            assert name == "some"
            if any(run[2] == "t" for run in told.get("runs", [])):
                break
        assert "models" not in told  # what has not changed is not told again
        assert node.lookout.looks <= number + 40

    async def is_idle() -> bool:
        return node.lookout.viewers == 0 and node.lookout.is_idle

    await until(is_idle, 30.0, "nobody looks, and nothing is looked at")


async def test_the_page_is_as_open_as_the_setting_says(site: Site, http: aiohttp.ClientSession) -> None:
    node = await site.node("a")
    url, secret = await address(site), await token(site)

    async def status(path: str, **headers: str) -> int:
        async with http.get(f"{url}{path}", headers=headers) as answer:
            return answer.status

    shown = [*FILES, "/v1/overview"]
    for path in shown:
        async with http.get(f"{url}{path}") as answer:
            assert answer.status == 200
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
    access(node, "token")
    basic = base64.b64encode(f"anybody:{secret}".encode()).decode()
    for path in [*shown, "/v1/events/stream"]:
        assert await status(path) == 401
        assert await status(path, Authorization="Bearer wrong") == 401
        assert await status(path, Authorization="Basic ====") == 401
    assert await status("/v1/overview", Authorization=f"Bearer {secret}") == 200
    assert await status("/", Authorization=f"Basic {basic}") == 200
    access(node, "off")
    for path in shown:
        assert await status(path, Authorization=f"Bearer {secret}") == 404
    assert await status("/metrics") == 200


def access(node: Daemon, value: str) -> None:
    node.apply(replace(node.settings, node=replace(node.settings.node, dashboard=value)))


async def test_a_page_from_elsewhere_cannot_have_its_name_point_here(site: Site, http: aiohttp.ClientSession) -> None:
    await site.node("a")
    url = await address(site)
    for host, expected in (("evil.example", 403), ("evil.example:80", 403), ("localhost:1", 200), ("[::1]:8080", 200)):
        async with http.get(f"{url}/v1/overview", headers={"Host": host}) as answer:
            assert answer.status == expected, host


async def test_runs_and_lines_of_a_node_ask_for_the_token(site: Site, http: aiohttp.ClientSession) -> None:
    await site.node("a")
    url, secret = await address(site), await token(site)
    await site.user.drop({"kernel": "numpy.linalg.inv", "args": [[[0, 0], [0, 0]]]}, "bad")
    await site.user.result("bad")

    async def recent(query: str, given: str = secret) -> tuple[int, dict[str, Any]]:
        async with http.get(f"{url}/v1/recent{query}", headers={"Authorization": f"Bearer {given}"}) as answer:
            return answer.status, await answer.json() if answer.status == 200 else {}

    assert (await recent("", "wrong"))[0] == 401
    assert (await recent("?runs=-1"))[0] == 400
    assert (await recent("?task=no/id"))[0] == 400

    async def is_told() -> dict[str, Any] | None:  # a result is seen before its writer has heard that it stands
        found = (await recent("?task=bad"))[1]
        return found if "runs" in found else None

    told = await until(is_told, 30.0, "the run is told")
    assert [run[2] for run in told["runs"]] == ["numpy.linalg.inv"]
    assert [line["event"] for line in told["lines"]] == ["task.ended"]
    last = (await recent(""))[1]["runs_last"]
    assert "runs" not in (await recent(f"?runs={last}"))[1]
