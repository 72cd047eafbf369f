"""`GET /v1/why/<task>` at each node: the leader answers those who know the token, the others say who leads."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request

import pytest

from tests.node.conftest import Site
from tests.node.submitter import until
from zkd import codec, records
from zkd.daemon import EXPLAINING_SHARE


async def ask(site: Site, node: str, task_id: str, token: str | None) -> tuple[int, str]:
    entry = (await site.user.session.get(site.user.paths.node(node))).data
    url = f"{codec.decode(entry, records.Node).address}/v1/why/{task_id}"
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}

    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as reply:
                return int(reply.status), reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(get)


async def test_who_does_not_know_the_token_hears_nothing(site: Site) -> None:
    await site.node()
    for token in (None, "guess"):
        assert (await ask(site, "a", "t", token))[0] == 401


async def test_who_does_not_lead_names_the_leader(site: Site) -> None:
    await site.node("a")
    await site.node("b")
    token = (await site.user.session.get(site.user.paths.token)).data.decode()

    async def knows() -> bool:
        return await ask(site, "b", "t", token) == (409, "this node does not lead, a does\n")

    await until(knows, 8.0, "b names a")


async def test_what_the_leader_does_not_know_is_not_found(site: Site) -> None:
    await site.node()
    token = (await site.user.session.get(site.user.paths.token)).data.decode()

    async def is_not_found() -> bool:
        return await ask(site, "a", "nobody", token) == (404, "the leader has nothing to say about this id\n")

    await until(is_not_found, 8.0, "a leads")


async def test_the_leader_says_what_it_alone_knows(site: Site) -> None:
    await site.node(slots=1)
    token = (await site.user.session.get(site.user.paths.token)).data.decode()
    await site.user.session.create(site.user.paths.limit("nap"), b'{"at_once": 1}')
    await site.user.drop({"kernel": "nap", "args": [60]}, "runs")
    await site.user.drop({"kernel": "nap", "args": [60], "priority": 3}, "first")
    await site.user.drop({"kernel": "nap", "args": [60]}, "then")

    async def says() -> bool:
        code, words = await ask(site, "a", "then", token)
        return code == 200 and "nap is limited to 1 at once, and 1 are held now. Before it go 1 " in words

    await until(says, 8.0, "a says why")


async def test_a_leader_that_explains_for_long_explains_seldom(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks meanwhile is told to look at the tree; the leader's work does not wait for the curious."""
    daemon = await site.node()
    token = (await site.user.session.get(site.user.paths.token)).data.decode()

    async def leads() -> bool:
        return daemon.dispatcher.mind is not None

    await until(leads, 8.0, "a leads")

    def ponder(*_: object) -> str:
        time.sleep(0.05)
        return "After long thought."

    monkeypatch.setattr(daemon.dispatcher.mind, "why", ponder)
    started = time.monotonic()
    answers = [await ask(site, "a", "t", token) for _ in range(5)]
    assert answers == [(200, "After long thought.\n")] + [(503, "the leader is busy; look at the tree\n")] * 4

    async def again() -> bool:
        return (await ask(site, "a", "t", token))[0] == 200

    await until(again, 8.0, "it explains again")
    assert time.monotonic() - started > 0.05 / EXPLAINING_SHARE
