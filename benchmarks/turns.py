"""Contenders that take turns, in reversed order every other time. Each turn is a process of its own, which starts what
it needs and ends it, and tells its figures as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.cluster import circumstances, save

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

Figures = dict[str, list[float]]
Make = Callable[[int, int, Path], None]  # rows, features: writes the data of one size
Turn = Callable[[str, argparse.Namespace], Figures]
Names = Callable[[list[str]], list[str]]  # who takes turns, from those asked for


def main(
    benchmark: str,
    parser: argparse.ArgumentParser,
    contenders: Sequence[str],
    passed: Sequence[str],
    make: Make,
    turn: Turn,
    names: Names,
    table: Callable[[dict[str, Any]], str],
) -> None:
    """`passed` are the options that each turn is told, too, beside its data and how wide they are."""
    parser.add_argument("--directory", help="where data lie; by default $TMPDIR")
    parser.add_argument("--turn", choices=contenders, help="one turn of one of them, told as JSON")
    parser.add_argument("--data", type=Path, help="of that turn")
    parser.add_argument("--wide", type=int, help="of that turn")
    args = parser.parse_args()
    if args.turn:
        with _quiet_stdout():
            found = turn(args.turn, args)
        print(json.dumps(found))
        return
    sizes = [(int(rows), int(wide)) for rows, _, wide in (size.partition("x") for size in args.sizes.split(","))]
    who = names([name for name in args.against.split(",") if name])
    figures: dict[str, Any] = {}
    for rows, wide in sizes:
        size = f"{rows} x {wide}"
        with tempfile.TemporaryDirectory(prefix="zkd-bench-", dir=args.directory) as directory:
            make(rows, wide, Path(directory))
            own = ["--data", directory, "--wide", str(wide)]
            own += [word for option in passed for word in (f"--{option}", str(getattr(args, option)))]
            for number in range(args.turns):
                for name in who if number % 2 == 0 else reversed(who):
                    for what, values in _turn(benchmark, name, own).items():
                        figures.setdefault(size, {}).setdefault(name, {}).setdefault(what, []).extend(values)
                    print(f"{size}, turn {number + 1} of {args.turns}: {name}", file=sys.stderr)
    save(benchmark, {"circumstances": circumstances(f"python -m benchmarks.{benchmark}"), "figures": figures},
         table(figures))  # fmt: skip


def _turn(benchmark: str, name: str, options: Sequence[str]) -> Figures:
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--turn", name, *options]
    told = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, text=True, env={**os.environ, **ONE_THREAD}
    ).stdout
    figures: Figures = json.loads(told.splitlines()[-1])
    return figures


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """What contenders print goes to stderr: the last line of stdout is ours."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
