"""`zkd config app`: programs' own configuration. What its values have to be, its program knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import with_client
from zkd.cli.data import output_options as json_option
from zkd.cli.output import FOR_PEOPLE, cell, to_text, write_rows

if TYPE_CHECKING:
    from zkd.client import Client


@click.group()
def app() -> None:
    """Programs' own configuration (`client.config`). The programs refuse what is not of their type."""


@app.command()
@json_option
@with_client
async def ls(client: Client, output: str) -> None:
    """List what is configured."""
    from zkd.errors import BadRecord, ConfigNotFound

    rows = []
    for name in await client.config.names():
        try:
            found = await client.config.entry(name)
            row = {"name": name, "revision": found.revision, "at": found.at, "by": found.by, "why": found.why}
        except ConfigNotFound:
            continue
        except BadRecord as error:
            row = {"name": name, "revision": None, "at": "", "by": "", "why": str(error)}
        rows.append(row)
    write_rows(rows, output, empty="nothing is configured")


@app.command()
@click.argument("name")
@click.option("--revision", type=int, help="As it was then.")
@with_client
async def get(client: Client, name: str, revision: int | None) -> None:
    """Print NAME as JSON."""
    click.echo(to_text((await client.config.entry(name, revision=revision)).value))


@app.command("set")
@click.argument("name")
@click.argument("value", metavar="JSON|@FILE")
@click.option("--why", default="", help="For those who look later.")
@click.option("--expect", type=int, metavar="REVISION", help="Only if this is the revision that is changed.")
@with_client
async def set_(client: Client, name: str, value: str, why: str, expect: int | None) -> None:
    """Set NAME to a JSON value. Its program takes it if it is of its type, and else goes on with what it has."""
    import asyncio

    from zkd.core.app_config import read_value

    text = await asyncio.to_thread(Path(value[1:]).read_bytes) if value.startswith("@") else value.encode()
    revision = await client.config.set(name, read_value(text, Any), why=why, expect=expect)
    click.echo(f"revision {revision}")


@app.command()
@click.argument("name")
@json_option
@with_client
async def history(client: Client, name: str, output: str) -> None:
    """The revisions of NAME, the newest first."""
    rows = [
        {"revision": each.revision, "at": each.at, "by": each.by, "why": each.why, "value": each.value}
        for each in await client.config.history(name)
    ]
    if output in FOR_PEOPLE:
        rows = [{**row, "value": to_text(row["value"])} for row in rows]
    write_rows(rows, output, empty=f"there is no {name}")


@app.command()
@click.argument("name")
@click.argument("before", type=int)
@click.argument("after", type=int, required=False)
@json_option
@with_client
async def diff(client: Client, name: str, before: int, after: int | None, output: str) -> None:
    """What changed in NAME from revision BEFORE to AFTER, by default to what it is now."""
    found = await client.config.diff(name, before, after)
    if output not in FOR_PEOPLE:
        write_rows([{"path": path, "before": old, "after": new} for path, old, new in found], output)
        return
    for path, old, new in found:
        click.echo(f"{path}: {cell(old)} -> {cell(new)}")


@app.command()
@click.argument("name")
@click.argument("revision", type=int)
@click.option("--why", default="", help="For those who look later.")
@with_client
async def rollback(client: Client, name: str, revision: int, why: str) -> None:
    """Make NAME what it was at REVISION, as a new revision."""
    click.echo(f"revision {await client.config.rollback(name, revision, why=why)}")


@app.command()
@click.argument("name")
@with_client
async def rm(client: Client, name: str) -> None:
    """Remove NAME with its history. Programs that follow it keep what they have."""
    from zkd.errors import ConfigNotFound

    if not await client.config.remove(name):
        raise ConfigNotFound(f"there is no config {name} below {client.paths.root}")
    click.echo(f"{name} removed")
