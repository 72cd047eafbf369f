"""Planted bugs are caught, or the seeds that pass prove nothing.

`python -m tests.simulation --bugs` makes the whole table. Here each is looked for first where it was caught last; a
change of the product shifts what a seed does, and then the search begins at the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.bugs import BUGS
from tests.simulation.scenario import run

SEEDS_MAX = 500
LAST_CAUGHT = {
    "publish-without-the-version": 9,
    "take-back-without-moving-the-version": 2,
    "queue-into-the-next-session": 19,
    "work-on-the-list-of-a-former-life": 20,
    "forget-what-the-former-leader-gave": 5,
    "overwrite-a-list-before-its-tasks-are-taken-back": 509,
    "take-a-lost-answer-for-a-failure": 10,
    "take-a-lost-answer-for-a-success": 2,
    "drop-again-without-a-look": 32,
    "count-doubt-from-the-loss-of-the-connection": 19,
    "never-doubt-a-session": 19,
    "trust-the-picture-after-a-reconnect": 16,
    "count-after-the-run": 2,
    "charge-a-drain": 37,
    "compare-the-clocks-of-two-leaders": 133,
    "never-publish-a-cancellation": 2,
    "do-not-mourn-for-a-lost-holder": 131,
    "publish-a-value-for-a-deleted-task": 2,
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str) -> None:
    for seed in _seeds(bug):
        if run(seed, bug=bug).problems:
            return
    pytest.fail(f"{bug} was not caught in {SEEDS_MAX} seeds: the scenario or the witness is too weak")


def _seeds(bug: str) -> Iterator[int]:
    if bug in LAST_CAUGHT:
        yield LAST_CAUGHT[bug]
    yield from range(1, SEEDS_MAX)
