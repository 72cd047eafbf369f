"""`zkd limit`: how much of a kernel's work the whole cluster takes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zkd.cli.connection import full_name, with_client

if TYPE_CHECKING:
    from zkd.client import Client

    Rows = list[dict[str, Any]]


@click.command()
@click.argument("kernel")
@click.option("--per-second", "per_s", type=float, metavar="N", help="So many starts a second.")
@click.option("--burst", type=int, metavar="N", help="So many at once after a pause; a tenth of a second's worth.")
@click.option("--at-once", type=int, metavar="N", help="So many on all nodes together; 0 holds all back.")
@click.option("--none", "lift", is_flag=True, help="Lift the limit.")
@click.option("--reason", default="", help="For those who look later.")
@with_client
async def limit_command(
    client: Client,
    kernel: str,
    per_s: float | None,
    burst: int | None,
    at_once: int | None,
    lift: bool,
    reason: str,
) -> None:
    """Bound how much of KERNEL's work the cluster takes on; what is beyond waits. Replaces its former limit.

    \b
      zkd limit mykernels.query --per-second 10 --burst 20 --at-once 4
      zkd limit mykernels.query --none
    """
    if "/" in kernel:
        raise click.UsageError(f"{kernel}: expected the name of a kernel, such as numpy.sum")
    if lift:
        if (per_s, burst, at_once) != (None, None, None):
            raise click.UsageError("--none lifts the limit; give no bounds beside it")
        names = sorted(await client.session.children(client.paths.limits))
        full = full_name(kernel, names, "limit")
        await client.unset_limit(full)
        click.echo(f"{full} unlimited")
        return
    if per_s is None and at_once is None:
        raise click.UsageError("expected --per-second, --at-once or --none")
    await client.set_limit(kernel, per_s=per_s, burst=burst, at_once=at_once, reason=reason)
    if not any(kernel in node.kernels for node in (await client.nodes()).values()):
        click.echo(f"no node has the kernel {kernel} now; the limit holds when one does", err=True)
    click.echo(f"{kernel} limited")


async def rows(client: Client, name: str | None, limit: int, only_names: bool) -> Rows:
    """For `zkd get limits`."""
    limits = await client.limits()
    chosen = list(limits) if name is None else [full_name(name, list(limits), "limit")]
    found = [
        {
            "kernel": kernel,
            "per_s": limits[kernel].per_s,
            "burst": limits[kernel].burst,
            "at_once": limits[kernel].at_once,
            "by": limits[kernel].by or None,
            "reason": limits[kernel].reason or None,
        }
        for kernel in chosen
    ]
    return [{"kernel": row["kernel"]} for row in found] if only_names else found
