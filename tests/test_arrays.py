"""What goes into JSON comes out again, bit for bit; what should not come in is refused before it costs anything."""

from __future__ import annotations

import ast
import base64
import json
import math
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from zkd.arrays import DEPTH_MAX, LIST_ELEMENTS_MAX, from_json, is_large, open_npy, parse_dtype, save_npy, to_json
from zkd.arrays import write_blob as write_blob_file
from zkd.errors import BadRecord, NotData
from zkd.records import BlobRef

SHA = "0123456789abcdef" * 4


class Pair(NamedTuple):
    x: int
    y: Any


def bits(value: Any) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(value)
    return array.dtype.newbyteorder("<").str, array.shape, array.astype(array.dtype.newbyteorder("<")).tobytes()


PLAIN_DTYPES = st.one_of(
    npst.boolean_dtypes(),
    npst.integer_dtypes(endianness="?"),
    npst.unsigned_integer_dtypes(endianness="?"),
    npst.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    npst.complex_number_dtypes(endianness="?", sizes=(64, 128)),
    npst.datetime64_dtypes(endianness="?"),
    npst.timedelta64_dtypes(endianness="?"),
    npst.byte_string_dtypes(min_len=1, max_len=9),
    npst.unicode_string_dtypes(endianness="?", min_len=1, max_len=9),
)
ARRAYS = PLAIN_DTYPES.flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=25,
)


# --- round trips --------------------------------------------------------------------------------------


@given(ARRAYS)
@settings(deadline=None)
def test_every_plain_array_comes_back_bit_for_bit(array: np.ndarray[Any, Any]) -> None:
    back = from_json(to_json(array, exact=True))
    assert bits(back) == bits(array)
    assert np.asarray(back).dtype.isnative


@given(ARRAYS)
@settings(deadline=None)
def test_nested_lists_keep_shape_and_values(array: np.ndarray[Any, Any]) -> None:
    back = from_json(to_json(array))
    if isinstance(back, np.ndarray | np.generic):
        assert bits(back) == bits(array)
    else:
        assert np.asarray(back).shape == array.shape
        assert bits(np.asarray(back, array.dtype)) == bits(array)


@given(JSON_VALUES)
@example([0.1, -0.0, 5e-324, 1.7976931348623157e308, math.nan, math.inf, -math.inf])
@example({"a": [None, math.nan], "b": {"c": math.nan}})
@example([None, 1.5])
@example([2**63, 2**64, -(2**70)])
@settings(deadline=None)
def test_values_of_json_come_back_as_they_went(value: Any) -> None:
    assert repr(plain(from_json(to_json(value)))) == repr(value)


def plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {name: plain(item) for name, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("number", [0x7FF8000000000000, 0xFFF8000000000001, 0x7FF0000000000001, 0x7FF0000000000000])
def test_a_nan_keeps_its_bits(number: int) -> None:
    octets = struct.pack("<Q", number)
    value = struct.unpack("<d", octets)[0]
    for sent in (value, [value], np.frombuffer(octets, "<f8"), np.frombuffer(octets, "<f8")[0]):
        back = from_json(to_json(sent))
        assert np.asarray(back).tobytes() == octets


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float64(1.5), "1.5"),
        (np.int64(-3), "-3"),
        (np.uint64(2**64 - 1), "18446744073709551615"),
        (np.bool_(True), "true"),
        (np.str_("é"), '"é"'),
        (np.float32(0.1), "0.10000000149011612"),
        (np.array(2), "2"),
        (np.array([]), "[]"),
        (np.zeros((2, 0)), "[[],[]]"),
        (np.array([[1, 2], [3, 4]]), "[[1,2],[3,4]]"),
        (np.array([True, False]), "[true,false]"),
        (np.array(["a", "b"]), '["a","b"]'),
        (np.array([1.0, -0.0]), "[1.0,-0.0]"),
        ((1, (2, 3)), "[1,[2,3]]"),
        (range(3), "[0,1,2]"),
        (Pair(1, np.array([2])), "[1,[2]]"),
        ({"a": np.array([1]), "b": None}, '{"a":[1],"b":null}'),
        (IntEnum("E", "A").A, "1"),  # type: ignore[attr-defined]
        (10**40, "1" + "0" * 40),
        (np.array(["a", "b"], np.dtypes.StringDType()), '["a","b"]'),
    ],
)
def test_people_can_read_what_json_can_say(value: Any, text: str) -> None:
    assert to_json(value).decode() == text


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (np.arange(LIST_ELEMENTS_MAX + 1), "<i8", [LIST_ELEMENTS_MAX + 1]),
        (np.array([1.0, np.nan]), "<f8", [2]),
        (np.float32("inf"), "<f4", []),
        (1j, "<c16", []),
        (np.complex64(1j), "<c8", []),
        (np.zeros((0, 3), np.int16), "<i2", [0, 3]),
        (np.array([1.5], ">f4").repeat(2000), "<f4", [2000]),
        (np.datetime64("2024-02-29"), "<M8[D]", []),
        (np.array([b"ab"]), "|S2", [1]),
        (b"\x00\xff", "|V2", []),
        (np.zeros(3, [("a", "<f8"), ("b", "<i2", (2,))]), [["a", "<f8"], ["b", "<i2", [2]]], [3]),
    ],
)
def test_the_dtype_form_says_what_lists_cannot(value: Any, dtype: Any, shape: Any) -> None:
    said = json.loads(to_json(value))
    assert list(said) == ["dtype", "shape", "data"]
    assert said["dtype"] == dtype
    assert said["shape"] == shape
    base64.b64decode(said["data"], validate=True)


def test_the_thousandth_element_is_the_last_in_a_list() -> None:
    assert to_json(np.zeros(LIST_ELEMENTS_MAX)).startswith(b"[")
    assert to_json(np.zeros(LIST_ELEMENTS_MAX + 1)).startswith(b'{"dtype":')


@pytest.mark.parametrize("value", [b"", b"a\x00", b"\x00" * 3, bytearray(b"x"), memoryview(b"yz")])
def test_bytes_are_bytes_again(value: Any) -> None:
    back = from_json(to_json([value]))[0]
    assert type(back) is bytes
    assert back == bytes(value)


def test_structures_lose_their_padding_and_nothing_else() -> None:
    padded = np.zeros(4, np.dtype([("a", "i1"), ("b", [("c", ">f8"), ("d", "U3")]), ("e", "<u2", (2, 2))], align=True))
    padded["b"]["c"] = [1, 2, np.nan, 4]
    padded["b"]["d"] = "é"
    padded["e"] = 7
    back = from_json(to_json(padded))
    assert back.dtype.names == padded.dtype.names
    assert back.dtype.itemsize == 1 + 8 + 12 + 8
    for name in ("a", "e"):
        np.testing.assert_array_equal(back[name], padded[name])
    np.testing.assert_array_equal(back["b"]["c"], padded["b"]["c"])
    assert back["b"]["d"].tolist() == ["é"] * 4
    record = np.rec.array([(1, 2.5)], dtype=[("x", "i4"), ("y", "f8")])
    assert from_json(to_json(record)).tolist() == [(1, 2.5)]
    assert from_json(to_json(record[0]))["y"] == 2.5


def test_long_doubles_come_back_without_the_memory_around_them() -> None:
    value = np.array([np.pi, -np.inf, np.nan], np.longdouble)
    value.view(np.uint8).reshape(3, 16)[:, 10:] = 0xAA
    said = json.loads(to_json(value))
    octets = np.frombuffer(base64.b64decode(said["data"]), np.uint8).reshape(3, 16)
    assert not octets[:, 10:].any()
    np.testing.assert_array_equal(from_json(to_json(value)), value)
    twice = np.array([1 + 2j], np.clongdouble)
    np.testing.assert_array_equal(from_json(to_json(twice)), twice)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6000.0)[::-3],
        np.asfortranarray(np.arange(4000.0).reshape(40, 100)),
        np.arange(4000.0).reshape(40, 100).T,
        np.broadcast_to(np.arange(50.0), (40, 50)),
        np.arange(2000, dtype=">i8"),
        np.arange(1200).view(np.matrix) if hasattr(np, "matrix") else np.arange(1200),
    ],
)
def test_memory_layout_is_not_part_of_a_value(array: Any) -> None:
    back = from_json(to_json(array))
    np.testing.assert_array_equal(back, np.asarray(array))
    assert back.flags.c_contiguous
    assert back.flags.writeable


