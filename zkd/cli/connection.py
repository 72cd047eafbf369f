"""Where the cluster is, as the command line, the environment and the settings file say, and a client for it."""

from __future__ import annotations

import os
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from zkd.client import Client
    from zkd.settings import Settings

    Work = Callable[..., Awaitable[Any]]


CONNECT_TIMEOUT_S = 5.0  # a person waits
COMPLETION_S = 2.0  # a person waits in the middle of a line


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--hosts, --root and --config, also after the command's name."""
    for option in (
        click.option("--config", metavar="FILE", help="Settings file [env: ZKD_CONFIG]."),
        click.option("--root", metavar="PATH", help="Where zkd lives in the tree [env: ZKD_ROOT]."),
        click.option("--hosts", metavar="HOSTS", help="ZooKeeper, as host:port,host:port [env: ZKD_HOSTS]."),
    ):
        command = option(command)
    return command


def with_client(work: Work) -> Callable[..., Any]:
    """A command from an async function whose first argument is a connected `Client`."""

    @connection_options
    @wraps(work)
    def command(*args: Any, hosts: str | None, root: str | None, config: str | None, **kwargs: Any) -> Any:
        import asyncio

        settings = find_settings(click.get_current_context(), hosts, root, config)

        async def connected() -> Any:
            async with client_for(settings) as client:
                return await work(client, *args, **kwargs)

        return asyncio.run(connected())

    return command


def find_settings(
    ctx: click.Context, hosts: str | None, root: str | None, config: str | None, **overrides: Any
) -> Settings:
    """The settings: those of the file, the environment, and the options of the group or of its command."""
    from zkd import settings

    outer = ctx.obj or {}
    path = config or outer.get("config") or os.environ.get("ZKD_CONFIG")
    if path is None and os.access(settings.DEFAULT_PATH, os.R_OK):
        path = settings.DEFAULT_PATH
    given = {
        "zookeeper.hosts": hosts or outer.get("hosts"),
        "zookeeper.root": root or outer.get("root"),
        **overrides,
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    return settings.load(Path(path) if path else None, overrides=chosen)


def client_for(settings: Settings) -> Client:
    from zkd.client import Client
    from zkd.credentials import read_auth, tls_context

    zookeeper = settings.zookeeper
    return Client(
        zookeeper.hosts,
        zookeeper.root,
        session_timeout_s=zookeeper.session_timeout_s,
        connect_timeout_s=CONNECT_TIMEOUT_S,
        auth=read_auth(zookeeper),
        tls=tls_context(zookeeper.tls),
        data_tls=tls_context(settings.node.tls, section="node.tls"),
        access=zookeeper.access,
    )


def full_name(given: str, names: list[str], what: str) -> str:
    """The one of `names` that is `given` or begins with it."""
    from zkd.cli.exits import Exit, Stop

    if given in names:
        return given
    found = [name for name in names if name.startswith(given)]
    if not found:
        where = {"dead task": "get dead", "job": "train ls"}.get(what, f"get {what}s")
        raise Stop(Exit.NOT_FOUND, f"error: there is no {what} {given}\n  `zkd {where}` lists what there is.")
    if len(found) > 1:
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise Stop(Exit.USAGE, f"error: {given} is the beginning of {len(found)} {what}s: {some}\n  Give more of it.")
    return found[0]


def dataset_names(ctx: click.Context, param: click.Parameter, begun: str) -> list[str]:
    """What a shell completes a dataset's name to; nothing where there is no cluster."""
    import asyncio

    from zkd.errors import ZkdError

    async def names(settings: Settings) -> list[str]:
        async with asyncio.timeout(COMPLETION_S), client_for(settings) as client:
            name, at, _ = begun.partition("@")
            if at:
                return [f"{name}@{version}" for version in await client.datasets.versions(name)]
            return sorted(await client.datasets.list())

    outer = {**ctx.find_root().params, **{name: value for name, value in ctx.params.items() if value is not None}}
    try:
        settings = find_settings(ctx, outer.get("hosts"), outer.get("root"), outer.get("config"))
        return [each for each in asyncio.run(names(settings)) if each.startswith(begun)]
    except (ZkdError, OSError, TimeoutError):
        return []
