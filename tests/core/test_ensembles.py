"""What several models say together, also when not all of them have voted."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkd.core.ensembles import CELLS_MAX, EnsembleRequest, Vote, combined, expect_sound
from zkd.errors import BadRecord

ABC = ["a@live", "b@live", "c@3"]


def request(members: list[str] = ABC, **fields: Any) -> EnsembleRequest:
    return EnsembleRequest(members=members, rows=msgspec.Raw(b"[[1]]"), **fields)


def numbers(*values: float | None) -> Vote:
    return Vote(list(values))


def classes(*rows: tuple[float, ...], labels: tuple[Any, ...] = ("no", "yes")) -> Vote:
    return Vote([labels[row.index(max(row))] for row in rows], rows, labels)


def test_the_mean_of_numbers_is_of_those_that_voted() -> None:
    votes = {"a@live": numbers(1.0, 5.0), "b@live": numbers(2.0, 5.0), "c@3": numbers(6.0, 5.0)}
    assert combined(votes, request()).prediction == [3.0, 5.0]
    del votes["c@3"]
    assert combined(votes, request()).prediction == [1.5, 5.0]
    assert combined(votes, request(combine="weighted", weights=[1, 3, 100])).prediction == [1.75, 5.0]


def test_the_mean_of_classes_is_of_probabilities_by_label() -> None:
    votes = {
        "a@live": classes((0.6, 0.4)),
        "b@live": classes((0.9, 0.1), labels=("yes", "no")),  # in another order
    }
    told = combined(votes, request())
    assert (told.prediction, told.classes) == (["yes"], ["no", "yes"])
    assert told.probabilities is not None
    assert told.probabilities[0] == pytest.approx([0.35, 0.65])
    told = combined(votes, request(combine="weighted", weights=[9, 1, 1]))
    assert told.prediction == ["no"]


def test_most_votes_win_and_of_equal_ones_the_first_member() -> None:
    votes = {"a@live": Vote(["x", 1], None, ["x", "y", 1]), "b@live": Vote(["y", True], None, ["x", "y"])}
    assert combined(votes, request(combine="vote")).prediction == ["x", 1]
    votes["c@3"] = Vote(["y", True], None, ["y", True])
    assert combined(votes, request(combine="vote")).prediction == ["y", True]
    assert combined(votes, request(combine="vote", weights=[3, 1, 1])).prediction == ["x", 1]


def test_a_row_that_one_cannot_say_nobody_says() -> None:
    votes = {"a@live": numbers(None, 1.0), "b@live": numbers(1.0, 1.0)}
    assert combined(votes, request()).prediction == [None, 1.0]
    votes = {"a@live": Vote([None], [[None, None]], ["no", "yes"]), "b@live": classes((0.6, 0.4))}  # type: ignore[list-item]
    assert combined(votes, request()).prediction == [None]


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda row: sum(row) > 0.1), min_size=2),
    st.data(),
)
def test_probabilities_of_an_ensemble_add_up_and_lie_between_its_members(rows: list[list[float]], data: Any) -> None:
    rows = [[x / sum(row) for x in row] for row in rows][:16]
    members = [f"m{number}" for number in range(len(rows))]
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(rows), max_size=len(rows)))
    votes = {name: classes(tuple(row), labels=(0, 1, 2)) for name, row in zip(members, rows, strict=True)}
    told = combined(votes, request(members, combine="weighted", weights=weights))
    assert told.probabilities is not None
    [mean] = told.probabilities
    assert math.fsum(mean) == pytest.approx(1.0)
    for column, value in enumerate(mean):
        assert min(row[column] for row in rows) - 1e-12 <= value <= max(row[column] for row in rows) + 1e-12
    assert mean[told.prediction[0]] == max(mean)


BAD: list[tuple[EnsembleRequest, str]] = [
    (request(["a@live", "a@live"]), "each member once"),
    (request(["../x"]), "expected NAME"),
    (request(quorum=4), r"\$\.quorum: expected at most the number of members, 3, got 4"),
    (request(combine="weighted"), r"\$\.weights: combine is weighted: weights go with it"),
    (request(weights=[1, 1, 1]), r"\$\.weights: combine is mean: expected none"),
    (request(combine="weighted", weights=[1, 1]), "expected one a member, 3, got 2"),
    (request(combine="weighted", weights=[0, 0, 0]), "one of them above 0"),
    (request(combine="vote", weights=[1, math.inf, 0]), "expected finite numbers"),
]


@pytest.mark.parametrize(("asked", "words"), BAD)
def test_what_cannot_be_asked_is_refused(asked: EnsembleRequest, words: str) -> None:
    with pytest.raises(BadRecord, match=words):
        expect_sound(asked)


def test_sound_requests_pass_and_need_more_than_half() -> None:
    for asked in (
        request(),
        request(combine="weighted", weights=[1, 2, 3]),
        request(combine="vote", weights=[1, 0, 0]),
    ):
        expect_sound(asked)
        assert asked.votes_needed == 2
    assert request(["a"]).votes_needed == 1
    assert request([f"m{n}" for n in range(4)]).votes_needed == 3
    assert request(quorum=3).votes_needed == 3


MIXED: list[tuple[dict[str, Vote], dict[str, Any], str]] = [
    ({"a@live": numbers(1), "b@live": classes((1, 0))}, {}, "a@live predicts numbers"),
    ({"a@live": numbers(1)}, {"combine": "vote"}, "vote is for models of classes"),
    ({"a@live": Vote(["x"], None, ["x", "y"])}, {}, "a@live tells no probabilities: expected vote"),
    ({"a@live": classes((1, 0)), "b@live": classes((1, 0), labels=(0, 1))}, {}, "the same classes of b@live"),
    ({"a@live": numbers(1), "b@live": numbers(1, 2)}, {}, "as many answers of each member"),
    ({"c@3": numbers(1)}, {"combine": "weighted", "weights": [1, 1, 0]}, "one of those that voted: c@3"),
    ({"a@live": Vote(range(CELLS_MAX + 1))}, {}, "send fewer rows"),
]


@pytest.mark.parametrize(("votes", "fields", "words"), MIXED)
def test_models_that_do_not_go_together_are_refused(votes: dict[str, Vote], fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRecord, match=words):
        combined(votes, request(**fields))
