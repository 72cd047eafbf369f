"""What came of a training job, in words and as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zkd.cli.output import write_rows

if TYPE_CHECKING:
    from zkd.client.model import Model
    from zkd.jobs import Summary
    from zkd.models.trained import Coefficient

SHOWN_MAX = 20  # coefficients
INTERCEPT = "(intercept)"

_REASONS = {
    "tolerance": "the optimum was reached within the tolerance",
    "stalled": "the loss did not change any more: as good as floats allow, or as slow as this optimizer can be",
    "precision": "no step lowered the loss any more: as good as floats allow",
    "patience": "the held-out loss did not get better; the best round is restored",
    "epochs": "all epochs are done",
    "max_rounds": "ended there, before the optimum",
    "privacy": "the privacy budget is used up",
    "diverged": "the loss became infinite: a smaller learning rate may help",
    "cancelled": "somebody stopped it",
    "stopped": "somebody stopped it",
}


def ending_lines(summary: Summary) -> list[str]:
    """Why it ended, how near the optimum that is, and what to know before it is used."""
    why = _REASONS.get(summary.reason, "")
    lines = [f"{summary.reason}{f': {why}' if why else ''}, after {_rounds(summary.rounds)}"]
    numbers = {
        "F": summary.total,
        "loss": summary.loss,
        "held-out loss": summary.held_loss,
        "|gradient|": summary.slope,
        "l2": summary.l2,
        "epsilon": summary.epsilon,
    }
    known = [f"{name} {value:.8g}" for name, value in numbers.items() if value is not None]
    if known:
        lines.append("   ".join(known))
    if summary.is_approximate:
        lines.append("approximate: these are not the weights of the optimum")
    elif summary.bound is not None:
        lines.append(f"certificate: |v - v*| <= {summary.bound:.2g}, of the standardised weights from the optimum's")
    return [*lines, *(f"note: {note}" for note in summary.notes)]


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


def write_model(model: Model, *, is_whole: bool = False) -> None:
    """The coefficients, or of a net what its features matter."""
    rows = [_coefficient(line) for line in model.coefficients()]
    # Of softmax the lines of all classes together: those that say most come first.
    features = sorted((row for row in rows if row["feature"] != INTERCEPT), key=lambda row: -abs(row["standardised"]))
    shown = features if is_whole else features[:SHOWN_MAX]
    shown += [row for row in rows if row["feature"] == INTERCEPT]
    if rows:
        of = {row["class"] for row in rows}
        is_of_one = len(of) == 1 and None not in of  # of two classes, the second
        click.echo(f"\n{model.target} = {of.pop()}:" if is_of_one else "")
        write_rows(_told(shown, model), "table")
        if len(features) > SHOWN_MAX and not is_whole:
            click.echo(f"{len(features) - SHOWN_MAX} more have smaller standardised coefficients; --all shows them")
        if all(row["std_error"] is None for row in rows):
            click.echo(_without_errors(model))
    rises = list(model.importance.items())
    if rises:
        click.echo()
        some = rises if is_whole else rises[:SHOWN_MAX]
        write_rows([{"feature": name, "loss_rises_by": f"{rise:.4g}"} for name, rise in some], "table")


def model_fields(model: Model) -> dict[str, Any]:
    """For programs."""
    import msgspec

    return {
        "dataset": model.dataset,
        "target": model.target,
        "classes": list(model.classes),
        "rows": model.trained.rows,
        "held_rows": model.trained.held_rows,
        "job": msgspec.to_builtins(model.job),
        "summary": msgspec.to_builtins(model.summary),
        "coefficients": [line._asdict() for line in model.coefficients()],
        "importance": dict(model.importance),
        "constant": [model.names[place] for place in model.trained.constant],
    }


def _coefficient(line: Coefficient) -> dict[str, Any]:
    is_of_one_more = line.name != INTERCEPT  # of which there is no one more
    return {
        "class": line.of,
        "feature": line.name,
        "coefficient": line.raw,
        "std_error": line.error,
        "standardised": line.standard,
        "ratio": line.ratio if is_of_one_more else None,
        "low": line.ratio_low if is_of_one_more else None,
        "high": line.ratio_high if is_of_one_more else None,
    }


def _told(rows: list[dict[str, Any]], model: Model) -> list[dict[str, Any]]:
    """As text of even precision; without columns that say nothing."""
    known = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    if len({row["class"] for row in rows}) == 1:
        known = [name for name in known if name != "class"]
    limits = f"{model.job.confidence:.3g}".removeprefix("0")
    headings = {
        "ratio": "rate_ratio" if model.job.model == "poisson" else "odds_ratio",
        "low": f"{limits}_low",
        "high": f"{limits}_high",
    }
    return [{headings.get(name, name): _cell(row[name]) for name in known} for row in rows]


def _cell(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else value


def _without_errors(model: Model) -> str:
    if model.job.l1 > 0 or model.job.model == "svm":
        return f"no standard errors: they mean nothing for {'l1' if model.job.l1 > 0 else 'svm'}"
    return "no standard errors: they take the Hessian, which was not asked for or is too large"
