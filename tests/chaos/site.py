"""Where a run takes place: three ZooKeeper servers, daemons, and a proxy between each daemon and each server.

    submitter ----------------------------------------> server 1..3
    daemon 1..D --- its own three proxies (here) -----> server 1..3

Everything but the proxies is a process of its own and dies with this one. Where root allows it, each server and
each daemon has a network namespace, and some have a small disk; see `tests.chaos.network` and `tests.chaos.disks`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import disks
from tests.chaos import network as networks
from tests.chaos.network import Network
from tests.chaos.submitters.desk import Order, Progress, progress_of
from tests.cluster.processes import ROOT, DaemonProcess
from tests.faults.proxy import Proxy
from zkd.paths import Paths
from zkd.zk import Session
from zkd.zk.apache import Ensemble, Flags, dies_with_us, ensemble

TREE = "/zkd"
MODULES = Path(__file__).parent / "modules"
# tick and limits as docs recommend for production; forceSync is ZooKeeper's default. Logs grow as they are written:
# the usual 64 MiB a file would be most of what a short run leaves behind.
FLAGS = Flags(
    tick_ms=500,
    force_sync=True,
    heap="768m",
    config={"initLimit": "10", "syncLimit": "4", "snapCount": "50000"},
    properties={"zookeeper.preAllocSize": "4096"},
)
SNAPSHOTS_KEPT = 4
SUBMITTERS = {"client": 64, "raw": 48, "plain_kazoo": 32}  # and how many tasks each may have out at once


@dataclass
class Site:
    """What the nemesis breaks and the conductor mends."""

    directory: Path
    servers: Ensemble
    timeout_s: float
    daemons: dict[str, DaemonProcess] = field(default_factory=dict)
    proxies: dict[str, list[Proxy]] = field(default_factory=dict)  # of each daemon, one to each server
    submitters: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    onlooker: Session | None = None  # this process's own session, past all proxies
    paths: Paths = field(default_factory=lambda: Paths(TREE))
    out_on_purpose: set[str] = field(default_factory=set)  # daemons that the nemesis has down
    network: Network = field(default_factory=Network)
    small_disks: bool = False  # the first server's data and each daemon's lie on disks of their own
    seed: int = 0
    replaced: list[str] = field(default_factory=list)  # submitters that were killed

    @property
    def session(self) -> Session:
        assert self.onlooker is not None
        return self.onlooker

    def progress(self) -> dict[str, Progress]:
        return {name: progress_of(self.directory, name) for name in self.submitters}

    def ended(self) -> int:
        """How many tasks have ended, as far as submitters have told."""
        return sum(progress_of(self.directory, name).ended for name in (*self.submitters, *self.replaced))

    async def add_daemon(self, name: str, stack: AsyncExitStack, *, slots: int) -> None:
        self.proxies[name] = [
            await stack.enter_async_context(Proxy(server.port, upstream_host=server.host, host=self.network.host))
            for server in self.servers.servers
        ]
        hosts = ",".join(proxy.connect_string for proxy in self.proxies[name])
        daemon = DaemonProcess(hosts, TREE, name, self.directory, slots=slots, timeout_s=self.timeout_s)
        daemon.environment |= {
            "PYTHONPATH": f"{ROOT}:{MODULES}",
            "ZKD_WORKERS__MODULES": "ledgered",
            "CHAOS_LEDGER": str(self.directory / f"{name}.ledger"),
        }
        daemon.prefix = self.network.places[name].prefix
        self.daemons[name] = daemon
        stack.callback(daemon.kill)
        daemon.start()

    def start_submitter(self, name: str) -> None:
        """`name` is a kind, or a kind with a number behind a dot."""
        kind = name.partition(".")[0]
        order = Order(
            name,
            self.servers.connect_string,
            TREE,
            self.directory,
            self.seed,
            SUBMITTERS[kind],
            timeout_s=2 * self.timeout_s,
        )
        with (self.directory / f"{name}.log").open("ab") as log:
            self.submitters[name] = subprocess.Popen(
                [*dies_with_us(), sys.executable, "-m", f"tests.chaos.submitters.{kind}", order.text()],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def purge_snapshots(self) -> None:
        """Keep each server's newest few. They grow with every result, and the judge needs only the logs."""
        for server in self.servers.servers:
            snapshots = list((server.directory / "data" / "version-2").glob("snapshot.*[0-9a-f]"))  # no .tmp
            snapshots.sort(key=lambda path: int(path.suffix[1:], 16))
            for snapshot in snapshots[:-SNAPSHOTS_KEPT]:
                snapshot.unlink(missing_ok=True)

    def replace_submitter(self, name: str) -> None:
        """This one was killed: another goes on with what is left."""
        del self.submitters[name]
        self.replaced.append(name)
        self.start_submitter(f"{name.partition('.')[0]}.{len(self.replaced)}")

    def kill_submitters(self) -> None:
        for process in self.submitters.values():
            if process.poll() is None:
                process.kill()
                process.wait()


@asynccontextmanager
async def opened(
    directory: Path, *, daemons: int, slots: int, timeout_s: float, seed: int, is_isolated: bool
) -> AsyncIterator[Site]:
    """Servers and daemons, all serving; `is_isolated`: with a network and disks of their own, where that may be."""
    names = [f"d{number}" for number in range(1, daemons + 1)]
    async with AsyncExitStack() as stack:
        network = stack.enter_context(networks.opened(wanted=is_isolated))
        places = [network.add(f"server-{number}", number) for number in (1, 2, 3)]
        small = is_isolated and all(
            [
                stack.enter_context(disks.mounted(directory / "server-1" / "data", megabytes=1500, is_durable=True)),
                *(
                    stack.enter_context(disks.mounted(directory / f"{name}-data", megabytes=200, is_durable=False))
                    for name in names
                ),
            ]
        )
        servers = ensemble(3, directory, flags=FLAGS, places=[(place.host, place.prefix) for place in places])
        stack.callback(servers.remove)
        servers.start()
        await asyncio.to_thread(servers.wait_until_serving)
        site = Site(directory, servers, timeout_s, network=network, small_disks=small, seed=seed)
        stack.callback(site.kill_submitters)
        site.onlooker = await stack.enter_async_context(Session(servers.connect_string, timeout_s=30.0))
        await site.session.connected(20.0)
        for number, name in enumerate(names, 11):
            network.add(name, number)
            await site.add_daemon(name, stack, slots=slots)
        async with asyncio.timeout(60.0):
            while not all([await site.session.exists(site.paths.node(name)) for name in site.daemons]):
                await asyncio.sleep(0.1)
        yield site
