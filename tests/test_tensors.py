"""Named arrays as bytes: the layout of safetensors, held to the package of that name, and what hostile bytes get."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from zkd.arrays.tensors import DTYPES, HEADER_BYTES_MAX, pack, unpack
from zkd.errors import BadRecord, NotData

RNG = np.random.default_rng(7)
ARRAYS: dict[str, Any] = {
    **{f"{name}.{kind}": RNG.integers(0, 2, (3, 5)).astype(dtype) for name in "ba" for kind, dtype in DTYPES.items()},
    "none": np.zeros((0, 4)),
    "one": np.array(2.5),
    "ümlaut": np.array([np.nan, -np.inf, -0.0, 5e-324]),
}


def written(header: Any, body: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def entry(dtype: Any = "F64", shape: Any = (1,), at: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": at}


def test_the_bytes_are_those_of_the_safetensors_package() -> None:
    assert pack(ARRAYS, {"kind": "model"}) == save(ARRAYS, {"kind": "model"})
    assert pack({}) == save({})


def test_each_reads_what_the_other_wrote() -> None:
    ours, texts = unpack(save(ARRAYS, {str(number): "x" * number for number in range(20)}))
    theirs = load(pack(ARRAYS))
    assert texts == {str(number): "x" * number for number in range(20)}
    for name, array in ARRAYS.items():
        for read in (ours[name], theirs[name]):
            assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_arrays_of_any_layout_come_back_in_the_same_bits() -> None:
    wide = RNG.standard_normal((6, 7))
    given = {"transposed": wide.T, "strided": wide[::2, ::3], "swapped": wide.astype(">f8"), "row": wide[3]}
    read, _ = unpack(pack(given))
    for name, array in given.items():
        assert np.array_equal(read[name], array)
        assert read[name].flags.aligned


def test_what_is_read_is_a_view_that_nobody_may_write_to() -> None:
    raw = bytearray(pack({"x": np.arange(1000.0)}))
    read, _ = unpack(raw)
    assert np.shares_memory(read["x"], np.frombuffer(raw, np.uint8))
    assert not read["x"].flags.writeable


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([1j]), np.array([object()]), np.zeros(1, "M8[s]")])
def test_a_dtype_that_the_format_has_not_is_refused_by_name(array: Any) -> None:
    with pytest.raises(NotData, match=r"\$\.x"):
        pack({"x": array})


HOSTILE = {
    "nothing": b"",
    "half a length": b"\x08\0\0\0",
    "a header longer than all": struct.pack("<Q", 100) + b"{}",
    "a header beyond all bounds": struct.pack("<Q", (1 << 64) - 1) + b"{}",
    "no JSON": written(b"{'x': 1}"),
    "no object": written([]),
    "blanks first": written(b"  {}"),
    "no text": written(b"\xff\xfe{}"),
    "depth without end": written(b'{"x":' * 100_000),
    "a number without end": written(b'{"x":' + b"9" * 10_000 + b"}"),
    "one name twice": written(b'{"x":{"dtype":"F64","shape":[0],"data_offsets":[0,0]},' * 2 + b"}"),
    "a name twice in the texts": written(b'{"__metadata__":{"a":"b","a":"c"}}'),
    "texts that are none": written({"__metadata__": {"a": 1}}),
    "no entry": written({"x": 3}),
    "half an entry": written({"x": {"dtype": "F64", "shape": [1]}}, bytes(8)),
    "more than an entry": written({"x": entry() | {"more": 1}}, bytes(8)),
    "another dtype": written({"x": entry("O")}, bytes(8)),
    "a dtype that is a list": written({"x": entry(["F64"])}, bytes(8)),
    "a size below 0": written({"x": entry(shape=[-1])}, bytes(8)),
    "a size that is a fraction": written({"x": entry(shape=[1.0])}, bytes(8)),
    "a size that is a truth": written({"x": entry(shape=[True])}, bytes(8)),
    "sizes beyond all bounds": written({"x": entry(shape=[1 << 62, 1 << 62, 0], at=[0, 0])}),
    "too many dimensions": written({"x": entry(shape=[1] * 100)}, bytes(8)),
    "more elements than bytes": written({"x": entry(shape=[2])}, bytes(8)),
    "a place beyond the end": written({"x": entry(shape=[2], at=[0, 16])}, bytes(8)),
    "a place the wrong way round": written({"x": entry(shape=[0], at=[8, 0])}, bytes(8)),
    "three places": written({"x": entry(at=[0, 4, 8])}, bytes(8)),
    "two in one place": written({"x": entry(), "y": entry()}, bytes(8)),
    "a gap": written({"x": entry(at=[8, 16])}, bytes(16)),
    "bytes of nobody": written({"x": entry()}, bytes(9)),
    "a truth that is 2": written({"x": entry("BOOL", [1], [0, 1])}, b"\2"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_in_words(name: str) -> None:
    with pytest.raises(BadRecord, match=r"^\$"):
        unpack(HOSTILE[name])


def test_a_file_that_was_cut_or_changed_is_read_or_refused_never_worse() -> None:
    whole = pack(ARRAYS, {"kind": "model"})
    rng = random.Random(3)
    for length in range(0, len(whole), 37):
        with pytest.raises(BadRecord):
            unpack(whole[:length])
    for _ in range(500):
        spoilt = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            spoilt[rng.randrange(len(spoilt) // 2)] = rng.randrange(256)
        try:
            arrays, _ = unpack(spoilt)
        except BadRecord:
            continue
        assert sum(array.nbytes for array in arrays.values()) <= len(whole)


def test_no_more_memory_is_taken_than_the_bytes_that_are_there() -> None:
    claims = written({"x": entry(shape=[1 << 40], at=[0, 1 << 43])}, bytes(8))
    large = pack({"x": np.zeros(1 << 20)})
    tracemalloc.start()
    try:
        with pytest.raises(BadRecord):
            unpack(claims)
        with pytest.raises(BadRecord):
            unpack(struct.pack("<Q", HEADER_BYTES_MAX + 1) + bytes(64))
        unpack(large)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_header_that_was_read_before_is_held_to_the_bytes_that_come_with_it() -> None:
    good = pack({"x": np.arange(4.0), "b": np.array([True, False])}, {"text": "as it was"})
    for _ in range(2):
        arrays, texts = unpack(good)
        assert arrays["x"].tolist() == [0.0, 1.0, 2.0, 3.0]
        assert texts == {"text": "as it was"}
        texts["text"] = "changed by whoever read it"
        for bad in (good[:-1], good + b"\0", good[:-1] + b"\2"):
            with pytest.raises(BadRecord):
                unpack(bad)
    other = pack({"x": np.arange(4.0) + 1, "b": np.array([False, False])}, {"text": "as it was"})
    assert unpack(other)[0]["x"].tolist() == [1.0, 2.0, 3.0, 4.0]
