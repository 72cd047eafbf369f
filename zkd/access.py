"""Who may do what in the tree: one table, from which the ACL of every znode follows by its path.

Four kinds of people, by the settings `[zookeeper.access]`; each is a list of ZooKeeper identities.

    daemons      own the tree: all rights everywhere
    operators    the same; they run `zkd init`, drain nodes, set limits and configuration
    submitters   drop tasks, jobs, schedules, datasets and models, take locks; read the rest, and write nowhere else
    readers      read all but the token of the data plane

Who makes a znode keeps all rights to it. ZooKeeper's right to delete belongs to the parent: a submitter may remove what
other submitters dropped, and cannot change it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from zkd.zk import CREATOR_ALL, Acl, Perms

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.paths import Paths
    from zkd.settings import Access

READ, DELETE = Perms.READ, Perms.DELETE
DROP = Perms.READ | Perms.CREATE | Perms.DELETE  # children come and go
SHARE = DROP | Perms.WRITE

# Directory below the root -> what submitters may do to it, and to what lies below it.
SUBMITTERS = {
    "tasks": (DROP, READ),
    "jobs": (DROP, READ),
    "schedules": (DROP, READ),
    "results": (READ | DELETE, READ),  # whoever has read a result may take it away, and not write one
    "dead": (READ | DELETE, READ),
    "datasets": (SHARE, SHARE),
    "models": (SHARE, SHARE),
    "sync": (SHARE, SHARE),
}
_MADE_BY_OTHERS = ("tasks", "jobs", "schedules", "datasets", "models", "sync")


def policy(access: Access | None, paths: Paths, *, is_proved: bool) -> Callable[[str], tuple[Acl, ...]] | None:
    """From a path to the ACL that its znode is made with; None without `access`: ZooKeeper's own, open to anyone.

    `is_proved`: the session shows credentials. One that does not has no identity to keep its rights by.
    """
    if access is None:
        return None

    @lru_cache(maxsize=256)
    def of_place(place: str, is_directory: bool, is_token: bool) -> tuple[Acl, ...]:
        entries = [_entry(who, Perms.ALL) for who in (*access.daemons, *access.operators)]
        if is_proved and place in _MADE_BY_OTHERS and not is_directory:
            entries += CREATOR_ALL
        on_directory, below = SUBMITTERS.get(place, (READ, READ))
        entries += [_entry(who, on_directory if is_directory else below) for who in access.submitters]
        if not is_token:
            entries += [_entry(who, READ) for who in access.readers]
        return tuple(dict.fromkeys(entries))

    def of_path(path: str) -> tuple[Acl, ...]:
        place, _, rest = path.removeprefix(paths.root).lstrip("/").partition("/")
        return of_place(place, not rest, path == paths.token)

    return of_path


def shown(entry: Acl) -> str:
    """As ZooKeeper's own command line writes it: ``digest:ann:...:cdrwa``."""
    letters = "".join(letter for letter, bit in zip("cdrwa", (4, 8, 1, 2, 16), strict=True) if entry.perms & bit)
    return f"{entry.scheme}:{entry.id}:{letters}"


def _entry(identity: str, perms: int) -> Acl:
    scheme, _, who = identity.partition(":")
    return Acl(perms, scheme, who)
