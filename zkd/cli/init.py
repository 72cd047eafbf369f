"""`zkd init`: make the tree, with the ACLs that the settings ask for, and say where it has others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zkd.cli.connection import client_for, connection_options, find_settings
from zkd.cli.exits import Exit, Stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.client import Client
    from zkd.settings import Access
    from zkd.zk import Acl

    Rule = Callable[[str], tuple[Acl, ...]]

SHOWN_MAX = 20
READS_AT_ONCE = 64
# What zkd does not own, and an open ensemble lets anyone write to: a quota planted there stops a whole tree.
NOT_OURS = ("/", "/zookeeper", "/zookeeper/quota")
EXAMPLE = """  A tree whose znodes nobody but its owners may change needs them named, as in
    [zookeeper]
    auth_file = "credential:zk-auth"        # a line digest:zkd:PASSWORD
    [zookeeper.access]
    daemons = ["digest:zkd:HASH"]           # `zkd init --identity zkd` asks for a password and prints it
    submitters = ["digest:team:HASH"]"""


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if an ACL is another than it should be.")
@click.option("--identity", metavar="USER", help="Ask for a password, and print the identity for the settings.")
@connection_options
@click.pass_context
def init_command(
    ctx: click.Context, check: bool, identity: str | None, hosts: str | None, root: str | None, config: str | None
) -> int:
    """Make the tree below the root, and give all of it the ACLs that [zookeeper.access] asks for.

    Run it as one of the daemons or operators, before the first daemon or at any time after.

    \b
      zkd init --identity zkd
      zkd --config /etc/zkd/zkd.toml init
      zkd --config /etc/zkd/zkd.toml init --check
    """
    import asyncio

    from zkd.access import policy

    if identity is not None:
        click.echo(f"digest:{digest_of(identity, click.prompt('Password', hide_input=True, err=True))}")
        return Exit.OK
    settings = find_settings(ctx, hosts, root, config)
    access = settings.zookeeper.access
    if access is None:
        raise Stop(Exit.USAGE, f"error: expected a section [zookeeper.access] in the settings, got none\n{EXAMPLE}")

    async def work() -> int:
        async with client_for(settings) as client:
            rule = policy(access, client.paths, is_proved=True)
            assert rule is not None
            return await _check(client, rule) if check else await _set_up(client, rule, access)

    return asyncio.run(work())


def digest_of(user: str, password: str) -> str:
    """ZooKeeper's digest identity: the user, and the SHA-1 of ``user:password`` in base64."""
    import base64
    import hashlib

    if not user or ":" in user or any(letter.isspace() for letter in user):
        raise click.UsageError(f"expected a user without colons and blanks, got {user!r}")
    proof = hashlib.sha1(f"{user}:{password}".encode(), usedforsecurity=False).digest()
    return f"{user}:{base64.b64encode(proof).decode()}"


async def _set_up(client: Client, rule: Rule, access: Access) -> int:
    from zkd.errors import NoNode
    from zkd.zk import ANY_VERSION

    await _refuse_to_lock_out(client, rule, access)
    made = await _make(client)
    changed = 0
    paths = await _all(client)
    # From the leaves up: whoever is stopped half-way can begin again.
    for path, given in await _deviations(client, rule, list(reversed(paths))):
        try:
            await client.session.set_acl(path, _mended(rule(path), given or ()), ANY_VERSION)
            changed += 1
        except NoNode:
            pass  # a task that ended meanwhile
    click.echo(f"{client.paths.root}: {len(paths)} znodes, {made} made, {changed} with another ACL than before")
    await _warn(client)
    return await _check(client, rule) if changed else Exit.OK


async def _make(client: Client) -> int:
    from zkd.errors import NodeExists

    made = 0
    for path in client.paths.skeleton():
        if await client.session.exists(path) is None:
            try:
                await client.session.create(path)
                made += 1
            except NodeExists:
                pass
    return made


