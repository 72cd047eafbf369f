"""`zkd config`: settings that are said for many nodes at once, and programs' own configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.config_app import app
from zkd.cli.config_files import layers_from, toml_of
from zkd.cli.config_show import (
    diff,
    explain,
    get,
    history,
    layer_options,
    node_rows,
    show,
    status,
    write_differences,
)
from zkd.cli.connection import with_client
from zkd.cli.data import output_options as json_option
from zkd.cli.exits import Exit, Stop
from zkd.cli.output import FOR_PEOPLE, write_fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.client import Client
    from zkd.configs import ConfigRevision

FOLLOWED_S = 5.0  # a node that is well follows within a second
ASK_AGAIN_S = 0.1


@click.group()
def config_command() -> None:
    """Settings for all nodes, for those with a label, or for one; in revisions, validated before they count.

    What a machine's own file, environment or command line says holds there. `zkd config explain KEY` says what holds
    where and why, `zkd config status` how far each node is.
    """


for each in (get, show, diff, history, explain, status, app):
    config_command.add_command(each)


def change_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What all that change something take."""
    for option in (
        json_option,
        click.option(
            "--wait", "wait_s", type=float, default=FOLLOWED_S, metavar="S", show_default=True,
            help="So long for the nodes to follow; 0: do not wait.",
        ),
        click.option("--expect", type=int, metavar="REVISION", help="Only if this is the revision that is changed."),
        click.option("--why", default="", help="For those who look later."),
    ):  # fmt: skip
        command = option(command)
    return command


@config_command.command("set", short_help="Say settings: KEY=VALUE ...")
@click.argument("pairs", nargs=-1, required=True, metavar="KEY=VALUE...")
@layer_options
@change_options
@with_client
async def set_(
    client: Client, pairs: tuple[str, ...], layer: str, why: str, expect: int | None, wait_s: float, output: str
) -> int:
    """Say settings for all nodes, or with --label or --node for some.

    \b
      zkd config set tasks.timeout_s=600 log.level=info --why 'long fits'
      zkd config set node.slots 4 --label gpu=yes
    """
    from zkd.settings import KEYS, value_of

    if len(pairs) == 2 and not any("=" in pair for pair in pairs):
        pairs = (f"{pairs[0]}={pairs[1]}",)
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise click.UsageError(f"{pair}: expected KEY=VALUE, such as tasks.timeout_s=600")
        if key in values:
            raise click.UsageError(f"{key}: expected each setting once")
        values[key] = _read(key, text, value_of) if key in KEYS else text
    return await _changed(
        client, await client.settings.set(values, layer=layer, why=why, expect=expect), wait_s, output
    )


def _read(key: str, text: str, value_of: Callable[..., Any]) -> Any:
    """The value of what was typed; what is none is passed on, to be refused with all other faults."""
    import msgspec

    try:
        return value_of(key, text, is_text=True)
    except (ValueError, msgspec.ValidationError):
        try:
            return msgspec.json.decode(text)  # a number that is out of bounds is told as one
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
            return text


@config_command.command(short_help="Say nothing of settings any more.")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@layer_options
@change_options
@with_client
async def unset(
    client: Client, keys: tuple[str, ...], layer: str, why: str, expect: int | None, wait_s: float, output: str
) -> int:
    """Say nothing of KEY any more for all nodes, or with --label or --node for some."""
    entry = await client.settings.unset(keys, layer=layer, why=why, expect=expect)
    return await _changed(client, entry, wait_s, output)


@config_command.command(short_help="Say what was said at a revision, again.")
@click.argument("revision", type=int)
@change_options
@with_client
async def rollback(client: Client, revision: int, why: str, expect: int | None, wait_s: float, output: str) -> int:
    """Say again what was said at REVISION, for all layers, as a new revision. 0 is before the first one."""
    why = why or f"rollback to {revision}"
    return await _changed(client, await client.settings.rollback(revision, why=why, expect=expect), wait_s, output)


