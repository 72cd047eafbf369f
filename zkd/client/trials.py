"""How a canary does, as each node that answers requests has seen it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from zkd.client.client import Client
    from zkd.client.plane import Plane
    from zkd.core.registry import ModelRef
    from zkd.paths import NodeId

ANSWERS_S = 3.0


class Side(msgspec.Struct, frozen=True):
    """What one of two versions did; milliseconds are those of computing, of the last requests."""

    requests: int = 0
    errors: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None


class Trial(msgspec.Struct, frozen=True):
    """A canary on one node. `drift` is 0 as long as it may be chance; `end` why the node takes it back."""

    version: int
    beside: int
    percent: float
    canary: Side
    others: Side
    shadow: bool = False
    drift: float = 0.0
    end: str | None = None
    compared: int = 0  # of a shadow: requests that both have answered, those where it said something else...
    differed: int = 0
    dropped: int = 0  # ...and those that it was not asked, for want of time


class _Told(msgspec.Struct, frozen=True):
    trial: Trial | None = None


async def trials(client: Client, plane: Plane, ref: ModelRef) -> dict[NodeId, Trial | None]:
    """Of each node that is here; None of one that knows of no canary, or does not say."""
    headers = await plane.headers()
    nodes = {name: node.address for name, node in (await client.nodes()).items() if node.address is not None}

    async def one(address: str) -> Trial | None:
        import aiohttp

        try:
            async with (
                asyncio.timeout(ANSWERS_S),
                plane.http.get(f"{address}/v1/models/{ref}", headers=headers, allow_redirects=False) as answer,
            ):
                if answer.status != 200:
                    return None
                return msgspec.json.decode(await answer.read(), type=_Told).trial
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    async with asyncio.TaskGroup() as tasks:
        asked = {name: tasks.create_task(one(address)) for name, address in nodes.items()}
    return {name: task.result() for name, task in sorted(asked.items())}
