"""Who may do what: ACLs as the server stores, checks and shows them.

Schemes are Apache's own without further configuration: `world`, `ip`, `digest`, and `auth`, which stands for
what the connection has proved and is replaced by it when a znode is written. Pure functions.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from zkd.zk.server.wire import OPEN_ACL, Acl, Code, Perm

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

AclList = tuple[Acl, ...]
Identity = tuple[str, str]  # scheme, id: ("digest", "user:hash") or ("ip", "127.0.0.1")

READ_ONLY: AclList = (Acl(Perm.READ, "world", "anyone"),)


class Refused(Exception):
    """The request breaks a rule; `code` goes into the reply."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.name)
        self.code = code


def check(entries: AclList, perm: int, identities: Iterable[Identity]) -> None:
    if not is_allowed(entries, perm, identities):
        raise Refused(Code.NO_AUTH)


def is_allowed(entries: AclList, perm: int, identities: Iterable[Identity]) -> bool:
    """Whether one of the identities, or anyone, has one of the permissions in `perm`."""
    if entries is OPEN_ACL or not entries:
        return True
    return any(e.perms & perm and (e.scheme == "world" or _any_matches(e, identities)) for e in entries)


def fix_up(entries: AclList, identities: Iterable[Identity]) -> AclList:
    """The ACL as it is stored: without doubles, `auth` replaced, every entry valid."""
    if entries is OPEN_ACL:
        return entries
    if not entries:
        raise Refused(Code.INVALID_ACL)
    fixed: list[Acl] = []
    for entry in dict.fromkeys(entries):
        if entry.scheme == "auth":
            proved = [Acl(entry.perms, scheme, ident) for scheme, ident in identities if scheme != "ip"]
            if not proved:
                raise Refused(Code.INVALID_ACL)
            fixed += proved
        elif _is_valid(entry):
            fixed.append(entry)
        else:
            raise Refused(Code.INVALID_ACL)
    return tuple(fixed)


def masked(entries: Sequence[Acl]) -> list[Acl]:
    """The ACL as someone without ADMIN sees it: users, but no password hashes."""
    return [
        Acl(e.perms, e.scheme, f"{e.ident.partition(':')[0]}:x") if e.scheme == "digest" and ":" in e.ident else e
        for e in entries
    ]


def digest(credentials: bytes) -> str:
    """The digest identity of `user:password`."""
    named = credentials.decode("utf-8", "replace")
    proof = base64.b64encode(hashlib.sha1(named.encode(), usedforsecurity=False).digest()).decode()
    return f"{named.partition(':')[0]}:{proof}"


def user_name(identity: Identity) -> str:
    scheme, ident = identity
    return ident.partition(":")[0] if scheme == "digest" else ident


def _is_valid(entry: Acl) -> bool:
    if entry.scheme == "world":
        return entry.ident == "anyone"
    if entry.scheme == "digest":
        return len(entry.ident.rstrip(":").split(":")) == 2  # as Java splits: empty ends do not count
    return entry.scheme == "ip" and _network(entry.ident) is not None


def _any_matches(entry: Acl, identities: Iterable[Identity]) -> bool:
    if entry.scheme == "digest":
        return ("digest", entry.ident) in identities
    if entry.scheme != "ip" or (network := _network(entry.ident)) is None:
        return False
    address, bits = network
    for scheme, ident in identities:
        if scheme == "ip" and (remote := _address(ident)) is not None and (remote ^ address) >> (32 - bits) == 0:
            return True
    return False


def _network(expression: str) -> tuple[int, int] | None:
    host, slash, suffix = expression.partition("/")
    address = _address(host)
    if address is None:
        return None
    if not slash:
        return address, 32
    return (address, int(suffix)) if suffix.isdecimal() and int(suffix) <= 32 else None


def _address(dotted: str) -> int | None:
    parts = dotted.split(".")
    if len(parts) != 4 or not all(part.isdecimal() and len(part) <= 3 and int(part) <= 255 for part in parts):
        return None
    return int.from_bytes(bytes(map(int, parts)), "big")
