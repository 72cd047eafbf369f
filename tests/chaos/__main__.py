"""`python -m tests.chaos --tasks N --seed S`: chaos on a real ensemble, and the verdict.

Exit code 0: every rule held. 1: a violation, told with the story of its task. 3: the run does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import sys
import time
from pathlib import Path

from tests.chaos.conductor import FAULTS, Options, conduct
from tests.chaos.report import write_report
from tests.chaos.story import story_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--tasks", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0, help="drop no more tasks after so long")
    parser.add_argument("--faults", default=",".join(FAULTS), help="of: %(default)s")
    parser.add_argument("--daemons", type=int, default=3)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--session-timeout", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path("out/chaos"))
    args = parser.parse_args()
    faults = tuple(args.faults.split(","))
    unknown = [name for name in faults if name not in FAULTS]
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    options = Options(
        args.tasks,
        args.seed,
        args.out.absolute(),
        minutes=args.minutes,
        faults=faults,
        daemons=args.daemons,
        slots=args.slots,
        timeout_s=args.session_timeout,
    )
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a proxy that cuts writes into closed sockets now and then
    began = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    outcome = asyncio.run(conduct(options, tell))
    print(write_report(outcome))
    if outcome.disagreement:
        print(f"\nThis run does not count: {outcome.void}")
        return 3
    for violation in outcome.violations[:5]:
        print(f"\n{violation.rule}: {violation.task}: {violation.text}")
        print(story_of(options.directory, violation.task))
    if outcome.violations:
        return 1
    if outcome.void:
        print(f"\nThis run does not count: {outcome.void}")
        for task_id in outcome.verdict.unfinished[:3]:
            print(story_of(options.directory, task_id))
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
