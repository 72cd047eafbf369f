"""Recipes on a `Session`: what can be held, counted, met at and queued in, below ``<root>/sync``.

    footing    what they stand on: a session, an alarm, who cleans up          (core.queueing decides who holds)
    line       a place in a line of znodes, until it is our turn
    held       what a holder has: a fence, and honest answers
    holding    the same for an async with block
    locks, elections, barriers, counters, queues, parties        one file a recipe
    recipes    all of them by name: what `zkd.Client` offers

Each write is conditional or carries an identity, and each lost answer is resolved by reading back.
"""

from zkd.zk.recipes.held import Held
from zkd.zk.recipes.holding import Holding
from zkd.zk.recipes.recipes import Recipes

__all__ = ["Held", "Holding", "Recipes"]
