"""A column's hashes are those of its keys one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zkd.core.placement import hash_key, part_of
from zkd.errors import BadRows
from zkd.tables.hashing import BLOCK_ROWS, hash_column, part_numbers

INTEGERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u8", ">i2"]
FLOATS = ["f2", "f4", "f8", ">f8", ">f4"]


def one_by_one(keys: np.ndarray[Any, Any]) -> list[int]:
    if keys.dtype.kind in "mM":
        keys = keys.astype(keys.dtype.newbyteorder("=")).view(np.int64)
    return [hash_key(key) for key in keys.tolist()]


@given(st.sampled_from(INTEGERS).flatmap(lambda kind: hnp.arrays(kind, st.integers(0, 40))))
def test_integers_of_all_widths_hash_as_their_numbers(keys: np.ndarray[Any, Any]) -> None:
    assert hash_column(keys).tolist() == one_by_one(keys)


@given(
    st.sampled_from(FLOATS).flatmap(
        lambda kind: hnp.arrays(kind, st.integers(0, 40), elements=hnp.from_dtype(np.dtype(kind), allow_nan=False))
    )
)
def test_floats_of_all_widths_hash_as_doubles(keys: np.ndarray[Any, Any]) -> None:
    assert hash_column(keys).tolist() == one_by_one(keys)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12), max_size=30))
def test_text_hashes_as_utf8(texts: list[str]) -> None:
    assert hash_column(np.array(texts, "U12")).tolist() == [hash_key(text) for text in texts]


@given(st.lists(st.binary(max_size=12).map(lambda octets: octets.rstrip(b"\0")), max_size=30))
def test_bytes_hash_as_bytes(octets: list[bytes]) -> None:
    assert hash_column(np.array(octets, "S12")).tolist() == [hash_key(each) for each in octets]


@given(
    st.sampled_from(["M8[D]", "M8[ns]", "m8[s]", ">M8[us]"]).flatmap(
        lambda kind: hnp.arrays(kind, st.integers(0, 20), elements=hnp.from_dtype(np.dtype(kind), allow_nan=False))
    )
)
def test_dates_and_spans_hash_as_the_number_of_their_unit(keys: np.ndarray[Any, Any]) -> None:
    assert hash_column(keys).tolist() == one_by_one(keys)


def test_columns_longer_than_a_block_and_with_gaps_in_memory() -> None:
    keys = np.arange(3 * (BLOCK_ROWS + 7), dtype=np.int32)[::3]
    assert hash_column(keys).tolist() == one_by_one(keys)


def test_both_zeros_are_one_key() -> None:
    assert len(set(hash_column(np.array([0.0, -0.0])).tolist())) == 1


def test_the_same_number_in_any_width_is_one_key() -> None:
    assert {int(hash_column(np.array([7], kind))[0]) for kind in INTEGERS} == {hash_key(7)}
    assert {int(hash_column(np.array([0.5], kind))[0]) for kind in FLOATS} == {hash_key(0.5)}


@pytest.mark.parametrize("parts", [1, 2, 64, 256, 512, 16384])
def test_part_numbers_are_those_of_the_hashes_one_by_one(parts: int) -> None:
    hashes = hash_column(np.arange(1000))
    assert part_numbers(hashes, parts).tolist() == [part_of(int(hashed), parts) for hashed in hashes]


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "M8[s]"])
def test_keys_that_equal_nothing_are_refused_with_their_rows(kind: str) -> None:
    keys = np.array([1] * 100, kind)
    keys[[3, 70]] = np.nan if kind[0] == "f" else np.datetime64("NaT")
    with pytest.raises(BadRows, match=r"column 'id': Na[NT] .* \(rows 1003, 1070, counted from 0\)"):
        hash_column(keys, first_row=1000, where="column 'id'")


def test_text_that_is_no_utf8_is_refused_with_its_row() -> None:
    with pytest.raises(BadRows, match=r"lone surrogate .*row 1,"):
        hash_column(np.array(["a", "\ud800"]))


@pytest.mark.parametrize("kind", ["?", "c8", "V4"])
def test_other_types_are_no_keys(kind: str) -> None:
    with pytest.raises(BadRows, match="a key is a number"):
        hash_column(np.zeros(3, kind))
