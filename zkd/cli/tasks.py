"""Commands for one task: run, submit, result, cancel, retry, why."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import full_name, with_client
from zkd.cli.exits import Exit, Stop
from zkd.cli.output import output_option
from zkd.cli.values import check_path, read_argument, read_labels, read_named, write_value
from zkd.errors import ResultTimeout

if TYPE_CHECKING:
    from zkd.client import Client
    from zkd.client.handles import Handle

PATIENCE_S = 3.0  # then `run` says what it waits for
CANCEL_S = 5.0
REFUSED_WITHIN_S = 1.0  # a leader that has no room says so in milliseconds
RESULT_TTL_S = 300.0  # of a `run` that was killed before it could read its value

# A number as JSON has it, and its sign, which click takes for that of an option.
_NEGATIVE = re.compile(r"-(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


class NumbersCommand(click.Command):
    """A command that takes negative numbers: with a blank before it, one is still JSON and no option to click."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f" {arg}" if _NEGATIVE.fullmatch(arg) else arg for arg in args])


@click.command(cls=NumbersCommand)
@click.argument("kernel")
@click.argument("args", nargs=-1, metavar="[ARG]...")
@click.option("-k", "named", multiple=True, metavar="NAME=VALUE", help="A named argument.")
@click.option("--timeout", type=float, metavar="S", help="Wait so long for the value; then the task is cancelled.")
@click.option("--task-timeout", type=float, metavar="S", help="Stop an attempt that runs longer.")
@click.option("--retries", type=int, default=0, help="Further attempts after an error, a crash or a timeout.")
@click.option("--priority", type=int, default=0, help="Higher goes first.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only on nodes that carry this.")
@click.option("--node", metavar="NODE", help="Only on this node.")
@click.option("-O", "path", metavar="FILE", help="Write the value to FILE.npy or FILE.json.")
@output_option
@with_client
async def run_command(
    client: Client,
    kernel: str,
    args: tuple[str, ...],
    named: tuple[str, ...],
    timeout: float | None,
    task_timeout: float | None,
    retries: int,
    priority: int,
    labels: tuple[str, ...],
    node: str | None,
    path: str | None,
    output: str,
) -> None:
    """Run KERNEL on some node, wait, and print its value.

    Each ARG is JSON, or else text; @file.npy and @file.json stand for what the file holds:

    \b
      zkd run numpy.sum '[1, 2, 3]'
      zkd run numpy.linspace 0 1 -k num=5
      zkd run numpy.linalg.solve @a.npy @b.npy -O x.npy

    Interrupting it (Ctrl-C) cancels the task.
    """
    import asyncio

    check_path(path)
    await client.check_room()
    calls = client.options(
        timeout_s=task_timeout,
        retries=retries,
        priority=priority,
        labels=read_labels(labels),
        node=node,
        ttl_s=RESULT_TTL_S,
    )
    arguments, named_arguments = [read_argument(arg) for arg in args], read_named(named)
    try:
        async with asyncio.timeout(timeout):
            value = await _value(client, await calls.submit(kernel, *arguments, **named_arguments))
    except TimeoutError:
        raise Stop(
            Exit.TIMED_OUT,
            f"error: no value of {kernel} after {timeout:g} s; the task is cancelled\n"
            "  `zkd submit` drops a task without waiting, and `zkd why ID` says what that waits for.",
        ) from None
    write_value(value, output, path)


async def _value(client: Client, handle: Handle) -> Any:
    """Wait for the value; after a while say what it waits for. A caller who gives up takes the task back."""
    import asyncio

    said = ""
    try:
        while True:
            try:
                return await handle.result(PATIENCE_S, forget=True)
            except ResultTimeout:
                why = (await client.why(handle.id)).partition("\n")[0]
            if why != said:
                said = why
                click.echo(f"{handle.id}: {why}", err=True)
    except asyncio.CancelledError:
        async with asyncio.timeout(CANCEL_S):
            await handle.cancel()
        raise


