"""The curve of a job's losses: what is drawn, and with which scale."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from zkd.client.curve import Mark, draw
from zkd.jobs import Round

SVG = "{http://www.w3.org/2000/svg}"


def drawn(rounds: list[Round], title: str = "t", **more: object) -> ElementTree.Element:
    return ElementTree.fromstring(draw(rounds, title, **more))  # type: ignore[arg-type]


def words(picture: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in picture.iter(f"{SVG}text")]


def lines(picture: ElementTree.Element) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (point.split(",") for point in line.attrib["points"].split())]
        for line in picture.iter(f"{SVG}polyline")
    ]


def test_losses_that_fall_far_have_a_logarithmic_scale_and_others_do_not() -> None:
    far = [Round(number, loss=10.0**-number) for number in range(1, 6)]
    near = [Round(number, loss=1.0 + 1.0 / number) for number in range(1, 6)]
    assert "mean loss, log scale" in words(drawn(far))
    assert "mean loss" in words(drawn(near))
    (line,) = lines(drawn(far))
    heights = [y for _, y in line]
    steps = [later - earlier for earlier, later in pairwise(heights)]
    assert steps == pytest.approx([steps[0]] * 4, abs=0.2)  # down is a larger y
    assert steps[0] > 0


def test_held_out_losses_and_gradients_have_lines_of_their_own() -> None:
    rounds = [Round(number, loss=1.0 / number, held_loss=2.0 / number, slope=1.0 / number) for number in range(1, 9)]
    picture = drawn(rounds)
    assert len(lines(picture)) == 3
    assert {"training", "held-out", "|gradient|", "round"} <= set(words(picture))


def test_each_penalty_of_a_path_has_a_line_and_trials_are_dots() -> None:
    rounds = [Round(number, number // 4, loss=1.0 + 1.0 / number, is_accepted=number != 3) for number in range(1, 9)]
    picture = drawn(rounds)
    assert [len(line) for line in lines(picture)] == [2, 4]
    assert len(list(picture.iter(f"{SVG}circle"))) == 2  # the trial, and the only round of the last penalty


def test_all_lines_stay_within_the_picture_and_many_rounds_are_thinned() -> None:
    rounds = [Round(number, loss=1.0 + 1e6 / number, slope=1e-9) for number in range(1, 10_001)]
    picture = drawn(rounds)
    width, height = float(picture.attrib["width"]), float(picture.attrib["height"])
    for line in lines(picture):
        assert len(line) <= 1501
        assert all(0 <= x <= width and 0 <= y <= height for x, y in line)
    assert lines(picture)[0][-1][0] == pytest.approx(lines(picture)[1][-1][0])


def test_words_are_text_and_never_markup() -> None:
    picture = drawn([Round(1, loss=1.0), Round(2, loss=0.5)], "<b>&", marks=[Mark(2, "kill -9 <n>")], ending="a < b")
    assert {"<b>&", "kill -9 <n>", "a < b"} <= set(words(picture))


@pytest.mark.parametrize("rounds", [[], [Round(1)], [Round(5, loss=0.0)], [Round(1, loss=3.0), Round(2, loss=3.0)]])
def test_little_to_draw_is_no_error(rounds: list[Round]) -> None:
    picture = drawn(rounds)
    assert "t" in words(picture)
    assert ("No round has told a loss yet." in words(picture)) == (not any(each.loss is not None for each in rounds))
