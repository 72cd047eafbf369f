"""`zkd schedule`: tasks that recur."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import full_name, with_client
from zkd.cli.exits import Exit, Stop
from zkd.cli.task_options import NumbersCommand, task_options

if TYPE_CHECKING:
    from datetime import datetime

    from zkd.client import Client
    from zkd.client.schedules import Scheduled, When

    Rows = list[dict[str, Any]]

_SPAN = re.compile(r"(\d+) ?(s|m|h|d)?")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

overlap_option = click.option(
    "--overlap",
    type=click.Choice(["allow", "skip"]),
    default="allow",
    help="skip: not while the former task is unfinished.",
    show_default=True,
)


def _seconds(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """30, 30s, 5m, 12h or 1d, as whole seconds."""
    found = _SPAN.fullmatch(value)
    if found is None or not int(found[1]):
        raise click.BadParameter(f"{value!r}: expected whole seconds, or such as 30s, 5m, 12h, 1d", ctx, param)
    return int(found[1]) * _UNITS[found[2] or "s"]


@click.group()
def schedule_command() -> None:
    """Have tasks dropped again and again. Each slot is dropped once, whichever node leads."""


@schedule_command.command("set", cls=NumbersCommand, short_help="At the minutes that a line of cron names.")
@click.argument("name")
@click.option("--cron", "line", required=True, metavar="LINE", help="Minute, hour, day of month, month, day of week.")
@click.option("--timezone", default="UTC", metavar="ZONE", show_default=True, help="Such as Europe/Berlin.")
@overlap_option
@click.argument("kernel")
@click.argument("args", nargs=-1, metavar="[ARG]...")
@task_options
@with_client
async def set_(client: Client, name: str, line: str, timezone: str, overlap: Any, **task: Any) -> None:
    """Drop a task of KERNEL at the minutes that a line of cron names; replaces a schedule of this NAME.

    \b
      zkd schedule set nightly --cron '0 3 * * mon-fri' --timezone Europe/Berlin mykernels.fit 0.1
    """
    from zkd.client.schedules import Cron

    await _say(client, name, Cron(line, timezone, overlap), **task)


@schedule_command.command(cls=NumbersCommand, short_help="Every so many seconds, minutes, hours or days.")
@click.argument("span", callback=_seconds)
@click.argument("name")
@overlap_option
@click.argument("kernel")
@click.argument("args", nargs=-1, metavar="[ARG]...")
@task_options
@with_client
async def every(client: Client, span: int, name: str, overlap: Any, **task: Any) -> None:
    """Drop a task of KERNEL every SPAN, at its multiples since 1970; replaces a schedule of this NAME.

    \b
      zkd schedule every 30s probe mykernels.probe --overlap skip
    """
    from zkd.client.schedules import Every

    await _say(client, name, Every(span, overlap), **task)


async def _say(
    client: Client, name: str, when: When, kernel: str, args: list[Any], kwargs: dict[str, Any], options: dict[str, Any]
) -> None:
    from zkd.errors import BadRecord

    try:
        await client.options(**options).schedule(name, when, kernel, *args, **kwargs)
    except BadRecord as error:
        raise Stop(Exit.USAGE, f"error: {error}\n  `zkd schema schedule` says what a schedule looks like.") from None
    seen = await client.scheduled(name)
    following = f", next at {shown(seen.next)}" if seen is not None and seen.next is not None else ""
    click.echo(f"{name} set{following}")


@schedule_command.command(short_help="End a schedule.")
@click.argument("name")
@with_client
async def delete(client: Client, name: str) -> None:
    """End a schedule. Tasks that it dropped go on."""
    full = await _named(client, name)
    await client.unschedule(full)
    click.echo(f"{full} deleted")


@schedule_command.command(short_help="Let nothing fire until it is resumed.")
@click.argument("name")
@with_client
async def pause(client: Client, name: str) -> None:
    """Let nothing fire until it is resumed. What would have is not made up for."""
    full = await _named(client, name)
    await client.pause_schedule(full)
    click.echo(f"{full} paused")


@schedule_command.command(short_help="Let it fire again, from its next slot on.")
@click.argument("name")
@with_client
async def resume(client: Client, name: str) -> None:
    """Let it fire again, from its next slot on."""
    full = await _named(client, name)
    await client.pause_schedule(full, is_paused=False)
    click.echo(f"{full} resumed")


async def _named(client: Client, given: str) -> str:
    return full_name(given, sorted(await client.session.children(client.paths.schedules)), "schedule")


# --- for `zkd get` and `zkd describe` -------------------------------------------------------------------


async def rows(client: Client, name: str | None, limit: int, only_names: bool) -> Rows:
    if name is not None or only_names:
        names = sorted(await client.session.children(client.paths.schedules))
        chosen = [full_name(name, names, "schedule")] if name is not None else names
        if only_names:
            return [{"name": each} for each in chosen]
        found = [await client.scheduled(each) for each in chosen]
        return [_row(seen) for seen in found if seen is not None]
    return [_row(seen) for seen in (await client.schedules()).values()]


def _row(seen: Scheduled) -> dict[str, Any]:
    state, schedule = seen.state, seen.schedule
    return {
        "name": seen.name,
        "timing": seen.timing or None,
        "kernel": _kernel(seen),
        "state": "malformed" if schedule is None else "paused" if schedule.paused else "active",
        "next": seen.next and shown(seen.next),
        "last": seen.last and shown(seen.last),
        "fired": state.fired if state else 0,
        "skipped": state.skipped if state else 0,
        "overlap": schedule.overlap if schedule else None,
        "task": state.task if state else None,
        "error": seen.error,
    }


async def described(client: Client, name: str, short: bool) -> dict[str, Any]:
    import msgspec

    from zkd.cli.describe import lines

    full = await _named(client, name)
    seen = await client.scheduled(full)
    if seen is None:
        return {"name": full}
    fields = {**_row(seen), "why": await client.why(full)}
    for name, record in {"schedule": seen.schedule, "noted": seen.state}.items():
        if record is not None:
            as_json: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(record))
            fields[name] = lines(as_json) if short else as_json
    return fields


def _kernel(seen: Scheduled) -> str | None:
    if seen.schedule is None:
        return None
    from zkd.codec import decode_task

    return decode_task(bytes(seen.schedule.task)).kernel


def shown(at: datetime) -> str:
    """As ISO says it, in UTC; what programs read and people can."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
