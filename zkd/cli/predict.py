"""`zkd predict`: a model on a dataset, where its parts lie; or on rows from here, answered by nodes that serve it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import dataset_names, with_client
from zkd.cli.data import progress_bar
from zkd.cli.output import FORMATS, write_fields, write_rows
from zkd.cli.predict_rows import predict_rows

if TYPE_CHECKING:
    from zkd.client import Client

ROWS_DEADLINE_S = 5.0  # also enough for a node that opens the model first
TABLES = ("drift", "calibration", "confusion", "classes")  # of a report; the rest are numbers


@click.command()
@click.argument("model")
@click.argument("dataset", required=False, shell_complete=dataset_names)
@click.option("--out", metavar="NAME", help="The dataset that is made.")
@click.option("--columns", metavar="A,B", help="Of prediction, probabilities, score; by default all.")
@click.option("--missing", type=click.Choice(["refuse", "propagate"]), default="refuse", help="Rows without a score.")
@click.option("--prefix", default="", help="Of the names of the columns.")
@click.option("--replicas", type=int, help="Copies of each part; by default as DATASET has.")
@click.option("--replace", is_flag=True, help="Make a new version of a dataset NAME that is there.")
@click.option("--metrics", is_flag=True, help="Say how good the model is: DATASET has what it predicts.")
@click.option("--rows", metavar="FILE", help="Instead of DATASET: a table, or - for JSON lines on stdin.")
@click.option("--row", "given", multiple=True, metavar="JSON", help='Instead of DATASET: one row, such as {"x": 1}.')
@click.option("--want", metavar="A,B", help="Of prediction, probabilities, score, attributions, for rows.")
@click.option("--deadline", type=click.FloatRange(0.001), metavar="S", help="For each request of rows; 5 s.")
@click.option("--key", help="Rows of one key meet the same side of a canary.")
@click.option("--json", "output", flag_value="json", help="The same as -o json.")
@click.option("-o", "--output", type=click.Choice(FORMATS), default="table", help="table is for people.")
@with_client
async def predict_command(
    client: Client,
    model: str,
    dataset: str | None,
    out: str | None,
    columns: str | None,
    metrics: bool,
    rows: str | None,
    given: tuple[str, ...],
    want: str | None,
    deadline: float | None,
    key: str | None,
    output: str,
    **options: Any,
) -> None:
    """Make a dataset of what MODEL says of DATASET, each part computed on a node that holds it. With --rows or --row
    print what it says of rows from here: a registered MODEL, or several with commas, whose mean counts.

    MODEL is NAME, NAME@VERSION or NAME@ALIAS of a registered model, the id of a training job, or the path of a file
    (with a / in it, or ending in .safetensors).

    \b
      zkd predict income@live people --out people-income
      zkd predict ./income.safetensors people@2 --metrics
      zkd predict income@live --row '{"age": 31, "hours": 40}' --want prediction,attributions
      zkd predict income@live --rows new.csv -o jsonl
    """
    if rows is not None or given:
        if dataset is not None or out is not None or metrics or (rows is not None and given):
            raise click.UsageError("expected one of DATASET, --rows and --row; the last two make no dataset")
        asked: dict[str, Any] = {"want": None if want is None else want.split(","), "missing": options["missing"]}
        asked["deadline_s"] = deadline or ROWS_DEADLINE_S
        await predict_rows(client, model, given, rows, output, key, asked)
        return
    if dataset is None:
        raise click.UsageError("expected DATASET, --rows or --row")
    if (want, deadline, key) != (None, None, None):
        raise click.UsageError("--want, --deadline and --key are for --rows and --row")
    if out is None and not metrics:
        raise click.UsageError("expected --out NAME, or --metrics, or both")
    if out is None and (unused := [name for name, value in options.items() if value and value != "refuse"]):
        raise click.UsageError(f"without --out nothing is made that has {', '.join(unused)}")
    fields: dict[str, Any] = {}
    if out is not None:
        chosen = None if columns is None else columns.split(",")
        with progress_bar("predicting") as tell:
            made = await client.predict(model, dataset, out=out, columns=chosen, progress=tell, **options)
        origin = made.manifest.origin
        fields = {
            "dataset": f"{made.name}@{made.version}",
            "rows": made.rows,
            "parts": made.parts,
            "replicas": made.manifest.replicas,
            "columns": [column.name for column in made.columns],
            "of": None if origin is None else origin.dataset,
            "model": None if origin is None else origin.name,
        }
    if not metrics:
        if output == "table":
            click.echo(f"{fields['dataset']}: {made.rows} rows, {made.parts} parts, {fields['replicas']} replicas")
        else:
            write_fields(fields, output)
        return
    told = await client.evaluate(model, dataset)
    if output != "table":
        write_fields({**fields, "metrics": told}, output)
        return
    write_fields({**fields, **{name: value for name, value in told.items() if name not in TABLES}}, output)
    lines = sorted(told["drift"], key=lambda line: -abs(line.get("shift", 0.0)))
    click.echo()
    write_rows(lines[:20], output)
