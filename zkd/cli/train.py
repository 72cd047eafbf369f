"""`zkd train`: models from datasets, trained where their parts lie."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import dataset_names, full_name, with_client
from zkd.cli.exits import Exit
from zkd.cli.output import FORMATS, time_text, write_fields, write_rows
from zkd.cli.train_options import MODELS, completing, job_options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from zkd.client import Client
    from zkd.client.job_status import JobStatus
    from zkd.client.training_job import TrainingJob

WIDE = ("dataset", "total", "slope", "rows_s", "by", "bound", "model_nodes")


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--json", "output", flag_value="json", help="The same as -o json.")(command)
    return click.option("-o", "--output", type=click.Choice(FORMATS), default="table", help="table is for people.")(
        command
    )


def _plot(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Refused before anything is started."""
    if value is not None and not value.parent.is_dir():
        raise click.BadParameter(f"there is no directory {value.parent}", ctx, param)
    return value


plot_option = click.option(
    "--plot",
    callback=_plot,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.svg",
    help="Write the curve of the losses here.",
)


@click.group()
def train_command() -> None:
    """Train models on datasets, where their parts lie. JOB may be shortened."""


# --- Starting ---------------------------------------------------------------------------------------------


@train_command.command(short_help="Start training a model on a dataset.")
@click.argument("model", required=False, shell_complete=completing(MODELS))
@click.argument("dataset", required=False, shell_complete=dataset_names)
@click.option("--name", metavar="JOB", help="Its id; by default one that nobody has.")
@click.option("--watch", "is_watched", is_flag=True, help="Look on until it ends.")
@plot_option
@job_options
@output_options
@with_client
async def start(
    client: Client,
    model: str | None,
    dataset: str | None,
    name: str | None,
    is_watched: bool,
    plot: Path | None,
    terms: dict[str, Any],
    output: str,
) -> int:
    """Train a MODEL (linear, logistic, softmax, poisson, svm, mlp) on DATASET, which is NAME or NAME@VERSION.

    Prints the job's id; the nodes go on without this command.

    \b
      zkd train start logistic adult --target income --l2 1 --validation 0.2 --watch
      zkd train start --file job.json
    """
    model, dataset = model or terms.pop("model", None), dataset or terms.pop("dataset", None)
    for each in ("model", "dataset"):
        terms.pop(each, None)
    if model is None or dataset is None:
        raise click.UsageError("expected MODEL and DATASET, or --file with both")
    if plot is not None and not is_watched:
        raise click.UsageError("--plot: expected --watch beside it")
    job = await client.train(model, dataset, name=name, **terms)
    for column, why in job.left_out.items():
        click.echo(f"not used: {column}, {why}", err=True)
    if is_watched:
        return await _watched(client, job, output, plot)
    if output in ("json", "jsonl"):
        write_fields(_fields(await job.status()), output)
    else:
        click.echo(job.id)
    return Exit.OK


# --- Looking ----------------------------------------------------------------------------------------------


@train_command.command(short_help="List the jobs.")
@output_options
@with_client
async def ls(client: Client, output: str) -> None:
    """List the jobs that are there, the latest last; those that are done stay, with their models, until removed."""
    rows = [_row(each) for each in sorted((await client.jobs.list()).values(), key=lambda each: each.dropped_ms)]
    write_rows(rows, output, empty="There are no jobs.", wide=WIDE)


@train_command.command(short_help="Show how far a job is.")
@click.argument("job")
@output_options
@with_client
async def status(client: Client, job: str, output: str) -> int:
    """Show how far a job is, or how it ended. Ends with 1 if it failed."""
    found = await (await _named(client, job)).status()
    if output in ("json", "jsonl"):
        write_fields(_fields(found), output)
    else:
        write_fields({**_told(found), "why": await _why_nobody(client, found)}, output)
    return Exit.TASK_FAILED if found.phase == "failed" else Exit.OK


