"""A training run as a step machine: what every part is to be asked next, and what its answers change.

    run = start(plan, counts)
    while (ask := run.ask) is not None:
        run = run.told(merge(partial(plan.model, ask, rows, scaler, part=n) for n, rows in every part))
    run.outcome

No clock, no I/O; the same answers lead to the same bits, so a run can be packed after any round and go on elsewhere
(`checkpoints`). Why it ended:

    tolerance    |slope| <= tol x l2 for convex models with l2 > 0, so that the weights are within some `tol` of the
                 optimum (`objective.certificate` says what is sure); without l2 the next Newton step is below
                 tol x max(1, |w|)
    stalled      F changed by less than 1e-12 of itself and the slope had no new minimum, many times in a row: as good
                 as floats allow, or as slow as this optimiser can be
    precision    no step along the direction lowers F any more: the same
    patience     the held-out loss did not get better for `patience` rounds; the best round is restored
    epochs, max_rounds, privacy (the budget is used up), diverged (F became infinite or NaN)

Optimisers that see slopes only cannot tell how far the optimum is without a penalty, nor where they stall. There a look
at the Hessian does, and Newton's method goes on from there if it has to (up to 1,024 parameters).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from zkd.errors import BadTraining, NoOptimum
from zkd.models.descent import Descent
from zkd.models.lbfgs import Lbfgs
from zkd.models.model import Matrix, Model, Vector, first_parameters
from zkd.models.newton import Newton, refuse_flat
from zkd.models.objective import Penalty, Point, certificate, point, uncertain_bound
from zkd.models.partials import HESSIAN_MAX, Ask, Partial, Totals, Wants, totals
from zkd.models.picks import Sample
from zkd.models.plan import Plan
from zkd.models.privacy import epsilon_of, noise_vector
from zkd.models.stochastic import Average, Rule, Stochastic
from zkd.models.story import Best, Counts, Outcome, Round, Stage

State: TypeAlias = Newton | Lbfgs | Descent | Stochastic | Average

STALL = 1e-12
STALLS_MAX = 100  # gradients of descent go up and down; L-BFGS has reached the optimum after 30, too
STALLS_OF_NEWTON = 3
AS_GOOD = 1e-9  # of |w|: an optimiser that stopped this near the optimum need not be helped
UNSURE = 1e-6  # a bound of |v - v*| beside |w|: beyond, a run that stopped by itself is called approximate


@dataclass(frozen=True, slots=True)
class Run:
    plan: Plan
    counts: Counts
    state: State
    number: int = 0  # rounds answered
    history: tuple[Round, ...] = ()
    accepted: Point | None = None
    stage: int = 0
    stages: tuple[Stage, ...] = ()
    best: Best | None = None
    waited: int = 0  # accepted rounds since the best
    stalls: int = 0
    least_slope: float = np.inf
    first_hessian: Matrix | None = None
    checked: str = ""  # the reason that awaits a look at the Hessian
    l2_raised: float = 0.0
    notes: tuple[str, ...] = ()
    reason: str = ""

    @property
    def penalty(self) -> Penalty:
        penalty = self.plan.penalty(self.stage)
        return penalty if penalty.l2 >= self.l2_raised else replace(penalty, l2=self.l2_raised)

    @property
    def ask(self) -> Ask | None:
        """What to ask every part; None when the run is over."""
        if self.reason:
            return None
        if self.checked:
            assert self.accepted is not None
            return Ask(self.accepted.w, "hessian")
        state = self.state
        if isinstance(state, Average):
            return Ask(state.at, local=state.local)
        if isinstance(state, Stochastic):
            clip = None if self.plan.privacy is None else self.plan.privacy.clip
            choice = state.choice
            if isinstance(choice, Sample):
                return Ask(state.at, sample=choice, clip=clip)
            return Ask(state.at, batch=choice)
        wants: Wants = "hessian" if self._is_in_doubt and self.first_hessian is None else state.wants
        return Ask(state.at, wants)

    @property
    def _rounds_of_stage(self) -> int:
        return self.number - sum(stage.rounds for stage in self.stages)

    @property
    def _is_in_doubt(self) -> bool:
        """Whether there may be no single optimum, and the optimiser would not notice."""
        penalty = self.penalty
        free = penalty.l2 == 0.0 and penalty.l1 == 0.0
        return free and isinstance(self.state, Lbfgs | Descent) and self.plan.model.is_convex

    def _is_worth_a_look(self, reason: str) -> bool:
        """Whether a last round should tell the Hessian: to see if there is an optimum, or how far it is at most."""
        model, penalty = self.plan.model, self.penalty
        is_blind = isinstance(self.state, Lbfgs | Descent) and model.is_convex and model.size <= HESSIAN_MAX
        is_bound_unsure = model.intercept and penalty.l2 > 0 and penalty.l1 == 0
        is_there = reason in ("tolerance", "stalled", "precision") and self.plan.patience is None
        return (self._is_in_doubt and reason != "diverged") or (is_there and is_blind and is_bound_unsure)

    def told(self, merged: Partial) -> Run:
        """The run after the sums over all parts. Raises `BadTraining`, `NoOptimum`."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is seen and turned back from
            return self._told(merged)

    def _told(self, merged: Partial) -> Run:
        ask = self.ask
        assert ask is not None, self.reason
        sums = totals(self.plan.model, merged)
        if (ask.wants != "loss" and not sums.gradient.size) or (ask.wants == "hessian" and sums.hessian is None):
            raise BadTraining(f"answer: expected sums up to the {ask.wants}, got fewer")
        run = replace(self, number=self.number + 1)
        if ask.batch is not None or ask.sample is not None or ask.local is not None:
            return run._stepped(sums)
        at = point(self.plan.model, self.penalty, ask.w, sums)
        try:
            if self.checked:
                assert sums.hessian is not None
                if self.first_hessian is not None:
                    refuse_flat(self.plan.model, sums.hessian, self.first_hessian, self.counts.names)
                looked = replace(run, accepted=at, checked="")
                return looked._taken_over(at, self.checked) or looked._finished_stage(self.checked)
            is_first = self._is_in_doubt and self.first_hessian is None
            if is_first and sums.hessian is not None and np.isfinite(at.slope):
                refuse_flat(self.plan.model, sums.hessian, sums.hessian, self.counts.names)
                run = replace(run, first_hessian=sums.hessian)
            return run._moved(self.state.told(at), at, sums)
        except NoOptimum as problem:
            return run._jittered(problem)

    def _taken_over(self, at: Point, reason: str) -> Run | None:
        """Newton's method from here on, if the optimiser stopped where the Hessian says that the optimum is not.

        Without a penalty no slope says how far that is: a rare column has little of it wherever its weight is. And
        badly scaled columns stall whoever sees slopes only.
        """
        stops = ("tolerance", "stalled", "precision") if self.penalty.l2 == 0.0 else ("stalled", "precision")
        if reason not in stops:
            return None
        newton = _newton(self.plan, self.counts, self.penalty, at.w)
        newton = replace(newton, first_hessian=self.first_hessian).told(at)
        if newton.error is None or newton.error <= max(self.plan.tol, AS_GOOD):
            return None
        notes = self.notes
        if reason != "tolerance":
            notes = (
                *notes,
                f"{self.plan.optimizer} stopped short of the optimum ({reason}); newton went on from there",
            )
        return replace(self, state=newton, notes=notes, stalls=0, least_slope=np.inf)

    def _stepped(self, sums: Totals) -> Run:
        """After a step of mini-batch or local descent."""
        state = self.state
        assert isinstance(state, Stochastic | Average)
        privacy = self.plan.privacy
        if privacy is not None:
            assert isinstance(state, Stochastic)
            size = self.plan.model.size
            noise = noise_vector(self.plan.seed, state.steps, size, privacy.noise * privacy.clip)
            sums = sums._replace(gradient=sums.gradient + noise)
        state = state.stepped(sums)
        run = replace(self, state=state)
        budget = None if privacy is None else privacy.epsilon
        if budget is not None and not state.stopped and run._epsilon(1) > budget:
            state = replace(state, stopped="privacy")
        if not state.stopped and self._rounds_of_stage >= self.plan.max_rounds:
            state = replace(state, stopped="max_rounds")
        run = replace(run, state=state)
        if not state.stopped:
            return run
        nothing = np.empty(0)
        ended = Point(state.at, np.nan, np.nan, nothing, np.nan)
        return replace(run, accepted=ended)._finished_stage(state.stopped)

    def _moved(self, state: State, at: Point, sums: Totals) -> Run:
        """After a round over all rows."""
        held = sums.held_loss / sums.held_weight if sums.held_weight > 0 else np.nan
        loss = sums.loss / sums.weight if sums.weight > 0 else np.nan
        entry = Round(self.number, self.stage, at.total, at.slope, loss, held, state.is_accepted)
        run = replace(self, state=state, history=(*self.history, entry))
        reason = state.stopped
        if state.is_accepted:
            run = run._accepted(at, held)
            reason = reason or run._reason(at)
        if run.accepted is None:  # not even the first point is finite
            run = replace(run, accepted=at)
        if not reason and run._rounds_of_stage >= run.plan.max_rounds:
            reason = "max_rounds"
        if not reason:
            return run
        if run._is_worth_a_look(reason):
            return replace(run, checked=reason)
        return run._finished_stage(reason)

    def _accepted(self, at: Point, held: float) -> Run:
        before = self.accepted
        stalls = self.stalls
        if before is not None:
            still = abs(at.total - before.total) <= STALL * abs(before.total)
            stalls = stalls + 1 if still and at.slope >= self.least_slope else 0
        best, waited = self.best, self.waited + 1
        if np.isfinite(held) and (best is None or held < best.held_loss):
            best, waited = Best(held, at.w, self.number), 0
        least = min(self.least_slope, at.slope)
        return replace(self, accepted=at, stalls=stalls, least_slope=least, best=best, waited=waited)

    def _reason(self, at: Point) -> str:
        model, plan, penalty = self.plan.model, self.plan, self.penalty
        if model.is_convex:
            if penalty.l2 > 0:
                is_near = at.slope <= plan.tol * penalty.l2
            elif self.state.error is not None:
                is_near = self.state.error <= plan.tol
            else:
                is_near = at.slope <= plan.tol * self.counts.weight
            if is_near:
                return "tolerance"
        most = STALLS_OF_NEWTON if isinstance(self.state, Newton) else STALLS_MAX
        if self.stalls >= most and not isinstance(self.state, Stochastic | Average):
            return "stalled"
        if plan.patience is not None and self.waited >= plan.patience:
            return "patience"
        return ""

    def _finished_stage(self, reason: str, *, is_last: bool = False) -> Run:
        """The end of a penalty of the path; the next one begins where this one ended."""
        at = self.accepted
        assert at is not None
        last = next((entry for entry in reversed(self.history) if entry.is_accepted), None)
        is_known = last is not None and at.gradient.size > 0  # not so in the middle of an epoch
        loss, held = (last.loss, last.held_loss) if last is not None and is_known else (np.nan, np.nan)
        w, bound = at.w, certificate(self.plan.model, self.penalty, at) if is_known else None
        total, slope = at.total, at.slope
        best = self.best if self.plan.patience is not None else None
        is_restored = best is not None and not np.array_equal(best.w, w)
        if best is not None and is_restored:
            kept = next(entry for entry in self.history if entry.number == best.round)
            w, held, loss, total, slope = best.w, best.held_loss, kept.loss, kept.total, kept.slope
            has_bound = self.plan.model.is_convex and self.penalty.l2 > 0
            bound = uncertain_bound(self.penalty, slope) if has_bound else None
        rounds = self._rounds_of_stage
        done = Stage(self.penalty.l2, w, total, slope, loss, held, bound, reason, rounds, is_restored)
        run = replace(self, stages=(*self.stages, done))
        if is_last or self.stage + 1 == len(self.plan.path) or reason == "diverged":
            return replace(run, reason=reason)
        run = replace(run, stage=self.stage + 1, best=None, waited=0, stalls=0, least_slope=np.inf, accepted=None)
        return replace(run, state=_state(run.plan, run.counts, run.penalty, w), first_hessian=None)

    def _jittered(self, problem: NoOptimum) -> Run:
        """Goes on with a tiny penalty, if the plan allows it, and says so."""
        if self.plan.jitter is None or self.l2_raised > 0:
            raise problem
        raised = self.plan.jitter * self.counts.weight
        note = f"l2 was raised from {self.penalty.l2:g} to {raised:g}: {problem}"
        run = replace(self, l2_raised=raised, notes=(*self.notes, note), accepted=None, checked="", stalls=0)
        w = first_parameters(self.plan.model, self.counts.target, seed=self.plan.seed)
        return replace(run, state=_state(run.plan, run.counts, run.penalty, w), least_slope=np.inf)

    def _epsilon(self, ahead: int = 0) -> float:
        """What has been spent of privacy, with `ahead` more rounds."""
        privacy, state = self.plan.privacy, self.state
        assert privacy is not None
        assert isinstance(state, Stochastic)
        return epsilon_of(1.0 / state.batches, privacy.noise, state.steps + ahead, privacy.delta)

    def stop(self, reason: str) -> Run:
        """Ends the run now, where it is: cancelled, out of time."""
        if self.reason:
            return self
        at = self.accepted
        if at is None or isinstance(self.state, Stochastic | Average):  # where F is not known
            at = Point(self.state.at, np.nan, np.nan, np.empty(0), np.nan)
        return replace(self, accepted=at)._finished_stage(reason, is_last=True)

    @property
    def outcome(self) -> Outcome:
        """Of a run that is over: the last stage, or of a path with held-out rows the best."""
        assert self.reason, "the run goes on"
        stages = self.stages
        known = [stage for stage in stages if np.isfinite(stage.held_loss)]
        chosen = min(known, key=lambda stage: stage.held_loss) if len(stages) > 1 and known else stages[-1]
        ended = chosen.reason in ("tolerance", "stalled", "precision") and not chosen.is_restored
        is_sure = chosen.bound is None or chosen.bound <= UNSURE * max(1.0, float(np.linalg.norm(chosen.w)))
        exact = self.plan.model.is_convex and ended and (is_sure or chosen.reason == "tolerance")
        epsilon = None if self.plan.privacy is None else self._epsilon()
        return Outcome(
            chosen.w,
            chosen.l2,
            chosen.total,
            chosen.slope,
            chosen.loss,
            chosen.held_loss,
            chosen.bound,
            chosen.reason,
            self.number,
            not exact,
            epsilon,
            self.notes,
            stages,
        )


