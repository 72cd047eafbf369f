"""`zkd describe`: everything about one thing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import connection_options, find_settings, full_name
from zkd.cli.exits import Exit, Stop
from zkd.cli.output import FOR_PEOPLE, output_option, write_fields

if TYPE_CHECKING:
    from zkd.client import Client

TEXT_MAX = 2000  # characters of arguments and values that are shown; -o json shows all


@click.command()
@click.argument("what", type=click.Choice(["node", "task", "result", "kernel", "schedule"]))
@click.argument("name")
@output_option
@connection_options
@click.pass_context
def describe_command(
    ctx: click.Context, what: str, name: str, output: str, hosts: str | None, root: str | None, config: str | None
) -> None:
    """Show everything about one node, task, result, kernel or schedule. NAME may be shortened."""
    settings = find_settings(ctx, hosts, root, config)
    if what == "kernel":
        write_fields(_kernel(name, settings.workers.modules), output)
        return
    import asyncio

    from zkd.cli.connection import client_for
    from zkd.cli.schedule import described

    ways = {"node": _node, "task": _task, "result": _result, "schedule": described}

    async def found() -> dict[str, Any]:
        async with client_for(settings) as client:
            return await ways[what](client, name, output in FOR_PEOPLE)

    write_fields(asyncio.run(found()), output)


def _kernel(name: str, modules: list[str]) -> dict[str, Any]:
    """As installed here: its documentation does not travel through the tree."""
    import msgspec

    from zkd.errors import BadRecord
    from zkd.kernels import load, signatures

    registry = load(modules)
    try:
        registry.find(name)
    except BadRecord as error:
        raise Stop(
            Exit.NOT_FOUND,
            f"error: {error}\n  Here are only the kernels installed on this machine; workers.modules adds more.",
        ) from None
    found = next(kernel for kernel in signatures(registry) if kernel.name == name)
    fields: dict[str, Any] = msgspec.to_builtins(found)
    fields.pop("summary", None)
    return fields


async def _node(client: Client, name: str, short: bool) -> dict[str, Any]:
    import msgspec

    here, statuses, states = await client.nodes(), await client.statuses(), await client.node_states()
    node = full_name(name, sorted({*here, *statuses, *states}), "node")
    leader = await client.leader()
    fields: dict[str, Any] = {
        "node": node,
        "is_here": node in here,
        "leads": leader is not None and leader.node == node,
    }
    if node in here:
        fields |= msgspec.to_builtins(here[node])
        if short:
            fields["kernels"] = f"{len(here[node].kernels)}, see zkd get kernels"
    if node in states:
        fields["wanted"] = msgspec.to_builtins(states[node])
    if node in statuses:
        status: dict[str, Any] = msgspec.to_builtins(statuses[node])
        fields["status"] = lines(status) if short else status
    return fields


async def _task(client: Client, name: str, short: bool) -> dict[str, Any]:
    import msgspec

    from zkd.errors import BadRecord

    names = {*await client.tasks(), *await client.results(), *await client.dead()}
    task = full_name(name, sorted(names), "task")
    fields: dict[str, Any] = {"id": task, "why": await client.why(task)}
    dead = await client.dead_task(task)
    try:
        text = (await client.session.get(client.paths.task(task))).data if task in await client.tasks() else None
        text = bytes(dead.task) if text is None and dead else text
        if text is not None:
            record = msgspec.json.decode(text)
            fields["task"] = _cut(lines(record)) if short else record
    except (BadRecord, msgspec.DecodeError) as error:
        fields["malformed"] = str(error)
    result = await client.outcome(task)
    if dead is not None and result is None:  # else the result tells them
        tried = [f"{a.cause} on {a.node}: {a.message}" for a in dead.attempts]
        fields["attempts"] = "\n".join(tried) if short else tried
    if result is not None:
        fields["result"] = lines(_of_result(result, short)) if short else _of_result(result, short)
    return fields


async def _result(client: Client, name: str, short: bool) -> dict[str, Any]:
    task = full_name(name, await client.results(), "result")
    result = await client.outcome(task)
    if result is None:
        raise Stop(Exit.NOT_FOUND, f"error: the result of {task} has just gone")
    return {"id": task, **_of_result(result, short)}


def _of_result(result: Any, short: bool) -> dict[str, Any]:
    import msgspec

    fields: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(result))
    if short and "value" in fields:
        fields["value"] = _cut(msgspec.json.encode(fields["value"]).decode())
    if short and fields.get("attempts"):
        fields["attempts"] = "\n".join(
            f"{a['cause']} on {a.get('node')}: {a.get('message')}" for a in fields["attempts"]
        )
    if short and isinstance(fields.get("error"), dict):
        trace = fields["error"].pop("traceback", None)
        fields["error"] = ": ".join(str(part) for part in fields["error"].values())
        if trace:
            fields["traceback"] = trace
    return fields


def lines(record: dict[str, Any]) -> str:
    import msgspec

    lines = []
    for name, value in record.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        lines.append(f"{name}:\n{_indented(text)}" if "\n" in text else f"{name}: {_cut(text)}")
    return "\n".join(lines)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines())


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}... ({len(text)} characters, -o json shows all)"