def test_arrays_deep_inside_come_back_as_arrays() -> None:
    value = {"a": [np.arange(2000), {"b": (np.nan, "x", np.zeros((0, 2)))}], "c": np.eye(2)}
    back = from_json(to_json(value))
    assert isinstance(back["a"][0], np.ndarray)
    assert math.isnan(back["a"][1]["b"][0])
    assert back["a"][1]["b"][2].shape == (0, 2)
    assert back["c"] == [[1.0, 0.0], [0.0, 1.0]]


@dataclass
class Point:
    x: float
    y: np.ndarray[Any, Any]


class Named(msgspec.Struct, rename="camel"):
    first_name: str


def test_dataclasses_and_structs_are_objects() -> None:
    assert to_json(Point(1.0, np.array([2]))) == b'{"x":1.0,"y":[2]}'
    assert to_json(Named("a")) == b'{"firstName":"a"}'
    assert json.loads(to_json(BlobRef(SHA, 3, "npy"))) == {"blob": SHA, "size": 3, "format": "npy", "nodes": {}}


# --- what has no place in JSON ------------------------------------------------------------------------


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append({"again": value})
    return value


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.array([None, 1]), "object"),
        (np.zeros(1, [("a", "O")]), r"\$\.a.*object"),
        (np.zeros(1, [("a", "g")]), r"\$\.a"),
        ([1, {2}], r"\$\[1\].*set.*sorted"),
        ({"a": {1: 2}}, r"\$\.a: names .* text"),
        (iter([1]), "list"),
        ((x for x in [1]), "list"),
        (print, "builtin_function"),
        (int, "type"),
        (object(), "object"),
        (np.ma.array([1], mask=[True]), "mask"),
        (np.array([1]).dtype, "Int64"),
        (cyclic(), "contains itself"),
        (deep(DEPTH_MAX + 1), "deeper"),
        (deep(100_000), "deeper"),
        ("\ud800", "surrogate"),
        ({"\ud800": 1}, "surrogate"),
        ([10**5000], "digits"),
        (np.array(["a", None], np.dtypes.StringDType(na_object=None)), "missing"),
    ],
)
def test_what_is_no_data_is_refused_with_its_place(value: Any, says: str) -> None:
    with pytest.raises(NotData, match=says):
        to_json(value)


def test_a_value_at_the_depth_limit_can_be_read_again() -> None:
    value = deep(DEPTH_MAX)
    assert from_json(to_json(value)) == value
    # Arrays inside have up to 64 dimensions of their own.
    value = deep(DEPTH_MAX - 1)
    innermost = value
    while isinstance(innermost[0], list):
        innermost = innermost[0]
    innermost[0] = np.zeros((1,) * 64)
    assert from_json(to_json(value)) is not None


# --- hostile text -------------------------------------------------------------------------------------


