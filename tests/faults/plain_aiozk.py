"""Runs every scenario on plain aiozk, side by side in one process of their own, and prints what broke.

    python -m tests.faults.plain_aiozk PORT TLS_PORT

A process of its own, because a client that hangs cannot be closed and what it leaks must not be counted
against others. One line of JSON: scenario -> what went wrong, or null where nothing did.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys

from tests.faults.clients import PlainAiozk
from tests.faults.scenarios import ALONE, SCENARIOS, world_of


async def outcome_of(name: str, port: int, tls_port: int) -> str | None:
    async with world_of(PlainAiozk, port, tls_port) as world:
        try:
            await SCENARIOS[name](world)
        except AssertionError as error:
            return str(error) or "assertion"
        return None


async def outcomes(port: int, tls_port: int) -> dict[str, str | None]:
    alone = ALONE.__name__
    found = {alone: await outcome_of(alone, port, tls_port)}
    others = [name for name in SCENARIOS if name != alone]
    results = await asyncio.gather(*(outcome_of(name, port, tls_port) for name in others))
    return found | dict(zip(others, results, strict=True))


async def main() -> None:
    logging.disable()
    found = await outcomes(int(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps(found), flush=True)
    os._exit(0)  # its sessions cannot all be closed


if __name__ == "__main__":
    asyncio.run(main())
