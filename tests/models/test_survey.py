"""What cannot be trained on is refused before round one, what leaks is reported, no scaler sees a held-out row."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.models.data import loaded
from zkd.errors import BadTraining
from zkd.models.fit import RawPart, prepare, split_rows
from zkd.models.split import content_hashes, held_out, straddling
from zkd.models.spread import _areas, merge_spreads, scaler_of, spread
from zkd.models.survey import conclude, encode, glance, merge_glances

RNG = np.random.default_rng(8)
X = RNG.normal(size=(40, 3)) + np.array([0, 100, 0])
Y = np.arange(40) % 2


def refused(message: str, kind: str, *parts: RawPart, **rest: Any) -> None:
    with pytest.raises(BadTraining, match=message):
        prepare(kind, parts, **rest)  # type: ignore[arg-type]


def changed(row: int, column: int, value: float) -> np.ndarray:
    x = X.copy()
    x[row, column] = value
    return x


def test_bad_features_are_refused_with_their_names_and_counts() -> None:
    names = ["age", "height", "weight"]
    good = RawPart([X], Y)
    for value in (np.nan, np.inf, -np.inf):
        bad = RawPart([changed(3, 1, value)], Y)
        refused(r"NaN or infinite in height \(1 rows\); fill or drop", "logistic", good, bad, names=names)
        bad = RawPart([changed(3, 1, value)], Y, held_out=np.arange(40) == 3)
        refused(r"NaN or infinite in feature 1 \(1 rows\)", "logistic", bad)
    refused("same number in all parts, got \\[3, 4\\]", "logistic", good, RawPart([X, X[:, 0]], Y))
    refused("expected 40 rows as in the target, got 39", "logistic", RawPart([X[1:]], Y))
    refused(
        "exceed what a float can hold",
        "logistic",
        RawPart([changed(0, 0, 1e308)], Y),
        RawPart([changed(0, 0, 1e308)], Y),
    )


def test_bad_targets_are_refused() -> None:
    refused(
        "all 40 rows have the one label 1; there is nothing to tell apart", "logistic", RawPart([X], np.ones(40, int))
    )
    refused("logistic tells 2 classes, got 3: 0, 1, 2; train softmax", "logistic", RawPart([X], np.arange(40) % 3))
    refused("svm tells 2 classes, got 3", "svm", RawPart([X], np.arange(40) % 3))
    refused("expected labels, got fractions", "softmax", RawPart([X], RNG.normal(size=40)))
    refused(
        "NaN, infinite or missing in 1 of 40 rows", "logistic", RawPart([X], np.where(np.arange(40) == 2, np.nan, Y))
    )
    refused("NaN, infinite or missing in 1 of 40 rows", "linear", RawPart([X], np.where(np.arange(40) == 2, np.inf, Y)))
    refused("expected numbers, got <U3; to tell classes", "linear", RawPart([X], np.array(["abc"] * 40)))
    refused("0 or more, for poisson; the least is -1", "poisson", RawPart([X], np.arange(40.0) - 1))
    refused("all counts are 0", "poisson", RawPart([X], np.zeros(40)))
    refused("all 40 rows have the one value 7", "linear", RawPart([X], np.full(40, 7.0)))
    refused("more than 1000 different labels", "softmax", RawPart([np.ones((1001, 1))], np.arange(1001)))
    refused("labels of one kind", "softmax", RawPart([X], Y), RawPart([X], np.array(["a"] * 40)))


def test_no_rows_are_refused_and_empty_parts_are_not() -> None:
    empty = RawPart([X[:0]], Y[:0])
    refused("there are none in any part", "logistic", empty, empty)
    refused("all 40 are held out", "logistic", RawPart([X], Y, held_out=np.ones(40, bool)))
    refused("expected some above 0", "logistic", RawPart([X], Y, weight=np.zeros(40)))
    held = Y == 1
    refused("no training row has 1, only held-out rows", "logistic", RawPart([X], Y, held_out=held))
    one = prepare("logistic", [RawPart([X], Y)])
    other = prepare("logistic", [empty, RawPart([X], Y), empty])
    assert other.scaler.mean.tobytes() == one.scaler.mean.tobytes()
    assert other.found.rows == 40


def test_labels_of_any_plain_kind_become_class_numbers() -> None:
    for labels in (np.array(["no", "yes"])[Y], Y.astype(bool), Y * 7 - 3, Y.astype(np.float32), Y.astype(np.uint8)):
        ready = prepare("logistic", split_rows(RawPart([X], labels), 3))
        assert ready.found.classes == tuple(np.unique(labels).tolist())
        assert sorted(np.concatenate([rows.target for rows in ready.parts])) == sorted(Y)
        assert ready.found.target.shares == (0.5, 0.5)
    with pytest.raises(BadTraining, match="row 1 has 5, which is none of 0, 1"):
        encode(np.array([0, 5]), (0, 1))
    with pytest.raises(BadTraining, match="expected labels such as 'a'"):
        encode(np.array([0, 5]), ("a", "b"))


def test_means_and_scales_are_those_of_training_rows() -> None:
    x, y, _, _ = loaded("breast_cancer")
    held = np.arange(len(x)) % 3 == 0
    ready = prepare("logistic", split_rows(RawPart([x], y, held_out=held), 5))
    np.testing.assert_allclose(ready.scaler.mean, x[~held].mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(ready.scaler.scale, x[~held].std(axis=0), rtol=1e-13)
    moved = x.copy()
    moved[held] += 1e6
    again = prepare("logistic", split_rows(RawPart([moved], y, held_out=held), 5))
    assert again.scaler.mean.tobytes() == ready.scaler.mean.tobytes()
    assert again.scaler.scale.tobytes() == ready.scaler.scale.tobytes()


def test_scales_do_not_suffer_from_large_means() -> None:
    year = 1e9 + RNG.normal(size=(1000, 1))
    ready = prepare("linear", split_rows(RawPart([year], RNG.normal(size=1000)), 4))
    assert ready.scaler.scale[0] == pytest.approx(np.std(year - 1e9), rel=1e-6)


def test_constant_columns_are_named_and_left_alone() -> None:
    x = np.column_stack([X, np.full(40, 0.1), np.zeros(40)])
    ready = prepare("logistic", split_rows(RawPart([x], Y), 3))
    assert ready.constant == (3, 4)
    assert ready.scaler.scale[3:].tolist() == [np.inf, np.inf]


def test_a_survey_has_the_same_bits_for_any_grouping() -> None:
    x, y, _, _ = loaded("wine")
    parts = split_rows(RawPart([x], y, held_out=np.arange(len(x)) % 4 == 0), 9)
    found = set()
    for seed in range(12):
        rng = random.Random(seed)

        def nodes(items: list[Any], rng: random.Random = rng, many: int = 1 + seed % 8) -> list[list[Any]]:
            groups: list[list[Any]] = [[] for _ in range(many)]
            for item in rng.sample(items, len(items)):
                rng.choice(groups).append(item)
            return [group for group in groups if group]

        glances = [glance(p.columns, p.target, tells_classes=True, weight=None, held_out=p.held_out) for p in parts]
        seen = conclude("softmax", merge_glances(merge_glances(group) for group in nodes(glances)))
        ready = prepare("softmax", parts)
        spreads = [spread(rows, seen) for rows in ready.parts]
        scaler, _ = scaler_of(merge_spreads(merge_spreads(group) for group in nodes(spreads)), seen)
        found.add((scaler.mean.tobytes(), scaler.scale.tobytes(), seen.classes, seen.target, seen.weight))
    assert len(found) == 1


def test_a_label_among_the_features_is_reported() -> None:
    x, y, _, _ = loaded("breast_cancer")
    assert prepare("logistic", [RawPart([x], y)]).suspicions == ()
    for leak, area in ((y * 2.0 + 1, 1.0), (1.0 - y, 0.0), (np.exp(5.0 * y) + x[:, 0] * 1e-3, 1.0)):
        told = prepare("logistic", split_rows(RawPart([x, leak], y), 4)).suspicions
        assert [(one.feature, one.measure, one.label) for one in told] == [(30, "area under the curve", 1)]
        assert told[0].value == pytest.approx(area, abs=0.01)


def test_only_training_rows_are_looked_at_for_leaks() -> None:
    x, y, _, _ = loaded("breast_cancer")
    held = np.arange(len(x)) % 2 == 0
    noise = RNG.random(len(x))
    for leak, count in ((np.where(held, noise, y), 1), (np.where(held, y, noise), 0)):
        told = prepare("logistic", split_rows(RawPart([x, leak], y, held_out=held), 3)).suspicions
        assert len(told) == count


def test_the_area_under_the_curve_is_that_of_scikit_learn_but_for_bins() -> None:
    x, y, _, _ = loaded("breast_cancer")
    ready = prepare("logistic", split_rows(RawPart([x], y), 4))
    seen = merge_spreads(spread(rows, ready.found) for rows in ready.parts)
    areas = _areas(seen.counts, 1)
    np.testing.assert_allclose(areas, [roc_auc_score(y, column) for column in x.T], atol=0.005)


def test_a_feature_that_is_the_target_in_other_units_is_reported() -> None:
    x, y, _, _ = loaded("diabetes")
    told = prepare("linear", split_rows(RawPart([x, 32.0 - 1.8 * y], y), 4)).suspicions
    assert [(one.feature, one.measure) for one in told] == [(10, "correlation")]
    assert told[0].value == pytest.approx(-1.0, abs=1e-12)


def test_one_class_that_gives_itself_away_is_named() -> None:
    x, y, _, _ = loaded("digits")
    told = prepare("softmax", split_rows(RawPart([x, (y == 4) * 1.0], y), 3)).suspicions
    assert [(one.feature, one.label) for one in told] == [(64, 4)]


# --- held-out rows ------------------------------------------------------------------------------------


def test_about_the_wanted_share_is_held_out_and_the_choice_is_fixed() -> None:
    hashes = content_hashes([np.arange(100_000)])
    held = held_out(hashes, 0.2)
    assert abs(held.mean() - 0.2) < 0.005
    assert np.array_equal(held_out(hashes[::-1], 0.2), held[::-1])
    assert abs((held & held_out(hashes, 0.2, seed=1)).mean() - 0.04) < 0.003
    assert not held_out(hashes, 0.0).any()
    with pytest.raises(BadTraining, match="below 1"):
        held_out(hashes, 1.0)


def test_which_part_a_row_is_in_does_not_matter_for_the_split() -> None:
    hashes = content_hashes([np.arange(100_000)])
    part = (hashes >> np.uint64(60)).astype(int)
    shares = np.bincount(part, held_out(hashes, 0.3)) / np.bincount(part)
    assert np.abs(shares - 0.3).max() < 0.025


def test_duplicates_never_straddle_a_split_by_content() -> None:
    x, _, _, _ = loaded("digits")
    doubled = np.concatenate([x, x[::3], x[::7]])
    random_split = RNG.random(len(doubled)) < 0.2
    hashes = content_hashes([doubled])
    assert straddling(hashes, random_split) > 100
    assert straddling(hashes, held_out(hashes, 0.2)) == 0


def test_equal_numbers_of_other_kinds_are_the_same_content() -> None:
    wide = np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, 2.0]])
    hashes = content_hashes([wide])
    assert hashes[0] == hashes[1] != hashes[2]
    assert np.array_equal(hashes, content_hashes([wide[:, 0].astype(np.int8), wide[:, 1].astype(np.float32)]))
    swapped = content_hashes([wide[:, ::-1]])
    assert not np.isin(swapped, hashes).any()
