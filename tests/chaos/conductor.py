"""One run from the first server to the verdict: load, faults, healing, convergence, judgement."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tests.chaos import (
    checker,
    faults_of_connections,
    faults_of_daemons,
    faults_of_disks,
    faults_of_networks,
    faults_of_people,
    faults_of_servers,
)
from tests.chaos.audit import Audit, audit
from tests.chaos.checker import Left, Tree, Verdict, Violation
from tests.chaos.history import seen_of
from tests.chaos.nemesis import FAULTS, Blow, Nemesis
from tests.chaos.site import SUBMITTERS, TREE, Site, opened
from tests.chaos.submitters.desk import allow
from tests.chaos.txnlog import committed, data_dirs_of
from tests.cluster.processes import wait_for_exit
from zkd.errors import ZooKeeperError
from zkd.paths import Paths
from zkd.zk import Session

__all__ = ["FAULTS", "Options", "Outcome", "conduct"]
_ = (  # each enters its faults into the catalogue
    faults_of_connections,
    faults_of_daemons,
    faults_of_disks,
    faults_of_networks,
    faults_of_people,
    faults_of_servers,
)

LOAD_MIN = 50.0  # tasks/s before the first fault; with less a run proves nothing
WARM_S = 5.0
WARM_MAX_S = 90.0
CONVERGE_S = 60.0
POLL_S = 0.25
READ_AT_ONCE = 50


@dataclass(frozen=True)
class Options:
    tasks: int
    seed: int
    directory: Path
    minutes: float = 60.0
    faults: tuple[str, ...] = tuple(FAULTS)
    daemons: int = 3
    slots: int = 2
    timeout_s: float = 4.0
    load_min: float = LOAD_MIN
    is_isolated: bool = True  # with network namespaces and small disks, where root allows
    is_each_hit: bool = False  # go on past `minutes` until each of the faults has hit


@dataclass
class Outcome:
    """What a run came to."""

    options: Options
    began_at: float = 0.0  # all of these by the monotonic clock
    ms_at_zero: float = 0.0  # the wall clock's milliseconds when the monotonic clock said 0
    first_fault_at: float = 0.0
    healed_at: float = 0.0
    converged_at: float | None = None
    load_before: float = 0.0
    blows: list[Blow] = field(default_factory=list)
    truces: list[tuple[float, float]] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    audit: Audit = field(default_factory=Audit)
    rates: list[tuple[float, int]] = field(default_factory=list)  # when, and how many had ended
    unexpected: list[Violation] = field(default_factory=list)  # what should not have happened beside the tasks
    disagreement: str = ""  # of the servers on what is in the tree

    @property
    def violations(self) -> list[Violation]:
        return [*self.unexpected, *self.verdict.violations, *self.audit.violations]

    @property
    def void(self) -> str:
        """Why this run does not count, or nothing."""
        if self.disagreement:
            return f"ZooKeeper itself has lost transactions: {self.disagreement}"
        if self.load_before < self.options.load_min:
            return f"only {self.load_before:.0f} tasks/s before the first fault, {self.options.load_min:.0f} are needed"
        if not any(blow.proof for blow in self.blows):
            return "no fault hit"
        if self.converged_at is None:
            return f"not at rest {CONVERGE_S:.0f} s after the last fault: {self.verdict.unfinished[:10]}"
        return ""


async def conduct(options: Options, tell: Callable[[str], None]) -> Outcome:
    outcome = Outcome(options)
    options.directory.mkdir(parents=True, exist_ok=True)
    async with opened(
        options.directory,
        daemons=options.daemons,
        slots=options.slots,
        timeout_s=options.timeout_s,
        seed=options.seed,
        is_isolated=options.is_isolated,
    ) as site:
        outcome.began_at = time.monotonic()
        outcome.ms_at_zero = time.time() * 1000 - time.monotonic() * 1000
        allow(options.directory, options.tasks)
        for name in SUBMITTERS:
            site.start_submitter(name)
        tell(f"network {'of namespaces' if site.network.is_real else 'none'}, small disks {site.small_disks}")
        over = asyncio.Event()
        nemesis = Nemesis(site, options.seed, options.faults, tell)
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_watch(site, outcome, tell))
            outcome.load_before = await _warm_up(site, options.load_min)
            tell(f"{outcome.load_before:.0f} tasks/s before the first fault")
            outcome.first_fault_at = time.monotonic()
            raging = group.create_task(nemesis.run(over))
            until = outcome.began_at + options.minutes * 60
            while not all(each.is_through for each in site.progress().values()) and not _have_ended(site):
                if time.monotonic() > until and not (options.is_each_hit and nemesis.spared()):
                    for process in site.submitters.values():
                        process.send_signal(signal.SIGTERM)
                await asyncio.sleep(POLL_S)
            over.set()
            await raging
            await _heal(site)
            outcome.healed_at = time.monotonic()
            tell("all faults healed")
            await _converge(site, outcome)
            watch.cancel()
        outcome.blows, outcome.truces = nemesis.blows, nemesis.truces
        site.kill_submitters()  # those that still wait
        for daemon in site.daemons.values():
            daemon.signal(signal.SIGTERM)
        exits = await asyncio.to_thread(wait_for_exit, list(site.daemons.values()), 60.0)
        if any(exits):
            outcome.unexpected.append(Violation("daemon", "all", f"an orderly stop ended with {exits}"))
        outcome.disagreement = await _disagreement(site)
        await _dump(site)
        await asyncio.to_thread(site.servers.stop)
        tell("judging")
        judge(outcome)
    return outcome


def judge(outcome: Outcome) -> None:
    """Fill in what the files of a run say."""
    directory = outcome.options.directory
    tree = msgspec.json.decode((directory / "tree").read_bytes(), type=Tree)
    histories, ledgers = sorted(directory.glob("*.history")), sorted(directory.glob("*.ledger"))
    outcome.verdict = checker.judge(histories, ledgers, directory / "results", tree)
    outcome.audit = audit(committed(data_dirs_of(directory)), Paths(TREE))


def _have_ended(site: Site) -> bool:
    return all(process.poll() is not None for process in site.submitters.values())


async def _warm_up(site: Site, load_min: float) -> float:
    """Wait until there is load, and measure it."""
    began = time.monotonic()
    before: list[tuple[float, int]] = []
    while True:
        now, ended = time.monotonic(), site.ended()
        before = [(t, n) for t, n in before if t > now - WARM_S] + [(now, ended)]
        rate = (ended - before[0][1]) / max(WARM_S, now - before[0][0])
        if (rate >= load_min and now - began > WARM_S) or now - began > WARM_MAX_S or _have_ended(site):
            return rate
        await asyncio.sleep(POLL_S)


async def _watch(site: Site, outcome: Outcome, tell: Callable[[str], None]) -> None:
    """Note the pace, and start daemons again that ended though nobody touched them: they should not have."""
    told = 0.0
    while True:
        now, ended = time.monotonic(), site.ended()
        outcome.rates.append((now, ended))
        if now - told > 10.0:
            told = now
            site.purge_snapshots()
            tell(f"{ended} of {outcome.options.tasks} have ended")
        for name, daemon in site.daemons.items():
            status = daemon.process.poll()
            if status is not None and name not in site.out_on_purpose:
                outcome.unexpected.append(Violation("daemon", name, f"it ended by itself with {status}"))
                tell(f"{name} ended by itself with {status}")
                daemon.start()
        for name, process in site.submitters.items():
            if process.poll() not in (None, 0) and f"submitter {name}" not in {v.task for v in outcome.unexpected}:
                outcome.unexpected.append(Violation("submitter", f"submitter {name}", f"exit {process.poll()}"))
        await asyncio.sleep(POLL_S)


async def _heal(site: Site) -> None:
    """Whatever a fault that failed may have left behind."""
    stopped = [server for server in site.servers.servers if not server.is_running]
    await faults_of_servers.bring_back(*stopped)
    await asyncio.to_thread(site.servers.wait_until_serving)


async def _converge(site: Site, outcome: Outcome) -> None:
    """Wait until every submitter has seen the end of all it dropped, and the drop box is empty."""
    deadline = outcome.healed_at + CONVERGE_S
    while time.monotonic() < deadline:
        try:
            if _have_ended(site) and not await site.session.children(site.paths.tasks):
                outcome.converged_at = time.monotonic()
                return
        except ZooKeeperError:
            pass
        await asyncio.sleep(POLL_S)


async def _disagreement(site: Site) -> str:
    """Compare what the servers have; in words where that is not the same. Nothing else writes any more."""
    found: dict[str, set[str]] = {}
    for number, server in enumerate(site.servers.servers, 1):
        async with Session(server.connect_string, timeout_s=30.0) as session:
            await session.connected(30.0)
            await session.sync(site.paths.root)
            names = [(path, await session.children(path)) for path in (site.paths.tasks, site.paths.results)]
            found[f"server-{number}"] = {f"{path}/{child}" for path, children in names for child in children}
    whole = set().union(*found.values())
    lacks = {name: sorted(whole - some) for name, some in found.items() if some != whole}
    return "; ".join(f"{name} lacks {len(some)} znodes, such as {some[0]}" for name, some in lacks.items())


async def _dump(site: Site) -> None:
    """Write down the tree as it is at the end."""
    session, paths = site.session, site.paths
    await session.sync(paths.root)
    dead = await session.children(paths.dead)
    keys = {}
    for start in range(0, len(dead), READ_AT_ONCE):
        some = dead[start : start + READ_AT_ONCE]
        for task_id, got in zip(
            some, await session.get_many([paths.dead_task(task_id) for task_id in some]), strict=True
        ):
            if not isinstance(got, ZooKeeperError):
                keys[task_id] = str(msgspec.json.decode(got.data)["task"].get("args", [""])[0])
    ids = await session.children(paths.results)
    with (site.directory / "results").open("wb") as file:
        for start in range(0, len(ids), READ_AT_ONCE):
            some = ids[start : start + READ_AT_ONCE]
            for task_id, got in zip(
                some, await session.get_many([paths.result(task_id) for task_id in some]), strict=True
            ):
                if isinstance(got, ZooKeeperError):
                    continue
                seen = seen_of(got.data)
                key = keys.get(task_id, "")
                if seen.value is not None and seen.value.startswith("{"):
                    key = msgspec.json.decode(seen.value).get("key", "")
                file.write(msgspec.json.encode(Left(task_id, seen, key)) + b"\n")
    tree = Tree(await session.children(paths.tasks), dead)
    (site.directory / "tree").write_bytes(msgspec.json.encode(tree))
