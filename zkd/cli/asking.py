"""Asks all nodes over HTTP, a few at a time, for what only they know. Who does not answer is told on stderr."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import aiohttp

    from zkd.client import Client
    from zkd.overview.seen import Recent

AT_ONCE = 16
ANSWERS_S = 5.0

T = TypeVar("T")


async def each_node(
    client: Client, ask: Callable[[aiohttp.ClientSession, str, str], Awaitable[T]]
) -> tuple[dict[str, T], dict[str, str]]:
    """What `ask(http, address, token)` gives for each node that is here; and of the others, why not."""
    from zkd.errors import ZooKeeperError
    from zkd.net.fetch import session
    from zkd.overview.peers import NotTold

    answers: dict[str, T] = {}
    faults: dict[str, str] = {}
    nodes = await client.nodes()
    try:
        token = (await client.read(client.paths.token)).data.decode()
    except ZooKeeperError as error:
        return {}, dict.fromkeys(nodes, f"the cluster's token cannot be read: {error}")
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(name: str, address: str) -> None:
        async with turn:
            try:
                answers[name] = await ask(http, address, token)
            except NotTold as error:
                faults[name] = str(error)

    async with session(client.data_tls, connections=AT_ONCE) as http, asyncio.TaskGroup() as group:
        for name, node in nodes.items():
            if node.address is None:
                faults[name] = "it serves no HTTP"
            else:
                group.create_task(one(name, node.address))
    return answers, faults


async def recent(client: Client, task: str | None = None) -> tuple[dict[str, Recent], dict[str, str]]:
    """The last runs and lines of each node, of all tasks or of one."""
    from zkd.overview.peers import ask

    return await each_node(
        client, lambda http, address, token: ask(http, address, token, task=task, timeout_s=ANSWERS_S)
    )


def tell_faults(faults: dict[str, str]) -> None:
    for node, why in sorted(faults.items()):
        click.echo(f"node {node} was not asked: {why}", err=True)