def form(dtype: Any = "<f8", shape: Any = (2,), data: Any = None, **more: Any) -> bytes:
    return json.dumps(
        {"dtype": dtype, "shape": shape, "data": base64.b64encode(bytes(16)).decode() if data is None else data} | more
    ).encode()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"", "$"),
        (b" ", "$"),
        (b"NaN", "$"),
        (b"[Infinity]", "$"),
        (b"1e999", "$"),
        (b"[-1e999]", "$"),
        (b"[1,]", "$"),
        (b"[1]x", "$"),
        (b"'a'", "$"),
        (b"\xff", "$"),
        (b'"\xed\xa0\x80"', "$"),
        (b'"\x00"', "$"),
        (b"[" * 200 + b"]" * 200, "$"),
        (b"[" * 1_000_000, "$"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "$"),
        (b"1" * 5000, "$"),
        (b'{"a":1,"a":2}', "$..a"),
        (b'[{"b":{"a":1,"\\u0061":2}}]', "$..a"),
        (b'{"dtype":"<f8","shape":[0],"data":"","data":""}', "$..data"),
        (form("O"), "$.dtype"),
        (form("object"), "$.dtype"),
        (form("|O"), "$.dtype"),
        (form("f8,f8"), "$.dtype"),
        (form("(2,)f8"), "$.dtype"),
        (form("float"), "$.dtype"),
        (form("<f16", data=""), "$.data"),
        (form(">f16"), "$.dtype"),
        (form("<f3"), "$.dtype"),
        (form("V0"), "$.dtype"),
        (form("|V0"), "$.dtype"),
        (form("<U0"), "$.dtype"),
        (form("<U999999999"), "$.dtype"),
        (form("<M8[99999999999D]"), "$.dtype"),
        (form("<M8[D"), "$.dtype"),
        (form("<f8\n"), "$.dtype"),
        (form("T"), "$.dtype"),
        (form("<f8" * 1000), "$.dtype"),
        (form(None), "$.dtype"),
        (form(8), "$.dtype"),
        (form({"names": ["a"]}), "$.dtype"),
        (form([]), "$.dtype"),
        (form([["a", "O"]]), "$.dtype[0][1]"),
        (form([["a"]]), "$.dtype[0]"),
        (form([["", "<f8"]]), "$.dtype[0][0]"),
        (form([["a", "<f8"], ["a", "<f8"]]), "$.dtype[1][0]"),
        (form([["a", "<f8", [0]]]), "$.dtype[0][2]"),
        (form([["a", "<f8", 3]]), "$.dtype[0][2]"),
        (form([["a", "<f8", [10**9, 10**9]]]), "$.dtype[0][2]"),
        (form([[f"x{i}", "i1"] for i in range(300)]), "$.dtype"),
        (form(shape=2), "$.shape"),
        (form(shape=[-1]), "$.shape"),
        (form(shape=[2.0]), "$.shape"),
        (form(shape=[True]), "$.shape"),
        (form(shape=["2"]), "$.shape"),
        (form(shape=[None]), "$.shape"),
        (form(shape=[1] * 65), "$.shape"),
        (form(shape=[2**62]), "$.shape"),
        (form(shape=[0, 2**62, 4]), "$.shape"),
        (form(shape=[10**30]), "$.shape"),
        (form(shape=[3]), "$.data"),
        (form(shape=[10**15]), "$.data"),
        (form(data="AAAA"), "$.data"),
        (form(data="é" * 24), "$.data"),
        (form(data="A" * 23 + "\n"), "$.data"),
        (form(data="A" * 24), "$.data"),
        (form(data=7), "$.data"),
        (form(data=None) [:-1] + b',"x":1}', None),
        (form("|b1", data=base64.b64encode(b"\x00\x07").decode()), "$.data"),
        (form([["a", "|b1"]], data=base64.b64encode(b"\x00\x07").decode()), "$.data"),
        (form("<U1", [1], base64.b64encode(struct.pack("<I", 0x110000)).decode()), "$.data"),
        (form(">U1", [1], base64.b64encode(struct.pack(">I", 0x110000)).decode()), "$.data"),
        (b"[[" + form("O") + b"]]", "$[0][0].dtype"),
        (b'{"a":{"b":' + form("O") + b"}}", "$.a.b.dtype"),
        (b'{"blob":"x","size":1,"format":"npy"}', "$.blob"),
        (b'{"blob":7,"size":1,"format":"npy"}', "$.blob"),
        (b'{"blob":"' + SHA.encode() + b'","size":1,"format":"pickle"}', "$.format"),
        (b'{"blob":"' + SHA.encode() + b'","size":1,"format":"npy"}', "$.blob"),
    ],
    ids=count(),
)  # fmt: skip
def test_hostile_text_is_refused_with_its_place(text: bytes, where: str | None) -> None:
    if where is None:  # more names than the form has: just an object
        assert from_json(text)["x"] == 1
        return
    with pytest.raises(BadRecord) as refused:
        from_json(text)
    assert refused.value.where == where
    assert len(str(refused.value)) < 600


