"""`zkd dev`: a whole cluster on this machine. A ZooKeeper in this process (or a real one), and daemons as children.

The daemons are processes of their own, as they would be elsewhere, so that they can be killed to see what
happens. Nothing outlives this process, however it ends; nothing is kept without --data-dir.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import click


@click.command()
@click.option("--nodes", default=1, type=click.IntRange(0, 64), show_default=True, help="Daemons to start.")
@click.option("--slots", type=click.IntRange(1), help="Of each [default: one a CPU, divided among them].")
@click.option(
    "--port", default=2181, type=click.IntRange(0, 65535), show_default=True, help="Of ZooKeeper; 0: a free one."
)
@click.option("--zookeeper", is_flag=True, help="A real Apache ZooKeeper instead of the embedded one.")
@click.option("--data-dir", metavar="DIR", help="Keep the daemons' files here [default: a temporary directory].")
@click.option(
    "--module", "modules", multiple=True, metavar="MODULE", help="A Python module with @zkd.kernel functions."
)
@click.option("--root", metavar="PATH", help="Where zkd lives in the tree [env: ZKD_ROOT; default: /zkd].")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="warning")
@click.pass_context
def dev_command(
    ctx: click.Context,
    nodes: int,
    slots: int | None,
    port: int,
    zookeeper: bool,
    data_dir: str | None,
    modules: tuple[str, ...],
    root: str | None,
    log_level: str,
) -> int:
    """Start a whole cluster on this machine, with nothing to configure.

    Prints where it is, and `ready` when tasks can be dropped. Ctrl-C stops it.

    \b
      zkd dev --nodes 3
      zkd run numpy.sum '[1, 2, 3]'      (in another terminal)
    """

    from zkd.cli.connection import find_settings
    from zkd.cli.local_cluster import serve
    from zkd.settings import default_slots

    root = root or find_settings(ctx, None, None, None).zookeeper.root
    each = slots or max(1, default_slots() // max(1, nodes))
    options = ["--root", root, "--slots", str(each), "--log-level", log_level]
    for module in modules:
        options += ["--module", module]
    with ExitStack() as stack:
        directory = (
            Path(data_dir) if data_dir else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zkd-")))
        )
        hosts = None
        if zookeeper:
            from zkd.zk.apache import ApacheServer, Flags

            directory.mkdir(parents=True, exist_ok=True)
            flags = Flags(tick_ms=500, force_sync=data_dir is not None)
            # Started here, from the main thread: the server dies with the thread that started it.
            hosts = stack.enter_context(ApacheServer(directory / "zookeeper", port=port, flags=flags)).connect_string
        import uvloop

        try:
            return uvloop.run(serve(nodes, port, hosts, directory, root, options))
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:  # what kept it from getting ready
                raise group.exceptions[0] from None
            raise
