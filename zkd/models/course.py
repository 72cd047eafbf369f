"""The whole of a training job as a step machine: what all parts are to be asked next, and what came of it.

    survey -> spread -> rounds -> [hessian] -> [importance] -> over

    course = begin(job, manifest)
    while not course.is_over:
        course = course.told(answers to (course.question, course.context), over all parts)
    course.trained().write()

The survey and the spread see what is in the data, the rounds train, a Hessian at the end tells standard errors, and
shuffled features what they matter. No clock, no I/O: the same answers lead to the same bits, in whatever pieces they
come, so a course can be packed at any time and go on elsewhere (`resuming`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

import numpy as np

from zkd.arrays.tensors import Bytes
from zkd.core.terms import Chosen, choose
from zkd.errors import BadAnswers, BadTraining, NoOptimum
from zkd.jobs import Job, Phase, Progress, Round, Summary
from zkd.manifests import Manifest
from zkd.models import story
from zkd.models.advice import advice
from zkd.models.answers import Answer, AnswerKind, answers_in
from zkd.models.exchange import Spreads, Survey, context_id, context_out, question_out
from zkd.models.explain import Explanation, explain
from zkd.models.importance import Importance, importance
from zkd.models.partials import HEAD, HESSIAN_MAX, Ask, Totals, merge, totals
from zkd.models.plan import Plan
from zkd.models.remarks import Straddled, remarks, sampling, straddled
from zkd.models.rows import Scaler
from zkd.models.spread import Suspicion, merge_spreads, scaler_of, suspicions
from zkd.models.story import Counts
from zkd.models.survey import Findings, conclude, merge_glances
from zkd.models.terms import context_of, model_of, plan_of, terms_of
from zkd.models.trained import Trained, told
from zkd.models.training import Run, start

Step: TypeAlias = Literal["survey", "spread", "rounds", "hessian", "importance", "over"]

VERSION: Final = 1
SAMPLED_ROWS: Final = 1 << 16  # whose features are compared across a split by key; 8 bytes each are sent
PHASES: Final[dict[Step, Phase]] = {
    "survey": "preparing",
    "spread": "preparing",
    "rounds": "training",
    "hessian": "explaining",
    "importance": "explaining",
    "over": "done",
}
KINDS: Final[dict[Step, AnswerKind]] = {
    "survey": "survey",
    "spread": "spread",
    "rounds": "round",
    "hessian": "round",
    "importance": "importance",
}


@dataclass(frozen=True, slots=True)
class Course:
    """`context` is what the question is about; it changes a few times a job. What is None is not known yet."""

    job: Job
    manifest: Manifest
    chosen: Chosen
    step: Step
    context: bytes
    found: Findings | None = None
    scaler: Scaler | None = None  # of the training rows, also where features are not standardised
    constant: tuple[int, ...] = ()
    suspicions: tuple[Suspicion, ...] = ()
    straddled: Straddled | None = None
    run: Run | None = None
    explanation: Explanation | None = None
    importance: Importance | None = None
    notes: tuple[str, ...] = ()  # of explaining
    name: str = field(default="")  # of the context

    # --- what is asked --------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        return self.step == "over"

    @property
    def phase(self) -> Phase:
        return PHASES[self.step]

    @property
    def question(self) -> bytes:
        """What to ask every part, in this context."""
        if self.step == "survey":
            return question_out(self.name, Survey())
        if self.step == "spread":
            return question_out(self.name, Spreads(_sampled(self)))
        assert self.run is not None
        if self.step == "rounds":
            ask = self.run.ask
            assert ask is not None
            return question_out(self.name, ask)
        assert self.step != "over", "nothing is asked any more"
        w = self.run.outcome.w
        if self.step == "hessian":
            return question_out(self.name, Ask(w, "hessian"))
        return question_out(self.name, (w, self.job.seed))

    # --- what is answered -----------------------------------------------------------------------------

    def told(self, answers: Sequence[Bytes]) -> Course:
        """The course after the answers to its question, each of some parts, all of them once.

        Raises `BadAnswers` for others: then this course stands, and can be answered again. Raises `BadTraining`, and
        `NoOptimum`, with why there can be no model: then the job has failed.
        """
        assert self.step != "over"
        about = context_of(self.job, self.chosen, self.found, self.scaler)
        read = answers_in(answers, KINDS[self.step], self.manifest.parts, about)
        if self.step == "survey":
            seen = merge_glances(answer.glance for answer in read if answer.glance is not None)
            return _surveyed(self, conclude(self.job.model, seen, self.chosen.names))
        if self.step == "spread":
            return _spread(self, read)
        assert self.run is not None
        if self.step == "importance":
            try:
                shuffled = importance(answer.losses for answer in read if answer.losses is not None)
            except BadTraining as problem:
                return replace(self, step="over", notes=(*self.notes, str(problem)))
            return replace(self, step="over", importance=shuffled)
        try:
            merged = merge(answer.partial for answer in read if answer.partial is not None)
        except ValueError as problem:
            raise BadAnswers(f"answers of one round do not go together: {problem}") from None
        wants = "hessian" if self.step == "hessian" or self.run.ask is None else self.run.ask.wants
        if (wants != "loss" and merged.sums.tops.size == HEAD) or (wants == "hessian" and merged.hessian is None):
            raise BadAnswers(f"expected sums up to the {wants}, got fewer")
        if self.step == "hessian":
            return _explained(self, totals(self.run.plan.model, merged))
        run = self.run.told(merged)
        return replace(self, run=run) if run.ask is not None else ended(self, run)

    def stop(self, reason: str) -> Course:
        """Ends the rounds now, and explains what there is; while explaining, ends that. Again: nothing more.

        Raises `BadTraining` before round one, when there is nothing that could be a model.
        """
        if self.step == "over":
            return self
        if self.run is None:
            raise BadTraining(f"{reason} before round one: there is no model")
        if self.step == "rounds":
            return ended(self, self.run.stop(reason))
        if self.run.reason == reason:  # it was stopped before, perhaps under another coordinator
            return self
        left_out = "standard errors and importance" if self.step == "hessian" else "importance"
        after = self if self.explanation is not None else replace(self, explanation=_coefficients(self))
        return replace(after, step="over", notes=(*self.notes, f"{reason} before {left_out} could be told"))

    # --- what is told people --------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """Rounds of training that were answered."""
        return 0 if self.run is None else self.run.number

    def rounds_after(self, number: int) -> tuple[Round, ...]:
        """The rounds over all rows with larger numbers than this."""
        history = () if self.run is None else self.run.history
        kept = []
        for entry in reversed(history):
            if entry.number <= number:
                break
            kept.append(_round(entry))
        return tuple(reversed(kept))

    @property
    def progress(self) -> Progress:
        last = self.run.history[-1] if self.run is not None and self.run.history else None
        if last is None:
            return Progress(self.number)
        return Progress(self.number, told(last.total), told(last.loss), told(last.held_loss), told(last.slope))

    @property
    def summary(self) -> Summary:
        """Of a course whose rounds are over."""
        assert self.run is not None
        end = self.run.outcome
        return Summary(
            end.reason,
            end.rounds,
            told(end.total),
            told(end.loss),
            told(end.held_loss),
            told(end.slope),
            end.bound,
            told(end.l2),
            end.epsilon,
            end.is_approximate,
            self.remarks,
        )

    @property
    def remarks(self) -> list[str]:
        """What people should know of the data, of the run, and of what could not be explained."""
        assert self.run is not None
        assert self.found is not None
        classes, names, target = len(self.found.classes), self.chosen.names, self.chosen.target
        known = remarks(names, target, self.constant, self.suspicions, classes, self.straddled)
        if self.job.privacy is not None:
            known.append(f"private only to those who do not know the seed, {self.job.seed}, which stands in the job")
        run, outcome = self.run, self.run.outcome
        return [*known, *outcome.notes, *advice(run.plan, outcome, run.history), *self.notes]

    def trained(self) -> Trained:
        """What came of a course that is over."""
        assert self.step == "over"
        assert self.run is not None
        assert self.found is not None
        assert self.scaler is not None
        return Trained(
            self.run.plan.model,
            self.run.outcome.w,
            self.scaler if self.job.standardise else None,
            self.found.mean,
            self.found.classes,
            self.chosen.features,
            self.chosen.target,
            f"{self.manifest.name}@{self.manifest.version}",
            terms_of(self.job),
            self.summary,
            self.found.training_rows,
            self.found.rows - self.found.training_rows,
            self.found.weight,
            self.rounds_after(-1),
            self.run.outcome.stages,
            self.constant,
            self.suspicions,
            self.explanation,
            self.importance,
        )


def begin(job: Job, manifest: Manifest) -> Course:
    """The course before its first question. Raises `BadTraining` for columns that are not there or do not fit."""
    chosen = choose(job, manifest)
    return in_context(Course(job, manifest, chosen, "survey", b""))


# --- from step to step --------------------------------------------------------------------------------


def _surveyed(course: Course, found: Findings) -> Course:
    plan_of(course.job, model_of(course.job, found))  # whatever does not go together is said as soon as it can be
    return in_context(replace(course, step="spread", found=found))


def _spread(course: Course, read: Sequence[Answer]) -> Course:
    found = course.found
    assert found is not None
    seen = merge_spreads(answer.spread for answer in read if answer.spread is not None)
    scaler, constant = scaler_of(seen, found)
    each, samples = _sampled(course), [answer.straddle for answer in read if answer.straddle is not None]
    both = None if each is None or not samples else straddled(samples, each)
    course = replace(course, scaler=scaler, constant=constant, suspicions=suspicions(seen, found), straddled=both)
    return in_context(replace(course, step="rounds", run=start(*_start(course, found))))


def ended(course: Course, run: Run) -> Course:
    """After the last round: what is to be explained by further questions, and what can be at once."""
    course = replace(course, run=run)
    plan, w = run.plan, run.outcome.w
    if not np.all(np.isfinite(w)):
        return replace(course, step="over")
    model = plan.model
    has_errors = model.is_convex and model.kind != "svm" and plan.l1 == 0 and plan.privacy is None
    if has_errors and model.size <= HESSIAN_MAX:
        return replace(course, step="hessian")
    return _shuffled(replace(course, explanation=_coefficients(course)))


def _explained(course: Course, sums: Totals) -> Course:
    run = course.run
    assert run is not None
    notes = course.notes
    try:
        told = _coefficients(course, sums)
    except NoOptimum as problem:
        told = _coefficients(course)
        notes = (*notes, f"standard errors: there are none, {problem}")
    else:
        if run.outcome.is_approximate:
            notes = (
                *notes,
                "standard errors: those of an optimum, which these parameters are not",
            )
    return _shuffled(replace(course, explanation=told, notes=notes))


def _shuffled(course: Course) -> Course:
    return replace(course, step="importance" if course.job.importance else "over")


def _coefficients(course: Course, sums: Totals | None = None) -> Explanation | None:
    run = course.run
    assert run is not None
    model, end = run.plan.model, run.outcome
    if not model.is_convex:
        return None
    return explain(
        model,
        end.w,
        course.scaler if course.job.standardise else None,
        l2=end.l2,
        l1=run.plan.l1,
        hessian=None if sums is None else sums.hessian,
        loss=np.nan if sums is None else sums.loss,
        weight=np.nan if sums is None else sums.weight,
        confidence=course.job.confidence,
    )


# --- what a course is made of -------------------------------------------------------------------------


def _sampled(course: Course) -> int | None:
    """How large a sample shows rows that are on both sides of the split; None where rows are split by features."""
    return None if course.chosen.key is None or course.found is None else sampling(course.found.rows)


def _start(course: Course, found: Findings) -> tuple[Plan, Counts]:
    held = found.rows - found.training_rows
    counts = Counts(found.training_rows, found.weight, found.target, course.chosen.names, held)
    return plan_of(course.job, model_of(course.job, found)), counts


def in_context(course: Course) -> Course:
    context = context_out(context_of(course.job, course.chosen, course.found, course.scaler))
    return replace(course, context=context, name=context_id(context))


def _round(entry: story.Round) -> Round:
    return Round(
        entry.number,
        entry.stage,
        told(entry.total),
        told(entry.loss),
        told(entry.held_loss),
        told(entry.slope),
        entry.is_accepted,
    )
