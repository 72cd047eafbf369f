"""`zkd barrier` and `zkd counter`: meet others, or count with them, from a script."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zkd.cli.connection import with_client
from zkd.cli.lock import checked, timeout_option

if TYPE_CHECKING:
    from zkd.client import Client


@click.command()
@click.option("--count", type=int, metavar="N", help="Go on when N have come.")
@click.option("--close", "gate", flag_value="close", help="Close the gate NAME: who waits at it is held up.")
@click.option("--open", "gate", flag_value="open", help="Open it.")
@click.option("--wait", "gate", flag_value="wait", help="Wait until it is open.")
@timeout_option
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@with_client
async def barrier_command(
    client: Client, name: str, command: tuple[str, ...], count: int | None, gate: str | None, timeout_s: float | None
) -> int:
    """Meet N others at NAME: return when they have come. With COMMAND, run it then, and return when all are through.

    \b
      zkd barrier start --count 3 && ./train
      zkd barrier phase1 --count 3 -- ./phase1
      zkd barrier maintenance --close;  zkd barrier maintenance --wait

    Exit code: that of the command, or 4 when not all came in time, 6 when the counts disagree.
    """
    if (count is None) == (gate is None):
        raise click.UsageError("expected one of --count N, --close, --open and --wait")
    if gate is not None:
        if command:
            raise click.UsageError(f"--{gate}: expected no command")
        barrier = checked(lambda: client.barrier(name))
        if gate == "wait":
            await barrier.wait(timeout_s=timeout_s)
        else:
            await (barrier.close() if gate == "close" else barrier.open())
        return 0
    assert count is not None
    client.sync.describe(" ".join(command)[:200])
    meeting = checked(lambda: client.double_barrier(name, count=count, timeout_s=timeout_s))
    await meeting.enter()
    if not command:
        return 0  # the others learn that we have left from the end of our session
    from zkd.cli.attend import attend

    code = await attend(
        command,
        {"ZKD_BARRIER": name, "ZKD_ROUND": str(meeting.round)},
        session_timeout_s=client.session.timeout_s,
    )
    await meeting.leave()
    return code


@click.command()
@click.option("--add", type=int, metavar="N", help="Add N, exactly once, and print what that made.")
@click.option("--set", "value", type=int, metavar="N", help="Set it to N, whatever it is.")
@click.argument("name")
@with_client
async def counter_command(client: Client, name: str, add: int | None, value: int | None) -> None:
    """Print the counter NAME, or change it.

    \b
      zkd counter builds --add 1
    """
    if add is not None and value is not None:
        raise click.UsageError("--add and --set: expected one of them")
    counter = checked(lambda: client.counter(name))
    if add is not None:
        click.echo(await counter.add(add))
        return
    now = await counter.get()
    while value is not None and now != value and not await counter.compare_and_set(now, value):
        now = await counter.get()
    click.echo(now if value is None else value)
