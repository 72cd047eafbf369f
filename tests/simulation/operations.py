"""What a client's request asks for, decoded a second time: for those who read the log, and those who lay traps."""

from __future__ import annotations

from tests.simulation.server import CREATE_SESSION, REAP, Entry
from zkd.zk.server.wire import INT, MULTI, Code, Op, Reader

_CREATES = (Op.CREATE, Op.CREATE2, Op.CREATE_CONTAINER, Op.CREATE_TTL)


def refusal(entry: Entry) -> tuple[int, str, int] | None:
    """(opcode, path, code) of the operation that had a transaction refused."""
    at = 0
    for op, path, _ in operations(entry):
        code = INT.unpack_from(entry.body, at + 9)[0]
        if MULTI.unpack_from(entry.body, at)[0] != Op.ERROR:
            return None
        if code not in (0, Code.RUNTIME_INCONSISTENCY):
            return op, path, code
        at += 13
    return None


def operations(entry: Entry) -> list[tuple[int, str, int]]:
    """(opcode, path, version) of each operation in a request."""
    assert entry.request is not None
    return decoded(entry.op, entry.request.reader())


def decoded(op: int, reader: Reader) -> list[tuple[int, str, int]]:
    if op != Op.MULTI:
        return [_operation(op, reader)] if op in _HAVE_PATH else [(op, "", -1)]
    found = []
    while True:
        kind, is_end = reader.multi_header()
        if is_end:
            return found
        found.append(_operation(kind, reader))


_HAVE_PATH = {int(op) for op in (*_CREATES, Op.DELETE, Op.SET_DATA, Op.CHECK, Op.EXISTS, Op.GET_DATA, Op.SYNC)} | {
    int(Op.GET_CHILDREN),
    int(Op.GET_CHILDREN2),
    int(Op.ADD_WATCH),
}


def _operation(op: int, reader: Reader) -> tuple[int, str, int]:
    path = reader.text()
    if op in _CREATES:
        reader.buffer()
        reader.acl()
        reader.int32()
        if op == Op.CREATE_TTL:
            reader.int64()
        return op, path, -1
    if op == Op.SET_DATA:
        reader.buffer()
    if op in (Op.SET_DATA, Op.DELETE, Op.CHECK):
        return op, path, reader.int32()
    return op, path, -1


NAMES = {int(op): op.name.lower() for op in Op} | {REAP: "reap", CREATE_SESSION: "create_session"}
