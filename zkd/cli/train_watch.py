"""`zkd train watch`: how far a job is, on one screen or line by line, until it ends; then what came of it."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.exits import Exit
from zkd.cli.output import time_text
from zkd.errors import JobNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zkd.client import Client
    from zkd.client.job_status import JobStatus
    from zkd.client.training_job import TrainingJob
    from zkd.jobs import Progress, Round

SAY_S = 1.0  # between two lines about rounds, where no line can be overwritten
PLOT_S = 1.0  # between two pictures
LAST_ROUNDS_S = 5.0  # so long the last rounds may take to come after the job has ended
SPARKS = "▁▂▃▄▅▆▇█"
SPARKS_WIDTH = 40


class Seen:
    """What is known of the job by now."""

    def __init__(self, job: TrainingJob) -> None:
        self.job = job
        self.status: JobStatus | None = None
        self.rounds: list[Round] = []

    @property
    def phase(self) -> str:
        return "waiting" if self.status is None else self.status.phase

    @property
    def has_ended(self) -> bool:
        return self.status is not None and self.status.has_ended

    @property
    def title(self) -> str:
        status = self.status
        if status is None or status.job is None:
            return self.job.id
        dataset = (status.state.dataset if status.state is not None else None) or status.job.dataset
        target = f", target {status.job.target}" if status.job.target else ""
        return f"{status.job.model} on {dataset}{target}"

    @property
    def last(self) -> Round | Progress | None:
        """The last round, by whichever of the two ways news of it came first."""
        told = None if self.status is None or self.status.state is None else self.status.state.progress
        if not self.rounds:
            return told if told is not None and told.round else None
        return told if told is not None and told.round > self.rounds[-1].number else self.rounds[-1]

    @property
    def best(self) -> Round | None:
        held = [each for each in self.rounds if each.held_loss is not None and each.is_accepted]
        return min(held, key=lambda each: each.held_loss or 0.0, default=None)

    @property
    def waits_for(self) -> list[str]:
        return [] if self.status is None or self.status.state is None else self.status.state.progress.waits_for

    @property
    def coordinator(self) -> str:
        if self.status is None or self.status.coordinator is None:
            return ""
        return self.status.coordinator


async def look_on(client: Client, job: TrainingJob, output: str, plot: Path | None) -> int:
    """The exit code: 0 when it is done, 1 when it failed or was removed."""
    seen = Seen(job)
    seen.status = await job.status()
    is_json = output in ("json", "jsonl")
    try:
        with ExitStack() as stack:
            if is_json:
                tell: Callable[[], None] = _JsonLines(seen).tell
            elif sys.stdout.isatty():
                stack.enter_context(_screen(seen))
                tell = _nothing
            else:
                tell = _Lines(seen).tell
            await _follow(seen, _all_of([tell, *([] if plot is None else [_Plot(seen, plot).tell])]))
    except asyncio.CancelledError:
        click.echo(f"{job.id} goes on: `zkd train watch {job.id}` looks on again", err=True)
        raise
    if plot is not None:
        _Plot(seen, plot).draw()
    if not seen.has_ended:
        click.echo(f"{job.id} was removed", err=True)
        return Exit.TASK_FAILED
    return await _ending(seen, is_json=is_json)


async def _follow(seen: Seen, tell: Callable[[], None]) -> None:
    """Keep `seen` up to date until the job has ended or is removed."""

    async def rounds() -> None:
        async for each in seen.job:
            seen.rounds.append(each)
            tell()

    try:
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(rounds())
            try:
                async for status in seen.job.statuses():
                    seen.status = status
                    tell()
                await asyncio.wait({telling}, timeout=LAST_ROUNDS_S)
            except JobNotFound:
                seen.status = None
            telling.cancel()
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _ending(seen: Seen, *, is_json: bool) -> int:
    from zkd.cli.output import to_text
    from zkd.cli.train_summary import ending_lines, write_model

    status = seen.status
    assert status is not None
    state = status.state
    assert state is not None
    if is_json:
        import msgspec

        summary = None if state.summary is None else msgspec.to_builtins(state.summary)
        click.echo(to_text({"ended": status.phase, "error": status.error, "summary": summary}))
    elif status.phase == "failed":
        click.echo(f"{seen.job.id} failed: {status.error or 'nobody said why'}", err=True)
    elif state.summary is not None:
        took = "" if state.started_ms is None or state.ended_ms is None else _took(state.ended_ms - state.started_ms)
        click.echo(f"{seen.job.id} done{took}: {seen.title}")
        click.echo("\n".join(ending_lines(state.summary)))
        write_model(await seen.job.model())
    return Exit.TASK_FAILED if status.phase == "failed" else Exit.OK


def _took(milliseconds: int) -> str:
    return f" in {milliseconds / 1000:.1f} s" if milliseconds < 60_000 else f" in {time_text(milliseconds / 1000)}"


# --- Ways to tell -------------------------------------------------------------------------------------------


def _nothing() -> None:
    """The screen looks by itself."""


def _all_of(tellers: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def tell() -> None:
        for each in tellers:
            each()

    return tell


class _JsonLines:
    """Every round, once."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._told = 0

    def tell(self) -> None:
        import msgspec

        for each in self._seen.rounds[self._told :]:
            click.echo(msgspec.json.encode(each))
        self._told = len(self._seen.rounds)


