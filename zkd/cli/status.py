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
    address = f"{server[0]}:{server[1]}" if server else None
    used, slots = sum(status.slots_used for status in here), sum(node.slots for node in nodes.values())
    running = sum(len(status.running) for status in here)
    paths = client.paths
    tasks, results, dead, schedules = [
        await _count(client, path) for path in (paths.tasks, paths.results, paths.dead, paths.schedules)
    ]
    if output in ("json", "jsonl"):
        from zkd.cli.get import nodes as node_rows

        found: dict[str, Any] = {
            "hosts": client.hosts,
            "server": address,
            "root": client.paths.root,
            "leader": leader.node if leader else None,
            "epoch": leader.epoch if leader else None,
            "slots": slots,
            "used": used,
            "tasks": tasks,
            "running": running,
            "results": results,
            "dead": dead,
            "schedules": schedules,
            "nodes": await node_rows(client, None, 0, False),
        }
        write_fields(found, output)
        return
    fields: dict[str, Any] = {
        "zookeeper": client.hosts if address in (None, client.hosts) else f"{address}, of {client.hosts}",
        "root": client.paths.root,
        "leader": f"{leader.node}, epoch {leader.epoch}" if leader else "nobody",
        "nodes": len(nodes),
        "slots": f"{used} of {slots} in use",
        "tasks": f"{tasks} in the drop box",
        "running": running,
        "results": f"{results} kept",
        "dead": dead,
        "schedules": schedules or None,
    }
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
