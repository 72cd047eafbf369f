"""`zkd model`: registered models, their versions, and the aliases under which they are served."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import with_client
from zkd.cli.data import output_options
from zkd.cli.output import bytes_text, cell, write_fields, write_rows

if TYPE_CHECKING:
    from zkd.client import Client
    from zkd.client.trials import Trial
    from zkd.core.registry import Registered
    from zkd.registry import Alias, ModelVersion

FEATURES_SHOWN = 20
COEFFICIENTS_SHOWN = 20
WIDE = ("file", "created_at", "by", "dataset", "job", "classes", "refused")


@click.group()
def model_command() -> None:
    """Keep models in versions that never change, and serve them under aliases that move.

    A model is NAME (its newest version), NAME@VERSION, or NAME@ALIAS.
    """


# --- Looking ------------------------------------------------------------------------------------------------


@model_command.command(short_help="List the models, or the versions of one.")
@click.argument("name", required=False)
@output_options
@with_client
async def ls(client: Client, name: str | None, output: str) -> None:
    """List the models that are there, or with NAME its versions."""
    if name is not None:
        model = await client.models.describe(name)
        rows = [_version_row(model, number, version) for number, version in model.versions.items()]
    else:
        rows = [_model_row(model) for model in (await client.models.list()).values()]
    write_rows(rows, output, empty="There are no models.", wide=WIDE)


@model_command.command(short_help="Show a version of a model, or all of one.")
@click.argument("model")
@output_options
@with_client
async def show(client: Client, model: str, output: str) -> None:
    """Show MODEL: what it predicts from what, where it comes from, which nodes have it, and its aliases' past."""
    entry = await client.models.get(model)
    found = await client.models.describe(entry.name)
    holders = await client.models.holders(str(entry))
    version = entry.version
    row = _version_row(found, entry.number, version)
    del row["features"]
    row["size_bytes"] = version.file.size
    names = [each.name + (f"[{each.width}]" if each.width else "") for each in version.features]
    row["features"] = names
    row["nodes"] = [node for node, has in holders.items() if has]
    row["note"] = version.note
    if output == "table":
        row["size"] = bytes_text(row.pop("size_bytes"))
        if len(names) > FEATURES_SHOWN:
            row["features"] = [*names[:FEATURES_SHOWN], f"and {len(names) - FEATURES_SHOWN} more"]
        row["history"] = "\n".join(_history(found))
    else:
        row["history"] = {name: [_move_row(move) for move in alias.history] for name, alias in found.aliases.items()}
    write_fields(row, output)


def _model_row(model: Registered) -> dict[str, Any]:
    newest = max(model.versions, default=0)
    version = model.versions.get(newest)
    return {
        "name": model.name,
        "newest": newest,
        "versions": len(model.versions),
        "kind": version.kind if version is not None else None,
        "aliases": {name: _alias_text(alias) for name, alias in model.aliases.items()},
        "created_at": _time(version.created_ms) if version is not None else None,
        "refused": sorted(model.refused),
    }


def _version_row(model: Registered, number: int, version: ModelVersion) -> dict[str, Any]:
    return {
        "model": f"{model.name}@{number}",
        "kind": version.kind,
        "features": sum(max(each.width, 1) for each in version.features),
        "outputs": version.outputs,
        "classes": version.classes,
        "metrics": dict(version.metrics),
        "aliases": model.pointing(number),
        "dataset": version.lineage.dataset,
        "job": version.lineage.job,
        "source": version.lineage.source,
        "file": version.file.id,
        "created_at": _time(version.created_ms),
        "by": version.by,
    }


def _history(model: Registered) -> list[str]:
    return [
        f"{name}: {_time(move.at_ms)} version {move.version}{' (rollback)' * move.is_rollback} by {move.by}"
        + (f": {move.why}" if move.why else "")
        for name, alias in model.aliases.items()
        for move in alias.history
    ]


def _move_row(move: Any) -> dict[str, Any]:
    return {
        "version": move.version,
        "at": _time(move.at_ms),
        "by": move.by,
        "why": move.why,
        "is_rollback": move.is_rollback,
    }


def _alias_text(alias: Alias) -> str:
    if alias.canary is None:
        return str(alias.version)
    share = f"{alias.canary.percent:g}%{' shadow' * alias.canary.shadow}"
    return f"{alias.version} (canary {alias.canary.version}, {share})"


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds") if ms < 1 << 47 else "-"