class _Lines:
    """A line when the phase, the coordinator or what it waits for changes, and now and then about the rounds."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._phase = self._coordinator = ""
        self._waits_for: list[str] = []
        self._number = 0
        self._said_at = -math.inf

    def tell(self) -> None:
        seen = self._seen
        is_news = seen.phase != self._phase or (seen.coordinator and seen.coordinator != self._coordinator)
        last = seen.last
        number = 0 if last is None else _number(last)
        if is_news and not seen.has_ended:  # the end is told by itself
            where = f", coordinated by {seen.coordinator}" if seen.coordinator else ""
            click.echo(f"{seen.job.id} {seen.phase}{where}")
            self._phase, self._coordinator = seen.phase, seen.coordinator or self._coordinator
        if seen.waits_for != self._waits_for:
            self._waits_for = seen.waits_for
            if seen.waits_for:
                click.echo(f"{seen.job.id} waits for {', '.join(seen.waits_for)}")
        is_due = is_news or time.monotonic() - self._said_at >= SAY_S
        if last is not None and number > self._number and is_due:
            click.echo("   ".join(words for _, words in _words(seen, last)))
            self._number, self._said_at = number, time.monotonic()


def _screen(seen: Seen) -> Any:
    from rich.console import Console
    from rich.live import Live

    since = time.monotonic()
    return Live(
        get_renderable=lambda: _render(seen, time.monotonic() - since),
        console=Console(),
        refresh_per_second=6,
        transient=True,
    )


def _render(seen: Seen, watched_s: float) -> Any:
    """The screen: a line a fact; what is not known has none."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify, table.title_style = Text(seen.title), "left", "bold"
    status, state = seen.status, None if seen.status is None else seen.status.state
    started_s = None if state is None or state.started_ms is None else time.time() - state.started_ms / 1000
    lines = [("job", seen.job.id)]
    wanted = "" if status is None or status.desired == "run" else f", wanted: {status.desired}"
    lines.append(("phase", f"{seen.phase}{wanted}, {time_text(watched_s if started_s is None else started_s)}"))
    if seen.last is not None:
        lines += _words(seen, seen.last)
    if seen.waits_for:
        lines.append(("waits for", ", ".join(seen.waits_for)))
    if state is not None and state.checkpoint is not None:
        kept = state.checkpoint
        lines.append(("checkpoint", f"of round {kept.round} on {', '.join(kept.nodes)}"))
    lines.append(("coordinator", seen.coordinator or "none at this moment"))
    sparks = {
        "loss": _sparks(each.loss for each in seen.rounds if each.is_accepted),
        "held-out": _sparks(each.held_loss for each in seen.rounds if each.is_accepted),
        "|gradient|": _sparks(each.slope for each in seen.rounds if each.is_accepted),
    }
    for name, words in lines:
        said = words.removeprefix(f"{name} ").removesuffix(f" {name}")
        table.add_row(Text(name, style="dim"), Text(said), Text(sparks.get(name, ""), style="cyan"))
    return table


def _words(seen: Seen, last: Round | Progress) -> list[tuple[str, str]]:
    """(name, words that begin with the name) of what is known of a round."""
    limit = None if seen.status is None or seen.status.job is None else seen.status.job.max_rounds
    words = [("round", f"round {_number(last):,}{'' if limit is None else f' of at most {limit:,}'}")]
    if last.loss is not None:
        words.append(("loss", f"loss {last.loss:.8g}"))
    if last.held_loss is not None:
        best = seen.best
        is_worse = best is not None and best.held_loss is not None and last.held_loss > best.held_loss
        told = f", best {best.held_loss:.6g} in round {best.number}" if is_worse and best is not None else ""
        words.append(("held-out", f"held-out {last.held_loss:.8g}{told}"))
    if last.slope is not None:
        words.append(("|gradient|", f"|gradient| {last.slope:.1e}"))
    if last.rows_s is not None:
        words.append(("speed", f"{_rows(last.rows_s)} rows/s"))
    if last.round_s is not None:
        words.append(("a round", f"{last.round_s * 1e3:.3g} ms a round"))
    return words


def _number(last: Round | Progress) -> int:
    return getattr(last, "number", 0) or getattr(last, "round", 0)


def _rows(count: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _sparks(values: Iterable[float | None]) -> str:
    """A curve of one line, logarithmic where all is above 0."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < 2:
        return ""
    step = len(known) / min(SPARKS_WIDTH, len(known))
    chosen = [known[int(at * step)] for at in range(min(SPARKS_WIDTH, len(known)) - 1)] + [known[-1]]
    heights = [math.log(value) for value in chosen] if min(chosen) > 0 else chosen
    low, high = min(heights), max(heights)
    top = len(SPARKS) - 1
    return "".join(SPARKS[round(top * (each - low) / (high - low)) if high > low else 0] for each in heights)


class _Plot:
    """The curve as a file, written anew now and then; whoever reads it sees a whole one."""

    def __init__(self, seen: Seen, path: Path) -> None:
        self._seen = seen
        self._path = path
        self._drawn_at = -math.inf

    def tell(self) -> None:
        if time.monotonic() - self._drawn_at >= PLOT_S:
            self.draw()
            self._drawn_at = time.monotonic()

    def draw(self) -> None:
        from zkd.client.curve import draw

        status = self._seen.status
        summary = None if status is None or status.state is None else status.state.summary
        ending = self._seen.phase
        if summary is not None:
            from zkd.cli.train_summary import ending_lines

            ending = ending_lines(summary)[0]
        half_written = self._path.with_name(f".{self._path.name}.tmp")
        half_written.write_text(draw(self._seen.rounds, self._seen.title, ending=ending))
        half_written.rename(self._path)
