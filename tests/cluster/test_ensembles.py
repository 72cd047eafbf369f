"""Ensembles on daemons of their own: one is frozen, one is killed, and there is an answer that says who voted."""

from __future__ import annotations

from typing import Any

import aiohttp
import msgspec

import zkd
from tests.cluster.conftest import Grid
from tests.node.depot import Depot
from tests.node.submitter import until
from tests.node.test_models import made

MEMBERS = ["m@1", "m@2", "m@3"]  # 1, 2 and 6 x0, and 1 more


async def test_a_quorum_answers_when_a_members_node_is_frozen_and_all_when_it_is_dead(grid: Grid) -> None:
    depot = Depot(grid.user, grid.directory, lambda node: grid.directory / f"{node}-data")
    await grid.start("a", "b", "c", slots=1, timeout_s=60.0)  # neither is missed during this test
    await depot.ringed("a", "b", "c")
    async with zkd.Client(grid.hosts, grid.root) as client, aiohttp.ClientSession() as http:
        for weight in (1.0, 2.0, 6.0):
            await client.models.push("m", made(weight))
        await client.models.alias("m@live", 3)
        addresses = {node: await depot.address(node) for node in "abc"}
        headers = {"Authorization": f"Bearer {await depot.token()}"}

        async def asked(deadline_ms: int) -> dict[str, Any] | None:
            body = msgspec.json.encode({"members": MEMBERS, "rows": [[1.0]], "deadline_ms": deadline_ms, "quorum": 2})
            async with http.post(f"{addresses['a']}/v1/ensembles/predict", data=body, headers=headers) as answer:
                said = msgspec.json.decode(await answer.read())
                return dict(said) if answer.status == 200 else None

        async def all_three() -> bool:
            said = await asked(30_000)
            assert said is None or said["voted"] < 3 or said["prediction"] == [4.0]
            return said is not None and {each.get("node") for each in said["members"]} == set("abc")

        async def without(node: str) -> dict[str, Any] | None:
            """An answer that this node alone has no part in. On a busy machine others are late, too."""
            said = await asked(3_000)
            late = [] if said is None else [each for each in said["members"] if not each["voted"]]
            return said if [each["why"] for each in late] == [f"no answer from node {node} in time"] else None

        async def all_on_a() -> bool:
            said = await asked(20_000)
            return said is not None and [each.get("node") for each in said["members"]] == ["a"] * 3

        await until(all_three, 60.0, "each node answers for a member")
        grid.nodes["c"].pause()
        said = await until(lambda: without("c"), 60.0, "an answer without the frozen node")
        [late] = [each for each in said["members"] if not each["voted"]]
        assert (said["voted"], late["kind"]) == (2, "deadline")
        others = {"m@1": 2.0, "m@2": 3.0, "m@3": 7.0}
        del others[late["member"]]
        assert said["prediction"] == [sum(others.values()) / 2]
        for node in "bc":  # of a node that is dead others know at once
            grid.nodes[node].kill()
        await until(all_on_a, 60.0, "all members are asked where the request came")
