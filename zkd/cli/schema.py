"""`zkd schema`: what may stand in a znode, for programs."""

from __future__ import annotations

import click

from zkd.cli.exits import Exit, Stop


@click.command()
@click.argument("name", required=False)
def schema_command(name: str | None) -> None:
    """Print the JSON Schema of a record; without NAME, what records there are."""
    from zkd import schemas

    if name is None:
        for known, (_, description) in schemas.RECORDS.items():
            click.echo(f"{known:16}{description}")
        return
    if name not in schemas.RECORDS:
        raise Stop(Exit.NOT_FOUND, f"error: there is no record {name}\n  There are: {', '.join(schemas.RECORDS)}.")
    click.echo(schemas.text(name), nl=False)
