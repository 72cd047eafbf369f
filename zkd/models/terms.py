"""A job's terms in the words of models: its plan, its model, its context."""

from __future__ import annotations

from typing import Final

import msgspec

from zkd.core.terms import Chosen
from zkd.jobs import Job
from zkd.models.exchange import Context, Split
from zkd.models.model import Model
from zkd.models.plan import STOCHASTIC, Plan, Privacy, default_optimizer
from zkd.models.rows import Scaler
from zkd.models.survey import Findings


def plan_of(job: Job, model: Model) -> Plan:
    """The job's terms as a plan for this model. Raises `BadTraining` for what does not go together."""
    privacy = None if job.privacy is None else Privacy(**msgspec.structs.asdict(job.privacy))
    optimizer = job.optimizer or default_optimizer(model)
    return Plan(
        model,
        optimizer,
        max_rounds=job.max_rounds or (BOUND_BY_EPOCHS if optimizer in STOCHASTIC else ROUNDS_MAX),
        l2=tuple(job.l2) if isinstance(job.l2, list) else job.l2,
        privacy=privacy,
        **{name: getattr(job, name) for name in OF_PLAN},
    )


ROUNDS_MAX: Final = 1000
BOUND_BY_EPOCHS: Final = 2**53  # a round is a mini-batch, of which an epoch may have thousands
OF_PLAN: Final = (
    "l1", "tol", "patience", "jitter", "learning_rate", "epochs", "local_epochs", "batch_rows", "seed"
)  # fmt: skip


def model_of(job: Job, found: Findings) -> Model:
    return found.model(job.model, hidden=job.hidden, intercept=job.intercept)


def context_of(job: Job, chosen: Chosen, found: Findings | None, scaler: Scaler | None) -> Context:
    """What counters have to know of this job, as far as it is known. `scaler` is known after the spread."""
    split = None
    if job.validation is not None:
        split = Split(job.validation.share, job.validation.seed, chosen.key)
    return Context(
        job.model,
        tuple(name for name, _ in chosen.features),
        width_of(chosen),
        chosen.target,
        chosen.weight,
        chosen.tells_classes,
        split,
        found,
        None if scaler is None or found is None else model_of(job, found),
        scaler if job.standardise else None,
    )


def width_of(chosen: Chosen) -> int:
    """How many single features there are."""
    return sum(width or 1 for _, width in chosen.features)


def terms_of(job: Job) -> Job:
    """The job without what may change while it runs."""
    return msgspec.structs.replace(job, desired="run")
