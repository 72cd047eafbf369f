"""A program that puts, appends or removes a table, to be killed while it does: `python -m tests.data.writer JSON`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

from tests.data.tables import Table, table
from zkd.client import Client


async def write(hosts: str, root: str, name: str, seed: int, rows: int, how: str, options: dict[str, Any]) -> int:
    async with Client(hosts, root, session_timeout_s=2.0) as client:
        if how == "remove":
            await client.datasets.rm(name, **options)
            return 0
        if how == "append":
            return (await client.datasets.append(name, pieces(seed, rows))).version
        return (await client.datasets.put(name, pieces(seed, rows), **options)).version


def pieces(seed: int, rows: int) -> Iterator[Table]:
    """As an iterator that does not say how much there is."""
    whole = table(seed, rows)
    for start in range(0, rows, 1000):
        yield {name: values[start : start + 1000] for name, values in whole.items()}


if __name__ == "__main__":
    print("visible", asyncio.run(write(**json.loads(sys.argv[1]))), flush=True)
