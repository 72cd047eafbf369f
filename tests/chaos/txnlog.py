"""ZooKeeper's own transaction log, read as bytes: what was really committed, whatever anybody believes.

    file    = "ZKLG" version dbid, then records, then zeros (the file is preallocated)
    record  = crc32:8 length:4 bytes end:1 ("B");  bytes = header, body, digest
    header  = session:8 cxid:4 zxid:8 time:8 type:4

Three servers have three logs, and none is the whole truth. One that was away too long gets a snapshot and no records;
one that comes back may write what it has a second time; and one that led and was cut off keeps what it had proposed
and nobody else has seen. So the truth is the union of the three by zxid, read when all of them are back, without what
lies between the last transaction of a new leader, as its own account of its election tells, and the epoch it began.
"""

from __future__ import annotations

import heapq
import mmap
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CREATE, DELETE, SET_DATA, SET_ACL, CHECK, MULTI = 1, 2, 5, 7, 13, 14
CREATE2, CREATE_CONTAINER, DELETE_CONTAINER, CREATE_TTL = 15, 19, 20, 21
CREATE_SESSION, CLOSE_SESSION, ERROR = -10, -11, -1
CREATES = {CREATE, CREATE2, CREATE_CONTAINER, CREATE_TTL}
NAMES = {
    **dict.fromkeys(CREATES, "create"),
    DELETE: "delete",
    DELETE_CONTAINER: "delete",
    SET_DATA: "set",
    SET_ACL: "acl",
    CHECK: "check",
    CREATE_SESSION: "session",
    CLOSE_SESSION: "close",
    ERROR: "error",
}

_PREFIX = struct.Struct("!qi")
_HEADER = struct.Struct("!qiqqi")
_INT = struct.Struct("!i")

_SNAPSHOT = re.compile(r"Snapshotting: 0x([0-9a-f]+) to")
_REIGN = re.compile(r"starting up and setting last processed zxid: 0x([0-9a-f]+)")


class Damaged(Exception):
    """A record whose checksum is wrong, or two servers that disagree. ZooKeeper itself is at fault then."""


@dataclass(frozen=True, slots=True)
class Op:
    """One change of one znode. `version` is the one that a set leads to, and that a check asks for."""

    kind: str  # create | delete | set | check | acl
    path: str
    data: bytes = b""
    version: int = -1
    is_ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class Transaction:
    """One committed transaction; one that was refused has no `ops`, only the `error`."""

    zxid: int
    session: int
    time_ms: int
    kind: str  # write | session | close | error
    ops: tuple[Op, ...] = ()
    error: int = 0


