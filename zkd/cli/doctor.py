"""`zkd doctor`: checks of this machine and its ZooKeeper, each with what to do about it."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import client_for, connection_options, find_settings
from zkd.cli.doctor_machine import Finding, of_machine
from zkd.cli.exits import Exit
from zkd.cli.output import FOR_PEOPLE, bytes_text, output_option, write_rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zkd.client import Client
    from zkd.records import Node
    from zkd.settings import Settings

ROUND_TRIPS = 20
SLOW_MS = 10.0
CLOCK_MAX_S = 5.0
LAG_S = 0.5
JUTE_DEFAULT = 1024 * 1024


@click.command()
@output_option
@connection_options
@click.pass_context
def doctor_command(ctx: click.Context, output: str, hosts: str | None, root: str | None, config: str | None) -> int:
    """Check this machine and its ZooKeeper, and say what to do.

    Exit code 5 if ZooKeeper cannot be reached, 1 if something else is wrong, 0 if there are warnings at most.
    """
    import asyncio

    settings = find_settings(ctx, hosts, root, config)
    findings = asyncio.run(examine(settings))
    rows = [finding._asdict() for finding in findings]
    if output in FOR_PEOPLE:
        for finding in findings:
            click.echo(f"{_mark(finding.verdict)} {finding.check}: {finding.found}")
            if finding.advice:
                click.echo(f"          {finding.advice}")
    else:
        write_rows(rows, output)
    errors = [finding for finding in findings if finding.verdict == "error"]
    if any(finding.check == "zookeeper" for finding in errors):
        return Exit.UNREACHABLE
    return Exit.TASK_FAILED if errors else Exit.OK


def _mark(verdict: str) -> str:
    import sys

    text = f"{verdict:8}"
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    is_plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or verdict not in colours
    return text if is_plain else click.style(text, fg=colours[verdict])


async def examine(settings: Settings) -> list[Finding]:
    """All there is to find, the ZooKeeper first."""
    from zkd.errors import ZooKeeperError

    findings: list[Finding] = []
    try:
        async with client_for(settings) as client:
            findings.append(_reached(client))
            async for finding in _zookeeper(client):
                findings.append(finding)
            async for finding in _cluster(client):
                findings.append(finding)
    except ZooKeeperError as error:
        advice = "Start ZooKeeper, or say where it is: --hosts, $ZKD_HOSTS, zookeeper.hosts. `zkd dev` starts one."
        findings.append(Finding("zookeeper", "error", f"{settings.zookeeper.hosts}: {error}", advice))
    return [*findings, *of_machine(settings)]


def _reached(client: Client) -> Finding:
    server = client.session.server
    return Finding("zookeeper", "ok", f"connected to {server[0]}:{server[1]}" if server else "connected")


async def _zookeeper(client: Client) -> AsyncIterator[Finding]:
    session, paths = client.session, client.paths
    asked, given = client.session_timeout_s, session.timeout_s
    yield Finding(
        "session timeout",
        "ok" if given <= asked * 1.5 else "warning",
        f"asked for {asked:g} s, got {given:g} s",
        "" if given <= asked * 1.5 else "A lost node is noticed later; lower minSessionTimeout at the server.",
    )
    yield await _round_trip(client)
    yield await _watches(client)
    yield await _extended_types(client)
    for server in client.hosts.split(","):
        async for finding in _four_letters(server.strip()):
            yield finding
    yield await _packets(client)
    stat = await session.exists(paths.root)
    if stat is None:
        yield Finding("root", "info", f"{paths.root} is not there yet", "The first daemon or task makes it.")
    else:
        yield Finding("root", "ok", f"{paths.root} is there")
        yield await _clock(client)


async def _round_trip(client: Client) -> Finding:
    times = []
    for _ in range(ROUND_TRIPS):
        start = time.perf_counter()
        await client.session.exists("/")
        times.append((time.perf_counter() - start) * 1000)
    middle = statistics.median(times)
    return Finding(
        "round trip",
        "ok" if middle < SLOW_MS else "warning",
        f"{middle:.2f} ms median, {max(times):.2f} ms slowest of {ROUND_TRIPS} reads",
        "" if middle < SLOW_MS else "Every task takes several of these: run nodes near the ensemble.",
    )


async def _watches(client: Client) -> Finding:
    """Persistent watches came with 3.6; whether the server has them is asked for, not concluded from a version."""
    from zkd.errors import Unimplemented, ZooKeeperError

    try:
        await client.session.add_watch(client.paths.root, _ignore, recursive=True)
        await client.session.remove_watch(client.paths.root, _ignore)
    except (Unimplemented, ZooKeeperError) as error:
        return Finding("persistent watches", "error", str(error), "zkd needs ZooKeeper 3.6 or later.")
    return Finding("persistent watches", "ok", "offered (ZooKeeper 3.6 or later)")


def _ignore(_: Any) -> None:
    return


async def _extended_types(client: Client) -> Finding:
    """A TTL znode is tried in a transaction that cannot succeed, so nothing is ever left behind."""
    from zkd.errors import MultiFailed, Unimplemented
    from zkd.zk import Check, Create

    try:
        await client.session.multi([Create("/zkd-doctor", ttl_ms=1000), Check("/zkd-doctor-absent", 0)])
    except MultiFailed as error:
        if error.index == 0 and isinstance(error.cause, Unimplemented):
            return _no_ttl()
    except Unimplemented:
        return _no_ttl()
    return Finding("TTL znodes", "ok", "offered: a task may carry a start deadline of its own")


def _no_ttl() -> Finding:
    advice = "Only for tasks dropped with a TTL: zookeeper.extendedTypesEnabled=true at the servers."
    return Finding("TTL znodes", "info", "switched off", advice)


async def _four_letters(server: str) -> AsyncIterator[Finding]:
    """What `srvr` tells, where the server allows it."""
    srvr = await _ask(server, b"srvr")
    if srvr is None:
        yield Finding(
            "server", "info", f"{server} does not answer `srvr`", "4lw.commands.whitelist=srvr,conf tells more."
        )
        return
    lines = dict(line.split(":", 1) for line in srvr.splitlines() if ":" in line)
    version = lines.get("Zookeeper version", "?").strip().split("-")[0].split(",")[0]
    mode = lines.get("Mode", "?").strip()
    number = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    is_old = len(number) == 2 and number < (3, 6)
    yield Finding(
        "server",
        "error" if is_old else "ok",
        f"{server}: version {version}, {mode}, latency min/avg/max {lines.get('Latency min/avg/max', '?').strip()} ms",
        "zkd needs ZooKeeper 3.6 or later." if is_old else "",
    )
    if mode == "standalone":
        yield Finding("ensemble", "info", "a single server", "For production run three or five: one may then be lost.")


async def _ask(server: str, word: bytes) -> str | None:
    import asyncio

    host, _, port = server.rpartition(":")
    host, port = (host, port) if host and port.isdigit() else (server, "2181")
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            try:
                writer.write(word)
                text = (await reader.read(64 * 1024)).decode(errors="replace")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    return text if "Mode:" in text or word != b"srvr" else None


async def _packets(client: Client) -> Finding:
    """Whether a transaction as large as zkd makes them gets through. It fails on purpose and changes nothing."""
    from zkd.errors import MultiFailed, ZooKeeperError
    from zkd.records import TASK_BYTES_MAX
    from zkd.zk import Check, Create

    size = TASK_BYTES_MAX + 64 * 1024
    try:
        await client.session.multi([Check("/zkd-doctor-absent", 0), Create("/zkd-doctor", b"x" * size)])
    except MultiFailed:
        return Finding("packet size", "ok", f"a packet of {bytes_text(size)} gets through")
    except ZooKeeperError as error:
        advice = f"Leave jute.maxbuffer of the servers at its default of {JUTE_DEFAULT} or above."
        return Finding("packet size", "error", f"a packet of {bytes_text(size)} does not get through: {error}", advice)
    raise AssertionError("a transaction that checks an absent znode cannot succeed")


async def _clock(client: Client) -> Finding:
    """Our clock against the server's, from the birth of a znode of ours that goes with our session."""
    from zkd.errors import ZooKeeperError

    before = time.time()
    try:
        created = await client.session.create(f"{client.paths.root}/doctor-", ephemeral=True, sequential=True)
        after = time.time()
        stat = await client.session.exists(created.path)
        await client.session.delete(created.path, -1)
    except ZooKeeperError as error:
        return Finding("writing", "error", str(error), "The ACL of the root does not let us write there.")
    if stat is None:
        return Finding("clock", "info", "not known")
    difference = stat.ctime / 1000 - (before + after) / 2
    advice = "" if abs(difference) < CLOCK_MAX_S else "Nothing in zkd depends on it, but people read times: run NTP."
    return Finding(
        "clock",
        "info",
        f"the server's is {abs(difference):.2f} s {'behind' if difference < 0 else 'ahead of'} ours",
        advice,
    )


