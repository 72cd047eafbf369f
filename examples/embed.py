"""A node inside one's own asyncio program, with a kernel of one's own.

what    runs a `zkd.Daemon` and a `zkd.Client` in this program's event loop and maps the kernel
        `circle_hits` of kernels/montecarlo.py over 200 seeds; the node's workers do the computing
time    2 s
run     python examples/embed.py                      with the embedded ZooKeeper in the same loop
        python examples/embed.py HOST:PORT            with yours, below /zkd-embed
last    pi is about 3.141… from 10,000,000 throws
"""

from __future__ import annotations

import asyncio
import math
import sys
import tempfile
from pathlib import Path

import zkd
from zkd import settings
from zkd.zk.server import EmbeddedServer

SEEDS, THROWS = 200, 50_000


async def estimate(hosts: str, data_dir: str) -> float:
    # The workers are children of this process and inherit where it finds modules.
    sys.path.append(str(Path(__file__).parent / "kernels"))
    wanted = settings.load(
        env={},
        overrides={
            "zookeeper.hosts": hosts,
            "zookeeper.root": "/zkd-embed",
            "node.name": "embedded",
            "node.data_dir": data_dir,
            "workers.modules": ["montecarlo"],
        },
    )
    async with zkd.Daemon(wanted) as daemon, zkd.Client(hosts, "/zkd-embed") as client:
        print(f"node {daemon.name} serves with {daemon.settings.node.slots} slots")
        hits: list[int] = await client.map("circle_hits", range(SEEDS), THROWS)
        return 4 * sum(hits) / (SEEDS * THROWS)


async def main() -> int:
    with tempfile.TemporaryDirectory(prefix="zkd-embed-") as data_dir:
        if len(sys.argv) > 1:
            pi = await estimate(sys.argv[1], data_dir)
        else:
            async with EmbeddedServer() as server:
                pi = await estimate(server.connect_string, data_dir)
    print(f"pi is about {pi:.5f} from {SEEDS * THROWS:,} throws")
    # Six standard deviations of such an estimate.
    return 0 if abs(pi - math.pi) < 6 * math.sqrt(math.pi * (4 - math.pi) / (SEEDS * THROWS)) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
