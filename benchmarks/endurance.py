"""An hour of everything at a steady rate: does anything grow?

    python -m benchmarks.endurance [--minutes 60] [--rate 200] [--plot out/endurance.png]

A synced Apache ZooKeeper and two daemons; one client that runs, submits, cancels and delays tasks, lets some fail and
be tried again, some crash, some wait for a node that never comes, some give large values. Every few seconds memory,
descriptors, threads, znodes, watches, sessions, loop lag and the leader's own sizes are written down. The verdict is
the linear slope of the second half: `growing` means that it is certain, and more than a tenth of the level in a day.
The default rate is half of what this machine does in a trial of ten seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import shutil
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import uvloop

import zkd
from benchmarks.cluster import PATHS, ROOT, Node, circumstances, counters, entry, one_server, rss_mb, save
from zkd.zk import Session
from zkd.zk.apache import ApacheServer

SLOTS = 2
SAMPLE_S = 5.0
RESULT_TTL_S = 120.0  # short, so that what is kept is soon as much as it will ever be
TRIAL_S = 10.0
UNBOUNDED_OUT = 5000  # more on their way than this: the rate is too high for this machine
DAY_S = 86_400.0

Sample = dict[str, float]


# --- The load: each kind is one task from its beginning to its end -----------------------------------------


class Load:
    """Tasks of all kinds, at a rate; what became of them."""

    def __init__(self, client: zkd.Client, rate: float) -> None:
        self.client = client
        self.rate = rate
        self.out = 0
        self.ended: Counter[str] = Counter()
        self.odd: Counter[str] = Counter()
        self._rng = random.Random(7)
        kinds: list[tuple[float, Callable[[], Awaitable[Any]]]] = [
            (70.0, self.run),
            (10.0, self.submit),
            (5.0, self.cancel),
            (4.0, self.delay),
            (4.0, self.retry),
            (2.0, self.deadline),
            (2.0, self.far_future),
            (2.0, self.never_runs),
            (0.5, self.large),
            (0.3, self.fails),
            (0.05, self.crash),
        ]
        self._kinds = [kind for _, kind in kinds]
        self._weights = [weight for weight, _ in kinds]

    async def send(self, until: float) -> None:
        began = time.monotonic()
        count = 0
        async with asyncio.TaskGroup() as group:
            while (now := time.monotonic()) < until:
                while count < (now - began) * self.rate:
                    count += 1
                    if self.out < UNBOUNDED_OUT:
                        (kind,) = self._rng.choices(self._kinds, self._weights)
                        group.create_task(self._one(kind))
                    else:
                        self.ended["left out"] += 1
                await asyncio.sleep(0.01)

    async def _one(self, kind: Callable[[], Awaitable[Any]]) -> None:
        self.out += 1
        try:
            await kind()
            self.ended[kind.__name__] += 1
        except zkd.ZkdError as error:
            self.odd[f"{kind.__name__}: {type(error).__name__}: {str(error)[:100]}"] += 1
        finally:
            self.out -= 1

    def _calls(self, **options: Any) -> Any:
        return self.client.options(ttl_s=RESULT_TTL_S, **options)

    async def run(self) -> None:
        await self.client.options(priority=self._rng.randint(-3, 3)).run("identity", "x" * 60)

    async def submit(self) -> None:
        await (await self._calls().submit("identity", "x" * 60)).result()

    async def cancel(self) -> None:
        handle = await self._calls().submit("sleep", 1.0)
        await asyncio.sleep(self._rng.uniform(0.0, 0.3))
        await handle.cancel()

    async def delay(self) -> None:
        await self._calls(delay_s=self._rng.uniform(0.5, 5.0)).run("identity", 1)

    async def retry(self) -> None:
        assert await self._calls(retries=2).run("unlucky", 1) == 2

    async def deadline(self) -> None:
        """Its deadline is long after its end."""
        await self._calls(not_after_s=86_400.0).run("identity", 1)

    async def far_future(self) -> None:
        """It is cancelled long before it is due."""
        handle = await self._calls(delay_s=86_400.0).submit("identity", 1)
        await asyncio.sleep(self._rng.uniform(0.0, 2.0))
        await handle.cancel()

    async def never_runs(self) -> None:
        """It waits for a node that is not there, behind another that waits for it for ever."""
        handle = await self._calls(labels={"no": "where"}).submit("identity", 1)
        await asyncio.sleep(self._rng.uniform(0.0, 2.0))
        await handle.cancel()

    async def large(self) -> None:
        assert len(await self._calls().run("letters", 300_000)) == 300_000

    async def fails(self) -> None:
        with suppress(zkd.TaskFailed):
            await self._calls(retries=1).run("unlucky", 5)

    async def crash(self) -> None:
        assert await self._calls(retries=1).run("unlucky", 1, "crash") == 2


# --- The samples -------------------------------------------------------------------------------------------


async def sample(server: ApacheServer, nodes: list[Node], session: Session, load: Load) -> Sample:
    found: Sample = {}
    counted = await asyncio.to_thread(counters, server)
    for name in ("znode_count", "watch_count", "num_alive_connections", "approximate_data_size"):
        found[f"server {name.replace('_', ' ')}"] = counted.get(name, math.nan)
    assert server.pid is not None
    found["server MB"] = rss_mb(server.pid)
    found["results kept"] = _children(await session.exists(PATHS.results))
    found["dead kept"] = _children(await session.exists(PATHS.dead))
    for node in nodes:
        found[f"{node.name} MB"] = rss_mb(node.pid)
        found[f"{node.name} descriptors"] = len(os.listdir(f"/proc/{node.pid}/fd"))
        found[f"{node.name} threads"] = len(os.listdir(f"/proc/{node.pid}/task"))
        found[f"{node.name} files of results"] = sum(path.is_file() for path in node.data_dir.rglob("*"))
        record = await entry(session, node.name)
        if record is not None:
            for name, value in (await asyncio.to_thread(metrics, record["address"])).items():
                found[f"{node.name} {name}"] = value
    found["client MB"] = rss_mb(os.getpid())
    found["client tasks out"] = load.out
    found["ended"] = sum(load.ended.values())
    return found


def metrics(address: str) -> Sample:
    """The gauges of a daemon that may grow."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        name, _, value = line.rpartition(" ")
        if name.startswith(("zkd_loop_lag", "zkd_leader_size", "zkd_leader_task", "zkd_tasks_queued")):
            found[name.removeprefix("zkd_")] = float(value)
    return found


