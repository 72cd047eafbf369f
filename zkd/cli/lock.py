"""`zkd lock` and `zkd elect`: run a command while a lock is held, or while leading. `zkd lock ls`: who holds what."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import with_client
from zkd.cli.output import output_option, write_rows

if TYPE_CHECKING:
    from zkd.client import Client
    from zkd.zk.recipes import Held, Holding

LINES = ("locks", "semaphores", "elections")


def timeout_option(command: Any) -> Any:
    return click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0),
        metavar="S",
        help="Wait for so many seconds at most; 0: look once [default: for ever].",
    )(command)


@click.command()
@click.option("--shared", is_flag=True, help="Together with others that say --shared.")
@click.option("--leases", type=int, metavar="N", help="One of N at a time: a semaphore, not a lock.")
@timeout_option
@click.option("--note", default="", help="For those who look who holds it [default: the command].")
@output_option
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@with_client
async def lock_command(
    client: Client,
    name: str,
    command: tuple[str, ...],
    shared: bool,
    leases: int | None,
    timeout_s: float | None,
    note: str,
    output: str,
) -> int:
    """Run COMMAND while the lock NAME is held; `zkd lock ls [NAME]` shows who holds what.

    The command finds $ZKD_FENCE, a number that grows with every holder: have whatever it writes to refuse a smaller
    one than it has seen. It gets the signals that zkd gets, and is killed when the lock is lost or in doubt.

    \b
      zkd lock nightly --timeout 60 -- ./backup.sh --full
      zkd lock ls

    \b
    Exit code: that of the command, 128+N if signal N ended it, or
      4  not our turn in time        6  the lock was lost, the command killed
      5  no ZooKeeper                126, 127  the command cannot be run, or is not there
    """
    if name == "ls":
        if len(command) > 1:
            raise click.UsageError("`ls` lists locks and cannot be the name of one here; expected `zkd lock ls [NAME]`")
        await _list(client, command, output)
        return 0
    if not command:
        raise click.UsageError(f"expected a command after the name: zkd lock {name} -- COMMAND")
    if leases is not None and shared:
        raise click.UsageError("--leases and --shared: expected one of them")
    client.sync.describe(note or " ".join(command)[:200])
    if leases is not None:
        holding = checked(lambda: client.semaphore(name, leases=leases, timeout_s=timeout_s))
    elif shared:
        holding = checked(lambda: client.rwlock(name).read(timeout_s=timeout_s))
    else:
        holding = checked(lambda: client.lock(name, timeout_s=timeout_s))
    return await run_while(client, holding, name, command)


@click.command()
@timeout_option
@click.option("--note", default="", help="For those who look who leads [default: the command].")
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@with_client
async def elect_command(client: Client, name: str, command: tuple[str, ...], timeout_s: float | None, note: str) -> int:
    """Run COMMAND while leading in the election NAME; without COMMAND say who leads.

    Stands for election and waits to be elected. When the lead is lost the command is killed, and zkd stands again; when
    the command ends by itself, zkd resigns and exits with its code. $ZKD_FENCE is the term: greater than any before.

    \b
      zkd elect scheduler -- ./scheduler
      zkd elect scheduler
    """
    from zkd.errors import LockLost

    if not command:
        leader = await checked(lambda: client.election(name)).leader()
        if leader is None:
            click.echo("nobody leads", err=True)
            return 3
        who = leader.claimant
        click.echo(f"{who.who} pid {who.pid} fence {leader.fence} {who.note}".rstrip())
        return 0
    client.sync.describe(note or " ".join(command)[:200])
    election = checked(lambda: client.election(name))
    while True:
        try:
            return await run_while(client, election.lead(timeout_s=timeout_s), name, command)
        except LockLost as loss:
            click.echo(f"{loss}; standing again", err=True)


async def run_while(client: Client, holding: Holding[Held], name: str, command: tuple[str, ...]) -> int:
    """Run a command in the block of a holding. SIGTERM while it waits is an orderly end, too."""
    import asyncio
    import signal

    from zkd.cli.attend import attend
    from zkd.cli.exits import Exit, Stop

    loop, waiting = asyncio.get_running_loop(), asyncio.current_task()
    assert waiting is not None
    is_terminated = False

    def terminate() -> None:
        nonlocal is_terminated
        is_terminated = True
        waiting.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        async with holding as held:
            env = {"ZKD_FENCE": str(held.fence), "ZKD_LOCK": name, "ZKD_LOCK_PATH": held.path}
            return await attend(command, env, session_timeout_s=client.session.timeout_s)
    except asyncio.CancelledError:
        if not is_terminated:
            raise
        raise Stop(Exit.TERMINATED) from None
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def checked(make: Any) -> Any:
    try:
        return make()
    except ValueError as error:
        raise click.UsageError(str(error)) from None


async def _list(client: Client, only: tuple[str, ...], output: str) -> None:
    rows: list[dict[str, Any]] = []
    for kind in LINES:
        for name in await client.sync.names(kind):
            if only and name != only[0]:
                continue
            rows += [
                {
                    "name": name,
                    "kind": kind.removesuffix("s"),
                    "state": "holds" if standee.is_held else "waits",
                    "mode": standee.mode,
                    "fence": standee.fence,
                    "age_s": max(0.0, time.time() - standee.since_ms / 1000),
                    "who": standee.claimant.who,
                    "pid": standee.claimant.pid,
                    "note": standee.claimant.note,
                }
                for standee in await client.sync.line(kind, name)
            ]
    write_rows(rows, output, empty="nothing is held")