async def _cluster(client: Client) -> AsyncIterator[Finding]:
    nodes, leader = await client.nodes(), await client.leader()
    slots = sum(node.slots for node in nodes.values())
    yield Finding(
        "nodes",
        "ok" if nodes else "warning",
        f"{len(nodes)} with {slots} slots" if nodes else "none",
        "" if nodes else "Start one: zkd daemon, or a whole cluster: zkd dev.",
    )
    if leader is not None:
        yield Finding("leader", "ok", f"{leader.node}, epoch {leader.epoch}")
    else:
        yield Finding("leader", "error" if nodes else "warning", "nobody leads", "Look at the logs of the daemons.")
    async for finding in _heard(client, nodes):
        yield finding
    versions = sorted({node.version for node in nodes.values()})
    if len(versions) > 1:
        yield Finding("versions", "warning", f"nodes run zkd {', '.join(versions)}", "Bring them to one version.")


async def _heard(client: Client, nodes: dict[str, Node]) -> AsyncIterator[Finding]:
    """Whether each node's event loop and its data plane answer, from here."""
    from zkd.cli.asking import ANSWERS_S, each_node
    from zkd.overview.peers import body

    if not nodes:
        return
    ready, faults = await each_node(
        client, lambda http, address, token: body(http, f"{address}/readyz", token, ANSWERS_S)
    )
    if ready and not faults:
        yield Finding("data plane", "ok", f"{len(ready)} of {len(nodes)} nodes answer over HTTP and can take work")
    for node, why in sorted(faults.items()):
        advice = "Data and large results travel by HTTP: give node.http an address that other machines reach."
        if "HTTP 503" in why:
            advice = f"It takes no work now: `zkd describe node {node}` says its state."
        yield Finding("data plane", "warning", f"{node}: {why}", advice)
    late = [name for name, status in (await client.statuses()).items() if name in nodes and status.loop_lag_s > LAG_S]
    if late:
        advice = "Its event loop waits for the processor: fewer slots, or less beside it on that machine."
        yield Finding("loop lag", "warning", f"over {LAG_S:g} s on {', '.join(late)}", advice)
