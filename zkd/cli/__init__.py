"""The `zkd` command. One file per group of commands; each is imported when it is called, and no sooner.

``zkd --help`` and completion load click and this file: neither numpy nor asyncio, a tenth of a second in all.
A command that talks to the cluster is an async function with a `zkd.Client`; `connection` gives it one,
`output` prints what it found, `exits` turns what went wrong into a sentence and an exit code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import click

import zkd

if TYPE_CHECKING:
    from collections.abc import Sequence

# name -> (module in this package, help). The module has a click command `<name>_command`.
COMMANDS = {
    "run": ("tasks", "Run a kernel on some node, wait, print its value."),
    "submit": ("tasks", "Drop a task without waiting and print its id."),
    "result": ("tasks", "Print the value of a task."),
    "cancel": ("tasks", "Cancel tasks; running kernels are stopped."),
    "retry": ("tasks", "Put dead tasks back into the drop box."),
    "why": ("tasks", "Say what a task waits for or how it ended, or when a schedule fires."),
    "schedule": ("schedule", "Have tasks dropped again and again, by cron or every so many seconds."),
    "get": ("get", "List nodes, tasks, results, kernels, dead tasks, schedules or limits."),
    "describe": ("describe", "Show everything about one node, task, result, kernel or schedule."),
    "status": ("status", "Show the cluster at a glance."),
    "top": ("top", "Show the cluster on one screen, live."),
    "events": ("events", "Show what happens: nodes, leader, failures, copies, jobs, models."),
    "logs": ("logs", "Tell the story of a task, from the tree and from all nodes."),
    "data": ("data", "Keep tables on the nodes: put, get, ls, stat, locate, verify, rm."),
    "train": ("train", "Train models on datasets: start, watch, pause, resume, stop."),
    "model": ("model", "Keep models in versions: push, ls, show, alias, canary, rollback, diff, rm."),
    "predict": ("predict", "Make a dataset of what a model says of another one, or say how good it is."),
    "lock": ("lock", "Run a command while a lock is held; `zkd lock ls` shows who holds what."),
    "elect": ("lock", "Run a command while leading, or say who leads."),
    "barrier": ("barrier", "Meet others at a name, or wait at a gate."),
    "counter": ("barrier", "Print a counter that all agree on, or add to it."),
    "node": ("node", "Drain, cordon and uncordon nodes."),
    "config": ("config", "Settings for many nodes at once: get, set, show, diff, history, rollback, explain, status."),
    "limit": ("limit", "Bound how much of a kernel's work the cluster takes on."),
    "init": ("init", "Give the tree the ACLs of the settings, or say where it has others."),
    "dev": ("dev", "Start a whole cluster on this machine, with nothing to configure."),
    "daemon": ("daemon", "Run a node."),
    "schema": ("schema", "Print the JSON Schema of a record, such as task or result."),
    "debug": ("debug", "Put all that helps to find a fault into one file."),
    "doctor": ("doctor", "Check this machine and its ZooKeeper, and say what to do."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and help, and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"zkd.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean `zkd {near[0]}`?" if near else " `zkd --help` lists the commands."
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx) from None


@click.group(
    cls=LazyGroup,
    epilog='Completion: eval "$(_ZKD_COMPLETE=bash_source zkd)"; also zsh_source, fish_source.',
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(zkd.__version__, prog_name="zkd")
@click.option("--hosts", metavar="HOSTS", help="ZooKeeper, as host:port,host:port [env: ZKD_HOSTS].")
@click.option("--root", metavar="PATH", help="Where zkd lives in the tree [env: ZKD_ROOT; default: /zkd].")
@click.option("--config", metavar="FILE", help="Settings file, for hosts, credentials and TLS [env: ZKD_CONFIG].")
@click.pass_context
def cli(ctx: click.Context, hosts: str | None, root: str | None, config: str | None) -> None:
    """Numeric work on the nodes of a ZooKeeper ensemble: drop a task znode, read its result.

    `zkd dev` starts a cluster on this machine; `zkd run numpy.sum '[1, 2, 3]'` gives it work.
    """
    ctx.obj = {"hosts": hosts, "root": root, "config": config}


def run(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code. What can go wrong ends here, on stderr; a bug goes on to `crash`."""
    from zkd.cli.exits import Exit, Stop, tell
    from zkd.errors import ZkdError

    try:
        code = cli.main(args=list(arguments), prog_name="zkd", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return Exit.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except BrokenPipeError:  # `zkd get tasks | head`
        _close_stdout()
        return Exit.OK
    except (ZkdError, Stop, OSError) as error:
        return tell(error)
    return code if isinstance(code, int) else Exit.OK


def _close_stdout() -> None:
    """Point stdout elsewhere, or Python would complain of the broken pipe once more when it ends."""
    import os
    import sys

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