def start(plan: Plan, counts: Counts, w: Vector | None = None) -> Run:
    """The run before its first round, from `w` or from where the model starts. Raises `BadTraining`."""
    if counts.rows < 1 or not counts.weight > 0:
        raise BadTraining(f"training rows: expected some, got {counts.rows} rows of weight {counts.weight:g}")
    if plan.patience is not None and counts.held_rows == 0:
        raise BadTraining("patience: there are no held-out rows to see over-fitting by; hold some out, or leave it out")
    if w is None:
        # A private run starts from nothing that the data said.
        target = counts.target if plan.privacy is None else None
        w = first_parameters(plan.model, target, seed=plan.seed)
    plan.model.layers(w)
    if not np.all(np.isfinite(w)):
        raise BadTraining("parameters: expected finite numbers to start from")
    return Run(plan, counts, _state(plan, counts, plan.penalty(0), w))


def _state(plan: Plan, counts: Counts, penalty: Penalty, w: Vector) -> State:
    model: Model = plan.model
    if plan.optimizer == "newton":
        return _newton(plan, counts, penalty, w)
    if plan.optimizer == "lbfgs":
        return Lbfgs(w)
    if plan.optimizer in ("gd", "momentum", "nesterov"):
        return Descent(model, penalty, plan.optimizer, w)
    if plan.optimizer == "average":
        return Average(
            model, penalty, w, counts.weight, plan.rate, plan.epochs, plan.local_epochs, plan.batch_rows, plan.seed
        )
    rule: Rule = "adam" if plan.optimizer == "adam" else "sgd"
    batches = max(1, round(counts.rows / plan.batch_rows))
    rate = None if plan.privacy is None else 1.0 / batches
    return Stochastic(model, penalty, rule, w, counts.weight, plan.rate, plan.epochs, batches, plan.seed, rate)


def _newton(plan: Plan, counts: Counts, penalty: Penalty, w: Vector) -> Newton:
    return Newton(plan.model, penalty, w, counts.names, counts.weight)
