"""Which node is asked: the less busy of two, one that is silent or fails less and less, none twice without reason."""

from __future__ import annotations

from collections import Counter
from random import Random

from zkd.core.choice import AVOID_S, AVOID_S_MAX, BESIDE_MAX, BESIDE_SHARE, Choice

NODES = ["a", "b", "c", "d"]


def choice() -> Choice:
    return Choice(Random(7))


def test_the_less_busy_of_two_is_asked() -> None:
    chosen = choice()
    for node in NODES:
        chosen.answered(node, 0.0, 0.01, queued=0)
    counts: Counter[str] = Counter()
    for _ in range(400):
        node = chosen.pick(NODES, 0.0)
        assert node is not None
        chosen.asked(node, is_first=True)
        counts[node] += 1
    assert max(counts.values()) - min(counts.values()) <= 24, counts


def test_what_a_node_says_of_its_queue_counts_for_a_while() -> None:
    chosen = choice()
    chosen.answered("a", 10.0, 0.01, queued=50)
    chosen.answered("b", 10.0, 0.01, queued=0)
    assert {chosen.pick(["a", "b"], 10.5) for _ in range(50)} == {"b"}
    assert {chosen.pick(["a", "b"], 20.0) for _ in range(50)} == {"a", "b"}


def test_a_node_that_was_slow_once_is_tried_again() -> None:
    chosen = choice()
    chosen.answered("a", 0.0, 5.0, queued=0)
    for second in range(40):
        chosen.answered("b", second / 10, 0.01, queued=0)
    assert chosen.pick(["a", "b"], 4.0) == "b"
    chosen.asked("b", is_first=True)
    assert chosen.pick(["a", "b"], 30.0) == "a"


def test_one_that_fails_is_passed_over_longer_and_longer_and_tried_with_one_request() -> None:
    chosen, now = choice(), 100.0
    waits = []
    for _ in range(8):
        chosen.failed("a", now)
        began = now
        while chosen.pick(["a", "b"], now) == "b":
            now += 0.01
        waits.append(now - began)
        assert chosen.pick(["a", "b"], now) == "b", "while the one request is on its way"
    assert abs(waits[0] - AVOID_S) < 0.02
    assert waits == sorted(waits)
    assert abs(waits[-1] - AVOID_S_MAX) < 0.02
    for node in ("a", "b"):
        chosen.answered(node, now, 0.01, queued=0)
    assert {chosen.pick(["a", "b"], now) for _ in range(50)} == {"a", "b"}


def test_a_hundred_failures_at_once_are_one() -> None:
    chosen = choice()
    for _ in range(100):
        chosen.failed("a", 0.0)
    assert chosen.pick(["a", "b"], AVOID_S + 0.01) == "a"


def test_one_that_was_overtaken_counts_as_silent_only_without_a_word_since() -> None:
    chosen = choice()
    for _ in range(10):
        chosen.answered("a", 1.0, 0.01, queued=0)
        chosen.overtaken("a", 0.5, 1.1)
    assert "a" in {chosen.pick(["a", "b"], 1.2) for _ in range(50)}
    chosen.overtaken("a", 1.2, 1.3)
    chosen.overtaken("a", 1.2, 1.3)
    assert {chosen.pick(["a", "b"], 1.4) for _ in range(50)} == {"b"}


def test_when_all_are_passed_over_one_is_asked_nevertheless() -> None:
    chosen = choice()
    chosen.failed("a", 0.0)
    chosen.failed("b", 0.1)
    assert chosen.pick(["a", "b"], 0.2) == "a"
    assert chosen.pick([], 0.2) is None


def test_late_is_what_nineteen_of_twenty_are_not() -> None:
    chosen = choice()
    assert chosen.late_s is None
    for number in range(100):
        chosen.took(number / 100)
    assert chosen.late_s is not None
    assert 0.93 <= chosen.late_s <= 0.96


def test_few_are_asked_beside() -> None:
    chosen, beside = choice(), 0
    for _ in range(1000):
        chosen.asked("a", is_first=True)
        chosen.ended("a")
        beside += chosen.may_ask_beside()
    assert beside <= BESIDE_MAX + 1000 * BESIDE_SHARE
    assert beside >= 1000 * BESIDE_SHARE


def test_a_node_is_forgotten_when_it_has_gone_and_nothing_of_it_is_awaited() -> None:
    chosen = choice()
    chosen.asked("a", is_first=True)
    chosen.keep(["b"])
    chosen.ended("a")  # it was still awaited
    chosen.keep(["b"])
    assert set(chosen._nodes) <= {"b"}
