"""`zkd daemon`: run a node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


@click.command()
@click.option("--config", metavar="FILE", help="Settings file [env: ZKD_CONFIG; default: /etc/zkd/zkd.toml if there].")
@click.option("--hosts", metavar="HOSTS", help="ZooKeeper, as host:port,host:port [env: ZKD_HOSTS].")
@click.option("--root", metavar="PATH", help="Where zkd lives in the tree [env: ZKD_ROOT; default: /zkd].")
@click.option("--name", metavar="NODE", help="Of this node [default: the host name].")
@click.option("--slots", type=int, help="Tasks that run at the same time [default: one a CPU].")
@click.option("--data-dir", metavar="DIR", help="For files of large values, and the lock.")
@click.option("--http", metavar="HOST:PORT", help="Where other nodes fetch data; an address that they reach.")
@click.option(
    "--module", "modules", multiple=True, metavar="MODULE", help="A Python module with @zkd.kernel functions."
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Tasks may ask for it.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.pass_context
def daemon_command(
    ctx: click.Context,
    config: str | None,
    hosts: str | None,
    root: str | None,
    name: str | None,
    slots: int | None,
    data_dir: str | None,
    http: str | None,
    modules: tuple[str, ...],
    labels: tuple[str, ...],
    log_level: str | None,
) -> int:
    """Run a node until SIGTERM or SIGINT, which drain it first. SIGHUP reads the settings again."""
    from zkd import service, settings
    from zkd.cli.values import read_labels

    outer = ctx.obj or {}
    given = config or outer.get("config") or os.environ.get("ZKD_CONFIG")
    path = Path(given) if given else settings.DEFAULT_PATH if settings.DEFAULT_PATH.exists() else None
    wanted: dict[str, Any] = {
        "zookeeper.hosts": hosts or outer.get("hosts"),
        "zookeeper.root": root or outer.get("root"),
        "node.name": name,
        "node.slots": slots,
        "node.data_dir": data_dir,
        "node.http": http,
        "node.labels": read_labels(labels) or None,
        "workers.modules": list(modules) or None,
        "log.level": log_level,
    }
    overrides = {key: value for key, value in wanted.items() if value is not None}
    wanted_settings, origins = settings.load_with_origins(path, overrides=overrides)
    return service.main(wanted_settings, path, overrides, origins)