class _Body:
    """The fields of a body, one after the other."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def int(self) -> int:
        (value,) = _INT.unpack_from(self.data, self.at)
        self.at += 4
        return int(value)

    def bytes(self) -> bytes:
        length = max(0, self.int())  # -1 is none
        start, self.at = self.at, self.at + length
        return self.data[start : self.at]

    def text(self) -> str:
        return self.bytes().decode(errors="replace")

    def skip_acls(self) -> None:
        for _ in range(max(0, self.int())):
            self.int()
            self.bytes()
            self.bytes()


def records(data: bytes | mmap.mmap, name: str) -> Iterator[tuple[int, int]]:
    """Where each record of one file begins and ends. A torn one at the end was never answered for, and is left out."""
    if data[:4] != b"ZKLG":
        return  # made a moment ago, on a full disk, say
    at = 16
    while at + _PREFIX.size <= len(data):
        crc, length = _PREFIX.unpack_from(data, at)
        start, end = at + _PREFIX.size, at + _PREFIX.size + length
        if length <= 0 or end >= len(data) or data[end : end + 1] != b"B":
            return
        if zlib.adler32(data[start:end]) != crc:
            raise Damaged(f"{name} at {at}: wrong checksum")
        yield start, end
        at = end + 1


def parse(record: bytes) -> Transaction:
    session, _, zxid, time_ms, kind = _HEADER.unpack_from(record)
    body = _Body(record, _HEADER.size)
    if kind == MULTI:
        parts = [(body.int(), body.bytes()) for _ in range(body.int())]
        if any(inner == ERROR for inner, _ in parts):  # rolled back as a whole
            return Transaction(zxid, session, time_ms, "error", error=_reason(parts))
        return Transaction(zxid, session, time_ms, "write", tuple(_op(inner, _Body(part)) for inner, part in parts))
    if kind == ERROR:
        return Transaction(zxid, session, time_ms, "error", error=body.int())
    if kind in (CREATE_SESSION, CLOSE_SESSION):
        return Transaction(zxid, session, time_ms, NAMES[kind])
    return Transaction(zxid, session, time_ms, "write", (_op(kind, body),))


def _reason(parts: list[tuple[int, bytes]]) -> int:
    """Why it was rolled back: the error of the culprit, which comes first.

    A server that applies such a transaction before it writes it down turns what stands before the culprit into
    errors as well, with the bytes of what it was: two servers' records of it may differ.
    """
    return next((int(_INT.unpack(part)[0]) for inner, part in parts if inner == ERROR and len(part) == 4), 0)


def _op(kind: int, body: _Body) -> Op:
    name = NAMES.get(kind)
    if name == "create":
        path, data = body.text(), body.bytes()
        body.skip_acls()
        is_ephemeral = kind in (CREATE, CREATE2) and body.data[body.at : body.at + 1] == b"\x01"
        return Op("create", path, data, 0, is_ephemeral)
    if name == "delete":
        return Op("delete", body.text())
    if name == "set":
        return Op("set", body.text(), body.bytes(), body.int())
    if name == "check":
        return Op("check", body.text(), version=body.int() - 1)  # the server writes what a set would have made of it
    if name == "acl":
        return Op("acl", body.text())
    return Op(f"type {kind}", "")


def logs_of(data_dir: Path) -> list[Path]:
    """One server's files, oldest first."""
    return sorted(data_dir.glob("version-2/log.*"), key=lambda path: int(path.suffix[1:], 16))


def data_dirs_of(directory: Path) -> list[Path]:
    """Where the servers of a run have their logs, also those that were put aside."""
    return [path.parent for path in sorted(directory.glob("server-*/*/version-2"))]


def _of_server(data_dir: Path) -> Iterator[tuple[int, bytes]]:
    """One server's records by their zxids.

    Not as they lie there: a server that comes back writes what its leader sends, also what it has already.
    """
    files: list[mmap.mmap] = []
    index: list[tuple[int, int, int, int]] = []
    for path in logs_of(data_dir):
        if path.stat().st_size == 0:
            continue
        with path.open("rb") as log:
            files.append(mmap.mmap(log.fileno(), 0, access=mmap.ACCESS_READ))
        for start, end in records(files[-1], str(path)):
            zxid = _HEADER.unpack_from(files[-1], start)[2]
            index.append((zxid, len(files) - 1, start, end))
    index.sort()
    for zxid, number, start, end in index:
        yield zxid, files[number][start:end]


def abandoned(account: Path) -> Iterator[tuple[int, int]]:
    """(last, first) for each reign of a server, by its own account: nothing in between was ever committed."""
    last = -1
    with account.open(errors="replace") as file:
        for line in file:
            if "LEADING - LEADER ELECTION TOOK" in line:
                last = -1
            elif last < 0 and (snapshot := _SNAPSHOT.search(line)):
                last = int(snapshot[1], 16)
            elif last >= 0 and (start := _REIGN.search(line)):
                yield last, int(start[1], 16)
                last = -1


def committed(data_dirs: Sequence[Path]) -> Iterator[Transaction]:
    """All transactions that these servers have committed, each once, in their order."""
    accounts = [path.parent / "zookeeper.log" for path in data_dirs]
    gaps = sorted(gap for account in accounts if account.exists() for gap in abandoned(account))
    last, kept = -1, b""
    for zxid, record in heapq.merge(*(_of_server(path) for path in data_dirs), key=lambda pair: pair[0]):
        while gaps and gaps[0][1] <= zxid:
            gaps.pop(0)
        if gaps and gaps[0][0] < zxid < gaps[0][1]:
            continue
        if zxid == last:
            if record != kept and parse(record) != parse(kept):
                raise Damaged(f"two servers have different transactions {zxid:#x}: {parse(kept)} and {parse(record)}")
            continue
        last, kept = zxid, record
        yield parse(record)
