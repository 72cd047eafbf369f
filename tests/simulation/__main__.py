"""`python -m tests.simulation`: run seeds, tell the story of the first bad one, or let planted bugs be found.

--seeds N [--first S] [--jobs J]    so many seeds; what was reached, how fast, and the first bad one's story
--seed S                            one seed with its whole story
--bug NAME --seeds N                the same with a planted bug
--bugs [--seeds N]                  each planted bug: the first seed that catches it, and what said so
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context

from tests.simulation import bugs, sometimes
from tests.simulation.scenario import Outcome, run

STORY_LINES = 120


def outcomes(seeds: range, bug: str | None, jobs: int) -> Iterator[Outcome]:
    one = partial(run, bug=bug)
    if jobs == 1:
        yield from map(one, seeds)
        return
    with get_context("spawn").Pool(jobs, maxtasksperchild=2000) as pool:
        yield from pool.imap(one, seeds, chunksize=4)


def run_seeds(seeds: range, bug: str | None, jobs: int) -> int:
    began, reached = time.perf_counter(), Counter[str]()
    count, virtual_s, cpu_s, tasks, runs, transactions = 0, 0.0, 0.0, 0, 0, 0
    bad: Outcome | None = None
    for outcome in outcomes(seeds, bug, jobs):
        count += 1
        virtual_s += outcome.virtual_s
        cpu_s += outcome.cpu_s
        tasks += outcome.tasks
        runs += outcome.runs
        transactions += outcome.transactions
        reached.update(outcome.sometimes)
        if outcome.problems:
            bad = outcome
            break
        if count % 500 == 0:
            print(f"{count} seeds, {count / (time.perf_counter() - began):.1f}/s", file=sys.stderr)
    real_s = time.perf_counter() - began
    print(f"{count} seeds in {real_s:.1f} s: {count / real_s:.1f} seeds/s, {count / cpu_s:.1f} a CPU second")
    print(f"{virtual_s:.0f} s of virtual time, {virtual_s / real_s:.0f} times as fast as real time")
    print(f"{tasks} tasks, {runs} runs, {transactions} transactions")
    for point in (*sometimes.POINTS, *sorted(reached.keys() - set(sometimes.POINTS))):
        print(f"{reached[point]:8} {point}")
    missing = sometimes.missing(reached)
    if bad is not None:
        return tell(bad.seed, bug)
    print(f"never reached: {', '.join(missing) or 'nothing'}; no bad seed")
    return 0


def tell(seed: int, bug: str | None, lines: int = STORY_LINES) -> int:
    outcome = run(seed, bug=bug, story=True, digest=True)
    print(f"\nThe story of seed {seed}, {'the end of it' if lines else 'all of it'}, in virtual seconds:")
    for line in outcome.story[-lines:]:
        print(line)
    for problem in outcome.problems:
        print(f"BAD SEED {seed}: {problem}")
    if not outcome.problems:
        print(f"seed {seed} is good: {outcome.tasks} tasks, {outcome.transactions} transactions")
    print(f"digest {outcome.digest}")
    return 1 if outcome.problems else 0


def run_bugs(seeds: range, jobs: int) -> int:
    print(f"{'planted bug':34} {'seed':>5}  what said so")
    missed = 0
    for name in bugs.BUGS:
        found = next((outcome for outcome in outcomes(seeds, name, jobs) if outcome.problems), None)
        if found is None:
            missed += 1
            print(f"{name:34} {'-':>5}  nothing, in {len(seeds)} seeds", flush=True)
        else:
            print(f"{name:34} {found.seed:5}  {found.problems[0][:160]}", flush=True)
    print(f"{len(bugs.BUGS) - missed} of {len(bugs.BUGS)} caught")
    return 1 if missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--bug", choices=list(bugs.BUGS))
    parser.add_argument("--bugs", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    if options.seed is not None:
        return tell(options.seed, options.bug, 0)
    if options.bugs:
        return run_bugs(seeds, options.jobs)
    return run_seeds(seeds, options.bug, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
