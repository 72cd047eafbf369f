"""The options of `zkd train start`. Each names a term of the job; what is not given is left to the nodes."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

# For completion alone: what is there, the record says, and who asks for another one is told the nearest.
MODELS = ("linear", "logistic", "softmax", "poisson", "svm", "mlp")
OPTIMIZERS = ("newton", "lbfgs", "gd", "momentum", "nesterov", "sgd", "adam", "average")
PRIVACY = ("clip", "noise", "delta", "epsilon")


def completing(words: tuple[str, ...]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    return lambda ctx, param, begun: [word for word in words if word.startswith(begun)]


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[float] | float | None:
    """1.5, or a path: 100,10,1."""
    if value is None:
        return None
    try:
        found = [float(each) for each in value.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{value!r}: expected a number, or several with commas: 100,10,1", ctx, param
        ) from None
    return found if len(found) > 1 else found[0]


def _counts(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    try:
        return None if value is None else [int(each) for each in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected whole numbers: 64 or 64,32", ctx, param) from None


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [each.strip() for each in value.split(",")]


def _pairs(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, float] | None:
    """clip=1,noise=1.1,delta=1e-5"""
    if value is None:
        return None
    found = {}
    for pair in value.split(","):
        name, equals, number = pair.partition("=")
        if not equals or name.strip() not in PRIVACY:
            raise click.BadParameter(f"{pair!r}: expected clip=N,noise=N,delta=N and maybe epsilon=N", ctx, param)
        found[name.strip()] = _number(number, ctx, param)
    return found


def _number(text: str, ctx: click.Context, param: click.Parameter) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected a number", ctx, param) from None


# term -> (flags, what click wants to know), as people read them in the help.
_OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "target": (("--target",), {"metavar": "COLUMN", "help": "What to predict; by default the dataset's label."}),
    "features": (
        ("--features",),
        {"metavar": "A,B", "callback": _names, "help": "From these; by default all columns of numbers."},
    ),
    "weight": (("--weight",), {"metavar": "COLUMN", "help": "Of rows."}),
    "l2": (("--l2",), {"metavar": "N[,N]...", "callback": _numbers, "help": "Penalty, 1/C [default: 1]; or a path."}),
    "l1": (("--l1",), {"type": float, "metavar": "N", "help": "Penalty that makes weights 0."}),
    "optimizer": (
        ("--optimizer",),
        {"metavar": "NAME", "shell_complete": completing(OPTIMIZERS), "help": f"One of {', '.join(OPTIMIZERS)}."},
    ),
    "tol": (("--tol",), {"type": float, "metavar": "N", "help": "How near the optimum [default: 1e-8]."}),
    "max_rounds": (("--max-rounds",), {"type": int, "metavar": "N", "help": "At most [default: 1000, or all epochs]."}),
    "validation": (("--validation",), {"type": float, "metavar": "SHARE", "help": "Hold out this share of the rows."}),
    "by": (("--validation-by",), {"type": click.Choice(["key", "features"]), "help": "By the hash of what."}),
    "patience": (("--patience",), {"type": int, "metavar": "N", "help": "Stop N rounds after the best held-out loss."}),
    "hidden": (
        ("--hidden",),
        {"metavar": "N[,N]...", "callback": _counts, "help": "Units of each hidden layer of an mlp."},
    ),
    "tells_classes": (("--classes/--numbers",), {"help": "What an mlp predicts."}),
    "learning_rate": (("--learning-rate",), {"type": float, "metavar": "N", "help": "Of sgd, adam, average."}),
    "epochs": (("--epochs",), {"type": int, "metavar": "N", "help": "Of sgd, adam, average [default: 60]."}),
    "local_epochs": (("--local-epochs",), {"type": int, "metavar": "N", "help": "Of average, in each round."}),
    "batch_rows": (("--batch-rows",), {"type": int, "metavar": "N", "help": "Of sgd, adam, average [default: 128]."}),
    "seed": (("--seed",), {"type": int, "metavar": "N", "help": "Of batches and of a net's first weights."}),
    "intercept": (("--intercept/--no-intercept",), {"help": "[default: with one]"}),
    "standardise": (("--standardise/--as-stored",), {"help": "Features [default: standardised]."}),
    "jitter": (("--jitter",), {"type": float, "metavar": "N", "help": "Go on with this l2 where there is no optimum."}),
    "privacy": (
        ("--privacy",),
        {"metavar": "NAME=N,...", "callback": _pairs, "help": "Private rounds: clip=1,noise=1.1,delta=1e-5."},
    ),
    "importance": (("--importance",), {"is_flag": True, "help": "Shuffle each feature at the end, and see."}),
    "confidence": (("--confidence",), {"type": float, "metavar": "SHARE", "help": "Of limits [default: 0.95]."}),
}


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options; the command is given `terms`, those that were said, over what a file says."""

    @wraps(command)
    def collected(*positional: Any, path: Path | None, **given: Any) -> Any:
        terms = {} if path is None else _from_file(path)
        said = {name: given.pop(name) for name in _OPTIONS}
        by = said.pop("by")
        terms |= {name: value for name, value in said.items() if value is not None and value is not False}
        terms |= {name: False for name in ("intercept", "standardise", "tells_classes") if said[name] is False}
        if by is not None:
            held = terms.get("validation")
            if held is None:
                raise click.UsageError("--validation-by: expected --validation beside it, such as 0.2")
            terms["validation"] = {**(held if isinstance(held, dict) else {"share": held}), "by": by}
        return command(*positional, terms=terms, **given)

    decorated: Any = collected
    for name, (flags, wanted) in reversed(_OPTIONS.items()):
        decorated = click.option(*flags, name, default=None, **wanted)(decorated)
    file = click.option(
        "--file",
        "path",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="A job as JSON, as it stands at jobs/<id>; options given here go before.",
    )
    return file(decorated)  # type: ignore[no-any-return]


def _from_file(path: Path) -> dict[str, Any]:
    from zkd.codec import decode, refuse_duplicate_names
    from zkd.errors import BadRecord

    try:
        text = path.read_bytes()
        found: dict[str, Any] = decode(text, dict[str, Any])
        refuse_duplicate_names(text)
        return found
    except BadRecord as error:
        raise click.UsageError(f"--file {path}: {error}") from None
