"""Where settings come from: a TOML file, the environment, the command line; each value with its place.

    given = {"workers.threads": Given("4", "$ZKD_WORKERS__THREADS", is_text=True), ...}

Names are checked here, against the keys that `zkd.settings` knows; types and bounds are checked there.
Faults are collected and never raised one by one, so that a person mends a file once.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

# Names of the environment for what people set by hand most often.
SHORT_ENV = {"ZKD_HOSTS": "zookeeper.hosts", "ZKD_ROOT": "zookeeper.root"}

_TABLE = re.compile(r"\s*\[{1,2}\s*([^\[\]#]+?)\s*\]")
_ASSIGNMENT = re.compile(r"\s*([A-Za-z0-9_\-\"'. ]+?)\s*=")
_AT_LINE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


class Given(Struct, frozen=True):
    """A value somebody gave. `is_text`: it had to be written as text, so ``"4"`` may stand for 4."""

    value: Any
    origin: str  # zkd.toml:4 | $ZKD_ROOT | command line
    is_text: bool = False


def from_file(path: Path, keys: Collection[str], sections: Collection[str], faults: list[str]) -> dict[str, Given]:
    """The values in a TOML file. A table that is present counts as given, even an empty one."""
    try:
        text = path.read_bytes().decode()
        tables = tomllib.loads(text)
    except OSError as error:
        faults.append(f"{path}: cannot be read: {error.strerror}")
        return {}
    except UnicodeDecodeError as error:
        faults.append(f"{path}: expected UTF-8, got byte {error.object[error.start]:#04x} at offset {error.start}")
        return {}
    except tomllib.TOMLDecodeError as error:
        at = _AT_LINE.search(str(error))
        line = (at and at[1]) or str(len(text.splitlines()))
        faults.append(f"{path}:{line}: expected TOML: {_AT_LINE.sub('', str(error))}")
        return {}
    lines = _lines(text)
    found: dict[str, Given] = {}

    def walk(table: Mapping[str, Any], prefix: str) -> None:
        for name, value in table.items():
            key = prefix + name
            at = f"{path}:{_line_of(key, lines)}"
            if key in sections and isinstance(value, dict):
                found[key] = Given({}, at)
                walk(value, f"{key}.")
            elif key in sections:
                faults.append(f"{at}: {key}: expected a table [{key}], got {value!r}")
            elif key in keys:
                found[key] = Given(value, at)
            else:
                faults.append(f"{at}: {key}: unknown setting{suggestion(key, [*keys, *sections])}")

    walk(tables, "")
    return found


def from_env(env: Mapping[str, str], keys: Collection[str], faults: list[str]) -> dict[str, Given]:
    """The values in `ZKD_SECTION__KEY` variables, and the short names. An empty variable counts as absent."""
    found: dict[str, Given] = {}
    for name, key in SHORT_ENV.items():
        if env.get(name):
            found[key] = Given(env[name], f"${name}", is_text=True)
    for name, value in sorted(env.items()):
        if not (name.startswith("ZKD_") and "__" in name and value):
            continue  # ZKD_COLOR and the like belong to others
        key = name.removeprefix("ZKD_").lower().replace("__", ".")
        if key in keys:
            found[key] = Given(value, f"${name}", is_text=True)
        else:
            faults.append(f"${name}: {key}: unknown setting{suggestion(key, keys)}")
    return found


def from_overrides(overrides: Mapping[str, Any], keys: Collection[str], faults: list[str]) -> dict[str, Given]:
    """The values of the command line, by dotted key; None counts as absent."""
    found: dict[str, Given] = {}
    for key, value in overrides.items():
        if key not in keys:
            faults.append(f"command line: {key}: unknown setting{suggestion(key, keys)}")
        elif value is not None:
            found[key] = Given(value, "command line", is_text=isinstance(value, str))
    return found


def suggestion(key: str, keys: Collection[str]) -> str:
    """``; did you mean `workers.threads`?`` or nothing."""
    from difflib import get_close_matches  # only when something is wrong

    leaf = key.rpartition(".")[2]
    same_name = [known for known in keys if known.rpartition(".")[2] == leaf]
    close = get_close_matches(key, keys, n=1, cutoff=0.7)
    same_section = [known for known in keys if known.rpartition(".")[0] == key.rpartition(".")[0]]
    in_section = get_close_matches(leaf, [known.rpartition(".")[2] for known in same_section], n=1)
    guesses = same_name or close or [known for known in same_section if known.rpartition(".")[2] in in_section]
    return f"; did you mean `{guesses[0]}`?" if guesses else ""


def _lines(text: str) -> dict[str, int]:
    """The line of each table and key. `tomllib` does not tell, and a fault without its line costs a search."""
    found: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TABLE.match(line):
            table = _plain(header[1])
            found.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            found.setdefault(f"{table}.{_plain(assignment[1])}".removeprefix("."), number)
    return found


def _plain(key: str) -> str:
    return re.sub(r"[\"'\s]", "", key)


def _line_of(key: str, lines: Mapping[str, int]) -> int:
    """Its own line or, inside an inline table, the line where that begins."""
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return lines.get(key, 1)
