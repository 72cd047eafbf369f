"""`zkd top`: the cluster on one screen, live. Without a terminal it prints the same as plain text, once."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from zkd.cli.connection import with_client
from zkd.cli.output import bytes_text, time_text

if TYPE_CHECKING:
    import asyncio

    from zkd.client import Client
    from zkd.overview.seen import NodeSeen, Overview

ROWS_MAX = 15  # of what runs, of datasets, of jobs


@click.command()
@click.option("--every", type=click.FloatRange(0.2), default=1.0, show_default=True, metavar="S", help="Between looks.")
@click.option("-n", "--looks", type=click.IntRange(1), help="Stop after so many [default: without a terminal one].")
@with_client
async def top_command(client: Client, every: float, looks: int | None) -> None:
    """Show nodes, what runs, datasets and training jobs, live. q ends it."""
    import asyncio

    from zkd.errors import ZooKeeperError
    from zkd.overview.tree import Reader

    reader, over = Reader(client.session, client.paths), asyncio.Event()
    is_live = sys.stdout.isatty()
    left = looks if looks is not None else None if is_live else 1
    with ExitStack() as stack:
        screen = stack.enter_context(_Screen()) if is_live else None
        if is_live and sys.stdin.isatty():
            stack.enter_context(_Keys(over))
        rates: dict[str, tuple[float, int]] = {}
        while not over.is_set() and (left is None or left > 0):
            left = None if left is None else left - 1
            try:
                text = "\n".join(drawn(await reader.read(), rates))
            except ZooKeeperError as error:
                text = f"ZooKeeper cannot be read: {error}"
            if screen is None:
                click.echo(text)
            else:
                screen(text)
            if left == 0:
                return
            try:
                async with asyncio.timeout(every):
                    await over.wait()
            except TimeoutError:
                continue


def drawn(seen: Overview, rates: dict[str, tuple[float, int]]) -> list[str]:
    """The lines of the screen. `rates` is where the counts of the look before are kept."""
    counts, here = seen.counts, [node for node in seen.nodes if node.state != "away"]
    ended = sum(_rate(node, rates) for node in here)
    lines = [
        f"zkd {seen.root}   {time.strftime('%H:%M:%S')}   leader {seen.leader or 'nobody'}, epoch {seen.epoch}",
        f"nodes {len(here)}   slots {counts.used}/{counts.slots}   tasks {counts.tasks}   ended {ended:.1f}/s"
        f"   results {counts.results}   dead {counts.dead}",
        "",
        f"{'NODE':20} {'STATE':9} {'SLOTS':>9} {'QUEUED':>7} {'DONE':>9} {'FAILED':>7} "
        f"{'MEMORY':>10} {'LOAD':>6} {'UP':>5}",
    ]
    for node in seen.nodes:
        star = "*" if node.leads else " "
        lines.append(
            f"{_cut(node.node, 19) + star:20} {node.state:9} {f'{node.used}/{node.slots}':>9} {node.queued:>7} "
            f"{node.done:>9} {node.failed:>7} {bytes_text(node.memory_bytes):>10} {node.load_1m:>6.2f} "
            f"{time_text(node.uptime_s):>5}"
        )
    running = [(run, node.node) for node in here for run in node.running]
    if running:
        lines += ["", f"{'TASK':34} {'KERNEL':26} {'NODE':16} {'RUNS':>7}  PROGRESS"]
        for run, where in sorted(running, key=lambda each: -each[0].run_s)[:ROWS_MAX]:
            progress = "" if run.progress is None else f"{run.progress:.0%} "
            told = f"{progress}{' '.join((run.note or '').split())}"
            lines.append(
                f"{_cut(run.id, 34):34} {_cut(run.kernel, 26):26} {_cut(where, 16):16} {time_text(run.run_s):>7}  "
                f"{told}"
            )
    ill = [each for each in seen.datasets if each.health != "full"]
    if seen.datasets:
        lines += ["", f"datasets {len(seen.datasets)}, {len(seen.datasets) - len(ill)} with all copies"]
        lines += [f"  {each.name}@{each.version}: {each.health}, {each.degraded} of {each.parts} parts short, "
                  f"{each.lost} lost" for each in ill[:ROWS_MAX]]  # fmt: skip
    jobs = [job for job in seen.jobs if job.phase not in ("done", "failed")]
    for job in jobs[:ROWS_MAX]:
        loss = "" if job.loss is None else f", loss {job.loss:.6g}"
        lines.append(f"job {job.id}: {job.model} on {job.dataset}, {job.phase}, round {job.round}{loss}")
    more = [f"{count} more {what}" for what, count in seen.omitted.items()]
    return [*map(_safe, lines), *([f"not shown: {', '.join(more)}"] if more else [])]


def _rate(node: NodeSeen, rates: dict[str, tuple[float, int]]) -> float:
    """Runs that ended a second, between two heartbeats."""
    at, ended = node.heard_ms / 1000, node.done + node.failed
    before = rates.get(node.node)
    if before is None or at > before[0]:
        rates[node.node] = (at, ended)
        if before is not None:
            rates[f"{node.node} "] = ((ended - before[1]) / (at - before[0]), 0)
    return max(0.0, rates.get(f"{node.node} ", (0.0, 0))[0])


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _safe(line: str) -> str:
    """Without what tells a terminal to do something: anybody may have written it."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)


class _Screen:
    """A whole screen, drawn anew; the terminal is as it was when it is left."""

    def __enter__(self) -> _Screen:
        sys.stdout.write("\x1b[?1049h\x1b[?25l")
        return self

    def __call__(self, text: str) -> None:
        import shutil

        width, height = shutil.get_terminal_size()
        lines = [line[:width] for line in text.splitlines()][: height - 1]
        body = "".join(f"{line}\x1b[K\r\n" for line in lines)
        sys.stdout.write(f"\x1b[H{body}\x1b[J\x1b[2mq ends\x1b[0m")
        sys.stdout.flush()

    def __exit__(self, *_: object) -> None:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


class _Keys:
    """Hears q, and leaves the terminal as it was."""

    def __init__(self, over: asyncio.Event) -> None:
        self._over = over

    def __enter__(self) -> None:
        import asyncio
        import termios
        import tty

        self._before = termios.tcgetattr(sys.stdin)
        tty.setcbreak(sys.stdin)
        asyncio.get_running_loop().add_reader(sys.stdin, self._hear)

    def _hear(self) -> None:
        import os

        if os.read(sys.stdin.fileno(), 64).lower()[:1] in (b"q", b""):
            self._over.set()

    def __exit__(self, *_: object) -> None:
        import asyncio
        import termios

        asyncio.get_running_loop().remove_reader(sys.stdin)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)
