"""Many operations in one request: transactions, and reads of many znodes.

The server applies a transaction whole or not at all and answers every operation. In a failed one the
operations before the culprit carry code 0, those after it -2 (runtime inconsistency): the first that
carries anything else is what failed.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from zkd.errors import MultiFailed, ZooKeeperError, from_code
from zkd.zk import wire
from zkd.zk.values import Check, Create, Created, Delete, SetData, Stat, Znode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zkd.zk.values import Acl, Op

# One multiRead has at most so many paths, so that its reply keeps below wire.REPLY_BYTES_MAX.
PATHS_A_READ = 128

_HEADER = Struct("!i?i")  # type, done, error code
_END = _HEADER.pack(-1, True, -1)
_SET = _HEADER.pack(wire.SET, False, -1)
_DELETE = _HEADER.pack(wire.DELETE, False, -1)
_CHECK = _HEADER.pack(wire.CHECK, False, -1)
_CREATE = {op: _HEADER.pack(op, False, -1) for op in (wire.CREATE2, wire.CREATE_CONTAINER, wire.CREATE_TTL)}
_ERROR = -1
_NOT_THE_CULPRIT = (0, -2)


def encode_multi(ops: Sequence[Op], acl: Callable[[str], Sequence[Acl]] | None = None) -> bytes:
    """`acl` gives that of a znode to be made, where the operation says none."""
    parts: list[bytes] = []
    for op in ops:
        match op:
            case SetData():
                parts += (_SET, wire.encode_set(op.path, op.data, op.version))
            case Delete():
                parts += (_DELETE, wire.encode_versioned(op.path, op.version))
            case Create():
                entries = op.acl if op.acl is not None or acl is None else acl(op.path)
                opcode, body = wire.encode_create(
                    op.path, op.data, op.ephemeral, op.sequential, op.container, op.ttl_ms, entries
                )
                parts += (_CREATE[opcode], body)
            case Check():
                parts += (_CHECK, wire.encode_versioned(op.path, op.version))
    parts.append(_END)
    return b"".join(parts)


def encode_reads(paths: Sequence[str], opcode: int) -> bytes:
    """`opcode` is wire.GET or wire.CHILDREN, for all of them."""
    header = _HEADER.pack(opcode, False, -1)
    return b"".join([header + wire.encode_path(path, False) for path in paths]) + _END


def decode_results(data: bytes, at: int, end: int) -> list[Created | Stat | Znode | list[str] | int | None]:
    """One entry an operation, an error as its bare code (an int)."""
    results: list[Created | Stat | Znode | list[str] | int | None] = []
    header, stat_bytes = _HEADER.unpack_from, wire.STAT.size
    while True:
        kind, done, _ = header(data, at)
        at += 9
        if done or at > end:
            break
        if kind == wire.GET:
            stop = at + 4 + max(wire.INT.unpack_from(data, at)[0], 0) + stat_bytes
            results.append(wire.decode_get(data, at, end))
        elif kind == wire.SET:
            stop = at + stat_bytes
            results.append(wire.decode_stat(data, at, end))
        elif kind in (wire.DELETE, wire.CHECK):
            stop = at
            results.append(None)
        elif kind == wire.CHILDREN:
            names, stop = wire.decode_names(data, at, end)
            results.append(names)
        elif kind == _ERROR:
            stop = at + 4
            results.append(wire.INT.unpack_from(data, at)[0])
        elif kind == wire.CREATE:
            (length,) = wire.INT.unpack_from(data, at)
            stop = at + 4 + length
            if not at + 4 <= stop <= end:
                raise wire.Malformed(f"a path of {length} bytes in a reply of {end - at}")
            results.append(Created(data[at + 4 : stop].decode(), None))
        elif kind in _CREATE:
            stop = at + 4 + max(wire.INT.unpack_from(data, at)[0], 0) + stat_bytes
            results.append(wire.decode_created(data, at, end))
        else:
            raise wire.Malformed(f"a result of type {kind} in a multi")
        at = stop
    if at > end:
        raise wire.Malformed("a multi without an end")
    return results


def settle(ops: Sequence[Op], results: list[Created | Stat | Znode | list[str] | int | None]) -> None:
    """Raise `MultiFailed` for the operation that failed, if one did."""
    if len(results) != len(ops):
        raise ZooKeeperError(None, f"{len(ops)} operations sent, {len(results)} results came")
    codes = [result for result in results if isinstance(result, int)]
    if not codes:
        return
    for index, result in enumerate(results):
        if isinstance(result, int) and result not in _NOT_THE_CULPRIT:
            path = ops[index].path
            raise MultiFailed(index, path, from_code(result, path))
    raise MultiFailed(0, ops[0].path, from_code(codes[0], ops[0].path))
