"""A batch of requests, some of them hostile, and what becomes of each."""

from __future__ import annotations

import base64
import re
import struct
from typing import Any

import msgspec
import numpy as np
import pytest

from zkd.arrays.tensors import pack, unpack
from zkd.errors import NotPredicted
from zkd.models.model import Model
from zkd.serving.answering import Ask, Served, answers
from zkd.serving.requests import JSON_TYPE, TENSORS_TYPE, read

PIXELS = Served(
    Model("softmax", 4, 3),
    np.random.default_rng(0).standard_normal(15),
    None,
    np.zeros(4),
    ("cat", "dog", True),
    (("age", 0), ("pixels", 3)),
)
COUNTS = Served(Model("poisson", 1), np.array([1.0, 0.5]), None, np.zeros(1), (), (("x", 0),))


def answered(model: Served, *bodies: Any, want: list[str] | None = None, missing: str = "refuse") -> list[Any]:
    """What each of these bodies gives: the answer as a value, or (kind, words)."""
    asks, texts = [], []
    for body in bodies:
        form = "tensors" if isinstance(body, bytes) else "json"
        asks.append(Ask(form, want, missing, 0.0, {"model": "m"}))
        texts.append(body if isinstance(body, bytes) else msgspec.json.encode(body))
    outcomes, said = answers(model, asks, texts, 0.0, lambda: 0.001)
    values: list[Any] = []
    for outcome, ask, text in zip(outcomes, asks, said, strict=True):
        if outcome.kind:
            assert not text
            values.append((outcome.kind, outcome.why))
        else:
            values.append(msgspec.json.decode(text) if ask.form == "json" else unpack(text))
    return values


def test_every_form_of_the_same_rows_gives_the_same_bits() -> None:
    rows = np.random.default_rng(1).standard_normal((2, 4))
    in_base64 = {"dtype": "<f8", "shape": [2, 4], "data": base64.b64encode(rows.tobytes()).decode()}
    forms: list[Any] = [
        rows.tolist(),
        {"age": rows[:, 0].tolist(), "pixels": rows[:, 1:].tolist()},
        [{"pixels": row[1:].tolist(), "age": float(row[0])} for row in rows],
        in_base64,
        pack({"rows": rows}),
        pack({"age": rows[:, 0], "pixels": rows[:, 1:]}),
    ]
    told = answered(PIXELS, *forms, want=["score", "prediction", "probabilities", "attributions"])
    first = told[0]
    for other in told[1:4]:
        assert {**other, "ms": 0} == {**first, "ms": 0}
    for arrays, texts in told[4:]:
        for name in ("score", "probabilities", "attributions", "base"):
            assert arrays[name].tolist() == first[name]
        classes = msgspec.json.decode(texts["classes"])
        assert [classes[each] for each in arrays["prediction"]] == first["prediction"]


def lying(header: str, tail: bytes = b"", length: int | None = None) -> bytes:
    raw = header.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + tail


TEN_GB = '{"rows":{"dtype":"F64","shape":[312500000,4],"data_offsets":[0,10000000000]}}'
HOSTILE: list[tuple[Any, str]] = [
    ([[1, 2, 3]], "expected 4 numbers (age, pixels x 3), got 3"),
    ([[1, 2, 3, "4"]], "expected a number"),
    ([[1, 2, 3, 1e999]], "missing or infinite"),
    ([[1, 2, 3, None]], "missing or infinite number in pixels: 0"),
    ([[1, 2, 3, [4]]], "expected a number"),
    ({"age": [1], "pixels": [[1, 2]]}, "$.rows.pixels[0]: expected 3 numbers, got 2"),
    ({"age": [1, 2], "pixels": [[1, 2, 3]]}, "expected 2 rows as in age, got 1"),
    ({"age": [[1]], "pixels": [[1, 2, 3]]}, "$.rows.age"),
    ({"age": [1]}, "lacks pixels"),
    ([{"age": 1, "pixels": [1, 2, 3]}, {"age": [1], "pixels": [1, 2, 3]}], "$.rows[1].age: expected one number"),
    ([{"age": 1, "pixels": 7}], "expected 3 numbers, got one number"),
    ({"dtype": "<f8", "shape": [1 << 40, 4], "data": ""}, "$.rows"),
    ({"dtype": "|O", "shape": [1], "data": "AA=="}, "dtype"),
    ({"blob": "0" * 64, "size": 10, "format": "npy"}, "blob"),
    ("rows", "expected columns by feature"),
    (b"", "expected at least 8 bytes"),
    (lying("{}", length=1 << 60), "a header of 1152921504606846976 bytes is announced"),
    (lying(TEN_GB, b"\0" * 1000), "data_offsets"),
    (lying('{"rows":{"dtype":"F64","shape":[1,4],"data_offsets":[0,32]}}', b"\0" * 31), "data_offsets"),
    (lying('{"rows":{"dtype":"F64","shape":[9,9],"data_offsets":[0,32]}}', b"\0" * 32), "does not fit 32 bytes"),
    (lying('{"rows":{"dtype":"BF16","shape":[1,4],"data_offsets":[0,8]}}', b"\0" * 8), "expected one of"),
    (lying("[" * 5000), "the header"),
    (pack({"rows": np.zeros((2, 5))}), "expected rows x 4, got shape [2, 5]"),
    (pack({"rows": np.zeros(4)}), "expected rows x 4, got shape [4]"),
    (pack({"rows": np.zeros((1, 4), np.complex64)}), "expected numbers, got complex64"),
    (pack({"age": np.zeros(2), "pixels": np.zeros((3, 3))}), "expected shape [2, 3], got [3, 3]"),
    (pack({"age": np.zeros(())}), "lacks pixels"),
    (pack({}), "lacks age, pixels"),
    (pack({"rows": np.array([[1.0, np.nan, 0.0, 0.0]])}), "missing or infinite number in pixels: 0"),
]