def test_nothing_is_allocated_for_a_size_that_is_not_there() -> None:
    text = form(shape=[10**12])
    tracemalloc.start()
    with pytest.raises(BadRecord):
        from_json(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


def test_places_start_where_the_caller_says() -> None:
    with pytest.raises(BadRecord, match=r"^\$\.args\[1\]\.shape: "):
        from_json(b"[1," + form(shape=[-1]) + b"]", where="$.args")


@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:0123456789.eE-+ntrufals\\"dtypeshab', max_size=200))
@settings(deadline=None)
def test_garbage_is_a_value_or_a_bad_record(text: bytes | str) -> None:
    survives(text if isinstance(text, bytes) else text.encode())


# Random bytes die at the first brace; these get further in.
@given(
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(
                ["<f8", "O", "V0", "|V3", "<U2", "|b1", "<M8[7s]", [["a", "<i4", [2]]], "c16", 3, None]
            )
            | st.text(max_size=8)
            | st.recursive(st.text(max_size=4), lambda inner: st.lists(inner, max_size=3), max_leaves=9),
            "shape": st.lists(st.integers(-2, 4) | st.integers() | st.booleans(), max_size=4) | JSON_VALUES,
            "data": st.binary(max_size=40).map(lambda raw: base64.b64encode(raw).decode()) | st.text(max_size=20),
        }
    )
)
@settings(max_examples=300, deadline=None)
def test_a_hostile_dtype_form_is_an_array_or_a_bad_record(value: Any) -> None:
    survives(msgspec.json.encode([value, {"x": value}]))


def survives(text: bytes) -> None:
    try:
        value = from_json(text)
    except BadRecord:
        return
    # What was let in can be looked at, and sent on unless it holds what JSON text cannot.
    try:
        to_json(value)
    except NotData as error:
        assert "surrogate" in str(error)  # noqa: PT017 - only this one may happen


@given(st.text(max_size=12))
@example("<f8")
@example("i4")
@settings(deadline=None)
def test_a_dtype_that_is_let_in_is_plain(text: str) -> None:
    try:
        dtype = parse_dtype(text)
    except BadRecord:
        return
    assert not dtype.hasobject
    assert dtype.itemsize > 0
    assert parse_dtype(dtype.str) == dtype


# --- files --------------------------------------------------------------------------------------------


def reference(path: Path, form: str = "npy", **changes: Any) -> bytes:
    return msgspec.json.encode({"blob": SHA, "size": path.stat().st_size, "format": form} | changes)


