"""Requests that only look, and those about watches: bytes of the request in, body of the reply out, or `Refused`.

One function an opcode, in the table `READS`. They use up no zxid. A watch is set only where the read itself
succeeds, but for `exists`, which is how one waits for a znode to come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zkd.zk.server import acl as acls
from zkd.zk.server import wire
from zkd.zk.server.acl import Refused
from zkd.zk.server.watches import Kind, Mode, Watches
from zkd.zk.server.wire import INT, MULTI, STAT, Code, Malformed, Op, Perm, Reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.zk.server.peer import Peer
    from zkd.zk.server.tree import Node, Tree


def exists(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    path, watch = reader.text(), reader.flag()
    if watch and "\0" not in path:
        watches.data.add(path, peer)  # also where there is no znode: that is what one waits for
    return STAT.pack(*tree.stat(path))


def get_data(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    path, watch = reader.text(), reader.flag()
    node = tree.read(path, peer.identities)
    if watch:
        watches.data.add(path, peer)
    return wire.buffer(node.data) + STAT.pack(*node.stat())


def get_children(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    return wire.texts(_children(tree, watches, peer, reader).children)


def get_children2(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    node = _children(tree, watches, peer, reader)
    return wire.texts(node.children) + STAT.pack(*node.stat())


def _children(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> Node:
    path, watch = reader.text(), reader.flag()
    node = tree.read(path, peer.identities)
    if watch:
        watches.children.add(path, peer)
    return node


def get_acl(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    path = reader.text()
    node = tree.read(path, peer.identities, Perm.READ | Perm.ADMIN)
    try:
        tree.read(path, peer.identities, Perm.ADMIN)
    except Refused:
        return wire.acl(acls.masked(node.acl)) + STAT.pack(*node.stat())
    return wire.acl(node.acl) + STAT.pack(*node.stat())


def get_all_children_number(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    path = reader.text()
    tree.read(path, peer.identities)
    return INT.pack(tree.descendants(path))


def get_ephemerals(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    prefix = reader.text_or_none()
    assert peer.session is not None
    owned = tree.ephemerals.get(peer.session.session_id, {})
    if prefix is None or prefix.strip() in ("", "/"):
        return wire.texts(owned)
    return wire.texts(path for path in owned if path.startswith(prefix))


def who_am_i(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    known = [wire.text(identity[0]) + wire.text(acls.user_name(identity)) for identity in peer.identities]
    return INT.pack(len(known)) + b"".join(known)


def multi_read(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    wanted = []
    while True:
        op, is_end = reader.multi_header()
        if is_end:
            break
        if op not in (Op.GET_DATA, Op.GET_CHILDREN):
            raise Malformed(f"opcode {op} in a multi-read")
        wanted.append((op, reader.text()))
        reader.flag()  # a watch: not set from here, as with Apache
    return b"".join(_read_one(tree, watches, peer, op, path) for op, path in wanted) + wire.MULTI_END


def _read_one(tree: Tree, watches: Watches, peer: Peer, op: int, path: str) -> bytes:
    try:
        node = tree.read(path, peer.identities)
    except Refused as refusal:
        return MULTI.pack(Op.ERROR, False, refusal.code) + INT.pack(refusal.code)
    if op == Op.GET_CHILDREN:
        return MULTI.pack(op, False, 0) + wire.texts(node.children)
    return MULTI.pack(op, False, 0) + wire.buffer(node.data) + STAT.pack(*node.stat())


def add_watch(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    path, mode = reader.text(), reader.int32()
    if mode not in (Mode.PERSISTENT, Mode.RECURSIVE):
        raise Malformed(f"watch mode {mode}")
    watches.add_persistent(path, peer, Mode(mode))
    return INT.pack(0)


def check_watches(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    path, kind = reader.text(), _watch_kind(reader)
    if path and "/" not in path:
        raise Malformed(f"{path} has no parent to look at")
    if not watches.exists(path, kind):
        raise Refused(Code.NO_WATCHER)
    return b""


def remove_watches(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    path, kind = reader.text(), _watch_kind(reader)
    if not watches.remove(path, peer, kind):
        raise Refused(Code.NO_WATCHER)
    return b""


def _watch_kind(reader: Reader) -> Kind:
    number = reader.int32()
    if number not in (Kind.CHILDREN, Kind.DATA, Kind.ANY):
        raise Malformed(f"watch kind {number}")
    return Kind(number)


def set_watches(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    seen, data, exists, children = reader.int64(), reader.texts(), reader.texts(), reader.texts()
    watches.restore(tree, peer, seen, data=data, exists=exists, children=children)
    return b""


def set_watches2(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    seen, data, exists, children = reader.int64(), reader.texts(), reader.texts(), reader.texts()
    persistent, recursive = reader.texts(), reader.texts()
    watches.restore(
        tree,
        peer,
        seen,
        data=data,
        exists=exists,
        children=children,
        persistent=persistent,
        recursive=recursive,
    )
    return b""


def sync(tree: Tree, watches: Watches, peer: Peer, reader: Reader) -> bytes:
    return wire.text(reader.text())  # everything before it has been applied already


READS: dict[int, Callable[[Tree, Watches, Peer, Reader], bytes]] = {
    Op.EXISTS: exists,
    Op.GET_DATA: get_data,
    Op.GET_ACL: get_acl,
    Op.GET_CHILDREN: get_children,
    Op.GET_CHILDREN2: get_children2,
    Op.SYNC: sync,
    Op.CHECK_WATCHES: check_watches,
    Op.REMOVE_WATCHES: remove_watches,
    Op.MULTI_READ: multi_read,
    Op.SET_WATCHES: set_watches,
    Op.SET_WATCHES2: set_watches2,
    Op.ADD_WATCH: add_watch,
    Op.GET_EPHEMERALS: get_ephemerals,
    Op.GET_ALL_CHILDREN_NUMBER: get_all_children_number,
    Op.WHO_AM_I: who_am_i,
}
