"""`zkd logs ID`: the story of a task, from the tree and from what each node remembers of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import with_client
from zkd.cli.exits import Exit, Stop
from zkd.cli.output import printable, to_text

if TYPE_CHECKING:
    from zkd.client import Client


@click.command()
@click.argument("task")
@click.option("-o", "--output", type=click.Choice(["lines", "jsonl"]), default="lines", help="jsonl for programs.")
@with_client
async def logs_command(client: Client, task: str, output: str) -> None:
    """Tell the story of task TASK, in the order in which it happened.

    The tree tells when it was dropped, what was tried and how it ended; the nodes, what they remember of it: their last
    2,000 runs and 1,000 lines of log. Clocks of nodes may differ.
    """
    from zkd.cli.asking import recent, tell_faults
    from zkd.paths import NAME_RULE, is_name

    if not is_name(task):
        raise click.BadParameter(f"expected {NAME_RULE}, got {task[:140]!r}", param_hint="TASK")
    story = await _of_tree(client, task)
    told, faults = await recent(client, task)
    for node, each in told.items():
        story += [(line.at_ms, node, line.event, dict(line.fields)) for line in each.lines]
        for ran in each.runs:
            fields = {"kernel": ran.kernel, "status": ran.status, "attempt": ran.attempt}
            fields |= {"waited_s": round(ran.wait_s, 4), "ran_s": round(ran.run_s, 4)}
            story.append((ran.ended_ms, node, "run.ended", fields))
    tell_faults(faults)
    if not story:
        raise Stop(Exit.NOT_FOUND, f"error: neither the tree nor any node knows of {task}")
    for at_ms, of, event, fields in sorted(story, key=lambda each: each[0]):
        _say(
            at_ms,
            of,
            event,
            {name: value for name, value in fields.items() if name not in ("id", "task", "node")},
            output,
        )


async def _of_tree(client: Client, task: str) -> list[tuple[int, str, str, dict[str, Any]]]:
    """What stands in the tree: when each of its znodes was made, and what they say but for arguments and values."""
    from zkd.errors import BadRecord, NoNode

    paths, story = client.paths, []
    try:
        znode = await client.read(paths.task(task))
        fields: dict[str, Any] = {"bytes": len(znode.data)}
        try:
            record = await client.task(task)
            fields = {"kernel": record.kernel, "priority": record.priority, "retries": record.retries}
            fields |= {"submitter": record.submitter, "traceparent": record.traceparent}
            tried = record.attempts
        except BadRecord as error:
            fields["malformed"], tried = str(error), []
        story.append((znode.stat.ctime, "tree", "task.dropped", fields))
        for number, each in enumerate(tried, 1):
            attempt = {"attempt": number, "on": each.node, "cause": each.cause, "message": each.message}
            story.append((znode.stat.mtime, "tree", "task.attempt_recorded", attempt))
        story.append((int(time.time() * 1000), "now", "task.waits", {"why": await client.why(task)}))
    except NoNode:
        pass
    result = await client.outcome(task)
    if result is not None:
        stat = await client.session.exists(paths.result(task))
        at_ms = stat.ctime if stat is not None else int(time.time() * 1000)
        for number, each in enumerate(result.attempts, 1):
            attempt = {"attempt": number, "on": each.node, "cause": each.cause, "message": each.message}
            story.append((at_ms, "tree", "task.attempt_recorded", attempt))
        fields = {"status": result.status, "on": result.node, "attempt": result.attempt, "kernel": result.kernel}
        fields |= {"waited_s": result.wait_s, "ran_s": result.run_s, "traceparent": result.traceparent}
        if result.error is not None:
            fields["error"] = f"{result.error.kind}: {result.error.message}"
        story.append((at_ms, "tree", "result.created", fields))
    if await client.dead_task(task) is not None:
        stat = await client.session.exists(paths.dead_task(task))
        at_ms = stat.ctime if stat is not None else int(time.time() * 1000)
        story.append((at_ms, "tree", "task.died", {"next": f"zkd retry {task}"}))
    return story


def _say(at_ms: int, of: str, event: str, fields: dict[str, Any], output: str) -> None:
    if output == "jsonl":
        click.echo(to_text({"at_ms": at_ms, "of": of, "event": event, **fields}))
        return
    stamp = f"{time.strftime('%H:%M:%S', time.localtime(at_ms / 1000))}.{at_ms % 1000:03}"
    told = {name: value for name, value in fields.items() if value not in (None, "", 0)}
    words = " ".join(f"{name}={printable(str(value))}" for name, value in told.items())
    click.echo(f"{stamp}  {of:12} {event:22} {words}".rstrip())
