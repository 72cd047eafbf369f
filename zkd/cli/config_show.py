"""What is said centrally, what holds on which node and why, and how it came to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zkd.cli.config_files import tree_of
from zkd.cli.connection import full_name, with_client
from zkd.cli.data import output_options as json_option
from zkd.cli.exits import Exit, Stop
from zkd.cli.output import FOR_PEOPLE, cell, write_fields, write_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zkd.client import Client
    from zkd.client.central import Central
    from zkd.configs import ConfigStanding

    Rows = list[dict[str, Any]]


def layer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--label and --node as one argument `layer`."""
    from functools import wraps

    @wraps(command)
    def with_layer(*args: Any, label: str | None, node: str | None, **kwargs: Any) -> Any:
        from zkd.core.config import expect_layer
        from zkd.errors import BadSettings
        from zkd.paths import label_layer

        layer = "cluster"
        if label is not None and node is not None:
            raise click.UsageError("expected --label or --node, not both")
        if label is not None:
            name, equals, value = label.partition("=")
            if not name or not equals:
                raise click.UsageError(f"--label {label}: expected name=value, such as --label rack=r1")
            layer = label_layer(name, value)
        if node is not None:
            try:
                layer = expect_layer(f"nodes/{node}")
            except BadSettings:
                raise click.UsageError(f"--node {node}: expected the name of a node") from None
        return command(*args, layer=layer, **kwargs)

    with_layer = click.option("--node", metavar="NODE", help="For this node.")(with_layer)
    return click.option("--label", metavar="NAME=VALUE", help="For nodes with this label.")(with_layer)


@click.command(short_help="Print what is said of a setting.")
@click.argument("key")
@layer_options
@json_option
@with_client
async def get(client: Client, key: str, layer: str, output: str) -> int:
    """Print what is said of KEY for all nodes, or with --label or --node for some. `explain` says what holds."""
    known = _known(key)
    said = (await client.settings.read()).layers.get(layer, {})
    if known not in said:
        raise Stop(Exit.NOT_FOUND, f"error: {known} is not said there\n  `zkd config explain {known}` says what holds.")
    click.echo(cell(said[known])) if output in FOR_PEOPLE else write_fields({known: said[known]}, output)
    return Exit.OK


@click.command(short_help="Show all that is said, or all that holds on a node.")
@click.option("--node", metavar="NODE", help="What holds there, and where each value comes from.")
@json_option
@with_client
async def show(client: Client, node: str | None, output: str) -> int:
    """Show what is said centrally; with --node all that could be, as it holds there, with its origin."""
    central = await client.settings.read()
    _warn(central)
    if node is not None:
        rows = await _holding(client, central, node)
        write_rows(rows, output, empty="nothing")
        return Exit.OK
    if output in ("json", "jsonl"):
        write_fields(tree_of(central.layers, central.revision), output)
        return Exit.OK
    from zkd.paths import layer_title

    rows = [
        {"key": key, "value": value, "layer": layer_title(layer)}
        for layer, values in central.layers.items()
        for key, value in sorted(values.items())
    ]
    write_rows(rows, output, empty=f"nothing is said (revision {central.revision})")
    return Exit.OK


@click.command(short_help="What changed between two revisions.")
@click.argument("before", type=int)
@click.argument("after", type=int, required=False)
@json_option
@with_client
async def diff(client: Client, before: int, after: int | None, output: str) -> int:
    """What changed from revision BEFORE to AFTER; by default to what is said now."""
    now = await client.settings.read()
    old = await client.settings.at(before, now)
    write_differences(old, now.layers if after is None else await client.settings.at(after, now), output)
    return Exit.OK


def write_differences(before: Mapping[str, Any], after: Mapping[str, Any], output: str) -> None:
    from zkd.core.config import differences
    from zkd.paths import layer_title

    found = differences(before, after)
    if output not in FOR_PEOPLE:
        write_rows([{"layer": each[0], "key": each[1], "before": each[2], "after": each[3]} for each in found], output)
        return
    layer = None
    for name, key, old, new in found:
        if name != layer:
            click.echo(layer_title(name))
            layer = name
        for sign, value in (("-", old), ("+", new)):
            if value is not None:
                click.secho(f"  {sign} {key} = {cell(value)}", fg="red" if sign == "-" else "green")


@click.command(short_help="Who changed what, when and why.")
@click.option("-n", "--limit", type=click.IntRange(1), default=20, show_default=True, help="So many revisions.")
@json_option
@with_client
async def history(client: Client, limit: int, output: str) -> int:
    """The last revisions, the newest first."""
    import msgspec

    from zkd.core.config import differences
    from zkd.paths import layer_title

    found = await client.settings.history(limit)
    if output in ("json", "jsonl"):
        write_rows([msgspec.to_builtins(each) for each in found], output)
        return Exit.OK
    rows = []
    for each in found:
        before = {change.layer: change.before or {} for change in each.changes}
        after = {change.layer: change.after or {} for change in each.changes}
        told = [
            f"{key}: {cell(old)} -> {cell(new)}{'' if layer == 'cluster' else f' ({layer_title(layer)})'}"
            for layer, key, old, new in differences(before, after)
        ]
        rows.append(
            {"revision": each.revision, "at": each.at, "by": each.by, "why": each.why, "changes": "; ".join(told)}
        )
    write_rows(rows, output, empty="nothing was ever said")
    return Exit.OK