def _children(stat: Any) -> int:
    return 0 if stat is None else int(stat.num_children)


async def watch(
    server: ApacheServer, nodes: list[Node], session: Session, load: Load, until: float, file: Path
) -> list[Sample]:
    samples: list[Sample] = []
    began = time.monotonic()
    with file.open("w") as lines:
        while time.monotonic() < until:
            await asyncio.sleep(SAMPLE_S)
            now = {"minute": (time.monotonic() - began) / 60, **await sample(server, nodes, session, load)}
            samples.append(now)
            lines.write(json.dumps(now) + "\n")
            lines.flush()
    return samples


async def endure(minutes: float, rate: float | None, directory: Path, file: Path) -> tuple[list[Sample], Load]:
    with ExitStack() as stack:
        server = stack.enter_context(one_server(directory / "zookeeper"))
        nodes = [Node(server.connect_string, name, directory, slots=SLOTS) for name in ("a", "b")]
        for node in nodes:
            node.environment["ZKD_TASKS__DEAD_TTL_S"] = str(RESULT_TTL_S)
            node.start()
            stack.callback(node.kill)
        async with Session(server.connect_string, timeout_s=30.0) as session:
            await session.connected(30.0)
            for node in nodes:
                await node.ready(session)
            async with zkd.Client(server.connect_string, ROOT) as client:
                if rate is None:
                    rate = await trial(client) / 2
                    print(f"half of what this machine does: {rate:.0f} tasks/s", flush=True)
                await client.options(labels={"no": "where"}).submit("identity", 1)  # and is there for ever
                load = Load(client, rate)
                until = time.monotonic() + minutes * 60
                sending = asyncio.create_task(load.send(until))
                samples = await watch(server, nodes, session, load, until, file)
                await sending
                for node in nodes:
                    assert node.process.poll() is None, f"{node.name} has ended: {node.log()[-3000:]}"
                return samples, load


async def trial(client: zkd.Client) -> float:
    """What it does of this mixture when nobody waits for it: the rate at which the sender keeps up."""
    load = Load(client, 1.0)
    began = time.monotonic()

    async def sender() -> None:
        while time.monotonic() < began + TRIAL_S:
            (kind,) = load._rng.choices(load._kinds, load._weights)
            if kind.__name__ in ("run", "submit", "retry", "deadline"):
                await load._one(kind)

    async with asyncio.TaskGroup() as group:
        for _ in range(200):
            group.create_task(sender())
    return sum(load.ended.values()) / (time.monotonic() - began)


