"""Commands for one task: run, submit, result, cancel, retry, why."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import full_name, with_client
from zkd.cli.exits import Exit, Stop
from zkd.cli.output import output_option
from zkd.cli.task_options import NumbersCommand, task_options
from zkd.cli.values import check_path, write_value
from zkd.errors import ResultTimeout

if TYPE_CHECKING:
    from zkd.client import Client
    from zkd.client.handles import Handle

PATIENCE_S = 3.0  # then `run` says what it waits for
CANCEL_S = 5.0
REFUSED_WITHIN_S = 1.0  # a leader that has no room says so in milliseconds
RESULT_TTL_S = 300.0  # of a `run` that was killed before it could read its value


@click.command(cls=NumbersCommand)
@click.argument("kernel")
@click.argument("args", nargs=-1, metavar="[ARG]...")
@click.option("--timeout", type=float, metavar="S", help="Wait so long for the value; then the task is cancelled.")
@click.option("-O", "path", metavar="FILE", help="Write the value to FILE.npy or FILE.json.")
@output_option
@task_options
@with_client
async def run_command(
    client: Client,
    kernel: str,
    args: list[Any],
    kwargs: dict[str, Any],
    options: dict[str, Any],
    timeout: float | None,
    path: str | None,
    output: str,
) -> None:
    """Run KERNEL on some node, wait, and print its value.

    Each ARG is JSON, or else text; @file.npy and @file.json stand for what the file holds:

    \b
      zkd run numpy.sum '[1, 2, 3]'
      zkd run numpy.linspace 0 1 -k num=5
      zkd run numpy.linalg.solve @a.npy @b.npy -O x.npy
      zkd run moments --dataset digits --columns x --combine combine_moments

    Interrupting it (Ctrl-C) cancels the task.
    """
    import asyncio

    check_path(path)
    await client.check_room()
    calls = client.options(**{"ttl_s": RESULT_TTL_S, **options})
    try:
        async with asyncio.timeout(timeout):
            value = await _value(client, await calls.submit(kernel, *args, **kwargs))
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


@click.command(cls=NumbersCommand)
@click.argument("kernel", required=False)
@click.argument("args", nargs=-1, metavar="[ARG]...")
@click.option("-f", "--file", "source", metavar="FILE", help="A whole task as JSON, instead of KERNEL; - is stdin.")
@click.option("--wait", is_flag=True, help="Wait for the value and print it.")
@click.option("--timeout", type=float, metavar="S", help="With --wait: so long. The task goes on.")
@output_option
@task_options
@with_client
async def submit_command(
    client: Client,
    kernel: str | None,
    args: list[Any],
    kwargs: dict[str, Any],
    options: dict[str, Any],
    source: str | None,
    wait: bool,
    timeout: float | None,
    output: str,
) -> None:
    """Drop a task, of KERNEL or from a JSON file, and print its id.

    \b
      zkd submit numpy.sum '[1, 2, 3]' --retries 2
      echo '{"kernel": "numpy.sum", "args": [[1, 2, 3]]}' | zkd submit -f -
    """
    if (kernel is None) == (source is None):
        raise click.UsageError("expected KERNEL or -f FILE, one of them")
    if source is not None and (args or kwargs or options):
        raise click.UsageError("-f FILE has everything in it; give no other fields beside it")
    is_full = await client.check_room()
    if kernel is not None:
        handle = await client.options(**options).submit(kernel, *args, **kwargs)
    else:
        assert source is not None
        handle = await client.drop(sys.stdin.buffer.read() if source == "-" else _read(source))
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
@click.argument("task", metavar="TASK")
@output_option
@with_client
async def why_command(client: Client, task: str, output: str) -> None:
    """Say what TASK waits for or how it ended, or when the schedule of this name fires next."""
    is_schedule = await client.session.exists(client.paths.schedule(task)) is not None
    name = task if is_schedule else (await _find(client, task)).id
    text = await client.why(name)
    if output in ("json", "jsonl"):
        from zkd.cli.output import to_text

        click.echo(to_text({"id": name, "why": text}))
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
