"""`zkd events`: what happened lately, as the nodes remember it; with -w what changes, as the tree shows it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import with_client
from zkd.cli.output import printable, to_text

if TYPE_CHECKING:
    from zkd.client import Client
    from zkd.overview.changes import Change
    from zkd.overview.seen import Overview
    from zkd.zk import Event

LOOK_S = 1.0
DIED_MAX = 20  # dead tasks that are told one by one, of those between two looks
COLOURS = {"warning": "yellow", "error": "red"}


@click.command()
@click.option("-w", "--watch", is_flag=True, help="Go on until Ctrl-C, with what changes in the tree.")
@click.option("--last", type=click.IntRange(0), default=50, show_default=True, help="So many of before; 0 for none.")
@click.option("-o", "--output", type=click.Choice(["lines", "jsonl"]), default="lines", help="jsonl for programs.")
@with_client
async def events_command(client: Client, watch: bool, last: int, output: str) -> None:
    """Show what happens: nodes, leader, tasks that fail, datasets that lose copies, jobs, models that move.

    What happened before is asked of the nodes, who remember their last lines of log; what changes is seen in the tree.
    """
    if last:
        from zkd.cli.asking import recent, tell_faults

        told, faults = await recent(client)
        tell_faults(faults)
        lines = [(line.at_ms, node, line) for node, each in told.items() for line in each.lines]
        for at_ms, node, line in sorted(lines, key=lambda each: each[:2])[-last:]:
            words = " ".join(f"{name}={value}" for name, value in line.fields.items() if name != "node")
            _say(at_ms, line.event, node, words, line.level, output)
    if watch:
        await _watch(client, output)


async def _watch(client: Client, output: str) -> None:
    """Unbounded: until somebody interrupts it."""
    import asyncio

    from zkd.errors import ZooKeeperError
    from zkd.overview.changes import changes
    from zkd.overview.tree import Reader
    from zkd.zk import EventType

    died: list[str] = []

    def saw(event: Event) -> None:
        if event.type is EventType.CREATED and len(died) <= DIED_MAX:
            died.append(event.path.rpartition("/")[2])

    reader = Reader(client.session, client.paths)
    before: Overview | None = None
    is_away = False
    await client.session.add_watch(client.paths.dead, saw, recursive=True)
    while True:
        try:
            now = await reader.read()
        except ZooKeeperError as error:
            if not is_away:
                _say(int(time.time() * 1000), "zookeeper.lost", "", str(error), "warning", output)
            is_away = True
        else:
            if is_away:
                _say(now.at_ms, "zookeeper.back", "", "", "info", output)
            is_away = False
            found = changes(before, now) if before is not None else []
            named, died = died[:DIED_MAX], []
            for change in found:
                if change.event != "tasks.died" or not named:
                    _tell(change, output)
            for task in named:
                _say(now.at_ms, "task.died", task, await _why(client, task), "error", output)
            before = now
        await asyncio.sleep(LOOK_S)


async def _why(client: Client, task: str) -> str:
    from zkd.errors import ZkdError

    try:
        dead = await client.dead_task(task)
    except ZkdError as error:
        return str(error)
    return "" if dead is None else f"{dead.error.kind}: {dead.error.message}"


def _tell(change: Change, output: str) -> None:
    _say(change.at_ms, change.event, change.of, change.text, change.grade, output)


def _say(at_ms: int, event: str, of: str, text: str, grade: str, output: str) -> None:
    if output == "jsonl":
        told: dict[str, Any] = {"at_ms": at_ms, "event": event, "of": of, "text": text, "grade": grade}
        click.echo(to_text(told))
        return
    stamp = time.strftime("%H:%M:%S", time.localtime(at_ms / 1000))
    name = f"{event:22}"
    shown = click.style(name, fg=COLOURS[grade]) if grade in COLOURS else name
    click.echo(f"{stamp}  {shown} {printable(of)}  {printable(text)}".rstrip())
