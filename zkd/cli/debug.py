"""`zkd debug bundle`: one file with what helps to find a fault, for whoever is asked for help.

Summaries, figures, settings, versions and recent lines of log; never arguments, results, rows, passwords or the token.
"""

from __future__ import annotations

import io
import os
import platform
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import client_for, connection_options, find_settings
from zkd.cli.output import bytes_text, to_text

if TYPE_CHECKING:
    from zkd.client import Client
    from zkd.settings import Settings

PACKAGES = ("zkd", "aiozk", "aiohttp", "msgspec", "numpy", "structlog", "uvloop", "xxhash", "blake3")


@click.group()
def debug_command() -> None:
    """Find out what is wrong."""


@debug_command.command()
@click.option("-f", "--file", "target", metavar="FILE", help="Where to [default: zkd-debug-<time>.tar.gz here].")
@connection_options
@click.pass_context
def bundle(ctx: click.Context, target: str | None, hosts: str | None, root: str | None, config: str | None) -> None:
    """Write what helps to find a fault into one .tar.gz: the cluster's picture, metrics, settings, versions, logs.

    Arguments, results, rows, passwords and the cluster's token are not in it; ids, names and error messages are. What
    could not be had is said in errors.txt.
    """
    import asyncio

    settings = find_settings(ctx, hosts, root, config)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    path = Path(target or f"zkd-debug-{stamp}.tar.gz")
    files = asyncio.run(_collect(settings))
    _write(path, f"zkd-debug-{stamp}", files)
    click.echo(f"{path}: {len(files)} files, {bytes_text(path.stat().st_size)}")
    if "errors.txt" in files:
        click.echo(files["errors.txt"].rstrip(), err=True)


def _write(path: Path, top: str, files: dict[str, str]) -> None:
    """Whole or not at all, and for its owner alone."""
    part = path.with_name(f"{path.name}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as out, tarfile.open(fileobj=out, mode="w:gz") as tar:
            for name, text in files.items():
                data = text.encode(errors="replace")
                entry = tarfile.TarInfo(f"{top}/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                tar.addfile(entry, io.BytesIO(data))
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


async def _collect(settings: Settings) -> dict[str, str]:
    from zkd.cli.doctor import examine
    from zkd.errors import ZkdError

    errors: list[str] = []
    files = {"versions.json": to_text(_versions()), "settings.json": to_text(shown(settings))}
    findings = [finding._asdict() for finding in await examine(settings)]
    files["doctor.jsonl"] = "".join(f"{to_text(finding)}\n" for finding in findings)
    unreached = [each["found"] for each in findings if (each["check"], each["verdict"]) == ("zookeeper", "error")]
    errors += unreached
    try:
        if not unreached:
            async with client_for(settings) as client:
                files |= await _of_cluster(client, errors)
    except ZkdError as error:
        errors.append(f"{settings.zookeeper.hosts}: {error}")
    if errors:
        files["errors.txt"] = "".join(f"{error}\n" for error in errors)
    return files


async def _of_cluster(client: Client, errors: list[str]) -> dict[str, str]:
    from zkd.cli.asking import ANSWERS_S, each_node, recent
    from zkd.overview.peers import body
    from zkd.overview.tree import Reader

    files = {"overview.json": to_text(await Reader(client.session, client.paths).read())}
    files["tree.json"] = to_text(await _tree(client))
    told, faults = await recent(client)
    errors += [f"node {node}: {why}" for node, why in faults.items()]
    for node, each in told.items():
        files[f"nodes/{node}/log.jsonl"] = "".join(f"{to_text(line)}\n" for line in each.lines)
        files[f"nodes/{node}/runs.jsonl"] = "".join(f"{to_text(ran)}\n" for ran in each.runs)
        if each.backlog is not None:
            files[f"nodes/{node}/backlog.json"] = to_text(each.backlog)
    metrics, faults = await each_node(
        client, lambda http, address, token: body(http, f"{address}/metrics", token, ANSWERS_S)
    )
    errors += [f"metrics of node {node}: {why}" for node, why in faults.items()]
    for node, text in metrics.items():
        files[f"nodes/{node}/metrics.txt"] = text.decode(errors="replace")
    return files


async def _tree(client: Client) -> dict[str, Any]:
    """The directories: how many znodes each has, and when that changed last. No content."""
    found = {}
    for path in client.paths.skeleton():
        stat = await client.session.exists(path)
        found[path] = None if stat is None else {"children": stat.num_children, "changes": stat.cversion}
    return found


def shown(settings: Settings) -> dict[str, Any]:
    """Every setting but those that are secrets, or name where one lies."""
    from zkd.settings import flat

    hidden = ("auth_file", ".key", "password", "secret", "token")
    values = {}
    for key, value in flat(settings).items():
        is_secret = value is not None and any(word in key for word in hidden)
        values[key] = "(not shown)" if is_secret else value
    return values


def _versions() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"python": sys.version, "platform": platform.platform(), "cpus": os.cpu_count()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
