"""`zkd get`: what there is, a line each."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import connection_options, find_settings, full_name
from zkd.cli.output import output_option, write_rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from zkd.client import Client

    Row = dict[str, Any]
    Rows = list[Row]

LIMIT = 500  # tasks and results that are read for a table; names are listed without a limit

# Columns that only -o wide and programs get.
WIDE = {
    "nodes": ("load", "labels", "address", "version"),
    "results": ("size_bytes",),
    "tasks": ("priority", "submitter", "after"),
    "kernels": ("signature",),
    "schedules": ("overlap", "task"),
}

TASK_COLUMNS = (
    "id",
    "kernel",
    "state",
    "node",
    "attempt",
    "progress",
    "priority",
    "submitter",
    "after",
    "age_s",
)

RESOURCES = ("nodes", "tasks", "results", "kernels", "dead", "schedules", "limits")


@click.command()
@click.argument("what", type=click.Choice(RESOURCES))
@click.argument("name", required=False)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=LIMIT,
    help="Read so many tasks or results at most.",
    show_default=True,
)
@click.option("--local", is_flag=True, help="kernels: those installed here, without a cluster.")
@output_option
@connection_options
@click.pass_context
def get_command(
    ctx: click.Context,
    what: str,
    name: str | None,
    limit: int,
    local: bool,
    output: str,
    hosts: str | None,
    root: str | None,
    config: str | None,
) -> None:
    """List nodes, tasks, results, kernels, dead tasks, schedules or limits; or only NAME, which may be shortened.

    \b
      zkd get nodes
      zkd get tasks -o name | xargs -r zkd cancel
      zkd get kernels --local
    """
    settings = find_settings(ctx, hosts, root, config)
    if local:
        if what != "kernels":
            raise click.UsageError("--local is for kernels")
        rows = _chosen(local_kernels(settings.workers.modules), name)
        write_rows(rows, output, wide=() if name else WIDE["kernels"])
        return
    import asyncio

    from zkd.cli.connection import client_for
    from zkd.errors import Unavailable

    async def listed() -> Rows:
        async with client_for(settings) as client:
            return await LISTS[what](client, name, limit, output == "name")

    empty = f"There are no {'dead tasks' if what == 'dead' else what}."
    try:
        rows = asyncio.run(listed())
    except Unavailable:
        if what == "kernels":
            click.echo("no cluster could be asked; --local lists the kernels installed here", err=True)
        raise
    write_rows(rows, output, empty=empty, wide=() if name and what == "kernels" else WIDE.get(what, ()))


def _chosen(rows: Rows, name: str | None) -> Rows:
    if name is None:
        return rows
    wanted = full_name(name, [row["name"] for row in rows], "kernel")
    return [row for row in rows if row["name"] == wanted]


async def nodes(client: Client, name: str | None, limit: int, only_names: bool) -> Rows:
    here = await client.nodes()
    statuses, states, leader = await client.statuses(), await client.node_states(), await client.leader()
    rows = []
    for node, entry in here.items():
        if name is not None and node != full_name(name, list(here), "node"):
            continue
        status = statuses.get(node)
        state = states[node].state if node in states else "active"
        rows.append(
            {
                "node": node,
                "state": "draining" if entry.draining else state,
                "leads": leader is not None and leader.node == node,
                "slots": entry.slots,
                "used": status.slots_used if status else None,
                "queued": status.queued if status else None,
                "done": status.done if status else None,
                "failed": status.failed if status else None,
                "memory_bytes": status.memory_bytes if status else None,
                "load": status.load_1m if status else None,
                "uptime_s": status.uptime_s if status else None,
                "labels": entry.labels,
                "address": entry.address,
                "version": entry.version,
            }
        )
    if name is not None and not rows:
        full_name(name, list(here), "node")
    return rows


async def tasks(client: Client, name: str | None, limit: int, only_names: bool) -> Rows:
    names = _limited(await client.tasks(), name, limit, only_names, "task")
    if only_names:
        return [{"id": task} for task in names]
    places = await _places(client)
    found = await client.session.get_many([client.paths.task(task) for task in names])
    rows: Rows = []
    from zkd.codec import decode_task
    from zkd.errors import BadRecord, ZooKeeperError

    for task, znode in zip(names, found, strict=True):
        if isinstance(znode, ZooKeeperError):
            continue  # it ended meanwhile
        row: Row = dict.fromkeys(TASK_COLUMNS)
        row |= {"id": task, "age_s": round(time.time() - znode.stat.ctime / 1000, 3)}
        rows.append(row)
        try:
            record = decode_task(znode.data)
        except BadRecord:
            row["state"] = "malformed"
            continue
        state, node, attempt, progress = places.get(task, ("waiting", None, len(record.attempts), None))
        row |= {"kernel": record.kernel, "state": state, "node": node, "attempt": attempt, "progress": progress}
        row |= {"priority": record.priority, "submitter": record.submitter, "after": record.after}
    return rows


async def _places(client: Client) -> dict[str, tuple[str, str, int, float | None]]:
    """Where each task is that some node has."""
    from zkd.records import Assignment

    places: dict[str, tuple[str, str, int, float | None]] = {}
    for node, assignment in (await client.records(client.paths.assignments, Assignment)).items():
        for line in assignment.tasks:
            places[line.id] = ("assigned", node, line.attempt, None)
    for node, status in (await client.statuses()).items():
        for run in status.running:
            if places.get(run.id, ("", node))[1] == node:  # a heartbeat may be older than the assignment
                places[run.id] = ("running", node, run.attempt, run.progress)
    return places


async def results(client: Client, name: str | None, limit: int, only_names: bool) -> Rows:
    names = _limited(await client.results(), name, limit, only_names, "result")
    if only_names:
        return [{"id": task} for task in names]
    from zkd.codec import decode_result
    from zkd.errors import BadRecord, ZooKeeperError

    rows: Rows = []
    found = await client.session.get_many([client.paths.result(task) for task in names])
    for task, znode in zip(names, found, strict=True):
        if isinstance(znode, ZooKeeperError):
            continue
        try:
            result = decode_result(znode.data)
        except BadRecord:
            rows.append({"id": task, "status": "malformed"})
            continue
        size = result.ref.size if result.ref else len(znode.data)
        rows.append(
            {
                "id": task,
                "status": result.status,
                "kernel": result.kernel,
                "node": result.node,
                "attempt": result.attempt,
                "run_s": result.run_s,
                "size_bytes": size,
                "age_s": round(time.time() - znode.stat.ctime / 1000, 3),
                "error": f"{result.error.kind}: {result.error.message}" if result.error else None,
            }
        )
    columns = ("id", "status", "kernel", "node", "attempt", "run_s", "size_bytes", "age_s", "error")
    return [{column: row.get(column) for column in columns} for row in rows]


async def dead(client: Client, name: str | None, limit: int, only_names: bool) -> Rows:
    names = _limited(await client.dead(), name, limit, only_names, "dead task")
    if only_names:
        return [{"id": task} for task in names]
    import msgspec

    rows: Rows = []
    for task in names:
        record = await client.dead_task(task)
        if record is None:
            continue
        rows.append(
            {
                "id": task,
                "kernel": msgspec.json.decode(record.task).get("kernel"),
                "attempts": len(record.attempts),
                "at": record.at,
                "error": f"{record.error.kind}: {record.error.message}",
            }
        )
    return rows


async def kernels(client: Client, name: str | None, limit: int, only_names: bool) -> Rows:
    """The kernels of the cluster's nodes, with the nodes that have them unless all do."""
    owners: dict[str, list[str]] = {}
    here = await client.nodes()
    for node, entry in here.items():
        for kernel in entry.kernels:
            owners.setdefault(kernel, []).append(node)
    known = {row["name"]: row for row in local_kernels([])}
    rows = [
        {
            "name": kernel,
            "nodes": "all" if len(nodes) == len(here) else ",".join(nodes),
            "signature": known.get(kernel, {}).get("signature"),
            "summary": known.get(kernel, {}).get("summary"),
        }
        for kernel, nodes in sorted(owners.items())
    ]
    return _chosen(rows, name)