@click.command(short_help="What holds of a setting, where, and why.")
@click.argument("key")
@click.option("--node", metavar="NODE", help="On this node alone.")
@json_option
@with_client
async def explain(client: Client, key: str, node: str | None, output: str) -> int:
    """What KEY may be, who says what of it, and what holds on each node."""
    from zkd.core.setting_table import about
    from zkd.paths import layer_title

    found = about(_known(key))
    central = await client.settings.read()
    _warn(central)
    nodes = sorted(await client.nodes()) if node is None else [node]
    holding = {}
    for each in nodes if found.is_central else []:
        row = next(row for row in await _holding(client, central, each) if row["key"] == found.key)
        holding[row["node"]] = {"value": row["value"], "origin": row["origin"]}
    said = {layer_title(layer): values[found.key] for layer, values in central.layers.items() if found.key in values}
    if output not in FOR_PEOPLE:
        write_fields(
            {"key": found.key, "kind": found.kind, "default": found.default, "is_central": found.is_central,
             "is_live": found.is_live, "revision": central.revision, "said": said, "nodes": holding}, output
        )  # fmt: skip
        return Exit.OK
    click.echo(f"{found.key}: {found.kind}; default {found.default or 'none'}")
    click.echo("  counts at once" if found.is_live else "  counts from a node's next start on")
    if not found.is_central:
        click.echo("  is for each machine's own settings to say, never centrally")
        return Exit.OK
    for layer, value in said.items():
        click.echo(f"  {layer} says {cell(value)}")
    if not said:
        click.echo("  nothing is said centrally")
    for name, row in holding.items():
        click.echo(f"  on {name}: {cell(row['value'])} ({row['origin']})")
    return Exit.OK


@click.command(short_help="Which node runs which revision, and which refused one and why.")
@json_option
@with_client
async def status(client: Client, output: str) -> int:
    """Each node that is here: current, behind, refused, or waiting for a restart. Exit code 78 if one refused."""
    central = await client.settings.read()
    _warn(central)
    rows = await node_rows(client, central.revision)
    shown = rows
    if output in FOR_PEOPLE:
        shown = [{name: value for name, value in row.items() if name not in ("own", "need_restart")} for row in rows]
        click.echo(f"revision {central.revision}")
    write_rows(shown, output, empty="no node is here")
    return Exit.BAD_CONFIG if any(row["state"] == "refused" for row in rows) else Exit.OK


async def node_rows(client: Client, revision: int) -> Rows:
    import msgspec

    rows: Rows = []
    for node, standing in (await client.settings.standings()).items():
        row: dict[str, Any] = {"node": node, "revision": None, "state": "unknown", "source": None, "why": ""}
        row |= {"need_restart": [], "own": {}}
        if standing is None:
            row["why"] = "it has not said yet, or is of an older release"
        else:
            row |= {"revision": standing.revision, "source": standing.source, "need_restart": standing.need_restart}
            row["own"] = msgspec.to_builtins(standing.own)
            row["state"], row["why"] = _state(standing, revision)
        rows.append(row)
    return rows


def _state(standing: ConfigStanding, revision: int) -> tuple[str, str]:
    if standing.refused is not None and (standing.refused >= revision or standing.refused == 0):
        return "refused", "; ".join(standing.faults)
    if standing.revision < revision:
        return "behind", ""
    if standing.need_restart:
        return "restart", f"needs a restart for {', '.join(standing.need_restart)}"
    return "current", ""


async def _holding(client: Client, central: Central, given: str) -> Rows:
    """What holds on a node of all that could be said centrally: by what it says, and by the layers that concern it."""
    from zkd.core.config import CENTRAL_KEYS, faults_of, layers_of
    from zkd.core.setting_table import about
    from zkd.paths import layer_title

    nodes = await client.nodes()
    name = full_name(given, sorted(nodes), "node")
    standing = (await client.settings.standings()).get(name)
    layers = [(each, central.layers.get(each, {})) for each in layers_of(name, nodes[name].labels)]
    rows: Rows = []
    for key in CENTRAL_KEYS:
        known = about(key)
        value, origin = known.default or None, "default"
        for layer, values in layers:
            if key in values and not faults_of({key: values[key]}):
                value, origin = values[key], layer_title(layer)
        if standing is not None and key in standing.own:
            value, origin = standing.own[key].value, standing.own[key].origin
        if standing is not None and key in standing.need_restart:
            origin += ", from its next start on"
        rows.append({"key": key, "value": value, "origin": origin, "live": known.is_live, "node": name})
    if standing is not None and standing.refused is not None:
        click.echo(
            f"{name} refused a revision, revision {standing.revision} holds there: `zkd config status`", err=True
        )
    return rows


def _known(key: str) -> str:
    from zkd.settings import KEYS
    from zkd.sources import suggestion

    if key not in KEYS:
        raise Stop(Exit.NOT_FOUND, f"error: there is no setting {key}{suggestion(key, KEYS)}")
    return key


def _warn(central: Central) -> None:
    for layer, error in central.unreadable.items():
        click.echo(f"{f'config/{layer}'.rstrip('/')} cannot be read: {error}", err=True)
