"""Feed mutated bytes to whatever reads bytes from outside: `python -m tests.fuzz [--inputs N] [--seed S] [TARGET ...]`.

Each target has seeds, which are valid, a reader, and the errors with which it may refuse. Anything else is a fault:
another exception, a second of CPU for one input, more memory than a limit. A fault is printed with the bytes, in
hexadecimal; the same seed makes the same inputs. The suite runs some thousand of each; a night has time for more.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of each target (default: a million)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    given = parser.parse_args()
    unknown = [name for name in given.targets if name not in TARGETS]
    if unknown:
        parser.error(f"expected some of {', '.join(TARGETS)}, got {', '.join(unknown)}")
    faults = 0
    for name in given.targets or TARGETS:
        began = time.perf_counter()
        found = fuzz(TARGETS[name], given.inputs, given.seed)
        took = time.perf_counter() - began
        taken = f"{given.inputs:>9,} inputs, {found.taken:>8,} taken, {took:7.1f} s"
        print(f"{name:<12} {taken}, {len(found.faults)} faults", flush=True)
        for fault in found.faults:
            print(fault, file=sys.stderr)
        faults += len(found.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
