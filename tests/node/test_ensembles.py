"""Ensembles over HTTP on a real node: what members say together, and what is wrong with a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

import zkd
from tests.node.conftest import Site
from tests.node.submitter import until
from tests.node.test_models import made, ringed
from tests.node.test_serving import PATIENT_MS
from zkd.daemon import Daemon

X, Y = load_iris(return_X_y=True)


@pytest.fixture
async def client(site: Site) -> AsyncIterator[zkd.Client]:
    async with zkd.Client(site.hosts, site.root) as client:
        yield client


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http


async def asked(http: aiohttp.ClientSession, node: Daemon, members: Any, rows: Any, **fields: Any) -> tuple[int, Any]:
    body = msgspec.json.encode({"members": members, "rows": rows, "deadline_ms": PATIENT_MS} | fields)
    headers = {"Authorization": f"Bearer {node.membership.token}"}
    async with http.post(f"{node._address}/v1/ensembles/predict", data=body, headers=headers) as answer:
        return answer.status, msgspec.json.decode(await answer.read())


async def test_members_on_two_nodes_answer_as_one(site: Site, client: zkd.Client, http: aiohttp.ClientSession) -> None:
    nodes = [await site.node(name, 1) for name in ("a", "b")]
    await ringed(site, "a", "b")
    fits = [LogisticRegression(max_iter=200, C=c).fit(X[half::2], Y[half::2]) for half, c in ((0, 1.0), (1, 0.01))]
    for name, fitted in zip(("one", "two"), fits, strict=True):
        await client.models.push(name, fitted)
        await client.models.alias(f"{name}@live", 1)
    await client.models.push("pair", LogisticRegression().fit(X[:, :2], Y))
    for weight in (1.0, 4.0):
        await client.models.push("m", made(weight, 2.0))

    members = ["one@live", "two@live"]
    status, said = await asked(http, nodes[0], members, X[:50].tolist() + X[75:125].tolist())
    assert status == 200, said
    rows = [*X[:50], *X[75:125]]
    means = sum(fitted.predict_proba(rows) for fitted in fits) / 2
    assert [pytest.approx(row, abs=1e-9) for row in means.tolist()] == said["probabilities"]
    assert said["prediction"] == means.argmax(axis=1).tolist()
    assert (said["voted"], said["quorum"], said["rows"], said["classes"]) == (2, 2, 100, [0, 1, 2])
    assert [(each["member"], each["voted"], each["version"]) for each in said["members"]] == [
        ("one@live", True, 1),
        ("two@live", True, 1),
    ]

    async def both_are_asked() -> bool:
        _, said = await asked(http, nodes[0], members, [[1, 2, 3, 4]])
        return {each["node"] for each in said["members"]} == {"a", "b"}

    await until(both_are_asked, 30.0, "members are asked on both nodes")
    status, said = await asked(http, nodes[1], ["m@1", "m@2"], [[1, 0]], combine="weighted", weights=[1, 2])
    assert (status, said["prediction"]) == (200, [(2.0 + 2 * 5.0) / 3])
    status, said = await asked(http, nodes[1], ["m@1", "m@2"], [[1, None]], missing="propagate")
    assert (status, said["prediction"]) == (200, [None])
    # A member that cannot vote costs nothing but its vote, as long as there are enough.
    status, said = await asked(http, nodes[0], ["m@1", "m@2", "nope"], [[1, 0]])
    assert (status, said["voted"], said["prediction"]) == (200, 2, [3.5])
    assert said["members"][2]["why"] == "there is no model nope"

    wrong: list[tuple[Any, dict[str, Any], int, str]] = [
        (["m@1", "m@2", "nope"], {"quorum": 3}, 404, "2 of 3 members voted"),
        (["m@1", "pair"], {"quorum": 1}, 400, "predicts numbers"),
        (["m@1"], {"combine": "vote"}, 400, "vote is for models of classes"),
        (["m@1"], {"combine": "magic"}, 400, "combine"),
        (["m@1"], {"quorum": 2}, 400, "quorum"),
        ([], {}, 400, "members"),
        (["m@1", "m@1"], {}, 400, "each member once"),
        (["m@1"], {"extra": 1}, 400, "extra"),
        ("m@1", {}, 400, "members"),
    ]
    answers = await asyncio.gather(*(asked(http, nodes[0], who, [[1, 0]], **fields) for who, fields, *_ in wrong))
    for (status, said), (who, _, expected, words) in zip(answers, wrong, strict=True):
        assert (status, words in said["error"]) == (expected, True), (who, said)
    status, said = await asked(http, nodes[0], ["m@1", "m@2"], [[1]])
    assert (status, said["kind"]) == (400, "bad_request")
    assert "expected 2 numbers" in said["error"]
    async with http.post(f"{nodes[0]._address}/v1/ensembles/predict", data=b"{}") as answer:
        assert answer.status == 401
