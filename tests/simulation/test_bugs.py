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
    "publish-without-the-version": 50,
    "queue-into-the-next-session": 3,
    "work-on-the-list-of-a-former-life": 2,
    "take-a-lost-answer-for-a-failure": 81,
    "take-a-lost-answer-for-a-success": 11,
    "ignore-a-failed-transaction": 9,
    "drop-again-without-a-look": 73,
    "count-doubt-from-the-loss-of-the-connection": 3,
    "never-doubt-a-session": 3,
    "charge-a-drain": 2,
    "compare-the-clocks-of-two-leaders": 265,
    "never-publish-a-cancellation": 7,
    "do-not-mourn-for-a-lost-holder": 384,
    "publish-a-value-for-a-deleted-task": 14,
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
