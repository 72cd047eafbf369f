"""The options of every command that makes a task out of KERNEL and ARGS: run, submit, schedule.

Each names a field of the task; what is not given is left to the cluster.
"""

from __future__ import annotations

import re
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import dataset_names
from zkd.cli.values import read_argument, read_labels, read_named

if TYPE_CHECKING:
    from collections.abc import Callable

# A number as JSON has it, and its sign, which click takes for that of an option.
_NEGATIVE = re.compile(r"-(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


class NumbersCommand(click.Command):
    """A command that takes negative numbers: with a blank before it, one is still JSON and no option to click."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f" {arg}" if _NEGATIVE.fullmatch(arg) else arg for arg in args])


# parameter -> (flags, field of the task, what click wants to know)
_OPTIONS: dict[str, tuple[tuple[str, ...], str, dict[str, Any]]] = {
    "task_timeout": (
        ("--task-timeout",),
        "timeout_s",
        {"type": float, "metavar": "S", "help": "Stop an attempt that runs longer."},
    ),
    "retries": (
        ("--retries",),
        "retries",
        {"type": int, "metavar": "N", "help": "Further attempts after an error, a crash or a timeout."},
    ),
    "priority": (("--priority",), "priority", {"type": int, "metavar": "N", "help": "Higher goes first."}),
    "submitter": (
        ("--submitter",),
        "submitter",
        {"metavar": "NAME", "help": "Whose task it is: submitters take turns."},
    ),
    "after": (
        ("--after", "after"),
        "after",
        {"multiple": True, "metavar": "ID", "help": "Not before this task is done."},
    ),
    "delay": (("--delay",), "delay_s", {"type": float, "metavar": "S", "help": "Not before so many seconds."}),
    "not_after": (
        ("--not-after",),
        "not_after_s",
        {"type": float, "metavar": "S", "help": "Worthless after so many seconds: it expires."},
    ),
    "labels": (
        ("--label", "labels"),
        "labels",
        {"multiple": True, "metavar": "NAME=VALUE", "help": "Only on nodes that carry this."},
    ),
    "node": (("--node",), "node", {"metavar": "NODE", "help": "Only on this node."}),
    "prefer": (
        ("--prefer", "prefer"),
        "prefer",
        {"multiple": True, "metavar": "NODE", "help": "Rather on this node, which has its data."},
    ),
    "slots": (("--slots",), "slots", {"type": int, "metavar": "N", "help": "Takes so many slots of its node."}),
    "memory": (("--memory",), "memory", {"type": int, "metavar": "BYTES", "help": "An attempt may allocate so much."}),
    "speculative": (
        ("--speculative",),
        "speculative",
        {"is_flag": True, "help": "A second copy may run beside one that is late."},
    ),
    "dataset": (
        ("--dataset",),
        "dataset",
        {
            "metavar": "NAME",
            "shell_complete": dataset_names,
            "help": "On each part of NAME or NAME@VERSION, where it is; the values are a list.",
        },
    ),
    "columns": (("--columns",), "columns", {"metavar": "A,B", "help": "Of the dataset: arrays that come before ARGS."}),
    "parts": (
        ("--part", "parts"),
        "parts",
        {"type": int, "multiple": True, "metavar": "N", "help": "Of the dataset: only this part; may be given again."},
    ),
    "combine": (
        ("--combine",),
        "combine",
        {"metavar": "KERNEL", "help": "Make one value of the list of all parts' values."},
    ),
    "ttl": (("--ttl",), "ttl_s", {"type": float, "metavar": "S", "help": "Keep the result for so long."}),
}


def _field(name: str, value: Any) -> Any:
    if name == "labels":
        return read_labels(value)
    if name == "columns":
        return [column.strip() for column in value.split(",")]
    return list(value) if isinstance(value, tuple) else value


def task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options, for a command with ARGS; it is given `args`, `kwargs` and `options`, read before it connects."""

    @wraps(command)
    def collected(*positional: Any, **given: Any) -> Any:
        options: dict[str, Any] = {}
        for name, (_, field, _) in _OPTIONS.items():
            value = given.pop(name)
            if value is not None and value != () and value is not False:
                options[field] = _field(name, value)
        given["args"] = [read_argument(arg) for arg in given["args"]]
        given["kwargs"] = read_named(given.pop("named"))
        return command(*positional, options=options, **given)

    decorated: Any = collected
    for flags, _, wanted in reversed(_OPTIONS.values()):
        decorated = click.option(*flags, default=() if wanted.get("multiple") else None, **wanted)(decorated)
    named = click.option("-k", "named", multiple=True, metavar="NAME=VALUE", help="A named argument.")
    return named(decorated)  # type: ignore[no-any-return]
