"""Requests that change the tree: bytes of the request in, body of the reply out, or `Refused`.

One function an opcode, in the table `WRITES`. Each decodes its whole request before it touches the tree, so
that what is malformed changes nothing.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zkd.zk.server import wire
from zkd.zk.server.acl import Refused
from zkd.zk.server.wire import INT, MULTI, STAT, Code, Malformed, Op, Reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.zk.server.tree import Node, Tree, Txn

CREATES = (Op.CREATE, Op.CREATE2, Op.CREATE_CONTAINER, Op.CREATE_TTL)


def create(tree: Tree, txn: Txn, reader: Reader) -> bytes:
    path, data, acl, flags = reader.text(), reader.buffer(), reader.acl(), reader.int32()
    return wire.text(tree.create(txn, Op.CREATE, path, data, acl, flags).path)


def create2(op: Op, tree: Tree, txn: Txn, reader: Reader) -> bytes:
    path, data, acl, flags = reader.text(), reader.buffer(), reader.acl(), reader.int32()
    ttl_ms = reader.int64() if op == Op.CREATE_TTL else -1
    node = tree.create(txn, op, path, data, acl, flags, ttl_ms)
    return wire.text(node.path) + STAT.pack(*node.stat())


def delete(tree: Tree, txn: Txn, reader: Reader) -> bytes:
    tree.delete(txn, reader.text(), reader.int32())
    return b""


def set_data(tree: Tree, txn: Txn, reader: Reader) -> bytes:
    return STAT.pack(*tree.set_data(txn, reader.text(), reader.buffer(), reader.int32()).stat())


def set_acl(tree: Tree, txn: Txn, reader: Reader) -> bytes:
    return STAT.pack(*tree.set_acl(txn, reader.text(), reader.acl(), reader.int32()).stat())


def check(tree: Tree, txn: Txn, reader: Reader) -> bytes:
    tree.check(txn, reader.text(), reader.int32())  # outside a multi Apache's server ends on it
    return b""


def reconfig(tree: Tree, txn: Txn, reader: Reader) -> bytes:
    raise Refused(Code.RECONFIG_DISABLED)


def multi(tree: Tree, txn: Txn, reader: Reader) -> bytes:
    operations = _read_multi(tree, txn, reader)
    results = []
    tree.begin()
    for number, operation in enumerate(operations):
        try:
            results.append(operation())
        except Refused as refusal:
            tree.roll_back()
            codes = [0] * number + [refusal.code] + [Code.RUNTIME_INCONSISTENCY] * (len(operations) - number - 1)
            return b"".join(MULTI.pack(Op.ERROR, False, code) + INT.pack(code) for code in codes) + wire.MULTI_END
    tree.commit()
    return b"".join(results) + wire.MULTI_END


def _read_multi(tree: Tree, txn: Txn, reader: Reader) -> list[Callable[[], bytes]]:
    """The operations, decoded before the first of them is tried."""
    operations: list[Callable[[], bytes]] = []
    while True:
        op, is_end = reader.multi_header()
        if is_end:
            return operations
        if op in CREATES:
            operations.append(_create_in_multi(tree, txn, op, reader))
        elif op == Op.DELETE:
            operations.append(partial(_deleted, tree, txn, reader.text(), reader.int32()))
        elif op == Op.SET_DATA:
            operations.append(partial(_data_set, tree, txn, reader.text(), reader.buffer(), reader.int32()))
        elif op == Op.CHECK:
            operations.append(partial(_checked, tree, txn, reader.text(), reader.int32()))
        else:
            raise Malformed(f"opcode {op} in a multi")


def _create_in_multi(tree: Tree, txn: Txn, op: int, reader: Reader) -> Callable[[], bytes]:
    path, data, acl, flags = reader.text(), reader.buffer(), reader.acl(), reader.int32()
    ttl_ms = reader.int64() if op == Op.CREATE_TTL else -1
    # Here, unlike outside a multi, the flag decides what is made.
    if flags in (5, 6):
        if op != Op.CREATE_TTL:
            raise Malformed("a TTL flag without a TTL")
        return lambda: _created2(tree.create(txn, Op.CREATE_TTL, path, data, acl, flags, ttl_ms))
    if flags == 4:
        return lambda: _created2(tree.create(txn, Op.CREATE_CONTAINER, path, data, acl, flags))
    return lambda: MULTI.pack(Op.CREATE, False, 0) + wire.text(tree.create(txn, Op.CREATE, path, data, acl, flags).path)


def _created2(node: Node) -> bytes:
    return MULTI.pack(Op.CREATE2, False, 0) + wire.text(node.path) + STAT.pack(*node.stat())


def _deleted(tree: Tree, txn: Txn, path: str, version: int) -> bytes:
    tree.delete(txn, path, version)
    return MULTI.pack(Op.DELETE, False, 0)


def _data_set(tree: Tree, txn: Txn, path: str, data: bytes | None, version: int) -> bytes:
    node = tree.set_data(txn, path, data, version)
    return MULTI.pack(Op.SET_DATA, False, 0) + STAT.pack(*node.stat())


def _checked(tree: Tree, txn: Txn, path: str, version: int) -> bytes:
    tree.check(txn, path, version)
    return MULTI.pack(Op.CHECK, False, 0)


WRITES: dict[int, Callable[[Tree, Txn, Reader], bytes]] = {
    Op.CREATE: create,
    Op.CREATE2: partial(create2, Op.CREATE2),
    Op.CREATE_CONTAINER: partial(create2, Op.CREATE_CONTAINER),
    Op.CREATE_TTL: partial(create2, Op.CREATE_TTL),
    Op.DELETE: delete,
    Op.SET_DATA: set_data,
    Op.SET_ACL: set_acl,
    Op.CHECK: check,
    Op.MULTI: multi,
    Op.RECONFIG: reconfig,
}
