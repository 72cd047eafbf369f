"""Models of scikit-learn say the same here, on real data, or are refused by name."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import sklearn
from sklearn import datasets
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import (
    ElasticNet,
    ElasticNetCV,
    Lasso,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    PoissonRegressor,
    Ridge,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import LinearSVC

from zkd.errors import BadModel
from zkd.models.from_sklearn import is_of_sklearn, trained_of
from zkd.models.trained import Trained

DIABETES = datasets.load_diabetes(return_X_y=True)
CANCER = datasets.load_breast_cancer(return_X_y=True)
IRIS = datasets.load_iris(return_X_y=True)
DIGITS = tuple(each[:500] for each in datasets.load_digits(return_X_y=True))
WINE = datasets.load_wine(return_X_y=True)


@pytest.fixture(autouse=True)
def _few_steps_are_enough() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nobody needs these to converge
        yield


def there_and_back(estimator: Any, **options: Any) -> Trained:
    """By the file, as it travels."""
    return Trained.read(trained_of(estimator, **options).write())


def assert_same(estimator: Any, x: Any, *, tolerance: float = 1e-12) -> Trained:
    model = there_and_back(estimator)
    theirs, ours = estimator.predict(x), model.predict(x)
    if model.classes:
        assert ours.tolist() == theirs.tolist()
        if hasattr(estimator, "decision_function"):
            theirs = estimator.decision_function(x).reshape(len(ours), -1)
            np.testing.assert_allclose(model.scores(x), theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())
        if model.model.kind != "svm":
            np.testing.assert_allclose(model.probabilities(x), estimator.predict_proba(x), rtol=1e-9, atol=tolerance)
    else:
        np.testing.assert_allclose(ours, theirs.reshape(-1), rtol=tolerance, atol=tolerance * np.abs(theirs).max())
    return model


@pytest.mark.parametrize(
    "estimator",
    [
        LinearRegression(),
        LinearRegression(fit_intercept=False),
        Ridge(0.5),
        RidgeCV(),
        Lasso(0.1),
        ElasticNet(0.01),
        ElasticNetCV(),
        PoissonRegressor(max_iter=10),
        SGDRegressor(random_state=1),
        SGDRegressor(loss="huber", random_state=1),
        MLPRegressor(hidden_layer_sizes=(20, 10), max_iter=5, random_state=1),
        make_pipeline(StandardScaler(), Ridge()),
        make_pipeline(StandardScaler(with_mean=False), StandardScaler(with_std=False), Lasso()),
        Pipeline([("nothing", "passthrough"), ("scale", StandardScaler()), ("net", MLPRegressor(max_iter=3))]),
    ],
    ids=str,
)
def test_regressors_give_the_same_numbers(estimator: Any) -> None:
    x, y = DIABETES
    model = assert_same(estimator.fit(x * [1, 10, 100, 1, 1, 1, 1, 1, 1, 1e3], y), x)
    assert model.features == (("X", 10),)
    assert model.summary.notes[0].endswith(f"of scikit-learn {sklearn.__version__}")


@pytest.mark.parametrize("data", [CANCER, IRIS, WINE, DIGITS], ids=["cancer", "iris", "wine", "digits"])
@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(max_iter=20),
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1)),
        MLPClassifier((16, 8, 4), max_iter=3, random_state=2),
        make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=3, random_state=2)),
    ],
    ids=str,
)
def test_classifiers_give_the_same_labels_and_probabilities(estimator: Any, data: Any) -> None:
    assert_same(estimator.fit(*data), data[0], tolerance=1e-11)


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(solver="liblinear"),
        LogisticRegressionCV(Cs=2, cv=2, max_iter=10),
        SGDClassifier(loss="log_loss", random_state=3),
        SGDClassifier(loss="hinge", random_state=3),
        SGDClassifier(loss="perceptron", random_state=3).set_params(alpha=0.01),
        LinearSVC(max_iter=50),
        make_pipeline(StandardScaler(), LinearSVC()),
    ],
    ids=str,
)
def test_classifiers_of_two_classes_do_so_too(estimator: Any) -> None:
    assert_same(estimator.fit(*CANCER), CANCER[0], tolerance=1e-11)


@pytest.mark.parametrize(
    "labels",
    [["no", "yes"], [False, True], [-1, 1], [1.0, 2.0], np.array(["ja", "nein"], dtype=object)],
    ids=str,
)
def test_labels_stay_what_they_are(labels: Any) -> None:
    x, y = CANCER
    model = assert_same(LogisticRegression(max_iter=5).fit(x, np.array(labels)[y]), x)
    assert model.classes == tuple(np.array(labels).tolist())
    assert [type(each) for each in model.classes] == [type(each) for each in np.array(labels).tolist()]


def test_rows_and_models_of_float32_agree_as_far_as_float32_goes() -> None:
    x, y = (CANCER[0].astype(np.float32), CANCER[1])
    plain = LogisticRegression(max_iter=50).fit(CANCER[0], y)
    np.testing.assert_allclose(there_and_back(plain).probabilities(x), plain.predict_proba(x), atol=1e-12)
    narrow = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)  # computes in float32 itself
    model = there_and_back(narrow)
    assert model.predict(x).tolist() == narrow.predict(x).tolist()
    np.testing.assert_allclose(model.probabilities(x), narrow.predict_proba(x), atol=1e-4)
    np.testing.assert_allclose(model.probabilities(x), narrow.predict_proba(x.astype(np.float64)), atol=1e-5)


def named(estimator: Any, names: list[str]) -> Any:
    estimator.feature_names_in_ = np.array(names, dtype=object)
    return estimator


class Frame:
    """As much of a DataFrame as counts here: columns by name, in some order."""

    def __init__(self, **columns: Any) -> None:
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]

    def __array__(self, *_: Any, **__: Any) -> Any:
        return np.column_stack(list(self._columns.values()))


def test_columns_are_found_by_their_names_whatever_their_order() -> None:
    x, y = IRIS
    estimator = named(LogisticRegression().fit(x, y), list("wxyz"))
    model = there_and_back(estimator)
    expected = model.probabilities(x)
    turned = {name: x[:, "wxyz".index(name)] for name in "zwyx"}
    assert model.probabilities(turned).tolist() == expected.tolist()
    assert model.probabilities(Frame(**turned)).tolist() == expected.tolist()
    assert model.probabilities(Frame(**turned, more=y)).tolist() == expected.tolist()


def test_names_can_be_given() -> None:
    x, y = IRIS
    fitted = LogisticRegression().fit(x, y)
    assert there_and_back(fitted, features=["a", "b", "c", "d"]).names == ("a", "b", "c", "d")
    assert there_and_back(fitted, features={"ab": 2, "c": 0, "d": 1}).names == ("ab[0]", "ab[1]", "c", "d[0]")
    assert there_and_back(fitted, features="rows").features == (("rows", 4),)
    assert there_and_back(named(LogisticRegression().fit(x, y), list("wxyz"))).names == ("w", "x", "y", "z")
    for bad, words in (
        (["a"], "the model has 4, the names are of 1"),
        (["a", "a", "b", "c"], "each once"),
        (["a", "b", "c", "x" * 129], "1 to 128"),
        ({"a": 3.5}, "how many numbers"),
    ):
        with pytest.raises(BadModel, match=words):
            trained_of(fitted, features=bad)  # type: ignore[arg-type]


def test_coefficients_are_told_in_both_units() -> None:
    x, y = DIABETES
    estimator = make_pipeline(StandardScaler(), Ridge()).fit(x, y)
    table = {line.name: line for line in there_and_back(estimator).table()}
    scaler, ridge = estimator[0], estimator[1]
    assert table["X[2]"].standard == ridge.coef_[2]
    assert table["X[2]"].raw == pytest.approx(ridge.coef_[2] / scaler.scale_[2], rel=1e-12)


class Own(LinearRegression):  # type: ignore[misc]
    def predict(self, X: Any) -> Any:  # noqa: N803
        return super().predict(X) + 1


class Stranger(BaseEstimator):  # type: ignore[misc]
    coef_ = np.ones(3)


TWO = (IRIS[0], np.column_stack([IRIS[1], IRIS[1]]))


@pytest.mark.parametrize(
    ("estimator", "data", "words"),
    [
        (RandomForestClassifier(2), IRIS, "RandomForestClassifier has no counterpart"),
        (make_pipeline(PCA(2), LogisticRegression()), IRIS, "PCA has no counterpart"),
        (make_pipeline(MinMaxScaler(), LogisticRegression()), IRIS, "MinMaxScaler has no counterpart"),
        (StandardScaler(), IRIS, "StandardScaler has no counterpart"),
        (LinearSVC(), IRIS, "one-vs-rest"),
        (SGDClassifier(loss="log_loss"), IRIS, "one-vs-rest"),
        (OneVsRestClassifier(LogisticRegression()), IRIS, "OneVsRestClassifier has no counterpart"),
        (SGDClassifier(loss="modified_huber"), CANCER, "loss='modified_huber' has no counterpart"),
        (MLPClassifier(activation="tanh", max_iter=2), IRIS, "activation='tanh' has no counterpart"),
        (MLPClassifier((3, 3, 3, 3), max_iter=2), IRIS, "1 to 3 hidden layers"),
        (MLPRegressor(max_iter=2), TWO, "2 outputs"),
        (MLPClassifier(max_iter=2), (IRIS[0], np.eye(3)[IRIS[1]].astype(int)), "3 outputs of activation 'logistic'"),
        (MLPRegressor(loss="poisson", max_iter=2), IRIS, "activation 'exp'"),
        (LinearRegression(), TWO, "one target"),
        (Own(), DIABETES, "may do anything"),
    ],
    ids=str,
)
def test_what_has_no_counterpart_is_refused_by_name(estimator: Any, data: Any, words: str) -> None:
    with pytest.raises(BadModel, match=words):
        trained_of(estimator.fit(*data))


@pytest.mark.parametrize(
    "estimator", [LinearRegression(), LogisticRegression(), MLPClassifier(), make_pipeline(StandardScaler(), Ridge())]
)
def test_what_is_not_fitted_is_refused(estimator: Any) -> None:
    with pytest.raises(BadModel, match="is not fitted"):
        trained_of(estimator)


def test_what_was_tampered_with_is_refused() -> None:
    fitted = LinearRegression().fit(*DIABETES)
    for attribute, value, words in (
        ("coef_", np.full(10, np.nan), "not all finite"),
        ("coef_", np.array([object()] * 10), "expected numbers"),
        ("coef_", np.ones((2, 3, 4)), "got shape"),
        ("intercept_", None, "not fitted"),
    ):
        before = getattr(fitted, attribute)
        setattr(fitted, attribute, value)
        with pytest.raises(BadModel, match=words):
            trained_of(fitted)
        setattr(fitted, attribute, before)
    with pytest.raises(BadModel, match="none of scikit-learn's"):
        trained_of(object())
    with pytest.raises(BadModel, match="may do anything"):
        trained_of(Stranger())
    assert is_of_sklearn(Stranger())
    assert not is_of_sklearn({})
    bent = make_pipeline(StandardScaler(), Ridge()).fit(*DIABETES)
    bent[0].scale_[0] = 0.0
    with pytest.raises(BadModel, match="a scale is 0"):
        trained_of(bent)
