"""Numbers <-> JSON. The only place that knows how numpy values look in a znode.

    nested lists                                   up to 1,000 elements, every value finite
    {"dtype": "<f8", "shape": [2, 3], "data": …}   anything else; data is base64, C order, little-endian
    {"blob": sha256, "size": …, "format": "npy"}   the value lies in a file; it is memory-mapped, read-only

The objects with exactly these names are reserved: elsewhere in a value they mean an array, too. What is
read here was written by anyone: a dtype passes a strict parser, sizes are compared before memory is asked
for, and nothing is ever unpickled. Workers and clients import this; the daemon's process never does.
"""

from __future__ import annotations

import ast
import math
import os
import re
import struct
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Raw

from zkd.codec import refuse_duplicate_names
from zkd.errors import BadRecord, NotData

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Format: TypeAlias = Literal["npy", "json"]

LIST_ELEMENTS_MAX = 1000  # larger arrays are base64: 3 times smaller and 20 times faster to read
DEPTH_MAX = 100  # of arrays and objects in each other; numpy has at most 64 dimensions
FIELDS_MAX = 256  # of a structured dtype, and
FIELD_DEPTH_MAX = 8  # how deep structures lie in each other
NPY_HEADER_BYTES_MAX = 16 * 1024
NPY_MAGIC = b"\x93NUMPY"
NO_FILES: Mapping[str, str] = MappingProxyType({})

# "<f16" is the 80-bit format of x86 in 16 bytes. Other machines give the same name to other formats, so
# they refuse it (and their own long doubles) instead of reading wrong numbers.
HAS_X87 = np.finfo(np.longdouble).nmant == 63 and np.dtype(np.longdouble).itemsize == 16

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

_SIMPLE = frozenset({float, int, bool, str, type(None)})
_ARRAY_NAMES = frozenset({"dtype", "shape", "data"})
_BLOB_NAMES = frozenset({"blob", "size", "format"})
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_NUMERIC = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16)\Z")
_EXTENDED = re.compile(r"<(f16|c32)\Z")
_TIME = re.compile(r"[<>=]?[mM]8(\[[1-9]?[0-9]{0,8}(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?\Z")
_SIZED = re.compile(r"([<>=]?U|\|?S|\|?V)([1-9][0-9]{0,8})\Z")
BY_NAME = frozenset(
    np.dtype(code).name for code in ("?", "b", "h", "i", "q", "B", "H", "I", "Q", "e", "f", "d", "F", "D")
)
DTYPE_RULE = 'a plain dtype such as "float64", "<i4", "|b1", "<c16", "<M8[ns]", "<U10", "|S8" or a list of fields'


# --- values to JSON -----------------------------------------------------------------------------------


def to_json(value: object) -> bytes:
    """`value` as JSON text.

    A tuple becomes a list, a dataclass or struct an object, a numpy scalar a number. NaN, infinities,
    complex numbers, dates and bytes become 0-d arrays, which `from_json` gives back bit for bit.
    Raises `NotData` for what has no place in JSON: object arrays, sets, functions, cycles.
    """
    try:
        return _encode(_tree(value, "$", 0))
    except UnicodeEncodeError as error:
        raise NotData("$", f"text with a lone surrogate cannot be UTF-8: {error.object[:40]!r}") from None


def _tree(value: object, where: str, depth: int) -> object:
    """`value` with everything that msgspec would not write, or write differently, replaced."""
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else _float(value)  # type: ignore[arg-type]
    if kind in _SIMPLE:
        return value
    if isinstance(value, np.ndarray):
        return _array(value, where)
    if depth >= DEPTH_MAX:
        raise NotData(where, f"a value nested deeper than {DEPTH_MAX} levels, or one that contains itself")
    if isinstance(value, list | tuple | range):
        return _list(value, where, depth)
    if isinstance(value, dict):
        return _object(value, where, depth)
    return _other(value, where, depth)