@config_command.command("apply", short_help="Say what a file says, and nothing else.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check it and show what would change.")
@change_options
@with_client
async def apply_(
    client: Client, file: Path, dry_run: bool, why: str, expect: int | None, wait_s: float, output: str
) -> int:
    """Say what FILE says and nothing else. It is TOML or JSON, as `zkd config show -o json` and `edit` have it.

    \b
      [cluster]
      tasks.timeout_s = 600
      [labels."gpu=yes"]
      node.slots = 4
      [nodes.n1]
      log.level = "debug"
    """
    import asyncio

    layers = layers_from(await asyncio.to_thread(file.read_bytes), str(file))
    if dry_run:
        from zkd.core.config import expect_valid

        expect_valid(layers)
        write_differences((await client.settings.read()).layers, layers, output)
        return Exit.OK
    return await _changed(client, await client.settings.replace(layers, why=why, expect=expect), wait_s, output)


@config_command.command(short_help="Change all of it in $EDITOR.")
@change_options
@with_client
async def edit(client: Client, why: str, expect: int | None, wait_s: float, output: str) -> int:
    """Open what is said in $VISUAL or $EDITOR. Refused if somebody else changes it meanwhile."""
    import asyncio

    now = await client.settings.read()
    text = toml_of(now.layers, now.revision)
    edited = await asyncio.to_thread(click.edit, text, extension=".toml")
    if edited is None or edited == text:
        click.echo("nothing changed")
        return Exit.OK
    layers = layers_from(edited.encode(), "edited.toml")
    entry = await client.settings.replace(layers, why=why, expect=now.revision if expect is None else expect)
    return await _changed(client, entry, wait_s, output)


async def _changed(client: Client, entry: ConfigRevision | None, wait_s: float, output: str) -> int:
    """Say which revision it became, and which nodes took it."""
    from zkd.core.config import differences

    if entry is None:
        revision = (await client.settings.read()).revision
        click.echo(f"nothing changed, revision {revision}") if output in FOR_PEOPLE else write_fields(
            {"revision": revision, "changed": False, "nodes": []}, output
        )
        return Exit.OK
    rows = await _followed(client, entry.revision, wait_s)
    refusing = [row for row in rows if row["state"] == "refused"]
    if output not in FOR_PEOPLE:
        write_fields({"revision": entry.revision, "changed": True, "nodes": rows}, output)
    else:
        click.echo(f"revision {entry.revision}{_followers(rows, wait_s)}")
        for row in rows:
            if row["need_restart"]:
                click.echo(f"  {row['node']} needs a restart for {', '.join(row['need_restart'])}")
        before = {change.layer: change.before or {} for change in entry.changes}
        given = {change.layer: change.after or {} for change in entry.changes}
        new = {key for _, key, _, value in differences(before, given) if value is not None}
        for row in rows:
            if pinned := sorted(new & row["own"].keys()):
                said = ", ".join(f"{key} ({row['own'][key]['origin']})" for key in pinned)
                click.echo(f"  {row['node']} says itself, and that holds: {said}")
    if refusing:
        told = "\n".join(f"  {row['node']}: {row['why']}" for row in refusing)
        raise Stop(Exit.BAD_CONFIG, f"error: revision {entry.revision} was refused, the former one holds there\n{told}")
    return Exit.OK


def _followers(rows: list[dict[str, Any]], wait_s: float) -> str:
    if wait_s <= 0:
        return ""
    if not rows:
        return "; no node is here"
    following = [row["node"] for row in rows if row["state"] in ("current", "restart")]
    waiting = [row["node"] for row in rows if row["state"] in ("behind", "unknown")]
    said = f"; followed by {len(following)} of {len(rows)} nodes"
    return f"{said}; not yet by {', '.join(waiting[:10])}" if waiting else said


async def _followed(client: Client, revision: int, wait_s: float) -> list[dict[str, Any]]:
    """How far the nodes are, once all of them have said so, or the time is over."""
    import asyncio
    import time

    give_up = time.monotonic() + wait_s
    while True:
        rows = await node_rows(client, revision)
        is_over = time.monotonic() >= give_up
        if is_over or all(row["state"] not in ("behind", "unknown") for row in rows):
            return rows
        await asyncio.sleep(ASK_AGAIN_S)
