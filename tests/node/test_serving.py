"""Requests for predictions over HTTP to real nodes, whose processes are real, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest

import zkd
from tests.node.conftest import Site
from tests.node.test_models import made, ringed
from zkd.arrays.tensors import pack, unpack
from zkd.daemon import Daemon

PATIENT_MS = 30_000
TENSORS = "application/vnd.safetensors"


@pytest.fixture
async def client(site: Site) -> AsyncIterator[zkd.Client]:
    async with zkd.Client(site.hosts, site.root) as client:
        yield client


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http


async def sent(
    http: aiohttp.ClientSession, node: Daemon, ref: str, body: bytes, kind: str = "application/json"
) -> tuple[int, bytes, Any]:
    headers = {"Authorization": f"Bearer {node.membership.token}", "Content-Type": kind}
    async with http.post(f"{node._address}/v1/models/{ref}/predict", data=body, headers=headers) as answer:
        return answer.status, await answer.read(), answer.headers


async def asked(http: aiohttp.ClientSession, node: Daemon, ref: str, rows: Any, **fields: Any) -> tuple[int, Any]:
    body = {"rows": rows, "deadline_ms": PATIENT_MS} | fields
    status, text, _ = await sent(http, node, ref, msgspec.json.encode(body))
    return status, msgspec.json.decode(text)


async def served(site: Site, client: zkd.Client, **overrides: Any) -> Daemon:
    """A node that serves m: version 1 is x0 + 2 x1 + 1, version 2 is 10 x0 + 2 x1 + 1; live is 1."""
    node = await site.node("a", 1, **overrides)
    await ringed(site, "a")
    await client.models.push("m", made(1.0, 2.0))
    await client.models.push("m", made(10.0, 2.0))
    await client.models.alias("m@live", 1)
    return node


async def test_rows_in_any_form_are_answered_by_the_version_that_is_asked_for(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    node = await served(site, client)
    same: list[Any] = [[[1, 5.0], [0, 0]], {"x1": [5, 0], "x0": [True, 0]}, [{"x1": 5, "x0": 1}, {"x0": 0, "x1": 0}]]
    for ref, version, expected in (("m", 2, [21.0, 1.0]), ("m@1", 1, [12.0, 1.0]), ("m@live", 1, [12.0, 1.0])):
        for rows in same:
            status, said = await asked(http, node, ref, rows)
            assert (status, said["prediction"], said["rows"]) == (200, expected, 2), said
            assert (said["model"], said["version"], said["is_canary"], said["node"]) == ("m", version, False, "a")
            assert said["alias"] == ("live" if "live" in ref else None)
            assert said["ms"].keys() == {"queue", "compute"}
        for arrays in (
            {"rows": np.array([[1.0, 5.0], [0.0, 0.0]])},
            {"x0": np.array([1, 0], np.int32), "x1": np.array([5, 0], np.float32)},
        ):
            status, body, headers = await sent(http, node, ref, pack(arrays, {"deadline_ms": "30000"}), TENSORS)
            assert (status, headers["Content-Type"]) == (200, TENSORS), body
            got, texts = unpack(body)
            assert (got["prediction"].tolist(), texts["version"]) == (expected, str(version))
    assert (await asked(http, node, "m", []))[1]["prediction"] == []
    status, said = await asked(http, node, "m", [[1, 5]], want=["attributions", "score"])
    assert (said["attributions"], said["base"], said["score"]) == ([[10.0, 10.0]], [1.0], [21.0])
    status, said = await asked(http, node, "m", [[1, None], [1, 5]], missing="propagate")
    assert (status, said["prediction"]) == (200, [None, 21.0])
    headers = {"Authorization": f"Bearer {node.membership.token}"}
    async with http.get(f"{node._address}/v1/models/m@live", headers=headers) as answer:
        told = await answer.json()
    assert (told["version"], told["features"][1], told["is_here"]) == (1, {"name": "x1", "width": 0}, True)
    assert told["load"].keys() == {"queued", "p50_ms"}
    async with http.get(f"{node._address}/metrics") as answer:
        metrics = await answer.text()
    assert 'zkd_predict_requests_total{model="m",version="1",code="ok"}' in metrics
    assert "# TYPE zkd_predict_seconds histogram" in metrics


WRONG: list[tuple[Any, dict[str, Any], int, str, str]] = [
    ([[1, None]], {}, 400, "bad_request", "missing or infinite number in x1: 0"),
    ([[1, "5"]], {}, 400, "bad_request", "[0][1]"),
    ([[1]], {}, 400, "bad_request", "expected 2 numbers (x0, x1), got 1"),
    ([[[1], [2]]], {}, 400, "bad_request", "[0][0]"),
    (7, {}, 400, "bad_request", "expected columns by feature, or a list of rows"),
    ({"x0": [1], "x3": [2]}, {}, 400, "bad_request", "lacks x1 and has x3, too"),
    ({"x0": [1], "x1": [1, 2]}, {}, 400, "bad_request", "expected 1 rows as in x0, got 2"),
    ([{"x0": 1}], {}, 400, "bad_request", "lacks x1"),
    ([[1, 2]], {"want": ["probabilities"]}, 400, "bad_request", "gives prediction, score, attributions"),
    ([[1, 2]], {"want": ["magic"]}, 400, "bad_request", "magic"),
    ([[1, 2]], {"deadline_ms": -1}, 400, "bad_request", "deadline_ms"),
    ([[1, 2]], {"extra": 1}, 400, "bad_request", "extra"),
]


async def test_what_is_wrong_is_said_and_costs_nobody_else_anything(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    node = await served(site, client)
    good = [asked(http, node, "m", [[number, 0]]) for number in range(50)]
    bad = [asked(http, node, "m", rows, **fields) for rows, fields, *_ in WRONG]
    answers = await asyncio.gather(*good, *bad)
    assert [said["prediction"] for _, said in answers[:50]] == [[10.0 * number + 1] for number in range(50)]
    for (status, said), (_, _, expected, kind, words) in zip(answers[50:], WRONG, strict=True):
        assert (status, said["kind"]) == (expected, kind), said
        assert words in said["error"]
    for ref, expected, words in (
        ("m@7", 404, "no version 7"),
        ("nope", 404, "no model nope"),
        ("m@@", 400, "expected"),
    ):
        status, said = await asked(http, node, ref, [[1, 2]])
        assert status == expected
        assert words in said["error"]
    status, text, _ = await sent(http, node, "m", b"{" * 100_000)
    assert status == 400, text
    status, text, _ = await sent(http, node, "m", b'{"rows":[[1,2]]}', "text/plain")
    assert status == 400, text
    async with http.post(f"{node._address}/v1/models/m/predict", json={"rows": [[1, 2]]}) as answer:
        assert answer.status == 401


async def test_a_task_gives_the_same_answer_and_says_what_is_wrong(
    site: Site, client: zkd.Client, http: aiohttp.ClientSession
) -> None:
    node = await served(site, client)
    _, said = await asked(http, node, "m@live", [[1, 5], [0, 0]], want=["prediction", "score", "attributions"])
    run = await client.run("predict", "m@live", [[1, 5], [0, 0]], want=["prediction", "score", "attributions"])
    assert run.keys() == said.keys()
    for field in said.keys() - {"ms"}:
        assert np.array_equal(run[field], said[field]), field
    many = np.arange(40_000, dtype=np.float64).reshape(-1, 2)  # an array in base64, and an answer in a file
    whole = await client.run("predict", "m@live", many)
    assert np.array_equal(whole["prediction"], many @ [1.0, 2.0] + 1.0)
    for args, kwargs, words in (
        (("m@live",), {}, "rows"),
        (("nope", [[1, 2]]), {}, "no model nope"),
        (("m", [[1]]), {}, "expected 2 numbers"),
        (("m", [[1, 2]]), {"rows": [[1, 2]]}, "rows"),
        (("m", [[1, 2]]), {"want": ["magic"]}, "magic"),
        (("m", [[1, 2]], None, "refuse", -5), {}, "deadline_ms"),
    ):
        with pytest.raises(zkd.TaskRejected, match=words):
            await client.run("predict", *args, **kwargs)
