"""`zkd data rebalance` and `repair`: looks on while the nodes bring copies to where they should be."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import click

from zkd.cli.exits import Exit, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zkd.client import Client
    from zkd.client.copies import Stat

LOOK_S = 1.0  # between two looks; holdings are written together, some times a second
SAY_S = 10.0  # on a terminal or not, that something is still going on


async def wait_until(
    client: Client, names: Sequence[str], timeout_s: float | None, is_well: Callable[[Stat], bool], well: str
) -> None:
    """Until all of these datasets (none: of all there are) are well. Ends with TIMED_OUT, saying what is missing.

    Without a timeout it waits as long as it takes: a person looks on, and may interrupt.
    """
    wanted = list(names) or sorted(await client.datasets.list())
    for name in names:
        await client.datasets.open(name)  # a name that is none is an error at once
    give_up = None if timeout_s is None else time.monotonic() + timeout_s
    said, said_at = "", 0.0
    while True:
        stats = [await _stat(client, name) for name in wanted]
        ill = [stat for stat in stats if stat is not None and not is_well(stat)]
        if not ill:
            click.echo(f"{len(wanted)} dataset{'' if len(wanted) == 1 else 's'}: every part is {well}")
            return
        lines = "\n".join(_line(stat) for stat in ill)
        now = time.monotonic()
        if (lines != said and now - said_at >= LOOK_S) or now - said_at >= SAY_S:
            click.echo(lines)
            said, said_at = lines, now
        if give_up is not None and now >= give_up:
            raise Stop(
                Exit.TIMED_OUT,
                f"error: not every part is {well} after {timeout_s:g} s\n"
                "  `zkd data stat NAME` shows a dataset, `zkd get nodes` who is here.",
            )
        await asyncio.sleep(LOOK_S if give_up is None else max(0.0, min(LOOK_S, give_up - now)))


async def _stat(client: Client, name: str) -> Stat | None:
    """None if it was removed meanwhile."""
    from zkd.errors import DatasetNotFound

    try:
        return await (await client.datasets.open(name)).stat()
    except DatasetNotFound:
        return None


def _line(stat: Stat) -> str:
    words = [f"{stat.name}@{stat.version}: {stat.health}"]
    parts = stat.full + stat.degraded + stat.lost
    if stat.lost:
        words.append(f"{stat.lost} of {parts} parts have no copy on any node that is here")
    if stat.degraded:
        words.append(f"{stat.degraded} of {parts} parts have fewer copies than they should")
    if len(stat.nodes) < stat.replicas:
        words.append(f"{stat.replicas} copies need as many nodes, and {len(stat.nodes)} keep data now")
    if stat.missing:
        words.append(f"{stat.missing} copies are missing where they belong")
    return ", ".join(words)
