"""Jobs in a storm, for as long as one likes:

    python -m tests.training --rounds 20 --seed 1 [--embedded] [--only held\\ out] [--keep DIR]

Each round trains one model of the menu on three real daemons while one to four things happen to them, at moments that
the seed decides, and then says what was wrong. The same seed has the same things happen at about the same moments.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tests.training.storm import MENU, storm_over
from zkd.zk.apache import ApacheServer
from zkd.zk.server import serve_in_thread


async def storms(options: argparse.Namespace, hosts: str, servers: ApacheServer | None, directory: Path) -> int:
    bad, left = 0, ["all, since the storm broke off"]
    async with storm_over(hosts, f"/storm-{options.seed}", directory, servers, options.seed) as storm:
        try:
            for number in range(options.rounds):
                storm.rng = random.Random(f"{options.seed} {number}")
                name = options.only or storm.rng.choice(list(MENU))
                began = time.monotonic()
                wrong = await storm.round(name, storm.rng.randint(1, 4))
                took = time.monotonic() - began
                told = ", ".join(line[8:].strip() for line in storm.struck)
                print(f"{number:4} {name:9} {took:6.1f} s  {'WRONG' if wrong else 'well'}  {told}", flush=True)
                for line in wrong:
                    print(f"       {line}", flush=True)
                bad += bool(wrong)
                if wrong and options.stop:
                    break
            left = await storm.leftovers()
        finally:
            for name, node in storm.grid.nodes.items():  # else they are printed
                (directory / f"{name}.whole.log").write_text(node.log())
                node.log_path.write_text("")
    for line in left:
        print(f"     left: {line}")
    print(f"{number + 1 - bad} rounds well, {bad} wrong, {len(left)} things left")
    return bad + len(left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--embedded", action="store_true", help="our own server instead of Apache's")
    parser.add_argument("--only", choices=list(MENU), help="one model of the menu")
    parser.add_argument("--stop", action="store_true", help="at the first round that went wrong")
    parser.add_argument("--keep", type=Path, help="a new directory for logs and data")
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        if options.embedded:
            hosts, servers = stack.enter_context(serve_in_thread()).connect_string, None
        else:
            servers = stack.enter_context(ApacheServer(directory / "zookeeper"))
            hosts = servers.connect_string
        raise SystemExit(asyncio.run(storms(options, hosts, servers, directory)) > 0)


if __name__ == "__main__":
    main()