# --- The verdict -------------------------------------------------------------------------------------------


def slope(minutes: list[float], values: list[float]) -> tuple[float, float]:
    """The least-squares slope a minute and its standard error, widened for samples that resemble their neighbours."""
    n = len(values)
    mean_x, mean_y = sum(minutes) / n, sum(values) / n
    spread = sum((x - mean_x) ** 2 for x in minutes)
    if n < 3 or not spread:
        return 0.0, math.inf
    gradient = sum((x - mean_x) * (y - mean_y) for x, y in zip(minutes, values, strict=True)) / spread
    rest = [y - mean_y - gradient * (x - mean_x) for x, y in zip(minutes, values, strict=True)]
    power = sum(r * r for r in rest)
    alike = sum(a * b for a, b in zip(rest, rest[1:], strict=False)) / power if power else 0.0  # noqa: RUF007
    alike = min(0.98, max(0.0, alike))
    independent = max(3.0, n * (1 - alike) / (1 + alike))
    return gradient, math.sqrt(power / n / max(1.0, independent - 2) / (spread / n))


def verdict(level: float, gradient: float, error: float) -> str:
    is_certain = gradient > 3 * error
    is_much = gradient * 1440 > max(1.0, 0.1 * level)
    return "growing" if is_certain and is_much else "flat"


def judged(samples: list[Sample]) -> list[tuple[str, float, float, float, float, str]]:
    """For each figure: first, last and mean level of the second half, slope an hour, verdict."""
    half = samples[len(samples) // 2 :]
    rows = []
    for name in samples[-1]:
        if name in ("minute", "ended"):
            continue
        points = [(s["minute"], s[name]) for s in half if name in s and not math.isnan(s[name])]
        if len(points) < 3:
            continue
        xs, ys = [x for x, _ in points], [y for _, y in points]
        gradient, error = slope(xs, ys)
        level = sum(ys) / len(ys)
        rows.append((name, level, max(ys), gradient * 60, error * 60, verdict(level, gradient, error)))
    return rows


def table(samples: list[Sample], load: Load, minutes: float) -> str:
    rate = sum(load.ended.values()) / (minutes * 60)
    lines = ["| second half of the run | mean | most | slope an hour | |", "|---|---|---|---|---|"]
    for name, level, most, gradient, error, word in judged(samples):
        lines.append(f"| {name} | {level:,.4g} | {most:,.4g} | {gradient:+,.2g} ± {error:,.1g} | {word} |")
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in load.ended.most_common())
    odd = "; ".join(f"{count} x {what}" for what, count in load.odd.most_common(5)) or "none"
    return (
        "\n".join(lines) + f"\n\n{minutes:g} minutes, {rate:,.0f} tasks/s: {kinds}. Ended otherwise than meant: {odd}."
    )


def plot(samples: list[Sample], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = {
        "memory, MB": [name for name in samples[-1] if name.endswith(" MB")],
        "descriptors, threads": [name for name in samples[-1] if name.endswith(("descriptors", "threads"))],
        "znodes": ["server znode count", "results kept", "dead kept"],
        "watches, sessions": ["server watch count", "server num alive connections"],
        "the leader's own sizes": [name for name in samples[-1] if "leader_size" in name],
        "loop lag, s": [name for name in samples[-1] if "lag" in name],
    }
    picture, axes = pyplot.subplots(3, 2, figsize=(11, 8), layout="constrained", sharex=True)
    for axis, (title, names) in zip(axes.flat, groups.items(), strict=True):
        for name in names:
            points = [(s["minute"], s[name]) for s in samples if name in s]
            axis.plot(*zip(*points, strict=True), linewidth=0.9, label=name)
        axis.set_title(title, fontsize=9)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=5, loc="upper left", frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("minutes")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, help="tasks/s; default: half of what this machine does")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    said = circumstances(
        f"python -m benchmarks.endurance --minutes {options.minutes:g} --rate {options.rate or 'half'}"
    )
    directory = Path(tempfile.mkdtemp(prefix="zkd-endurance-"))
    file = Path("out/endurance.jsonl")
    file.parent.mkdir(exist_ok=True)
    try:
        samples, load = uvloop.run(endure(options.minutes, options.rate, directory, file))
    except BaseException:
        print(f"the server's data and the daemons' logs are in {directory}", flush=True)
        raise
    text = table(samples, load, options.minutes)
    save("endurance", {"circumstances": said, "samples": samples, "ended": load.ended, "odd": load.odd}, text)
    if options.plot:
        plot(samples, options.plot)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
