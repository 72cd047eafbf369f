"""`zkd status`: the cluster at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import with_client
from zkd.cli.output import FOR_PEOPLE, output_option, write_fields, write_rows

if TYPE_CHECKING:
    from zkd.client import Client


@click.command()
@output_option
@with_client
async def status_command(client: Client, output: str) -> None:
    """Show the cluster at a glance: who leads, what waits, what runs, and each node."""
    nodes, statuses, leader = await client.nodes(), await client.statuses(), await client.leader()
    here = [statuses[node] for node in nodes if node in statuses]
    server = client.session.server
    fields: dict[str, Any] = {
        "zookeeper": f"{server[0]}:{server[1]}, of {client.hosts}" if server else client.hosts,
        "root": client.paths.root,
        "leader": f"{leader.node}, epoch {leader.epoch}" if leader else "nobody",
        "nodes": len(nodes),
        "slots": f"{sum(status.slots_used for status in here)} of {sum(node.slots for node in nodes.values())} in use",
        "tasks": f"{await _count(client, client.paths.tasks)} in the drop box",
        "running": sum(len(status.running) for status in here),
        "results": f"{await _count(client, client.paths.results)} kept",
        "dead": await _count(client, client.paths.dead),
    }
    if output in ("json", "jsonl"):
        from zkd.cli.get import nodes as node_rows

        write_fields({**fields, "nodes": await node_rows(client, None, 0, False)}, output)
        return
    write_fields(fields, output)
    if nodes and output in FOR_PEOPLE:
        from zkd.cli.get import nodes as node_rows

        click.echo()
        names = ("node", "state", "leads", "slots", "used", "queued", "done", "failed", "memory_bytes", "uptime_s")
        write_rows([{name: row[name] for name in names} for row in await node_rows(client, None, 0, False)], output)
    if not nodes:
        click.echo("No node is here. Start one: zkd daemon, or a whole cluster: zkd dev.", err=True)


async def _count(client: Client, path: str) -> int:
    """The number of znodes below, without listing a hundred thousand names."""
    stat = await client.session.exists(path)
    return stat.num_children if stat else 0
