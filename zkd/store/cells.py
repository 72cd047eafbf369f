"""Single rows of a segment, read without numpy: the bytes of some cells, and whether a cell is the key that is sought.

Every cell comes out of a block that was compared with its checksum.
"""

from __future__ import annotations

import math
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from zkd.errors import BadRecord, DataDamaged
from zkd.manifests import BLOCK_BYTES, Column, Segment
from zkd.store.segment_files import header_of, item_bytes

Key = int | str | bytes | float
KeyType = Literal["int", "str", "bytes", "float"]

BLOCKS_KEPT = 32  # of those that were read last, a MiB each: keys are asked for by the handful
_FLOATS = {2: "<e", 4: "<f", 8: "<d"}
_TYPES: dict[str, KeyType] = {"i": "int", "u": "int", "m": "int", "M": "int", "U": "str", "S": "bytes", "f": "float"}

ROWS = Column("", "<i8")  # the numbers of the rows, as rows.npy has them


def key_type(column: Column) -> KeyType:
    """How keys of this column are said. `BadRecord` if it can have none that are looked up."""
    kind = _TYPES.get(column.dtype[1:2])
    if kind is None or column.shape or column.dtype == "<f16":
        raise BadRecord("$.key", f"expected a column of numbers, dates, text or bytes, got {column.dtype}")
    return kind


def parse_key(text: str, kind: KeyType) -> Key:
    """The key that this text says; bytes are in hex digits. `BadRecord` if it is none."""
    try:
        match kind:
            case "int" if re.fullmatch(r"-?[0-9]{1,20}", text, re.ASCII) and -(1 << 63) <= int(text) < 1 << 64:
                return int(text)
            case "str":
                text.encode()
                return text
            case "bytes" if re.fullmatch(r"([0-9a-fA-F]{2})*", text, re.ASCII):
                return bytes.fromhex(text)
            case "float" if len(text) < 64 and not math.isnan(float(text)):
                return float(text)
    except ValueError:
        pass
    raise BadRecord("$.key", f"expected a key of type {kind}, got {text[:80]!r}")


def is_key(cell: bytes, column: Column, key: Key) -> bool:
    """Whether this cell of a column holds this key, as `hash_key` would tell keys apart."""
    match column.dtype[1:2]:
        case "u":
            return int.from_bytes(cell, "little") == key
        case "i" | "m" | "M":
            return int.from_bytes(cell, "little", signed=True) == key
        case "f":
            return bool(struct.unpack(_FLOATS[len(cell)], cell)[0] == key)
        case "U":
            return cell.decode("utf-32-le", "surrogatepass").rstrip("\0") == key
        case _:
            return cell.rstrip(b"\0") == key


class Blocks:
    """The blocks that were read last, over all segments."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()

    def get(self, segment_id: str, file: int, block: int, read: Callable[[int, int], bytes]) -> bytes:
        """`read` gives a block that was checked."""
        place = segment_id, file, block
        data = self._kept.pop(place, None)
        if data is None:
            data = read(file, block)
        self._kept[place] = data
        while len(self._kept) > BLOCKS_KEPT:
            self._kept.popitem(last=False)
        return data

    def forget(self, segment_id: str) -> None:
        for place in [place for place in self._kept if place[0] == segment_id]:
            del self._kept[place]


def cell(
    blocks: Blocks, segment_id: str, segment: Segment, file: int, row: int, read: Callable[[int, int], bytes]
) -> bytes:
    """The bytes of one row of a file: 0 is rows.npy, n the column n - 1."""
    size = item_bytes(ROWS if file == 0 else segment.columns[file - 1])
    start = len(header_of(segment, file)) + row * size
    found = b""
    while len(found) < size:
        block, offset = divmod(start + len(found), BLOCK_BYTES)
        found += blocks.get(segment_id, file, block, read)[offset : offset + size - len(found)]
    return found


def widened(cell: bytes, column: Column, wanted: Column) -> bytes:
    """The cell as one of `wanted`: of text, segments written earlier may have shorter items. Else `DataDamaged`."""
    if column == wanted:
        return cell
    old, new = (item_bytes(Column(each.name, each.dtype)) for each in (column, wanted))
    if (
        column.shape != wanted.shape
        or column.dtype[1:2] != wanted.dtype[1:2]
        or wanted.dtype[1:2] not in "US"
        or old > new
    ):
        raise DataDamaged(f"{column.name}: expected {wanted.dtype} {wanted.shape}, got {column.dtype} {column.shape}")
    return b"".join(cell[at : at + old].ljust(new, b"\0") for at in range(0, len(cell), old))
