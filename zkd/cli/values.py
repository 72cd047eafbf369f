"""Arguments of a kernel as they are typed, and its value as it is printed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from zkd.cli.exits import Exit, Stop
from zkd.cli.output import FOR_PEOPLE

READABLE_MAX = 1000  # cells of an array: larger ones are for programs


def read_argument(text: str) -> Any:
    """JSON if it is JSON, ``@file.npy`` or ``@file.json`` what the file holds, else the text itself.

    What begins as JSON of more than one value does was meant as such: a bracket that is missing is no text.
    """
    if text.startswith("@"):
        return _read_file(Path(text[1:]))
    import msgspec

    from zkd.arrays import from_json
    from zkd.errors import BadRecord, NotData

    shown = text if len(text) <= 60 else f"{text[:60]}..."
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        if text.lstrip().startswith(("[", "{", '"')):
            raise click.UsageError(f"{shown}: expected JSON, got text that is not: {error}") from None
        return text
    try:
        return from_json(text.encode())
    except (BadRecord, NotData) as error:
        raise click.UsageError(f"{shown}: {error}") from None


def read_named(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``-k name=value``, each value as `read_argument` reads it."""
    named: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise click.UsageError(f"-k {pair}: expected name=value, such as -k axis=0")
        named[name] = read_argument(value)
    return named


def read_labels(pairs: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--label {pair}: expected name=value, such as --label rack=r1")
        labels[name] = value
    return labels


def check_path(path: str | None) -> None:
    """Refuse a FILE of -O that no value could be written to, before anything runs."""
    if path is None:
        return
    if Path(path).suffix not in (".npy", ".json"):
        raise click.UsageError(f"-O {path}: expected a file named *.npy or *.json")
    if not Path(path).parent.is_dir():
        raise click.UsageError(f"-O {path}: there is no directory {Path(path).parent}")


def _read_file(path: Path) -> Any:
    from zkd.arrays import from_json, open_npy

    if not path.is_file():
        raise click.UsageError(f"@{path}: there is no such file")
    if path.suffix == ".npy":
        return open_npy(path)
    if path.suffix == ".json":
        return from_json(path.read_bytes())
    raise click.UsageError(f"@{path}: expected a file named *.npy or *.json")


def write_value(value: Any, output: str, path: str | None = None) -> None:
    """Print a value, or write it to `path` (.npy or .json)."""
    if path is not None:
        _write_file(value, Path(path))
        return
    from zkd.arrays import to_json

    # An array on a terminal as numpy shows it, with what is in the middle of a large one left out.
    is_shown = output in FOR_PEOPLE and (isinstance(value, str) or (sys.stdout.isatty() and hasattr(value, "ndim")))
    text = str(value) if is_shown else to_json(value).decode()
    if not is_shown and output in FOR_PEOPLE and '"dtype"' in text:
        text = _readable(value) or text
    click.echo(text)


def _readable(value: Any) -> str | None:
    """JSON with NaN and Infinity as they are called, and dates as text, which JSON itself has no place for."""
    import json

    def plain(each: Any) -> Any:
        if not (hasattr(each, "ndim") and each.dtype.kind in "biufmM" and each.size <= READABLE_MAX):
            raise TypeError
        return (each.astype(str) if each.dtype.kind in "mM" else each).tolist()

    try:
        return json.dumps(value, default=plain, separators=(",", ":"), ensure_ascii=False)
    except (TypeError, ValueError):
        return None


def _write_file(value: Any, path: Path) -> None:
    from zkd.arrays import save_npy, to_json

    if path.suffix == ".npy":
        from zkd.client.outcomes import one_array

        array = one_array(value)
        if array is None:
            raise Stop(Exit.USAGE, f"error: the value is not one array, so it cannot be {path}\n  Use -O value.json.")
        save_npy(array, path)
    else:
        path.write_bytes(to_json(value) + b"\n")
