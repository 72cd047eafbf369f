"""`GET /v1/why/<task>` at each node: the leader answers those who know the token, the others say who leads."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

from tests.node.conftest import Site
from tests.node.submitter import until
from zkd import codec, records


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

    async def leads() -> bool:
        return (await ask(site, "a", "nobody", token))[0] != 409

    await until(leads, 8.0, "a leads")
    assert (await ask(site, "a", "nobody", token))[0] == 404