@train_command.command(short_help="Look on until a job ends.")
@click.argument("job")
@plot_option
@output_options
@with_client
async def watch(client: Client, job: str, plot: Path | None, output: str) -> int:
    """Look on until a job ends, then say what came of it. Ends with 1 if it failed. Ctrl-C leaves the job alone.

    On a terminal one screen that is kept up to date, elsewhere a line now and then; with --json a line a round.
    """
    return await _watched(client, await _named(client, job), output, plot)


@train_command.command(short_help="Show the model that came of a job, or write it to a file.")
@click.argument("job")
@click.option("-O", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the model's file here.")
@click.option("--all", "is_whole", is_flag=True, help="All coefficients, not the 20 that say most.")
@plot_option
@output_options
@with_client
async def model(client: Client, job: str, path: Path | None, is_whole: bool, plot: Path | None, output: str) -> None:
    """Show what came of a job: how it ended, coefficients with standard errors and odds ratios, importance.

    Waits until the job has ended. A file written by -O is read by `zkd.Model.load`.
    """
    from zkd.cli.train_summary import ending_lines, model_fields, write_model

    found = await (await _named(client, job)).model()
    if path is not None:
        found.save(path)
    if plot is not None:
        found.plot(plot)
    if output in ("json", "jsonl"):
        write_fields(model_fields(found), output)
        return
    click.echo(f"{found.job.model} of {found.target} on {found.dataset}, {found.trained.rows:,} rows")
    click.echo("\n".join(ending_lines(found.summary)))
    write_model(found, is_whole=is_whole)


async def _watched(client: Client, job: TrainingJob, output: str, plot: Path | None) -> int:
    from zkd.cli.train_watch import look_on

    return await look_on(client, job, output, plot)


# --- Steering ---------------------------------------------------------------------------------------------


@train_command.command(short_help="Have jobs wait, with a checkpoint.")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@with_client
async def pause(client: Client, jobs: tuple[str, ...]) -> int:
    """Have jobs write a checkpoint and wait until they are resumed."""
    return await _each(client, jobs, lambda job: job.pause(), "is going to be paused")


@train_command.command(short_help="Have paused jobs go on.")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@with_client
async def resume(client: Client, jobs: tuple[str, ...]) -> int:
    """Have paused jobs go on where they were."""
    return await _each(client, jobs, lambda job: job.resume(), "goes on")


@train_command.command(short_help="Have jobs end with what there is.")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@with_client
async def stop(client: Client, jobs: tuple[str, ...]) -> int:
    """Have jobs end with the model as it is; `zkd train rm` ends them with nothing."""
    return await _each(client, jobs, lambda job: job.stop(), "is going to end")


@train_command.command(short_help="Remove jobs, with all that came of them.")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@click.option("--yes", is_flag=True, help="Do not ask about jobs that have not ended.")
@with_client
async def rm(client: Client, jobs: tuple[str, ...], yes: bool) -> int:
    """Remove jobs, their checkpoints and their models. Those that run are cancelled."""
    found = [await _named(client, name) for name in jobs]
    running = [job.id for job in found if not (await job.status()).has_ended]
    if running and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"expected --yes: {', '.join(running)} would be cancelled, and no model is left")
        click.confirm(f"Cancel {', '.join(running)}?", abort=True)
    for job in found:
        await job.remove()
        click.echo(f"{job.id} removed")
    return Exit.OK


async def _each(
    client: Client, names: tuple[str, ...], wish: Callable[[TrainingJob], Awaitable[bool]], words: str
) -> int:
    code = Exit.OK
    for name in names:
        job = await _named(client, name)
        if await wish(job):
            click.echo(f"{job.id} {words}")
        else:
            click.echo(f"{job.id} has ended before", err=True)
            code = Exit.CONFLICT
    return code