async def _refuse_to_lock_out(client: Client, rule: Rule, access: Access) -> None:
    """Whoever gives away rights that he has not himself could never take it back."""
    from zkd.errors import NoAuth
    from zkd.paths import parent
    from zkd.zk import ANY_VERSION, ensure_path

    above = parent(client.paths.root)
    if above != "/":
        await ensure_path(client.session, above)
    probe = f"{above.rstrip('/')}/zkd-init-{client.session.session_id:x}"
    try:
        await client.session.create(probe, ephemeral=True)
        try:
            await client.session.set_acl(probe, rule(client.paths.root), ANY_VERSION)
            await client.session.get_acl(probe)
            await client.session.set_acl(probe, rule(client.paths.root), ANY_VERSION)
        except NoAuth:
            named = ", ".join((*access.daemons, *access.operators))
            raise Stop(
                Exit.USAGE,
                f"error: nothing was changed: the credentials of these settings are not those of {named}\n"
                "  The tree would be locked for whoever runs this. See auth_file and tls in the settings.",
            ) from None
    except NoAuth:
        if await client.session.exists(client.paths.root) is None:
            raise Stop(
                Exit.CONFLICT, f"error: {above} does not let these credentials create {client.paths.root}"
            ) from None
        # Not ours to try in; the tree exists, and who may not change it will be told so.


async def _check(client: Client, rule: Rule) -> int:
    paths = await _all(client)
    found = await _deviations(client, rule, paths)
    for path, given in found[:SHOWN_MAX]:
        click.echo(f"{path}: expected {_text(rule(path))}, got {_text(given)}", err=True)
    if len(found) > SHOWN_MAX:
        click.echo(f"and {len(found) - SHOWN_MAX} more", err=True)
    click.echo(f"{client.paths.root}: {len(paths) - len(found)} of {len(paths)} znodes have the ACLs of the settings")
    await _warn(client)
    return Exit.TASK_FAILED if found else Exit.OK


async def _all(client: Client) -> list[str]:
    """The root and all below it, parents first."""
    from zkd.errors import ZooKeeperError

    found: list[str] = []
    level = [client.paths.root]
    while level:
        found += level
        below: list[str] = []
        for start in range(0, len(level), READS_AT_ONCE):
            some = level[start : start + READS_AT_ONCE]
            for path, names in zip(some, await client.session.children_many(some), strict=True):
                if not isinstance(names, ZooKeeperError):
                    below += [f"{path}/{name}" for name in names]
        level = below
    return found


async def _deviations(client: Client, rule: Rule, paths: list[str]) -> list[tuple[str, tuple[Acl, ...] | None]]:
    """Those with another ACL, and which; None where it may not be seen."""
    import asyncio

    from zkd.errors import NoAuth, NoNode

    turns = asyncio.Semaphore(READS_AT_ONCE)

    async def look(path: str) -> tuple[str, tuple[Acl, ...] | None] | None:
        async with turns:
            try:
                given, _ = await client.session.get_acl(path)
            except NoNode:
                return None
            except NoAuth:
                return path, None
        return None if _is_enough(rule(path), given) else (path, given)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(look(path)) for path in paths]
    return [found for task in tasks if (found := task.result()) is not None]


def _is_enough(wanted: tuple[Acl, ...], given: tuple[Acl, ...]) -> bool:
    """Nothing is missing, and nobody has more than he should but the one who made it."""
    return set(given) == set(_mended(wanted, given))


def _mended(wanted: tuple[Acl, ...], given: tuple[Acl, ...]) -> tuple[Acl, ...]:
    """As wanted, and whoever made it keeps his rights, where makers have any."""
    from zkd.zk import Perms

    named = tuple(entry for entry in wanted if entry.scheme != "auth")
    if len(named) == len(wanted):
        return named
    makers = (entry for entry in given if entry.perms == Perms.ALL and entry.scheme != "world")
    return tuple(dict.fromkeys((*named, *makers)))


async def _warn(client: Client) -> None:
    """What is not the tree's and endangers it."""
    from zkd.errors import ZooKeeperError
    from zkd.zk import Perms

    for path in NOT_OURS:
        try:
            given, _ = await client.session.get_acl(path)
        except ZooKeeperError:
            continue
        if any(entry.scheme == "world" and entry.perms & ~Perms.READ for entry in given):
            click.echo(
                f"warning: anyone may change {path}; an administrator's `setAcl {path} ...` in zkCli.sh mends it",
                err=True,
            )


def _text(entries: tuple[Acl, ...] | None) -> str:
    from zkd.access import shown

    return "one that these credentials may not see" if entries is None else ",".join(map(shown, entries))
