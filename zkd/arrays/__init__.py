"""Numbers <-> JSON. The only place that knows how numpy values look in a znode.

    nested lists                                   up to 1,000 elements, every value finite
    {"dtype": "<f8", "shape": [2, 3], "data": …}   anything else; data is base64, C order, little-endian
    {"blob": sha256, "size": …, "format": "npy"}   the value lies in a file; it is memory-mapped, read-only

The objects with exactly these names are reserved: elsewhere in a value they mean an array, too. What is
read here was written by anyone: a dtype passes a strict parser, sizes are compared before memory is asked
for, and nothing is ever unpickled. Workers and clients import this; the daemon's process never does.

    writing   values -> JSON        reading   JSON -> values
    files     npy files             dtypes    which dtypes are plain data, and how they are spelled
"""

from zkd.arrays.dtypes import BY_NAME, parse_dtype
from zkd.arrays.files import Format, from_octets, open_column, open_npy, save_npy, write_blob
from zkd.arrays.reading import NO_FILES, from_json
from zkd.arrays.shown import describe
from zkd.arrays.writing import DEPTH_MAX, LIST_ELEMENTS_MAX, is_large, to_json

__all__ = [
    "BY_NAME",
    "DEPTH_MAX",
    "LIST_ELEMENTS_MAX",
    "NO_FILES",
    "Format",
    "describe",
    "from_json",
    "from_octets",
    "is_large",
    "open_column",
    "open_npy",
    "parse_dtype",
    "save_npy",
    "to_json",
    "write_blob",
]
