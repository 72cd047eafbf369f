"""Whole jobs as courses: the bits of `fit`, interrupted anywhere; what is refused, stopped, noted and explained."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from tests.models.courses import Counters, Table, done, job, numbers, raw_parts, real, table
from zkd.arrays.tensors import pack, unpack
from zkd.errors import BadAnswers, BadRecord, BadTraining, NoOptimum
from zkd.models.binned import add
from zkd.models.course import Course, begin
from zkd.models.exchange import question_out
from zkd.models.explain import explain
from zkd.models.fit import Prepared, fit, prepare
from zkd.models.importance import importance, permuted_losses
from zkd.models.partials import Ask, partial_of, totals
from zkd.models.plan import OPTIMIZERS
from zkd.models.resuming import packed, resume
from zkd.models.split import content_hashes, held_out
from zkd.models.terms import plan_of
from zkd.models.training import Run
from zkd.tables.hashing import hash_column

KINDS = {
    "linear": "diabetes",
    "logistic": "breast_cancer",
    "softmax": "iris",
    "poisson": "diabetes",
    "svm": "breast_cancer",
    "mlp": "wine",
}
SMALL = {"max_rounds": 25, "epochs": 2, "batch_rows": 64}


def fitted(kept: Table, course: Course, masks: list[Any] | None = None) -> tuple[Prepared, Run]:
    """The same job by `fit`, over the same parts in one process."""
    parts = raw_parts(kept, [name for name, _ in course.chosen.features], masks)
    own = course.job
    prepared = prepare(
        own.model,
        parts,
        hidden=own.hidden,
        intercept=own.intercept,
        standardise=own.standardise,
        tells_classes=course.chosen.tells_classes,
        names=course.chosen.names,
    )
    return prepared, fit(prepared, plan_of(own, prepared.model))


def content_masks(kept: Table, course: Course) -> list[Any]:
    split = course.job.validation
    assert split is not None
    return [
        held_out(content_hashes([part[name] for name, _ in course.chosen.features]), split.share, seed=split.seed)
        for part in kept.parts
    ]


def labels_of(model: str) -> list[str] | None:
    return {"softmax": ["setosa", "versicolor", "virginica"], "svm": ["bad", "good"]}.get(model)


# --- the same bits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", KINDS)
def test_a_course_over_split_parts_ends_in_the_bits_of_fit(model: str, optimizer: str) -> None:
    if model == "mlp" and optimizer == "newton":
        return  # refused, and tested as such
    kept = real(KINDS[model], labels=labels_of(model))
    hidden = [6] if model == "mlp" else []
    course = done(
        kept, model=model, optimizer=optimizer, hidden=hidden, validation={"share": 0.2, "by": "features"}, **SMALL
    )
    _, run = fitted(kept, course, content_masks(kept, course))
    assert course.run is not None
    assert course.run.outcome.w.tobytes() == run.outcome.w.tobytes()
    assert repr(course.run.history) == repr(run.history)
    assert repr(course.run.outcome.stages) == repr(run.outcome.stages)


@pytest.mark.parametrize(
    "terms",
    [
        {"model": "softmax", "l2": [10.0, 1.0], "patience": 3, "validation": {"share": 0.25}},
        {"model": "linear", "l2": 0.0, "standardise": False},
        {"model": "logistic", "optimizer": "nesterov", "l1": 0.5, "intercept": False},
        {"model": "logistic", "optimizer": "sgd", "privacy": {"clip": 1.0, "noise": 1.0, "delta": 1e-5}},
        {"model": "poisson", "optimizer": "lbfgs", "l2": 0.0, "jitter": 1e-6},
    ],
)
def test_whatever_shares_out_the_parts_the_model_has_the_same_bytes(terms: dict[str, Any]) -> None:
    kept = real(KINDS[terms["model"]])
    files = set()
    for counters in (1, 3, 8):
        course = begin(job(**terms, **SMALL), kept.manifest)
        files.add(Counters(kept, counters, seed=counters).run(course).trained().write())
    assert len(files) == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_course_that_goes_on_from_a_checkpoint_after_every_question_comes_to_the_same_bytes(optimizer: str) -> None:
    kept = real("breast_cancer", labels=["bad", "good"])
    terms = job("logistic", optimizer=optimizer, importance=True, validation={"share": 0.2}, l2=[5.0, 1.0], **SMALL)
    undisturbed = Counters(kept).run(begin(terms, kept.manifest)).trained().write()
    counters, course = Counters(kept, seed=1), begin(terms, kept.manifest)
    while not course.is_over:
        course = course.told(counters.answers(course))
        again = resume(terms, kept.manifest, packed(course))
        if course.phase == "training":
            assert (again.question, again.context) == (course.question, course.context)
            course = again
        elif course.phase == "preparing":
            assert again.step == "survey"
        else:
            assert counters.run(again).trained().write() == undisturbed
    assert course.trained().write() == undisturbed


# --- checkpoints --------------------------------------------------------------------------------------


def halfway(kept: Table, **terms: Any) -> Course:
    counters, course = Counters(kept), begin(job(**terms), kept.manifest)
    while course.number < 3:
        course = course.told(counters.answers(course))
    return course


def test_a_checkpoint_of_another_job_or_data_set_or_a_spoilt_one_is_refused() -> None:
    kept = real("iris")
    course = halfway(kept, model="softmax", optimizer="lbfgs")
    saved = packed(course)
    for other in (job("softmax", optimizer="lbfgs", l2=2.0), job("softmax", optimizer="lbfgs", seed=1)):
        with pytest.raises(BadRecord, match="another job"):
            resume(other, kept.manifest, saved)
    with pytest.raises(BadRecord, match="another job"):
        resume(course.job, real("iris", parts=16).manifest, saved)
    assert resume(structs.replace(course.job, desired="stop"), kept.manifest, saved).question == course.question
    arrays, _ = unpack(saved)
    for name in arrays:
        with pytest.raises(BadRecord):
            resume(course.job, kept.manifest, pack({key: array for key, array in arrays.items() if key != name}))
    rng = np.random.default_rng(0)
    for _ in range(200):
        spoilt = bytearray(saved)
        spoilt[rng.integers(len(spoilt) * 2 // 3)] ^= 1 << rng.integers(8)
        with suppress(BadRecord):
            resume(course.job, kept.manifest, spoilt)


# --- stop ---------------------------------------------------------------------------------------------


def test_a_job_that_is_stopped_before_round_one_has_no_model() -> None:
    kept = real("iris")
    course = begin(job("softmax"), kept.manifest)
    for _ in range(2):
        with pytest.raises(BadTraining, match="cancelled before round one"):
            course.stop("cancelled")
        course = course.told(Counters(kept).answers(course))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_job_that_is_stopped_in_its_rounds_still_explains_what_there_is(optimizer: str) -> None:
    kept = real("breast_cancer")
    course = halfway(kept, model="logistic", optimizer=optimizer, importance=True, **SMALL).stop("enough")
    assert (course.phase, course.stop("enough")) == ("explaining", course)
    saved = resume(course.job, kept.manifest, packed(course))
    assert saved.stop("enough") is saved
    course = Counters(kept).run(course)
    assert (course.summary.reason, course.summary.is_approximate) == ("enough", True)
    trained = course.trained()
    assert trained.importance is not None
    assert all(line.error is not None for line in trained.table())
    assert Counters(kept).run(saved).trained().write() == trained.write()


def test_a_job_that_is_stopped_while_it_explains_ends_at_once_with_its_model() -> None:
    kept = real("breast_cancer")
    counters, course = Counters(kept), begin(job("logistic", importance=True), kept.manifest)
    ended = []
    while not course.is_over:
        course = course.told(counters.answers(course))
        if course.phase == "explaining":
            ended.append(course.stop("enough"))
    without, with_errors = (stopped.trained() for stopped in ended)
    assert without.w.tobytes() == with_errors.w.tobytes() == course.trained().w.tobytes()
    assert without.table()[0].raw == with_errors.table()[0].raw
    assert (without.table()[0].error is None, with_errors.table()[0].error is None) == (True, False)
    assert "enough before standard errors and importance" in without.summary.notes[-1]
    assert "enough before importance" in with_errors.summary.notes[-1]
    assert course.stop("enough") is course


# --- refusals -----------------------------------------------------------------------------------------


def spoilt(name: str, value: Any, row: int = 13) -> Table:
    columns = numbers()
    columns[name] = columns[name].astype(np.result_type(columns[name], type(value)))
    columns[name][row] = value
    return table(columns)


REFUSED: dict[str, tuple[Table, dict[str, Any], str]] = {
    "NaN in a feature": (spoilt("b", np.nan), {}, r"NaN or infinite in b \(1 rows\)"),
    "an infinite feature": (spoilt("a", -np.inf), {}, "NaN or infinite in a"),
    "no target in a row": (spoilt("y", np.nan), {}, "target: NaN, infinite or missing in 1 of 60 rows"),
    "labels that are fractions": (spoilt("y", 0.5), {}, "expected labels, got fractions"),
    "three labels": (spoilt("y", 7), {}, "logistic tells 2 classes, got 3: 0, 1, 7"),
    "one class": (table(numbers() | {"y": np.zeros(60, int)}), {}, "all 60 rows have the one label 0"),
    "half a letter": (table(numbers() | {"y": np.array(["a", "\ud800"] * 30)}), {}, "no text"),
    "negative counts": (spoilt("y", -1), {"model": "poisson"}, "the least is -1"),
    "one value": (table(numbers() | {"y": np.full(60, 2.5)}), {"model": "linear"}, "the one value 2.5"),
    "a negative weight": (table(numbers() | {"w": np.full(60, -1.0)}), {"weight": "w"}, "none below 0"),
    "no weight at all": (table(numbers() | {"w": np.zeros(60)}), {"weight": "w"}, "expected some above 0"),
    "no row left": (table(numbers(2)), {"validation": {"share": 0.999999}}, "all 2 are held out"),
    "patience without": (table(numbers()), {"patience": 3}, "set `validation`"),
    "patience in vain": (
        table(numbers()), {"patience": 3, "validation": {"share": 1e-9}}, "there are no held-out rows"
    ),
    "newton for a net": (table(numbers()), {"model": "mlp", "hidden": [3], "optimizer": "newton"}, "use adam"),
    "l1 without a step": (table(numbers()), {"optimizer": "lbfgs", "l1": 1.0}, "no proximal step"),
    "a net without layers": (table(numbers()), {"model": "mlp"}, "1 to 3 hidden layers"),
    "no label": (table(numbers(), label=None), {}, "so say which column to predict: a, b, y"),
    "another target": (table(numbers()), {"target": "z"}, "has no column 'z'; it has a, b, y"),
    "a slip": (table(numbers() | {"income": np.zeros(60)}), {"target": "incom"}, "did you mean 'income'"),
    "the target as feature": (table(numbers()), {"features": ["a", "y"]}, "y is the target"),
    "text as feature": (table(numbers() | {"t": np.array(["x"] * 60)}), {"features": ["t"]}, "encode it as numbers"),
    "no features": (table({"t": np.array(["x"] * 60), "y": np.arange(60)}), {}, "no column of numbers to train on"),
    "a matrix a row": (table(numbers() | {"m": np.zeros((60, 2, 2))}), {"features": ["m"]}, r"shape \(2, 2\)"),
    "a vector as target": (table(numbers() | {"y": np.zeros((60, 2))}), {}, r"\(2,\) values a row"),
    "text to be fitted": (table(numbers() | {"y": np.array(["x"] * 60)}), {"model": "linear"}, "y is text"),
    "no key": (table(numbers()), {"validation": {"share": 0.2, "by": "key"}}, "has no key"),
    "no rows": (table({name: array[:0] for name, array in numbers().items()}), {}, "has no rows"),
    "weights in private": (
        table(numbers() | {"w": np.ones(60)}),
        {"weight": "w", "optimizer": "sgd", "privacy": {"clip": 1.0, "noise": 1.0, "delta": 1e-5}},
        "stretch what privacy clips",
    ),
    "importance in private": (
        table(numbers()),
        {"importance": True, "optimizer": "sgd", "privacy": {"clip": 1.0, "noise": 1.0, "delta": 1e-5}},
        "looks at rows again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_in_words_before_round_one(name: str) -> None:
    kept, terms, words = REFUSED[name]
    counters = Counters(kept)
    with pytest.raises(BadTraining, match=words):
        counters.run(begin(job(**({"model": "logistic"} | terms)), kept.manifest))
    assert counters.questions <= 2  # the survey and the spread


def test_collinear_columns_and_separable_classes_are_refused_by_name_or_held_by_a_jitter() -> None:
    columns = numbers()
    columns["c"] = columns["a"] - 2 * columns["b"]
    with pytest.raises(NoOptimum, match="a, b, c make up one another"):
        done(table(columns), model="logistic", l2=0.0)
    summary = done(table(columns), model="logistic", l2=0.0, jitter=1e-6).summary
    assert any("l2 was raised" in note for note in summary.notes)
    apart = table(numbers() | {"y": (numbers()["a"] > 0).astype(int)})
    with pytest.raises(NoOptimum, match="separable by a"):
        done(apart, model="logistic", l2=0.0, max_rounds=100)


# --- what is noted and explained ----------------------------------------------------------------------


def test_constant_and_suspicious_features_are_noted_by_name() -> None:
    columns = numbers(200) | {"still": np.full(200, 3.0)}
    columns["leak"] = np.stack([columns["a"], columns["y"] + 0.01 * columns["b"]], axis=1)
    notes = done(table(columns), model="logistic").summary.notes
    assert notes[0] == "constant among training rows: still"
    assert "about y by itself, did it leak? leak[1] (area under the curve 1 for 1)" in notes[1]


def test_features_are_looked_at_for_leaks_however_many_there_are_or_it_is_said_that_they_were_not() -> None:
    rng = np.random.default_rng(0)
    columns = {"x": rng.standard_normal((60, 17_000)), "y": np.arange(60) % 2}
    columns["x"][:, 16_999] = columns["y"] * 7.0
    noted = done(table(columns, parts=2), model="logistic", optimizer="gd", max_rounds=1).summary.notes
    assert "did it leak? x[16999] (correlation 1)" in noted[0]
    many = table(numbers() | {"y": np.arange(60) % 30})
    assert "too many classes and features" in done(many, model="softmax", max_rounds=1).summary.notes[0]


def test_rows_on_both_sides_of_a_split_by_key_are_counted() -> None:
    columns = numbers(400)
    columns["id"] = np.arange(400)
    for name in ("a", "b"):
        columns[name][200:] = columns[name][:200]  # everything was written down twice
    course = done(table(columns, key="id"), model="logistic", validation={"share": 0.25})
    mask = held_out_by_key(course)
    x = np.stack([columns["a"], columns["b"]], axis=1)[:, 0]
    twice = int(np.count_nonzero(np.isin(x[mask], x[~mask])))
    assert course.straddled is not None
    assert (course.straddled.rows, course.straddled.of, course.straddled.each) == (twice, int(mask.sum()), 1)
    assert f"{twice} of {int(mask.sum())} held-out rows have the very features" in course.summary.notes[0]
    by_features = done(table(columns, key="id"), model="logistic", validation={"share": 0.25, "by": "features"})
    assert by_features.straddled is None


def held_out_by_key(course: Course) -> Any:
    split = course.job.validation
    assert split is not None
    return held_out(hash_column(np.arange(400)), split.share, seed=split.seed)


@pytest.mark.parametrize("standardise", [True, False])
def test_standard_errors_and_importance_are_those_of_all_rows(standardise: bool) -> None:
    kept = real("breast_cancer")
    terms = {"importance": True, "seed": 5, "confidence": 0.8, "standardise": standardise, "max_rounds": 20}
    course = done(kept, model="logistic", validation={"share": 0.2, "by": "features"}, **terms)
    prepared, run = fitted(kept, course, content_masks(kept, course))
    w = run.outcome.w
    sums = totals(
        prepared.model,
        partial_of(prepared.model, Ask(w, "hessian"), enumerate(prepared.parts), prepared.scaler),
    )
    errors = {"hessian": sums.hessian, "loss": sums.loss, "weight": sums.weight}
    expected = explain(prepared.model, w, prepared.scaler, l2=1.0, confidence=0.8, **errors)
    trained = course.trained()
    assert trained.explanation is not None
    assert repr(trained.explanation) == repr(expected)
    assert all((line.raw == line.standard) is not standardise for line in trained.table()[:-1])
    shuffled = importance(
        [
            add([permuted_losses(prepared.model, w, rows, prepared.scaler, part=number, seed=5)])
            for number, rows in enumerate(prepared.parts)
        ]
    )
    assert trained.importance is not None
    assert trained.importance.rise.tobytes() == shuffled.rise.tobytes()


def test_a_run_that_did_not_end_at_the_optimum_says_so_and_what_may_help() -> None:
    notes = done(real("breast_cancer"), model="logistic", optimizer="lbfgs", max_rounds=3).summary.notes
    assert notes == [
        "max_rounds: the optimum was not reached; newton takes fewer rounds, or set a higher `max_rounds`",
        "standard errors: those of an optimum, which these parameters are not",
    ]


@pytest.mark.parametrize("optimizer", ["gd", "nesterov", "momentum"])
def test_who_sees_slopes_only_says_that_there_may_be_no_optimum(optimizer: str) -> None:
    kept = real("breast_cancer")  # separable, which 30 rounds of descent do not show
    notes = done(kept, model="logistic", optimizer=optimizer, l2=0.0, max_rounds=30).summary.notes
    assert "there is none if the classes are separable: newton would tell, an `l2` above 0 makes one" in notes[0]
    with pytest.raises(BadTraining, match="separable"):
        done(kept, model="logistic", optimizer="newton", l2=0.0)
    held = done(kept, model="logistic", optimizer=optimizer, l2=1.0, max_rounds=5).summary.notes
    assert held[0].endswith("newton or lbfgs take fewer, or set a higher `max_rounds`")


def test_epochs_that_ended_too_soon_are_told_and_others_are_not() -> None:
    soon = done(real("wine"), model="mlp", hidden=[8]).summary.notes  # 60 steps
    assert soon[0].startswith("epochs: the loss was still falling, ")
    assert not done(real("wine"), model="softmax", optimizer="sgd", epochs=200).summary.notes[1:]


def test_rounds_are_told_once_each_and_progress_is_the_last() -> None:
    kept = real("breast_cancer")
    counters, course = Counters(kept), begin(job("logistic", optimizer="adam", **SMALL), kept.manifest)
    told, last = [], -1
    assert course.progress.round == 0
    while not course.is_over:
        course = course.told(counters.answers(course))
        new = course.rounds_after(last)
        last = new[-1].number if new else last
        told += new
    assert tuple(told) == course.rounds_after(-1) == course.trained().rounds
    assert len(told) == 2
    assert (course.progress.round, course.progress.loss) == (course.number, told[-1].loss)


# --- answers that do not add up -----------------------------------------------------------------------


def test_answers_that_are_not_those_of_all_parts_once_are_refused_and_can_be_given_again() -> None:
    kept = real("breast_cancer")
    counters, course = (
        Counters(kept),
        begin(job("logistic", optimizer="lbfgs", importance=True, max_rounds=2), kept.manifest),
    )
    other = Counters(real("iris")).answers(begin(job("softmax"), real("iris").manifest))
    former: list[bytes] = []
    while not course.is_over:
        right = counters.answers(course)
        while len(right) < 3:
            right = counters.answers(course)
        bad = [[], right[1:], [*right, right[0]], [right[0], *right[:-1]], other, [*right[1:], b"?" * 40]]
        bad += [[*right[1:], right[0][:-8]], [*right[1:], pack(unpack(right[0])[0])]]
        bad += [former] if former and course.step != "rounds" else []
        for answers in bad:
            with pytest.raises(BadAnswers):
                course.told(answers)
        former = right
        course = course.told(right)
    assert course.trained().write() == Counters(kept).run(begin(course.job, kept.manifest)).trained().write()


def test_an_answer_with_less_than_was_asked_for_is_refused() -> None:
    kept = real("breast_cancer")
    course = halfway(kept, model="logistic", optimizer="newton")
    run = course.run
    assert run is not None
    counters = Counters(kept, 1)
    counters.answers(course)
    for wants in ("loss", "gradient"):
        short = question_out(course.name, Ask(run.state.at, wants))  # type: ignore[arg-type]
        with pytest.raises(BadAnswers, match="up to the hessian"):
            course.told([counters.desks[0].answer(short, range(8))])
    assert replace(course) == course


# --- weights and keys ---------------------------------------------------------------------------------


def test_weights_and_a_split_by_key_have_the_part_that_they_have_in_fit() -> None:
    columns = numbers(200) | {"w": np.random.default_rng(5).integers(0, 4, 200), "id": np.arange(200)[::-1]}
    kept = table(columns, key="id")
    course = done(kept, model="logistic", weight="w", validation={"share": 0.3, "seed": 11}, importance=True)
    assert course.chosen.features == (("a", 0), ("b", 0))  # neither weight nor key
    masks = [held_out(hash_column(part["id"]), 0.3, seed=11) for part in kept.parts]
    parts = [
        replace(raw, weight=part["w"]) for raw, part in zip(raw_parts(kept, ["a", "b"], masks), kept.parts, strict=True)
    ]
    prepared = prepare("logistic", parts)
    run = fit(prepared, plan_of(course.job, prepared.model))
    assert course.run is not None
    assert course.run.outcome.w.tobytes() == run.outcome.w.tobytes()
    assert repr(course.run.history) == repr(run.history)
    assert course.trained().held_rows == sum(int(mask.sum()) for mask in masks) > 30
