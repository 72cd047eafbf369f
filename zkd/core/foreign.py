"""Which files are no models of zkd, told by their names and first bytes, with the words for each.

Formats that run code when they are read (pickle and all that is made of it), or that nobody here reads, are refused
before anything looks at them. What is left begins as safetensors do: the length of a JSON header, then the header.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Final

HEAD_BYTES: Final = 16  # as many first bytes as are needed here
HEADER_BYTES_MAX: Final = 16 << 20  # as in zkd.arrays.tensors
LENGTH_BYTES: Final = 8

HINT: Final = (
    "zkd runs no code of a model: it takes what `zkd train` ends with, fitted scikit-learn models by "
    "`client.models.push(name, estimator)`, and some ONNX files by `zkd model push`"
)

_PICKLES = "a pickle"
_ENDINGS: Final[Mapping[str, str]] = {
    **dict.fromkeys((".pkl", ".pickle", ".pck", ".dill", ".cloudpickle", ".sav"), _PICKLES),
    ".joblib": "a joblib file, which is a pickle",
    ".skops": "a skops file",
    **dict.fromkeys((".h5", ".hdf5", ".hdf", ".keras"), "an HDF5 or Keras file"),
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".mar"), "a PyTorch file, which is a pickle"),
    ".onnx": "an ONNX file",
    ".pmml": "a PMML file",
    **dict.fromkeys((".npy", ".npz"), "a file of numpy arrays without a model around them"),
}
_MAGICS: Final[tuple[tuple[bytes, str], ...]] = (
    *((bytes([0x80, protocol]), _PICKLES) for protocol in range(2, 8)),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"PK\x03\x04", "a zip archive, as PyTorch, Keras and skops write"),
    (b"\x93NUMPY", "a .npy file"),
    (b"\x1f\x8b", "a gzip file, as joblib writes"),
    (b"BZh", "a bzip2 file, as joblib writes"),
    (b"\xfd7zXZ", "an xz file, as joblib writes"),
    (b"ZF0x", "a joblib file"),
    *((bytes([0x78, level]), "a zlib stream, as joblib writes") for level in (0x01, 0x5E, 0x9C, 0xDA)),
)
# What pickles of protocol 0 and 1 begin with: MARK, GLOBAL, EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE, LIST, ...
_OLD_PICKLES = (b"(", b"c", b"}q", b"]q", b")", b"ccopy_reg", b"(i", b"(d", b"(l")


def of_name(name: str) -> str | None:
    """Why a file of this name is refused; None if its name does not tell."""
    what = _ENDINGS.get(PurePath(name).suffix.lower())
    return None if what is None else f"{name} is {what}; {HINT}"


def of_bytes(head: bytes, size: int) -> str | None:
    """Why a file of `size` bytes with this beginning is refused; None if it may be a model."""
    for magic, what in _MAGICS:
        if head.startswith(magic):
            return f"this is {what}; {HINT}"
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    if len(head) < min(LENGTH_BYTES + 1, size) or size <= LENGTH_BYTES:
        return f"expected a header and arrays, got {size} bytes"
    if head[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{" and 0 < length <= min(HEADER_BYTES_MAX, size - LENGTH_BYTES):
        return None
    if head.startswith(_OLD_PICKLES):
        return f"this is {_PICKLES}, of an old protocol; {HINT}"
    return f"this is no safetensors file: it announces a header of {length} bytes, in {size} all told"
