"""`zkd node`: take nodes out of service and put them back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zkd.cli.connection import full_name, with_client
from zkd.cli.exits import Exit, Stop

if TYPE_CHECKING:
    from zkd.client import Client
    from zkd.zk import Event

LOOK_AGAIN_S = 2.0  # a lost event delays the end of a drain by so much


@click.group()
def node_command() -> None:
    """Drain, cordon and uncordon nodes. What is said stays said while the node is away."""


@node_command.command(short_help="Give NODE no new work, and hand back what waits.")
@click.argument("node")
@click.option("--wait", is_flag=True, help="Until nothing runs there any more.")
@click.option("--timeout", type=float, metavar="S", help="With --wait: so long.")
@click.option("--reason", default="", help="For those who look later.")
@with_client
async def drain(client: Client, node: str, wait: bool, timeout: float | None, reason: str) -> None:
    """Give NODE no new work; let it finish what runs and hand back the rest."""
    name = await _named(client, node)
    await client.set_node_state(name, "draining", reason=reason)
    click.echo(f"{name} draining")
    if wait:
        import asyncio

        try:
            async with asyncio.timeout(timeout):
                await _wait_until_empty(client, name)
        except TimeoutError:
            raise Stop(
                Exit.TIMED_OUT,
                f"error: {name} still works after {timeout:g} s\n  `zkd describe node {name}` says on what.",
            ) from None
        click.echo(f"{name} drained")


@node_command.command()
@click.argument("node")
@click.option("--reason", default="", help="For those who look later.")
@with_client
async def cordon(client: Client, node: str, reason: str) -> None:
    """Give NODE no new work; what it has goes on."""
    name = await _named(client, node)
    await client.set_node_state(name, "cordoned", reason=reason)
    click.echo(f"{name} cordoned")


@node_command.command()
@click.argument("node")
@with_client
async def uncordon(client: Client, node: str) -> None:
    """Give NODE work again, after a drain or a cordon."""
    name = await _named(client, node)
    await client.set_node_state(name, "active")
    click.echo(f"{name} active")


async def _named(client: Client, given: str) -> str:
    names = {*await client.nodes(), *await client.statuses(), *await client.node_states()}
    return full_name(given, sorted(names), "node")


async def _wait_until_empty(client: Client, node: str) -> None:
    """Until the node says that it drains and is given nothing any more, or is gone.

    A task stays assigned until it has ended or was handed back, and nothing is assigned to a draining node.
    """
    import asyncio

    from zkd.records import Assignment

    changed = asyncio.Event()

    def hear(_: Event) -> None:
        changed.set()

    paths = client.paths
    for path in (paths.node(node), paths.assignment(node)):
        await client.session.add_watch(path, hear)
    while True:
        changed.clear()
        here = (await client.nodes()).get(node)
        if here is None:
            return
        assignment = (await client.records(paths.assignments, Assignment)).get(node)
        if here.draining and (assignment is None or not assignment.tasks):
            return
        try:
            async with asyncio.timeout(LOOK_AGAIN_S):
                await changed.wait()
        except TimeoutError:
            continue