def test_hostile_requests_are_refused_in_words_and_the_others_have_their_bits() -> None:
    good = np.random.default_rng(2).standard_normal((3, 4))
    alone = answered(PIXELS, good.tolist(), want=["score"])[0]["score"]
    bodies = [each for body, _ in HOSTILE for each in (body, good.tolist())]
    told = answered(PIXELS, *bodies, want=["score"])
    for (body, words), said in zip(HOSTILE, told[::2], strict=True):
        assert said[0] == "bad_request", body
        assert words in said[1], (body, said)
    for said in told[1::2]:
        assert said["score"] == alone


def test_answers_that_would_be_huge_are_refused_before_they_are_made() -> None:
    many = 1 << 21
    kind, words = answered(PIXELS, pack({"rows": np.zeros((many, 4), np.int8)}))[0]
    assert (kind, words) == (
        "too_large",
        f"expected at most {(1 << 22) // 3} rows for this model and what is wanted, got {many}",
    )


def test_rows_without_a_score_can_go_through() -> None:
    said = answered(PIXELS, [[1, 2, 3, None], [0, 0, 0, 0]], missing="propagate", want=["prediction", "probabilities"])
    assert said[0]["prediction"][0] is None
    assert said[0]["prediction"][1] in PIXELS.classes
    assert said[0]["probabilities"][0] == [None] * 3
    (arrays, _), *_ = answered(PIXELS, pack({"rows": np.full((1, 4), np.nan)}), missing="propagate")
    assert (arrays["prediction"].tolist(), np.isnan(arrays["probabilities"]).all()) == ([-1], True)
    assert answered(COUNTS, [[1000.0]], want=["prediction"])[0]["prediction"] == [None]  # exp of it is no number


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"", JSON_TYPE, "$"),
        (b"{", JSON_TYPE, "$"),
        (b"[1]", JSON_TYPE, "$"),
        (b'{"rows":' + b"[" * 100_000, JSON_TYPE, "$"),
        (b'{"rows":[[1,2]],"deadline_ms":1e9}', JSON_TYPE, "deadline_ms"),
        (b'{"rows":[[1,2]],"want":[]}', JSON_TYPE, "at least one"),
        (b'{"rows":[[1,2]],"key":[1]}', JSON_TYPE, "key"),
        (b"\xff\xfe", JSON_TYPE, "$"),
        (b"1234567", TENSORS_TYPE, "7 bytes"),
        (lying("{}", length=1 << 63), TENSORS_TYPE, "is announced"),
        (lying('{"__metadata__":{"want":"[1]"}}'), TENSORS_TYPE, "$"),
        (lying('{"__metadata__":{"wants":"[]"}}'), TENSORS_TYPE, "wants"),
        (lying('{"__metadata__":[]}'), TENSORS_TYPE, "__metadata__"),
        (b"\x80\x04\x95", "application/x-pickle", "expected Content-Type"),
    ],
)
def test_envelopes_that_are_none_are_refused(body: bytes, kind: str, words: str) -> None:
    with pytest.raises(NotPredicted, match=re.escape(words)) as caught:
        read(body, kind)
    assert caught.value.kind == "bad_request"
