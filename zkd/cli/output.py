"""How results look: tables on a terminal, aligned plain text in a pipe, JSON for programs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FOR_PEOPLE = ("table", "wide")
FORMATS = (*FOR_PEOPLE, "json", "jsonl", "name")

LAST_WIDTH_MIN = 24  # below that a folded last column is a ladder of letters


def output_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default="table",
        help="table and wide for people, json and jsonl for programs, name for the first column alone.",
    )(command)


def write_rows(rows: Sequence[dict[str, Any]], output: str, *, empty: str = "", wide: Sequence[str] = ()) -> None:
    """A list of things, each with the same names; the first is what it is called. Tables leave out `wide` ones."""
    if output == "table" and wide:
        rows = [{name: value for name, value in row.items() if name not in wide} for row in rows]
    if output == "json":
        _write(to_text(list(rows)))
    elif output == "jsonl":
        for row in rows:
            _write(to_text(row))
    elif output == "name":
        for row in rows:
            _write(str(next(iter(row.values()))))
    elif not rows:
        if empty and sys.stdout.isatty():
            click.echo(empty, err=True)
    elif sys.stdout.isatty():
        _write_table(rows)
    else:
        _write_plain(rows)


def write_fields(fields: dict[str, Any], output: str) -> None:
    """One thing, a field a line."""
    if output in ("json", "jsonl"):
        _write(to_text(fields))
        return
    if output == "name":
        _write(str(next(iter(fields.values()))))
        return
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        if value is None or value in ([], {}, ""):
            continue
        text = cell(value)
        if "\n" in text:
            _write(f"{name}:")
            _write("\n".join(f"  {line}" for line in text.splitlines()))
        else:
            _write(f"{name + ':':{width + 1}} {text}")


def to_text(value: Any) -> str:
    """JSON; whatever is no record goes through the same rules as a task's arguments."""
    import msgspec

    return msgspec.json.encode(value, enc_hook=str).decode()


def cell(value: Any) -> str:
    """A value in a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ",".join(f"{name}={cell(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list):
        return ",".join(map(cell, value)) or "-"
    return str(value) or "-"


def _shown(name: str, value: Any) -> str:
    """A value in the column of this name: people read 49.5 MiB and 3m where programs get bytes and seconds."""
    if isinstance(value, int | float):
        if name.endswith("_bytes"):
            return bytes_text(value)
        if name in ("age_s", "uptime_s"):
            return time_text(value)
        if name == "progress":
            return f"{value:.0%}"
    return cell(value)


def bytes_text(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def time_text(seconds: float) -> str:
    """An age as people say it: 4s, 12m, 3h, 5d."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def printable(text: str) -> str:
    """On one line, and without what tells a terminal to do something: anybody may have written it."""
    return "".join(letter if letter.isprintable() else "?" for letter in _line(text))


def _write(text: str) -> None:
    click.echo(text)


def _heading(name: str) -> str:
    if name.endswith("_bytes") or name in ("age_s", "uptime_s"):
        name = name.removesuffix("_bytes").removesuffix("_s")  # the cells say the unit
    return name.upper().replace("_", " ")


def _lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The heading and the rows, as they are shown."""
    shown = ([_line(_shown(name, value)) for name, value in row.items()] for row in rows)
    return [[_heading(name) for name in rows[0]], *shown]


def _write_plain(rows: Sequence[dict[str, Any]]) -> None:
    table = _lines(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        _write("  ".join(f"{text:{width}}" for text, width in zip(line, widths, strict=True)).rstrip())


def _line(text: str) -> str:
    return " ".join(text.split())


def _write_table(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    taken = sum(max(map(len, column)) + 2 for column in list(zip(*_lines(rows), strict=True))[:-1])
    if console.width - taken < LAST_WIDTH_MIN:
        _write_plain(rows)  # the terminal folds whole lines, and no id is cut
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    last = list(rows[0])[-1]
    for name in rows[0]:
        table.add_column(_heading(name), overflow="fold", no_wrap=name != last)
    for row in rows:
        # As text, never as markup: ids and messages were written by anyone.
        table.add_row(*(Text(_shown(name, value), style=_style(name, value)) for name, value in row.items()))
    console.print(table)


_STYLES = {
    "done": "green",
    "running": "green",
    "active": "green",
    "training": "green",
    "paused": "yellow",
    "malformed": "red",
    "failed": "red",
    "rejected": "red",
    "draining": "yellow",
    "cordoned": "yellow",
    "cancelled": "yellow",
    "expired": "yellow",
    "full": "green",
    "degraded": "yellow",
    "lost": "red",
}


def _style(name: str, value: Any) -> str:
    return _STYLES.get(value, "") if name in ("state", "status", "health", "phase") and isinstance(value, str) else ""