async def _named(client: Client, given: str) -> TrainingJob:
    return await client.jobs.get(full_name(given, sorted(await client.jobs.names()), "job"))


async def _why_nobody(client: Client, status: JobStatus) -> str | None:
    """Why no node coordinates a job that should go on, as far as the tree tells; None if one does."""
    is_meant = status.phase == "paused" and status.desired == "pause"
    if status.has_ended or is_meant or status.coordinator is not None:
        return None
    count = len(await client.nodes())
    if not count:
        return "no node is here; `zkd get nodes` lists them"
    who = "1 node is here, and has not" if count == 1 else f"{count} nodes are here, and none has"
    return f"{who} taken it on yet: training.jobs_max or training.coordinate may be what keeps it"


# --- As rows ----------------------------------------------------------------------------------------------


def _row(status: JobStatus) -> dict[str, Any]:
    job, state = status.job, status.state
    summary = state.summary if state is not None else None
    progress = state.progress if state is not None else None

    def said(name: str) -> float | None:
        """As of the end, or of the last round over all rows where the end is not known."""
        told = None if summary is None else getattr(summary, name)
        return told if told is not None or progress is None else getattr(progress, name)

    return {
        "id": status.id,
        "model": job.model if job is not None else None,
        "phase": "malformed" if job is None else status.phase,
        "round": progress.round if progress is not None else None,
        "loss": said("loss"),
        "held_loss": said("held_loss"),
        "coordinator": status.coordinator,
        "age_s": max(0.0, time.time() - status.dropped_ms / 1000),  # for people: nothing is decided by it
        "dataset": (state.dataset if state is not None else None) or (job.dataset if job is not None else None),
        "total": said("total"),
        "slope": said("slope"),
        "rows_s": progress.rows_s if progress is not None else None,
        "by": job.by if job is not None else None,
        "bound": summary.bound if summary is not None else None,
        "model_nodes": state.model.nodes if state is not None and state.model is not None else [],
        "why": status.error or (summary.reason if summary is not None else None),
    }


def _told(status: JobStatus) -> dict[str, Any]:
    """For people: what is not so is left out."""
    job, state = status.job, status.state
    fields: dict[str, Any] = {"id": status.id, "phase": status.phase}
    if job is not None:
        wanted = {"pause": "pause", "stop": "end with what there is", "run": None}[status.desired]
        of = (state.dataset if state is not None else None) or job.dataset
        fields |= {
            "wanted": None if status.has_ended else wanted,
            "model": f"{job.model} on {of}" + (f", target {job.target}" if job.target else ""),
            "by": job.by,
        }
    if state is not None:
        progress = state.progress
        fields |= {
            "coordinator": status.coordinator or (None if status.has_ended else "none at this moment"),
            "round": progress.round or None,
            **{name: getattr(progress, name) for name in ("total", "loss", "held_loss", "slope", "rows_s", "round_s")},
            "waits_for": progress.waits_for,
        }
        if state.checkpoint is not None:
            fields["checkpoint"] = f"of round {state.checkpoint.round} on {', '.join(state.checkpoint.nodes)}"
        if state.model is not None:
            fields["file"] = f"{state.model.size} bytes on {', '.join(state.model.nodes)}"
        if state.started_ms is not None and state.ended_ms is not None:
            fields["took"] = time_text((state.ended_ms - state.started_ms) / 1000)
    if state is not None and state.summary is not None:
        from zkd.cli.train_summary import ending_lines

        fields["ending"] = "\n".join(ending_lines(state.summary))
    fields["error"] = status.error
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in fields.items()}


def _fields(status: JobStatus) -> dict[str, Any]:
    """For programs: the records as they are."""
    import msgspec

    records = {"job": status.job, "state": status.state}
    return {
        "id": status.id,
        "phase": status.phase,
        "coordinator": status.coordinator,
        **{name: None if each is None else msgspec.to_builtins(each) for name, each in records.items()},
        "error": status.error,
    }
