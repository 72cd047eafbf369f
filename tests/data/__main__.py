"""`python -m tests.data --rounds N --seed S`: rounds of faults, and the verdict.

Exit code 0: every promise was kept. 1: one was not, told with what went before. The store's own lives come first.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import sys
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

from tests.data import store_lives
from tests.data.rounds import Wrong, playing
from zkd.zk.apache import ApacheServer
from zkd.zk.server import serve_in_thread

KINDS = ("write", "repair", "client", "move", "blackout", "rot", "remove", "remover")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.data", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of: %(default)s")
    parser.add_argument("--zookeeper", choices=("embedded", "apache"), default="apache")
    parser.add_argument("--lives", type=int, default=200, help="of the store alone, before; 0: none")
    parser.add_argument("--out", type=Path, default=Path("out/data"))
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    out = args.out.absolute()
    failed = 0
    if args.lives:
        failed = store_lives.main(out / "lives", args.seed, 1, args.lives)
    with ExitStack() as stack:
        if args.zookeeper == "apache":
            hosts = stack.enter_context(ApacheServer(out / "zookeeper")).connect_string
        else:
            hosts = stack.enter_context(serve_in_thread()).connect_string
        return asyncio.run(play(hosts, out, args.seed, args.rounds, args.kinds.split(","))) or failed


async def play(hosts: str, out: Path, seed: int, count: int, kinds: list[str]) -> int:
    began = time.monotonic()
    async with playing(hosts, "/zkd", out, seed) as rounds:
        verdict = 0
        try:
            for kind in itertools.islice(itertools.cycle(kinds), count):
                await rounds.go(kind)
                print(f"{time.monotonic() - began:6.0f} s  {rounds.story[-1]}", flush=True)
        except Wrong as wrong:
            print("\n".join(rounds.story[-40:]), f"--- WRONG: {wrong}", sep="\n")
            verdict = 1
        except Exception:
            print("\n".join(rounds.story[-40:]), traceback.format_exc(), sep="\n")
            verdict = 1
    (out / "story").write_text("\n".join(rounds.story))
    print(f"{rounds.report}, seed {seed}, {time.monotonic() - began:.0f} s: {'WRONG' if verdict else 'all kept'}")
    return verdict


if __name__ == "__main__":
    sys.exit(main())