@model_command.command(short_help="Show what is not the same in two versions.")
@click.argument("before")
@click.argument("after")
@output_options
@with_client
async def diff(client: Client, before: str, after: str, output: str) -> None:
    """Show what is not the same in the models BEFORE and AFTER: features, metrics, coefficients."""
    import msgspec

    found = await client.models.diff(before, after)
    if output != "table":
        write_fields(msgspec.to_builtins(found), output)
        return
    if found.is_empty:
        click.echo("They are the same.")
        return
    fields: dict[str, Any] = {name: f"{cell(was)} -> {cell(now)}" for name, (was, now) in found.fields.items()}
    fields |= {f"features {how}": names for how, names in (("added", found.added), ("removed", found.removed)) if names}
    fields |= {f"metric {name}": f"{cell(was)} -> {cell(now)}" for name, (was, now) in found.metrics.items()}
    if found.largest:
        fields["largest change of a parameter"] = found.largest
    write_fields(fields, output)
    rows = [
        {"coefficient": each.name, "of": each.of, "before": each.before, "after": each.after}
        for each in found.coefficients[:COEFFICIENTS_SHOWN]
    ]
    write_rows(rows, output)
    if len(found.coefficients) > COEFFICIENTS_SHOWN:
        click.echo(f"and {len(found.coefficients) - COEFFICIENTS_SHOWN} more", err=True)


# --- In and out ---------------------------------------------------------------------------------------------


@model_command.command(short_help="Make a version of a file, or of what a training job ended with.")
@click.argument("name")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--job", help="What this training job ends with, instead of a file.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME=NUMBER", help="May be given several times.")
@click.option("--features", metavar="NAME,...", help="Of an ONNX file: its columns, one number a row each.")
@click.option("--classes", metavar="LABEL,...", help="Of an ONNX file that does not say them.")
@click.option("--note", default="", help="For those who look later.")
@output_options
@with_client
async def push(
    client: Client,
    name: str,
    file: Path | None,
    job: str | None,
    metrics: tuple[str, ...],
    features: str | None,
    classes: str | None,
    note: str,
    output: str,
) -> None:
    """Make the next version of NAME of a FILE that `zkd model pull` wrote, of an ONNX file, or of a job's model.

    Fitted models of scikit-learn are pushed by the program that has them: `client.models.push(name, estimator)`.

    \b
      zkd model push income --job income-7
      zkd model push income income.zkd --metric accuracy=0.86
      zkd model push iris iris.onnx --features sepal,petal --classes setosa,virginica
    """
    if (file is None) == (job is None):
        raise click.UsageError("expected a FILE or --job, one of them")
    numbers = _metrics(metrics)
    if job is not None:
        entry = await client.models.register(job, name, metrics=numbers, note=note)
    else:
        entry = await client.models.push(
            name,
            file,
            metrics=numbers,
            features=None if features is None else features.split(","),
            classes=None if classes is None else classes.split(","),
            note=note,
        )
    if output == "table":
        click.echo(f"{entry}: {entry.version.kind}, {bytes_text(entry.version.file.size)}")
    else:
        write_fields(_version_row(await client.models.describe(name), entry.number, entry.version), output)


def _metrics(pairs: tuple[str, ...]) -> dict[str, float] | None:
    numbers = {}
    for pair in pairs:
        name, _, text = pair.rpartition("=")
        try:
            if not name:
                raise ValueError
            numbers[name] = float(text)
        except ValueError:
            raise click.UsageError(f"--metric {pair}: expected NAME=NUMBER, such as --metric accuracy=0.93") from None
    return numbers or None


@model_command.command(short_help="Write a version's file.")
@click.argument("model")
@click.option("-O", "path", required=True, type=click.Path(path_type=Path), help="Into this file.")
@with_client
async def pull(client: Client, model: str, path: Path) -> None:
    """Write the file of MODEL, whose digest was checked: a safetensors file, which `zkd model push` takes."""
    import asyncio

    data = await client.models.pull(model)
    await asyncio.to_thread(path.write_bytes, data)
    click.echo(f"{path}: {bytes_text(len(data))}")


# --- Aliases ------------------------------------------------------------------------------------------------


@model_command.command(short_help="Move an alias to a version.")
@click.argument("alias")
@click.argument("version", type=int, required=False)
@click.option("--why", default="", help="For those who look later.")
@with_client
async def alias(client: Client, alias: str, version: int | None, why: str) -> None:
    """Have ALIAS, such as income@live, mean this VERSION, by default the newest. A canary ends."""
    moved = await client.models.alias(alias, version, why=why)
    click.echo(f"{alias}: {_alias_text(moved)}")


