"""How large the rows of a column are: of one that somebody else wrote down, before anybody reserves memory for it.

numpy refuses what goes beyond these bounds with errors of its own, each of another kind, or reserves it all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from zkd.errors import BadRecord
from zkd.manifests import Column, SegmentRef

DIMENSIONS_MAX = 63  # of a row; an array has one more, and numpy's limit is 64
ROW_BYTES_MAX = 2**31 - 1  # lengths of zero count as one
TEXT_WIDTH_MAX = 4096  # characters: every row of a column takes as much as the longest, 4 bytes for each
HEADER_BYTES_MAX = 10 + 0xFFFF  # of an .npy file
NUMBER_BYTES = 8  # of a row, in a file of its own

# Fixed-size plain data, as numpy spells it; what carries objects or structure is none.
_DTYPE = re.compile(
    r"(?:[|]?(?P<bytes>[biu]1|[SV][1-9][0-9]{0,8})|[<>]?(?:(?P<words>[iu][248]|f(?:[248]|16)|c(?:8|16|32))"
    r"|(?P<text>U[1-9][0-9]{0,7})|[mM]8(?:\[[1-9]?[0-9]{0,8}(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?))\Z",
    re.ASCII,
)


def row_bytes(column: Column, where: str = "$") -> int:
    """The bytes of one row. Raises `BadRecord` if there cannot be an array of such rows."""
    match = _DTYPE.match(column.dtype)
    if match is None:
        raise BadRecord(f"{where}.dtype", f"expected plain data such as <f8, got {column.dtype[:40]!r}")
    if match["text"]:
        width = int(match["text"][1:])
        if width > TEXT_WIDTH_MAX:
            raise BadRecord(f"{where}.dtype", f"expected text of at most {TEXT_WIDTH_MAX} characters, got {width}")
        item = 4 * width
    else:
        item = int((match["bytes"] or match["words"] or "M8")[1:])
    if len(column.shape) > DIMENSIONS_MAX:
        raise BadRecord(f"{where}.shape", f"expected at most {DIMENSIONS_MAX} dimensions, got {len(column.shape)}")
    if item * math.prod(max(1, length) for length in column.shape) > ROW_BYTES_MAX:
        raise BadRecord(f"{where}.shape", f"expected rows of at most {ROW_BYTES_MAX} bytes")
    return item * math.prod(column.shape)


def expect_extent(ref: SegmentRef, columns: Sequence[Column], where: str) -> None:
    """`BadRecord` unless a segment of these columns can have this size; text in it may be narrower than the column."""
    files = 1 + len(columns)
    most = ref.rows * (NUMBER_BYTES + sum(map(row_bytes, columns))) + files * HEADER_BYTES_MAX
    least = ref.rows * (NUMBER_BYTES + sum(row_bytes(_narrowest(column)) for column in columns))
    if not least <= ref.size <= most:
        raise BadRecord(where, f"expected {least} to {most} bytes for {ref.rows} rows, got {ref.size}")


def _narrowest(column: Column) -> Column:
    kind = column.dtype.lstrip("|<>")[0]
    return Column(column.name, f"{kind}1", column.shape) if kind in "SU" else column
