"""A key as somebody says it is found where the column's own value is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zkd.core.placement import hash_key
from zkd.errors import BadRows
from zkd.tables.hashing import hash_column
from zkd.tables.keys import as_key, from_text


@pytest.mark.parametrize(
    ("dtype", "said", "stored"),
    [
        ("|i1", -5, -5),
        ("<i8", 5.0, 5),
        ("<i8", np.uint8(5), 5),
        ("<u8", 2**64 - 1, 2**64 - 1),
        ("<f4", 0.1, 0.1),
        ("<f4", np.float32(0.1), 0.1),
        ("<f8", -0.0, 0.0),
        ("<f8", 7, 7.0),
        ("<f2", 1e9, np.inf),
        ("<U5", "käse", "käse"),
        ("|S5", "abc", b"abc"),
        ("|S5", b"abc", b"abc"),
        ("<M8[s]", np.datetime64("2020-01-01"), np.datetime64("2020-01-01T00:00:00")),
        ("<M8[s]", "2020-01-01", np.datetime64("2020-01-01T00:00:00")),
        ("<M8[s]", 86400, np.datetime64("1970-01-02T00:00:00")),
        ("<m8[s]", np.timedelta64(2, "m"), np.timedelta64(120, "s")),
        ("<m8[s]", 120, np.timedelta64(120, "s")),
    ],
)
def test_a_key_hashes_as_the_value_in_its_column(dtype: str, said: Any, stored: Any) -> None:
    assert hash_key(as_key(said, dtype)) == int(hash_column(np.array([stored], dtype))[0])


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        ("<i8", "5"),
        ("<i8", 5.5),
        ("<i8", float("inf")),
        ("<i8", 2**63),
        ("<u8", -1),
        ("<i8", True),
        ("<i8", None),
        ("<f8", "x"),
        ("<f8", 10**400),
        ("<f8", [1.0]),
        ("<U5", 5),
        ("<U5", b"abc"),
        ("<U5", "\ud800"),
        ("|S5", 5),
        ("<M8[s]", "yesterday"),
        ("<M8[s]", None),
        ("<M8[s]", [1, 2]),
        ("<c16", 1j),
    ],
)
def test_what_cannot_be_in_the_column_is_refused(dtype: str, said: Any) -> None:
    with pytest.raises(BadRows, match="key: expected a value of a column of"):
        as_key(said, dtype)


@pytest.mark.parametrize(("dtype", "said"), [("<f8", float("nan")), ("<M8[s]", np.datetime64("NaT"))])
def test_what_equals_nothing_cannot_be_looked_for(dtype: str, said: Any) -> None:
    with pytest.raises(BadRows, match="equals nothing"):
        as_key(said, dtype)


@pytest.mark.parametrize(
    ("dtype", "text", "key"),
    [
        ("<i4", "-7", -7),
        ("<f4", "0.5", 0.5),
        ("<U3", "007", "007"),
        ("|S3", "abc", "abc"),
        ("<M8[D]", "2020-02-01", np.datetime64("2020-02-01")),
        ("<m8[s]", "60", 60),
    ],
)
def test_what_was_typed_is_a_key_of_the_columns_kind(dtype: str, text: str, key: Any) -> None:
    assert from_text(text, dtype) == key


@pytest.mark.parametrize(("dtype", "text"), [("<i4", "x"), ("<f8", "1,5"), ("<M8[D]", "soon"), ("<m8[s]", "1h")])
def test_what_was_typed_and_is_none_is_refused(dtype: str, text: str) -> None:
    with pytest.raises(BadRows, match="key: expected a value of a column of"):
        from_text(text, dtype)
