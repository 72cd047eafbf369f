"""Named arrays and named texts as one run of bytes, and back: the layout of safetensors.

    u64 length of the header, little-endian | header: JSON | the arrays' bytes, little-endian, C order, no gaps

The header says each array's dtype, shape and place, and has the texts under ``__metadata__``. Equal arrays give equal
bytes, the very ones of the safetensors package. What is read was written by anyone: every number in the header is
compared with the bytes that are there before an array is made, and arrays are views of those bytes, not copies, where
they are aligned there.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np

from zkd.errors import BadRecord, NotData

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Bytes: TypeAlias = bytes | bytearray | memoryview

# As the format names them, in the order in which it lays arrays out: those of wide elements come first, so that all
# are aligned. It has more (bfloat16, small floats), which numpy has not.
DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
    "F32": np.dtype("<f4"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F16": np.dtype("<f2"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("|i1"),
    "U8": np.dtype("|u1"),
    "BOOL": np.dtype("|b1"),
}
NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
RANKS: Final = {name: rank for rank, name in enumerate(DTYPES)}

HEADER_BYTES_MAX: Final = 16 << 20  # of JSON, which takes up some 25 times its length while it is read
KNOWN_BYTES_MAX: Final = 1 << 14  # headers up to here are remembered: those of a job's rounds are all the same,
KNOWN_MAX: Final = 64  # and to read one takes longer than all else
ALIGNMENT: Final = 8
DIMENSIONS_MAX: Final = 32  # of an array, as in every numpy
TEXTS: Final = "__metadata__"

_LENGTH = struct.Struct("<Q")


def pack(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """The arrays and texts as bytes. Raises `NotData` for a dtype that the format has not."""
    kinds = {name: _kind(name, array.dtype) for name, array in arrays.items()}
    names = sorted(arrays, key=lambda name: (RANKS[kinds[name]], name.encode()))
    header: dict[str, Any] = {}
    if metadata:
        header[TEXTS] = {key: metadata[key] for key in sorted(metadata)}
    pieces: list[Any] = []
    at = 0
    for name in names:
        array = np.ascontiguousarray(arrays[name], DTYPES[kinds[name]])
        header[name] = {
            "dtype": kinds[name],
            "shape": list(arrays[name].shape),
            "data_offsets": [at, at + array.nbytes],
        }
        pieces.append(array)
        at += array.nbytes
    head = msgspec.json.encode(header)
    if len(head) > HEADER_BYTES_MAX:
        raise NotData("$", f"names and texts take up {len(head)} bytes, at most {HEADER_BYTES_MAX} have room")
    head += b" " * (-len(head) % ALIGNMENT)
    return b"".join([_LENGTH.pack(len(head)), head, *pieces])


def unpack(data: Bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays, read-only, as views of `data` if they can be, and the texts. Raises `BadRecord` for other bytes."""
    view = memoryview(data).toreadonly().cast("B")
    if len(view) < _LENGTH.size:
        raise BadRecord("$", f"expected at least {_LENGTH.size} bytes, got {len(view)}")
    (length,) = _LENGTH.unpack_from(view)
    if length > min(HEADER_BYTES_MAX, len(view) - _LENGTH.size):
        raise BadRecord("$", f"a header of {length} bytes is announced, in {len(view)} bytes all told")
    start = _LENGTH.size + length
    body, raw = view[start:], bytes(view[_LENGTH.size : start])
    layout = _known_layout(raw, len(body)) if length <= KNOWN_BYTES_MAX else _layout(raw, len(body))
    return {place.name: _array(place, body) for place in layout.places}, dict(layout.texts)


class _Place(NamedTuple):
    """Where an array lies, checked against the bytes that there are."""

    name: str
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _Layout(NamedTuple):
    places: tuple[_Place, ...]
    texts: Mapping[str, str]


def _layout(raw: bytes, size: int) -> _Layout:
    """What a header says of a body of so many bytes. Raises `BadRecord`."""
    header = _header(raw)
    texts = _texts(header.pop(TEXTS, {}))
    places = tuple(_place(name, entry, size) for name, entry in header.items())
    spans = sorted((place.begin, place.end) for place in places)
    ends = [0, *(end for _, end in spans)]
    if any(before != begin for before, (begin, _) in zip(ends, spans, strict=False)) or ends[-1] != size:
        raise BadRecord("$", "the arrays overlap, or leave gaps between them, or there are bytes of none of them")
    return _Layout(places, texts)


_known_layout = lru_cache(KNOWN_MAX)(_layout)


def _kind(name: str, dtype: np.dtype[Any]) -> str:
    kind = NAMES.get(dtype.newbyteorder("<"))
    if name == TEXTS or kind is None:
        raise NotData(f"$.{name}", f"expected an array of {', '.join(DTYPES)} under another name, got {dtype}")
    return kind


def _header(raw: bytes) -> dict[str, Any]:
    try:
        header = json.JSONDecoder(object_pairs_hook=_without_doubles).decode(raw.decode())
    except (ValueError, RecursionError) as error:
        raise BadRecord("$", f"the header is no JSON that may stand there ({str(error)[:200]})") from None
    if not isinstance(header, dict) or raw[:1] != b"{":
        raise BadRecord("$", "expected a JSON object as header")
    return header


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) < len(pairs):
        raise ValueError("a name stands there twice")
    return known


def _texts(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise BadRecord(f"$.{TEXTS}", "expected texts under names")
    return found


def _place(name: str, entry: Any, size: int) -> _Place:
    where = f"$.{name[:200]}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadRecord(where, "expected dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise BadRecord(f"{where}.dtype", f"expected one of {', '.join(DTYPES)}, got {str(kind)[:50]!r}")
    if not (_is_sizes(shape) and len(shape) <= DIMENSIONS_MAX):
        raise BadRecord(f"{where}.shape", f"expected at most {DIMENSIONS_MAX} whole numbers, 0 or more")
    if not (_is_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1] <= size):
        raise BadRecord(f"{where}.data_offsets", f"expected two places in {size} bytes, the smaller one first")
    begin, end = offsets
    # Dimensions of an array without elements may be anything but what numpy cannot count.
    if math.prod(shape) * dtype.itemsize != end - begin or math.prod(filter(None, shape)) > 1 << 40:
        raise BadRecord(where, f"{kind} of shape {str(shape)[:200]} does not fit {end - begin} bytes")
    return _Place(name, kind, tuple(shape), begin, end)


def _array(place: _Place, body: memoryview) -> Array:
    array = np.frombuffer(body[place.begin : place.end], DTYPES[place.kind]).reshape(place.shape)
    if not array.flags.aligned:  # sums over such an array have other last bits
        array = array.copy()
        array.flags.writeable = False
    if place.kind == "BOOL" and array.size and array.view(np.uint8).max() > 1:
        raise BadRecord(f"$.{place.name[:200]}", "expected booleans, 0 or 1 a byte")
    return array


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
