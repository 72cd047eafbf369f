"""What a segment is on disk and on the wire: and how a client makes one.

    <directory>/segment.json, rows.npy, 0.npy, 1.npy, …         on disk; its id is the blake3 of segment.json
    "ZKDSEG1\\n", length of segment.json, segment.json, files    packed, as it travels; the offsets follow from it

segment.json has the length and the digest of every file and a checksum of each of its blocks, so whoever has the
id has to believe nobody. The files are .npy of one spelling: what the header of each is, and with it the length,
follows from the column, so a segment.json that lies about either is no segment. What makes one blocks: call it in a
thread. numpy is not needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from blake3 import blake3
from xxhash import xxh3_64_intdigest

from zkd.core.extents import row_bytes
from zkd.errors import BadRecord, DataDamaged
from zkd.manifests import BLOCK_BYTES, Column, Segment, SegmentFile, SegmentRef

if TYPE_CHECKING:
    from typing import TypeAlias

    Buffer: TypeAlias = bytes | bytearray | memoryview

SEGMENT_JSON = "segment.json"
SEGMENT_JSON_BYTES_MAX = 8 * 2**20  # the checksums of 400 GB
COLUMNS_MAX = 4096
MAGIC = b"ZKDSEG1\n"
HEAD_BYTES = len(MAGIC) + 8

_ID = re.compile(r"[0-9a-f]{64}\Z")
# One spelling for each dtype that is plain data; numpy's own parser reads far more.
_DTYPE = re.compile(
    r"(?:\|(?:[biu]1|[SV][1-9][0-9]{0,8})|<(?:[iu][248]|f[248]|f16|c8|c16|c32|U[1-9][0-9]{0,8})"
    r"|<[mM]8(?:\[[1-9]?[0-9]{0,8}(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)\Z"
)
ROWS = Column("", "<i8")  # the file of the rows' numbers, as if it were a column
_GROWTH_DIGITS = 21  # numpy leaves room in a header for a first axis that grows to so many digits
_ALIGNMENT = 64

_decode = msgspec.json.Decoder(Segment).decode
_encode = msgspec.json.Encoder().encode


def is_id(text: str) -> bool:
    """Whether this may name a segment; nothing else becomes part of a path."""
    return _ID.match(text) is not None


def short(segment_id: str) -> str:
    """A segment in a message."""
    return f"segment {segment_id[:12]}"


def file_name(number: int) -> str:
    """The name of the file of this number: 0 has the numbers of the rows, n the column n - 1."""
    return "rows.npy" if number == 0 else f"{number - 1}.npy"


# --- segment.json -----------------------------------------------------------------------------------------


def parse(text: bytes, segment_id: str) -> Segment:
    """The segment that these bytes describe; `DataDamaged` unless they are those that the id names, and make sense."""
    if len(text) > SEGMENT_JSON_BYTES_MAX:
        raise DataDamaged(f"{short(segment_id)}: expected at most {SEGMENT_JSON_BYTES_MAX} bytes of {SEGMENT_JSON}")
    if blake3(text).hexdigest() != segment_id:
        raise DataDamaged(f"{short(segment_id)}: {SEGMENT_JSON} has another digest")
    try:
        segment = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataDamaged(f"{short(segment_id)}: {SEGMENT_JSON}: {error}") from None
    if _encode(segment) != text:
        raise DataDamaged(f"{short(segment_id)}: {SEGMENT_JSON}: expected compact JSON with its fields in order")
    _make_sense(segment, segment_id)
    return segment


def _make_sense(segment: Segment, segment_id: str) -> None:
    def expect(truth: bool, what: str) -> None:
        if not truth:
            raise DataDamaged(f"{short(segment_id)}: {SEGMENT_JSON}: {what}")

    expect(len(segment.columns) <= COLUMNS_MAX, f"expected at most {COLUMNS_MAX} columns")
    expect(len({column.name for column in segment.columns}) == len(segment.columns), "a column twice")
    expect(len(segment.files) == 1 + len(segment.columns), f"expected {1 + len(segment.columns)} files")
    for number, (column, file) in enumerate(zip([ROWS, *segment.columns], segment.files, strict=True)):
        name = file_name(number)
        try:
            size = npy_size(column, segment.rows)
        except DataDamaged as error:
            raise DataDamaged(f"{short(segment_id)}: {SEGMENT_JSON}: {error}") from None
        expect(file.size == size, f"{name}: expected {size} bytes for {segment.rows} rows, got {file.size}")
        expect(len(file.blocks) == blocks_of(size), f"{name}: expected a checksum for each block")


def blocks_of(size: int) -> int:
    return -(-size // BLOCK_BYTES)


def size_of(segment: Segment) -> int:
    """Bytes of all its files, as a `SegmentRef` says them."""
    return sum(file.size for file in segment.files)


# --- Packed -----------------------------------------------------------------------------------------------


def packed_head(text: bytes) -> bytes:
    """What comes before the files, for this segment.json."""
    return MAGIC + len(text).to_bytes(8, "little") + text


def json_bytes(head: bytes) -> int:
    """The length of the segment.json that follows these HEAD_BYTES. `DataDamaged` if it is none."""
    length = int.from_bytes(head[len(MAGIC) : HEAD_BYTES], "little")
    if head[: len(MAGIC)] != MAGIC or not 0 < length <= SEGMENT_JSON_BYTES_MAX:
        raise DataDamaged(f"expected a packed segment, got bytes that begin with {head[:HEAD_BYTES]!r}")
    return length


class Block(NamedTuple):
    """One block of one file."""

    file: int
    block: int
    start: int  # in the packed form
    size: int


def blocks(segment: Segment, head_bytes: int, start: int, stop: int) -> Iterator[Block]:
    """The blocks that have bytes of the packed form from `start` to before `stop`."""
    at = head_bytes
    for number, file in enumerate(segment.files):
        if at + file.size > start:
            for index in range(max(0, start - at) // BLOCK_BYTES, len(file.blocks)):
                offset = index * BLOCK_BYTES
                if at + offset >= stop:
                    return
                yield Block(number, index, at + offset, min(BLOCK_BYTES, file.size - offset))
        at += file.size


# --- .npy -------------------------------------------------------------------------------------------------


def item_bytes(column: Column) -> int:
    """Bytes of one row of this column; `DataDamaged` if its dtype is not plain data of the spelling we use."""
    if _DTYPE.match(column.dtype) is None:
        raise DataDamaged(f'{column.name}: expected a dtype such as "<f8", "|b1" or "<M8[ns]", got {column.dtype!r}')
    try:
        return row_bytes(column, column.name)
    except BadRecord as error:
        raise DataDamaged(str(error)) from None


def npy_header(column: Column, rows: int) -> bytes:
    """The first bytes of the .npy file of this column, as numpy 2 writes them (version 1.0, C order)."""
    shape = (rows, *column.shape)
    text = f"{{'descr': {column.dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    text += " " * (_GROWTH_DIGITS - len(repr(rows)))
    length = 10 + len(text) + 1
    text += " " * (_ALIGNMENT - length % _ALIGNMENT) + "\n"
    if len(text) > 0xFFFF:
        raise DataDamaged(f"{column.name}: expected a shape that fits into an .npy header")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def npy_size(column: Column, rows: int) -> int:
    return len(npy_header(column, rows)) + rows * item_bytes(column)


def header_of(segment: Segment, number: int) -> bytes:
    """How the file of this number has to begin: 0 is rows.npy, 1 the first column."""
    return npy_header(ROWS if number == 0 else segment.columns[number - 1], segment.rows)


# --- Making one -------------------------------------------------------------------------------------------


def write(
    directory: Path, rows: int, columns: Sequence[Column], values: Sequence[Iterable[Buffer]], *, durable: bool = False
) -> SegmentRef:
    """Make a segment in a new `directory`: `values` are the bytes of the rows' numbers (<i8), then of each column.

    Each may come in pieces of any size: C order, little-endian, contiguous. `ValueError` if they are too few or
    too many. `durable`: synced when this returns.
    """
    directory.mkdir()
    files = []
    for number, (column, pieces) in enumerate(zip([ROWS, *columns], values, strict=True)):
        files.append(_write_npy(directory / file_name(number), column, rows, pieces, durable))
    return _finish(directory, Segment(rows, list(columns), files), durable)


def build(directory: Path, rows: int, columns: Sequence[Column], *, durable: bool = False) -> SegmentRef:
    """Make a segment of a directory that has rows.npy, 0.npy, … as `numpy.save` writes them, by adding segment.json.

    `DataDamaged` if one is not what the column says.
    """
    files = []
    for number, column in enumerate([ROWS, *columns]):
        files.append(_read_npy(directory / file_name(number), column, rows, durable))
    return _finish(directory, Segment(rows, list(columns), files), durable)


def sealed(segment: Segment) -> tuple[SegmentRef, bytes]:
    """What a manifest lists of this segment, and its segment.json."""
    text = _encode(segment)
    segment_id = blake3(text).hexdigest()
    if len(text) > SEGMENT_JSON_BYTES_MAX:
        raise ValueError(f"expected a segment of at most {SEGMENT_JSON_BYTES_MAX} bytes of {SEGMENT_JSON}")
    _make_sense(segment, segment_id)
    return SegmentRef(segment_id, segment.rows, size_of(segment)), text


def _finish(directory: Path, segment: Segment, durable: bool) -> SegmentRef:
    ref, text = sealed(segment)
    with (directory / SEGMENT_JSON).open("xb") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    if durable:
        sync_directory(directory)
    return ref


def _write_npy(path: Path, column: Column, rows: int, pieces: Iterable[Buffer], durable: bool) -> SegmentFile:
    sums = Sums()
    with path.open("xb", buffering=0) as file:
        for piece in (npy_header(column, rows), *pieces):
            view = memoryview(piece).cast("B")
            sums.add(view)
            write_all(file.fileno(), view)
        if durable:
            os.fsync(file.fileno())
    summed = sums.file()
    if summed.size != npy_size(column, rows):
        raise ValueError(f"{column.name}: expected {npy_size(column, rows)} bytes with the header, got {summed.size}")
    return summed


def _read_npy(path: Path, column: Column, rows: int, durable: bool) -> SegmentFile:
    header, size, sums = npy_header(column, rows), npy_size(column, rows), Sums()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(BLOCK_BYTES):
            if not sums.size and not piece.startswith(header):
                raise DataDamaged(f"{path.name}: expected an .npy file that begins with {header!r}")
            sums.add(memoryview(piece))
        if durable:
            os.fsync(file.fileno())
    if sums.size != size:
        raise DataDamaged(f"{path.name}: expected {size} bytes, got {sums.size}")
    return sums.file()


class Sums:
    """The digest of a file and the checksums of its blocks, of bytes as they come."""

    def __init__(self) -> None:
        self.size = 0
        self._digest = blake3()
        self._blocks: list[int] = []
        self._rest = bytearray()  # of a block that is not complete

    def add(self, data: memoryview) -> None:
        self.size += len(data)
        self._digest.update(data)
        if self._rest:
            missing = BLOCK_BYTES - len(self._rest)
            self._rest += data[:missing]
            data = data[missing:]
            if len(self._rest) < BLOCK_BYTES:
                return
            self._blocks.append(xxh3_64_intdigest(self._rest))
            self._rest.clear()
        whole = len(data) - len(data) % BLOCK_BYTES
        for start in range(0, whole, BLOCK_BYTES):
            self._blocks.append(xxh3_64_intdigest(data[start : start + BLOCK_BYTES]))
        self._rest += data[whole:]

    def file(self) -> SegmentFile:
        """What they are of everything that came. Nothing may come afterwards."""
        if self._rest:
            self._blocks.append(xxh3_64_intdigest(self._rest))
            self._rest.clear()
        return SegmentFile(self.size, self._digest.hexdigest(), self._blocks)


# --- Files ------------------------------------------------------------------------------------------------


def write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
