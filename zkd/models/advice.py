"""What to do about a run that ended before it was at its goal, in words: nothing of it changes a bit of the model.

Slopes alone do not tell a slow optimiser from a problem without an optimum, so both are said where both may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from zkd.models.plan import Plan
from zkd.models.story import Outcome, Round

PAYS: Final = 0.01  # epochs, if their second half lowered the loss by more than this of what it was at first
SLOPES: Final = ("gd", "momentum", "nesterov")


def advice(plan: Plan, outcome: Outcome, history: Sequence[Round]) -> list[str]:
    """A line, or none."""
    if outcome.reason == "max_rounds" and plan.model.is_convex and plan.optimizer not in ("sgd", "adam", "average"):
        return [f"max_rounds: the optimum was not reached; {_way_on(plan, outcome.l2)}"]
    if outcome.reason == "epochs":
        losses = [entry.loss for entry in history if entry.stage == len(outcome.stages) - 1]
        if len(losses) > 1 and losses[len(losses) // 2] - losses[-1] > PAYS * abs(losses[0]):
            more = "more `epochs`, a higher `learning_rate` or smaller `batch_rows` may help"
            return [f"epochs: the loss was still falling, {losses[len(losses) // 2]:.4g} to {losses[-1]:.4g}; {more}"]
    return []


def _way_on(plan: Plan, l2: float) -> str:
    """What may help: another optimiser, more rounds, or a penalty."""
    faster = {"newton": "", "lbfgs": "newton takes fewer rounds, "}.get(plan.optimizer, "newton or lbfgs take fewer, ")
    tells_classes = plan.model.kind in ("logistic", "softmax", "svm")
    if l2 == 0.0 and plan.l1 == 0.0 and tells_classes:
        sees = "newton would tell, " if plan.optimizer in SLOPES else ""
        return f"without a penalty there is none if the classes are separable: {sees}an `l2` above 0 makes one"
    return f"{faster}or set a higher `max_rounds`" if faster else "set a higher `max_rounds`"