@given(array=ARRAYS)
@settings(max_examples=60, deadline=None)
def test_a_file_gives_back_the_array_as_numpy_does(
    array: np.ndarray[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.npy"
    save_npy(array, path)
    opened = open_npy(path)
    assert bits(opened) == bits(array)
    assert bits(np.load(path, allow_pickle=False)) == bits(array)
    assert not opened.flags.writeable


def test_a_reference_is_a_read_only_memory_map(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    array = np.arange(20_000.0).reshape(200, 100)
    assert write_blob_file(array, path) == "npy"
    value = from_json(b"[1," + reference(path, nodes={"n": "http://n:1/"}) + b"]", {SHA: str(path)})[1]
    assert isinstance(value, np.memmap)
    np.testing.assert_array_equal(value, array)
    with pytest.raises(ValueError, match="read-only"):
        value[0, 0] = 1


def test_fortran_order_in_a_file_is_the_same_array(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.save(path, array)
    assert b"'fortran_order': True" in path.read_bytes()
    np.testing.assert_array_equal(open_npy(path), array)
    save_npy(array, path)
    assert b"'fortran_order': False" in path.read_bytes()


def test_other_values_are_json_files(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    value = {"a": np.arange(2000), "b": [1, None]}
    assert write_blob_file(value, path) == "json"
    back = from_json(reference(path, "json"), {SHA: str(path)})
    np.testing.assert_array_equal(back["a"], value["a"])
    assert write_blob_file(np.zeros(2, [("a", "f8")]), path) == "json"
    assert write_blob_file(np.array(["é"]), path) == "npy"


def test_a_json_file_cannot_refer_to_further_files(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_bytes(b'{"blob":"' + SHA.encode() + b'","size":1,"format":"json"}')
    with pytest.raises(BadRecord, match="no file"):
        from_json(reference(path, "json"), {SHA: str(path)})


def test_a_reference_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    save_npy(np.zeros(3), path)
    with pytest.raises(BadRecord) as refused:
        from_json(reference(path, size=5), {SHA: str(path)})
    assert refused.value.where == "$.size"


def npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    size = 2 if version == b"\x01\x00" else 4
    return b"\x93NUMPY" + version + (len(header) if length is None else length).to_bytes(size, "little") + header + data


HEADER = "{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def header(descr: str = "'<f8'", order: str = "False", shape: str = "(2,)") -> bytes:
    return HEADER.format(descr=descr, order=order, shape=shape).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04" + bytes(100),
        npy(header(), bytes(15)),
        npy(header(), bytes(17)),
        npy(header(), bytes(16), version=b"\x03\x00"),
        npy(header(), bytes(16), length=60_000),
        npy(header(descr="'O'"), bytes(16)),
        npy(header(descr="'|V0'", shape="(1000000000000000,)")),
        npy(header(shape="(1000000000000000,)")),
        npy(header(shape="(0, 4611686018427387904, 4)")),
        npy(header(shape="(True,)"), bytes(8)),
        npy(header(shape="(-1,)")),
        npy(header(shape="[2]"), bytes(16)),
        npy(header(shape="(2.0,)"), bytes(16)),
        npy(header(order="1"), bytes(16)),
        npy(header(order="None"), bytes(16)),
        npy(header(descr="[('a', 'O')]"), bytes(16)),
        npy(header(descr="[('', '|V8')]"), bytes(16)),
        npy(header(descr="{'names': ['a']}"), bytes(16)),
        npy(header(descr="__import__('os')"), bytes(16)),
        npy(b"{" * 10_000, bytes(16)),
        npy(b"(" * 15_000, bytes(16)),
        npy(b"-" * 15_000 + b"1", bytes(16)),
        npy(b"{'descr': '<f8'}", bytes(16)),
        npy(b"[1, 2]", bytes(16)),
        npy(b"9" * 6000, bytes(16)),
        npy(b"'\\x00'", bytes(16)),
        npy(b"\x00" * 50, bytes(16)),
        npy(header(descr="'|b1'"), b"\x00\x09"),
        npy(header(descr="'<U1'"), b"\xff" * 8),
    ],
    ids=count(),
)
def test_hostile_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "h.npy"
    path.write_bytes(content)
    with pytest.raises(BadRecord) as refused:
        open_npy(path, "$.args[0]")
    assert refused.value.where.startswith("$.args[0]")


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_an_array_or_a_bad_record(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    content = bytearray(npy(header() + b" " * 20, bytes(16)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        array = open_npy(path)
    except BadRecord:
        return
    assert array.nbytes <= len(content)


def test_is_large_never_denies_what_would_fit() -> None:
    for size in (10, 1000, 1001, 5000, 100_000):
        array = np.zeros(size)
        for limit in (1000, 20_000, 262_144):
            assert not is_large(array, limit) or len(to_json(array)) > limit
    assert is_large(np.zeros(40_000), 256 * 1024)


# --- the room -----------------------------------------------------------------------------------------


def test_no_pickle_and_no_numpy_readers_in_the_source() -> None:
    for path in (Path(__file__).parent.parent / "zkd" / "arrays").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", getattr(node, "id", ""))
            assert name not in {"pickle", "load", "loads", "eval", "frombuffer_unsafe", "fromfile"}, path


def test_reading_and_writing_loads_no_masked_arrays() -> None:
    code = (
        "import sys, numpy as np; from zkd.arrays import *; from_json(to_json([np.arange(3.), {'a': np.nan}]));"
        "assert 'numpy.ma' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