def local_kernels(modules: list[str]) -> Rows:
    """The kernels that a daemon would offer here."""
    from zkd.kernels import load, signatures

    registry = load(modules)
    for fault in registry.faults:
        click.echo(f"warning: {fault.name}: {fault.error}", err=True)
    return [
        {"name": kernel.name, "signature": kernel.signature, "summary": kernel.summary}
        for kernel in signatures(registry)
    ]


def _limited(names: list[str], name: str | None, limit: int, only_names: bool, what: str) -> list[str]:
    if name is not None:
        return [full_name(name, names, what)]
    if len(names) > limit and not only_names:
        click.echo(f"{limit} of {len(names)} shown; --limit shows more, -o name lists all", err=True)
        return names[:limit]
    return names


async def schedules(client: Client, name: str | None, limit: int, only_names: bool) -> Rows:
    from zkd.cli.schedule import rows

    return await rows(client, name, limit, only_names)


async def limits(client: Client, name: str | None, limit: int, only_names: bool) -> Rows:
    from zkd.cli.limit import rows

    return await rows(client, name, limit, only_names)


LISTS: dict[str, Callable[[Client, str | None, int, bool], Awaitable[Rows]]] = {
    "nodes": nodes,
    "tasks": tasks,
    "results": results,
    "kernels": kernels,
    "dead": dead,
    "schedules": schedules,
    "limits": limits,
}
