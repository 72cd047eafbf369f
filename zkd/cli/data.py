"""`zkd data`: tables that the nodes keep for you."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import dataset_names, with_client
from zkd.cli.exits import Exit
from zkd.cli.output import FORMATS, bytes_text, write_fields, write_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zkd.client import Client
    from zkd.client.copies import Stat
    from zkd.client.dataset import Dataset
    from zkd.client.sending import Progress
    from zkd.manifests import Manifest

    Rows = list[dict[str, Any]]


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--json", "output", flag_value="json", help="The same as -o json.")(command)
    return click.option("-o", "--output", type=click.Choice(FORMATS), default="table", help="table is for people.")(
        command
    )


@click.group()
def data_command() -> None:
    """Keep tables on the nodes: their rows go to parts by the hash of a key, each part to several nodes.

    A dataset is named NAME, one of its versions NAME@VERSION.
    """


# --- In and out -------------------------------------------------------------------------------------------


@data_command.command(short_help="Make a dataset of a file, or a new version of one.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Of the dataset; by default the file's, without its ending.")
@click.option("--key", metavar="COLUMN", help="Find rows by it; by default by their number.")
@click.option("--label", metavar="COLUMN", help="What models are to predict.")
@click.option("--parts", type=int, help="A power of two; by default as the size asks for.")
@click.option("--replicas", type=int, help="Copies of each part; by default 2.")
@click.option("--store", metavar="URL", help="Keep parts at s3://bucket/prefix or file:///directory, not on nodes.")
@click.option("--replace", is_flag=True, help="Make a new version of a dataset that is there.")
@click.option("--append", is_flag=True, help="Add the rows to those of a dataset that is there.")
@click.option("--header/--no-header", default=None, help="CSV: the first line has names.")
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    metavar="COLUMN=DTYPE",
    help="CSV: such as 'day=datetime64[D]', zip=U5, or zip=U for text of any width.",
)
@output_options
@with_client
async def put(
    client: Client,
    file: Path,
    name: str | None,
    replace: bool,
    append: bool,
    dtypes: tuple[str, ...],
    header: bool | None,
    output: str,
    **options: Any,
) -> None:
    """Make a dataset of a CSV, .npy, .npz, Parquet or Arrow FILE. It is there as a whole, or not at all.

    \b
      zkd data put flights.csv --key tail_number --label delay
      zkd data put more.csv --name flights --append
    """
    name = name or file.name.split(".")[0]
    if append:
        given = [f"--{option}" for option, value in {**options, "dtype": dtypes, "replace": replace}.items() if value]
        if given:
            raise click.UsageError(f"--append keeps to what the dataset is; {', '.join(given)} cannot be given")
    with progress_bar() as tell:
        if append:
            dataset = await client.datasets.append(name, file, header=header, progress=tell)
        else:
            dataset = await client.datasets.put(
                name, file, replace=replace, header=header, dtypes=_dtypes(dtypes), progress=tell, **options
            )
    manifest = dataset.manifest
    if output == "table":
        counts = {"row": dataset.rows, "part": dataset.parts, "replica": manifest.replicas}
        said = ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items())
        click.echo(f"{name}@{dataset.version}: {said}")
    else:
        write_fields(_row(manifest), output)
    if manifest.store is None:
        _, homes = (await dataset.holders())[0]
        if len(homes) < manifest.replicas:
            copies = f"{len(homes)} {'copy' if len(homes) == 1 else 'copies'}"
            click.echo(f"each part has {copies} until more nodes keep data; `zkd get nodes` says who is here", err=True)


def _dtypes(pairs: tuple[str, ...]) -> dict[str, str]:
    named = {}
    for pair in pairs:
        name, equals, dtype = pair.rpartition("=")
        if not equals or not name:
            raise click.UsageError(f"--dtype {pair}: expected COLUMN=DTYPE, such as --dtype zip=U5")
        named[name] = dtype
    return named


@data_command.command(short_help="Write a dataset, or the rows with one key, to a file or as CSV.")
@click.argument("name", shell_complete=dataset_names)
@click.option(
    "-O",
    "path",
    type=click.Path(path_type=Path),
    help="Into this file: *.npz, .npy, .csv, .parquet, .arrow. By default CSV on stdout.",
)
@click.option("--columns", metavar="A,B", help="Only these.")
@click.option("--part", "parts", type=int, multiple=True, help="Only this part; may be given several times.")
@click.option("--key", help="Only the rows with this key, from the node that has them.")
@with_client
async def get(
    client: Client, name: str, path: Path | None, columns: str | None, parts: tuple[int, ...], key: str | None
) -> None:
    """Write the rows of NAME or NAME@VERSION in the order in which they were written.

    \b
      zkd data get flights -O flights.parquet
      zkd data get flights --key N14228 --columns delay,distance
    """
    from zkd.tables.export import expect_ending, to_csv, to_file

    if path is not None:
        expect_ending(path)
    if key is not None and parts:
        raise click.UsageError("--key and --part: expected one of them")
    dataset = await client.datasets.open(name)
    chosen = columns.split(",") if columns is not None else None
    if key is not None:
        table = await dataset.get(_typed(dataset, key), columns=chosen)
    else:
        table = await dataset.read(columns=chosen, parts=parts or None)
    if path is None:
        to_csv(table, sys.stdout)
    else:
        to_file(table, path)


@data_command.command(short_help="Remove a dataset, or some of its versions.")
@click.argument("name", shell_complete=dataset_names)
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Remove all versions but the N newest.")
@click.option("--yes", is_flag=True, help="Do not ask whether all versions are to go.")
@with_client
async def rm(client: Client, name: str, keep: int | None, yes: bool) -> None:
    """Remove NAME with all its versions, or NAME@VERSION alone. The nodes remove the files some time later."""
    from zkd.core.datasets import split_name
    from zkd.errors import BadRecord

    try:
        plain, version = split_name(name)
    except BadRecord as error:
        raise click.UsageError(error.expected) from None
    if keep is not None and version is not None:
        raise click.UsageError("--keep and @VERSION: expected one of them")
    count = len(await client.datasets.versions(plain))
    if keep is not None:
        await client.datasets.rm(plain, keep=keep)
        left = len(await client.datasets.versions(plain))
        click.echo(f"{count - left} versions of {plain} removed, {left} left")
        return
    if version is None and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"expected --yes, or {plain}@VERSION: this removes all of its {count} versions")
        click.confirm(f"Remove {plain} and its {count} version{'s' if count > 1 else ''}?", abort=True)
    await client.datasets.rm(plain, version)
    click.echo(f"{name} removed")


# --- Looking ----------------------------------------------------------------------------------------------


@data_command.command(short_help="List the datasets, or the versions of one.")
@click.argument("name", required=False, shell_complete=dataset_names)
@output_options
@with_client
async def ls(client: Client, name: str | None, output: str) -> None:
    """List the datasets that are there, or with NAME its versions."""
    if name is not None:
        rows = [_row(manifest) for manifest in (await client.datasets.versions(name)).values()]
    else:
        rows = [_row(manifest) for manifest in (await client.datasets.list()).values()]
    write_rows(rows, output, empty="There are no datasets.", wide=("columns", "created_at", "by", "parent"))


def _row(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "rows": manifest.rows,
        "size_bytes": manifest.size,
        "parts": manifest.parts,
        "replicas": manifest.replicas,
        "key": manifest.key,
        "label": manifest.label,
        "parent": manifest.parent,
        "created_at": manifest.created_at,
        "by": manifest.by,
        "columns": {
            column.name: column.dtype + (str(column.shape).replace(" ", "") if column.shape else "")
            for column in manifest.columns
        },
    }


@data_command.command(short_help="Show the health of a dataset and where its copies are.")
@click.argument("name", shell_complete=dataset_names)
@output_options
@with_client
async def stat(client: Client, name: str, output: str) -> int:
    """Show NAME: full with all copies of all parts, degraded with fewer of some, lost without any of one.

    Ends with 0 when it is full, 1 otherwise.
    """
    dataset = await client.datasets.open(name)
    found = await dataset.stat()
    write_fields({**_health(found), **_row(dataset.manifest), "nodes": found.nodes}, output)
    return Exit.OK if found.health == "full" else Exit.TASK_FAILED


def _health(stat: Stat) -> dict[str, Any]:
    return {
        "name": stat.name,
        "version": stat.version,
        "health": stat.health,
        "full": stat.full,
        "degraded": stat.degraded,
        "lost": stat.lost,
        "missing": stat.missing,
        "astray": stat.astray,
    }


@data_command.command(short_help="Say on which nodes the rows with a key are.")
@click.argument("name", shell_complete=dataset_names)
@click.argument("key")
@output_options
@with_client
async def locate(client: Client, name: str, key: str, output: str) -> None:
    """Say which part of NAME has the rows with KEY, and which nodes keep it, the primary first."""
    dataset = await client.datasets.open(name)
    found = await dataset.locate(_typed(dataset, key))
    write_fields({"part": found.part, "nodes": list(found.nodes)}, output)


def _typed(dataset: Dataset, key: str) -> Any:
    from zkd.tables.keys import from_text

    return from_text(key, dataset.key_dtype)


@data_command.command(short_help="List the parts of a dataset and who holds them.")
@click.argument("name", shell_complete=dataset_names)
@output_options
@with_client
async def parts(client: Client, name: str, output: str) -> None:
    """List the parts of NAME: their rows, the nodes they belong to, and the nodes that hold them."""
    dataset = await client.datasets.open(name)
    rows = []
    for part, (holders, homes) in enumerate(await dataset.holders()):
        refs = dataset.segments[part]
        rows.append(
            {
                "part": part,
                "rows": sum(ref.rows for ref in refs),
                "size_bytes": sum(ref.size for ref in refs),
                "segments": len(refs),
                "copies": len(holders),
                "homes": list(homes),
                "holders": sorted(holders),
            }
        )
    write_rows(rows, output)


@data_command.command(short_help="Have every copy of a dataset read and compared.")
@click.argument("name", shell_complete=dataset_names)
@output_options
@with_client
async def verify(client: Client, name: str, output: str) -> int:
    """Have every node read its copies of NAME from disk and compare them with their digests.

    Damaged ones are out of service from then on and are fetched anew. Ends with 1 if there were some.
    """
    found = await (await client.datasets.open(name)).verify()
    bad = [{"node": node, "part": part} for node, part in found.bad]
    if output == "table":
        click.echo(f"{found.good} copies are good, {len(bad)} are damaged or missing")
        write_rows(bad, output)
        for node, why in found.silent.items():
            click.echo(f"{node} did not say: {why}", err=True)
    else:
        write_fields({"good": found.good, "bad": bad, "silent": found.silent}, output)
    return Exit.TASK_FAILED if bad or found.silent else Exit.OK


# --- Waiting ----------------------------------------------------------------------------------------------


def _waiting(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--timeout", type=float, metavar="S", help="Wait so long at most.")(command)
    return click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=dataset_names)(command)


@data_command.command(short_help="Wait until every part is where it belongs.")
@_waiting
@with_client
async def rebalance(client: Client, names: tuple[str, ...], timeout: float | None) -> None:
    """Say what has to move, and wait until every part of the datasets is on the nodes that it belongs to.

    Nodes move parts by themselves when one joins, is drained or is lost for long; this looks on.
    """
    from zkd.cli.data_health import wait_until

    await wait_until(client, names, timeout, lambda stat: not stat.missing, "where it belongs")


@data_command.command(short_help="Wait until every part has all its copies.")
@_waiting
@with_client
async def repair(client: Client, names: tuple[str, ...], timeout: float | None) -> None:
    """Say which copies are missing, and wait until every part of the datasets has all of its own.

    Nodes fetch what is missing by themselves, those parts first that have the fewest copies; this looks on.
    """
    from zkd.cli.data_health import wait_until

    await wait_until(client, names, timeout, lambda stat: stat.health == "full", "full")


# --- How far it is ----------------------------------------------------------------------------------------


@contextmanager
def progress_bar(doing: str = "sending") -> Iterator[Callable[[Progress], None] | None]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None, said="")

        def tell(now: Progress) -> None:
            if not now.parts:
                bar.update(task, said=f"{now.rows} rows")
                return
            said = f"{now.parts_done} of {now.parts} parts, {bytes_text(now.bytes_done)}"
            bar.update(task, description=doing, total=now.parts, completed=now.parts_done, said=said)

        yield tell