def _list(value: Sequence[object], where: str, depth: int) -> object:
    kinds = set(map(type, value))
    if kinds <= _SIMPLE:
        text = _encode(value)
        # msgspec writes NaN and infinities as null, so only a list with a null needs a closer look.
        if float not in kinds or b"null" not in text:
            return Raw(text)
        return [_float(item) if type(item) is float and not math.isfinite(item) else item for item in value]
    return [_tree(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]


def _object(value: Mapping[Any, object], where: str, depth: int) -> dict[str, object]:
    tree: dict[str, object] = {}
    for name, item in value.items():
        if not isinstance(name, str):
            raise NotData(where, f"names in an object are text, got {name!r} of type {type(name).__name__}")
        tree[str(name)] = _tree(item, f"{where}.{name}", depth + 1)
    if len(tree) != len(value):
        raise NotData(where, "two names of this object are the same text")
    return tree


def _other(value: object, where: str, depth: int) -> object:
    if isinstance(value, np.generic):
        return _array(np.asarray(value), where)
    if isinstance(value, bytes | bytearray | memoryview):
        return _raw(f"|V{len(bytes(value))}", (), bytes(value))
    if isinstance(value, msgspec.Struct):
        names = value.__struct_encode_fields__
        pairs = zip(names, value.__struct_fields__, strict=True)
        return _object({name: getattr(value, field) for name, field in pairs}, where, depth)
    if is_dataclass(value) and not isinstance(value, type):
        return _object({field.name: getattr(value, field.name) for field in fields(value)}, where, depth)
    for base in (bool, int, float, str):  # subclasses, such as the members of an IntEnum
        if isinstance(value, base):
            return _tree(base(value), where, depth)
    raise NotData(where, f"a value of type {_type_name(value)} is not plain data; {_advice(value)}")


def _advice(value: object) -> str:
    if isinstance(value, set | frozenset):
        return "a set has no order, use sorted(…) or list(…)"
    if hasattr(value, "__next__") or hasattr(value, "__await__"):
        return "return the values themselves, for example list(…)"
    return "use numbers, text, lists, dicts and numpy arrays"


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _float(value: float) -> Raw:
    return _raw("<f8", (), struct.pack("<d", value))


def _array(array: Array, where: str) -> Raw:
    if isinstance(array, np.ma.MaskedArray):
        raise NotData(where, "a masked array would lose its mask; use .filled(…) or send data and mask")
    if array.dtype.kind == "T":  # variable-width text has no fixed bytes
        array = _fixed_text(array, where)
    if _is_list(array):
        text = _nested(array)
        if text is not None:
            return text
    plain = plain_array(array, where)
    return _raw(_spelling(plain.dtype), plain.shape, plain)


def _nested(array: Array) -> Raw | None:
    """`array` as nested lists, or None if a value of it cannot be said there: NaN, a lone surrogate."""
    try:
        text = _encode(array.tolist())
    except UnicodeEncodeError:
        return None
    return None if array.dtype.kind == "f" and b"null" in text else Raw(text)


def _is_list(array: Array) -> bool:
    """Whether nested lists can say this array: its shape survives, and its elements may be JSON's."""
    kind, size = array.dtype.kind, array.size
    if size > LIST_ELEMENTS_MAX or kind not in "biufU" or (kind == "f" and array.dtype.itemsize > 8):
        return False
    # An empty list says its own length alone: (0, 3) would come back as (0,).
    return size > 0 or 0 not in array.shape[:-1]


def _fixed_text(array: Array, where: str) -> Array:
    texts = array.reshape(-1).tolist()
    if not all(type(text) is str for text in texts):
        raise NotData(where, "this text array has missing values; give them a text of their own")
    return np.array(texts, np.str_).reshape(array.shape)


def _raw(dtype: object, shape: tuple[int, ...], data: Array | bytes) -> Raw:
    octets: Any = data
    if isinstance(data, np.ndarray):
        octets = data.reshape(-1).view(np.uint8).data if data.size else b""
    head = _encode({"dtype": dtype, "shape": shape})
    return Raw(b"".join((head[:-1], b',"data":"', b2a_base64(octets, newline=False), b'"}')))


def plain_array(array: Array, where: str = "$") -> Array:
    """`array` as the bytes that are sent: C order, little-endian, no padding. Raises `NotData`."""
    dtype = _plain_dtype(array.dtype, where)
    plain = np.ascontiguousarray(array, dtype=dtype).reshape(array.shape).view(np.ndarray)
    if _is_extended(dtype):
        plain = plain.copy()
        # The 6 unused bytes of each number hold whatever was in memory before: not for others to read.
        plain.reshape(-1).view(np.uint8).reshape(-1, 16)[:, 10:] = 0
    return plain


def _plain_dtype(dtype: np.dtype[Any], where: str) -> np.dtype[Any]:
    if dtype.fields is not None and dtype.names is not None:
        return np.dtype([(name, _plain_field(dtype.fields[name][0], f"{where}.{name}")) for name in dtype.names])
    if _is_extended(dtype):
        if not HAS_X87:
            raise NotData(where, f"{dtype} means another format on other machines; use .astype(numpy.float64)")
        return dtype.newbyteorder("<")
    if dtype.hasobject or dtype.kind not in "biufcmMSUV":
        raise NotData(where, f"dtype {dtype} is not plain data; use .astype(…) with a numeric dtype, or a list")
    if dtype.itemsize == 0:  # text of length zero: one NUL says the same
        return np.dtype(f"{dtype.kind}1")
    return dtype.newbyteorder("<")


def _plain_field(dtype: np.dtype[Any], where: str) -> np.dtype[Any]:
    if dtype.subdtype is not None:
        element, shape = dtype.subdtype
        return np.dtype((_plain_field(element, where), shape))
    if _is_extended(dtype):
        raise NotData(where, f"{dtype} in a structure is not plain data; use float64")
    return _plain_dtype(dtype, where)


def _is_extended(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "fc" and dtype.itemsize > (8 if dtype.kind == "f" else 16)


def _spelling(dtype: np.dtype[Any]) -> object:
    """A plain dtype as it is written: text, or a list of [name, dtype] and [name, dtype, shape]."""
    if dtype.names is None or dtype.fields is None:
        return dtype.str
    spelled: list[object] = []
    for name in dtype.names:
        field = dtype.fields[name][0]
        if field.subdtype is None:
            spelled.append([name, _spelling(field)])
        else:
            spelled.append([name, _spelling(field.subdtype[0]), list(field.subdtype[1])])
    return spelled


# --- JSON to values -----------------------------------------------------------------------------------


def from_json(text: bytes, files: Mapping[str, str] = NO_FILES, where: str = "$") -> Any:
    """The value in this JSON text, the inverse of `to_json`.

    Objects in the dtype form become arrays (0-d ones numpy scalars), references to blobs become the
    contents of `files[sha256]`: a read-only memory map for the format npy. Plain lists stay lists.
    Raises `BadRecord` with the place, which starts with `where`.
    """
    refuse_depth(text, where)
    try:
        value = _decode(text)
    except RecursionError:
        raise BadRecord(where, "expected JSON of reasonable depth, got one nested too deeply") from None
    except UnicodeDecodeError as error:
        raise BadRecord(where, f"expected UTF-8, got byte {text[error.start]:#04x} at offset {error.start}") from None
    except msgspec.ValidationError as error:  # a number that no float or int can hold
        raise BadRecord(where, f"expected numbers within range: {error}") from None
    except msgspec.DecodeError as error:
        raise BadRecord(where, f"expected JSON, got text that is not: {error}") from None
    if b"{" not in text:
        return value
    if text.count(b":") > 1:
        refuse_duplicate_names(text)
    return _value(value, files, where)


def refuse_depth(text: bytes, where: str = "$") -> None:
    """Raise a `BadRecord` if this JSON is nested deeper than a value ever is, before it is decoded."""
    # What `to_json` writes at its own limit still has to fit: 64 dimensions and the envelope around it.
    limit = DEPTH_MAX + 70
    if text.count(b"[") + text.count(b"{") <= limit:
        return
    brackets = (_STRING.sub(b"", text) if b'"' in text else text).translate(None, _NOT_BRACKETS)
    marks = np.frombuffer(brackets, np.uint8)
    steps = np.where((marks == ord("[")) | (marks == ord("{")), 1, -1)
    deepest = int(np.cumsum(steps).max(initial=0))
    if deepest > limit:
        raise BadRecord(where, f"expected JSON of at most {limit} levels, got {deepest}")


def _value(value: Any, files: Mapping[str, str], where: str) -> Any:
    """`value` with arrays and blobs in their places. Lists and dicts are changed in place: they are ours."""
    if type(value) is list:
        for index, item in enumerate(value):
            if type(item) is list or type(item) is dict:
                value[index] = _value(item, files, f"{where}[{index}]")
        return value
    if type(value) is not dict:
        return value
    names = value.keys()
    if names == _ARRAY_NAMES:
        return _read_array(value, where)
    if names >= _BLOB_NAMES and len(names - _BLOB_NAMES - {"nodes"}) == 0:
        return _read_blob(value, files, where)
    for name, item in value.items():
        if type(item) is list or type(item) is dict:
            value[name] = _value(item, files, f"{where}.{name}")
    return value


def _read_array(value: dict[str, Any], where: str) -> Any:
    shape = _shape(value["shape"], f"{where}.shape")
    if value["dtype"] == "|V0" and shape == () and value["data"] == "":
        return b""
    dtype = parse_dtype(value["dtype"], f"{where}.dtype")
    size = _byte_count(shape, dtype, f"{where}.shape")
    text = value["data"]
    if type(text) is not str:
        raise BadRecord(f"{where}.data", f"expected base64 text, got {describe(text)}")
    if len(text) != (size + 2) // 3 * 4:
        raise BadRecord(
            f"{where}.data",
            f"expected {size} bytes ({dtype.str} in shape {list(shape)}) as {(size + 2) // 3 * 4} characters of "
            f"base64, got {len(text)} characters",
        )
    try:
        data = a2b_base64(text, strict_mode=True) if text else b""
    except (Base64Error, ValueError) as error:
        raise BadRecord(f"{where}.data", f"expected base64, got text that is not: {error}") from None
    if len(data) != size:
        raise BadRecord(f"{where}.data", f"expected {size} bytes ({dtype.str} in shape {list(shape)}), got {len(data)}")
    stored = np.frombuffer(data, dtype).reshape(shape) if size else np.empty(shape, dtype)
    refuse_bad_elements(stored, f"{where}.data")
    array = stored.astype(native(dtype), copy=True)  # a copy is writable, as an argument should be
    if shape != () or dtype.kind in "SU" or dtype.names is not None:
        return array
    return array.tobytes() if dtype.kind == "V" else array[()]


def _shape(value: object, where: str) -> tuple[int, ...]:
    if type(value) is not list or not all(type(length) is int and length >= 0 for length in value):
        raise BadRecord(where, f"expected a list of whole numbers >= 0, got {describe(value)}")
    if len(value) > 64:
        raise BadRecord(where, f"expected at most 64 dimensions, got {len(value)}")
    return tuple(value)


def _byte_count(shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> int:
    # numpy multiplies the other lengths of an empty array, too, so they must fit as well.
    if math.prod(length for length in shape if length) * dtype.itemsize >= 2**63:
        raise BadRecord(where, f"expected a shape that fits into memory, got {describe(list(shape))}")
    return math.prod(shape) * dtype.itemsize


def refuse_bad_elements(array: Array, where: str) -> None:
    """Raise a `BadRecord` for bytes that are no value of their dtype: booleans of 7, text past Unicode."""
    if array.dtype.names is not None:
        for name in array.dtype.names:
            refuse_bad_elements(array[name], where)
    elif array.dtype.kind == "b" and array.size and int(array.view(np.uint8).max()) > 1:
        raise BadRecord(where, "expected booleans as bytes 0 and 1, got others")
    elif array.dtype.kind == "U" and array.size:
        codes = np.ascontiguousarray(array).reshape(-1).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if int(codes.max()) > 0x10FFFF:
            raise BadRecord(where, "expected text in UCS-4, got numbers beyond Unicode")


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def parse_dtype(value: object, where: str = "$") -> np.dtype[Any]:
    """The dtype that this text or list of fields names, if it is plain data. Raises `BadRecord`.

    `numpy.dtype` itself reads far more: objects, comma-separated structures, aliases of this platform.
    """
    return _parse_dtype(value, where, 0, [])


def _parse_dtype(value: object, where: str, depth: int, seen: list[None]) -> np.dtype[Any]:
    if isinstance(value, str) and len(value) <= 32:
        sized = _SIZED.match(value)
        if sized and int(sized[2]) < 2**28:  # numpy counts bytes in 32 bits, four to a character
            return np.dtype(value)
        plain = value in BY_NAME or _NUMERIC.match(value) or _TIME.match(value)
        if plain or (HAS_X87 and depth == 0 and _EXTENDED.match(value)):
            return _known(value, where)
    elif isinstance(value, list) and value and depth < FIELD_DEPTH_MAX:
        return _parse_fields(value, where, depth, seen)
    raise BadRecord(where, f"expected {DTYPE_RULE}, got {describe(value)}")


def _known(text: str, where: str) -> np.dtype[Any]:
    try:
        return np.dtype(text)
    except (TypeError, ValueError) as error:  # a unit such as [999999999Y] that numpy cannot hold
        raise BadRecord(where, f"expected {DTYPE_RULE}, got {text!r}: {error}") from None


def _parse_fields(value: Sequence[object], where: str, depth: int, seen: list[None]) -> np.dtype[Any]:
    parsed: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
    for index, field in enumerate(value):
        place = f"{where}[{index}]"
        seen.append(None)
        if len(seen) > FIELDS_MAX:
            raise BadRecord(where, f"expected at most {FIELDS_MAX} fields")
        if not isinstance(field, list | tuple) or len(field) not in (2, 3):
            raise BadRecord(
                place, f'expected a field as ["name", dtype] or ["name", dtype, shape], got {describe(field)}'
            )
        name = field[0]
        if not isinstance(name, str) or not 0 < len(name) <= 256 or name in (other[0] for other in parsed):
            raise BadRecord(f"{place}[0]", f"expected a name of its own for each field, got {describe(name)}")
        dtype = _parse_dtype(field[1], f"{place}[1]", depth + 1, seen)
        shape = _shape(list(field[2]) if len(field) == 3 else [], f"{place}[2]") if _is_shape(field) else None
        if shape is None or 0 in shape or math.prod(shape) * dtype.itemsize >= 2**30:
            raise BadRecord(f"{place}[2]", f"expected a small shape without zeros, got {describe(field[2])}")
        parsed.append((name, dtype, shape))
    if sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in parsed) >= 2**31:
        raise BadRecord(where, "expected a structure below 2 GiB")
    return np.dtype(parsed)


def _is_shape(field: Sequence[Any]) -> bool:
    return len(field) == 2 or isinstance(field[2], list | tuple)


def describe(value: object) -> str:
    """A few words on a value for a message: its kind, and the value itself where it is short."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} in shape {list(value.shape)}"
    if isinstance(value, dict):
        return f"an object with {', '.join(map(repr, list(value)[:5])) or 'nothing'}{', …' if len(value) > 5 else ''}"
    if isinstance(value, list | tuple) and len(value) > 8:
        return f"a list of {len(value)}"
    text = repr(value) if not isinstance(value, str) else repr(value[:80])
    kind = "null" if value is None else f"{_JSON_NAMES.get(type(value), _type_name(value))} {text[:80]}"
    return kind + ("…" if len(text) > 80 else "")


_JSON_NAMES: Mapping[type, str] = {
    bool: "the truth value",
    int: "the number",
    float: "the number",
    str: "the text",
    list: "the list",
    tuple: "the list",
}


# --- files --------------------------------------------------------------------------------------------


def write_blob(value: object, path: str | os.PathLike[str]) -> Format:
    """Write a result to a file: one array of plain data as npy, anything else as JSON."""
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray) and value.dtype.kind in "biufcmMSU":
        save_npy(value, path)
        return "npy"
    text = to_json(value)
    with open(path, "wb") as file:
        file.write(text)
    return "json"


def is_large(value: object, limit: int) -> bool:
    """Whether `to_json` would surely write more than `limit` bytes: known for arrays without encoding them."""
    return isinstance(value, np.ndarray) and value.size > LIST_ELEMENTS_MAX and value.nbytes * 4 // 3 > limit


def save_npy(array: Array, path: str | os.PathLike[str]) -> None:
    """Write `array` as an npy file (version 1.0, C order, little-endian) that `open_npy` and numpy read."""
    plain = plain_array(array)
    with open(path, "wb") as file:
        np.lib.format.write_array(file, plain, version=(1, 0), allow_pickle=False)


def open_npy(path: str | os.PathLike[str], where: str = "$") -> Array:
    """A read-only memory map of an npy file, whose header is checked first. Raises `BadRecord`.

    `numpy.load` believes the header: one of 10**15 elements without size, or of a type with objects.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        dtype, shape, order, offset = _npy_header(file.read(12 + NPY_HEADER_BYTES_MAX), where)
        expected = _byte_count(shape, dtype, where)
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


def _npy_header(head: bytes, where: str) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"], int]:
    version = head[6:8]
    if head[:6] != NPY_MAGIC or version not in (b"\x01\x00", b"\x02\x00"):
        raise BadRecord(where, f"expected an npy file of version 1 or 2, got one that starts with {head[:8]!r}")
    start = 10 if version == b"\x01\x00" else 12
    length = int.from_bytes(head[8:start], "little")
    if length > NPY_HEADER_BYTES_MAX or len(head) < start + length:
        raise BadRecord(where, f"expected an npy header of at most {NPY_HEADER_BYTES_MAX} bytes, got {length}")
    try:
        header = ast.literal_eval(head[start : start + length].decode("latin-1"))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise BadRecord(where, f"expected an npy header, got text that is none ({type(error).__name__})") from None
    if type(header) is not dict or header.keys() != {"descr", "fortran_order", "shape"}:
        raise BadRecord(where, "expected an npy header with descr, fortran_order and shape")
    if type(header["shape"]) is not tuple or type(header["fortran_order"]) is not bool:
        raise BadRecord(where, "expected an npy header with a tuple `shape` and a truth value `fortran_order`")
    shape = _shape(list(header["shape"]), where)
    return parse_dtype(header["descr"], where), shape, "F" if header["fortran_order"] else "C", start + length


def _read_blob(value: dict[str, Any], files: Mapping[str, str], where: str) -> Any:
    sha, size, form = value["blob"], value["size"], value["format"]
    if type(sha) is not str or not _SHA256.match(sha):
        raise BadRecord(f"{where}.blob", f"expected a sha256 in 64 hexadecimal digits, got {describe(sha)}")
    if form not in ("npy", "json"):
        raise BadRecord(f"{where}.format", f'expected "npy" or "json", got {describe(form)}')
    path = files.get(sha)
    if path is None:
        raise BadRecord(f"{where}.blob", f"no file for blob {sha[:12]}… is here")
    actual = os.stat(path).st_size
    if type(size) is not int or size != actual:
        raise BadRecord(f"{where}.size", f"expected {actual}, the size of blob {sha[:12]}…, got {describe(size)}")
    if form == "npy":
        return open_npy(path, where)
    with open(path, "rb") as file:
        return from_json(file.read(), NO_FILES, where)
