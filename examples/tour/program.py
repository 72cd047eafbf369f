"""What makes a program of a tour with an asyncio client: its options, a cluster that is ready, and a verdict.

async def run(options, teller):
    async with visited("flights", NODES, options, teller, slots=1, settings={}) as (cluster, client):
        ...
    return verdict(teller, "3 models of 1,797 rows", checks)

sys.exit(main("flights", __doc__, run))
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kazoo.client import KazooClient

import zkd
from tour.checks import Check
from tour.cluster import Cluster, ClusterError, add_zookeeper_option
from tour.flights import NoFlights
from tour.teller import Teller
from zkd.zk.apache import ApacheFailed, ApacheMissing

NODES_S = 30.0  # until all daemons are there

Run = Callable[[argparse.Namespace, Teller], Coroutine[Any, Any, bool]]


def main(name: str, doc: str | None, run: Run) -> int:
    """The exit code: 0 if `run` says that all is well."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_zookeeper_option(parser)
    parser.add_argument("--out", type=Path, default=Path("out"), help="for the picture and the logs [default: out]")
    options = parser.parse_args()
    teller = Teller(name)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    is_well = False
    try:
        is_well = asyncio.run(run(options, teller))
    except (zkd.ZkdError, ClusterError, ApacheFailed, ApacheMissing, NoFlights, TimeoutError) as error:
        teller.wrong(f"{type(error).__name__}: {error}")
    finally:
        teller.stop()
    return 0 if is_well else 1


@asynccontextmanager
async def visited(
    name: str,
    nodes: Sequence[str],
    options: argparse.Namespace,
    teller: Teller,
    *,
    slots: int,
    settings: Mapping[str, str],
) -> AsyncIterator[tuple[Cluster, zkd.Client]]:
    """Daemons that are all there, and a client. In another's ZooKeeper no trace is left of a tour that went well."""
    teller.begin("cluster")
    is_guest = ":" in options.zookeeper
    root = f"/zkd-{name}-{uuid.uuid4().hex[:8]}" if is_guest else "/zkd"
    logs = options.out / name
    with Cluster(nodes, logs, zookeeper=options.zookeeper, root=root, slots=slots, settings=settings) as cluster:
        async with zkd.Client(cluster.hosts, root) as client:
            await _wait_for_nodes(client, len(nodes))
            teller.end(f"{options.zookeeper} ZooKeeper on {cluster.hosts}, {', '.join(nodes)}")
            yield cluster, client
        if is_guest:
            cluster.stop_daemons()
            await asyncio.to_thread(_leave_no_trace, cluster.hosts, root)


async def _wait_for_nodes(client: zkd.Client, count: int) -> None:
    async with asyncio.timeout(NODES_S):
        while True:
            if len(await client.nodes()) == count:
                return
            await asyncio.sleep(0.05)


def _leave_no_trace(hosts: str, root: str) -> None:
    guest = KazooClient(hosts)
    guest.start(10)
    guest.delete(root, recursive=True)
    guest.stop()
    guest.close()


def verdict(teller: Teller, what: str, checks: Sequence[Check]) -> bool:
    """All checks as a table, and a last line that says `what` went well or which did not hold."""
    teller.checks(checks)
    wrong = [check for check in checks if not check.holds]
    for check in wrong:
        teller.wrong(f"{check.claim}: {check.detail}")
    if not wrong:
        teller.well(what)
    return not wrong