@click.command()
@click.option("-f", "--file", "source", required=True, metavar="FILE", help="A task as JSON; - is stdin.")
@click.option("--wait", is_flag=True, help="Wait for the value and print it.")
@click.option("--timeout", type=float, metavar="S", help="With --wait: so long. The task goes on.")
@output_option
@with_client
async def submit_command(client: Client, source: str, wait: bool, timeout: float | None, output: str) -> None:
    """Drop a task from a JSON file and print its id.

    \b
      echo '{"kernel": "numpy.sum", "args": [[1, 2, 3]]}' | zkd submit -f -
    """
    text = sys.stdin.buffer.read() if source == "-" else _read(source)
    is_full = await client.check_room()
    handle = await client.drop(text)
    if not wait:
        if is_full:
            await _raise_if_refused(handle)
        click.echo(handle.id)
        return
    click.echo(handle.id, err=True)
    write_value(await handle.result(timeout), output)


async def _raise_if_refused(handle: Handle) -> None:
    """Whoever goes away now would not hear of a refusal, which comes at once."""
    from contextlib import suppress

    with suppress(ResultTimeout):
        result = await handle.outcome(REFUSED_WITHIN_S)
        if result.status == "rejected":
            await handle.result()


@click.command()
@click.argument("task")
@click.option("--wait", is_flag=True, help="Wait for the task's end.")
@click.option("--timeout", type=float, metavar="S", help="Wait, but only so long.")
@click.option("-O", "path", metavar="FILE", help="Write the value to FILE.npy or FILE.json.")
@output_option
@with_client
async def result_command(
    client: Client, task: str, wait: bool, timeout: float | None, path: str | None, output: str
) -> None:
    """Print the value of TASK; its id may be shortened."""
    check_path(path)
    handle = await _find(client, task)
    if not wait and timeout is None and await client.outcome(handle.id) is None:
        raise Stop(
            Exit.TIMED_OUT,
            f"error: {handle.id} has no result yet: {await client.why(handle.id)}\n  --wait waits for it.",
        )
    write_value(await handle.result(timeout), output, path)


@click.command()
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@with_client
async def cancel_command(client: Client, tasks: tuple[str, ...]) -> int:
    """Cancel tasks. A running kernel is stopped. Exit code 6 if one had ended before."""
    code = Exit.OK
    for given in tasks:
        handle = await _find(client, given)
        if await handle.cancel():
            click.echo(f"{handle.id} cancelled")
        else:
            result = await client.outcome(handle.id)
            click.echo(f"{handle.id} had ended before: {result.status if result else 'its result is gone'}", err=True)
            code = Exit.CONFLICT
    return code


@click.command()
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@with_client
async def retry_command(client: Client, tasks: tuple[str, ...]) -> None:
    """Put dead tasks back into the drop box, with all their attempts before them."""
    dead = await client.dead()
    for given in tasks:
        task = full_name(given, dead, "dead task")
        await client.retry(task)
        click.echo(f"{task} dropped again")


@click.command()
@click.argument("task")
@output_option
@with_client
async def why_command(client: Client, task: str, output: str) -> None:
    """Say what TASK waits for, or how it ended."""
    handle = await _find(client, task)
    text = await client.why(handle.id)
    if output in ("json", "jsonl"):
        from zkd.cli.output import to_text

        click.echo(to_text({"id": handle.id, "why": text}))
    else:
        click.echo(text)


async def _find(client: Client, given: str) -> Handle:
    """The task that is meant: this very id, or the only one that begins so."""
    for path in (client.paths.task(given), client.paths.result(given), client.paths.dead_task(given)):
        if await client.session.exists(path) is not None:
            return client.handle(given)
    names: set[str] = {*await client.tasks(), *await client.results(), *await client.dead()}
    return client.handle(full_name(given, sorted(names), "task"))


def _read(source: str) -> bytes:
    try:
        with open(source, "rb") as file:
            return file.read()
    except OSError as error:
        raise click.UsageError(f"-f {source}: {error.strerror}") from None
