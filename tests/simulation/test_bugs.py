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
    "publish-without-the-version": 89,
    "queue-into-the-next-session": 32,
    "work-on-the-list-of-a-former-life": 66,
    "take-a-lost-answer-for-a-failure": 18,
    "take-a-lost-answer-for-a-success": 18,
    "ignore-a-failed-transaction": 3,
    "drop-again-without-a-look": 109,
    "count-doubt-from-the-loss-of-the-connection": 2,
    "never-doubt-a-session": 2,
    "charge-a-drain": 33,
    "compare-the-clocks-of-two-leaders": 99,
    "never-publish-a-cancellation": 2,
    "do-not-mourn-for-a-lost-holder": 384,
    "publish-a-value-for-a-deleted-task": 9,
    "lose-a-cancellation-in-a-wait": 17,
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