@model_command.command(short_help="Give another version a share of the requests.")
@click.argument("alias")
@click.argument("version", type=int, required=False)
@click.option("--percent", type=float, default=10.0, show_default=True, help="Of the requests.")
@click.option("--shadow", is_flag=True, help="It answers nobody: its answers are compared, and thrown away.")
@click.option("--error-share", type=float, help="Taken back when more of its requests fail, of 1.")
@click.option("--p99-ms", type=float, help="Taken back when the slowest hundredth computes longer.")
@click.option("--drift", type=float, help="Taken back when its predictions are farther from the others': a PSI.")
@click.option("--why", default="", help="For those who look later.")
@click.option("--show", is_flag=True, help="Change nothing: tell how the canary does, as each node has seen it.")
@output_options
@with_client
async def canary(
    client: Client, alias: str, version: int | None, show: bool, output: str, percent: float, **options: Any
) -> None:
    """Have VERSION, by default the newest, answer a share of the requests to ALIAS beside the present one.

    `zkd model promote` makes it the present one, `zkd model rollback` takes it back.
    """
    if show:
        await _show_canary(client, alias, output)
        return
    options["percent"] = percent
    changed = await client.models.canary(alias, version, **options)
    click.echo(f"{alias}: {_alias_text(changed)}")


async def _show_canary(client: Client, alias: str, output: str) -> None:
    trials = await client.models.trials(alias)
    rows = [_trial_row(node, trial) for node, trial in trials.items() if trial is not None]
    if not rows:
        name, _, alias_name = alias.partition("@")
        present = (await client.models.describe(name)).aliases[alias_name]
        click.echo(f"{alias}: {_alias_text(present)}; no node tells of a canary", err=True)
        for move in present.history[-1:]:
            click.echo(f"{_time(move.at_ms)} {move.by}: {move.why or 'moved'}", err=True)
    write_rows(rows, output, wide=("p50_ms", "others_p50_ms", "percent", "shadow", "dropped"))


def _trial_row(node: str, trial: Trial) -> dict[str, Any]:
    return {
        "node": node,
        "version": trial.version,
        "beside": trial.beside,
        "percent": trial.percent,
        "shadow": trial.shadow,
        "requests": trial.canary.requests,
        "errors": trial.canary.errors,
        "p50_ms": trial.canary.p50_ms,
        "p99_ms": trial.canary.p99_ms,
        "others": trial.others.requests,
        "others_errors": trial.others.errors,
        "others_p50_ms": trial.others.p50_ms,
        "others_p99_ms": trial.others.p99_ms,
        "drift": trial.drift,
        "differed": f"{trial.differed} of {trial.compared}" if trial.shadow else None,
        "dropped": trial.dropped,
        "end": trial.end,
    }


@model_command.command(short_help="Make the canary the version that is served.")
@click.argument("alias")
@click.option("--why", default="", help="For those who look later.")
@with_client
async def promote(client: Client, alias: str, why: str) -> None:
    """Have ALIAS mean what is its canary."""
    click.echo(f"{alias}: {_alias_text(await client.models.promote(alias, why=why))}")


@model_command.command(short_help="Take a canary back, or go back to the version before.")
@click.argument("alias")
@click.option("--why", default="", help="For those who look later.")
@with_client
async def rollback(client: Client, alias: str, why: str) -> None:
    """Take the canary of ALIAS back; without one, have it mean what it meant before. Twice goes back twice."""
    click.echo(f"{alias}: {_alias_text(await client.models.rollback(alias, why=why))}")


@model_command.command(short_help="Remove a model, a version, or an alias.")
@click.argument("model")
@click.option("--yes", is_flag=True, help="Do not ask whether all versions are to go.")
@with_client
async def rm(client: Client, model: str, yes: bool) -> None:
    """Remove NAME with all versions and aliases, NAME@VERSION, or NAME@ALIAS: the alias alone."""
    if "@" not in model and not yes:
        found = await client.models.describe(model)
        count = len(found.versions)
        if not sys.stdin.isatty():
            raise click.UsageError(f"expected --yes, or {model}@VERSION: this removes all of its {count} versions")
        click.confirm(f"Remove {model}, its {count} versions and {len(found.aliases)} aliases?", abort=True)
    await client.models.rm(model)
    click.echo(f"{model} removed")
