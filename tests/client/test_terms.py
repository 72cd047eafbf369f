"""What a client refuses before a job is dropped, and what it says then."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zkd.client.terms import OPTIONS, Terms, check, job_of
from zkd.errors import BadTraining
from zkd.jobs import Job, Validation
from zkd.manifests import Column, Manifest
from zkd.models.model import Model
from zkd.models.terms import plan_of

ADULT = Manifest(
    name="adult",
    version=3,
    parts=1,
    replicas=1,
    rows=100,
    size=1,
    chunks=["0" * 64],
    key="id",
    label="income",
    columns=[
        Column("id", "<i8"),
        Column("age", "<f8"),
        Column("hours", "|u1"),
        Column("married", "|b1"),
        Column("job", "<U20"),
        Column("since", "<M8[D]"),
        Column("pixels", "<f4", [64]),
        Column("sample", "<f8"),
        Column("income", "<U5"),
    ],
)


def made(model: str = "logistic", **terms: Any) -> Job:
    return job_of(model, "adult", terms)


def refusal(model: str = "logistic", **terms: Any) -> str:
    with pytest.raises(BadTraining) as caught:
        check(job_of(model, "adult", terms), ADULT)
    return str(caught.value)


@pytest.mark.parametrize(
    ("said", "meant"),
    [("logistc", "logistic"), ("Ridge", "linear"), ("LogisticRegression", "logistic"), ("multinomial", "softmax"),
     ("MLPClassifier", "mlp"), ("linear_svc", "svm"), ("possion", "poisson")],
)  # fmt: skip
def test_an_unknown_model_is_told_the_nearest_one(said: str, meant: str) -> None:
    assert refusal(said).startswith(f"model: there is no model '{said}'; did you mean {meant}?")


def test_a_model_that_is_like_none_is_told_all_of_them() -> None:
    assert "there are linear, logistic, softmax, poisson, svm, mlp" in refusal("xgboost")


@pytest.mark.parametrize(
    ("said", "meant"),
    [("l-bfgs", "lbfgs"), ("newton-cholesky", "newton"), ("fedavg", "average"), ("adm", "adam"), ("saga", "nesterov")],
)
def test_an_unknown_optimizer_is_told_the_nearest_one(said: str, meant: str) -> None:
    assert f"did you mean {meant}?" in refusal(optimizer=said)


@pytest.mark.parametrize(
    ("option", "meant"),
    [("C", "l2, which is 1/C"), ("alpha", "use l2"), ("max_iter", "max_rounds"), ("solver", "use optimizer"),
     ("random_state", "use seed"), ("sample_weight", "use weight"), ("fit_intercept", "use intercept"),
     ("max_round", "did you mean max_rounds?"), ("validatoin", "mean validation?"), ("zzz", "there are target")],
)  # fmt: skip
def test_an_option_of_another_library_is_told_what_it_is_here(option: str, meant: str) -> None:
    text = refusal(**{option: 1})
    assert text.startswith(f"{option}: there is no such option")
    assert meant in text


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"l2": -1}, "l2: expected float >= 0.0, got -1"),
        ({"l2": "1"}, "l2: expected float | array, got '1'"),
        ({"l2": [1.0, -1.0]}, "l2[1]: expected float >= 0.0, got -1.0"),
        ({"l2": [1.0, 2.0]}, "l2: expected a path from the largest to the smallest"),
        ({"l2": float("nan")}, "l2: expected float >= 0.0, got nan"),
        ({"l2": float("inf")}, "l2: expected a finite number"),
        ({"epochs": 0}, "epochs: expected int >= 1, got 0"),
        ({"epochs": 1.5}, "epochs: expected int, got 1.5"),
        ({"validation": 1.5}, "validation.share: expected float < 1.0"),
        ({"validation": {"share": 0.1, "by": "row"}}, "validation.by: invalid enum value 'row'"),
        ({"validation": {"shar": 0.1}}, "validation"),
        ({"l1": 0.1, "optimizer": "lbfgs"}, "l1: lbfgs has no proximal step"),
        ({"patience": 5}, "patience: there are no held-out rows"),
        ({"privacy": {"clip": 1, "noise": 1, "delta": 1e-5}}, "privacy: rounds are private with sgd and adam"),
        ({"hidden": [3]}, "only a net has hidden layers"),
        ({"confidence": 95}, "confidence: expected float < 1.0, got 95"),
    ],
)
def test_a_value_that_no_job_has_is_named(terms: dict[str, Any], said: str) -> None:
    assert said in refusal(**terms)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"target": "incom"}, "target: adult@3 has no column 'incom'; did you mean 'income'?"),
        ({"target": "zz"}, "it has id, age, hours"),
        ({"features": ["age", "ours"]}, "features: adult@3 has no column 'ours'; did you mean 'hours'?"),
        ({"features": ["age", "job"]}, "features: job is text: encode it as numbers first"),
        ({"features": ["since"]}, "features: since is a date or a span of time: make numbers of it first"),
        ({"features": ["age", "income"]}, "features: income is the target"),
        ({"features": []}, "features: expected one or more"),
        ({"features": ["age", "age"]}, "each once"),
        ({"features": "age"}, "features: expected"),
        ({"weight": "job"}, "weight: job is text"),
        ({"weight": "pixels"}, "weight: pixels is several numbers a row"),
        ({"weight": "income"}, "weight: income is the target"),
        ({"target": "since"}, "target: since is of dtype <M8[D]"),
        ({"target": "pixels"}, "target: pixels has (64,) values a row"),
    ],
)
def test_columns_that_do_not_fit_are_named(terms: dict[str, Any], said: str) -> None:
    assert said in refusal(**terms)


@pytest.mark.parametrize(
    ("model", "terms", "said"),
    [
        ("linear", {}, "target: income is text; to tell classes, train logistic, softmax, svm or an mlp"),
        ("mlp", {"hidden": 8, "tells_classes": False}, "target: income is text"),
        ("mlp", {}, "a net has 1 to 3 hidden layers, got []; set hidden, such as 32"),
        ("mlp", {"hidden": 8, "optimizer": "newton"}, "newton is for linear models"),
    ],
)
def test_a_model_that_does_not_fit_its_target_or_options_is_refused(
    model: str, terms: dict[str, Any], said: str
) -> None:
    assert said in refusal(model, **terms)


def test_without_a_target_or_label_the_columns_are_told() -> None:
    manifest = Manifest(
        name="a", version=1, parts=1, replicas=1, rows=1, size=1, chunks=[], columns=[Column("x", "<f8")]
    )
    with pytest.raises(BadTraining, match="target: a has no label, so say which column to predict: x"):
        check(made(), manifest)
    with pytest.raises(BadTraining, match="features: a has no column of numbers"):
        check(made(target="x"), manifest)
    with pytest.raises(BadTraining, match=r"validation\.by: a has no key"):
        check(made(target="x", features=None, validation={"share": 0.1, "by": "key"}), Manifest(
            name="a", version=1, parts=1, replicas=1, rows=1, size=1, chunks=[],
            columns=[Column("x", "<f8"), Column("z", "<f8")]))  # fmt: skip


def test_features_are_all_columns_of_numbers_but_target_weight_and_key() -> None:
    checked = check(made(weight="sample"), ADULT)
    assert checked.features == (("age", 0), ("hours", 0), ("married", 0), ("pixels", 64))
    assert set(checked.left_out) == {"job", "since"}
    assert "encode it as numbers first" in checked.left_out["job"]
    assert check(made(features=["hours", "id"]), ADULT).features == (("hours", 0), ("id", 0))


def test_values_may_be_what_programs_have() -> None:
    job = made(
        "mlp",
        hidden=64,
        l2=np.float64(2.0),
        seed=np.int64(3),
        validation=0.2,
        features=("age", "hours"),
    )
    assert job == made("mlp", hidden=[64], l2=2.0, seed=3, validation=Validation(0.2), features=["age", "hours"])
    assert made(l2=np.array([10.0, 1.0])).l2 == [10.0, 1.0]


def test_mini_batches_are_bound_by_their_epochs_and_other_rounds_by_a_number() -> None:
    net = Model("mlp", 3, 2, (4,))
    assert plan_of(made("mlp", hidden=4), net).max_rounds > 60 * ADULT.rows
    assert plan_of(made("mlp", hidden=4, max_rounds=7), net).max_rounds == 7
    assert plan_of(made(), Model("logistic", 3)).max_rounds == 1000


def test_every_option_of_a_job_can_be_given() -> None:
    assert set(Terms.__annotations__) == set(OPTIONS)
