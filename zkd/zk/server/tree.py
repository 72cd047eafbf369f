"""The znode tree: what Apache ZooKeeper 3.8 would have made of the same requests, in memory.

Every write is given its zxid, its time and who asks, and either happens or raises `Refused` with the code of
the reply and nothing changed. The order of the checks is Apache's, since it decides which error is seen when
there are several. What happened is left in `changes` for the watches. No clock, no I/O: the same calls give
the same tree, so that this is also the model in simulations.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zkd.zk.server import acl as acls
from zkd.zk.server.acl import AclList, Refused
from zkd.zk.server.wire import OPEN_ACL, Code, EventType, Op, Perm, Stat

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from zkd.zk.server.acl import Identity

SPECIAL = frozenset({"/", "/zookeeper", "/zookeeper/config", "/zookeeper/quota"})
QUOTA, USAGE = "/zookeeper/quota", "/zookeeper_stats"  # a client's quota on /a keeps its usage between the two
MAX_TTL_MS = 0xFF_FFFF_FFFF
CONTAINER, TTL = -1, -2  # owners that are no session; clients see 0

# No empty, "." or ".." component, no control character, no surrogate or private use, nothing past U+FFEF:
# Java sees characters beyond the basic plane as surrogates and refuses them too.
_COMPONENT = "/(?!\\.{1,2}(?:/|\\Z))[^\x00-\x1f\x7f-\x9f/\ud800-\uf8ff\ufff0-\U0010ffff]+"
_PATH = re.compile(f"(?:{_COMPONENT})+")


class Node:
    """One znode. `cversion` counts creations below it; a client sees creations and deletions."""

    __slots__ = (
        "acl",
        "aversion",
        "children",
        "ctime",
        "cversion",
        "czxid",
        "data",
        "mtime",
        "mzxid",
        "owner",
        "path",
        "pzxid",
        "ttl_ms",
        "version",
    )

    def __init__(
        self, path: str, data: bytes | None, acl: AclList, owner: int = 0, zxid: int = 0, time_ms: int = 0
    ) -> None:
        self.path = path
        self.data = data
        self.acl = acl
        self.owner = owner
        self.czxid = self.mzxid = self.pzxid = zxid
        self.ctime = self.mtime = time_ms
        self.version = self.cversion = self.aversion = 0
        self.ttl_ms = 0
        self.children = _NO_CHILDREN

    def stat(self) -> Stat:
        count = len(self.children)
        return Stat(
            self.czxid,
            self.mzxid,
            self.ctime,
            self.mtime,
            self.version,
            # A 32-bit counter of changes, that wraps as Java's does.
            (self.cversion * 2 - count + 0x8000_0000 & 0xFFFF_FFFF) - 0x8000_0000,
            self.aversion,
            self.owner if self.owner > 0 else 0,
            0 if self.data is None else len(self.data),
            count,
            self.pzxid,
        )


_NO_CHILDREN: dict[str, Node] = {}  # shared by all leaves, never written to: most znodes are leaves


# What happened, where, and who may know: the ACLs of the znode and of its parent at that moment.
Change = tuple[EventType, str, AclList, AclList]


class Txn(NamedTuple):
    """The circumstances of a write."""

    zxid: int
    time_ms: int
    session_id: int
    identities: Collection[Identity]


class Tree:
    def __init__(self, *, extended_types: bool = True) -> None:
        root = Node("/", b"", OPEN_ACL)
        # Apache knows its root by both names, and answers requests for either.
        self.nodes: dict[str, Node] = {"": root, "/": root}
        self.changes: list[Change] = []
        self.ephemerals: dict[int, dict[str, None]] = {}
        self.reapable: dict[str, Node] = {}  # containers and TTL nodes
        self.extended_types = extended_types
        self._undo: list[Callable[[], object]] | None = None
        for path in ("/zookeeper", "/zookeeper/config", "/zookeeper/quota"):
            self._add(Node(path, b"", OPEN_ACL))
        config = self.nodes["/zookeeper/config"]
        config.acl, config.aversion = acls.READ_ONLY, -1

    def __len__(self) -> int:
        return len(self.nodes) - 1

    # --- reads ---------------------------------------------------------------------------------------

    def read(self, path: str, identities: Collection[Identity], perm: int = Perm.READ) -> Node:
        """The znode, for someone who may read it."""
        node = self._seen(path)
        if node.acl is not OPEN_ACL:
            acls.check(node.acl, perm, identities)
        return node

    def stat(self, path: str) -> Stat:
        """Anyone may see a stat."""
        if "\0" in path:
            raise Refused(Code.BAD_ARGUMENTS)
        return self._seen(path).stat()

    def descendants(self, path: str) -> int:
        return sum(1 for _ in _walk(self.nodes[path])) - 1

    # --- writes --------------------------------------------------------------------------------------

    def create(
        self, txn: Txn, op: int, path: str, data: bytes | None, acl: AclList, flags: int, ttl_ms: int = -1
    ) -> Node:
        """Make a znode. The opcode, not the flag, makes a container or a TTL node; the flag makes the rest."""
        if not 0 <= flags <= 6:
            raise Refused(Code.BAD_ARGUMENTS)
        wants_ttl = flags in (5, 6)
        if wants_ttl and not self.extended_types:
            raise Refused(Code.UNIMPLEMENTED)
        if (wants_ttl and not 0 < ttl_ms <= MAX_TTL_MS) or (not wants_ttl and ttl_ms >= 0):
            raise Refused(Code.BAD_ARGUMENTS)
        if op == Op.CREATE_TTL and not wants_ttl:
            raise Refused(Code.BAD_ARGUMENTS)  # Apache's server ends on this one
        if "/" not in path or "\0" in path:
            raise Refused(Code.BAD_ARGUMENTS)
        acl = acls.fix_up(acl, txn.identities)
        parent = self._node(path[: path.rindex("/")])
        if parent.acl is not OPEN_ACL:
            acls.check(parent.acl, Perm.CREATE, txn.identities)
        if flags in (2, 3, 6):
            path = f"{path}{parent.cversion:010d}"
        check_path(path)
        if path in self.nodes:
            raise Refused(Code.NODE_EXISTS)
        if parent.owner > 0:
            raise Refused(Code.NO_CHILDREN_FOR_EPHEMERALS)
        owner = 0
        if op == Op.CREATE_CONTAINER:
            owner = CONTAINER
        elif op == Op.CREATE_TTL:
            owner = TTL
        elif flags in (1, 3):
            owner = txn.session_id
        node = Node(path, data, acl, owner, txn.zxid, txn.time_ms)
        if owner == TTL:
            node.ttl_ms = ttl_ms
        if self._undo is not None:
            self._undo.append(partial(self._uncreate, node, parent, parent.pzxid))
        parent.cversion += 1
        parent.pzxid = txn.zxid
        self._add(node, parent)
        self.changes.append((EventType.CREATED, path, acl, parent.acl))
        return node

    def delete(self, txn: Txn, path: str, version: int) -> None:
        parent = self._parent(path)
        if parent.acl is not OPEN_ACL:
            acls.check(parent.acl, Perm.DELETE, txn.identities)
        node = self._node(path)
        if version not in (-1, node.version):
            raise Refused(Code.BAD_VERSION)
        if node.children:
            raise Refused(Code.NOT_EMPTY)
        self._delete(txn.zxid, node, parent)

    def set_data(self, txn: Txn, path: str, data: bytes | None, version: int) -> Node:
        check_path(path)
        node = self.read(path, txn.identities, Perm.WRITE)
        if version not in (-1, node.version):
            raise Refused(Code.BAD_VERSION)
        if self._undo is not None:
            self._undo.append(partial(self._unset, node, node.data, node.version, node.mzxid, node.mtime))
        node.data = data
        node.version += 1
        node.mzxid = txn.zxid
        node.mtime = txn.time_ms
        self.changes.append((EventType.CHANGED, path, node.acl, OPEN_ACL))
        return node

    def set_acl(self, txn: Txn, path: str, acl: AclList, version: int) -> Node:
        check_path(path)
        acl = acls.fix_up(acl, txn.identities)
        node = self.read(path, txn.identities, Perm.ADMIN)
        if version not in (-1, node.aversion):
            raise Refused(Code.BAD_VERSION)
        node.acl = acl
        node.aversion += 1
        return node

    def check(self, txn: Txn, path: str, version: int) -> None:
        check_path(path)
        if version not in (-1, self.read(path, txn.identities).version):
            raise Refused(Code.BAD_VERSION)

    def begin(self) -> None:
        """Start a transaction: what follows can be taken back until `commit`."""
        self._undo = []

    def commit(self) -> None:
        self._undo = None

    def roll_back(self) -> None:
        """Take back everything since `begin`, and the events of it."""
        assert self._undo is not None
        for take_back in reversed(self._undo):
            take_back()
        self.changes.clear()
        self._undo = None

    def end_session(self, zxid: int, session_id: int) -> None:
        """Delete the session's ephemeral znodes, as part of one transaction."""
        for path in list(self.ephemerals.get(session_id, ())):
            self._delete(zxid, self.nodes[path], self._parent(path))
        self.ephemerals.pop(session_id, None)

    # --- containers and TTL nodes --------------------------------------------------------------------

    def overdue(self, time_ms: int) -> list[str]:
        """Paths of containers that were used and are empty, and of empty TTL nodes that nobody wrote to in time."""
        return [
            path
            for path, node in self.reapable.items()
            if not node.children
            and (node.cversion > 0 if node.owner == CONTAINER else time_ms - node.mtime > node.ttl_ms)
        ]

    def reap(self, zxid: int, path: str) -> None:
        """Delete one of the overdue, in a transaction of its own."""
        self._delete(zxid, self.nodes[path], self._parent(path))

    # --- leaves --------------------------------------------------------------------------------------

    def _node(self, path: str) -> Node:
        node = self.nodes.get(path)
        if node is None:
            raise Refused(Code.NO_NODE)
        return node

    def _seen(self, path: str) -> Node:
        """The znode as a reader sees it: the usage of a quota is counted when someone looks."""
        node = self._node(path)
        if path.endswith(USAGE) and path.startswith(QUOTA):
            top = self.nodes.get(path[len(QUOTA) : -len(USAGE)])
            sizes = [len(below.data or b"") for below in _walk(top)] if top else []
            node.data = b"count=%d,bytes=%d" % (len(sizes), sum(sizes))
        return node

    def _parent(self, path: str) -> Node:
        slash = path.rfind("/")
        if slash == -1 or "\0" in path or path in SPECIAL:
            raise Refused(Code.BAD_ARGUMENTS)
        return self._node(path[:slash])

    def _add(self, node: Node, parent: Node | None = None) -> None:
        above, _, name = node.path.rpartition("/")
        parent = parent or self.nodes[above]
        if not parent.children:
            parent.children = {}
        parent.children[name] = node
        self.nodes[node.path] = node
        if node.owner > 0:
            self.ephemerals.setdefault(node.owner, {})[node.path] = None
        elif node.owner < 0:
            self.reapable[node.path] = node

    def _remove(self, node: Node, parent: Node) -> None:
        path = node.path
        del parent.children[path[path.rindex("/") + 1 :]]
        del self.nodes[path]
        if node.owner > 0:
            owned = self.ephemerals[node.owner]
            del owned[path]
            if not owned:
                del self.ephemerals[node.owner]
        elif node.owner < 0:
            del self.reapable[path]

    def _delete(self, zxid: int, node: Node, parent: Node) -> None:
        if self._undo is not None:
            self._undo.append(partial(self._undelete, node, parent, parent.pzxid))
        self._remove(node, parent)
        parent.pzxid = zxid
        self.changes.append((EventType.DELETED, node.path, node.acl, parent.acl))

    def _uncreate(self, node: Node, parent: Node, pzxid: int) -> None:
        self._remove(node, parent)
        parent.cversion -= 1
        parent.pzxid = pzxid

    def _undelete(self, node: Node, parent: Node, pzxid: int) -> None:
        self._add(node, parent)
        parent.pzxid = pzxid

    @staticmethod
    def _unset(node: Node, data: bytes | None, version: int, mzxid: int, mtime: int) -> None:
        node.data, node.version, node.mzxid, node.mtime = data, version, mzxid, mtime


def _walk(top: Node) -> Iterator[Node]:
    """The znode and all below it."""
    stack = [top]
    while stack:
        node = stack.pop()
        stack += node.children.values()
        yield node


def check_path(path: str) -> None:
    if path != "/" and _PATH.fullmatch(path) is None:
        raise Refused(Code.BAD_ARGUMENTS)
