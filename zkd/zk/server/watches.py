"""Who wants to hear of what: one-shot, persistent and persistent recursive watches.

Apache 3.8 keeps two tables, one for data and existence and one for children, and in each a connection has at
most one kind of watch on a path: a one-shot watch *replaces* a persistent one (fixed in 3.9). That is copied
here with the rest, since a client has to live with it. An event goes only to those who may read the znode it
is about (all releases since CVE-2024-23944). A watcher is any object with identities; it is sent to, and compared.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from zkd.zk.server.acl import is_allowed
from zkd.zk.server.wire import EventType, Perm, event

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from zkd.zk.server.acl import AclList, Identity
    from zkd.zk.server.tree import Tree


class Watcher(Protocol):
    @property
    def identities(self) -> Collection[Identity]: ...

    def send(self, frame: bytes) -> None: ...


class Mode(IntEnum):
    ONE_SHOT = -1
    PERSISTENT = 0
    RECURSIVE = 1


class Kind(IntEnum):
    """What `checkWatches` and `removeWatches` are about."""

    CHILDREN = 1
    DATA = 2
    ANY = 3


class Table:
    """Watches of one sort, by path and by watcher."""

    def __init__(self) -> None:
        self.by_path: dict[str, dict[Watcher, Mode]] = {}
        self.by_watcher: dict[Watcher, dict[str, None]] = {}
        self._recursive = 0  # events look at the paths above only when there is a recursive watch at all

    def __len__(self) -> int:
        return sum(map(len, self.by_path.values()))

    def add(self, path: str, watcher: Watcher, mode: Mode = Mode.ONE_SHOT) -> None:
        watchers = self.by_path.setdefault(path, {})
        self._recursive += (mode == Mode.RECURSIVE) - (watchers.get(watcher) == Mode.RECURSIVE)
        watchers[watcher] = mode
        self.by_watcher.setdefault(watcher, {})[path] = None

    def remove(self, path: str, watcher: Watcher) -> bool:
        paths = self.by_watcher.get(watcher)
        if paths is None or path not in paths:
            return False
        del paths[path]
        if not paths:
            del self.by_watcher[watcher]
        self._drop(path, watcher)
        return True

    def forget(self, watcher: Watcher) -> None:
        for path in self.by_watcher.pop(watcher, ()):
            self._drop(path, watcher)

    def fire(self, path: str, kind: EventType, acl: AclList, heard: Collection[Watcher] = ()) -> Collection[Watcher]:
        """Tell everyone who watches and may read, except those who have `heard`; returns who was meant."""
        if not self.by_path:
            return ()
        meant: dict[Watcher, None] = {}
        for watcher, mode in list(self.by_path.get(path, {}).items()):
            if mode == Mode.ONE_SHOT:
                self.remove(path, watcher)
            if mode != Mode.RECURSIVE or kind != EventType.CHILDREN:
                meant[watcher] = None
        if self._recursive and kind != EventType.CHILDREN:
            for above in parents(path):
                watching = self.by_path.get(above)
                if watching:
                    meant.update((watcher, None) for watcher, mode in watching.items() if mode == Mode.RECURSIVE)
        if meant:
            frame = event(kind, path)
            for watcher in meant:
                if watcher not in heard and is_allowed(acl, Perm.READ, watcher.identities):
                    watcher.send(frame)
        return meant

    def _drop(self, path: str, watcher: Watcher) -> None:
        watchers = self.by_path[path]
        self._recursive -= watchers.pop(watcher) == Mode.RECURSIVE
        if not watchers:
            del self.by_path[path]


class Watches:
    """Both tables, and the rules of which change fires what."""

    def __init__(self) -> None:
        self.data = Table()
        self.children = Table()

    def changed(self, kind: EventType, path: str, acl: AclList, parent_acl: AclList) -> None:
        """Fire what a change of the tree fires, in Apache's order."""
        heard = self.data.fire(path, kind, acl)
        if kind == EventType.CHANGED:
            return
        if kind == EventType.DELETED:
            self.children.fire(path, kind, acl, heard)
        self.children.fire(path[: path.rindex("/")] or "/", EventType.CHILDREN, parent_acl)

    def add_persistent(self, path: str, watcher: Watcher, mode: Mode) -> None:
        self.data.add(path, watcher, mode)
        self.children.add(path, watcher, mode)

    def exists(self, path: str, kind: Kind) -> bool:
        """Whether *anyone* watches: Apache 3.8 does not look whose watch it is."""
        return any(path in table.by_path for table in self._tables(kind))

    def remove(self, path: str, watcher: Watcher, kind: Kind) -> bool:
        removed = [table.remove(path, watcher) for table in self._tables(kind)]  # from both, then any
        return any(removed)

    def forget(self, watcher: Watcher) -> None:
        self.data.forget(watcher)
        self.children.forget(watcher)

    def restore(
        self,
        tree: Tree,
        watcher: Watcher,
        seen_zxid: int,
        *,
        data: Iterable[str],
        exists: Iterable[str],
        children: Iterable[str],
        persistent: Iterable[str] = (),
        recursive: Iterable[str] = (),
    ) -> None:
        """Set the watches that a client had on another connection; what they missed is told at once."""
        for path in data:
            node = tree.nodes.get(path)
            if node is None:
                watcher.send(event(EventType.DELETED, path))
            elif node.mzxid > seen_zxid:
                watcher.send(event(EventType.CHANGED, path))
            else:
                self.data.add(path, watcher)
        for path in exists:
            if path in tree.nodes:
                watcher.send(event(EventType.CREATED, path))
            else:
                self.data.add(path, watcher)
        for path in children:
            node = tree.nodes.get(path)
            if node is None:
                watcher.send(event(EventType.DELETED, path))
            elif node.pzxid > seen_zxid:
                watcher.send(event(EventType.CHILDREN, path))
            else:
                self.children.add(path, watcher)
        for path in persistent:
            self.add_persistent(path, watcher, Mode.PERSISTENT)
        for path in recursive:
            self.add_persistent(path, watcher, Mode.RECURSIVE)

    def _tables(self, kind: Kind) -> list[Table]:
        return [self.children] * (kind != Kind.DATA) + [self.data] * (kind != Kind.CHILDREN)


def parents(path: str) -> list[str]:
    """Every path above `path`, nearest first."""
    above = []
    while len(path) > 1:
        path = path[: path.rfind("/")] or "/"
        above.append(path)
    return above
