"""npy files: results too large for a znode, and large arguments as read-only memory maps.

The header is checked here, since `numpy.load` believes it: 10**15 elements without size, a type with
objects, a file shorter than it says.
"""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Sequence
from mmap import mmap
from typing import IO, Any, Literal, TypeAlias

import numpy as np

from zkd.arrays.dtypes import Array, byte_count, parse_dtype, parse_shape, plain_array, refuse_bad_elements
from zkd.arrays.writing import is_masked, to_json
from zkd.errors import BadRecord, DataDamaged

Format: TypeAlias = Literal["npy", "json"]

HEADER_BYTES_MAX = 16 * 1024
MAGIC = b"\x93NUMPY"
# bytes up to the end of the header's length
PREFIX_BYTES = {b"\x01\x00": 10, b"\x02\x00": 12}


def write_blob(value: object, path: str | os.PathLike[str]) -> Format:
    """Write a result to a file: one array of plain data as npy, anything else as JSON."""
    if isinstance(value, np.ndarray) and not is_masked(value) and value.dtype.kind in "biufcmMSU":
        save_npy(value, path)
        return "npy"
    text = to_json(value)
    with open(path, "wb") as file:
        file.write(text)
    return "json"


def save_npy(array: Array, path: str | os.PathLike[str]) -> None:
    """Write `array` as an npy file (version 1.0, C order, little-endian) that `open_npy` and numpy read."""
    plain = plain_array(array)
    with open(path, "wb") as file:
        np.lib.format.write_array(file, plain, version=(1, 0), allow_pickle=False)


def open_npy(path: str | os.PathLike[str], where: str = "$") -> Array:
    """A read-only memory map of an npy file, whose header is checked first. Raises `BadRecord`."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        dtype, shape, order, offset = _npy_header(file.read(12 + HEADER_BYTES_MAX), where)
        expected = byte_count(shape, dtype, where)
        if size - offset != expected:
            raise BadRecord(
                where,
                f"expected {expected} bytes ({dtype.str} in shape {list(shape)}) after the npy header, "
                f"got {size - offset}",
            )
        if expected == 0:  # nothing to map
            array: Array = np.empty(shape, dtype)
            array.flags.writeable = False
            return array
        array = np.memmap(file, dtype, "r", offset, shape, order)
    refuse_bad_elements(array, where)
    return array


def from_octets(data: memoryview | mmap, dtype: str, shape: tuple[int, ...], offset: int, where: str = "$") -> Array:
    """The array in the bytes of an npy file whose header was compared before, without a copy. Raises `BadRecord`."""
    count = math.prod(shape)
    array: Array = np.frombuffer(data, dtype, count, offset) if count else np.empty(0, dtype)
    array = array.reshape(shape)
    array.flags.writeable = False
    refuse_bad_elements(array, where)
    return array


def read_npy_header(file: IO[bytes], where: str) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"]]:
    """What the array in this file is; the file stands at its first byte then. Raises `BadRecord`."""
    prefix = file.read(12)
    start = PREFIX_BYTES.get(prefix[6:8], 12)
    length = int.from_bytes(prefix[8:start], "little")
    rest = file.read(min(start + length, 12 + HEADER_BYTES_MAX) - len(prefix)) if len(prefix) == 12 else b""
    dtype, shape, order, _ = _npy_header(prefix + rest, where)
    byte_count(shape, dtype, where)
    return dtype, shape, order


def open_column(dtype: str, row: list[int], files: Sequence[str]) -> Array:
    """The rows in these npy files, one behind the other, read-only; of a single file a memory map and no copy.

    Raises `DataDamaged` where a file is not there, or is not an array of this dtype and shape of a row.
    """
    wanted = parse_dtype(dtype, "dtype")
    arrays: list[Array] = []
    for path in files:
        try:
            array = open_npy(path, path)
        except (OSError, BadRecord) as error:
            raise DataDamaged(f"a file of the part cannot be read: {error}") from error
        is_text = wanted.kind in "US" and array.dtype.kind == wanted.kind  # as wide as this file's longest needs
        fits = array.dtype == wanted or (is_text and array.dtype.itemsize <= wanted.itemsize)
        if not fits or array.ndim == 0 or list(array.shape[1:]) != row:
            raise DataDamaged(f"{path}: expected rows of {dtype} in shape {row}, got {array.dtype.str} {array.shape}")
        arrays.append(array)
    if len(arrays) == 1:
        return arrays[0]
    whole = np.concatenate(arrays) if arrays else np.empty((0, *row), wanted)
    whole.flags.writeable = False
    return whole


def _npy_header(head: bytes, where: str) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"], int]:
    start = PREFIX_BYTES.get(head[6:8])
    if head[:6] != MAGIC or start is None:
        raise BadRecord(where, f"expected an npy file of version 1 or 2, got one that starts with {head[:8]!r}")
    length = int.from_bytes(head[8:start], "little")
    if length > HEADER_BYTES_MAX or len(head) < start + length:
        raise BadRecord(where, f"expected an npy header of at most {HEADER_BYTES_MAX} bytes, got {length}")
    try:
        header = ast.literal_eval(head[start : start + length].decode("latin-1"))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise BadRecord(where, f"expected an npy header, got text that is none ({type(error).__name__})") from None
    if type(header) is not dict or header.keys() != {"descr", "fortran_order", "shape"}:
        raise BadRecord(where, "expected an npy header with descr, fortran_order and shape")
    if type(header["shape"]) is not tuple or type(header["fortran_order"]) is not bool:
        raise BadRecord(where, "expected an npy header with a tuple `shape` and a truth value `fortran_order`")
    shape = parse_shape(list(header["shape"]), where)
    return parse_dtype(header["descr"], where), shape, "F" if header["fortran_order"] else "C", start + length
