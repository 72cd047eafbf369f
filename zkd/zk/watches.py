"""Who wants to hear of what: one-shot, persistent and persistent-recursive watches of one session.

The registry outlives connections: what stands in it is armed again on the next one. An event goes to the
callbacks that ZooKeeper's own client would call; for recursive watches that means a walk up the path's
ancestors, so its cost is the depth of the path and not the number of watches.

Servers before 3.9 keep one watch mode a path and connection: a one-shot watch on exactly the path of a
persistent one would replace it (ZOOKEEPER-4466). So `needs_server` says no there, and the persistent
watch's events serve both.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

from zkd.zk import generic
from zkd.zk.values import Event, EventType

if TYPE_CHECKING:
    from collections.abc import Iterator

Watch = Callable[[Event], None]

# jute.maxbuffer bounds a SetWatches as any other request (ZOOKEEPER-706); the Java client's bound is the same.
REARM_BYTES_MAX = 128 * 1024


class Kind(IntEnum):  # as an index and a key it costs no Python call: this is the path of every event
    """In the order of the fields of setWatches2."""

    DATA = 0
    EXIST = 1  # on a path where nothing was
    CHILD = 2
    PERSISTENT = 3
    RECURSIVE = 4


_ONE_SHOT_FOR = {
    EventType.CREATED: (Kind.DATA, Kind.EXIST),
    EventType.DELETED: (Kind.DATA, Kind.EXIST, Kind.CHILD),
    EventType.CHANGED: (Kind.DATA, Kind.EXIST),
    EventType.CHILDREN: (Kind.CHILD,),
    EventType.REMOVED: (),
}


class Watches:
    def __init__(self) -> None:
        # A dict of None instead of a set keeps the order in which callbacks were added.
        self._callbacks: dict[Kind, dict[str, dict[Watch, None]]] = {kind: {} for kind in Kind}
        self._one_shot = {of: [self._callbacks[kind] for kind in kinds] for of, kinds in _ONE_SHOT_FOR.items()}
        self._persistent = self._callbacks[Kind.PERSISTENT]
        self._recursive = self._callbacks[Kind.RECURSIVE]

    def __len__(self) -> int:
        return sum(len(paths) for paths in self._callbacks.values())

    def add(self, kind: Kind, path: str, watch: Watch) -> None:
        self._callbacks[kind].setdefault(path, {})[watch] = None

    def forget(self, path: str, watch: Watch) -> None:
        """Drop a one-shot watch; the server may still send its event, which then goes nowhere."""
        for kind in (Kind.DATA, Kind.EXIST, Kind.CHILD):
            self._discard(kind, path, watch)

    def remove(self, path: str, watch: Watch) -> bool:
        """Drop a persistent watch; True if the server need not watch this path for us any more."""
        held = [kind for kind in (Kind.PERSISTENT, Kind.RECURSIVE) if self._discard(kind, path, watch)]
        return bool(held) and not any(path in paths for paths in self._callbacks.values())

    def _discard(self, kind: Kind, path: str, watch: Watch) -> bool:
        watches = self._callbacks[kind].get(path)
        if watches is None or watch not in watches:
            return False
        del watches[watch]
        if not watches:
            del self._callbacks[kind][path]
        return True

    def is_watched(self, kind: Kind, path: str) -> bool:
        return path in self._callbacks[kind]

    def needs_server(self, kind: Kind, path: str) -> bool:
        """Whether a one-shot watch must be asked of the server, or a persistent one covers it."""
        if path in self._callbacks[Kind.PERSISTENT]:
            return False
        return kind is Kind.CHILD or path not in self._callbacks[Kind.RECURSIVE]

    def take(self, event: Event) -> list[Watch]:
        """The callbacks for this event. One-shot watches are gone from the registry afterwards."""
        path = event.path
        found: dict[Watch, None] = {}
        for paths in self._one_shot[event.type]:
            if path in paths:
                found.update(paths.pop(path))
        if path in self._persistent:
            found.update(self._persistent[path])
        recursive = self._recursive
        # Recursive watches see every creation and deletion itself; lists of children are not news to them.
        if recursive and event.type is not EventType.CHILDREN:
            ancestor = path
            while True:
                if ancestor in recursive:
                    found.update(recursive[ancestor])
                if len(ancestor) <= 1:
                    break
                ancestor = ancestor.rpartition("/")[0] or "/"
        return list(found)

    def rearm_bodies(self, last_zxid: int) -> Iterator[bytes]:
        """The bodies of setWatches2 requests that put all of this on a new connection.

        Events for what changed after `last_zxid` come at once, except to persistent watches, which do not
        replay. A one-shot watch on the path of a persistent one is asked for too, for its replay, and goes
        first, so that the mode which the server keeps is the persistent one. But a list of children under
        a recursive watch goes last: the recursive one would hide its events.
        """
        recursive = self._callbacks[Kind.RECURSIVE]
        children = list(self._callbacks[Kind.CHILD])
        groups = (
            {
                Kind.DATA: list(self._callbacks[Kind.DATA]),
                Kind.EXIST: list(self._callbacks[Kind.EXIST]),
                Kind.CHILD: [path for path in children if path not in recursive],
            },
            {Kind.PERSISTENT: list(self._callbacks[Kind.PERSISTENT]), Kind.RECURSIVE: list(recursive)},
            {Kind.CHILD: [path for path in children if path in recursive]},
        )
        for group in groups:
            chunk: list[list[str]] = [[] for _ in Kind]
            size = 0
            for kind, paths in group.items():
                for path in paths:
                    cost = 4 + 4 * len(path)  # UTF-8 is at most four bytes a character
                    if size and size + cost > REARM_BYTES_MAX:
                        yield _set_watches(last_zxid, chunk)
                        chunk, size = [[] for _ in Kind], 0
                    chunk[kind.value].append(path)
                    size += cost
            if size:
                yield _set_watches(last_zxid, chunk)


def _set_watches(last_zxid: int, paths: list[list[str]]) -> bytes:
    data, exist, child, persistent, recursive = paths
    return generic.body(
        generic.SetWatches2Request(
            relative_zxid=last_zxid,
            data_watches=data,
            exist_watches=exist,
            child_watches=child,
            persistent_watches=persistent,
            recursive_watches=recursive,
        )
    )
